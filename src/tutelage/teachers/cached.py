"""A teacher that was recorded: its top k of every trained token of a data set, read from disk by memory map.

    saved = teacher("cached", path="told/")
    trainer = with_curriculum(trl.SFTTrainer)(..., teacher=saved, objective=objective("distill_top_k"))

Rows are found by their tokens, whatever the order; a text that was not recorded is an error, never a guess. See `recording.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.registry import teachers
from tutelage.teachers._rows import Row, row_of
from tutelage.teachers.contract import Facts
from tutelage.teachers.recording import FORMAT, MANIFEST, VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.teachers.signal import Signal


@teachers.register("cached")
class CachedTeacher:
    """A recorded teacher: what `tutelage teach` wrote, read by memory map; it knows the recorded texts alone.

    Args:
        path: the folder of the record.
        top_k: how many of the recorded entries to use; None for all.
        missing_mass: what is assumed of all other entries; None for what the record says.
        fingerprint: of the teacher that is expected, as the manifest has it under teacher.fingerprint; None takes any.

    Raises:
        TutelageError: no record, one of another version, one not finished, damaged shards, more entries than there are, another teacher.
    """

    def __init__(self, *, path: str, top_k: int | None = None, missing_mass: str | None = None, fingerprint: str | None = None) -> None:
        self.path = Path(path)
        self.manifest = _manifest(self.path)
        kept = self.manifest["top_k"]
        if top_k is not None and not 0 < top_k <= kept:
            raise TutelageError(
                f"{path} holds the top {kept} of every position and {top_k} were asked for; record the teacher anew with more."
            )
        own = self.manifest["teacher"]
        if fingerprint is not None and own["fingerprint"] != fingerprint:
            raise TutelageError(
                f"{path} was recorded of another teacher: {own['name']}, whose weights have the fingerprint {own['fingerprint']}; expected "
                f"{fingerprint}. Record the teacher you want, or leave fingerprint out."
            )
        self.facts = Facts(
            tokenizer=self.manifest["tokenizer"],
            chat_template=self.manifest["chat_template"],
            vocabulary=self.manifest["vocabulary"],
            top_k=top_k or kept,
            temperature=self.manifest["temperature"],
            missing_mass=missing_mass or self.manifest["missing_mass"],
            recorded=True,
        )
        self.shards = [_opened(self.path / shard["name"], shard, self.manifest) for shard in self.manifest["shards"]]
        key_R2 = np.concatenate([shard["keys"] for shard in self.shards])
        self._order = np.argsort(key_R2[:, 0], kind="stable")
        self._key_R2 = key_R2[self._order]
        self._first_S = np.cumsum([0, *(len(shard["keys"]) for shard in self.shards)])

    def __repr__(self) -> str:
        return f"CachedTeacher({str(self.path)!r}, top_k={self.facts.top_k}, {self.manifest['data']['rows']:,} rows)"

    def score(self, ids_BL: Tensor, *, attention_BL: Tensor | None = None, places_BT: Tensor | None = None) -> Signal:
        """What was recorded at the places, see `tutelage.teachers.contract.Scorer`; the places must be all that were recorded."""
        import torch

        ids, attention = (
            ids_BL.cpu().numpy(),
            np.ones(ids_BL.shape, bool) if attention_BL is None else attention_BL.cpu().numpy().astype(bool),
        )
        places = np.where(attention, np.arange(ids.shape[1]), -1) if places_BT is None else places_BT.cpu().numpy()
        shape = (*places.shape, self.facts.top_k)
        top_ids, logp = np.zeros(shape, np.int64), np.full(shape, np.nan, np.float32)
        for b in range(len(ids)):
            asked_N = np.flatnonzero(places[b] >= 0)
            if not len(asked_N):
                continue
            asked_N = asked_N[np.argsort(places[b, asked_N], kind="stable")]
            moved = (np.cumsum(attention[b]) - 1)[places[b, asked_N]]  # as if there were no padding
            row = Row(ids[b, attention[b]].astype(np.int32), moved.astype(np.int32))
            top_ids[b, asked_N], logp[b, asked_N] = self._recorded(row)
        return self.facts.signal(torch.from_numpy(logp).to(ids_BL.device), torch.from_numpy(top_ids).to(ids_BL.device))

    def check_texts(self, texts: Iterable[tuple[int, Any, Any]]) -> None:
        """Raise `TutelageError` unless all texts were recorded; texts: (number of the row, token ids, labels)."""
        rows = [(number, row_of(ids, labels)) for number, ids, labels in texts]
        missing = [number for number, row in rows if len(row.places) and self._find(row.key) is None]
        if missing:
            raise TutelageError(
                f"{self.path} was recorded on other data: {len(missing)} of {len(rows)} rows looked at are not in it, the first is row "
                f"{missing[0]}. {CAUSES}"
            )

    def _recorded(self, row: Row) -> tuple[NDArray[Any], NDArray[Any]]:
        number = self._find(row.key)
        if number is None:
            raise TutelageError(f"A text of {len(row.ids)} tokens, {len(row.places)} of them trained, is not in {self.path}. {CAUSES}")
        s = int(np.searchsorted(self._first_S, number, side="right")) - 1
        shard, r = self.shards[s], number - int(self._first_S[s])
        part = slice(int(shard["start"][r]), int(shard["start"][r + 1]))
        k = self.facts.top_k
        return shard["ids"][part, :k].astype(np.int64), shard["logp"][part, :k].astype(np.float32)

    def _find(self, key: bytes) -> int | None:
        first, second = np.frombuffer(key, "<u8")
        at = int(np.searchsorted(self._key_R2[:, 0], first))
        found = at < len(self._key_R2) and self._key_R2[at, 0] == first and self._key_R2[at, 1] == second
        return int(self._order[at]) if found else None


CAUSES = (
    "Likely cause: another pool or split than was recorded, other completions, another max_length, chat template or set of trained tokens. "
    "Record the teacher on the very data that is trained on: tutelage.teachers.recording.record(teacher, trainer.train_dataset, ...)."
)


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        held = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing" if path.is_dir() else "it does not exist"
        raise TutelageError(
            f"{path} is no record of a teacher: it has no {MANIFEST} ({held}). Make one with tutelage teach MODEL -o {path}."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TutelageError(f"{file} cannot be read: {error}. Record the teacher anew.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise TutelageError(f"{file} is not the manifest of a teacher's record; expected the format {FORMAT!r}.")
    if manifest["version"] != VERSION:
        raise TutelageError(
            f"{path} is a record of version {manifest['version']}, and this release reads version {VERSION}. Record the teacher anew, or "
            "install the release that wrote it."
        )
    names = [shard["name"] for shard in manifest["shards"]]
    missing = [name for name in names if not (path / name).is_dir()]
    if missing:
        raise TutelageError(
            f"{path} is not finished: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}. Give the same command "
            "or call once more; finished shards are kept."
        )
    return manifest


def _opened(folder: Path, shard: dict[str, Any], manifest: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """A shard's arrays, those of its positions by memory map."""
    rows, positions, storage = shard["rows"], shard["positions"], manifest["storage"]
    expected = {"keys": ((rows, 2), "<u8"), "start": ((rows + 1,), "<i8")}
    expected |= {name: ((positions, manifest["top_k"]), storage[name]) for name in ("ids", "logp")}
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(file, mmap_mode="r" if name in ("ids", "logp") else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise TutelageError(f"{file} is damaged: {error}. Remove the folder {folder} and record once more: {REPAIR}") from None
        if arrays[name].shape != shape or arrays[name].dtype != np.dtype(dtype):
            raise TutelageError(
                f"{file} holds {arrays[name].dtype} of shape {arrays[name].shape}; the manifest promises {np.dtype(dtype)}, {shape}. "
                f"Remove the folder {folder} and record once more: {REPAIR}"
            )
    return arrays


REPAIR = "the other shards are kept."
