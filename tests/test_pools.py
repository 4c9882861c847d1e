"""Task pools: keys, arms and their products, fingerprints, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage as tt
from tutelage import TaskPool, TutelageError

# --- arms


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-3, 6) | st.just(10**12), min_size=1, max_size=40), st.booleans())
def test_arms_partition_the_pool(labels: list[int], as_text: bool) -> None:
    pool = TaskPool(arm=[f"label {v}" for v in labels] if as_text else labels)
    arms = pool.arms()
    rows = [arms.rows(np.full(size, a), np.arange(size)) for a, size in enumerate(arms.size_A)]
    assert sorted(np.concatenate(rows)) == list(range(len(labels)))
    for arm, name in enumerate(arms.names):
        expected = [i for i, v in enumerate(labels) if (f"label {v}" if as_text else str(v)) == name]
        assert rows[arm].tolist() == expected
        assert (arms.arm_N[expected] == arm).all()
    if not as_text:
        assert [int(n) for n in arms.names] == sorted(set(labels))


def test_numbers_keep_their_order_and_words_sort() -> None:
    assert TaskPool(arm=[10, 9, 10, 100]).arms().names == ("9", "10", "100")
    assert TaskPool(arm=["b", "a", "10", "9"]).arms().names == ("10", "9", "a", "b")
    assert TaskPool(arm=[True, False, True]).arms().names == ("False", "True")
    assert TaskPool(arm=[True, False, True]).arms().size_A.tolist() == [1, 2]
    assert TaskPool(arm=[0.5, 0.25, 0.5]).arms().names == ("0.25", "0.5")


def test_one_arm_by_default() -> None:
    arms = TaskPool(key=[3, 1, 2]).arms()
    assert arms.names == ("0",)
    assert arms.size_A.tolist() == [3]
    assert len(arms) == 1


def test_a_product_of_three_domains_and_three_levels_makes_nine_arms() -> None:
    """SEC-2D."""
    pairs = list(itertools.product(["logic", "maths", "planning"], [1, 2, 3])) * 2
    pool = TaskPool(arm={"domain": [d for d, _ in pairs], "level": [v for _, v in pairs]})
    assert len(pool.arms()) == 9
    assert pool.arms().names[:4] == ("logic/1", "logic/2", "logic/3", "maths/1")
    assert pool.arms().size_A.tolist() == [2] * 9
    assert len(pool.arms("level")) == 3
    assert pool.arms(("level", "domain")).names[0] == "1/logic"
    assert pool.arms("level") is pool.arms(["level"])


def test_only_combinations_that_occur_are_arms() -> None:
    pool = TaskPool(arm={"a": [0, 0, 1], "b": ["x", "y", "x"], "c": [5, 5, 6]})
    assert pool.arms().names == ("0/x/5", "0/y/5", "1/x/6")
    assert pool.arms().arm_N.tolist() == [0, 1, 2]


def test_arm_names_label_codes() -> None:
    arms = TaskPool(arm=[1, 0, 1], arm_names=["easy", "hard"]).arms()
    assert arms.names == ("easy", "hard")
    assert arms.size_A.tolist() == [1, 2]


# --- keys


def test_rows_of_finds_keys_in_any_order() -> None:
    integers = TaskPool(key=[30, 10, 20])
    assert integers.rows_of([20, 30, 20]).tolist() == [2, 0, 2]
    words = TaskPool(key=["b", "a", "longer"])
    assert words.rows_of(["longer", "b"]).tolist() == [2, 0]
    assert TaskPool(arm=[0, 0, 0]).rows_of([2, 0]).tolist() == [2, 0]
    assert integers.rows_of([]).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30, unique=True), st.randoms(use_true_random=False))
def test_rows_of_inverts_keys(keys: list[int], shuffler) -> None:
    rows = list(range(len(keys)))
    shuffler.shuffle(rows)
    pool = TaskPool(key=np.array(keys, dtype=np.int64))
    assert pool.rows_of(pool.key_N[rows]).tolist() == rows


def test_large_integers_and_hashes_may_be_strings() -> None:
    digest = ["0123456789abcdef0123456789abcdef", "f" * 32]
    assert TaskPool(key=digest).rows_of([digest[1]]).tolist() == [1]
    assert TaskPool(key=[2**100, 5]).rows_of([str(2**100)]).tolist() == [0]  # beyond 64 bits numpy keeps objects, and the pool text


@pytest.mark.parametrize(
    ("keys", "asked", "named"),
    [([1, 2], [3], "3"), (["a", "b"], ["a", "c"], "'c'"), ([1, 2], ["a"], "'a'"), ([1], [2**70], "1180591620717411303424")],
)
def test_an_unknown_key_is_named(keys: list, asked: list, named: str) -> None:
    with pytest.raises(TutelageError, match=f"Task {named} is not in this pool of {len(keys)} tasks"):
        TaskPool(key=keys).rows_of(asked)


def test_columns_stay_where_they_are() -> None:
    prompts = [f"question {i}" for i in range(3)]
    pool = TaskPool(columns={"prompt": prompts}, key=["a", "b", "c"])
    assert pool.columns["prompt"] is prompts
    assert pool.row(1) == {"key": "b", "prompt": "question 1"}
    assert len(pool) == 3
    assert repr(pool) == "TaskPool(3 tasks, 1 arms, columns ['prompt'])"


# --- fingerprints


def test_the_fingerprint_tells_pools_apart() -> None:
    base = {"key": [1, 2, 3], "arm": ["a", "a", "b"], "difficulty": [0.0, 1.0, 2.0]}
    changes = [
        {"key": [1, 2, 4]},
        {"key": ["1", "2", "3"]},
        {"key": [2, 1, 3]},
        {"arm": ["a", "b", "b"]},
        {"arm": ["a", "a", "c"]},
        {"arm": {"level": ["a", "a", "b"]}},
        {"difficulty": [0.0, 1.0, 2.5]},
        {"difficulty": None},
    ]
    prints = [TaskPool(**{**base, **change}).fingerprint for change in changes]
    assert len({TaskPool(**base).fingerprint, *prints}) == len(changes) + 1
    assert TaskPool(**base).fingerprint == TaskPool(**{k: np.asarray(v) for k, v in base.items()}).fingerprint
    assert TaskPool(**base, columns={"prompt": ["x", "y", "z"]}).fingerprint == TaskPool(**base).fingerprint


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "The task pool is empty"),
        ({"arm": []}, "The task pool is empty"),
        ({"key": [1, 2, 1, 2]}, r"Duplicate task keys: 1 stands in rows 0 and 2 \(2 duplicates in all\)"),
        ({"key": ["a", "b", "a"]}, "Duplicate task keys: 'a' stands in rows 0 and 2"),
        ({"key": [0.5, 1.5]}, "must be integers or strings; got float64"),
        ({"key": [[1, 2], [3, 4]]}, r"must be one-dimensional, one per task; got shape \(2, 2\)"),
        ({"key": np.array([2**63, 1], dtype=np.uint64)}, "9223372036854775808 does not fit"),
        ({"key": [1, 2], "arm": ["a", "b", "c"]}, r"equally long: expected 2 rows, got \{\"arm 'arm'\": 3\}"),
        ({"key": [1, 2], "difficulty": [1.0]}, r"expected 2 rows, got \{'difficulty': 1\}"),
        ({"key": [1, 2], "columns": {"prompt": ["x"]}}, r"expected 2 rows, got \{\"column 'prompt'\": 1\}"),
        ({"difficulty": [0.0, float("nan")]}, "Difficulty of row 1 is nan"),
        ({"difficulty": [0.0, float("inf")]}, "Difficulty of row 1 is inf"),
        ({"difficulty": [[0.0], [1.0]]}, r"one number per task; got shape \(2, 1\)"),
        ({"arm": [["a"], ["b"]]}, r"one-dimensional; got shape \(2, 1\)"),
        ({"key": [1, 2], "arm": {}}, "names no column"),
        ({"arm": [0, 2], "arm_names": ["a", "b"]}, "Arm codes run from 0 to 2, but arm_names has 2 names"),
        ({"arm": [0, -1], "arm_names": ["a", "b"]}, "Arm codes run from -1 to 0"),
        ({"arm": ["a", "b"], "arm_names": ["a", "b"]}, "arm_names names the codes of one integer column"),
    ],
)
def test_bad_pools_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        TaskPool(**arguments)


@pytest.mark.parametrize(
    ("arguments", "by", "said"),
    [
        ({"arm": {"domain": [0, 1], "level": [0, 1]}}, "levle", "Unknown arm column 'levle'. Did you mean 'level'"),
        ({"arm": [0, 0], "arm_names": ["a", "b"]}, None, "Arms without tasks: b"),
        ({"arm": [0, 1], "arm_names": ["a", "a"]}, None, "Two arms are called 'a'"),
        ({"arm": {"x": ["a/b", "a"], "y": ["c", "b/c"]}}, None, "Two arms are called 'a/b/c'"),
    ],
)
def test_bad_arms_are_refused(arguments: dict, by: str | None, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        TaskPool(**arguments).arms(by)


def test_ten_thousand_arms_of_a_hundred_thousand_tasks_are_flat_arrays() -> None:
    pool = TaskPool(arm=np.arange(100_000) % 10_000, difficulty=np.zeros(100_000))
    arms = pool.arms()
    assert len(arms) == 10_000
    assert tt.curriculum("uniform", pool).propose(4).shape == (4,)
    assert arms.arm_N.nbytes + arms.order_N.nbytes == 2 * 4 * 100_000
