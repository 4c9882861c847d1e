"""The miniature of TPAW: its student and task, its rounds, its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.registry import replications
from tutelage.study import stats
from tutelage.study.replicate import Replication, run

pytestmark = pytest.mark.lm
torch = pytest.importorskip("torch")

from tutelage.objectives import objective  # noqa: E402
from tutelage.replications import tpaw  # noqa: E402
from tutelage.students.window_mlp import RandomFunction, WindowMLP  # noqa: E402

TASK = RandomFunction(seed=0)


def test_the_function_is_one_function() -> None:
    rng = np.random.default_rng(1)
    data = TASK.demonstrations(4000, rng, noise=0.1)
    again = RandomFunction(seed=0).demonstrations(4000, np.random.default_rng(1), noise=0.1)
    other = RandomFunction(seed=1).demonstrations(4000, np.random.default_rng(1), noise=0.1)
    assert torch.equal(data.right_NT, again.right_NT)
    assert (data.right_NT != other.right_NT).float().mean() > 0.5
    assert set(data.bit_NP.unique().tolist()) == {-1.0, 1.0}
    assert (data.right_NT >= 0).all()
    assert (data.target_NT < TASK.choices).all()
    assert (data.target_NT != data.right_NT).double().mean().item() == pytest.approx(0.1, abs=0.01)
    answers: dict[tuple[float, ...], list[int]] = {}
    for bits, answer in zip(data.bit_NP.tolist(), data.right_NT.tolist(), strict=True):
        assert answers.setdefault(tuple(bits), answer) == answer
    clean = TASK.demonstrations(9, np.random.default_rng(2))
    assert torch.equal(clean.target_NT, clean.right_NT)


def test_the_student_is_causal_and_normalised() -> None:
    student = WindowMLP(TASK, seed=0)
    bit_NP = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (6, 14))).float()
    answer_NT = torch.randint(8, (6, 4), generator=torch.Generator().manual_seed(0))
    logp_NTK = student(bit_NP, answer_NT)
    torch.testing.assert_close(logp_NTK.exp().sum(-1), torch.ones(6, 4))
    changed_NT = answer_NT.clone()
    changed_NT[:, 2] = (changed_NT[:, 2] + 1) % 8
    moved_NT = (student(bit_NP, changed_NT) - logp_NTK).abs().amax(-1)
    assert (moved_NT[:, :3] == 0).all()
    assert (moved_NT[:, 3] > 0).all()
    torch.testing.assert_close(student.logp(bit_NP, answer_NT), logp_NTK.gather(2, answer_NT[..., None])[..., 0])


def test_samples_follow_the_student() -> None:
    student = WindowMLP(TASK, seed=0)
    with torch.no_grad():
        student.net[-1].weight.mul_(20)
    bit_NP = torch.ones(20_000, 14)
    answer_NT = student.sample(bit_NP, torch.Generator().manual_seed(0))
    first_K = student(bit_NP[:1], answer_NT[:1])[0, 0].exp()
    np.testing.assert_allclose(np.bincount(answer_NT[:, 0], minlength=8) / 20_000, first_K.detach(), atol=0.015)
    assert torch.equal(student.sample(bit_NP, torch.Generator().manual_seed(0)), answer_NT)
    greedy_T = student.sample(bit_NP[:1], None)[0]
    for t in range(4):
        assert greedy_T[t] == student(bit_NP[:1], greedy_T[None])[0, t].argmax()


def test_rounds_have_the_papers_players_and_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 1 uses one player and N pairs, round 2 two and 2 N, from round 3 on three and 3 N."""
    seen: list[tuple[int, int]] = []

    def watch(student: Any, rounds: Any, players: Any, *rest: Any) -> None:
        seen.append((len(players), len(rounds)))
        assert all(len(pairs.bit_PP) <= tpaw.SMOKE.demonstrations for pairs in rounds)
        assert (rounds[-1].chosen_PT != rounds[-1].rejected_PT).any(dim=1).all()

    monkeypatch.setattr(tpaw, "play", watch)
    plan: Replication = replications.get("tpaw").target()
    wanted = {"tpaw": [(1, 1), (2, 2), (3, 3), (3, 3)], "spin": [(1, 1), (1, 2), (1, 2), (1, 2)], "no_team": [(1, 1)] * 4}
    for arm, expected in wanted.items():
        seen.clear()
        plan.arms[arm].run(3, True)
        assert seen == expected


def test_a_round_is_the_librarys_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a round against the loss worked by hand from whole answers."""
    room = tpaw._classroom(5, tpaw.SMOKE)
    student = WindowMLP(RandomFunction(seed=1), seed=9)
    pairs = tpaw.Pairs(student, room.train, torch.Generator().manual_seed(0))
    losses: list[float] = []
    part = objective("tpaw", beta=0.3)

    class Spy:
        denominators_of = staticmethod(part.denominators_of)

        def __call__(self, batch: Any, **options: Any) -> Any:
            loss, stats = part(batch, **options)
            losses.append(loss.item())
            return loss, stats

    players = [room.start, WindowMLP(RandomFunction(seed=1), seed=4)]
    rows = np.random.default_rng(3).integers(len(pairs.bit_PP), size=tpaw.SMOKE.batch)
    with torch.no_grad():
        sides = (pairs.chosen_PT[rows], pairs.rejected_PT[rows])
        now, ref = ([[s.logp(pairs.bit_PP[rows], side).sum(1) for s in who] for side in sides] for who in ([student], players))
        chosen, rejected = (0.3 * (now[i][0][:, None] - torch.stack(ref[i], 1)) for i in (0, 1))
        alpha = torch.where(chosen <= 0, 6.0, 1.0)
        expected = (torch.softmax(-0.5 * (chosen - rejected), 1) * torch.nn.functional.softplus(rejected - alpha * chosen)).sum(1).mean()
    tpaw.play(student, [pairs], players, Spy(), np.random.default_rng(3), tpaw.SMOKE)
    assert len(losses) == tpaw.SMOKE.steps
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_plan_and_its_smoke(tmp_path: Path) -> None:
    plan: Replication = replications.get("tpaw").target()
    assert plan.seeds >= stats.seeds_needed(len(plan.comparisons))
    assert {name for c in plan.comparisons for name in (c.method, c.baseline)} <= set(plan.arms)
    assert (plan.comparisons[0].method, plan.comparisons[0].baseline, plan.comparisons[0].metric) == ("tpaw_tuned", "spin_tuned", None)
    result = run("tpaw", smoke=True, out=tmp_path, command="tutelage replicate tpaw --smoke")
    assert result["minutes"] < 0.3
    assert {c["verdict"] for c in result["comparisons"]} == {"too few seeds"}
    assert len({(cell["seed"], cell["curve"]["exact"][0]) for cell in result["cells"] if "curve" in cell}) == 2  # one start per seed
    assert all(cell["curve"]["target_reward"][0] == 0 for cell in result["cells"] if "curve" in cell)
    rollouts = {cell["arm"]: cell["cost"]["rollouts"] for cell in result["cells"] if "cost" in cell}
    assert rollouts["tpaw"] == rollouts["spin"] == 4 * tpaw.SMOKE.demonstrations
    assert rollouts["sft_longer"] == 0
