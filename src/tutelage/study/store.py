"""The folder of a comparison: one configuration, finished cells that are never run twice, and nobody else's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.files import atomic_write


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def occupy(out: Path, shared: dict[str, Any], config: dict[str, Any]) -> None:
    """Make `out` the folder of the comparison whose cells agree on `shared`: refuse another's or anybody's files; write config.json."""
    path = out / "config.json"
    if path.exists():
        theirs = json.loads(path.read_text()).get("shared", {})
        if theirs != shared:
            changed = [
                f"{k}: there {theirs.get(k)!r}, now {shared.get(k)!r}"
                for k in sorted(shared.keys() | theirs.keys())
                if theirs.get(k) != shared.get(k)
            ]
            raise TutelageError(
                f"{out} holds a comparison of another configuration ({'; '.join(changed[:4])}). Give another --out, or "
                "repeat the command with the settings it was made with; nothing was changed."
            )
    elif out.exists() and any(out.iterdir()):
        raise TutelageError(f"{out} is not empty and holds no comparison. Give another --out; nothing was changed.")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({"shared": shared, **config}, indent=1, default=str))


def finished_cell(path: Path, identity: str, what: str) -> dict[str, Any] | None:
    """The record that an earlier command left at `path`, or None; one of another configuration is an error. what: the arm's name."""
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise TutelageError(f"The finished cell {path} is not readable as JSON. Delete it to run that cell again.") from None
    if record.get("identity") != identity:
        raise TutelageError(
            f"{path} was made with another configuration of the arm {what!r} or another budget. "
            "Give another --out, or remove that directory; nothing was changed."
        )
    return record
