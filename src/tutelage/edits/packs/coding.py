"""What an operator is: a way to store one tensor's difference, and to read it back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.registry import edits


@dataclass(frozen=True)
class Code:
    """A stored tensor: its bytes, and the few numbers (`meta`, plain JSON) that say how they are laid out."""

    operator: str
    shape: tuple[int, ...]
    data: Array
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_columns(self) -> tuple[int, int]:
        """The shape as a matrix: the first axis against all others."""
        return matrix_shape(self.shape)


@dataclass(frozen=True)
class Choice:
    """A way to store a tensor: its bytes, the squared error ‖Δ − Δ̂‖² measured or estimated, and the operator with its settings.

    Without an operator the tensor is left out: no bytes, all of the error.
    """

    nbytes: int
    error: float
    operator: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Operator:
    """The base of all operators. A subclass is registered as an edit; its keyword-only parameters are its settings."""

    name: ClassVar[str]
    matrices: ClassVar[bool] = True  # whether it needs two axes

    def encode(self, delta: Array, *, gram_NN: Array | None, rng: np.random.Generator) -> Code:
        """Store `delta` (float32 or float64, any shape, finite).

        gram_NN: second moments H = 2/N Σ x xᵀ of the inputs that the matrix is multiplied with, where they are known.
        """
        raise NotImplementedError

    @staticmethod
    def decode(code: Code) -> Array:
        """The stored difference in float32 and its shape, the same bits on every machine."""
        raise NotImplementedError

    @classmethod
    def curve(cls, delta: Array, rng: np.random.Generator, **fixed: Any) -> list[Choice]:
        """Bytes against error over the settings that `fixed` leaves open; bytes are exact."""
        raise NotImplementedError

    def most_bytes(self, shape: tuple[int, ...]) -> int:
        """The most bytes that a tensor of this shape can take."""
        raise NotImplementedError


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns): the first axis against all others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def decode(code: Code) -> Array:
    """The stored difference, by the operator that the code names."""
    target: Any = edits.get(code.operator).target
    return np.asarray(target.decode(code)).reshape(code.shape)


def squared_norm(x: Array) -> float:
    """‖x‖², summed in float64."""
    flat = x.reshape(-1)
    return float(sum(np.vdot(part, part) for part in (flat[i : i + (1 << 20)].astype(np.float64) for i in range(0, flat.size, 1 << 20))))
