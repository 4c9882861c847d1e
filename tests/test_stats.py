"""Statistics: agreement with scipy and hand-computed cases, error rates under a null, and the rule for verdicts."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.study import stats

integers_S = st.lists(st.integers(-20, 20), min_size=1, max_size=9)
p_values_K = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def sign_flip_by_hand(difference_S: list[int]) -> float:
    """The definition, in exact integer arithmetic."""
    observed = abs(sum(difference_S))
    sums = [
        abs(sum(s * d for s, d in zip(signs, difference_S, strict=True))) for signs in itertools.product([-1, 1], repeat=len(difference_S))
    ]
    return sum(total >= observed for total in sums) / len(sums)


# --- the sign-flip test


@settings(max_examples=60, deadline=None)
@given(integers_S, st.sampled_from([1.0, 0.1, 1 / 3, 1e-7, 8e306, 1e-322]))
def test_sign_flip_equals_the_definition_whatever_the_rounding(difference_S: list[int], unit: float) -> None:
    assert stats.sign_flip_p(np.array(difference_S) * unit) == sign_flip_by_hand(difference_S)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6).map(lambda d: d / 1000), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_sign_flip_is_symmetric_orderless_and_bounded(difference_S: list[float], shuffler) -> None:
    p = stats.sign_flip_p(difference_S)
    assert 2 / 2 ** len(difference_S) <= p <= 1
    assert stats.sign_flip_p([-d for d in difference_S]) == p
    shuffled_S = difference_S.copy()
    shuffler.shuffle(shuffled_S)
    assert stats.sign_flip_p(shuffled_S) == p


@pytest.mark.parametrize("seeds", [2, 5, 6, 8, 12])
def test_sign_flip_agrees_with_scipy(seeds: int) -> None:
    difference_S = np.random.default_rng(seeds).normal(0.5, 1, seeds)
    theirs = scipy.stats.permutation_test((difference_S,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=0)
    assert stats.sign_flip_p(difference_S) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sign_flip_edges() -> None:
    assert stats.sign_flip_p([0.3, 0.1, 0.2, 0.5, 0.4, 0.6]) == 0.03125
    assert stats.sign_flip_p([1.0]) == 1.0
    assert stats.sign_flip_p([0.0] * 6) == 1.0
    assert stats.sign_flip_p(np.ones(20)) == 2 / 2**20


def test_sign_flip_by_monte_carlo() -> None:
    difference_S = np.random.default_rng(0).normal(0.4, 1, 20)
    exact = stats.sign_flip_p(difference_S)
    # A 21st difference of 0 leaves the test as it was, but sends it down the random path.
    drawn = stats.sign_flip_p(np.append(difference_S, 0.0), rng=np.random.default_rng(1))
    assert 0.01 < exact < 0.9
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 99_999))
    assert stats.sign_flip_p(np.ones(40), rng=np.random.default_rng(1), draws=25_000) == 1 / 25_001
    assert stats.sign_flip_p([1.0] + [0.0] * 20, rng=np.random.default_rng(1), draws=25_000) == 1.0
    with pytest.raises(TutelageError, match="default_rng"):
        stats.sign_flip_p(np.ones(21))


@pytest.mark.parametrize("bad", [[], [0.1, math.nan], [0.1, math.inf], [[0.1, 0.2]], 0.1])
def test_sign_flip_refuses(bad) -> None:
    with pytest.raises(TutelageError, match="difference_S"):
        stats.sign_flip_p(bad)


@pytest.mark.parametrize("null", ["normal", "skewed", "tied"])
def test_false_positives_at_six_seeds(null: str) -> None:
    rng = np.random.default_rng(20)
    first, second = {
        "normal": lambda: rng.normal(size=(2, 2000, 6)),
        "skewed": lambda: rng.exponential(size=(2, 2000, 6)),
        "tied": lambda: rng.integers(0, 3, size=(2, 2000, 6)) / 10,
    }[null]()
    rejected = np.mean([stats.sign_flip_p(difference_S) <= 0.05 for difference_S in first - second])
    tolerance = 4 * math.sqrt(0.03125 * (1 - 0.03125) / 2000)
    assert rejected <= 0.03125 + tolerance < 0.05
    if null != "tied":
        assert rejected >= 0.03125 - tolerance


# --- Holm


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, and the running maximum lifts the last to 0.06.
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=1e-15)
    np.testing.assert_array_equal(stats.holm([0.03125]), [0.03125])
    np.testing.assert_array_equal(stats.holm([0.5, 0.9]), [1.0, 1.0])
    assert stats.holm([]).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(p_values_K, st.randoms(use_true_random=False))
def test_holm_properties(p_K: list[float], shuffler) -> None:
    adjusted_K = stats.holm(p_K)
    assert np.all(adjusted_K >= p_K)
    assert np.all(adjusted_K <= np.minimum(1, len(p_K) * np.array(p_K)))  # never beyond Bonferroni
    order = list(range(len(p_K)))
    shuffler.shuffle(order)
    np.testing.assert_array_equal(stats.holm(np.array(p_K)[order]), adjusted_K[order])


@pytest.mark.parametrize("bad", [[0.1, math.nan], [1.2], [-0.1], [[0.1]]])
def test_holm_refuses(bad) -> None:
    with pytest.raises(TutelageError, match="holm"):
        stats.holm(bad)


# --- paired differences


@pytest.mark.parametrize("seeds", [2, 6, 11])
def test_paired_interval_agrees_with_scipy(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    method_S, baseline_S = rng.normal(0.5, 1, seeds), rng.normal(0, 1, seeds)
    ours = stats.paired(method_S, baseline_S)
    theirs = scipy.stats.ttest_rel(method_S, baseline_S).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-10)
    assert ours.mean == pytest.approx(np.mean(method_S - baseline_S), rel=1e-12)
    assert (ours.p, ours.n) == (stats.sign_flip_p(method_S - baseline_S), seeds)


def test_paired_is_not_fooled_by_rounding() -> None:
    assert stats.paired([0.1 + 0.2] * 6, [0.3] * 6) == stats.Paired(mean=0.0, low=0.0, high=0.0, p=1.0, n=6)
    assert stats.paired([1e-9] * 6, [0.0] * 6).p == 0.03125  # small, but no rounding


def test_paired_at_one_seed_has_no_interval() -> None:
    one = stats.paired([0.5], [0.25])
    assert one.mean == 0.25
    assert one.p == 1.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_paired_refuses() -> None:
    with pytest.raises(TutelageError, match="same seeds"):
        stats.paired([1.0, 2.0], [1.0])
    with pytest.raises(TutelageError, match=r"baseline_S .* position \[1\]"):
        stats.paired([1.0, 2.0], [1.0, math.nan])


# --- verdicts


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (7, 9), (100, 12)])
def test_seeds_needed_is_where_a_verdict_becomes_possible(comparisons: int, seeds: int) -> None:
    assert stats.seeds_needed(comparisons) == seeds
    for n, words in [(seeds, {"holds"}), (seeds - 1, {"too few seeds"})]:
        judged = stats.judge({str(arm): np.arange(1, n + 1) for arm in range(comparisons)})
        assert {judgement.verdict for judgement in judged.values()} == words


def test_seeds_needed_at_other_levels() -> None:
    assert stats.seeds_needed(1, level=0.01) == 8
    for comparisons, level in [(0, 0.05), (1, 0.0), (1, 1.0)]:
        with pytest.raises(TutelageError, match="seeds_needed"):
            stats.seeds_needed(comparisons, level)


@pytest.mark.parametrize(
    ("mean", "p_holm", "seeds", "higher", "word"),
    [
        (0.1, 0.05, 7, True, "holds"),
        (-0.1, 0.05, 7, True, "reversed"),
        (-0.1, 0.05, 7, False, "holds"),
        (0.1, 0.05, 7, False, "reversed"),
        (0.1, 0.0501, 7, True, "not shown"),
        (0.1, 0.001, 6, True, "too few seeds"),
    ],
)
def test_verdict_words(mean: float, p_holm: float, seeds: int, higher: bool, word: str) -> None:
    assert stats.verdict(mean=mean, p_holm=p_holm, seeds=seeds, comparisons=2, higher_is_better=higher) == word


def test_judge_corrects_over_all_arms_and_keeps_their_order() -> None:
    up_S = np.linspace(0.012, 0.05, 7)
    mixed_S = np.array([0.01, -0.012, 0.02, -0.018, 0.005, -0.007, 0.001])
    judged = stats.judge({"noise": mixed_S, "sec": up_S, "anti": -up_S}, baseline="uniform")
    assert list(judged) == ["noise", "sec", "anti"]
    assert {arm: judgement.verdict for arm, judgement in judged.items()} == {"noise": "not shown", "sec": "holds", "anti": "reversed"}
    assert judged["sec"].p == 2 / 2**7
    assert judged["sec"].p_holm == 3 * 2 / 2**7
    assert judged["sec"].sentence == "teaches better than uniform: +0.031 [0.018, 0.044], p = 0.0469 (Holm)"
    assert judged["anti"].sentence == "teaches worse than uniform: -0.031 [-0.044, -0.018], p = 0.0469 (Holm)"
    assert judged["noise"].sentence == "no difference from uniform shown: +0.000 [-0.012, 0.012], p = 1 (Holm)"
    assert json.loads(json.dumps(asdict(judged["sec"])))["verdict"] == "holds"


def test_judge_lower_is_better_keeps_the_sign_shown() -> None:
    judged = stats.judge({"a": [-12.0, -30.0, -25.0, -18.0, -22.0, -41.0]}, higher_is_better=False, verb="forgets")
    assert judged["a"].verdict == "holds"
    assert judged["a"].sentence == "forgets better than the baseline: -25 [-35, -14], p = 0.0312 (Holm)"


def test_judge_says_how_many_seeds_are_needed() -> None:
    judged = stats.judge({"a": [1.0, 2.0, 3.0], "b": [1.0]}, baseline="uniform")
    assert judged["a"].sentence == "too few seeds to compare with uniform: +2.0 [-0.5, 4.5] over 3 seeds; 2 comparisons need 7"
    assert judged["b"].sentence == "too few seeds to compare with uniform: +1.0000 over 1 seed; 2 comparisons need 7"
    assert stats.judge({"a": [0.0] * 5})["a"].sentence.endswith("+0 [0, 0] over 5 seeds; 1 comparison needs 6")


@pytest.mark.parametrize(
    ("unit", "effect"), [(1e-9, "+3.5e-09 [1.54e-09, 5.46e-09]"), (1e9, "+3.5e+09 [1.54e+09, 5.46e+09]"), (0.5, "+1.75 [0.77, 2.73]")]
)
def test_judge_writes_any_unit_legibly(unit: float, effect: str) -> None:
    assert f": {effect}, p" in stats.judge({"a": np.arange(1, 7) * unit})["a"].sentence


def test_judge_edges() -> None:
    assert stats.judge({}) == {}
    with pytest.raises(TutelageError, match="'broken'"):
        stats.judge({"fine": [1.0], "broken": [math.nan]})


def test_judge_family_wise_error() -> None:
    rng = np.random.default_rng(5)
    score_RAS = rng.normal(size=(1000, 4, 8))  # three arms share the baseline in the last row, as in a real command
    wrong = 0
    for score_AS in score_RAS:
        judged = stats.judge({str(arm): score_AS[arm] - score_AS[3] for arm in range(3)})
        wrong += any(judgement.verdict in ("holds", "reversed") for judgement in judged.values())
    assert 0 < wrong / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8))
def test_judge_verdict_turns_with_the_sign(difference_S: list[float]) -> None:
    plain = stats.judge({"a": difference_S})["a"]
    turned = stats.judge({"a": [-d for d in difference_S]}, higher_is_better=False)["a"]
    assert plain.verdict == turned.verdict
    assert plain.p_holm == turned.p_holm
    assert "nan" not in plain.sentence


# --- curves


def test_bootstrap_band() -> None:
    curve_SX = np.random.default_rng(0).normal(size=(40, 3)) + np.array([0.0, 5.0, 10.0])
    low_X, high_X = stats.bootstrap_band(curve_SX, 0.95, np.random.default_rng(1), draws=4000)
    error_X = curve_SX.std(axis=0) / math.sqrt(40)
    np.testing.assert_allclose(low_X, curve_SX.mean(axis=0) - 1.96 * error_X, atol=0.05)
    np.testing.assert_allclose(high_X, curve_SX.mean(axis=0) + 1.96 * error_X, atol=0.05)
    again = stats.bootstrap_band(curve_SX, 0.95, np.random.default_rng(1), draws=4000)
    np.testing.assert_array_equal(again, (low_X, high_X))


def test_bootstrap_band_is_no_test() -> None:
    """The documented reason why verdicts do not come from it: at three seeds it excludes zero far too often."""
    rng = np.random.default_rng(2)
    low_X, high_X = stats.bootstrap_band(rng.normal(size=(3, 2000)), 0.95, rng)
    assert 0.20 < np.mean((low_X > 0) | (high_X < 0)) < 0.30


def test_bootstrap_band_edges() -> None:
    low_X, high_X = stats.bootstrap_band([[1.0, 2.0]], 0.9, np.random.default_rng(0))
    assert low_X.tolist() == high_X.tolist() == [1.0, 2.0]
    low_X, _ = stats.bootstrap_band([[1.0, math.nan], [2.0, 2.0]], 0.9, np.random.default_rng(0))
    assert np.isnan(low_X).tolist() == [False, True]
    for curve_SX, level in [([1.0, 2.0], 0.9), (np.empty((0, 2)), 0.9), ([[1.0]], 1.0)]:
        with pytest.raises(TutelageError, match="bootstrap_band"):
            stats.bootstrap_band(curve_SX, level, np.random.default_rng(0))


def test_area_under_curve_by_hand() -> None:
    x_X, y_X = [0, 10, 40], [0.0, 1.0, 0.0]
    assert stats.area_under_curve(x_X, y_X) == 0.5
    assert stats.area_under_curve(x_X, y_X, until=10) == 0.5
    assert stats.area_under_curve(x_X, y_X, until=5) == 0.25
    assert stats.area_under_curve(x_X, y_X, until=25) == pytest.approx((5 + 15 * 0.75) / 25)  # the height at 25 is 0.5
    assert stats.area_under_curve(x_X, y_X, until=0) == 0.0
    assert stats.area_under_curve([3], [0.7]) == 0.7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(0.01, 1))
def test_area_under_curve_agrees_with_scipy_on_a_fine_grid(y_X: list[float], share: float) -> None:
    x_X = np.arange(len(y_X)) ** 1.5
    end = share * x_X[-1]
    fine = np.unique(np.concatenate([x_X[x_X < end], np.linspace(0, end, 200)]))
    expected = scipy.integrate.trapezoid(np.interp(fine, x_X, y_X), fine) / end
    assert stats.area_under_curve(x_X, y_X, until=end) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("until", [-1, 41, math.nan])
def test_area_under_curve_is_never_extended(until: float) -> None:
    with pytest.raises(TutelageError, match="outside the curve"):
        stats.area_under_curve([0, 40], [0.0, 1.0], until=until)


def test_x_to_reach_by_hand() -> None:
    x_X, y_X = [0, 10, 20, 30], [0.1, 0.5, 0.3, 0.9]
    assert stats.x_to_reach(x_X, y_X, 0.3) == pytest.approx(5)
    assert stats.x_to_reach(x_X, y_X, 0.5) == 10
    assert stats.x_to_reach(x_X, y_X, 0.6) == pytest.approx(25)
    assert stats.x_to_reach(x_X, y_X, 0.1) == 0
    assert stats.x_to_reach(x_X, y_X, -1.0) == 0
    assert math.isnan(stats.x_to_reach(x_X, y_X, 0.91))
    assert math.isnan(stats.x_to_reach([5], [0.2], 0.3))


@pytest.mark.parametrize(("x_X", "y_X"), [([0, 1], [0.0]), ([0, 0], [0.0, 1.0]), ([1, 0], [0.0, 1.0]), ([0, 1], [0.0, math.nan]), ([], [])])
def test_curves_are_checked(x_X: list[float], y_X: list[float]) -> None:
    with pytest.raises(TutelageError):
        stats.area_under_curve(x_X, y_X)
    with pytest.raises(TutelageError):
        stats.x_to_reach(x_X, y_X, 0.5)


# --- rates


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (500, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_scipy(k: int, n: int, level: float) -> None:
    theirs = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert stats.wilson(k, n, level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_edges() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)
    for k, n, level in [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]:
        with pytest.raises(TutelageError, match="wilson"):
            stats.wilson(k, n, level=level)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.data())
def test_pass_at_k_counts_subsets(n: int, data) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([i < c for i in range(n)], k))
    assert stats.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), rel=1e-12)


def test_pass_at_k_large_and_refused() -> None:
    assert stats.pass_at_k(10_000, 1, 5_000) == 0.5
    for n, c, k in [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]:
        with pytest.raises(TutelageError, match="pass_at_k"):
            stats.pass_at_k(n, c, k)
