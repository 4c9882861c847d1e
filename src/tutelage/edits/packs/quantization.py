"""Group-wise quantisation of a matrix to a few bits: round to nearest, or GPTQ where the layer's inputs are known.

Grid of a group of weights w at b bits (asymmetric, always with zero in it):

    scale = (max(0, max w) − min(0, min w)) / (2^b − 1),  zero = round(−min(0, min w) / scale)
    code = clamp(round(w / scale) + zero, 0, 2^b − 1),    value = scale · (code − zero)

A group that is all zeros has the range (−1, 1). GPTQ (Frantar et al. 2023, algorithm 1; GraftLLM's Quant_b) rounds column after column and
lets the later columns make up for the error under the inputs' second moments H = 2/N Σ x xᵀ, which minimises ‖Wx − Ŵx‖².

Departures from the released code: scales are 16-bit floats times a power of two per matrix, and codes are those of the scale as stored;
with act-order (columns by falling H_jj) the grids are fitted before the sweep, so that no permutation has to be stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from tutelage.edits._dtypes import Array
from tutelage.edits.packs._bits import pack, packed_bytes, unpack
from tutelage.errors import TutelageError

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)  # 16 and 32 are plain floats
GROUP = 128
_BLOCK = 128  # columns between two updates of all that follow, as in GPTQ's code


@dataclass(frozen=True)
class Quantized:
    """An (R, C) matrix: `code_RC` on grids `scale_RG`, `zero_RG` of `group` columns each; or floats in `code_RC` (16, 32 bits).

    Scales, and 16-bit floats, are in units of 2^`unit`.
    """

    code_RC: Array
    scale_RG: Array
    zero_RG: Array
    bits: int
    group: int
    unit: int

    @property
    def values_RC(self) -> Array:
        """The dequantised matrix in float32; each product is exact, so every machine finds the same bits."""
        if self.bits > 8:
            return np.ldexp(self.code_RC.astype(np.float32), self.unit)
        steps_RC = self.code_RC.astype(np.float32) - np.repeat(self.zero_RG, self.group, axis=1)[:, : self.code_RC.shape[1]]
        return steps_RC * np.repeat(np.ldexp(self.scale_RG.astype(np.float32), self.unit), self.group, axis=1)[:, : self.code_RC.shape[1]]

    def bytes(self) -> list[Array]:
        """What is stored: codes, scales, zeros."""
        if self.bits > 8:
            return [_raw(self.code_RC)]
        return [pack(self.code_RC, self.bits), _raw(self.scale_RG), pack(self.zero_RG, self.bits)]

    @classmethod
    def read(cls, data: Array, rows: int, columns: int, bits: int, group: int, unit: int) -> tuple[Quantized, Array]:
        """The matrix at the front of `data` (uint8), and what follows it."""
        sizes = part_bytes(rows, columns, bits, group)
        parts, rest = [data[end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True)], data[sum(sizes) :]
        if bits > 8:
            code_RC = np.frombuffer(parts[0].tobytes(), "<f2" if bits == 16 else "<f4").reshape(rows, columns)
            return cls(code_RC, np.empty((rows, 0)), np.empty((rows, 0)), bits, group, unit), rest
        groups = -(-columns // group)
        code_RC = unpack(parts[0], bits, rows * columns).reshape(rows, columns)
        scale_RG = np.frombuffer(parts[1].tobytes(), "<f2").reshape(rows, groups)
        return cls(code_RC, scale_RG, unpack(parts[2], bits, rows * groups).reshape(rows, groups), bits, group, unit), rest


def _raw(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def part_bytes(rows: int, columns: int, bits: int, group: int) -> list[int]:
    """Bytes of codes, scales and zeros."""
    if bits > 8:
        return [rows * columns * bits // 8]
    grids = rows * -(-columns // group)
    return [packed_bytes(rows * columns, bits), 2 * grids, packed_bytes(grids, bits)]


def stored_bytes(rows: int, columns: int, bits: int, group: int) -> int:
    """Bytes that an (R, C) matrix takes in all."""
    return sum(part_bytes(rows, columns, bits, group)) if rows and columns else 0


def check_bits(bits: int) -> int:
    if bits not in BITS:
        raise TutelageError(f"bits={bits}: expected 1 to 8, or 16 or 32 for plain floats.")
    return bits


def check_group(group: int) -> int:
    if group < 1:
        raise TutelageError(f"group={group}: a group has at least one weight.")
    return group


# The grid --------------------------------------------------------------------------------------------------------------------------------


def unit_of(largest: float) -> int:
    """The exponent of a unit in which numbers up to `largest` fit a 16-bit float, with room for what GPTQ adds."""
    return int(np.frexp(largest)[1]) - 14 if largest > 0 else 0


def _grouped(w_RC: Array, group: int) -> Array:
    """(R, G, group); the last group is filled with zeros, which never widen a grid."""
    rows, columns = w_RC.shape
    groups = -(-columns // group)
    if groups * group != columns:
        w_RC = np.pad(w_RC, ((0, 0), (0, groups * group - columns)))
    return w_RC.reshape(rows, groups, group)


def fit_grid(w_RC: Array, bits: int, group: int, unit: int) -> tuple[Array, Array]:
    """(scale_RG as 16-bit floats in units of 2^unit, zero_RG)."""
    grouped = _grouped(w_RC, group)
    low_RG, high_RG = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    empty_RG = low_RG == high_RG
    low_RG, high_RG = np.where(empty_RG, -1, low_RG), np.where(empty_RG, 1, high_RG)
    most = 2**bits - 1
    scale_RG = np.minimum(np.ldexp((high_RG - low_RG) / most, -unit), np.finfo(np.float16).max).astype(np.float16)
    scale_RG[scale_RG == 0] = np.finfo(np.float16).smallest_subnormal  # far below the rest of the matrix: rounds to zero
    wide_RG = np.ldexp(scale_RG.astype(np.float32), unit)
    return scale_RG, np.clip(np.rint(-low_RG / wide_RG), 0, most).astype(np.uint8)


def round_to_grid(w_RC: Array, scale_RC: Array, zero_RC: Array, bits: int) -> Array:
    """Codes of the nearest grid points (halves go to the even one); scale and zero per element, or broadcast."""
    return np.clip(np.rint(w_RC / scale_RC) + zero_RC, 0, 2**bits - 1).astype(np.uint8)


def quantize(w_RC: Array, bits: int, *, group: int = GROUP, gram_CC: Array | None = None, damp: float = 0.01) -> Quantized:
    """Quantise a matrix, with grids along its rows: to the nearest, or by GPTQ under the inputs' second moments `gram_CC`.

    Args:
        bits: 1 to 8; 16 and 32 store floats.
        group: columns that share a grid.
        damp: share of H's mean diagonal that is added to it.
    """
    check_bits(bits)
    group = min(check_group(group), max(w_RC.shape[1], 1))
    largest = float(np.abs(w_RC).max(initial=0))
    none = np.empty((w_RC.shape[0], 0))
    if bits > 8:
        unit = unit_of(largest) if bits == 16 else 0
        return Quantized(np.ldexp(w_RC, -unit).astype(np.float16 if bits == 16 else np.float32), none, none, bits, group, unit)
    unit = unit_of(2 * largest / (2**bits - 1))
    scale_RG, zero_RG = fit_grid(w_RC, bits, group, unit)
    wide_RG = np.ldexp(scale_RG.astype(np.float32), unit)
    if gram_CC is None:
        grouped = _grouped(w_RC, group)
        code = round_to_grid(grouped, wide_RG[..., None], zero_RG[..., None].astype(np.float32), bits)
        code_RC = code.reshape(w_RC.shape[0], -1)[:, : w_RC.shape[1]]
        return Quantized(np.ascontiguousarray(code_RC), scale_RG, zero_RG, bits, group, unit)
    order_C, upper_CC, dead_C = prepare(gram_CC, damp)
    code_RC = np.empty(w_RC.shape, np.uint8)

    def to_nearest(place: int, w_R: Array) -> Array:
        column = order_C[place]
        scale_R, zero_R = wide_RG[:, column // group], zero_RG[:, column // group].astype(np.float32)
        code_RC[:, column] = round_to_grid(w_R, scale_R, zero_R, bits)
        return scale_R * (code_RC[:, column] - zero_R)

    w_RC = np.where(dead_C, 0, w_RC)
    sweep(w_RC[:, order_C].astype(np.float64), upper_CC, to_nearest)
    return Quantized(code_RC, scale_RG, zero_RG, bits, group, unit)


# GPTQ ------------------------------------------------------------------------------------------------------------------------------------


def prepare(gram_CC: Array, damp: float) -> tuple[Array, Array, Array]:
    """Act-order, the upper Cholesky factor of H⁻¹ in that order, and the dead columns (H_jj = 0), which are to be zero."""
    gram_CC = gram_CC.astype(np.float64)
    diagonal_C = np.diag(gram_CC).copy()
    if not np.isfinite(gram_CC).all() or (diagonal_C < 0).any():
        raise TutelageError("The second moments of a layer's inputs must be finite, and not negative on the diagonal.")
    dead_C = diagonal_C == 0
    gram_CC[dead_C, dead_C] = 1
    diagonal_C[dead_C] = 1
    order_C = np.argsort(-diagonal_C, kind="stable")
    damped_CC = gram_CC[np.ix_(order_C, order_C)] + damp * diagonal_C.mean() * np.eye(len(order_C))
    try:
        inverse_CC = linalg.cho_solve(linalg.cho_factor(damped_CC), np.eye(len(order_C)))
        return order_C, linalg.cholesky(inverse_CC, lower=False), dead_C
    except linalg.LinAlgError:
        raise TutelageError(
            "The second moments of a layer's inputs are not positive definite; collect more inputs, or raise damp."
        ) from None


def sweep(w_RC: Array, upper_CC: Array, to_nearest: Callable[[int, Array], Array]) -> Array:
    """Round the columns one after the other by `to_nearest(column, weights)`, later columns compensating; changes and returns `w_RC`."""
    columns = w_RC.shape[1]
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        error_RB = np.empty((w_RC.shape[0], stop - start))
        for j in range(start, stop):
            value_R = to_nearest(j, w_RC[:, j])
            error_R = (w_RC[:, j] - value_R) / upper_CC[j, j]
            w_RC[:, j + 1 : stop] -= np.outer(error_R, upper_CC[j, j + 1 : stop])
            w_RC[:, j], error_RB[:, j - start] = value_R, error_R
        w_RC[:, stop:] -= error_RB @ upper_CC[start:stop, stop:]
    return w_RC
