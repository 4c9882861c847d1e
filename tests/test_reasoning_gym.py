"""Pools of reasoning-gym: the built-in set, the library's own levels, held-out questions, and what cannot be generated."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
import pytest

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.tasks import reasoning_gym as gym
from tutelage.tasks.families import BUILTIN_LEVELS
from tutelage.tasks.loaders import load_tasks
from tutelage.tasks.reasoning_gym import generate, is_heldout, levels_of, make_pool

pytestmark = pytest.mark.lm
library = pytest.importorskip("reasoning_gym")


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    return make_pool(tasks_per_arm=32)


def test_the_built_in_pool_has_every_family_and_level(pool: TaskPool) -> None:
    assert set(pool.arms().names) == {f"{family}/{level + 1}" for family, levels in BUILTIN_LEVELS.items() for level in range(len(levels))}
    assert pool.arm_columns == ("family", "level")
    assert len(pool.arms("level")) == 4
    assert (pool.arms().size_A == 32).all()
    assert pool.difficulty_N.tolist() == pool.columns["level"]
    assert list(pool.columns) == ["prompt", "answer", "solution", "entry", "family", "level"]


def test_rows_are_what_the_librarys_verifier_reads(pool: TaskPool) -> None:
    row = pool.row(100)
    entry = json.loads(row["entry"])
    assert (entry["question"], entry["metadata"]["source_dataset"]) == (row["prompt"], row["family"])
    assert library.get_score_answer_fn(row["family"])(row["answer"], entry) == 1


def test_questions_are_unique_and_split_by_hash(pool: TaskPool) -> None:
    heldout = make_pool(heldout=True, tasks_per_arm=8)
    assert len(set(pool.columns["prompt"])) == len(pool)
    assert not any(is_heldout(question) for question in pool.columns["prompt"])
    assert all(is_heldout(question) for question in heldout.columns["prompt"])
    assert heldout.arms().names == pool.arms().names


def test_a_seed_gives_one_pool_and_more_tasks_only_add(pool: TaskPool) -> None:
    assert make_pool(tasks_per_arm=32).fingerprint == pool.fingerprint
    assert make_pool(tasks_per_arm=32, seed=1).fingerprint != pool.fingerprint
    few, many = (make_pool(["products"], levels=1, tasks_per_arm=n) for n in (8, 16))
    assert few.key_N.tolist() == many.key_N.tolist()[:8]


def test_the_default_pool_takes_seconds() -> None:
    started = time.process_time()
    made = make_pool()
    assert time.process_time() - started < 3
    assert len(made) > 7500


def test_levels_do_not_draw_alike() -> None:
    same = {"min_value": 1, "max_value": 10**6}
    made = make_pool({"gcd": [same, same]}, tasks_per_arm=20)
    assert made.arms().names == ("gcd/1", "gcd/2")
    assert len(set(made.columns["prompt"])) == 40


def test_a_finite_level_gives_what_it_has_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    small = {"gcd": [{"min_value": 1, "max_value": 5}]}
    made = make_pool(small, tasks_per_arm=100)
    everything = {row["question"] for row, _ in zip(generate("gcd", small["gcd"][0], 3), range(2000), strict=False)}
    assert set(made.columns["prompt"]) == {question for question in everything if not is_heldout(question)}
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert f"gcd/1 {len(made)}" in caplog.text


def test_a_question_stands_at_its_lowest_level() -> None:
    levels = [{"min_value": 1, "max_value": 4}, {"min_value": 1, "max_value": 6}]
    made = make_pool({"lcm": levels}, tasks_per_arm=200)
    first = make_pool({"lcm": levels[:1]}, tasks_per_arm=200)
    assert set(first.key_N) == {key for key, level in zip(made.key_N, made.columns["level"], strict=True) if level == 1}
    assert len(set(made.key_N)) == len(made)


def test_levels_of_follows_the_librarys_attributes() -> None:
    attributes = library.factory.CURRICULA["chain_sum"]().attributes
    terms, digits = attributes["num_terms"].levels, attributes["num_digits"].levels
    assert levels_of("chain_sum", 3) == [
        {"min_terms": terms[0], "max_terms": terms[k], "min_digits": digits[0], "max_digits": digits[k]} for k in range(3)
    ]
    assert levels_of("chain_sum", 2, inclusive=False)[1] == {
        "min_terms": terms[1],
        "max_terms": terms[1],
        "min_digits": digits[1],
        "max_digits": digits[1],
    }
    assert len(levels_of("chain_sum", 100)) == max(len(terms), len(digits))
    assert levels_of("bitwise_arithmetic", 2) == [
        {"difficulty": level} for level in library.factory.CURRICULA["bitwise_arithmetic"]().attributes["difficulty"].levels[:2]
    ]
    assert len(levels_of("power_function")) == 4  # whose configuration cannot check itself
    assert levels_of("acre") == [{}]  # no curriculum in the library


def test_levels_that_the_library_refuses_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    levels = levels_of("caesar_cipher")
    assert 0 < len(levels) < 4
    assert "refuses level" in caplog.text
    with pytest.raises(TutelageError, match="refuses every level"):
        levels_of("knight_swap")


def test_families_that_no_seed_fixes_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    make_pool("ransom_note", levels=1, tasks_per_arm=2)
    assert "leave it out of runs to be repeated" in caplog.text
    caplog.clear()
    make_pool("maze", levels=1, tasks_per_arm=2)
    assert not caplog.text


@pytest.mark.parametrize("family", ["simple_equations", "word_sorting", "maze", "propositional_logic", "n_queens"])
def test_other_families_come_in_their_own_levels(family: str) -> None:
    made = make_pool(family, levels=2, tasks_per_arm=2)
    assert made.arms().names == (f"{family}/1", f"{family}/2")
    assert make_pool(family, levels=2, tasks_per_arm=2).fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("families", "options", "words"),
    [
        ("chain_sums", {}, ["chain_sums", "Did you mean 'chain_sum'?"]),
        ([], {}, ["No reasoning-gym family"]),
        ({"gcd": []}, {}, ["'gcd' has 0 levels"]),
        ({"gcd": [{"max_valu": 3}]}, {}, ["max_valu", "Did you mean 'max_value'?"]),
        ({"gcd": [{"seed": 3}]}, {}, ["'seed'"]),
        ({"gcd": [{"min_value": 9, "max_value": 3}]}, {}, ["cannot generate gcd/1", "max_value"]),
        ("gcd", {"levels": 9}, ["'gcd' has 4 levels", "9 asked for", "levels_of"]),
        ("gcd", {"levels": 0}, ["levels=0"]),
        ("gcd", {"tasks_per_arm": 0}, ["tasks_per_arm=0"]),
        ({"gcd": [{"min_value": 2, "max_value": 3}] * 2}, {}, ["Arm gcd/2 has no questions of its own", "repeats another"]),
    ],
)
def test_what_cannot_be_made_is_explained(families: object, options: dict[str, int], words: list[str]) -> None:
    with pytest.raises(TutelageError) as caught:
        make_pool(families, **options)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(TutelageError):
        levels_of("chain_sum", 0)


def test_held_out_arms_of_the_smallest_levels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "PATIENCE", 64)
    for low in range(1, 40):
        settings = {"min_value": low, "max_value": low + 1}
        questions = {row["question"] for row, _ in zip(generate("gcd", settings, 0), range(200), strict=False)}
        if not any(map(is_heldout, questions)):
            break
    with pytest.raises(TutelageError, match=r"Arm gcd/1 has no held-out questions \(one in 8"):
        make_pool({"gcd": [settings]}, heldout=True)


def test_task_sets_by_name() -> None:
    tasks = load_tasks(["rg:maze", "gcd"], tasks_per_arm=16, heldout_tasks=3)
    assert (tasks.name, tasks.verifier_spec) == ("maze+gcd", "reasoning_gym")
    assert (tasks.train.arms().size_A == 16).all()
    assert (tasks.heldout.arms().size_A == 3).all()
    assert tasks.train.arms().names == tasks.heldout.arms().names
    row = tasks.heldout.row(0)
    assert tasks.verifier(row["answer"], row).kind == Kind.CORRECT
    assert tasks.verifier("no", row).kind == Kind.WRONG


def test_the_built_in_set_is_the_default() -> None:
    tasks, same = load_tasks(tasks_per_arm=8), load_tasks("builtin", tasks_per_arm=8)
    assert (tasks.name, len(tasks.train.arms())) == ("builtin", 32)
    assert tasks.heldout.arms().size_A.tolist() == [1] * 32
    assert tasks.train.fingerprint == same.train.fingerprint
    assert not np.isin(tasks.train.key_N, tasks.heldout.key_N).any()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("chain_sums", ["Unknown task set", "Did you mean 'chain_sum'?", "path"]),
        ("rg:gdc", ["'gdc'", "Did you mean 'gcd'?"]),
        (["builtin", "gcd"], ["'builtin' cannot be joined"]),
        ("game_of_life_halting", ["every non-empty answer"]),
    ],
)
def test_unknown_names_are_explained(spec: object, words: list[str]) -> None:
    with pytest.raises(TutelageError) as caught:
        load_tasks(spec)
    for word in words:
        assert word in str(caught.value)


def test_a_family_wins_over_a_directory_of_its_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gcd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_tasks("gcd", tasks_per_arm=2).name == "gcd"
    with pytest.raises(TutelageError, match="not a dataset directory"):
        load_tasks("./gcd")
