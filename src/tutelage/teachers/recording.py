"""Recording what a teacher says: the top k of every trained token of a data set, once, on disk, for as many students as like.

    big = teacher("local", model="Qwen/Qwen2.5-7B-Instruct", top_k=64)
    record(big, dataset, "told/", max_length=1024)                      # goes on where it stopped, if it was stopped
    saved = teacher("cached", path="told/")                             # in another process, without the big model

A folder with `manifest.json`, written first: who taught whom, how, and which shards there are to be; and `shard-00000/` and so on, each of
which appears whole or not at all. A position takes K · (2 or 4 + 2) bytes: ids as 16-bit integers for vocabularies up to 65,536 entries,
else 32-bit, and log-probabilities in half precision (an error below 0.004 down to −8 nats), or single.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.files import atomic_dir, atomic_write
from tutelage.teachers._rows import Row, Rows
from tutelage.teachers.contract import Facts

FORMAT, VERSION = "tutelage teacher record", 1
MANIFEST = "manifest.json"
POSITIONS_PER_SHARD = 2**18
Precision = Literal["float16", "float32"]


def record(
    teacher: Any,
    dataset: Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    max_length: int | None = 1024,
    precision: Precision = "float16",
    tokens_per_shard: int = POSITIONS_PER_SHARD,
    tell: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write a teacher's top k of every trained token of a data set; return the manifest.

    Args:
        teacher: a scorer of a top k, with `tokenizer` and `fingerprint`, as `teacher("local", top_k=...)` is.
        dataset: see `tutelage.teachers._rows.Rows`: tokenised rows, or prompts and completions. Rows that repeat are recorded once.
        out: a folder. One that holds the same record in part is completed; another record is never overwritten.
        max_length: tokens of a row, the rest is cut off; SFTConfig's default is 1024.
        tell: called with the number of positions finished, after every batch.

    Raises:
        TutelageError: a dense teacher, a data set without trained tokens, another record in `out`.
    """
    rows, folder = Rows(dataset, teacher.tokenizer, max_length), Path(out)
    manifest = plan(teacher, rows, precision=precision, tokens_per_shard=tokens_per_shard)
    _take_up(folder, manifest)
    storage = manifest["storage"]
    for shard, members in zip(manifest["shards"], _shards(_unique(rows), tokens_per_shard), strict=True):
        if (folder / shard["name"]).exists():
            if tell:
                tell(shard["positions"])
            continue
        ids, logp = _scored(teacher, members, tell)
        start = np.cumsum([0, *(len(row.places) for row in members)])
        with atomic_dir(folder / shard["name"]) as made:
            np.save(made / "keys.npy", np.frombuffer(b"".join(row.key for row in members), "<u8").reshape(-1, 2))
            np.save(made / "start.npy", start.astype(np.int64))
            np.save(made / "ids.npy", ids.astype(storage["ids"]))
            np.save(made / "logp.npy", logp.astype(storage["logp"]))
    return manifest


def plan(teacher: Any, rows: Rows, *, precision: Precision, tokens_per_shard: int) -> dict[str, Any]:
    """The manifest of a record, before anything is scored."""
    facts: Facts = teacher.facts
    if facts.top_k is None:
        raise TutelageError(
            f"A whole distribution of {facts.vocabulary:,} entries per token is too much to keep. Build the teacher with top_k=64, say."
        )
    digest = hashlib.blake2b(digest_size=16)
    shards: list[dict[str, Any]] = []
    for n, members in enumerate(_shards(_unique(rows), tokens_per_shard)):
        for row in members:
            digest.update(row.key)
        shards.append({"name": f"shard-{n:05d}", "rows": len(members), "positions": sum(len(row.places) for row in members)})
    if not shards:
        raise TutelageError(
            "The data set has no row with a trained token: nothing to record. Likely cause: max_length cuts all completions off."
        )
    total = {key: sum(shard[key] for shard in shards) for key in ("rows", "positions")}
    return {
        "format": FORMAT,
        "version": VERSION,
        "teacher": {"name": getattr(teacher, "name", type(teacher).__name__), "fingerprint": teacher.fingerprint},
        "tokenizer": facts.tokenizer,
        "chat_template": facts.chat_template,
        "vocabulary": facts.vocabulary,
        "top_k": facts.top_k,
        "temperature": facts.temperature,
        "missing_mass": facts.missing_mass,
        "data": {**total, "fingerprint": digest.hexdigest()},
        "storage": {"ids": "uint16" if facts.vocabulary <= 2**16 else "int32", "logp": precision},
        "shards": shards,
    }


