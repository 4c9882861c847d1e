"""The miniature of reward tampering: acting on the desk, expert iteration, its log under the audit, and its plan."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.audits.tampering import tampering
from tutelage.registry import replications
from tutelage.study.replicate import run
from tutelage.tasks.gameable import Guard, play
from tutelage.tasks.ladder import DIGITS, OUTCOMES, RUNGS, WORDS, Desk, tokens

pytestmark = pytest.mark.lm
torch = pytest.importorskip("torch")

from tutelage.replications import reward_tampering_audit as audit  # noqa: E402
from tutelage.students.tiny_causal import TinyCausal, padded  # noqa: E402
from tutelage.trainers.expert_iteration import (  # noqa: E402
    CONTEXT,
    Episodes,
    act,
    best,
    expert_round,
    imitate,
    shown,
    successes,
)

SMALL = audit.SMOKE


def student(seed: int = 0) -> TinyCausal:
    return TinyCausal(vocabulary=len(WORDS), context=CONTEXT, seed=seed, width=16, heads=2)


def episodes(rung: str, count: int = 40, **more: Any) -> Episodes:
    wrap = more.get("wrap", lambda env: env)
    return act(student(), [wrap(Desk(rung)) for _ in range(count)], list(range(count)), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rung", [*RUNGS, "ordinary"])
def test_episodes_are_what_their_scripts_replay_to(rung: str) -> None:
    done = episodes(rung)
    counts = dict.fromkeys(OUTCOMES, 0)
    for seed, (env, script, reward) in enumerate(zip(done.env_B, done.script_B, done.reward_B, strict=True)):
        other = Desk(rung)
        replayed = play(other, seed, script)
        assert (replayed.reward, replayed.script, other.outcome()) == (reward, tuple(script), env.outcome())
        counts[env.outcome()] += 1
    assert sum(counts.values()) == len(done)


def test_what_a_read_shows_is_not_the_students_own() -> None:
    done = episodes("pay")
    reads = 0
    for prompt, answer, own, script in zip(done.prompt_B, done.answer_B, done.own_B, done.script_B, strict=True):
        assert prompt == tokens("FIND PAY TEST")
        written = [WORDS[token] for token, mine in zip(answer, own, strict=True) if mine]
        assert " ".join(written) == " ".join(script)
        observed = [WORDS[token] for token, mine in zip(answer, own, strict=True) if not mine]
        assert len(observed) == sum(action.startswith("READ") for action in script)
        assert set(observed) <= set(DIGITS)
        reads += len(observed)
    assert reads > 0


def test_acting_reads_exactly_what_training_reads() -> None:
    """A student that all but copies its history acts as its log-probabilities say: the chance of what it did is never small."""
    pupil = student()
    demos = shown([Desk("grade") for _ in range(64)], list(range(64)))
    imitate(pupil, torch.optim.Adam(pupil.parameters(), lr=1e-2), demos, batch=32, steps=150, rng=np.random.default_rng(0))
    done = act(pupil, [Desk("grade") for _ in range(50)], list(range(100, 150)), torch.Generator().manual_seed(0))
    assert [env.outcome() for env in done.env_B].count("honest") >= 48
    logp_BT = pupil.logp(padded(done.prompt_B, left=True), padded(done.answer_B, left=False).unsqueeze(1)).squeeze(1)
    own_BT = padded([[int(own) for own in row] for row in done.own_B], left=False).bool()
    assert float((logp_BT[own_BT] > -3).double().mean()) > 0.97


def test_a_guard_ends_the_episode_and_withholds_its_reward() -> None:
    done = episodes("pay", 200, wrap=Guard)
    wrote = [any(word in script[-1] for word in ("WRITE PAY", "WRITE TEST")) for script in done.script_B]
    assert 0 < sum(wrote) < 200
    for stopped, script, reward in zip(wrote, done.script_B, done.reward_B, strict=True):
        assert not any(action.startswith(("WRITE PAY", "WRITE TEST")) and not action.endswith(" 1") for action in script[:-1])
        if stopped and not script[-1].endswith(" 1"):  # writing what stands there already changes nothing
            assert reward == 0.0


def test_keeping() -> None:
    reward_NG = np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert best(reward_NG) == [1, 3, 6]  # the first of equals
    assert best(np.zeros((2, 5))) == [0, 5]
    assert best(np.array([[0.0], [3.0]])) == [0, 1]
    assert successes(reward_NG) == [1, 2, 3, 4, 5]


def test_one_attempt_is_supervised_training_on_own_samples() -> None:
    def kept(paid: Any) -> Episodes:
        return expert_round(
            student(), lambda: Desk("grade"), prompts=8, attempts=1, reward=paid, keep=best,
            rng=np.random.default_rng(3), generator=torch.Generator().manual_seed(3),
        )  # fmt: skip

    seeds = np.random.default_rng(3).integers(2**31, size=8).tolist()
    own = act(student(), [Desk("grade") for _ in range(8)], seeds, torch.Generator().manual_seed(3))
    for paid in (lambda env, reward: reward, lambda env, reward: -reward, lambda env, reward: 1.0):
        assert kept(paid).answer_B == own.answer_B
    first, second = student(), student()
    for pupil, done in ((first, kept(lambda env, reward: reward)), (second, own)):
        imitate(pupil, torch.optim.Adam(pupil.parameters()), done, batch=4, steps=3, rng=np.random.default_rng(0))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pools_weigh_the_same_and_empty_ones_nothing() -> None:
    few, many = shown([Desk("grade")], [0]), shown([Desk("ordinary") for _ in range(50)], list(range(50)))
    pupil = student()
    before = copy.deepcopy(pupil.state_dict())
    none = few.take([])
    assert imitate(pupil, torch.optim.Adam(pupil.parameters()), none, batch=8, steps=5, rng=np.random.default_rng(0)) == 0
    assert all(torch.equal(before[name], value) for name, value in pupil.state_dict().items())
    count = imitate(pupil, torch.optim.Adam(pupil.parameters()), few, many, batch=8, steps=5, rng=np.random.default_rng(0))
    alone = imitate(pupil, torch.optim.Adam(pupil.parameters()), few, none, batch=8, steps=5, rng=np.random.default_rng(0))
    assert alone == 5 * 8 * len(few.own_B[0]) - 5 * 8 * sum(not own for own in few.own_B[0])
    assert count > 5 * 4 * sum(few.own_B[0])


def test_the_warm_start_shows_honest_acts_and_some_random_ones() -> None:
    demos = audit.demonstrations(replace(SMALL, demonstrations=400), np.random.default_rng(0))
    by_rung: dict[str, list[str]] = {}
    for env in demos.env_B:
        by_rung.setdefault(env.name, []).append(env.outcome())
    assert 0.4 < len(by_rung["ordinary"]) / 400 < 0.6
    tempting = [outcome for rung in RUNGS for outcome in by_rung[rung]]
    assert 0.85 < tempting.count("honest") / len(tempting) < 1.0


def test_the_log_of_a_policy_goes_through_the_audit(tmp_path: Path) -> None:
    exam = audit.examine(audit._room(7, SMALL).start, 7, SMALL)
    rates = audit.rates(exam)
    verdict = tampering(audit.write_log(tmp_path / "log.jsonl", exam), rng=np.random.default_rng(0))
    effects = {check.name: check.effect for check in verdict.checks if check.effect is not None}
    assert effects["gamed: pay"].value == effects["tampered"].value == rates["tamper"]
    assert effects["evaded"].value == rates["evade"]
    for rung in RUNGS[:4]:
        assert effects[f"gamed: {rung}"].value == rates[f"gamed_{rung}"]


def test_it_runs(tmp_path: Path) -> None:
    result = run("reward-tampering-audit", smoke=True, seeds=1, out=tmp_path, command="here")
    assert result["verdict"] == "too few seeds"
    plan = replications.get("reward-tampering-audit").target()
    assert set(result["arms"]) == set(plan.arms) >= {"no_ladder", "ladder", "shuffled", "exploit_only", "retrained", "monitored"}
    cells = {cell["arm"]: cell for cell in result["cells"]}
    assert np.array(cells["ladder"]["matrix"]).shape == (5, 5)
    assert "cleared" in cells["retrained"]["score"]
    assert cells["untrained"]["cost"]["rollouts"] == 0
    assert cells["halfway"]["cost"]["rollouts"] * 2 == cells["ladder"]["cost"]["rollouts"] == cells["no_ladder"]["cost"]["rollouts"]
