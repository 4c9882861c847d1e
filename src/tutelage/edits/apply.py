"""Adding task vectors to a base, and taking them off again to the bit.

    θ_out = round(θ_base + s · Σ_v τ_v)

Rounding loses what subtraction could not bring back, so that undoing needs more than the vector. OUT records where its base lies and the
fingerprint of each tensor: `remove` copies the base from there after checking every bit. Where the base is not to be kept, the sidecar
(`undo.zip`) holds, compressed, the bits by which the base differs from `round(θ_out − s · Σ_v τ_v)`. All sums are of float32 numbers,
elementwise and in one order, so that any machine finds the same bits.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._copy import Chunks, write_like
from tutelage.edits._dtypes import Array, decode, encode, finite_bits, require_finite, require_finite_bits
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits._spread import Tell
from tutelage.edits.plan import Plan, match, peak_memory
from tutelage.edits.store import CHUNK, WeightStore, require_editable
from tutelage.edits.task_vector import TaskVector, wrong_base
from tutelage.errors import TutelageError
from tutelage.files import atomic_dir

RECORD = "edit.json"
SIDECAR = "undo.zip"
VERSION = 2  # 1: fingerprints of SHA-256


def plan_apply(base: WeightStore, vectors: list[TaskVector], *, only: list[str] | None = None) -> Plan:
    """What `apply` will do. Raises where a vector is of another base, as far as headers tell, or a pattern matches nothing."""
    for vector in vectors:
        vector.check_names(base)
    names = [name for name in base.names if any(name in v for v in vectors)]
    touched = match(only, names) if only is not None else names
    for name in touched:
        require_editable(base.tensors[name])
    aside = {name: "not among the chosen patterns" for name in names if name not in set(touched)}
    read = sum(v.nbytes(n) for v in vectors for n in touched if n in v)
    return Plan(
        touched, len(base.tensors) - len(touched), base.nbytes + read, base.nbytes,
        peak_memory(base.tensors.values(), 1 + len(vectors), whole=any(v.WHOLE for v in vectors)), aside | base.others()[1],
    )  # fmt: skip


def apply(
    base: WeightStore,
    vectors: list[TaskVector],
    out: Path,
    *,
    scale: float = 1.0,
    only: list[str] | None = None,
    undo: str = "base",
    workers: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write `base` plus `scale` times the sum of `vectors` to the directory `out`, and return the record kept there as edit.json.

    Args:
        scale: s; negative to negate a vector.
        only: shell-style patterns of the tensors to edit; a pattern that matches nothing raises.
        undo: "base" relies on the base staying where it is, "sidecar" also writes what rebuilds it without.
        workers: processes (see `_spread.spread`); one where a sidecar is written, or a pack of matrices is decoded.
        tell: called with the bytes written.
    """
    if undo not in ("base", "sidecar"):
        raise TutelageError(f"The way to undo is 'base' or 'sidecar', not {undo!r}.")
    if not vectors or not np.isfinite(scale):
        raise TutelageError("Give at least one task vector, and a finite scale.")
    plan = plan_apply(base, vectors, only=only)
    with atomic_dir(out) as folder:
        job = _Apply(base, vectors, set(plan.touched), scale)
        if undo == "sidecar":
            with zipfile.ZipFile(folder / SIDECAR, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as job.sidecar:
                prints = write_like(base, folder, job.produce, tell=tell)
        else:
            workers = 1 if any(v.WHOLE for v in vectors) else workers
            prints = write_like(base, folder, job.produce, workers=workers, tell=tell)
        record = {
            "format": VERSION, "edit": "apply", "scale": scale, "undo": undo, "chunk": CHUNK,
            "base": {"path": str(base.path.resolve()), "tensors": {n: before for n, (before, _) in prints.items()}},
            "vectors": [{"path": str(v.path.resolve()), "content": v.content} for v in vectors],
            "touched": [n for n in base.tensors if base.tied.get(n, n) in job.touched],
            "tensors": {n: after for n, (_, after) in prints.items()},
        }  # fmt: skip
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def sum_of(vectors: list[TaskVector], name: str, elements: int) -> Iterator[Array]:
    """The chunks of Σ_v τ_v of one tensor, over the vectors that have it."""
    sources = [v.numbers(name, elements) for v in vectors if name in v]
    for parts in zip(*sources, strict=True):
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        yield total


class _Apply:
    """The chunks of OUT; returned are the fingerprints of a tensor before and after."""

    sidecar: zipfile.ZipFile | None = None

    def __init__(self, base: WeightStore, vectors: list[TaskVector], touched: set[str], scale: float) -> None:
        self.base, self.vectors, self.touched, self.scale = base, vectors, touched, scale

    def produce(self, info: TensorInfo) -> Chunks:
        name = self.base.tied.get(info.name, info.name)
        before = Fingerprint(info, *(vector.base[name] for vector in self.vectors if vector.base))
        if name in self.touched:
            after = Fingerprint(info)
            yield from self._edited(info, name, before, after)
        else:
            after = before
            for stored in self.base.chunks(info.name):
                before.update(stored)
                yield stored
        for vector in self.vectors:
            if vector.base and not before.matches(vector.base[name]):
                vector.check_base(self.base)  # reads the rest, so that the error counts every tensor that differs
                raise wrong_base(vector.path, self.base.path, [info.name])
        return before.hexdigest(), after.hexdigest()

    def _edited(self, info: TensorInfo, name: str, before: Fingerprint, after: Fingerprint) -> Iterator[Array]:
        corrections = self.sidecar.open(info.name, "w", force_zip64=True) if self.sidecar else None
        for stored, delta in zip(self.base.chunks(info.name, CHUNK), sum_of(self.vectors, name, CHUNK), strict=True):
            before.update(stored)
            step = step_of(delta, self.scale, info.dtype)
            result = encode(decode(stored, info.dtype) + step, info.dtype)
            if not finite_bits(result, info.dtype):  # what is not finite stays so: the result shows it of both
                require_finite_bits(stored, info.dtype, info.name, info.file)
                require_finite(delta, name, " + ".join(str(v.path) for v in self.vectors))
                require_finite_bits(result, info.dtype, info.name, f"the result (it does not fit {info.dtype})")
            if corrections is not None:
                reached = decode(result, info.dtype)
                corrections.write(planes(encode(reached - step, info.dtype), stored).data.cast("B"))
            after.update(result)
            yield result
        if corrections is not None:
            corrections.close()


def step_of(delta: Array, scale: float, dtype: str) -> Array:
    """s · Σ τ in the precision of the sum; `delta` itself where nothing is to be done."""
    wide = np.dtype(np.float64 if dtype == "F64" else np.float32)
    if scale == 1 and delta.dtype == wide:
        return delta
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is refused by name, once it is added
        return np.multiply(delta, scale, dtype=wide)


def planes(guess: Array, truth: Array) -> Array:
    """The bits in which two arrays of stored bits differ, byte plane by byte plane (the high bytes are nearly all zero)."""
    size = truth.dtype.itemsize
    return np.ascontiguousarray((guess.view(np.uint8) ^ truth.view(np.uint8)).reshape(-1, size).T)


def corrected(guess: Array, differences: bytes) -> Array:
    """Undo `planes`: the truth from a guess."""
    size = guess.dtype.itemsize
    mask = np.frombuffer(differences, np.uint8).reshape(size, -1).T.reshape(-1)
    return (guess.view(np.uint8) ^ mask).view(guess.dtype)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an edited checkpoint."""
    path = folder / RECORD
    if not path.exists():
        raise TutelageError(f"{folder} has no {RECORD}: it was not made by an edit of this library, or the file was left behind.")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["format"] > VERSION:
        raise TutelageError(f"{path} is of format {record['format']}, and this version reads up to {VERSION}. Update tutelage.")
    return dict(record)
