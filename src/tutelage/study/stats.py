"""The statistics behind every verdict: paired tests on seeds, corrected for the number of comparisons, and summaries of curves and rates.

The rule is fixed before any run. Method and baseline share their seeds; the exact sign-flip test judges the mean of the per-seed
differences, two-sided at 0.05, with Holm's correction over all arms of a command (`judge`). The t interval is shown beside the difference
and decides nothing. The bootstrap band is for figures: on few seeds a percentile bootstrap excludes zero far more often than it should.
Array suffixes: `S` seeds, `K` comparisons, `X` points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from tutelage.errors import TutelageError
from tutelage.rates import holm as holm
from tutelage.rates import wilson as wilson
from tutelage.tasks.diagnostics import pass_at_k as pass_at_k

LEVEL = 0.05
EXACT_SEEDS = 20
# Both tolerances sit far above float64 rounding and far below any difference worth a seed. A tie can only raise p, so the test stays valid.
TIE_TOLERANCE = 1e-9
ZERO_TOLERANCE = 1e-12

Floats = NDArray[np.float64]
VerdictWord = Literal["holds", "reversed", "not shown", "too few seeds"]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired comparison: mean of method minus baseline over `n` seeds, its 95 % t interval (NaN at one seed), the sign-flip p value."""

    mean: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Judgement(Paired):
    """A `Paired` with its p value after Holm's correction over all arms of the command, the verdict, and the verdict as a sentence."""

    p_holm: float
    verdict: VerdictWord
    sentence: str


