"""Following a rollout log while a run writes it: each call reads what is new, and nothing twice."""

from __future__ import annotations

import json
import os
from collections.abc import KeysView
from pathlib import Path
from typing import Any

from tutelage.errors import Tally, TutelageError, Warned
from tutelage.rollouts.columns import Chunk, check_names, is_known, make_chunk


class RolloutTail:
    """The rows that were appended to a JSON Lines log since the last call.

    A file that is not there yet has no rows. A last line without its end is left for the next call. Warnings are counted as by
    `RolloutReader`; a file that became shorter was replaced, which raises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".jsonl", ".ndjson"):
            raise TutelageError(f"{self.path}: only a log in JSON Lines can be followed while it is written; give it the suffix .jsonl.")
        self._offset = self._lines = 0
        self._tally = Tally()
        self._told: set[str] = set()
        self._names: KeysView[str] | None = None

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What was met so far."""
        return self._tally.warnings

    def read(self, most: int = 8 << 20) -> Chunk | None:
        """The new rows of up to `most` bytes, more where a single line is longer; None where there are none."""
        data = self._new_bytes(most)
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        for raw in data.splitlines():
            self._lines += 1
            if raw.strip():
                rows.append(self._object(raw))
                lines.append(self._lines)
        if not rows:
            return None
        names = list(dict.fromkeys(name for row in rows for name in row if is_known(name)))
        return make_chunk({name: [row.get(name) for row in rows] for name in names}, lines, str(self.path), "line", self._tally)

    def _new_bytes(self, most: int) -> bytes:
        """Whole lines from where the last call ended."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    raise TutelageError(f"{self.path} became shorter while it was followed: it was replaced. Give each run its own log.")
                file.seek(self._offset)
                data = file.read(most)
                if data and b"\n" not in data:
                    data += file.readline()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TutelageError(f"Cannot read {self.path}: {error.strerror or error}.") from None
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return data

    def _object(self, raw: bytes) -> dict[str, Any]:
        where = f"{self.path}, line {self._lines}"
        try:
            row = json.loads(raw.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            raise TutelageError(f"{where} is not valid JSON: {error}. Mend or drop the line.") from None
        if not isinstance(row, dict):
            raise TutelageError(f"{where} holds {type(row).__name__}; expected one JSON object per line.")
        if row.keys() != self._names:
            check_names(row, where, self._tally, self._told)
            self._names = row.keys()
        return row
