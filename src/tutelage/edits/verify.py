"""Is a checkpoint, or a pack, whole? Its files, its index, its numbers, and the fingerprints an edit recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.edits._dtypes import FLOATS, decode
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._spread import Tell
from tutelage.edits.apply import RECORD, read_record
from tutelage.edits.packs.pack import SkillPack
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError


def verify(store: WeightStore, *, tell: Tell | None = None) -> dict[str, Any]:
    """Read a checkpoint whole; returns {"tensors", "bytes", "tied", "recorded", "problems": [text, ...]}.

    Damaged files raise on opening the store. Problems are NaN, infinities, and tensors that differ from the record of their edit.
    """
    recorded = (store.folder is not None and (store.path / RECORD).exists()) and read_record(store.path)["tensors"]
    problems: list[str] = []
    for name, info in store.tensors.items():
        expected = recorded.get(name, "") if recorded else ""
        digest, nan, infinite = Fingerprint(info, expected), 0, 0
        for stored in store.chunks(name):
            digest.update(stored)
            if info.dtype in FLOATS:
                numbers = decode(stored, info.dtype)
                finite = np.isfinite(numbers)
                if not finite.all():
                    nan += int(np.isnan(numbers).sum())
                    infinite += int((~finite).sum()) - int(np.isnan(numbers).sum())
            if tell:
                tell(stored.nbytes)
        if nan or infinite:
            problems.append(f"{name} in {info.file}: {nan} NaN, {infinite} infinite of {info.numel}")
        if recorded and not digest.matches(expected):
            problems.append(f"{name} in {info.file}: not the bits that the edit wrote")
    if recorded:
        problems += [f"{name}: the edit wrote it, and it is gone" for name in sorted(recorded.keys() - store.tensors.keys())]
    return {
        "path": str(store.path), "tensors": len(store.tensors), "bytes": store.nbytes, "tied": store.tied, "recorded": bool(recorded),
        "problems": problems,
    }  # fmt: skip


def verify_pack(pack: SkillPack, *, tell: Tell | None = None) -> dict[str, Any]:
    """Read a pack whole and decode every tensor; returns what `verify` does. Problems: altered bytes, tensors that do not decode."""
    problems = [] if pack.measured_content() == pack.content else [f"{pack.path}: not the bytes that were packed"]
    for name in pack.names:
        try:
            if not np.isfinite(pack.decode(name)).all():
                problems.append(f"{name}: decodes to NaN or infinite values")
        except TutelageError as error:
            problems.append(f"{name}: {error}")
        if tell:
            tell(pack.stored.tensors[name].nbytes)
    return {
        "path": str(pack.path), "tensors": len(pack.names), "bytes": pack.file_bytes, "tied": {}, "recorded": True, "problems": problems,
    }  # fmt: skip
