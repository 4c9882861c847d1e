"""Stretches of steps and what changes over them: at most 24 means, whether they rise, by how much, and curves of them.

Array suffixes: `B` attempts, `T` stretches of steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit

from tutelage.audits._attempts import Bools, Floats, Ints
from tutelage.audits.verdict import Curve, Effect
from tutelage.rates import rising_p

STRETCHES = 24
LEAST_STRETCHES = 6
"""Below, no trend can reach a level that a correction over the rules leaves: 1 / 6! is the least p."""


def stretches(step_B: Ints, known_B: Bools) -> tuple[Ints, int]:
    """Which stretch of steps each attempt belongs to (-1 for steps without a known one), and how many stretches there are, at most 24.

    Stretches have about as many known attempts each, so that their means are about as sure: where the later means are less sure than the
    earlier ones, the test of a trend finds one too often (8 % at a level of 5, where a source's share fell fourfold).
    """
    steps, place_K = np.unique(step_B[known_B], return_inverse=True)
    if not len(steps):
        return np.full(len(step_B), -1), 0
    mass_U = np.bincount(place_K).astype(np.float64)
    middle_U = np.cumsum(mass_U) - mass_U / 2
    count = min(STRETCHES, len(steps))
    stretch_U = np.unique((middle_U * count / mass_U.sum()).astype(np.int64), return_inverse=True)[1]
    place_B = np.searchsorted(steps, step_B).clip(max=len(steps) - 1)
    return np.where(steps[place_B] == step_B, stretch_U[place_B], -1), int(stretch_U[-1]) + 1


def means(value_B: Floats, stretch_B: Ints, known_B: Bools, count: int) -> Floats:
    """The mean of a value over the known attempts of each stretch; NaN where there are none."""
    total_T = np.bincount(stretch_B[known_B], weights=value_B[known_B], minlength=count)
    size_T = np.bincount(stretch_B[known_B], minlength=count)
    return np.divide(total_T, size_T, out=np.full(count, np.nan), where=size_T > 0)


def rises(value_T: Floats) -> float:
    """One-sided p value of Kendall's tau for a rise over the stretches; 1 where nothing changes."""
    if np.ptp(value_T) <= 1e-9 * np.abs(value_T).max():
        return 1.0
    return rising_p(value_T)


def change(value_T: Floats, what: str) -> Effect:
    """The mean of the last third of the stretches minus that of the first, with Welch's 95 % interval."""
    third = len(value_T) // 3
    first, last = value_T[:third], value_T[-third:]
    difference, squares = float(last.mean() - first.mean()), np.array([first.var(ddof=1), last.var(ddof=1)]) / third
    if squares.sum() == 0:
        return Effect(what=what, value=difference, low=difference, high=difference)
    freedom = squares.sum() ** 2 / (squares**2 / (third - 1)).sum()
    half = float(stdtrit(freedom, 0.975) * np.sqrt(squares.sum()))
    return Effect(what=what, value=difference, low=difference - half, high=difference + half)


def late_rows(step_B: Ints, known_B: Bools) -> Ints | None:
    """The known attempts of the last third of the steps; None where there are too few steps to speak of a last third."""
    stretch_B, count = stretches(step_B, known_B)
    return np.flatnonzero(known_B & (stretch_B >= count - count // 3)) if count >= LEAST_STRETCHES else None


def stretch_curve(panel: str, value_by_name: Mapping[str, Floats], step_B: Ints, known_B: Bools | None = None) -> tuple[Curve, ...]:
    """The means of values over the stretches as curves of one panel."""
    found = []
    for name, value_B in value_by_name.items():
        seen_B = ~np.isnan(value_B) if known_B is None else known_B & ~np.isnan(value_B)
        stretch_B, count = stretches(step_B, seen_B)
        middle_T, mean_T = (means(x, stretch_B, seen_B, count) for x in (step_B.astype(np.float64), value_B))
        found.append(Curve(panel=panel, name=name, x=tuple(middle_T.tolist()), y=tuple(mean_T.tolist())))
    return tuple(found)
