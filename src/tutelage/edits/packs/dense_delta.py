"""Keeping a difference whole, in 16 bits: for norms and biases, which are tiny."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits.packs.coding import Choice, Code, Operator, matrix_shape, squared_norm
from tutelage.edits.packs.quantization import Quantized, quantize, stored_bytes
from tutelage.errors import TutelageError
from tutelage.registry import edits


@edits.register("dense_delta")
class DenseDelta(Operator):
    """A tensor's difference as plain floats of 16 or 32 bits.

    GraftLLM (arXiv 2505.18502) leaves norms and biases out of its compression; its released code never touches them.

    Args:
        bits: 16 (a float times a power of two for the tensor) or 32.
    """

    name = "dense_delta"
    matrices = False

    def __init__(self, *, bits: int = 16) -> None:
        if bits not in (16, 32):
            raise TutelageError(f"dense_delta keeps floats of 16 or 32 bits, not {bits}; for fewer take quantized_delta.")
        self.bits = bits

    def encode(self, delta: Array, *, gram_NN: Array | None = None, rng: np.random.Generator | None = None) -> Code:
        stored = quantize(delta.reshape(matrix_shape(delta.shape)), self.bits)
        return Code(self.name, delta.shape, stored.bytes()[0], {"bits": self.bits, "unit": stored.unit})

    @staticmethod
    def decode(code: Code) -> Array:
        return Quantized.read(code.data, *code.rows_columns, code.meta["bits"], 1, code.meta["unit"])[0].values_RC

    @classmethod
    def curve(cls, delta: Array, rng: np.random.Generator, **fixed: Any) -> list[Choice]:
        operator = cls(**fixed)
        code = operator.encode(delta)
        return [Choice(code.data.size, squared_norm(delta - cls.decode(code).reshape(delta.shape)), cls.name, {"bits": operator.bits})]

    def most_bytes(self, shape: tuple[int, ...]) -> int:
        return stored_bytes(*matrix_shape(shape), self.bits, 1)
