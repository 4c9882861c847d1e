"""Rounding a difference to a few bits per weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits.packs.coding import Choice, Code, Operator, matrix_shape, squared_norm
from tutelage.edits.packs.quantization import GROUP, Quantized, check_bits, check_group, quantize, stored_bytes
from tutelage.registry import edits

OFFERED = (1, 2, 3, 4, 5, 6, 8)


@edits.register("quantized_delta")
class QuantizedDelta(Operator):
    """A matrix's difference on a grid of 2^bits points per group of weights.

    Round to nearest, or GPTQ where statistics of the layer's inputs are given (`tutelage.edits.packs.quantization`).

    Args:
        bits: per weight, 1 to 8.
        group: weights of a row that share a grid; each grid costs 16 + bits bits.
        damp: share of the statistics' mean diagonal that GPTQ adds to it.
    """

    name = "quantized_delta"

    def __init__(self, *, bits: int = 4, group: int = GROUP, damp: float = 0.01) -> None:
        self.bits, self.group, self.damp = check_bits(bits), check_group(group), damp

    def encode(self, delta: Array, *, gram_NN: Array | None = None, rng: np.random.Generator | None = None) -> Code:
        stored = quantize(delta.reshape(matrix_shape(delta.shape)), self.bits, group=self.group, gram_CC=gram_NN, damp=self.damp)
        return Code(
            self.name, delta.shape, np.concatenate(stored.bytes()), {"bits": stored.bits, "group": stored.group, "unit": stored.unit}
        )

    @staticmethod
    def decode(code: Code) -> Array:
        return Quantized.read(code.data, *code.rows_columns, code.meta["bits"], code.meta["group"], code.meta["unit"])[0].values_RC

    @classmethod
    def curve(cls, delta: Array, rng: np.random.Generator, **fixed: Any) -> list[Choice]:
        choices = []
        for bits in [fixed.pop("bits")] if "bits" in fixed else OFFERED:
            code = cls(bits=bits, **fixed).encode(delta)
            error = squared_norm(delta - cls.decode(code).reshape(delta.shape))
            choices.append(Choice(code.data.size, error, cls.name, {"bits": bits, **fixed}))
        return choices

    def most_bytes(self, shape: tuple[int, ...]) -> int:
        return stored_bytes(*matrix_shape(shape), self.bits, self.group)
