"""Small integers, packed without gaps: the stored form of everything quantised.

The first integer stands in the highest bits of the first byte. 1 to 16 bits; a run of integers is filled up to whole bytes.
"""

from __future__ import annotations

import numpy as np

from tutelage.edits._dtypes import Array

_CHUNK = 1 << 18  # integers at a time, a multiple of 8: unpacked bits take a byte each


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: Array, bits: int) -> Array:
    """Unsigned integers below 2^bits, flattened, as bytes."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.astype(np.uint8)
    parts = [_pack(flat[start : start + _CHUNK], bits) for start in range(0, flat.size, _CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The `count` integers that `pack` packed, as uint8 (uint16 from 9 bits on)."""
    if bits == 8:
        return packed[:count]
    out = np.empty(count, np.uint8 if bits < 8 else np.uint16)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        part = packed[start * bits // 8 : packed_bytes(stop, bits)]
        bits_NB = np.unpackbits(part, count=(stop - start) * bits).reshape(-1, bits)
        if bits < 8:
            out[start:stop] = np.packbits(bits_NB, axis=1)[:, 0] >> (8 - bits)
        else:
            high, low = np.packbits(bits_NB, axis=1).T.astype(np.uint16)
            out[start:stop] = (high << 8 | low) >> (16 - bits)
    return out


def _pack(codes: Array, bits: int) -> Array:
    wide = codes.astype(np.uint8 if bits < 8 else ">u2")
    width = 8 * wide.dtype.itemsize
    return np.packbits(np.unpackbits(wide.view(np.uint8)).reshape(-1, width)[:, width - bits :])
