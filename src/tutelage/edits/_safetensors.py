"""The safetensors format, read by header and written tensor by tensor.

A file is 8 bytes (little-endian length of the header), a JSON header {name: {dtype, shape, data_offsets}} that may end in spaces, and the
data. The package of that name holds a whole shard in memory when it writes; here a chunk at a time is enough. Source: the format's
specification, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tutelage.edits._dtypes import STORAGE, storage
from tutelage.errors import TutelageError

_MOST = 100_000_000  # bytes a header may have, as in the package


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `start` is its first byte in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A file's header: its bytes as they stand, and the tensors in the order of their data."""

    raw: bytes
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a file's header; a truncated or foreign file raises `TutelageError` and is named."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MOST, size - 8):
                raise _broken(path, f"its header should have {length} bytes, and the file has {size}")
            raw = file.read(length)
    except OSError as error:
        raise TutelageError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        entries: dict[str, Any] = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        infos = [_info(path, 8 + length, name, entry) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"its header is not that of a safetensors file ({type(error).__name__}: {error})") from None
    infos.sort(key=lambda info: (info.start, info.nbytes))
    _check_layout(path, infos, 8 + length, size)
    return Header(raw, {info.name: info for info in infos}, metadata)


def _info(path: Path, data: int, name: str, entry: dict[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    info = TensorInfo(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), path, data + int(start), int(end) - int(start))
    if info.dtype in STORAGE and info.nbytes != info.numel * storage(info.dtype).itemsize:
        raise ValueError(f"{name}: {info.nbytes} bytes for the shape {info.shape} in {info.dtype}")
    return info


def _check_layout(path: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    at = data
    for info in infos:
        if info.start != at:
            raise _broken(path, f"the tensor {info.name} does not begin where the one before it ends")
        at += info.nbytes
        if at > size:
            raise _broken(path, f"it ends within the tensor {info.name}: {size} bytes of at least {at}")
    if at != size:
        raise _broken(path, f"{size - at} bytes follow the last tensor")


def _broken(path: Path, what: str) -> TutelageError:
    return TutelageError(
        f"The weight file {path} is truncated or damaged: {what}. An interrupted download or a full disk is the usual cause; fetch this "
        "file again."
    )


def build_header(entries: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str], *, length: int = 0) -> bytes:
    """The header of tensors (name, dtype, shape, bytes) laid one after the other, filled with spaces to `length` or a multiple of 8."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, nbytes in entries:
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(table, separators=(",", ":")).encode()
    return raw.ljust(max(length, -(-len(raw) // 8) * 8))


def write_header(file: IO[bytes], raw: bytes) -> None:
    file.write(len(raw).to_bytes(8, "little") + raw)
