"""Keeping only the largest entries of a difference: magnitude pruning, with the kept values quantised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits.packs._bits import pack, packed_bytes, unpack
from tutelage.edits.packs.coding import Choice, Code, Operator, squared_norm
from tutelage.edits.packs.quantization import GROUP, Quantized, check_bits, check_group, quantize, stored_bytes
from tutelage.edits.ties import trim
from tutelage.errors import TutelageError
from tutelage.registry import edits

KEEPS = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7)
VALUE_BITS = (3, 4, 6, 8)


@edits.register("sparse_delta")
class SparseDelta(Operator):
    """A tensor's difference with all but the entries of largest magnitude set to zero (GraftLLM's operator for embeddings and head).

    Positions are stored as the gaps between them, in a fixed number of bits chosen for the tensor: a gap that does not fit is an escape,
    which stands for 2^width − 1 entries that are zero. At a width of one bit this is a bitmap.

    Args:
        keep: the share of entries that stays, over the whole tensor (α; its value is not in the paper's public material).
        bits: of the kept values; 16 and 32 for floats.
        group: kept values that share a grid.
    """

    name = "sparse_delta"
    matrices = False

    def __init__(self, *, keep: float = 0.1, bits: int = 8, group: int = GROUP) -> None:
        if not 0 < keep <= 1:
            raise TutelageError(f"keep={keep}: the share of entries that is kept lies in (0, 1].")
        self.keep, self.bits, self.group = keep, check_bits(bits), check_group(group)

    def encode(self, delta: Array, *, gram_NN: Array | None = None, rng: np.random.Generator | None = None) -> Code:
        kept = trim(delta.reshape(-1), self.keep)
        return self._store(delta, np.flatnonzero(kept))

    def _store(self, delta: Array, places_K: Array) -> Code:
        gaps_K = np.diff(places_K, prepend=-1) - 1
        width = _best_width(gaps_K)
        symbols = _symbols(gaps_K, width)
        values = quantize(delta.reshape(1, -1)[:, places_K], self.bits, group=self.group)
        meta = {
            "kept": len(places_K),
            "symbols": len(symbols),
            "width": width,
            "bits": self.bits,
            "group": values.group,
            "unit": values.unit,
        }
        return Code(self.name, delta.shape, np.concatenate([pack(symbols, width), *values.bytes()]), meta)

    @staticmethod
    def decode(code: Code) -> Array:
        meta, out = code.meta, np.zeros(math.prod(code.shape), np.float32)
        front = packed_bytes(meta["symbols"], meta["width"])
        places_K = _places(unpack(code.data[:front], meta["width"], meta["symbols"]), meta["width"])
        values = Quantized.read(code.data[front:], 1, meta["kept"], meta["bits"], meta["group"], meta["unit"])[0]
        out[places_K] = values.values_RC[0]
        return out

    @classmethod
    def curve(cls, delta: Array, rng: np.random.Generator, **fixed: Any) -> list[Choice]:
        total, choices = squared_norm(delta), []
        for keep in [fixed["keep"]] if "keep" in fixed else KEEPS:
            places_K = np.flatnonzero(trim(delta.reshape(-1), keep))
            for bits in [fixed["bits"]] if "bits" in fixed else VALUE_BITS:
                settings = {**fixed, "keep": keep, "bits": bits}
                code = cls(**settings)._store(delta, places_K)
                chosen = delta.reshape(-1)[places_K]
                lost = total - squared_norm(chosen) + squared_norm(chosen - cls.decode(code)[places_K])
                choices.append(Choice(code.data.size, max(lost, 0.0), cls.name, settings))
        return choices

    def most_bytes(self, shape: tuple[int, ...]) -> int:
        size = math.prod(shape)
        kept = max(1, int(self.keep * size))
        return packed_bytes(size, 1) + stored_bytes(1, kept, self.bits, self.group)  # positions never take more than a bitmap


def _best_width(gaps_K: Array) -> int:
    """The bits per symbol that make the positions shortest."""
    cost = {width: width * (len(gaps_K) + int((gaps_K // (2**width - 1)).sum())) for width in range(1, 17)}
    return min(cost, key=lambda width: cost[width])


def _symbols(gaps_K: Array, width: int) -> Array:
    escape = 2**width - 1
    escapes_K = gaps_K // escape
    last_K = np.cumsum(escapes_K + 1) - 1  # where each gap's own symbol stands, after its escapes
    symbols = np.full(int(last_K[-1]) + 1 if len(last_K) else 0, escape)
    symbols[last_K] = gaps_K - escapes_K * escape
    return symbols


def _places(symbols: Array, width: int) -> Array:
    """Undo `_symbols`: the positions of the kept entries."""
    escape = 2**width - 1
    entry = symbols != escape
    return (np.cumsum(symbols.astype(np.int64) + entry) - 1)[entry]
