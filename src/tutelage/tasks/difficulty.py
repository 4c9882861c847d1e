"""Difficulty matched to the student: overlapping easy, medium and hard splits, and which of them a base model should train on.

Source: SimpleRL-Zoo (arXiv 2503.18892): its Easy (GSM8K and MATH level 1), Medium (MATH levels 1 to 4) and Hard (levels 3 to 5) overlap, so
that a boundary belongs to both sides; weak bases train on the easier sets, strong ones on Hard. Too hard gives no signal, too easy no gain.
Array suffixes: `N` tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError

Bounds = Mapping[str, tuple[float, float]]
PASS_RATE_BOUNDS: Bounds = {"easy": (0.6, 1.0), "medium": (0.2, 0.8), "hard": (0.0, 0.4)}
"""Bounds for pass rates of a reference model. The paper splits by MATH's levels; these numbers are this library's."""
MATH_LEVEL_BOUNDS: Bounds = {"easy": (0, 1), "medium": (1, 4), "hard": (3, 5)}
"""The paper's bounds, for MATH's levels 1 to 5 with GSM8K counted as level 0."""


def difficulty_split(value_N: ArrayLike, bounds: Bounds = PASS_RATE_BOUNDS) -> dict[str, NDArray[np.int64]]:
    """The rows of each split, in order: those whose value lies within its bounds, *both ends included*, so splits may share rows.

    value_N: pass rates of a reference model, or levels with bounds to match (`MATH_LEVEL_BOUNDS`). Rows that are NaN are in no split.
    """
    value_N = np.asarray(value_N, dtype=np.float64)
    for name, (low, high) in bounds.items():
        if not low <= high:
            raise TutelageError(f"The bounds of split {name!r} are {low} to {high}; expected the lower one first.")
    return {name: np.flatnonzero((value_N >= low) & (value_N <= high)) for name, (low, high) in bounds.items()}


def live_share(pass_rate_N: ArrayLike) -> float:
    """The share of tasks that were solved in some attempts but not in all; NaN rates count as dead.

    Measured with as many attempts as a training group has, this is the unbiased share of groups that will carry a gradient.
    """
    pass_rate_N = np.asarray(pass_rate_N, dtype=np.float64)
    if pass_rate_N.size == 0 or np.nanmin(pass_rate_N, initial=0) < 0 or np.nanmax(pass_rate_N, initial=1) > 1:
        raise TutelageError(f"live_share needs pass rates in [0, 1], one per task; got {pass_rate_N[:5].tolist()}.")
    return float(((pass_rate_N > 0) & (pass_rate_N < 1)).mean())


def recommend_split(base_rates: Mapping[str, ArrayLike], *, tolerance: float = 0.05) -> str:
    """The split on which a base model has most to learn from: the greatest `live_share`, and of those within `tolerance` the hardest.

    base_rates: the base's pass rate on each task, by split, from the easiest split to the hardest. The rule is this library's, in place
    of the paper's choice by hand; it agrees with its finding that weak bases need the easier sets and strong ones the hard ones.
    """
    if not base_rates:
        raise TutelageError("recommend_split got no splits; give the base model's pass rates by split, from the easiest to the hardest.")
    live = {name: live_share(rate_N) for name, rate_N in base_rates.items()}
    return [name for name, share in live.items() if share >= max(live.values()) - tolerance][-1]
