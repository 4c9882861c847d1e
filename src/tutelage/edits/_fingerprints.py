"""Fingerprints of tensors: a hash of format, shape and bits.

They guard against accidents: another revision, another number format, a damaged copy, a training step more. The hash is XXH3 (128 bits,
github.com/Cyan4973/xxHash), which keeps up with memory; two tensors that differ by accident share a fingerprint once in 2^128. It does
not guard against malice: XXH3 is no cryptographic hash, and who sets out to make a tensor with the fingerprint of another may succeed.
Where that matters, publish a SHA-256 of the files. Files and records of format 1 hold SHA-256 and are checked by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from tutelage.edits._dtypes import Array
    from tutelage.edits._safetensors import TensorInfo

DIGITS = 32
_OLD_DIGITS = 64


class Fingerprint:
    """The fingerprint of one tensor, taken as its bits go by; `expected` are those it will be held against, of whatever format."""

    def __init__(self, info: TensorInfo, *expected: str) -> None:
        head = f"{info.dtype} {list(info.shape)} ".encode()
        self._digest: Any = xxhash.xxh3_128(head)
        self._old = hashlib.sha256(head) if any(len(e) == _OLD_DIGITS for e in expected) else None

    def update(self, stored: Array) -> None:
        self._digest.update(stored.data)
        if self._old is not None:
            self._old.update(stored.data)

    def over(self, parts: Iterable[Array]) -> Fingerprint:
        """Update with every part; returns itself."""
        for part in parts:
            self.update(part)
        return self

    def hexdigest(self) -> str:
        return str(self._digest.hexdigest())

    def matches(self, expected: str | None) -> bool:
        """Whether `expected`, which was given when this began, is the fingerprint of what went by."""
        return expected == (self._old.hexdigest() if self._old is not None and len(expected or "") == _OLD_DIGITS else self.hexdigest())


def new_content() -> Any:
    """A hash of a whole file's tensors, to be updated with their bits."""
    return xxhash.xxh3_128()
