"""Writing a checkpoint of which some tensors are new, whatever made them new: with its base on record, and the way back to the bit.

Pruning and unlearning end here. OUT records where its base lies and the fingerprint of each tensor, as `apply` does, so that `remove`
brings the base back; the sidecar (`undo.zip`) holds, compressed, the bits in which the two differ.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._copy import Chunks, write_like
from tutelage.edits._dtypes import Array, decode, encode, require_finite
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits._spread import Tell
from tutelage.edits.apply import RECORD, SIDECAR, VERSION, planes
from tutelage.edits.store import CHUNK, WeightStore, require_editable
from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_dir

New = Mapping[str, Callable[[], Array]]
"""Stored name → a function that gives the new values of that tensor, in its shape, float32 or float64; called once, when it is written."""


def rewrite(
    base: WeightStore,
    out: Path,
    new: New,
    *,
    edit: str,
    details: Mapping[str, Any] | None = None,
    undo: str = "base",
    more: Callable[[Path], None] | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write `base` with the tensors of `new` to the directory `out`, and return the record kept there as edit.json.

    Values are rounded to the base's number format; elements whose bits stay the same stay, and so do all other tensors.

    Args:
        edit, details: what was done, for the record.
        undo: "base" relies on the base staying where it is, "sidecar" also writes what rebuilds it without.
        more: writes further files into the folder, such as a card, before it gets its name.
        tell: called with the bytes written.

    Raises:
        TutelageError: a name that the base does not hold, values of another shape, NaN, or an output that exists.
    """
    if undo not in ("base", "sidecar"):
        raise TutelageError(f"The way to undo is 'base' or 'sidecar', not {undo!r}.")
    for name in new:
        if name not in base.tensors:
            raise unknown("tensor of the checkpoint", name, list(base.tensors))
        require_editable(base.tensors[name])
    with atomic_dir(out) as folder:
        job = _Rewrite(base, new)
        if undo == "sidecar":
            with zipfile.ZipFile(folder / SIDECAR, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as job.sidecar:
                prints = write_like(base, folder, job.produce, tell=tell)
        else:
            prints = write_like(base, folder, job.produce, tell=tell)
        record = {
            "format": VERSION, "edit": edit, **(details or {}), "scale": 1.0, "undo": undo, "chunk": CHUNK,
            "base": {"path": str(base.path.resolve()), "tensors": {n: before for n, (before, _) in prints.items()}},
            "vectors": [], "touched": job.touched, "tensors": {n: after for n, (_, after) in prints.items()}, "changed": job.changed,
        }  # fmt: skip
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if more is not None:
            more(folder)
    return record


class _Rewrite:
    """The chunks of OUT, the number of changed elements counted on the way; returned are a tensor's fingerprints before and after."""

    sidecar: zipfile.ZipFile | None = None

    def __init__(self, base: WeightStore, new: New) -> None:
        self.base, self.new = base, new
        self.touched = [name for name in base.tensors if base.tied.get(name, name) in new]
        self.changed: dict[str, int] = {}

    def produce(self, info: TensorInfo) -> Chunks:
        before, after = Fingerprint(info), Fingerprint(info)
        for stored, result in self._edited(info) if info.name in self.touched else ((c, c) for c in self.base.chunks(info.name)):
            before.update(stored)
            after.update(result)
            yield result
        return before.hexdigest(), after.hexdigest()

    def _edited(self, info: TensorInfo) -> Iterator[tuple[Array, Array]]:
        values = np.asarray(self.new[self.base.tied.get(info.name, info.name)]())
        if values.shape != info.shape:
            raise TutelageError(f"The new values of {info.name} have the shape {values.shape}; the checkpoint holds {info.shape}.")
        require_finite(values.ravel(), info.name, "the edit")
        corrections = self.sidecar.open(info.name, "w", force_zip64=True) if self.sidecar else None
        flat, start, self.changed[info.name] = values.reshape(-1), 0, 0
        for stored in self.base.chunks(info.name, CHUNK):
            result = encode(flat[start : start + len(stored)], info.dtype)
            start += len(stored)
            self.changed[info.name] += int(np.count_nonzero(decode(result, info.dtype) != decode(stored, info.dtype)))
            if corrections is not None:
                corrections.write(planes(result, stored).data.cast("B"))
            yield stored, result
        if corrections is not None:
            corrections.close()