def _finite(values: ArrayLike, name: str, ndim: int = 1) -> Floats:
    """`values` as float64, refused unless they have `ndim` dimensions, at least one value, and every value finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise TutelageError(f"{name} has shape {array.shape}; expected {ndim} dimension(s) with at least one value.")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise TutelageError(
            f"{name} holds {len(bad)} value(s) that are not finite, the first at position {bad[0].tolist()}. A run has probably failed or "
            "diverged: repeat it or give it the metric's worst value, since leaving a seed out would bias the comparison."
        )
    return array


def difference(method_S: ArrayLike, baseline_S: ArrayLike) -> Floats:
    """Per-seed differences, method minus baseline, of scores that stand in the same order of seeds.

    A difference below 1e-12 of the scores themselves is rounding (0.1 + 0.2 against 0.3) and becomes exactly 0: otherwise the same rounding
    in every seed would look like a consistent effect.
    """
    method_S, baseline_S = _finite(method_S, "method_S"), _finite(baseline_S, "baseline_S")
    if method_S.shape != baseline_S.shape:
        raise TutelageError(
            f"The method has {method_S.size} seeds and the baseline {baseline_S.size}; a paired comparison needs the same seeds in the "
            "same order for both. Run the missing ones."
        )
    difference_S = method_S - baseline_S
    rounding_S = ZERO_TOLERANCE * np.maximum(np.abs(method_S), np.abs(baseline_S))
    return np.where(np.abs(difference_S) <= rounding_S, 0.0, difference_S)


def sign_flip_p(difference_S: ArrayLike, *, rng: np.random.Generator | None = None, draws: int = 99_999) -> float:
    """Two-sided p value of the paired sign-flip test on the mean of per-seed differences.

    Under the null the two scores of a seed are exchangeable, so each difference is as likely with either sign; p is the share of all 2^S
    assignments of signs whose mean is at least as far from 0 as the observed one. Exact up to 20 seeds, and then never below 2 / 2^S.
    Beyond that, `draws` random assignments from `rng` and p = (1 + hits) / (1 + draws), which is never 0.

    Sums closer than 1e-9 of the sum of |d| are ties and count as hits, so that rounding cannot change p. All differences 0 give 1.

    Source: Fisher, The Design of Experiments (1935), section 21; the +1: Phipson & Smyth, Permutation P-values should never be zero (2010).

    Raises:
        TutelageError: no differences, a value that is not finite, or more than 20 seeds without `rng`.
    """
    difference_S = _finite(difference_S, "difference_S")
    largest = np.abs(difference_S).max()
    if largest == 0:
        return 1.0
    scaled_S = difference_S / largest  # so that neither huge nor tiny units overflow or underflow in the sums
    threshold = abs(scaled_S.sum()) - TIE_TOLERANCE * np.abs(scaled_S).sum()
    if scaled_S.size <= EXACT_SEEDS:
        return float(np.mean(np.abs(_signed_sums(scaled_S)) >= threshold))
    if rng is None:
        raise TutelageError(
            f"{scaled_S.size} seeds have too many sign assignments to list (the exact test stops at {EXACT_SEEDS}), so they are drawn at "
            "random. Pass rng=numpy.random.default_rng(seed)."
        )
    hits = 0
    for start in range(0, draws, 10_000):
        sign_DS = rng.choice(np.array([-1.0, 1.0]), size=(min(10_000, draws - start), scaled_S.size))
        hits += int(np.count_nonzero(np.abs(sign_DS @ scaled_S) >= threshold))
    return (1 + hits) / (1 + draws)


def _signed_sums(value_S: Floats) -> Floats:
    """The 2^(S-1) sums of `value_S` over all signs with the first one fixed; the other half are their negatives."""
    sums = value_S[:1]
    for value in value_S[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def paired(method_S: ArrayLike, baseline_S: ArrayLike, *, rng: np.random.Generator | None = None) -> Paired:
    """Compare a method with its baseline on the same seeds, in the same order; `rng` is needed beyond 20 seeds only."""
    return _summary(difference(method_S, baseline_S), rng)


def _summary(difference_S: Floats, rng: np.random.Generator | None) -> Paired:
    mean, low, high = t_interval(difference_S)
    return Paired(mean=mean, low=low, high=high, p=sign_flip_p(difference_S, rng=rng), n=len(difference_S))


def t_interval(value_S: ArrayLike) -> tuple[float, float, float]:
    """Mean over seeds, and the ends of its 95 % t interval (NaN at one seed)."""
    value_S = _finite(value_S, "value_S")
    n, mean = len(value_S), float(value_S.mean())
    half = float(stdtrit(n - 1, 1 - LEVEL / 2) * value_S.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return mean, mean - half, mean + half


def seeds_needed(comparisons: int, level: float = LEVEL) -> int:
    """The fewest seeds S at which the least p value there is, 2 / 2^S, times the number of comparisons reaches `level` (6 for one)."""
    if comparisons < 1 or not 0 < level < 1:
        raise TutelageError(
            f"seeds_needed got {comparisons} comparisons at level {level}; expected at least 1, and a level between 0 and 1."
        )
    seeds = 1
    while 2 * comparisons > level * 2**seeds:
        seeds += 1
    return seeds


def verdict(*, mean: float, p_holm: float, seeds: int, comparisons: int, higher_is_better: bool = True) -> VerdictWord:
    """The verdict on one arm, from its mean difference (method minus baseline) and its p value after Holm over all `comparisons`.

    "too few seeds" whenever `seeds` < `seeds_needed(comparisons)`, whatever p is: with the same seeds for every arm no result could then
    have passed, and an arm that passes only because others ran more seeds is not called a winner either. Otherwise "holds" (better) or
    "reversed" (worse) if p_holm <= 0.05, else "not shown".
    """
    if seeds < seeds_needed(comparisons):
        return "too few seeds"
    if p_holm > LEVEL or mean == 0:
        return "not shown"
    return "holds" if (mean > 0) == higher_is_better else "reversed"


def judge(
    difference_by_arm: Mapping[str, ArrayLike],
    *,
    baseline: str = "the baseline",
    verb: str = "teaches",
    higher_is_better: bool = True,
    rng: np.random.Generator | None = None,
) -> dict[str, Judgement]:
    """Judge all arms of one command together, each against the same baseline.

    Args:
        difference_by_arm: for each arm `difference(method_S, baseline_S)`. Give every arm of the command: the correction is over them.
        baseline: its name, for the sentences.
        verb: what an arm does better or worse, for the sentences ("teaches", "forgets", "detects").
        higher_is_better: False for a loss, an error rate or a cost. It turns the verdict around, never the sign of the difference shown.
        rng: needed beyond 20 seeds only.

    Returns:
        For each arm, in the order given, a `Judgement`, whose sentence reads for example
        "teaches better than uniform: +0.031 [0.012, 0.050], p = 0.0312 (Holm)".
    """
    summaries = {arm: _summary(_finite(difference_S, f"difference_S of {arm!r}"), rng) for arm, difference_S in difference_by_arm.items()}
    p_holm_K = holm([summary.p for summary in summaries.values()])
    judgements = {}
    for (arm, summary), p_holm in zip(summaries.items(), p_holm_K.tolist(), strict=True):
        word = verdict(mean=summary.mean, p_holm=p_holm, seeds=summary.n, comparisons=len(summaries), higher_is_better=higher_is_better)
        sentence = _sentence(word, summary, p_holm, len(summaries), baseline, verb)
        judgements[arm] = Judgement(**vars(summary), p_holm=p_holm, verdict=word, sentence=sentence)
    return judgements


def _sentence(word: VerdictWord, summary: Paired, p_holm: float, comparisons: int, baseline: str, verb: str) -> str:
    effect = _effect(summary)
    if word == "too few seeds":
        seeds = "1 seed" if summary.n == 1 else f"{summary.n} seeds"
        family = "1 comparison needs" if comparisons == 1 else f"{comparisons} comparisons need"
        return f"too few seeds to compare with {baseline}: {effect} over {seeds}; {family} {seeds_needed(comparisons)}"
    opening = {
        "holds": f"{verb} better than {baseline}",
        "reversed": f"{verb} worse than {baseline}",
        "not shown": f"no difference from {baseline} shown",
    }[word]
    return f"{opening}: {effect}, p = {p_holm:.3g} (Holm)"


def _effect(summary: Paired) -> str:
    """The difference with its interval, to two significant digits of the interval's half-width (and at most five of the mean)."""
    scale = np.nanmax([(summary.high - summary.low) / 2, abs(summary.mean) / 1000])
    digits = f"z.{max(0, 1 - math.floor(math.log10(scale)))}f" if 1e-6 <= scale < 1e6 else "z.3g"
    interval = "" if summary.n == 1 else f" [{summary.low:{digits}}, {summary.high:{digits}}]"
    return f"{summary.mean:+{digits}}{interval}"


