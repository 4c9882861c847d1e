"""Reading a rollout log in chunks: memory is bounded by a chunk, whatever the size of the log."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.errors import Tally, TutelageError, Warned, missing_extra
from tutelage.rollouts.columns import Chunk, check_names, is_known, make_chunk

JSONL = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
CHUNK_BYTES = 8 << 20
"""Bytes of JSON after which a chunk is full: rows may be long."""
CUT_OFF = "last lines that were cut off and left out (a run was killed, or still writes)"


class RolloutReader:
    """The rows of a log in order, in chunks; each iteration reads from the start.

    path: a JSON Lines or Parquet file (by its suffix), or a folder of such files, which are read in the order of the numbers in their
    names. rows: the most rows of a chunk.

    Not fatal, but counted in `warnings` (complete once the iteration is): a last line that was cut off, which is left out; bytes that are
    not UTF-8, replaced by U+FFFD; rewards that are null, NaN or infinite, read as NaN; rows with other optional columns than the first;
    unknown columns; steps that go back; a log in which no two attempts belong together.

    Raises:
        TutelageError: no such file, another format, no rows, a row without a required column or with a value that cannot be meant; the
            message names the file and the line or row.
    """

    def __init__(self, path: str | os.PathLike[str], *, rows: int = 4096) -> None:
        if rows < 1:
            raise TutelageError(f"rows={rows}; a chunk has at least one row.")
        self.path, self.rows = Path(path), rows
        self.files = log_files(self.path, (*JSONL, *PARQUET))
        self._tally = Tally()
        self._told: set[str] = set()

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What was met so far in the latest iteration."""
        return self._tally.warnings

    def __iter__(self) -> Iterator[Chunk]:
        self._tally, self._told = Tally(), set()
        last_step, last_key, grouped, total = -1, None, False, 0
        for chunk in self._chunks():
            back_B = chunk.step_B < [last_step, *chunk.step_B[:-1]]
            if back_B.any():
                what = "steps that are lower than the one before (a run that was resumed repeats some)"
                self._tally.add(what, chunk.where(int(back_B.argmax())), int(back_B.sum()))
            keys = list(zip(chunk.step_B.tolist(), chunk.group_B, strict=True))
            grouped = grouped or last_key == keys[0] or len(set(keys)) < len(keys)
            last_step, last_key, total = int(chunk.step_B[-1]), keys[-1], total + len(chunk)
            yield chunk
        if not total:
            raise TutelageError(f"{self.path} holds no rollouts: it is empty. Check how it was written; a run logs from its first step on.")
        if not grouped:
            self._tally.add("no two attempts belong together (same step, same group or prompt): nothing can be said of groups", count=total)

    def _chunks(self) -> Iterator[Chunk]:
        for file in self.files:
            yield from (self._parquet(file) if file.suffix.lower() in PARQUET else self._jsonl(file))

    def _jsonl(self, path: Path) -> Iterator[Chunk]:
        known: list[str] = []
        keys: Any = None
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        size = 0
        for number, length, row in json_lines(path, self._tally):
            if keys is None:
                check_names(row, f"{path}, line {number}", self._tally, self._told)
                known = [name for name in row if is_known(name)]
            elif row.keys() != keys:
                known = self._other_row(row, known, f"{path}, line {number}")
            keys = row.keys()
            rows.append(row)
            lines.append(number)
            size += length
            if len(rows) == self.rows or size >= CHUNK_BYTES:
                yield make_chunk({name: [row.get(name) for row in rows] for name in known}, lines, str(path), "line", self._tally)
                rows, lines, size = [], [], 0
        if rows:
            yield make_chunk({name: [row.get(name) for row in rows] for name in known}, lines, str(path), "line", self._tally)

    def _other_row(self, row: dict[str, Any], known: list[str], where: str) -> list[str]:
        """Count a row whose columns differ from those of the row before; the known columns with its own."""
        check_names(row, where, self._tally, self._told)
        self._tally.add("rows whose columns differ from those of the row before; absent values are read as null", where)
        return known + [name for name in row if is_known(name) and name not in known]

    def _parquet(self, path: Path) -> Iterator[Chunk]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("pyarrow", "lm") from None
        first = 1
        try:
            with path.open("rb") as file:
                table = pyarrow.parquet.ParquetFile(file)
                check_names(table.schema_arrow.names, str(path), self._tally, self._told)
                known = [name for name in table.schema_arrow.names if is_known(name)]
                for batch in table.iter_batches(batch_size=self.rows, columns=known):
                    if len(batch):
                        columns = self._columns(batch, f"{path}, from row {first}")
                        yield make_chunk(columns, range(first, first + len(batch)), str(path), "row", self._tally)
                    first += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            cause = str(error).strip().split("\n", 1)[0]
            raise TutelageError(f"{path} cannot be read as Parquet: {cause}. It may be cut off, or of another format.") from None

    def _columns(self, batch: Any, where: str) -> dict[str, list[Any]]:
        """The columns of a batch as lists; text that is not UTF-8, which Parquet does not forbid, is counted and mended."""
        try:
            return batch.to_pydict()
        except UnicodeDecodeError:
            import pyarrow

        found: dict[str, list[Any]] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                found[name] = column.to_pylist()
            except UnicodeDecodeError:
                if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
                    raise TutelageError(f"{where}: the column {name!r} holds text that is not UTF-8. Write it anew as UTF-8.") from None
                raw = column.cast(pyarrow.large_binary()).to_pylist()
                found[name] = [None if text is None else text.decode("utf-8", errors="replace") for text in raw]
                bad = sum("\ufffd" in text for text in found[name] if text)
                self._tally.add("values that are not UTF-8; each bad byte is read as U+FFFD", where, bad)
        return found