def size_of(manifest: Mapping[str, Any]) -> int:
    """Bytes that the record takes on disk, but for a few hundred of file headers."""
    entry = sum(np.dtype(manifest["storage"][name]).itemsize for name in ("ids", "logp"))
    return manifest["data"]["positions"] * manifest["top_k"] * entry + manifest["data"]["rows"] * 24


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two manifests, in words; shards follow from the rest."""
    found = []
    for key in one:
        if isinstance(one[key], Mapping) and isinstance(other.get(key), Mapping):
            found += differences(one[key], other[key], f"{prefix}{key}.")
        elif one[key] != other.get(key) and key not in ("shards", "name"):
            found.append(f"{prefix}{key} was {other.get(key)!r} and is {one[key]!r}")
    return found


def _take_up(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, or find that the folder holds the same record."""
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise TutelageError(
                f"{folder} holds files and no {MANIFEST}: it is no record of a teacher. Give a folder that does not exist yet."
            )
        atomic_write(path, json.dumps(manifest, indent=1))
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if found := differences(manifest, kept):
        raise TutelageError(
            f"{folder} holds another record: {'; '.join(found)}. It is left as it is. Give another folder for this one, or the same "
            "teacher, data and settings to complete that one."
        )
    if kept["shards"] != manifest["shards"]:
        raise TutelageError(f"{folder} holds the same record in shards of another size; go on with the tokens_per_shard it was begun with.")


def _unique(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[bytes] = set()
    for row in rows:
        if (key := row.key) not in seen:
            seen.add(key)
            yield row


def _shards(rows: Iterable[Row], positions: int) -> Iterator[list[Row]]:
    """Consecutive rows, until their trained tokens are at least `positions`."""
    members: list[Row] = []
    total = 0
    for row in rows:
        members.append(row)
        total += len(row.places)
        if total >= positions:
            yield members
            members, total = [], 0
    if members:
        yield members


def _scored(teacher: Any, rows: list[Row], tell: Callable[[int], None] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """The teacher's top k of the rows' trained tokens, one row after the other, (positions, K); batches hold rows of similar length."""
    import torch

    start = np.cumsum([0, *(len(row.places) for row in rows)])
    ids = np.empty((start[-1], teacher.facts.top_k), np.int64)
    logp = np.empty(ids.shape, np.float32)
    for batch in _batches([len(row.ids) for row in rows], getattr(teacher, "tokens_at_once", 8192)):
        shape = (len(batch), max(len(rows[n].ids) for n in batch))
        block = {"ids": np.zeros(shape, np.int64), "attention": np.zeros(shape, np.int64), "places": np.full(shape, -1, np.int64)}
        for b, n in enumerate(batch):
            block["ids"][b, : len(rows[n].ids)] = rows[n].ids
            block["attention"][b, : len(rows[n].ids)] = 1
            block["places"][b, : len(rows[n].places)] = rows[n].places
        tensors = {name: torch.from_numpy(array) for name, array in block.items()}
        signal = teacher.score(tensors["ids"], attention_BL=tensors["attention"], places_BT=tensors["places"])
        for b, n in enumerate(batch):
            part, count = slice(start[n], start[n + 1]), len(rows[n].places)
            ids[part] = signal.top_ids_BTK[b, :count].cpu().numpy()
            logp[part] = signal.top_logp_BTK[b, :count].float().cpu().numpy()
        if tell:
            tell(sum(len(rows[n].places) for n in batch))
    return ids, logp


def _batches(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Numbers of rows, the shortest first, in batches that fit into `tokens` with their padding."""
    batch: list[int] = []
    for n in np.argsort(lengths, kind="stable").tolist():
        if batch and lengths[n] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(n)
    yield batch
