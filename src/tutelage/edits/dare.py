"""DARE: drop elements of task vectors at random and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits._operators import deltas, per_model, per_model_density, positive_sum
from tutelage.edits.ties import consensus
from tutelage.registry import edits


@edits.register("dare")
def dare(
    base: Array,
    models: Sequence[Array],
    rng: np.random.Generator,
    *,
    density: Sequence[float] | float,
    weight: Sequence[float] | float = 1.0,
    rescale: bool = True,
    sign_election: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    """Task vectors of which a random share is dropped, the rest rescaled so that the expectation stays.

        τ̂_m = m ⊙ τ_m / (1 − p),   m ~ Bernoulli(1 − p),   θ = θ_base + λ Σ_m w_m τ̂_m

    Yu et al. 2024, "Language Models are Super Mario", eqs. 1-3, with density = 1 − p. The paper gives no one drop rate p, so there is none
    here either. `sign_election` adds up only the elements that agree with the elected sign, as in TIES.

    Args:
        base, models: one tensor in the base and in the models, all of one shape.
        rng: where the masks are drawn from, one per model in order.
        density: share of each task vector that is kept, in (0, 1].
        weight: w, one number per model or one for all.
        rescale: divide by the density.
        normalize: divide by Σ_m w_m (with `sign_election`, over those that agree).
        scale: λ.
    """
    weights = per_model("weight", weight, len(models))
    kept = per_model_density(density, len(models))
    total = positive_sum(weights) if normalize else 1.0
    dropped = []
    for delta, d, w in zip(deltas(base, models), kept, weights, strict=True):
        mask = rng.random(delta.shape, dtype=np.float32) < d
        dropped.append(delta * mask * delta.dtype.type(w / d if rescale else w))
    if sign_election:
        return base + scale * consensus(dropped, weights, normalize=normalize)
    return base + scale / total * sum(dropped[1:], start=dropped[0])
