"""SASR: the objective, its steps on the TRL trainer, and its mechanism on the miniature student."""
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch

import tiny
from test_trl_ranks import raised, two_ranks
from test_trl_sum import GRPO, NLL, Trainer, demonstrations, final, make
from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError
from tutelage.objectives import Sum, controller, denominators_of, objective
from tutelage.objectives.controllers import SASRSwitch
from tutelage.replications import sasr as replication
from tutelage.testing.objectives import check_objective
from tutelage.trainers.trl import with_curriculum


class Scripted(Curriculum):
    """Proposes the given rows, in order."""

    name = "scripted"

    def __init__(self, pool: tt.TaskPool, rows: Any) -> None:
        super().__init__(pool)
        self.rows_N = np.asarray(rows)

    def _propose(self, n: int) -> np.ndarray:
        start = self.lessons * n
        return self.rows_N[start : start + n]


class Logged(SASRSwitch):
    """Keeps what it was shown."""

    def update(self, stats: Any) -> Any:
        self.seen.append(dict(stats))
        return super().update(stats)


def hybrid(kind: str, policy: Any = GRPO, **settings: Any) -> Sum:
    return Sum({"policy": (policy, 1.0), "imitate": (NLL, 1.0)}, controller=controller(kind, **settings))


# The objective ---------------------------------------------------------------------------------------------------------------------------


def test_the_objective() -> None:
    sasr = objective("sasr", gamma=2.0, warmup_steps=3, policy="dapo", sft_weight=10.0, aggregation="seq_mean_token_sum")
    check_objective(lambda: sasr, policy_only={"weights": {"imitate": 0.0}})
    assert (sasr.controller.gamma, sasr.controller.warmup_steps, sasr.parts["imitate"][1]) == (2.0, 3, 10.0)
    assert sasr.requires >= {"logp_BT", "advantage_B", "demonstrations/logp_BT", "demonstrations/mask_BT"}
    with pytest.raises(TutelageError, match="Did you mean 'gamma'"):
        objective("sasr", gama=1.0)


def test_one_token() -> None:
    """The logit gradient of one token is pi minus the target's indicator; the loss -log pi."""
    logit_BTV = torch.tensor([[[0.7, 0.2, 0.1]]]).log().requires_grad_()
    batch = {"logp_BT": logit_BTV.log_softmax(-1)[..., 0], "mask_BT": torch.ones(1, 1, dtype=torch.bool)}
    columns = {f"demonstrations/{key}": value for key, value in batch.items()}
    part = objective("sasr").only({"imitate": 1.0})
    loss, _ = part(columns, denominators=part.denominators_of(columns))
    loss.backward()
    assert loss.item() == pytest.approx(0.356675, abs=1e-6)
    torch.testing.assert_close(logit_BTV.grad, torch.tensor([[[-0.3, 0.2, 0.1]]]))
    assert logit_BTV.grad.norm().item() == pytest.approx(0.374166, abs=1e-6)


def test_parts_of_a_sum() -> None:
    sasr = objective("sasr", sft_weight=3.0)
    columns = {"demonstrations/logp_BT": torch.full((2, 3), -1.0), "demonstrations/mask_BT": torch.ones(2, 3, dtype=torch.bool)}
    part = sasr.only({"imitate": 0.5})
    loss, stats = part(columns, denominators=part.denominators_of(columns))
    assert loss.item() == 0.5
    assert stats["imitate/loss"] == 1
    assert part.controller is None
    assert part.denominators_of(columns).keys() == {f"imitate/{key}" for key in denominators_of(columns, mask="demonstrations/mask_BT")}
    with pytest.raises(TutelageError, match="Did you mean 'imitate'"):
        sasr.only({"imitates": 1.0})
    with pytest.raises(TutelageError, match=r"No column of the source 'demonstrations'"):
        sasr.denominators_of({"mask_BT": torch.ones(1, 1)})


# On the trainer --------------------------------------------------------------------------------------------------------------------------


