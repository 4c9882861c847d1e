"""Linear merging: the weighted mean of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.edits._dtypes import Array
from tutelage.edits._operators import elementwise, per_model, positive_sum
from tutelage.registry import edits


@edits.register("linear")
@elementwise
def linear(models: Sequence[Array], *, weight: Sequence[float] | float = 1.0, normalize: bool = True) -> Array:
    """Weighted mean of checkpoints ("model soup"; with `normalize=False`, the weighted sum).

        θ = Σ_m w_m θ_m / Σ_m w_m

    Wortsman et al. 2022, "Model soups", the uniform soup of section 2 with weights.

    Args:
        models: one tensor in the models to merge, all of one shape.
        weight: w, one number per model or one for all.
        normalize: divide by the sum of the weights, which must then be positive and none of them negative.
    """
    weights = per_model("weight", weight, len(models))
    if normalize:
        total = positive_sum(weights)
        weights = [w / total for w in weights]
    merged = models[0] * weights[0]
    for model, w in zip(models[1:], weights[1:], strict=True):
        merged += model * w
    return merged
