"""Writing a rollout log, appending, so that a run that is killed loses half a line at most: JSON Lines, or a folder of Parquet parts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tutelage.errors import TutelageError, missing_extra
from tutelage.files import atomic_open, open_lines
from tutelage.rollouts.columns import REQUIRED, is_known

PART = "part-{:05d}.parquet"


class RolloutWriter:
    """Appends attempts to a log. Nothing is made before the first row.

    path: a JSON Lines file (.jsonl), of which a half line at its end, of a killed run, is cut off; or a folder with the suffix .parquet,
    which gets a part for each call of `write`, whole or not at all (pandas, datasets and this library read such folders as one table).

    A run that was resumed from a checkpoint appends its steps anew: the log then shows some of them twice, and the reader says so.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".jsonl", ".ndjson", ".parquet"):
            raise TutelageError(f"{self.path}: a rollout log is written as JSON Lines or Parquet; give it the suffix .jsonl or .parquet.")
        self._parts = self.path.suffix.lower() == ".parquet"
        if self._parts:
            _pyarrow()
            if self.path.is_file():
                raise TutelageError(f"{self.path} is a file; a log in Parquet is a folder of parts, to which a run appends. Name another.")
        self._file: BinaryIO | None = None
        self._next: int | None = None

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows, and hand them to the system before returning. Columns as in `tutelage.rollouts`; a wrong one raises."""
        if self._parts:
            if rows:
                self.path.mkdir(parents=True, exist_ok=True)
                write_part(self.path / PART.format(self._number()), rows)
            return
        data = b"".join(map(encoded, rows))
        try:
            if self._file is None:
                self._file, _ = open_lines(self.path)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise TutelageError(f"Cannot write {self.path}: {error.strerror or error}. The rows before are kept.") from error

    def _number(self) -> int:
        """The number of the next part."""
        if self._next is None:
            there = [int(part.stem[5:]) for part in self.path.glob("part-*.parquet") if part.stem[5:].isdigit()]
            self._next = max(there, default=-1)
        self._next += 1
        return self._next

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


def write_part(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file, whole or not at all, with the values that JSON Lines would hold."""
    pyarrow, parquet = _pyarrow()
    read = [json.loads(encoded(row)) for row in rows]
    names = list(dict.fromkeys(name for row in read for name in row))
    table = pyarrow.table({name: [row.get(name) for row in read] for name in names})
    with atomic_open(path) as file:
        parquet.write_table(table, file)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "lm") from None
    return pyarrow, pyarrow.parquet


def write_all(rows: Iterable[Mapping[str, Any]], file: Any) -> int:
    """Write rows to an open binary file; how many there were."""
    count = 0
    for row in rows:
        file.write(encoded(row))
        count += 1
    return count