def test_forced_to_imitate_it_is_supervised_training(tmp_path: Path) -> None:
    """p = 1: the weights of trl.SFTTrainer on the same rows, bit for bit, and nothing is generated."""
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    ours = make(tmp_path, objective=hybrid("fixed", ratio=1.0), demonstrations_per_step=6, **settings)
    source = make(tmp_path, objective=hybrid("fixed"), demonstrations_per_step=6).mix.source
    rows = np.concatenate([source.draw(1, 0, 1).rows_N for _ in range(4)])
    weights = final(ours)
    data = demonstrations()
    theirs = with_curriculum(trl.SFTTrainer)(
        tiny.model(), args=tiny.sft_config(tmp_path, **settings | {"per_device_train_batch_size": 3}, lr_scheduler_type="linear"),
        train_dataset=data, processing_class=tiny.tokenizer(), objective=objective("nll"),
        curriculum=Scripted(tt.TaskPool(arm=[0] * len(data)), rows),
    )  # fmt: skip
    ours_at, theirs_at = ours.args.lr_scheduler_type, theirs.args.lr_scheduler_type
    assert ours_at == theirs_at
    np.testing.assert_array_equal(weights, final(theirs))
    assert (ours.ledger.rollouts, ours.ledger.lessons, ours.ledger.tokens) == (0, 0, 0)
    assert ours.ledger.training_tokens == theirs.ledger.training_tokens > 0


@pytest.mark.parametrize("curriculum", ["uniform", None])
def test_forced_to_reinforce_it_is_grpo(tmp_path: Path, curriculum: str | None) -> None:
    runs = []
    for loss, data in ((GRPO, None), (hybrid("fixed", ratio=0.0), demonstrations())):
        made = make(tmp_path, objective=loss, demonstrations=data, curriculum=curriculum, gradient_accumulation_steps=2)
        runs.append((final(made), made.ledger))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_warm_up_then_hybrid(tmp_path: Path) -> None:
    """Which steps generate, what they spend, what is logged, and that p follows the engine's norm of supervised steps."""
    lessons: list[int] = []
    sasr = objective("sasr", warmup_steps=2, policy="trl:grpo", seed=2)
    made = make(tmp_path, objective=sasr, max_steps=10, log_completions=True, lesson_callbacks=[lambda x: lessons.append(x.step)])
    made.train()
    logs = [entry for entry in made.state.log_history if "sasr/p" in entry]
    assert len(logs) == 10
    supervised = ["objective/imitate/loss" in entry for entry in logs]
    assert supervised[:2] == [True, True]
    assert 0 < sum(supervised[2:]) < 8
    assert lessons == [step for step, was in enumerate(supervised) if not was]
    assert all(("objective/policy/policy_loss" in entry) != was for entry, was in zip(logs, supervised, strict=True))
    assert made.ledger.rollouts == 8 * len(lessons)
    norms = [entry["grad_norm"] for entry in logs]
    reference = last = norms[1]
    for step in range(2, 10):
        last = norms[step - 1] if supervised[step - 1] else last
        assert logs[step]["sasr/p"] == pytest.approx(last / (last + reference))
        assert logs[step]["sasr/g_sft"] == pytest.approx(last)
        assert logs[step]["sasr/supervised"] == supervised[step]
        assert logs[step]["sasr/sft_share"] == pytest.approx(np.mean(supervised[2 : step + 1]))
    assert norms[0] > 1  # the norm before clipping at 1.0
    assert sasr.controller.step == 0  # the trainer has a copy of its own


def _hybrid(path: Path, share: int, accumulate: int, mode: str, resume: str | None = None) -> tuple[Any, ...]:
    made = make(
        path, objective=objective("sasr", warmup_steps=2, mode=mode, policy="trl:grpo"), dropout=0.1, max_steps=7, save_strategy="steps",
        save_steps=1, per_device_train_batch_size=share, gradient_accumulation_steps=accumulate, demonstrations_per_step=4,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    return tiny.weights(made.model), made.mix.state_dict(), made.ledger.state_dict()


@pytest.mark.parametrize("mode", ["coin", "expected"])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, mode: str) -> None:
    unbroken = _hybrid(tmp_path, 4, 2, mode)
    for name in ("checkpoint-1", "checkpoint-4"):
        resumed = _hybrid(tmp_path / "again", 4, 2, mode, str(tmp_path / name))
        np.testing.assert_array_equal(resumed[0], unbroken[0])
        np.testing.assert_equal(resumed[1:], unbroken[1:])


@pytest.mark.parametrize("mode", ["coin", "expected"])
def test_two_ranks_switch_and_resume_as_one(tmp_path: Path, mode: str) -> None:
    first, second = raised(two_ranks(_hybrid, tmp_path, 4, 1, mode))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[2] == second[2]
    resumed = raised(two_ranks(_hybrid, tmp_path / "again", 4, 1, mode, str(tmp_path / "checkpoint-4")))
    np.testing.assert_array_equal(resumed[0][0], first[0])
    assert resumed[0][1] == first[1]


