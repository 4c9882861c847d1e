"""The rules on texts, spans, KL, entropy and sources, by hand; and logs that are broken, which end in an error or a counted warning."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_audit_rewards import attempts, run, small
from tutelage.audits import _rules, _trends
from tutelage.audits._attempts import Gathering
from tutelage.audits._attempts import load as load_log
from tutelage.audits._texts import Odd, candidates, marked_answers, odd_span, repeated_marks
from tutelage.errors import TutelageError
from tutelage.rates import binomial_p
from tutelage.rollouts import RolloutReader
from tutelage.testing.rollout_logs import FAULTS, write_log

# --- texts


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("plain words", 0),
        ("<think>x</think> \\boxed{1}", 0),
        ("<think>x</think><think>y</think>", 2),
        ("\\boxed{1} \\boxed{2} \\boxed{2}", 2),
        ("**a** **b**", 3),
        ("```py\n```\n```", 2),
        ("# one\n# two\n## three", 1),
        ("#hash #tag a # b", 0),
        ("#### 4", 0),
        ("so #### 4 and #### 5", 1),
    ],
)
def test_marks_beyond_the_first_of_a_kind(text: str, repeated: int) -> None:
    assert repeated_marks(text) == repeated


def test_marked_answers_in_their_order() -> None:
    text = "\\boxed{\\frac{1}{2}} then <answer> 3. </answer>\n#### $4$"
    assert [content for _, _, content in marked_answers(text)] == ["\\frac{1}{2}", "3", "4"]
    assert next(text[start:end] for start, end, _ in marked_answers(text)) == "\\boxed{\\frac{1}{2}}"
    assert (candidates(text), candidates("none"), candidates("\\boxed{1} \\boxed{ 1 }"), candidates("\\boxed{1}")) == (3, 0, 1, 1)
    assert candidates("\\boxed{" * 50_000) == 0  # linear, whatever is opened and not closed


@pytest.mark.parametrize(
    ("text", "read", "odd"),
    [
        ("so \\boxed{12}", "12", Odd.NOT),
        ("so \\boxed{12}", "\\boxed{12}", Odd.NOT),
        ("first 12, so \\boxed{12}", "12", Odd.NOT),  # another place, the same answer
        ("\\boxed{7} or rather \\boxed{12}", "7", Odd.OVERRULED),
        ("the answer is 7", "7", Odd.NOT),
        ("7 7 7 7", "7", Odd.REPEATED),
        ("7, 7, 7, 7", "7", Odd.REPEATED),
        ("7 and 7 and 7 and 7", "7", Odd.NOT),
        ("x   y", "   ", Odd.EMPTY),
    ],
)
def test_odd_spans(text: str, read: str, odd: Odd) -> None:
    start = text.index(read)
    assert odd_span(text, [start, start + len(read)]) == odd


def test_spans_outside_their_text_are_empty() -> None:
    assert {odd_span("abc", span) for span in ([0, 0], [2, 1], [-1, 2], [0, 4], [9, 12])} == {Odd.EMPTY}
    assert odd_span("abc", [0, 3]) == Odd.NOT


# --- shares


def test_stuffed_and_odd_spans_count_solved_attempts_alone() -> None:
    solved_B = np.array([1, 1, 1, 0] * 2, dtype=float)
    log = attempts(step_B=np.zeros(8, dtype=int), solved_B=solved_B, candidates_B=np.array([3, 2, 0, 9, 1, 1, 1, 9.0]),
                   odd_B=np.array([0, 1, 2, 3, 0, 0, np.nan, 3.0]))  # fmt: skip
    stuffed, spans = _rules.stuffed(log, 0.05), _rules.odd_spans(log, 0.05)
    assert [x.effect.value for x in (stuffed, spans) if x.effect] == [1 / 6, 2 / 5]
    assert stuffed.rows == (0,)
    assert set(spans.rows) <= {1, 2}
    assert "1 empty, 1 overruled by a later answer, 0 repeated" in spans.finding
    without = attempts(step_B=np.zeros(8, dtype=int))
    assert [rule(without, 0.05).p for rule in (_rules.stuffed, _rules.odd_spans)] == [None, None]


def test_kl_and_entropy_look_at_the_last_third() -> None:
    step_B = np.repeat(np.arange(12), 4)
    late_B = step_B >= 8
    log = attempts(step_B=step_B, kl_B=np.where(late_B & (np.arange(48) % 2 == 0), 0.6, 0.01), entropy_B=np.where(late_B, 0.19, 1.0))
    far, fallen = _rules.far_away(log, 0.05), _rules.collapsed(log, 0.5)
    assert [x.effect.value for x in (far, fallen) if x.effect] == [0.5, 1.0]
    assert all(row >= 32 for row in far.rows + fallen.rows)
    assert _rules.collapsed(attempts(step_B=step_B, entropy_B=np.where(late_B, 0.21, 1.0)), 0.5).effect.value == 0.0  # type: ignore[union-attr]
    (curve,) = far.curves
    assert (curve.x, curve.y[0], curve.y[-1]) == (tuple(range(12)), 0.01, 0.305)
    early = attempts(step_B=np.repeat(np.arange(5), 4), kl_B=np.ones(20), entropy_B=np.ones(20))
    assert [rule(early, 0.05).p for rule in (_rules.far_away, _rules.collapsed)] == [None, None]
    assert _rules.collapsed(attempts(step_B=step_B, entropy_B=np.zeros(48)), 0.5).p is None


# --- sources


def two_sources(easy: Any, hard: Any, easy_share: Any, steps: int = 20, size: int = 40) -> Any:
    """A log in which the rates of success of two sources, and the share of the easy one, are functions of the run's share."""
    rng = np.random.default_rng(3)
    step_B = np.repeat(np.arange(steps), size)
    share_B = step_B / (steps - 1)
    source_B = (rng.random(steps * size) < easy_share(share_B)).astype(int)
    solved_B = (rng.random(steps * size) < np.where(source_B == 1, easy(share_B), hard(share_B))).astype(float)
    return {"step_B": step_B, "source_B": source_B, "solved_B": solved_B, "sources": ("hard", "easy")}


