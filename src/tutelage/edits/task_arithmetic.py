"""Task arithmetic: adding weighted task vectors to a base."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.edits._dtypes import Array
from tutelage.edits._operators import deltas, elementwise, per_model, positive_sum
from tutelage.registry import edits


@edits.register("task_arithmetic")
@elementwise
def task_arithmetic(
    base: Array, models: Sequence[Array], *, weight: Sequence[float] | float = 1.0, normalize: bool = False, scale: float = 1.0
) -> Array:
    """Base plus the weighted sum of task vectors; a negative weight takes a task away.

        θ = θ_base + λ Σ_m w_m (θ_m − θ_base)

    Ilharco et al. 2023, "Editing models with task arithmetic", section 2; λ is chosen on validation data there, 1 here.

    Args:
        base, models: one tensor in the base and in the models, all of one shape.
        weight: w, one number per model or one for all.
        normalize: divide the sum by Σ_m w_m, which must then be positive and none of them negative.
        scale: λ.
    """
    weights = per_model("weight", weight, len(models))
    factor = scale / positive_sum(weights) if normalize else scale
    merged = base.copy()
    for delta, w in zip(deltas(base, models), weights, strict=True):
        delta *= w * factor
        merged += delta
    return merged
