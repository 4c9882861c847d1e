"""Diagnostics of graded completions against cases worked by hand; difficulty splits; the recipe and the probe as a user types them."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.study import stats
from tutelage.tasks import diagnostics
from tutelage.tasks.diagnostics import behaviours, diagnose, ended_by_reason, ended_by_token, pass_at, pass_at_k, rambling
from tutelage.tasks.difficulty import MATH_LEVEL_BOUNDS, difficulty_split, live_share, recommend_split

ROOT = Path(__file__).parent.parent


# --- pass@k


def test_pass_at_k_by_hand_and_shared_with_the_statistics():
    assert [round(pass_at_k(8, 2, k), 6) for k in (1, 2, 4, 7)] == [0.25, 0.464286, 0.785714, 1.0]
    assert (pass_at_k(8, 0, 4), pass_at_k(8, 8, 1)) == (0.0, 1.0)
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert stats.pass_at_k is pass_at_k


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_mean_pass_at_k_counts_subsets(correct_NG: list[list[bool]]):
    for k, value in pass_at(correct_NG).items():
        by_hand = [np.mean([any(row[i] for i in subset) for subset in itertools.combinations(range(5), int(k))]) for row in correct_NG]
        assert value == pytest.approx(np.mean(by_hand))
    assert list(pass_at(correct_NG)) == ["1", "2", "4", "5"]


# --- lengths and ends


def test_clip_ratio_and_stopped_length_by_hand():
    found = diagnose(kind_NG=[[1, 0, 0, 0]], length_NG=[[3, 8, 8, 5]], ended_NG=[[True, False, False, True]])
    assert (found["clip_ratio"], found["stopped_length"], found["mean_length"]) == (0.5, 4.0, 6.0)


def test_an_answer_that_ends_exactly_at_the_limit_is_not_clipped():
    token_BT = [[5, 6, 1, 0], [5, 6, 7, 1], [5, 6, 7, 8], [1, 1, 1, 1]]  # the last: padded with the end token itself
    length_B, ended_B = ended_by_token(token_BT, {1})
    assert length_B.tolist() == [3, 4, 4, 1]
    assert ended_B.tolist() == [True, True, False, True]
    assert ended_by_token(token_BT, {1, 8})[1].all()
    assert not ended_by_token(token_BT)[1].any()
    assert ended_by_token(np.zeros((2, 0)), {1})[0].tolist() == [0, 0]


def test_finish_reasons():
    assert ended_by_reason(["stop", "length", "eos_token", "max_tokens"]).tolist() == [True, False, True, False]
    with pytest.raises(TutelageError, match="Did you mean 'length'"):
        ended_by_reason(["lenght"])


def test_nothing_ended_and_nothing_measured():
    found = diagnose(kind_NG=[[0], [3]], length_NG=[[8], [8]], ended_NG=[[False], [False]])
    assert math.isnan(found["stopped_length"])
    assert found["clip_ratio"] == 1
    assert not {"pass_at_k", "dead_share", "distinct_answers", "behaviours"} & set(found)  # single attempts, no texts
    assert math.isnan(diagnose(kind_NG=np.zeros((0, 4)))["accuracy"])
    with pytest.raises(TutelageError, match=r"length_NG of shape \(2,\)"):
        diagnose(kind_NG=[[0], [3]], length_NG=[8, 8])


# --- format, groups, answers


def test_format_dead_groups_and_distinct_answers_by_hand():
    kinds = [[Kind.CORRECT, Kind.WRONG], [Kind.WRONG, Kind.MALFORMED], [Kind.REFUSED, Kind.WRONG]]
    texts = [["Answer: 4", "The answer is  4."], ["5", "6"], ["I don't know.", "Answer: 7"]]
    found = diagnose(kind_NG=kinds, texts_NG=texts)
    assert found["accuracy"] == pytest.approx(1 / 6)
    assert found["format_rate"] == pytest.approx(5 / 6)
    assert found["dead_share"] == pytest.approx(2 / 3)  # two groups without a correct answer
    assert found["distinct_answers"] == pytest.approx((1 + 2 + 2) / 3)
    assert found["pass_at_k"] == {"1": pytest.approx(1 / 6), "2": pytest.approx(1 / 3)}
    graded = diagnose(kind_NG=kinds, grade_NG=[[1, 0], [0.1, 0], [0, 0]])
    assert graded["dead_share"] == pytest.approx(1 / 3)  # partial grades bring one back to life


# --- behaviours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let's check: 3 * 4 = 12. To verify, substitute x back.", {"verification": 3}),
        ("Let’s double-check this.", {"verification": 1}),
        ("Wait, that's wrong. Let me try again.", {"backtracking": 3}),
        ("We cannot wait for the bus, which is late.", {}),
        ("Step 1: find x.\nStep 2: find y.\nThe next step is z.", {"subgoal_setting": 3}),
        ("First, we need the sum. It was the first time.", {"subgoal_setting": 1}),
        ("Case 1: n is even.\nCase 2: n is odd.\nWe consider each pair one by one.", {"enumeration": 4}),
        ("- **Step 1:** find x.", {"subgoal_setting": 1}),
        ("The answer is 12.", {}),
        ("", {}),
        ("\n" * 50_000 + " " * 50_000, {}),  # what a broken model says; must not take quadratic time
    ],
)
def test_behaviours_by_keyword(text: str, expected: dict[str, int]):
    assert {name: count for name, count in behaviours(text).items() if count} == expected


def test_patterns_and_judge_can_be_ones_own():
    assert behaviours("hm hm", {"doubt": r"\bhm\b"}) == {"doubt": 2}
    found = diagnose(kind_NG=[[1], [0]], texts_NG=[["a"], ["b"]], count=lambda text: {"planning": float(text == "a")})
    assert found["behaviours"] == {"planning": 0.5}


# --- the warning


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        ((10, 0.0), (14, 0.2), True),
        ((10, 0.0), (14, 0.0), False),  # longer, and still ends by itself
        ((10, 0.0), (10, 0.2), False),  # cut off, not longer
        ((10, 0.2), (8, 0.0), False),
        ((0, 0.0), (0, 0.2), False),
        ((10, None), (14, None), False),
    ],
)
def test_longer_and_cut_off_is_rambling(before: tuple, after: tuple, warned: bool):
    found = [{"mean_length": length, "clip_ratio": clip} for length, clip in (before, after)]
    assert bool(rambling(*found)) == warned
    assert not rambling({}, {})
    if warned:
        assert rambling(*found) == (
            "rambling, not reasoning: mean length rose from 10 to 14 tokens while the share of answers cut off at the limit rose from 0% "
            "to 20%"
        )


# --- difficulty


def test_split_boundaries_belong_to_both_sides():
    levels = difficulty_split([0, 1, 2, 3, 4, 5], MATH_LEVEL_BOUNDS)
    assert {name: rows.tolist() for name, rows in levels.items()} == {"easy": [0, 1], "medium": [1, 2, 3, 4], "hard": [3, 4, 5]}
    rates = difficulty_split([0.0, 0.4, 0.6, 0.8, 1.0, math.nan])
    assert {name: rows.tolist() for name, rows in rates.items()} == {"easy": [2, 3, 4], "medium": [1, 2, 3], "hard": [0, 1]}
    with pytest.raises(TutelageError, match="lower one first"):
        difficulty_split([0.5], {"odd": (1, 0)})


def test_the_split_to_train_on_is_where_groups_are_mixed():
    weak = {"easy": [0.5, 0.25, 0], "hard": [0, 0, 0.125]}
    strong = {"easy": [1, 1, 0.875], "hard": [0.5, 0.25, 0.75]}
    assert (recommend_split(weak), recommend_split(strong)) == ("easy", "hard")
    assert recommend_split({"easy": [0.5, 0.5], "hard": [0.1, 0.1]}) == "hard"  # equally alive: the harder one
    assert live_share([0, 1, 0.5, math.nan]) == 0.25
    for bad in ([], [1.5]):
        with pytest.raises(TutelageError, match="pass rates"):
            live_share(bad)
    with pytest.raises(TutelageError, match="no splits"):
        recommend_split({})


# --- as a user types it


def tutelage(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tutelage.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def recipe() -> str:
    return str(ROOT / "examples" / "simplerl_zoo.yaml")


ON_THE_BUILTIN = ["--model", "builtin", "--tasks", "quick", "--verifier", "reasoning_gym"]
ON_THE_BUILTIN += ["--set", "per_device_train_batch_size=16", "--set", "gradient_accumulation_steps=1", "--set", "steps_per_generation=4"]
ON_THE_BUILTIN += ["--set", "max_completion_length=12", "--set", "learning_rate=2e-4", "--set", "evaluation.tasks_per_arm=2"]
ON_THE_BUILTIN += ["--set", "tasks_per_arm=16"]


@pytest.mark.lm
def test_the_recipe_resolves_to_the_papers_settings(tmp_path: Path):
    done = tutelage("train", recipe(), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    settings = found["settings"]
    rollouts = settings["per_device_train_batch_size"] * settings["steps_per_generation"]
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert (rollouts, batch, settings["num_generations"]) == (1024 * 8, 256 * 8, 8)
    assert found["budget"] == ["rollouts", 100.0 * 1024 * 8]
    assert (found["reward"]["mode"], found["chat"]) == ("correct_only", False)
    assert found["template"] == "Question:\n{prompt}\nAnswer:\nLet's think step by step.\n"


@pytest.mark.lm
def test_the_recipe_runs_on_the_builtin_student(tmp_path: Path):
    done = tutelage("train", recipe(), *ON_THE_BUILTIN, "--steps", "4", "--set", "evaluation.points=1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    first, last = record["curve"]["diagnostics"]
    assert set(first["pass_at_k"]) == {"1", "2", "4"}
    assert {"clip_ratio", "mean_length", "format_rate", "dead_share", "distinct_answers", "behaviours"} <= set(last)
    assert first["accuracy"] == pytest.approx(record["curve"]["accuracy"][0], abs=1e-6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Cut off at the limit |" in card
    assert "| pass@4 |" in card


@pytest.mark.lm
def test_the_probe_tells_what_to_train_on(tmp_path: Path):
    options = ["--per-arm", "2", "--attempts", "4", "--set", "tasks_per_arm=16"]
    done = tutelage("probe", *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rates = list(found["pass_rate_by_key"].values())
    assert len(rates) == sum(arm["tasks"] for arm in found["arms"]) == 2 * len(found["arms"])
    assert np.mean(rates) == pytest.approx(found["overall"]["accuracy"], abs=1e-6)
    assert found["overall"]["live"] == pytest.approx(np.mean([0 < rate < 1 for rate in rates]))
    assert {name.rpartition("/")[2] for name in found["recommended"]} <= {"1", "2"}  # the built-in student is weak
    shown = tutelage("probe", *options, cwd=tmp_path)
    assert "Most to learn from" in shown.stdout
    assert "pass@4" in shown.stdout


@pytest.mark.lm
def test_evaluation_measures_what_was_generated_once():
    """A stand-in for a model says four known answers: ended, cut off, ended at the limit, ended at once."""
    from types import SimpleNamespace

    import torch

    import tiny
    from tutelage import TaskPool
    from tutelage.study.config import Run
    from tutelage.study.evaluate import evaluate, held_out
    from tutelage.tasks.verifiers import resolve

    tokenizer, calls = tiny.tokenizer(), []
    said = tokenizer(["12$_", "1234", "123$", "$___"], add_special_tokens=False)["input_ids"]

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append([tokenizer.decode(row, skip_special_tokens=True) for row in input_ids])
        return torch.cat([input_ids, torch.tensor(said)], dim=1)

    model = SimpleNamespace(
        device="cpu", training=False, eval=lambda: None, train=lambda mode: None, generate=generate,
        generation_config=SimpleNamespace(eos_token_id=[tokenizer.eos_token_id]),
    )  # fmt: skip
    pool = TaskPool(arm=np.array(["a", "b"]), columns={"prompt": ["5+7", "1+2"], "answer": ["12", "3"]})
    run = Run(template="q: {prompt} =", chat=False, evaluation={"attempts": 2})
    found = evaluate(model, tokenizer, held_out(pool, resolve("numeric"), tokenizer, run, 4))
    assert [text.replace(" ", "") for text in calls[0]] == ["q:5+7=", "q:5+7=", "q:1+2=", "q:1+2="]
    assert found.by_arm == [0.5, 0.0]
    expected = {
        "accuracy": 0.25,
        "clip_ratio": 0.25,
        "mean_length": 3.0,
        "stopped_length": 2.666667,
        "format_rate": 0.75,
        "dead_share": 0.5,
    }
    assert {key: found.diagnostics[key] for key in expected} == expected
    assert found.diagnostics["pass_at_k"] == {"1": 0.25, "2": 0.5}
    assert len(calls) == 1


def test_every_pattern_is_a_regular_expression_with_a_name():
    assert list(diagnostics.BEHAVIOURS) == ["verification", "backtracking", "subgoal_setting", "enumeration"]
    assert behaviours("x").keys() == diagnostics.BEHAVIOURS.keys()