def test_opposite_trends_of_two_sources_do_not_hide_each_other() -> None:
    columns = two_sources(lambda s: 0.9 - 0.8 * s, lambda s: 0.1 + 0.8 * s, lambda s: 0.5 + 0 * s)
    log = attempts(**columns, reward_B=columns["solved_B"] + columns["step_B"])
    pooled, within = _trends.divergence(log), _trends.divergence_by_source(log)
    assert pooled.p is not None
    assert within.p is not None
    assert pooled.p > 0.01
    assert within.p < 1e-5
    assert "'easy'" in within.finding
    assert {(curve.panel, curve.name) for curve in within.curves} == {
        (f"{what} by source", name) for what in ("reward", "outcome") for name in ("hard", "easy")
    }
    worst = min(p for p in (_trends.divergence(attempts(**_only(log, s))).p for s in (0, 1)) if p is not None)
    assert within.p == min(1.0, 2 * worst)  # Bonferroni over the sources


def _only(log: Any, source: int) -> dict[str, Any]:
    kept_B = log.source_B == source
    return {name: getattr(log, name)[kept_B] for name in ("step_B", "solved_B", "reward_B")}


def test_progress_that_is_a_change_of_the_mix() -> None:
    falling = two_sources(lambda s: 0.9 - 0.3 * s, lambda s: 0.3 - 0.25 * s, lambda s: 0.1 + 0.8 * s)
    found = _trends.shifted_mix(attempts(**falling))
    assert found.p is not None
    assert found.p < 1e-3
    assert found.effect is not None
    assert found.effect.value < -0.1
    learned = two_sources(lambda s: 0.5 + 0.4 * s, lambda s: 0.1 + 0.4 * s, lambda s: 0.1 + 0.8 * s)
    fine = _trends.shifted_mix(attempts(**learned))
    assert fine.p is not None
    assert fine.p > 0.5
    assert _trends.shifted_mix(attempts(**falling | {"source_B": np.zeros(800, dtype=int), "sources": ("one",)})).p is None
    short = two_sources(lambda s: 0.5 + 0 * s, lambda s: 0.5 + 0 * s, lambda s: (s > 0.8).astype(float))
    assert _trends.shifted_mix(attempts(**short)).p is None  # one source has too few steps


