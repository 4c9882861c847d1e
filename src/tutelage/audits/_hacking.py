"""Proxy and golden distance along a distillation: what the two curves say together, and the proxy alone. Numpy only.

    proxy P(θ) = E_x dist(teacher(·|x), student(·|x)),   golden G(θ) = E_x dist(truth(·|x), student(·|x)),   lower is better

Source: "On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671). The paper shows curves; tests and rules are this library's.
Array suffixes: `S` evaluations, `N` prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

Float = NDArray[np.float64]
Kind = Literal["healthy", "hacking", "overfitting", "lucky drift"]
KINDS: dict[Kind, str] = {
    "healthy": "both distances fell",
    "hacking": "the student came closer to its teacher while it moved away from the truth",
    "overfitting": "both distances rose",
    "lucky drift": "the student left its teacher and came closer to the truth",
}


@dataclass(frozen=True, kw_only=True)
class HackingReport:
    """What two curves say. onset: the evaluation from which the golden distance rose, None where it did not.

    slope, r2: of log P against log step on the first evaluations. deviation: the first evaluation of a run of residuals above that line,
    None where there is none, or no line could be fitted. excess: G(end) − G(onset), 0 without an onset.
    """

    kind: Kind | None
    onset: int | None
    excess: float
    slope: float | None
    r2: float | None
    deviation: int | None


def hacking_report(
    step_S: Float,
    proxy_S: Float,
    golden_S: Float | None = None,
    *,
    tolerance: tuple[float, float] = (0.0, 0.0),
    smooth: int = 1,
    runs: int = 3,
) -> HackingReport:
    """Classify a run by its curves; without the golden one only by the law that the proxy follows.

    Args:
        step_S: optimiser steps of the evaluations, rising. proxy_S, golden_S: distances, in nats.
        tolerance: what P and G must move by, from onset to end, to have moved: two standard errors of the paired differences.
        smooth: evaluations of a centred moving mean under which the onset is sought.
        runs: successive residuals above the line that count as leaving it.
    """
    slope, r2, deviation = power_law(step_S, proxy_S, runs=runs)
    if golden_S is None:
        return HackingReport(kind=None, onset=None, excess=0.0, slope=slope, r2=r2, deviation=deviation)
    turn = int(np.argmin(moving_mean(golden_S, smooth)))
    if turn == len(golden_S) - 1 or golden_S[-1] - golden_S[turn] <= tolerance[1]:
        kind: Kind = "lucky drift" if proxy_S[-1] - proxy_S.min() > tolerance[0] else "healthy"
        return HackingReport(kind=kind, onset=None, excess=0.0, slope=slope, r2=r2, deviation=deviation)
    kind = "hacking" if proxy_S[-1] < proxy_S[turn] - tolerance[0] else "overfitting"
    return HackingReport(kind=kind, onset=turn, excess=float(golden_S[-1] - golden_S[turn]), slope=slope, r2=r2, deviation=deviation)


def power_law(step_S: Float, proxy_S: Float, *, share: float = 0.3, runs: int = 3) -> tuple[float | None, float | None, int | None]:
    """Slope and R² of log P = a + b log step, and the first evaluation at which P leaves the line upwards.

    The line is Theil-Sen's through the first `share` of the evaluations, at least five (step 0 has no logarithm and is left out); it is
    left where `runs` successive residuals exceed three times the median absolute residual of those evaluations. Reconstructed: the paper
    shows lines by eye.
    """
    later = np.flatnonzero((step_S > 0) & (proxy_S > 0))
    if len(later) < 3:
        return None, None, None
    x_S, y_S = np.log(step_S[later]), np.log(proxy_S[later])
    slope, intercept, first = _line(x_S, y_S, share)
    residual_S = y_S - intercept - slope * x_S
    spread = float(((y_S[:first] - y_S[:first].mean()) ** 2).sum())
    r2 = 1 - float((residual_S[:first] ** 2).sum()) / spread if spread else 1.0
    bound = 3 * float(np.median(np.abs(residual_S[:first]))) + 1e-9
    above_S = residual_S > bound
    above_S[:first] = False
    for start in np.flatnonzero(above_S):
        if above_S[start : start + runs].sum() == runs:
            return slope, r2, int(later[start])
    return slope, r2, None


def law(step_S: Float, proxy_S: Float, *, share: float = 0.3) -> Float:
    """The line of `power_law` at every evaluation (S,); NaN where it has none."""
    later_S = (step_S > 0) & (proxy_S > 0)
    line_S = np.full(len(step_S), np.nan)
    slope, intercept, _ = _line(np.log(step_S[later_S]), np.log(proxy_S[later_S]), share)
    line_S[later_S] = np.exp(intercept + slope * np.log(step_S[later_S]))
    return line_S


def _line(x_S: Float, y_S: Float, share: float) -> tuple[float, float, int]:
    """Slope and intercept through the first evaluations, and how many these are."""
    first = max(min(5, len(x_S)), round(share * len(x_S)))
    return *theil_sen(x_S[:first], y_S[:first]), first


def theil_sen(x_S: Float, y_S: Float) -> tuple[float, float]:
    """Median of the slopes between all pairs, and the median intercept."""
    i, j = np.triu_indices(len(x_S), 1)
    apart = x_S[j] != x_S[i]
    slope = float(np.median((y_S[j] - y_S[i])[apart] / (x_S[j] - x_S[i])[apart]))
    return slope, float(np.median(y_S - slope * x_S))


def moving_mean(value_S: Float, width: int) -> Float:
    """A centred mean over `width` evaluations, of those there are at the ends."""
    if width < 1:
        raise TutelageError(f"A moving mean is over at least one evaluation; got {width}.")
    low = np.arange(len(value_S)) - (width - 1) // 2
    total_S = np.concatenate([[0.0], np.cumsum(value_S)])
    start, stop = np.clip(low, 0, None), np.clip(low + width, None, len(value_S))
    return np.asarray((total_S[stop] - total_S[start]) / (stop - start))


def departure_p(step_S: Float, proxy_S: Float, *, share: float = 0.3, last: float = 0.3) -> float | None:
    """One-sided p value that the last evaluations lie above the line through the first ones; None where there are too few.

    Least squares in log-log; the mean residual of the last `last` of the evaluations against its own prediction error, as if errors were
    independent between evaluations.
    """
    from scipy.special import stdtr

    later = (step_S > 0) & (proxy_S > 0)
    x_S, y_S = np.log(step_S[later]), np.log(proxy_S[later])
    first, end = max(5, round(share * len(x_S))), max(1, round(last * len(x_S)))
    if first + end > len(x_S):
        return None
    centre, ahead = x_S[:first].mean(), x_S[-end:].mean()
    width = float(((x_S[:first] - centre) ** 2).sum())
    slope = float(((x_S[:first] - centre) * y_S[:first]).sum()) / width
    residual_S = y_S - y_S[:first].mean() - slope * (x_S - centre)
    variance = float((residual_S[:first] ** 2).sum()) / (first - 2)
    error = np.sqrt(variance * (1 / end + 1 / first + (ahead - centre) ** 2 / width))
    gap = float(residual_S[-end:].mean())
    return float(stdtr(first - 2, -gap / error)) if error > 0 else float(gap <= 1e-9)
