"""Writing a rollout log: JSON Lines, one object per attempt, appended, so that a run that is killed loses half a line at most."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tutelage.errors import TutelageError
from tutelage.files import open_lines
from tutelage.rollouts.columns import REQUIRED, is_known


class RolloutWriter:
    """Appends attempts to a JSON Lines file. The file is made with the first row; a half line at its end, of a killed run, is cut off.

    A run that was resumed from a checkpoint appends its steps anew: the log then shows some of them twice, and the reader says so.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".jsonl", ".ndjson"):
            raise TutelageError(f"{self.path}: a rollout log is written as JSON Lines; give it the suffix .jsonl.")
        self._file: BinaryIO | None = None

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows, and hand them to the system before returning. Columns as in `tutelage.rollouts`; a wrong one raises."""
        data = b"".join(map(encoded, rows))
        try:
            if self._file is None:
                self._file, _ = open_lines(self.path)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise TutelageError(f"Cannot write {self.path}: {error.strerror or error}. The rows before are kept.") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RolloutWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def encoded(row: Mapping[str, Any]) -> bytes:
    """One line of a log. Numbers that are not finite become null, lone surrogates U+FFFD."""
    missing = [name for name in REQUIRED if name not in row]
    strange = [name for name in row if not is_known(name)]
    if missing or strange:
        raise TutelageError(
            f"A row of a rollout log needs {', '.join(REQUIRED)}; this one "
            + " and ".join(f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has the unknown", strange)) if names)
            + ". Terms of the reward are called reward/<name>."
        )
    return json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple) and value and isinstance(value[0], float):
        return [_plain(part) for part in value]
    return value


def write_all(rows: Iterable[Mapping[str, Any]], file: Any) -> int:
    """Write rows to an open binary file; how many there were."""
    count = 0
    for row in rows:
        file.write(encoded(row))
        count += 1
    return count
