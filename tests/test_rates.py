"""Rates: agreement with scipy, the values that papers print, and hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from tutelage import rates
from tutelage.errors import TutelageError


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [(45, 32_768, (0.00100186, 0.00183714)), (7, 32_768, (8.589e-5, 4.4009e-4)), (0, 100_000, (0.0, 3.6888e-5)), (0, 0, (0.0, 1.0))],
)
def test_clopper_pearson_on_published_counts(k: int, n: int, expected: tuple[float, float]) -> None:
    np.testing.assert_allclose(rates.clopper_pearson(k, n), expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_clopper_pearson_agrees_with_scipy(level: float) -> None:
    for n in (1, 2, 7, 40):
        for k in range(n + 1):
            theirs = scipy.stats.binomtest(k, n).proportion_ci(level, "exact")
            np.testing.assert_allclose(rates.clopper_pearson(k, n, level=level), (theirs.low, theirs.high), atol=1e-12)


def test_clopper_pearson_takes_effective_counts() -> None:
    low, high = rates.clopper_pearson(2.5, 5.0)
    np.testing.assert_allclose(low, 1 - high)  # a share of a half is symmetric
    narrow = rates.clopper_pearson(25, 50)
    assert low < narrow[0] < narrow[1] < high


def test_binomial_p_agrees_with_scipy() -> None:
    for n in (1, 9, 30):
        for k in range(n + 1):
            theirs = scipy.stats.binomtest(k, n, 0.3, alternative="greater").pvalue
            np.testing.assert_allclose(rates.binomial_p(k, n, 0.3), theirs, rtol=1e-10)
    assert rates.binomial_p(0, 0, 0.1) == 1.0
    assert rates.binomial_p(5, 5, 0.0) == 0.0


def test_mcnemar() -> None:
    assert rates.mcnemar_p(0, 0) == 1.0
    assert rates.mcnemar_p(4, 4) == 1.0
    np.testing.assert_allclose(rates.mcnemar_p(1, 7), 2 * (1 + 8) / 256)
    assert rates.mcnemar_p(7, 1) == rates.mcnemar_p(1, 7)
    for b in range(12):
        np.testing.assert_allclose(rates.mcnemar_p(b, 11 - b), scipy.stats.binomtest(b, 11).pvalue, rtol=1e-10)


def test_fisher() -> None:
    np.testing.assert_allclose(rates.fisher_p(3, 4, 1, 4, alternative="greater"), 17 / 70)  # the lady tasting tea
    np.testing.assert_allclose(rates.fisher_p(45, 32_768, 0, 100_000, alternative="greater"), 4e-28, rtol=0.2)
    assert rates.fisher_p(0, 0, 3, 9) == 1.0


def test_tpr_at_fpr_by_hand() -> None:
    clean = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert rates.tpr_at_fpr([0.95, 1.5, 0.91, 0.9], clean, 0.1) == 0.75  # one clean score may be flagged: the threshold lies above 0.9
    assert rates.tpr_at_fpr([0.95, 1.5, 0.91, 0.9], clean, 0.0) == 0.25
    assert rates.tpr_at_fpr([-5], clean, 1.0) == 1.0
    assert rates.tpr_at_fpr([0.72], clean, 0.3) == 1.0  # 0.3 * 10 is 3, whatever the rounding


def test_tpr_at_fpr_counts_ties_against_the_detector() -> None:
    assert rates.tpr_at_fpr([1, 1, 1], [0] * 50 + [1] * 50, 0.1) == 0.0  # flagging 1 would flag half of the clean ones
    assert rates.tpr_at_fpr([1, 1, 1], [0] * 90 + [1] * 10, 0.1) == 1.0
    assert rates.tpr_at_fpr([0.5, 0.5], [0.5, 0.5], 0.5) == 0.0
    rng = np.random.default_rng(0)
    for _ in range(30):
        positive, clean = rng.integers(0, 5, 20), rng.integers(0, 4, 17)
        best = 0.0
        for threshold in np.append(np.unique(np.concatenate([positive, clean])), np.inf):  # the definition
            if np.mean(clean >= threshold) <= 0.25:
                best = max(best, float(np.mean(positive >= threshold)))
        assert rates.tpr_at_fpr(positive, clean, 0.25) == best


@pytest.mark.parametrize(
    "call",
    [
        lambda: rates.clopper_pearson(3, 2),
        lambda: rates.clopper_pearson(1, 2, level=1.0),
        lambda: rates.binomial_p(1, 2, 1.5),
        lambda: rates.mcnemar_p(-1, 2),
        lambda: rates.mcnemar_p(1.5, 2),  # type: ignore[arg-type]
        lambda: rates.fisher_p(3, 2, 1, 2),
        lambda: rates.tpr_at_fpr([], [1.0], 0.1),
        lambda: rates.tpr_at_fpr([np.nan], [1.0], 0.1),
        lambda: rates.tpr_at_fpr([1.0], [1.0], -0.1),
    ],
)
def test_impossible_counts_are_refused(call) -> None:
    with pytest.raises(TutelageError, match="expected"):
        call()


def test_rising_p_is_kendalls_test() -> None:
    rng = np.random.default_rng(5)
    for size in (2, 3, 6, 24, 33, 34, 60):
        for values in (rng.normal(size=size), rng.normal(size=size) + 0.1 * np.arange(size), rng.integers(0, 4, size).astype(float)):
            expected = scipy.stats.kendalltau(np.arange(size), values, alternative="greater").pvalue
            np.testing.assert_allclose(rates.rising_p(values), expected if np.ptp(values) else 1.0, rtol=1e-9)
    assert rates.rising_p([3.0, 3.0, 3.0]) == rates.rising_p([1.0]) == 1.0
    np.testing.assert_allclose(rates.rising_p(range(6)), 1 / 720)
    with pytest.raises(TutelageError, match="finite values"):
        rates.rising_p([1.0, np.nan])


def test_strata_add_their_scores() -> None:
    assert rates.strata_rising_p([[1.0, 2.0, 3.0]]) == rates.rising_p([1.0, 2.0, 3.0])
    assert rates.strata_rising_p([]) == rates.strata_rising_p([[1.0, 1.0], [2.0, 2.0]]) == 1.0
    # scores 3 and 1 - 2 = -1 with variances 3 * 2 * 11 / 18 each
    np.testing.assert_allclose(rates.strata_rising_p([[1, 2, 3], [3, 1, 2]]), scipy.stats.norm.sf(2 / np.sqrt(22 / 3)))
    rng = np.random.default_rng(0)
    ps = [rates.strata_rising_p([rng.normal(size=12), rng.normal(size=24) * np.arange(24)]) for _ in range(400)]
    assert rates.binomial_p(sum(p <= 0.05 for p in ps), 400, 0.08) > 0.01  # a spread that grows is the worst it bears