def json_lines(path: Path, tally: Tally) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Number, size in bytes and object of each line of a file that is not blank.

    Counted in `tally`: lines that are not UTF-8, and a last line that was cut off, which is left out.

    Raises:
        TutelageError: a line that is no JSON object.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                if not raw.endswith(b"\n") and _broken(raw):
                    tally.add(CUT_OFF, where)
                    return
                tally.add("lines that are not UTF-8; each bad byte is read as U+FFFD", where)
                text = raw.decode("utf-8", errors="replace")
            if text.isspace() or not text:
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                if not raw.endswith(b"\n"):
                    tally.add(CUT_OFF, where)
                    return
                raise _not_json(path, number, text, error) from None
            if not isinstance(row, dict):
                raise TutelageError(f"{where} holds {type(row).__name__} {text[:40]!r}; expected one JSON object per line.")
            yield number, len(raw), row


def log_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or the files of a folder with one of `suffixes`, in the order of the numbers in their names."""
    if not path.exists():
        raise TutelageError(f"There is no {path}. Expected a file, or a folder of files, with the suffix {', '.join(suffixes)}.")
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and file.suffix.lower() in suffixes and not file.name.startswith(".")]
        if not files:
            raise TutelageError(f"The folder {path} holds no file with the suffix {', '.join(suffixes)}. Name the log, or its folder.")
        return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)])
    if path.suffix.lower() not in suffixes:
        raise TutelageError(
            f"{path} has the suffix {path.suffix!r}, which says nothing of its format. Known: {', '.join(suffixes)}; convert or rename it."
        )
    return [path]


def _broken(raw: bytes) -> bool:
    """Whether a last line is no JSON even with its bad bytes replaced."""
    try:
        json.loads(raw.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False


def _not_json(path: Path, number: int, text: str, error: Exception) -> TutelageError:
    start = text.lstrip()[:1]
    cause = "The file looks like one JSON array; write one object per line instead." if start == "[" else "Mend or drop the line."
    if start == "{" and text.strip() == "{":
        cause = "The file looks like indented JSON; write each object on one line."
    said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return TutelageError(f"{path}, line {number} is not valid JSON: {said}. {cause}")
