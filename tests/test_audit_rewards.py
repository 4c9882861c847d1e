"""The audit of rewards: silent on clean logs at the promised rate, each planted fault found by its rule, and what a user types."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.audits import Check, Effect, Verdict, _rules, _trends
from tutelage.audits._attempts import Attempts
from tutelage.audits._attempts import load as load_log
from tutelage.audits.rewards import rewards
from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.rates import binomial_p
from tutelage.testing import check_audit
from tutelage.testing.rollout_logs import FAULTS, write_log

SMALL = {"steps": 16, "tasks": 4, "attempts": 4, "pool": 30}
LARGE = {"steps": 36, "tasks": 12, "attempts": 4, "pool": 100}
"""What a trend within sources takes to be found."""


def small(path: Path, seed: int, **more: Any) -> Path:
    return write_log(path, seed=seed, **(SMALL | more))


def run(path: Path, **more: Any) -> Verdict:
    return rewards(path, rng=np.random.default_rng(0), **more)


def found(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.found}


def attempts(**columns: Any) -> Attempts:
    """Arrays as they come from a log; what is not given is of no note."""
    size = len(columns["step_B"])
    usual: dict[str, Any] = {
        "path": Path("none"), "prompt_B": np.arange(size) // 4 % 50, "group_B": np.arange(size) // 4, "reward_B": np.zeros(size),
        "solved_B": np.zeros(size), "length_B": np.ones(size), "markup_B": np.zeros(size), "text_B": np.arange(size),
        "long_B": np.ones(size, dtype=bool), "garbled_B": np.zeros(size), "candidates_B": np.zeros(size), "odd_B": np.full(size, np.nan),
        "kl_B": np.full(size, np.nan), "entropy_B": np.full(size, np.nan), "source_B": np.full(size, -1),
    }  # fmt: skip
    return Attempts(**(usual | columns))


# --- false positives


def test_two_hundred_clean_logs_stay_below_the_promised_rate(tmp_path: Path) -> None:
    alarms = sum(run(small(tmp_path / "log.jsonl", seed)).found for seed in range(1000, 1200))
    assert alarms <= 0.05 * 200


def test_divergence_keeps_its_level_where_the_null_is_hardest() -> None:
    """The reward rises for sure and the outcome is flat: p is then that of the outcome's trend alone, uniform at best."""
    rng = np.random.default_rng(1)
    step_B = np.repeat(np.arange(30), 40)
    ps = []
    for _ in range(200):
        solved_B = (rng.random(1200) < 0.5).astype(float)
        found = _trends.divergence(attempts(step_B=step_B, reward_B=solved_B + step_B, solved_B=solved_B))
        assert found.p is not None
        ps.append(found.p)
    for level in (0.05, 0.2, 0.5):
        assert binomial_p(int(np.sum(np.array(ps) <= level)), 200, level) > 0.01
    assert np.mean(np.array(ps) <= 0.5) > 0.3  # and it is a test, not a constant


def test_paid_length_keeps_its_level_where_the_null_is_hardest() -> None:
    """Completions grow for sure, and at equal outcome the reward does not know of length."""
    rng = np.random.default_rng(2)
    step_B = np.repeat(np.arange(30), 40)
    ps = []
    for _ in range(200):
        length_B = step_B + rng.random(1200)
        found = _trends.paid_length(attempts(step_B=step_B, reward_B=rng.normal(size=1200), length_B=length_B))
        assert found.p is not None
        ps.append(found.p)
    assert binomial_p(int(np.sum(np.array(ps) <= 0.05)), 200, 0.05) > 0.01
    assert np.mean(np.array(ps) <= 0.5) > 0.3


def test_shares_at_their_threshold_keep_the_level() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        hit = np.repeat(rng.random(50) < 0.3, 4)  # whole prompts go wrong together: each is one trial
        found = _rules.degenerate(attempts(step_B=np.zeros(200, dtype=int), garbled_B=hit.astype(float)), 0.3)
        assert found.p is not None
        alarms += found.p <= 0.05
    assert binomial_p(alarms, 200, 0.05) > 0.01
    assert alarms > 0


# --- detections


@pytest.mark.parametrize("fault", FAULTS)
def test_the_battery_finds_each_planted_fault(fault: str) -> None:
    size, trials = (LARGE, 2) if fault in ("source", "mix") else (SMALL | {"tasks": 6}, 3)
    measured = check_audit(
        rewards,
        clean=lambda folder, rng: small(folder / "log.jsonl", int(rng.integers(1 << 30)), **size),
        faulty=lambda folder, rng: small(folder / "log.jsonl", int(rng.integers(1 << 30)), fault=fault, **size),
        check=fault, trials=trials,
    )  # fmt: skip
    assert measured.detections.value == 1.0
    assert measured.false_positives.value == 0.0


