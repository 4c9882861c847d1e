"""Taking task vectors off again: the base, to the bit, or a refusal."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.edits._copy import Chunks, write_like
from tutelage.edits._dtypes import Array, decode, encode
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits._spread import Tell
from tutelage.edits.apply import SIDECAR, corrected, read_record, step_of, sum_of
from tutelage.edits.plan import Plan, peak_memory
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector
from tutelage.errors import TutelageError
from tutelage.files import atomic_dir


def remove(
    edited: WeightStore, vectors: list[TaskVector], out: Path, *, base: Path | None = None, tell: Tell | None = None
) -> dict[str, Any]:
    """Write to the directory `out` the base from which `apply` made `edited`, equal in every bit of every tensor, or raise.

    The base comes from `base`, or from where the record says it lay, if every tensor there has the recorded fingerprint; otherwise it is
    rebuilt from `edited`, the vectors and the sidecar. With neither, nothing is written: subtraction alone does not give the bits back.
    Returns {"source": "base" | "sidecar", "path": ..., "tensors": their number}.
    """
    record = read_record(edited.path)
    store = _source(edited, vectors, record, base)
    if store is not None:
        with atomic_dir(out) as folder:
            write_like(store, folder, _Checked(store, record).produce, tell=tell)
        return {"source": "base", "path": str(store.path), "tensors": len(store.tensors)}
    sidecar = edited.path / SIDECAR
    try:
        with zipfile.ZipFile(sidecar) as archive, atomic_dir(out) as folder:
            write_like(edited, folder, _Rebuilt(edited, vectors, record, archive).produce, tell=tell)
    except (zipfile.BadZipFile, KeyError) as error:
        raise TutelageError(f"{sidecar} is damaged ({error}); the base cannot be rebuilt from it. Give the base with --base.") from None
    return {"source": "sidecar", "path": str(sidecar), "tensors": len(edited.tensors)}


def plan_remove(edited: WeightStore, vectors: list[TaskVector], *, base: Path | None = None) -> Plan:
    """What `remove` will do; reads the base to see whether it is the recorded one. Raises where `remove` would refuse."""
    record = read_record(edited.path)
    store = _source(edited, vectors, record, base)
    source = store or edited
    touched = list(record["touched"]) if store is None else []
    more = 0 if store is not None else (edited.path / SIDECAR).stat().st_size + sum(v.stored.nbytes for v in vectors)
    whole = bool(touched) and any(v.WHOLE for v in vectors)
    return Plan(
        touched, len(source.tensors) - len(touched), source.nbytes + more, source.nbytes,
        peak_memory(source.tensors.values(), 1 + len(vectors), whole=whole), source.others()[1],
    )  # fmt: skip


def _source(edited: WeightStore, vectors: list[TaskVector], record: dict[str, Any], base: Path | None) -> WeightStore | None:
    """The base, if it is still there; None where the sidecar does; a refusal where there is neither."""
    if "touched" not in record:
        raise TutelageError(f"{edited.path} was made by `{record['edit']}`, which has no one base to go back to.")
    _check_vectors(record, vectors)
    store, reason = _base_at(base if base is not None else Path(record["base"]["path"]), record)
    if store is None and (base is not None or not (edited.path / SIDECAR).exists()):
        also = "" if base is not None else f", and there is no {SIDECAR} in {edited.path}"
        raise TutelageError(
            f"The base cannot be had back: {reason}{also}. Give the very checkpoint that was edited with --base; to be free of it later, "
            "apply with --undo sidecar."
        )
    return store


def _check_vectors(record: dict[str, Any], vectors: list[TaskVector]) -> None:
    applied, given = [v["content"] for v in record["vectors"]], [v.content for v in vectors]
    if sorted(applied) != sorted(given):
        paths = ", ".join(v["path"] for v in record["vectors"])
        raise TutelageError(f"This checkpoint was made with {len(applied)} vectors, and those given are others. Give these: {paths}.")


def _base_at(place: Path, record: dict[str, Any]) -> tuple[WeightStore | None, str]:
    """The checkpoint at `place` if it holds what the record says, or why not. Fingerprints of the bits are checked while copying."""
    try:
        store = WeightStore(place)
    except TutelageError as error:
        return None, str(error).rstrip(".")
    expected = record["base"]["tensors"]
    differ = [n for n in sorted(expected.keys() | store.tensors.keys()) if n not in store.tensors or n not in expected]
    differ = differ or [n for n in store.tensors if not store.matches(n, expected[n])]
    if differ:
        some = ", ".join(differ[:5]) + (", ..." if len(differ) > 5 else "")
        return None, f"{place} is no longer the base, {len(differ)} tensors differ ({some})"
    return store, ""


class _Checked:
    """The chunks of a store whose tensors must have the recorded fingerprints of the base."""

    def __init__(self, store: WeightStore, record: dict[str, Any]) -> None:
        self.store, self.record = store, record

    def produce(self, info: TensorInfo) -> Chunks:
        expected = self.record["base"]["tensors"].get(info.name, "")
        digest = Fingerprint(info, expected)
        for stored in self._chunks(info):
            digest.update(stored)
            yield stored
        if not digest.matches(expected):
            raise TutelageError(f"The tensor {info.name} did not come back as it was: {self.store.path} has changed since the edit.")

    def _chunks(self, info: TensorInfo) -> Iterator[Array]:
        return self.store.chunks(info.name)


class _Rebuilt(_Checked):
    """The chunks of the base from those of the edited checkpoint, the vectors and the sidecar."""

    def __init__(self, store: WeightStore, vectors: list[TaskVector], record: dict[str, Any], archive: zipfile.ZipFile) -> None:
        super().__init__(store, record)
        by_content = {v.content: v for v in vectors}
        self.vectors = [by_content[v["content"]] for v in record["vectors"]]  # in the order in which they were added
        self.archive, self.touched = archive, set(record["touched"])

    def _chunks(self, info: TensorInfo) -> Iterator[Array]:
        if info.name not in self.touched:
            yield from self.store.chunks(info.name)
            return
        with self.archive.open(info.name) as corrections:
            source = self._source(info.name)
            chunk = self.record["chunk"]  # the byte planes are those of a chunk
            if not self.vectors:  # a rewrite: the sidecar has all that differs
                for stored in self.store.chunks(info.name, chunk):
                    yield corrected(stored, corrections.read(stored.nbytes))
                return
            for stored, delta in zip(self.store.chunks(info.name, chunk), sum_of(self.vectors, source, chunk), strict=True):
                guess = encode(decode(stored, info.dtype) - step_of(delta, self.record["scale"], info.dtype), info.dtype)
                yield corrected(guess, corrections.read(guess.nbytes))

    def _source(self, name: str) -> str:
        return self.store.tied.get(name, name)