def test_rules_on_sources_keep_their_level_where_the_null_is_hardest() -> None:
    """In both sources the reward rises for sure and the outcome is flat; the mix moves for sure, and nothing is learned or lost."""
    ps: dict[str, list[float]] = {"source": [], "mix": []}
    step_B = np.repeat(np.arange(24), 40)
    for seed in range(200):
        rng = np.random.default_rng([seed, 5])
        source_B = (rng.random(960) < 0.2 + 0.6 * step_B / 23).astype(int)
        solved_B = (rng.random(960) < np.where(source_B == 1, 0.8, 0.2)).astype(float)
        log = attempts(step_B=step_B, source_B=source_B, solved_B=solved_B, sources=("a", "b"), reward_B=solved_B + step_B)
        for name, rule in (("source", _trends.divergence_by_source), ("mix", _trends.shifted_mix)):
            p = rule(log).p
            assert p is not None
            ps[name].append(p)
    for found in ps.values():
        for level in (0.05, 0.2):
            assert binomial_p(int(np.sum(np.array(found) <= level)), 200, level) > 0.01
        assert np.mean(np.array(found) <= 0.5) > 0.2


# --- logs as they come


ROW = {"step": 0, "prompt_id": "p", "completion": "four", "reward": 1.0, "solved": 1.0}


