"""Rates and how sure one can be of them: intervals, exact tests on counts, a correction for many tests, a detector's rate of detection.

Everything here is a pure function of counts or scores, on a floor that both studies and audits stand on. Array suffixes: `K` tests,
`P` positives, `C` clean subjects, `T` values in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, ndtr, ndtri, stdtr

from tutelage.errors import TutelageError

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]


def holm(p_K: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values, in the order given: reject where they are <= level, and the family-wise error is <= level.

    The i-th smallest (i from 1) becomes max over j <= i of min(1, (K - j + 1) p_(j)). An empty family stays empty.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p_K = np.asarray(p_K, dtype=np.float64)
    if p_K.ndim != 1 or not np.all((p_K >= 0) & (p_K <= 1)):
        raise TutelageError(f"holm got {p_K.tolist()}; expected one dimension of p values between 0 and 1.")
    order_K = np.argsort(p_K, kind="stable")
    stepped_K = np.minimum(1.0, p_K[order_K] * np.arange(len(p_K), 0, -1))
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.maximum.accumulate(stepped_K)
    return adjusted_K


def wilson(k: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) for a rate of which `k` of `n` independent trials were seen; (0, 1) for no trials.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927). No continuity correction.
    """
    if not 0 <= k <= n or not 0 < level < 1:
        raise TutelageError(f"wilson got k={k}, n={n}, level={level}; expected 0 <= k <= n and a level between 0 and 1.")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (k * (n - k) / max(n, 1) + z2 / 4)) / (n + z2)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def clopper_pearson(k: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval (low, high) for a rate of which `k` of `n` trials were seen; (0, 1) for no trials.

    It covers the rate at least `level` of the time, each side at least (1 + level) / 2, whatever the rate is. k and n need not be whole: an
    effective number of trials (fewer than were counted, because they depend on each other) goes in as it is.

    Source: Clopper & Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial (1934).
    """
    if not 0 <= k <= n or not 0 < level < 1:
        raise TutelageError(f"clopper_pearson got k={k}, n={n}, level={level}; expected 0 <= k <= n and a level between 0 and 1.")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def binomial_p(k: float, n: float, rate: float) -> float:
    """One-sided p value of `k` or more hits in `n` trials where each hits with chance `rate` or less; 1 for no hits.

    k and n need not be whole (see `clopper_pearson`): P(X >= k) = I_rate(k, n - k + 1), the regularised incomplete beta function.
    """
    if not 0 <= k <= n or not 0 <= rate <= 1:
        raise TutelageError(f"binomial_p got k={k}, n={n}, rate={rate}; expected 0 <= k <= n and a rate between 0 and 1.")
    return 1.0 if k == 0 else float(betainc(k, n - k + 1, rate))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p value of McNemar's test: of the pairs that differ, does one side win more often than by a fair coin?

    only_first, only_second: pairs in which only the one, or only the other, was a hit; pairs that agree say nothing. No pairs give 1.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or percentages (1947); exact form.
    """
    for count in (only_first, only_second):
        _check_count(count, "mcnemar_p")
    n = only_first + only_second
    return min(1.0, 2 * binomial_p(max(only_first, only_second), n, 0.5)) if n else 1.0


def fisher_p(k1: int, n1: int, k2: int, n2: int, *, alternative: Alternative = "two-sided") -> float:
    """Fisher's exact p value for two rates, k1 of n1 against k2 of n2. "greater": the first rate is the higher one.

    Source: Fisher, Statistical Methods for Research Workers (1934), section 21.02; computed by scipy.
    """
    for count in (k1, k2, n1 - k1, n2 - k2):
        _check_count(count, "fisher_p")
    from scipy.stats import fisher_exact  # a slow import, needed here alone

    return float(fisher_exact([[k1, n1 - k1], [k2, n2 - k2]], alternative=alternative).pvalue)


def exceeds_p(value_N: ArrayLike, threshold: float = 0.0) -> float:
    """One-sided p value of Student's t test that the mean lies above `threshold`; 1 for fewer than two values."""
    value_N = np.asarray(value_N, dtype=np.float64)
    if len(value_N) < 2:
        return 1.0
    gap, error = float(value_N.mean()) - threshold, float(value_N.std(ddof=1)) / np.sqrt(len(value_N))
    if error <= 1e-12:
        return 0.0 if gap > 0 else 1.0
    return float(stdtr(len(value_N) - 1, -gap / error))


def rising_p(value_T: ArrayLike) -> float:
    """One-sided p value that values rise in their order: Kendall's tau against the place (the Mann-Kendall test). 1 where all are equal.

    Exact for up to 33 values that all differ, else normal with the variance that ties leave, without a continuity correction: as
    `scipy.stats.kendalltau(range(T), values, alternative="greater")` has it, without loading scipy.stats (half a second).

    Source: Mann, Nonparametric tests against trend (1945); Kendall, Rank correlation methods (1970), for ties.
    """
    score, variance, distinct = _rising_score(value_T)
    n = len(np.asarray(value_T))
    if not variance:
        return 1.0
    if distinct and n <= 33:
        return float(_inversions(n)[: round((n * (n - 1) / 2 - score) / 2) + 1].sum())
    return float(ndtr(-score / math.sqrt(variance)))


def strata_rising_p(strata: Sequence[ArrayLike]) -> float:
    """One-sided p value that values rise in their order within strata that are independent of each other: the scores of `rising_p` are
    added, and their variances (the seasonal Kendall test). 1 where nothing changes; a single stratum is tested as `rising_p` does.

    Source: Hirsch, Slack & Smith, Techniques of trend analysis for monthly water quality data (1982); no continuity correction.
    """
    if len(strata) == 1:
        return rising_p(strata[0])
    scores = [_rising_score(value_T)[:2] for value_T in strata]
    score, variance = (sum(part) for part in zip(*scores, strict=True)) if scores else (0.0, 0.0)
    return float(ndtr(-score / math.sqrt(variance))) if variance else 1.0


def _rising_score(value_T: ArrayLike) -> tuple[float, float, bool]:
    """Pairs that rise minus pairs that fall, the variance of that in a random order, and whether all values differ."""
    value_T = np.asarray(value_T, dtype=np.float64)
    n = len(value_T)
    if value_T.ndim != 1 or not np.isfinite(value_T).all():
        raise TutelageError(f"A trend was asked of {value_T.tolist()}; expected one dimension of finite values.")
    ties = np.unique(value_T, return_counts=True)[1]
    score = float(np.triu(np.sign(value_T[None, :] - value_T[:, None]), 1).sum())
    variance = float(n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    return score, variance, len(ties) == n


@lru_cache(maxsize=64)
def _inversions(n: int) -> Floats:
    """The chance of each number of falling pairs in a random order of n values."""
    chance = np.ones(1)
    for size in range(2, n + 1):
        chance = np.convolve(chance, np.full(size, 1 / size))
    return chance


def tpr_at_fpr(positive_P: ArrayLike, clean_C: ArrayLike, fpr: float) -> float:
    """The share of positives that a detector finds at the lowest threshold which flags at most the share `fpr` of clean subjects.

    Higher scores are more suspicious; a subject is flagged at or above the threshold. Scores that are equal are flagged together or not
    at all, so ties between clean subjects and positives never count as detections that the false-positive rate does not pay for.

    Raises:
        TutelageError: no scores on a side, a score that is NaN, or fpr outside [0, 1].
    """
    positive_P, clean_C = (np.asarray(x, dtype=np.float64).ravel() for x in (positive_P, clean_C))
    if not len(positive_P) or not len(clean_C) or np.isnan(positive_P).any() or np.isnan(clean_C).any() or not 0 <= fpr <= 1:
        raise TutelageError(
            f"tpr_at_fpr got {len(positive_P)} scores of positives and {len(clean_C)} of clean subjects at fpr={fpr}; expected scores on "
            "both sides, none of them NaN, and fpr between 0 and 1."
        )
    allowed = math.floor(fpr * len(clean_C) + 1e-9)  # 0.29 * 100 is 28.999...
    if allowed >= len(clean_C):
        return 1.0
    highest_unflagged = np.sort(clean_C)[::-1][allowed]  # the threshold must lie above this score, whatever its ties
    return float(np.mean(positive_P > highest_unflagged))


def _check_count(count: int, where: str) -> None:
    if count != int(count) or count < 0:
        raise TutelageError(f"{where} got the count {count}; expected whole numbers, none negative, and hits that do not exceed trials.")
