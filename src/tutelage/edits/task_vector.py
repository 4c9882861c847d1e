"""Task vectors: what training added to a checkpoint, in a file that knows which base it belongs to.

    τ = θ_tuned − θ_base        (Ilharco et al. 2023, "Editing models with task arithmetic", eq. in section 2)

The file is an ordinary safetensors file of the tensors that differ; its metadata hold the fingerprint of every tensor of the base, so that
it refuses any other. Unchanged tensors are left out. In float32, the default, `base + τ` rounded to a 16-bit checkpoint's format gives the
tuned one back, but for elements that grew by many orders of magnitude.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._copy import Chunks, Place, Writing, converted, lay_out, returned
from tutelage.edits._dtypes import FLOATS, NAMES, Array, decode, encode, require_finite, require_finite_bits
from tutelage.edits._fingerprints import DIGITS, Fingerprint, new_content
from tutelage.edits._safetensors import TensorInfo, build_header, write_header
from tutelage.edits._spread import Tell, spread
from tutelage.edits.store import WeightStore, compare_shapes, require_editable
from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_open

FORMAT = "tutelage.task_vector"
VERSION = 2  # 1: fingerprints of SHA-256


class TaskVector:
    """A task vector on disk. `base` maps each tensor of the base to its fingerprint (empty where it knows none); `stored` is the store of
    the file's own tensors."""

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

    def __contains__(self, name: str) -> bool:
        return name in self.stored.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored.tensors[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes that one tensor's difference takes on disk."""
        return self.stored.tensors[name].nbytes

    def numbers(self, name: str, elements: int | None) -> Iterator[Array]:
        """The difference of one tensor, flat, `elements` at a time; not looked through for NaN."""
        return (decode(part, self.stored.tensors[name].dtype) for part in self.stored.chunks(name, elements))

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
    base: WeightStore, tuned: WeightStore, out: Path | None = None, *, dtype: str = "float32", workers: int = 1, tell: Tell | None = None
) -> list[Change]:
    """Compare two checkpoints tensor by tensor, and write the task vector to `out` (a .safetensors file), if one is given.

    Args:
        dtype: the format of the vector: float32, float64, float16 or bfloat16.
        workers: processes (see `_spread.spread`).
        tell: called with the bytes of the base's tensors that are done.

    Raises `TutelageError` where the two hold other tensors or shapes, for NaN, and where tensors differ that cannot be subtracted.
    """
    compare_shapes(base, tuned)
    if dtype not in NAMES:
        raise unknown("number format", dtype, NAMES)
    infos = [base.tensors[name] for name in base.names]
    if out is None:
        return [change for change, *_ in spread(_Diff(base, tuned), infos, workers=workers, tell=tell).values()]
    if out.suffix != ".safetensors":
        raise TutelageError(f"A task vector is one .safetensors file, not {out}. Name it {out.name}.safetensors.")
    if out.exists():
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")
    differ = spread(partial(_differs, base, tuned), infos, workers=workers)  # what is written must be known before where
    kept = [converted(info, NAMES[dtype]) for info in infos if differ[info.name]]
    with atomic_open(out) as file:
        room = "0" * DIGITS
        places = lay_out(Path(file.name), _header(base.path, kept, dict.fromkeys(base.names, room), room), kept)
        found = spread(_Diff(base, tuned, NAMES[dtype], places), infos, workers=workers, tell=tell)
        content = new_content()
        for info in kept:
            content.update(f"{info.name} {found[info.name][2]} ".encode())
        prints = {name: before for name, (_, before, _) in found.items()}
        write_header(file, _header(base.path, kept, prints, content.hexdigest()))
    return [change for change, *_ in found.values()]