def log_of(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
    return path


def test_columns_reach_the_rules(tmp_path: Path) -> None:
    log = load_log(
        log_of(
            tmp_path / "log.jsonl",
            {"span": [0, 0], "kl": 0.5, "entropy": None, "logprobs": [-1.0, -3.0], "source": "a"},
            {"span": None, "kl": None, "entropy": 0.25, "logprobs": [-1.0], "source": None},
            {"span": [0, 4], "kl": math.nan, "entropy": None, "logprobs": [], "source": 7},
        )
    )
    np.testing.assert_array_equal(log.odd_B, [Odd.EMPTY, np.nan, Odd.NOT])
    np.testing.assert_array_equal(log.kl_B, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(log.entropy_B, [2.0, 0.25, np.nan])
    assert (log.source_B.tolist(), log.sources) == ([0, -1, 1], ("a", "7"))
    assert ("values of kl that are null, NaN or infinite", 2) in {(w.what, w.count) for w in log.warnings}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"span": [1]}, "span is '[1]'"),
        ({"span": [0.0, 1.0]}, "expected [first, end]"),
        ({"span": "four"}, "span is 'four'"),
        ({"source": [1]}, "source is '[1]'"),
        ({"tokens": "four"}, "tokens is 'four' of type str"),
        ({"tokens": True}, "tokens is 'True'"),
        ({"logprobs": -1.0}, "logprobs is '-1.0'"),
        ({"logprobs": ["a"]}, "logprobs are ['a']"),
        ({"kl": "low"}, "kl is 'low' of type str"),
        ({"step": 10**30}, "step is 1000000"),
        ({"step": math.inf}, "step is inf"),
        ({"step": math.nan}, "step is nan"),
    ],
)
def test_values_that_cannot_be_meant_name_their_line(tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    with pytest.raises(TutelageError) as raised:
        run(log_of(tmp_path / "log.jsonl", {}, bad))
    assert said in str(raised.value)
    assert "log.jsonl, line 2" in str(raised.value)


def test_a_number_beyond_the_floats_is_no_crash(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log.jsonl", {}, {"reward": 10**400})
    assert any(w.what.startswith("values of reward") for w in run(path).warnings)
    path.write_text(json.dumps(ROW).replace("1.0", "9" * 5000, 1) + "\n")
    with pytest.raises(TutelageError, match="line 1 is not valid JSON"):
        run(path)


def test_broken_logs_end_in_counted_warnings(tmp_path: Path) -> None:
    """A log of a real size with everything at once: each fault is counted, and the planted finding is still made."""
    path = small(tmp_path / "log.jsonl", 3, fault="misranked", tasks=6)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = json.dumps(json.loads(lines[3]) | {"reward": math.nan}).encode() + b"\n"
    lines[5] = lines[5].replace(b"task", b"t\xffsk", 1)
    lines[7] = json.dumps({k: v for k, v in json.loads(lines[7]).items() if k != "span"}).encode() + b"\n"
    lines[9] = json.dumps(json.loads(lines[9]) | {"colour": "red"}).encode() + b"\n"
    lines[11] = json.dumps(json.loads(lines[11]) | {"solved": None, "completion": None}).encode() + b"\n"
    lines[20], lines[300] = lines[300], lines[20]
    path.write_bytes(b"".join(lines) + lines[0][:40])
    verdict = run(path)
    said = {warned.what: warned.count for warned in verdict.warnings}
    for what, count in (
        ("values of reward that are null", 1), ("lines that are not UTF-8", 1), ("rows whose columns differ", 4), ("last lines", 1),
        ("completions that are null", 1), ("steps that are lower", 2), ("attempts without an outcome", 1),
    ):  # fmt: skip
        assert [n for name, n in said.items() if name.startswith(what)] == [count], what
    assert any("'colour'" in name for name in said)
    assert "misranked" in {check.name for check in verdict.checks if check.found}


def test_a_log_without_groups_is_said_to_have_none(tmp_path: Path) -> None:
    verdict = run(log_of(tmp_path / "log.jsonl", *({"step": i, "prompt_id": str(i), "reward": float(i % 2)} for i in range(40))))
    assert any("no two attempts belong together" in warned.what for warned in verdict.warnings)
    untested = {check.name: check.finding for check in verdict.checks if check.p is None}
    assert "no group has two attempts" in untested["dead"]
    with pytest.raises(TutelageError, match="holds no rollouts"):
        run(log_of(tmp_path / "log.jsonl"))


def test_texts_that_no_output_can_hold_are_mended(tmp_path: Path) -> None:
    rows = [{"step": i, "prompt_id": f"p{i}\ud800", "completion": "\udfff " * 30, "source": "\ud801"} for i in range(60)]
    verdict = run(log_of(tmp_path / "log.jsonl", *rows))
    assert verdict.found
    verdict.to_json().encode("utf-8")


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """What is kept of an attempt is a few numbers, whatever its length; the log is read in chunks."""
    path = tmp_path / "log.jsonl"
    with path.open("w") as file:
        for b in range(4000):
            file.write(json.dumps(ROW | {"step": b // 100, "prompt_id": str(b // 4 % 50), "completion": f"{b} " + "word " * 600}) + "\n")
    gathering = Gathering()
    tracemalloc.start()
    for chunk in RolloutReader(path, rows=400):
        gathering.add(chunk)
        del chunk
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert kept < 4000 * 400
    assert peak < 6e6


def test_faults_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="Did you mean 'length'"):
        write_log(tmp_path / "log.jsonl", seed=0, fault="lenght")
    with pytest.raises(TutelageError, match="expected 0"):
        write_log(tmp_path / "log.jsonl", seed=0, fault="length", strength=2.0)
    assert set(FAULTS) == {check.name for check in run(small(tmp_path / "log.jsonl", 0)).checks}
    same = write_log(tmp_path / "a.jsonl", seed=4).read_bytes()
    assert write_log(tmp_path / "a.jsonl", seed=4).read_bytes() == same
