"""What the merges share: checked weights, and the mark of those that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.errors import TutelageError

F = TypeVar("F", bound=Callable[..., Any])


def elementwise(function: F) -> F:
    """Mark a merge whose every element comes of that element alone, by arithmetic that carries NaN on: it is given a tensor in chunks."""
    function.elementwise = True  # type: ignore[attr-defined]
    return function


def per_model(name: str, values: Sequence[float] | float, models: int) -> list[float]:
    """One finite number per model from a number or a sequence of them."""
    numbers = [float(values)] * models if isinstance(values, int | float) else [float(v) for v in values]
    if len(numbers) != models or not np.isfinite(numbers).all():
        raise TutelageError(f"{name}={values!r}: expected one finite number for each of the {models} models, or one for all.")
    return numbers


def per_model_density(values: Sequence[float] | float, models: int) -> list[float]:
    numbers = per_model("density", values, models)
    if not all(0 < d <= 1 for d in numbers):
        raise TutelageError(f"density={values!r}: the share of elements that is kept lies in (0, 1].")
    return numbers


def positive_sum(weights: list[float]) -> float:
    """The sum that `normalize` divides by; raises where it would turn a sign."""
    if min(weights) < 0 or sum(weights) <= 0:
        raise TutelageError(
            f"normalize divides by the sum of the weights, and {weights} has a negative weight or none above zero: the signs would turn. "
            "To subtract a model, set normalize: false."
        )
    return sum(weights)


def deltas(base: Array, models: Sequence[Array]) -> Iterator[Array]:
    """τ_m = θ_m − θ_base, one at a time."""
    return (model - base for model in models)
