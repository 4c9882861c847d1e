"""The pair builder: the papers' cases, the order of ties, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tutelage import TutelageError
from tutelage.tasks.pairs import build_pairs


def indices(pairs):
    return list(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True))


# --- what papers do


def test_learning_by_teaching():
    right, taught = np.array([[1, 1, 0, 0]]), np.array([[0.9, 0.2, 0.8, 0.1]])
    pairs = build_pairs(0.5 * right + 0.5 * taught, gap=0.3)
    assert indices(pairs) == [(0, 3), (0, 2), (1, 3), (0, 1), (2, 3)]  # .90, .55, .55, .35, .35; (1, 2) of .20 is out
    np.testing.assert_allclose(pairs.gap_P, [0.90, 0.55, 0.55, 0.35, 0.35])
    assert set(indices(build_pairs(right, gap=0.3))) == {(0, 2), (0, 3), (1, 2), (1, 3)}  # correctness alone
    assert indices(build_pairs(0.5 * right + 0.5 * taught, gap=0.3, max_pairs=2)) == [(0, 3), (0, 2)]


def test_a_gap_that_is_just_reached_is_out():
    assert 0.8 - 0.5 > 0.3  # in floating point
    for high, low in ((0.6, 0.3), (0.95, 0.65), (0.8, 0.5), (1.0, 0.7), (0.4, 0.1)):
        assert len(build_pairs([[high, low]], gap=0.3, min_pairs=0)) == 0
        assert len(build_pairs([[high, low]], gap=0.95 - 0.65, min_pairs=0)) == 0  # a hair below 0.3
        assert len(build_pairs([[high + 1e-6, low]], gap=0.3)) == 1


@pytest.mark.parametrize(
    ("threshold", "first", "second"),
    [(6, {(0, 2), (0, 3)}, {(0, 1)}), (9, set(), set()), (5, {(0, 2), (0, 3), (1, 2), (1, 3)}, {(0, 1)})],
)
def test_honest_llm(threshold, first, second):
    score, honest = np.array([[8, 5, 3, 2]]), np.array([[1, 1, 0, 0]], dtype=bool)
    good = honest & (score >= threshold)
    assert set(indices(build_pairs(score + 10 * honest, may_win=good, may_lose=~honest, min_pairs=0))) == first
    assert set(indices(build_pairs(score, may_win=good, may_lose=honest, min_pairs=0))) == second


@given(score=hnp.arrays(np.int64, (3, 5), elements=st.integers(1, 10)), honest=hnp.arrays(np.bool_, (3, 5)))
@settings(max_examples=50, deadline=None)
def test_a_higher_threshold_gives_a_subset(score, honest):
    found = []
    for threshold in (7, 6, 5):
        pairs = build_pairs(score, may_win=honest & (score >= threshold), may_lose=honest, min_pairs=0)
        found.append(set(zip(pairs.task_P.tolist(), *zip(*indices(pairs), strict=True), strict=True)) if len(pairs) else set())
    assert found[0] <= found[1] <= found[2]


def test_arte_takes_the_best_over_the_worst():
    assert indices(build_pairs([[0.67, 0.51, 0.43, 0.37]], max_pairs=1)) == [(0, 3)]
    with pytest.raises(TutelageError, match="the score does not tell replies apart"):
        build_pairs([[0.5, 0.5, 0.5, 0.5]], max_pairs=1)
    pairs = build_pairs([[0.5, 0.5], [0.1, 0.2], [0.3, 0.3], [0.0, 0.0]], max_pairs=1)
    assert pairs.unpaired == 0.75


def test_self_play_drops_samples_that_equal_the_demonstration():
    pairs = build_pairs([[1, 0]] * 3, replies=[["y", "z"], ["y", "y"], ["u", "y"]], same="drop")
    assert pairs.rows(["a", "b", "c"], [["y", "z"], ["y", "y"], ["u", "y"]]) == [
        {"prompt": "a", "chosen": "y", "rejected": "z"},
        {"prompt": "c", "chosen": "u", "rejected": "y"},
    ]


# --- order and ties


def test_ties_go_by_gap_then_by_the_better_reply_then_by_index():
    assert indices(build_pairs([[1.0, 2.0, 3.0]])) == [(2, 0), (2, 1), (1, 0)]
    assert indices(build_pairs([[0.0, 1.0, 1.0, 0.0]])) == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert indices(build_pairs([[0.3, 0.1 + 0.2, 0.0, 0.0]])) == [(0, 2), (0, 3), (1, 2), (1, 3)]  # 0.1 + 0.2 > 0.3 in floating point


def test_disjoint_pairs_share_no_reply():
    assert indices(build_pairs([[4.0, 3.0, 2.0, 1.0, 0.0]], disjoint=True)) == [(0, 4), (1, 3)]
    assert indices(build_pairs([[4.0, 3.0, 2.0, 1.0, 0.0]], disjoint=True, max_pairs=1)) == [(0, 4)]


def test_dropped_pairs_do_not_count():
    replies = [["x", "y", "x"]]
    assert indices(build_pairs([[3, 2, 1]], replies=replies, same="drop", max_pairs=1)) == [(0, 1)]


def test_rows_of_different_lengths():
    pairs = build_pairs([[1, 0], [0, 1, 2]], max_pairs=1)
    assert (pairs.task_P.tolist(), indices(pairs), pairs.tasks, pairs.unpaired) == ([0, 1], [(0, 1), (2, 0)], 2, 0.0)


@given(
    score=hnp.arrays(np.float64, (4, 5), elements=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 1.0])),
    gap=st.sampled_from([0.0, 0.1, 0.3]),
    most=st.sampled_from([None, 1, 3]),
    disjoint=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_what_every_result_keeps(score, gap, most, disjoint):
    pairs = build_pairs(score, gap=gap, max_pairs=most, disjoint=disjoint, min_pairs=0)
    gap_P = score[pairs.task_P, pairs.chosen_P] - score[pairs.task_P, pairs.rejected_P]
    np.testing.assert_array_equal(pairs.gap_P, gap_P)
    assert (gap_P > gap).all()
    for n in range(4):
        mine = pairs.task_P == n
        every = {(i, j) for i in range(5) for j in range(5) if round(score[n, i] - score[n, j] - gap, 9) > 0}
        chosen, rejected = pairs.chosen_P[mine].tolist(), pairs.rejected_P[mine].tolist()
        assert set(zip(chosen, rejected, strict=True)) <= every
        assert (np.diff(gap_P[mine]) < 1e-9).all()
        if disjoint:
            assert len({*chosen, *rejected}) == 2 * len(chosen)
            assert bool(chosen) == bool(every)
        else:
            assert len(chosen) == min(len(every), most or len(every))


# --- what it refuses


def test_equal_replies_with_different_scores():
    with pytest.raises(TutelageError, match=r"Replies 2 and 0 of task 1 are equal, and scored 0.9 and 0.1: 'x'.*same=\"drop\""):
        build_pairs([[0.0, 1.0, 0.5], [0.1, 0.2, 0.9]], replies=[["a", "b", "c"], ["x", "y", "x"]])
    ids = [[np.array([1, 2]), np.array([1, 2]), [3]]]
    with pytest.raises(TutelageError, match="are equal"):
        build_pairs([[0.0, 1.0, 0.5]], replies=ids)
    assert indices(build_pairs([[0.5, 0.5, 0.0]], replies=[["x", "x", "z"]])) == [(0, 2), (1, 2)]  # equal and tied: no pair, no error


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1, 0], [1]], "Task 1 has 1 scored replies, and a pair needs at least two"),
        ([[]], "Task 0 has 0 scored replies"),
        ([0.1, 0.9], "reshape to"),
        ([], "There are no scores"),
        ([[1, 0], [0.5, np.nan]], "Reply 1 of task 1 has the score nan"),
        ([[1, None]], "Reply 1 of task 0 has the score nan"),
        ([[np.inf, 0]], "Reply 0 of task 0 has the score inf"),
        ([["good", "bad"]], "not one number per reply"),
        ([[[1], [0]]], "not one number per reply"),
    ],
)
def test_scores_that_make_no_pairs(scores, message):
    with pytest.raises(TutelageError, match=message):
        build_pairs(scores)


def test_replies_without_a_score_can_be_left_out():
    score = np.array([[np.nan, 1.0, 0.0, 0.5]])
    known = np.isfinite(score)
    assert indices(build_pairs(score, may_win=known, may_lose=known)) == [(1, 2), (1, 3), (3, 2)]
    with pytest.raises(TutelageError, match=r"may_win=np\.isfinite"):
        build_pairs(score, may_win=known)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap": -0.1}, "gap=-0.1 must not be negative"),
        ({"gap": np.nan}, "must not be negative"),
        ({"max_pairs": 0}, "max_pairs=0 must be at least 1"),
        ({"min_pairs": -1}, "min_pairs=-1"),
        ({"min_pairs": 3}, "1 tasks gave 1 pairs, and 3 are needed"),
        ({"gap": 1.0}, "1 tasks gave 0 pairs"),
        ({"same": "dropp"}, "Did you mean 'drop'"),
        ({"replies": [["a", "b"], ["c", "d"]]}, "replies has 2 rows and scores 1"),
        ({"may_win": [[True]]}, "Task 0 has 2 scores and 1 entries in may_win"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(TutelageError, match=message):
        build_pairs([[1.0, 0.0]], **settings)


def test_rows_of_other_tasks():
    pairs = build_pairs([[1, 0]])
    with pytest.raises(TutelageError, match="of 1 tasks, and 2 prompts"):
        pairs.rows(["a", "b"], [["x", "y"]])
    with pytest.raises(TutelageError, match="of 1 tasks, and 0 replies"):
        pairs.rows(["a"], [])


def test_pairs_need_no_torch():
    code = "import sys, tutelage.tasks.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