def test_the_norm_of_a_part_of_the_mixture(tmp_path: Path) -> None:
    """The expected mixture measures the demonstrations' own gradient, whatever the cut: the one a supervised step would have."""

    def norms(share: int, accumulate: int, mode: str) -> list[float]:
        switch = Logged(g_ref=1.0, gamma=1.0 if mode == "expected" else 0.0, mode=mode)
        switch.seen = []
        sasr = Sum({"policy": (GRPO, 1.0), "imitate": (NLL, 2.0)}, controller=switch)
        made = make(
            tmp_path, objective=sasr, max_steps=2, learning_rate=0.0, per_device_train_batch_size=share,
            gradient_accumulation_steps=accumulate, demonstrations_per_step=5,
        )  # fmt: skip
        made.train()
        return [seen["imitate/grad_norm"] for seen in made.mix.controller.seen[1:]]

    alone = norms(8, 1, "coin")
    assert norms(8, 1, "expected") == pytest.approx(alone, rel=1e-5)
    assert norms(2, 4, "expected") == pytest.approx(alone, rel=1e-5)


def test_the_window_must_be_one_step(tmp_path: Path) -> None:
    for options in ({"steps_per_generation": 2}, {"num_iterations": 2}, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}):
        with pytest.raises(TutelageError, match=r"Set steps_per_generation=\d .* and num_iterations=1"):
            make(tmp_path, objective=objective("sasr"), **options)
    assert isinstance(make(tmp_path, objective=objective("sasr"), gradient_accumulation_steps=2), Trainer)


def test_a_controller_that_leaves_nothing(tmp_path: Path) -> None:
    class Silent(SASRSwitch):
        def update(self, stats: Any) -> dict[str, float]:
            return {}

    with pytest.raises(TutelageError, match="left no part of the objective"):
        make(tmp_path, objective=Sum({"policy": (GRPO, 1.0), "imitate": (NLL, 1.0)}, controller=Silent(g_ref=1.0))).train()


def test_rewards_reach_the_controller(tmp_path: Path) -> None:
    made = make(tmp_path, objective=hybrid("accuracy", threshold=0.0), reward=tiny.has_a, max_steps=3)
    made.train()
    logs = [entry for entry in made.state.log_history if "reward" in entry]
    assert made.mix.controller.accuracy == pytest.approx(logs[-1]["reward"])


# The mechanism, on the miniature student -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> tuple[replication.Classroom, list[float], list[float]]:
    """A student that has fitted 32 items by supervision alone, p being followed but not obeyed; the losses and ps on the way."""
    torch.set_num_threads(1)
    size = dataclasses.replace(
        replication.WEAK, warmup_steps=30, labelled=32, demonstrations=32, per_arm=64, held_out=8, batch=8, attempts=4, lr=3e-3
    )
    classroom = replication.Classroom(0, size, controller("sasr", warmup_steps=30))
    switch, losses, ps = classroom.controller, [], []
    obeyed, switch._weights = switch._weights, lambda: {"imitate": 1.0}
    for _ in range(330):
        classroom.step()
        losses.append(classroom.stats["imitate/loss"])
        ps.append(switch.p)
    switch._weights = obeyed
    return classroom, losses[30:], ps[30:]


def test_p_falls_as_the_demonstrations_are_fitted(fitted: Any) -> None:
    _, losses, ps = fitted
    assert ps[0] == pytest.approx(0.5)
    assert np.mean(losses[-30:]) < 0.2 * np.mean(losses[:30])
    assert np.mean(ps[-30:]) < 0.7 * np.mean(ps[:30])


def test_p_jumps_after_a_perturbation(fitted: Any) -> None:
    """Within a few times the 1 / p steps that pass, on average, before the next supervised one."""
    classroom, _, ps = fitted
    switch, before = classroom.controller, float(np.mean(ps[-30:]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in classroom.student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    within = 0
    while switch.p < before + 0.2 and within < 60:
        classroom.step()
        within += 1
    assert within <= 3 / before, f"p rose from {before:.2f} after {within} steps"


def test_the_share_of_wrong_labels() -> None:
    answer_NT = torch.full((50, 4), 11)
    wrong = replication.mislabelled(answer_NT, torch.ones(50, 4, dtype=torch.bool), 0.2, np.random.default_rng(0))
    assert int((wrong != answer_NT).any(1).sum()) == 10
    assert torch.equal(replication.mislabelled(answer_NT, wrong > 0, 0.0, np.random.default_rng(0)), answer_NT)