def crying_wolf(subject: Path, **more: Any) -> Verdict:
    effect = Effect(what="x", value=1.0, low=0.5, high=1.5)
    check = Check(name="wolf", finding="wolf", severity="high", effect=effect, base_rate=0.0, evidence=({"a": 1},))
    return Verdict(audit="wolf", subject="s", checks=(check,), false_positive_rate=0.05, command="wolf")


def silent(subject: Path, **more: Any) -> Verdict:
    return Verdict(audit="a", subject="s", checks=(Check(name="c", finding="f", base_rate=0.0),), false_positive_rate=0.05, command="a")


def drawing(subject: Path, **more: Any) -> Verdict:
    np.random.random()  # noqa: NPY002
    return silent(subject)


def writing(subject: Path, **more: Any) -> Verdict:
    subject.write_text(subject.read_text() + "x")
    return silent(subject)


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (crying_wolf, "5 of 5 clean subjects were flagged"),
        (silent, "found in 0 of 5 subjects"),
        (drawing, "global generator"),
        (writing, "changes its subject"),
        (lambda subject, **more: "fine", "returned str"),
        (lambda subject, twin=None, **more: silent(subject) if twin is None else crying_wolf(subject), "here it made one: wolf"),
    ],
)
def test_the_battery_fails_broken_audits(audit: Any, said: str) -> None:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        path = folder / "subject.txt"
        path.write_text(str(rng.random()))
        return path

    with pytest.raises(AssertionError, match=said):
        check_audit(audit, clean=make, faulty=make, trials=5)


def test_evidence_can_be_looked_up_in_the_log(tmp_path: Path) -> None:
    log = small(tmp_path / "log.jsonl", 5, fault="misranked")
    verdict = run(log)
    assert verdict.worst.name == "misranked"
    assert verdict.severity == "high"
    assert len({row["prompt_id"] for row in verdict.evidence}) == len(verdict.evidence) == 3
    rows = log.read_text().splitlines()
    for row in verdict.evidence:
        there = json.loads(rows[int(row["where"].rpartition("line ")[2]) - 1])
        assert (there["reward"], there["solved"]) == (row["reward"], row["solved"]) == (1.5, 0.0)
        assert there["completion"].startswith(row["completion"])
    assert verdict.effect is not None
    outcomes: dict[tuple[int, str], set[float]] = {}
    for text in map(json.loads, rows):
        outcomes.setdefault((text["step"], text["prompt_id"]), set()).add(text["solved"])
    mixed = [prompt for (_, prompt), solved in outcomes.items() if len(solved) == 2]
    assert verdict.effect.trials == len(set(mixed)) < len(mixed)  # prompts are trials, not groups


def test_rules_by_hand() -> None:
    step_B = np.zeros(16, dtype=int)
    reward_B = np.array([0, 0, 0, 0, 0, 0.1, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0], dtype=float)
    solved_B = np.array([0, 0, 0, 0, 0, 0.0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0], dtype=float)
    log = attempts(step_B=step_B, reward_B=reward_B, solved_B=solved_B)
    dead, shaped, wrong = _rules.dead_groups(log, 0.5), _rules.shaped_groups(log, 0.25), _rules.misranked_groups(log, 0.05)
    assert [x.effect.value for x in (dead, shaped, wrong) if x.effect] == [1 / 4, 1 / 3, 1 / 2]
    assert wrong.rows == (8,)
    assert shaped.rows == (4,)
    np.testing.assert_allclose(wrong.p, 1 - 0.95**2)  # one of two prompts
    nan = _rules.shaped_groups(attempts(step_B=step_B, reward_B=reward_B, solved_B=np.full(16, np.nan)), 0.25)
    assert nan.p is None
    assert nan.finding.startswith("not tested")
    same = attempts(step_B=step_B, text_B=np.array([7, 7, 3, 4, 7, *range(20, 31)]))
    canned, twice = _rules.canned_replies(same, 0.05), _rules.duplicates(same, 0.5)
    assert [x.effect.value for x in (canned, twice) if x.effect] == [3 / 16, 2 / 16]