def _header(base: Path, kept: list[TensorInfo], prints: dict[str, str], content: str) -> bytes:
    """The header, as long for one set of fingerprints as for another."""
    metadata = {
        "format": FORMAT, "version": str(VERSION), "base_path": str(base.resolve()), "base": json.dumps(prints), "content": content,
    }  # fmt: skip
    return build_header([(info.name, info.dtype, info.shape, info.nbytes) for info in kept], metadata)


def _differs(base: WeightStore, tuned: WeightStore, info: TensorInfo) -> bool:
    """Whether any number of a tensor changed; reads no further than to the first."""
    other = tuned.tensors[info.name]
    for stored, pair in _pairs(base, tuned, info.name):
        if (info.dtype != other.dtype or not _same(stored, pair)) and subtract(base, tuned, info.name, stored, pair)[0].any():
            return True
    return False


def _pairs(base: WeightStore, tuned: WeightStore, name: str) -> Iterator[tuple[Array, Array]]:
    return zip(base.chunks(name), tuned.chunks(name), strict=True)


def _same(stored: Array, pair: Array) -> bool:
    return np.array_equal(stored.view(np.uint8), pair.view(np.uint8))


@dataclass(frozen=True)
class _Diff:
    """The work of comparing one tensor: returns its change, and the fingerprints of the base's tensor and of the difference as written."""

    base: WeightStore
    tuned: WeightStore
    dtype: str = "F32"
    places: dict[str, Place] = field(default_factory=dict)

    def __call__(self, info: TensorInfo) -> tuple[Change, str, str]:
        if info.name in self.places:
            return Writing(self._chunks, self.places)(converted(info, self.dtype))
        return returned(self._chunks(info), lambda part: None)

    def _chunks(self, out: TensorInfo) -> Chunks:
        name = out.name
        info, other = self.base.tensors[name], self.tuned.tensors[name]
        change, before, after = Change(name), Fingerprint(info), Fingerprint(out)
        squares, count = 0.0, 0
        for stored, pair in _pairs(self.base, self.tuned, name):
            before.update(stored)
            if info.dtype == other.dtype and _same(stored, pair):
                if info.dtype in FLOATS:
                    require_finite_bits(stored, info.dtype, name, info.file)
                    squares += _square(decode(stored, info.dtype))
                delta = np.zeros(len(stored), np.float32)
            else:
                delta, moved, square = subtract(self.base, self.tuned, name, stored, pair)
                squares += square
                change.norm += moved
                change.largest = max(change.largest, float(delta.max(initial=0)), -float(delta.min(initial=0)))
                count += int(np.count_nonzero(delta != 0))  # many times faster than counting the numbers themselves
            if name in self.places:
                written = encode(delta, self.dtype)
                if written is not delta:
                    require_finite_bits(written, self.dtype, name, f"the difference as {self.dtype}")
                after.update(written)
                yield written
        change.changed = count > 0
        change.norm = float(np.sqrt(change.norm))
        change.relative = change.norm / float(np.sqrt(squares)) if squares else (float("inf") if change.norm else 0.0)
        change.share = count / max(info.numel, 1)
        return change, before.hexdigest(), after.hexdigest()


def _square(numbers: Array) -> float:
    return float(np.vdot(numbers, numbers))


def subtract(base: WeightStore, tuned: WeightStore, name: str, stored: Array, pair: Array) -> tuple[Array, float, float]:
    """The difference of two chunks of stored bits, whose numbers must be finite, its squared norm, and that of the first."""
    info, other = base.tensors[name], tuned.tensors[name]
    for one in (info, other):
        require_editable(one)
    before, after = decode(stored, info.dtype), decode(pair, other.dtype)
    square = _square(before)
    delta = np.subtract(after, before, out=after) if after.dtype == before.dtype else after - before
    moved = _square(delta)
    if not np.isfinite(moved):  # NaN or an infinity in either, or a difference too large for its square
        require_finite_bits(stored, info.dtype, name, info.file)
        require_finite_bits(pair, other.dtype, name, other.file)
        require_finite(delta, name, "the difference")
    return delta, moved, square
