"""TIES merging: trim, elect a sign, average those that agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits._operators import deltas, per_model, per_model_density, positive_sum
from tutelage.registry import edits


@edits.register("ties")
def ties(
    base: Array,
    models: Sequence[Array],
    *,
    weight: Sequence[float] | float = 1.0,
    density: Sequence[float] | float = 0.2,
    normalize: bool = True,
    scale: float = 1.0,
) -> Array:
    """Task vectors with small changes trimmed and conflicts of sign resolved by election.

        τ̂_m = τ_m where |τ_m| is among the `density` largest, else 0;   γ = sign(Σ_m w_m τ̂_m)
        θ = θ_base + λ Σ_{m: sign(w_m τ̂_m) = γ} w_m τ̂_m / Σ_{m: sign(w_m τ̂_m) = γ} w_m,   elementwise

    Yadav et al. 2023, "TIES-Merging", algorithm 1 (density 0.2, λ = 1). Departures: weights w (1 in the paper); trimming within each
    tensor, not over the whole model, so that a tensor at a time suffices (as in mergekit); a tied election counts as positive.

    Args:
        base, models: one tensor in the base and in the models, all of one shape.
        weight: w, one number per model or one for all.
        density: share of each task vector that is kept, in (0, 1]; ⌊density · size⌋ elements, but at least one.
        normalize: average those that agree; False adds them up.
        scale: λ.
    """
    weights = per_model("weight", weight, len(models))
    kept = per_model_density(density, len(models))
    if normalize:
        positive_sum(weights)
    trimmed = [trim(delta, d) * w for delta, d, w in zip(deltas(base, models), kept, weights, strict=True)]
    return base + scale * consensus(trimmed, weights, normalize=normalize)


def trim(delta: Array, density: float) -> Array:
    """Zero all but the ⌊density · size⌋ elements of largest magnitude (at least one); among equals the first in memory stay."""
    keep = max(1, int(density * delta.size))
    if keep >= delta.size:
        return delta
    size = np.abs(delta).reshape(-1)
    threshold = np.partition(size, delta.size - keep)[delta.size - keep]
    mask = size > threshold
    equal = np.flatnonzero(size == threshold)
    mask[equal[: keep - int(np.count_nonzero(mask))]] = True
    return np.where(mask.reshape(delta.shape), delta, 0)


def consensus(weighted: Sequence[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """Sum, or weighted mean, of the elements whose sign is that of the sum over models."""
    total = sum(weighted[1:], start=weighted[0].copy())
    positive = total >= 0
    merged, divisor = np.zeros_like(total), np.zeros_like(total)
    for values, w in zip(weighted, weights, strict=True):
        agree = np.where(positive, values > 0, values < 0)
        merged += values * agree
        divisor += agree * divisor.dtype.type(w)
    if normalize:
        np.divide(merged, divisor, out=merged, where=divisor != 0)
    return merged
