"""The number formats of safetensors files as numpy arrays; bfloat16, which numpy lacks, is held as its 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.errors import TutelageError

Array = np.ndarray[Any, np.dtype[Any]]

# How the bits of each format are held. A format not listed here (8-bit floats and narrower) is copied as bytes, never calculated with.
STORAGE = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_INFINITY = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # the bits; those of NaN are above it
FLOATS = ("F64", "F32", "F16", "BF16")
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def storage(dtype: str) -> np.dtype[Any]:
    """The numpy format of the stored bits; bytes for a format unknown to numpy."""
    return np.dtype(STORAGE.get(dtype, "u1"))


def decode(stored: Array, dtype: str) -> Array:
    """Stored bits to a fresh array of numbers: float64 for F64, float32 for the other floats (exact)."""
    if dtype == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.astype(np.float64 if dtype == "F64" else np.float32)


def encode(numbers: Array, dtype: str) -> Array:
    """Numbers to stored bits, rounded to nearest, ties to even. A finite number beyond the format's range becomes infinite."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return numbers.astype(storage(dtype), copy=False)
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= 16
    rounded = odd.astype(np.uint16)
    if np.isnan(np.max(numbers, initial=0.0)):
        rounded[np.isnan(numbers)] = 0x7FC0  # rounding up the payload of a NaN may make it anything
    return rounded


def finite_bits(stored: Array, dtype: str) -> bool:
    """Whether the stored bits of a floating-point format are of finite numbers only."""
    bits = stored.view(f"<u{stored.dtype.itemsize}")
    without_sign = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return bool((bits & without_sign).max(initial=0) < bits.dtype.type(_INFINITY[dtype]))


def require_finite_bits(stored: Array, dtype: str, name: str, where: object) -> None:
    """As `require_finite`, for the stored bits of a floating-point format, which need not be decoded."""
    if not finite_bits(stored, dtype):
        require_finite(decode(stored, dtype), name, where)


def require_finite(numbers: Array, name: str, where: object) -> None:
    """Raise where a weight is NaN or infinite; `where` is the file or what was calculated."""
    if numbers.size and not (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):  # both pass NaN on
        kind = "NaN" if np.isnan(numbers).any() else "infinite values"
        raise TutelageError(
            f"The tensor {name} has {kind} in {where}. Weights must be finite: a run that diverged, an overflow of the number format or a "
            "broken copy are the usual causes. `tutelage edit verify` lists all such tensors."
        )