def test_float_noise_is_no_signal() -> None:
    noise = 1 + 1e-8 * np.random.default_rng(0).normal(size=16)
    dead = _rules.dead_groups(attempts(step_B=np.zeros(16, dtype=int), reward_B=noise), 0.5)
    assert dead.effect is not None
    assert dead.effect.value == 1.0


def test_length_that_comes_with_better_outcomes_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    step_B = np.repeat(np.arange(20), 40)
    solved_B = (rng.random(800) < step_B / 20).astype(float)
    length_B = step_B + rng.random(800)
    assert _trends.paid_length(attempts(step_B=step_B, solved_B=solved_B, reward_B=solved_B + 0.01 * length_B, length_B=length_B)).p == 1.0
    flat = _trends.paid_length(attempts(step_B=step_B, reward_B=0.01 * length_B, length_B=length_B))
    assert flat.p is not None
    assert flat.p < 1e-4


# --- twins, settings, bad input


def test_a_twin_gives_base_rates_and_can_clear(tmp_path: Path) -> None:
    faulty, clean = small(tmp_path / "f.jsonl", 1, fault="canned"), small(tmp_path / "c.jsonl", 2)
    same = small(tmp_path / "s.jsonl", 3, fault="canned")
    alone, beside, cleared = run(faulty), run(faulty, twin=clean), run(faulty, twin=same)
    assert "canned" in found(alone)
    assert "canned" in found(beside)
    assert "canned" not in found(cleared)
    by_name = {check.name: check for check in beside.checks}
    assert by_name["canned"].base_rate == 0.0
    drifted, also = small(tmp_path / "d.jsonl", 4, fault="divergence"), small(tmp_path / "e.jsonl", 5, fault="divergence")
    assert found(run(drifted, twin=clean)) == {"divergence", "source"}
    assert found(run(drifted, twin=also)) == set()


def test_settings_reach_the_rules_and_the_command(tmp_path: Path) -> None:
    log = small(tmp_path / "log.jsonl", 0, fault="dead")
    assert found(run(log)) == {"dead"}
    verdict = run(log, dead=0.999, level=0.01)
    assert verdict.false_positive_rate == 0.01
    assert verdict.command == f"tutelage audit rewards {log} --level 0.01 --set dead=0.999"
    for wrong in ({"dead": 1.0}, {"level": 0.0}, {"shaped": -0.1}, {"canned": float("nan")}):
        with pytest.raises(TutelageError, match="expected a share"):
            run(log, **wrong)


def test_a_log_without_outcomes_or_steps_is_said_not_to_be_tested(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"step": 0, "prompt_id": i, "completion": "4", "reward": float(i), "solved": None} for i in range(3)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict = run(log)
    assert not verdict.found
    assert "the others lacked data" in verdict.finding
    assert {str(w).partition(" (")[0].partition(":")[0] for w in verdict.warnings} == {
        "no two attempts belong together", "attempts without an outcome",
    }  # fmt: skip
    assert load_log(log).length_B.tolist() == [1, 1, 1]


def test_the_command_and_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", "audit", "rewards", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    clean, faulty = small(tmp_path / "c.jsonl", 0), small(tmp_path / "f.jsonl", 0, fault="misranked")
    status, out, _ = command(clean)
    assert (status, "nothing found" in out) == (0, True)
    page = tmp_path / "page.html"
    status, out, _ = command(faulty, "--page", page)
    assert (status, "best paid attempt is a failed one" in page.read_text(encoding="utf-8")) == (1, True)
    assert "mean KL, nats a token" in page.read_text(encoding="utf-8")
    status, out, _ = command(faulty, "--twin", clean, "--json")
    assert status == 1
    assert Verdict.from_json(out).to_json() == run(faulty, twin=clean).to_json()
    status, out, _ = command(small(tmp_path / "d.jsonl", 0, fault="duplicate"), "--threshold", "high")
    assert (status, "equal to another" in out) == (0, True)
    for arguments, said in (
        ([tmp_path / "none.jsonl"], "There is no"),
        ([clean, "--threshold", "hihg"], "Did you mean 'high'"),
        ([clean, "--set", "ded=0.7"], "Did you mean 'dead'"),
        ([clean, "--set", "dead"], "expected NAME=VALUE"),
        ([clean, "--set", "level=0.1"], "options of their own"),
        ([clean, "--page", tmp_path / "page.pdf"], "the suffix .html"),
    ):
        status, out, error = command(*arguments)
        assert status == 2
        assert said in error
        assert (len(error.strip().splitlines()), out) == (1, "")
