"""Checkpoints that are whole or not there.

A checkpoint is written into `.incomplete/`, beside the finished ones. When all processes have written their part, a manifest with the size
of every file, and the checksum of every file up to 64 MiB, is added; everything is synced to disk; and the folder is renamed to
`checkpoint-<step>`. A process killed at any moment leaves the finished checkpoints as they were. A checkpoint whose files do not agree
with its manifest is not whole: it was cut short while being copied, or something wrote into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError

MANIFEST = "tutelage.json"
STAGING = ".incomplete"
SCHEMA = 1
CHECKSUM_LIMIT = 64 * 2**20
_NAME = re.compile(r"checkpoint-(\d+)")


def complete_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The whole checkpoints of a run, by step, the newest last."""
    return [path for path in _candidates(folder) if flaw(path) is None]


def newest(folder: str | os.PathLike[str]) -> tuple[Path | None, dict[str, str]]:
    """The newest whole checkpoint of a run, and why newer ones were passed over, by name."""
    skipped: dict[str, str] = {}
    for path in reversed(_candidates(folder)):
        reason = flaw(path)
        if reason is None:
            return path, skipped
        skipped[path.name] = reason
    return None, skipped


def flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole and one can resume from it."""
    try:
        manifest = read_manifest(checkpoint)
    except TutelageError as error:
        return str(error)
    for name, (size, checksum) in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if checksum is not None and _checksum(path) != checksum:
            return f"its file {name} was changed after it was written"
    return None if manifest["resumable"] else "it holds the model alone, for it was written with save_only_model=True"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raises `TutelageError` if there is none to be read."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise TutelageError(f"it has no {MANIFEST}: it is not finished, or was not written by a trainer with a curriculum")
    try:
        manifest = json.loads(path.read_text())
        if manifest["schema"] == SCHEMA:
            return manifest
    except (ValueError, KeyError, TypeError):
        raise TutelageError(f"its {MANIFEST} cannot be read") from None
    raise TutelageError(f"it has the schema {manifest['schema']!r}, and this version of tutelage reads {SCHEMA}")


def clear_staging(run: Path) -> None:
    """Remove what a killed process left half written."""
    shutil.rmtree(run / STAGING, ignore_errors=True)


def publish(staged: Path, final: Path, facts: dict[str, Any]) -> None:
    """Seal a staged checkpoint with its manifest, sync it to disk and give it its name. facts: further entries of the manifest."""
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path.name != MANIFEST)
    sizes = {str(p.relative_to(staged)): (p.stat().st_size, _checksum(p) if p.stat().st_size <= CHECKSUM_LIMIT else None) for p in files}
    (staged / MANIFEST).write_text(json.dumps({"schema": SCHEMA, **facts, "files": sizes}, indent=1))
    for path in [*files, staged / MANIFEST, *(p for p in staged.rglob("*") if p.is_dir()), staged]:
        _sync(path)
    if final.exists():  # an older run's checkpoint of the same step; a folder cannot be exchanged in one move
        aside = staged.with_name(f"replaced-{final.name}")
        os.rename(final, aside)
    os.rename(staged, final)
    _sync(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def rotate(folder: Path, limit: int | None, keep: set[Path]) -> None:
    """Delete the whole checkpoints of the lowest steps until `limit` are left, but none of `keep`. Damaged ones are left for inspection."""
    if limit is None or limit <= 0:
        return
    kept = {path.resolve() for path in keep}
    whole = [path for path in _candidates(folder) if (path / MANIFEST).is_file()]
    surplus = len(whole) - max(limit, len(kept))
    for path in [p for p in whole if p.resolve() not in kept][: max(surplus, 0)]:
        (path / MANIFEST).unlink(missing_ok=True)  # from here on it is not whole, whenever the process ends
        shutil.rmtree(path, ignore_errors=True)


def _candidates(folder: str | os.PathLike[str]) -> list[Path]:
    named = [(int(m.group(1)), path) for path in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(named)]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # some systems do not open folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
