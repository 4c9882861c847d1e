"""Task vectors: what training added to a checkpoint, in a file that knows which base it belongs to.

    τ = θ_tuned − θ_base        (Ilharco et al. 2023, "Editing models with task arithmetic", eq. in section 2)

The file is an ordinary safetensors file of the tensors that differ; its metadata hold the fingerprint of every tensor of the base, so that
it refuses any other. Unchanged tensors are left out. In float32, the default, `base + τ` rounded to a 16-bit checkpoint's format gives the
tuned one back, but for elements that grew by many orders of magnitude.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tutelage.edits._dtypes import FLOATS, NAMES, Array, decode, encode, require_finite_bits, storage
from tutelage.edits._fingerprints import DIGITS, Fingerprint, new_content
from tutelage.edits._safetensors import build_header, write_header
from tutelage.edits.store import WeightStore, compare_shapes, require_editable
from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_open

FORMAT = "tutelage.task_vector"
VERSION = 2  # 1: fingerprints of SHA-256

Tell = Callable[[int], None]


class TaskVector:
    """A task vector on disk. `base` maps each tensor of the base to its fingerprint; `stored` is the store of the file's own tensors."""

    FORMAT, VERSION = FORMAT, VERSION
    KIND, MAKE = "a task vector", "tutelage edit diff BASE TUNED -o"
    WHOLE = False  # whether reading a part of a tensor needs all of it in memory

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stored = WeightStore(self.path)
        metadata = self.stored.headers[self.path].metadata if self.path in self.stored.headers else {}
        if metadata.get("format") != self.FORMAT:
            raise TutelageError(f"{path} is not {self.KIND}. Make one with: {self.MAKE} {self.path.name}")
        if int(metadata["version"]) > self.VERSION:
            raise TutelageError(
                f"{path} is {self.KIND} of format {metadata['version']}, and this version reads up to {self.VERSION}. Update tutelage."
            )
        self.base: dict[str, str] = json.loads(metadata["base"])
        self.content = metadata["content"]
        self._open(metadata)

    def _open(self, metadata: dict[str, str]) -> None:
        """Read what only a subclass keeps."""

    @property
    def names(self) -> list[str]:
        """The tensors that differ from the base."""
        return list(self.stored.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored.tensors[name].shape

    def numbers(self, name: str, elements: int | None) -> Iterator[Array]:
        """The difference of one tensor, flat, `elements` at a time."""
        return self.stored.numbers(name, elements)

    def check_names(self, base: WeightStore) -> None:
        """Refuse, from the headers alone, a base that holds other tensors or shapes."""
        missing, extra = sorted(self.base.keys() - set(base.names)), sorted(set(base.names) - self.base.keys())
        shapes = [n for n in self.names if n in base.tensors and base.tensors[n].shape != self.shape(n)]
        if missing or extra or shapes:
            raise wrong_base(self.path, base.path, missing + extra + shapes)

    def check_base(self, base: WeightStore) -> None:
        """Refuse, by reading it, any base but the one the vector was made from, naming the tensors that differ."""
        self.check_names(base)
        differ = [name for name in base.names if not base.matches(name, self.base[name])]
        if differ:
            raise wrong_base(self.path, base.path, differ)


def wrong_base(vector: Path, base: Path, differ: list[str]) -> TutelageError:
    """The error for a base that is not the vector's."""
    some = ", ".join(differ[:5]) + (", ..." if len(differ) > 5 else "")
    return TutelageError(
        f"{vector} was made from another base than {base}: {len(differ)} tensors differ ({some}). Give the checkpoint that it was made "
        "from, to the bit: another revision or another number format does not do."
    )


@dataclass
class Change:
    """How a tensor changed: whether any bit did, the share of elements that did, ‖τ‖₂, ‖τ‖₂ / ‖θ_base‖₂, and the largest |τ|."""

    name: str
    changed: bool = False
    share: float = 0.0
    norm: float = 0.0
    relative: float = 0.0
    largest: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff(
    base: WeightStore, tuned: WeightStore, out: Path | None = None, *, dtype: str = "float32", tell: Tell | None = None
) -> list[Change]:
    """Compare two checkpoints tensor by tensor, and write the task vector to `out` (a .safetensors file), if one is given.

    Args:
        dtype: the format of the vector: float32, float64, float16 or bfloat16.
        tell: called with the number of bytes read of both, as the work goes on.

    Raises `TutelageError` where the two hold other tensors or shapes, for NaN, and where tensors differ that cannot be subtracted.
    """
    compare_shapes(base, tuned)
    if dtype not in NAMES:
        raise unknown("number format", dtype, NAMES)
    if out is None:
        return [_compare(base, tuned, name, None, tell) for name in base.names]
    if out.suffix != ".safetensors":
        raise TutelageError(f"A task vector is one .safetensors file, not {out}. Name it {out.name}.safetensors.")
    if out.exists():
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")
    with atomic_open(out) as file:
        writer = _Writer(file, base, NAMES[dtype])
        changes = [_compare(base, tuned, name, writer, tell) for name in base.names]
        writer.finish()
    return changes


def _compare(base: WeightStore, tuned: WeightStore, name: str, writer: _Writer | None, tell: Tell | None) -> Change:
    """One tensor: statistics, and its difference through `writer`."""
    change, squares = Change(name), 0.0
    info, other = base.tensors[name], tuned.tensors[name]
    begin = writer.begin(name) if writer else None
    count = 0
    for stored, pair in zip(base.chunks(name), tuned.chunks(name), strict=True):
        if writer:
            writer.base_digest.update(stored)
        if info.dtype == other.dtype and np.array_equal(stored.view(np.uint8), pair.view(np.uint8)):
            delta = None  # kept narrow: the zeros are written only if another chunk differs
        else:
            delta, size = subtract(base, tuned, name, stored, pair)
            change.norm += float(np.vdot(delta, delta))
            change.largest = max(change.largest, float(delta.max(initial=0)), -float(delta.min(initial=0)))
            count += int(np.count_nonzero(delta != 0))  # many times faster than counting the numbers themselves
            squares += size
        if delta is None and info.dtype in FLOATS:
            require_finite_bits(stored, info.dtype, name, info.file)
            numbers = decode(stored, info.dtype)
            squares += float(np.vdot(numbers, numbers))
        if writer and info.dtype in FLOATS:
            writer.add(np.zeros(len(stored), np.float32) if delta is None else delta, name)
        if tell:
            tell(stored.nbytes + pair.nbytes)
    change.changed = count > 0
    if writer:
        writer.end(name, begin, keep=change.changed)
    change.norm = float(np.sqrt(change.norm))
    change.relative = change.norm / float(np.sqrt(squares)) if squares else (float("inf") if change.norm else 0.0)
    change.share = count / max(info.numel, 1)
    return change


def subtract(base: WeightStore, tuned: WeightStore, name: str, stored: Array, pair: Array) -> tuple[Array, float]:
    """The difference of two chunks of stored bits, checked to be finite, and the squared norm of the first."""
    info, other = base.tensors[name], tuned.tensors[name]
    for one in (info, other):
        require_editable(one)
    require_finite_bits(stored, info.dtype, name, info.file)
    require_finite_bits(pair, other.dtype, name, other.file)
    before, after = decode(stored, info.dtype), decode(pair, other.dtype)
    return after - before, float(np.vdot(before, before))


class _Writer:
    """Writes a vector whose tensors are known only once they are compared: the header's place is kept free and filled at the end."""

    def __init__(self, file: IO[bytes], base: WeightStore, dtype: str) -> None:
        self.file, self.base, self.dtype = file, base, dtype
        self.fingerprints: dict[str, str] = {}
        self.kept: list[str] = []
        self.content = new_content()
        most = build_header(self._entries(base.names), self._metadata(dict.fromkeys(base.names, "0" * DIGITS)))
        self.length = len(most)
        write_header(file, most)

    def _entries(self, names: list[str]) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
        size = storage(self.dtype).itemsize
        for info in (self.base.tensors[n] for n in names):
            yield info.name, self.dtype, info.shape, info.numel * size

    def _metadata(self, fingerprints: dict[str, str]) -> dict[str, str]:
        return {
            "format": FORMAT, "version": str(VERSION), "base_path": str(self.base.path.resolve()),
            "base": json.dumps(fingerprints), "content": self.content.hexdigest(),
        }  # fmt: skip

    def begin(self, name: str) -> tuple[int, Any]:
        self.base_digest = Fingerprint(self.base.tensors[name])
        return self.file.tell(), self.content.copy()

    def add(self, delta: Array, name: str) -> None:
        stored = encode(delta, self.dtype)
        require_finite_bits(stored, self.dtype, name, f"the difference as {self.dtype}")
        self.content.update(stored.data)
        self.file.write(stored.data.cast("B"))

    def end(self, name: str, begin: tuple[int, Any] | None, *, keep: bool) -> None:
        self.fingerprints[name] = self.base_digest.hexdigest()
        if keep:
            self.kept.append(name)
        elif begin is not None:
            self.file.seek(begin[0])
            self.file.truncate()
            self.content = begin[1]

    def finish(self) -> None:
        header = build_header(self._entries(self.kept), self._metadata(self.fingerprints), length=self.length)
        self.file.seek(0)
        write_header(self.file, header)