def bootstrap_band(curve_SX: ArrayLike, level: float, rng: np.random.Generator, *, draws: int = 2000) -> tuple[Floats, Floats]:
    """Pointwise percentile band of the mean curve, from seeds resampled with replacement: for figures only, **not a test**.

    On few seeds the band is too narrow: under a null, at level 0.95, it excludes zero in about 25 % of runs at three seeds and 17 % at
    five. Verdicts come from `judge`. A point that is NaN for some seed has a NaN band.

    Args:
        curve_SX: one curve per seed, all at the same points.
        level: share inside the band, between 0 and 1.

    Returns:
        low_X and high_X.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    curve_SX = np.asarray(curve_SX, dtype=np.float64)
    if curve_SX.ndim != 2 or len(curve_SX) == 0 or not 0 < level < 1:
        raise TutelageError(
            f"bootstrap_band got curves of shape {curve_SX.shape} and level {level}; expected (seeds, points) with at least one seed, and "
            "a level between 0 and 1."
        )
    seeds = len(curve_SX)
    share_DS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    low_X, high_X = np.quantile(share_DS @ curve_SX, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low_X, high_X


def _curve(x_X: ArrayLike, y_X: ArrayLike) -> tuple[Floats, Floats]:
    x_X, y_X = _finite(x_X, "x_X"), _finite(y_X, "y_X")
    if x_X.shape != y_X.shape or np.any(np.diff(x_X) <= 0):
        raise TutelageError(
            f"A curve needs one y for each x, and x that increases strictly; got {x_X.size} x and {y_X.size} y, x being {x_X}. "
            "Sort the points by x and keep one per x."
        )
    return x_X, y_X


def area_under_curve(x_X: ArrayLike, y_X: ArrayLike, until: float | None = None) -> float:
    """Mean height of a learning curve from its first point to `until` (default: its last point): trapezoid area over width, in units of y.

    Between points the curve is linear, so `until` may fall between two of them; it is never extended. Give curves that are compared the
    same start and the same `until`. A single point, or `until` at the first one, gives that point's height.

    Raises:
        TutelageError: `until` outside the curve, values that are not finite, or x that does not increase strictly.
    """
    x_X, y_X = _curve(x_X, y_X)
    end = float(x_X[-1]) if until is None else until
    if not x_X[0] <= end <= x_X[-1]:
        raise TutelageError(f"until={end} lies outside the curve, which runs from {x_X[0]} to {x_X[-1]}; choose a point all curves reach.")
    if end == x_X[0]:
        return float(y_X[0])
    inside_X = x_X < end
    y_end = np.interp(end, x_X, y_X)
    x_X, y_X = np.append(x_X[inside_X], end), np.append(y_X[inside_X], y_end)
    return float(np.sum(np.diff(x_X) * (y_X[1:] + y_X[:-1]) / 2) / (x_X[-1] - x_X[0]))


def x_to_reach(x_X: ArrayLike, y_X: ArrayLike, target: float) -> float:
    """The first x at which the curve is at or above `target`, linear between points; the first x if it starts there, NaN if never.

    The curve is taken raw, without smoothing, so a lucky evaluation counts as reaching: use many test tasks per point. For a curve that
    should fall (a loss), negate `y_X` and `target`.
    """
    x_X, y_X = _curve(x_X, y_X)
    reached_X = np.flatnonzero(y_X >= target)
    if len(reached_X) == 0:
        return math.nan
    after = int(reached_X[0])
    if after == 0:
        return float(x_X[0])
    rise = (target - y_X[after - 1]) / (y_X[after] - y_X[after - 1])
    return float(x_X[after - 1] + rise * (x_X[after] - x_X[after - 1]))
