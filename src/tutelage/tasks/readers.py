"""Files to tables: JSONL, Parquet and Hugging Face dataset directories, read as columns or refused with the line that is wrong.

Nothing is repaired: a file that cannot be read as a whole raises `TutelageError` and is left as it is.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, missing_extra

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")


def load_columns(path: str | Path) -> Any:
    """The table in a file or directory: columns as a mapping, or a `datasets.Dataset` of a directory; the suffix decides.

    `.jsonl`, `.ndjson`, `.json` (one object per line), `.parquet`, `.pq`, or a directory that `Dataset.save_to_disk` has written.
    """
    path = _existing(path)
    if path.is_dir():
        return read_directory(path)
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return read_jsonl(path)
    if suffix in PARQUET_SUFFIXES:
        return read_parquet(path)
    known = ", ".join([*JSONL_SUFFIXES, *PARQUET_SUFFIXES])
    raise TutelageError(
        f"{path} has the suffix {suffix!r}, which says nothing of its format. Known: {known}, or a dataset directory; convert or rename it."
    )


def read_jsonl(path: str | Path) -> dict[str, list[Any]]:
    """The columns of a JSON Lines file: one object per line, UTF-8, every line with the same keys; blank lines are skipped.

    A line that is not UTF-8, not JSON, not an object, or has other columns than the first raises `TutelageError` with its number.
    """
    path = _existing(path)
    if path.is_dir():
        raise TutelageError(f"{path} is a directory; expected a JSONL file. Name a file in it, or load it as a dataset directory.")
    columns: dict[str, list[Any]] = {}
    first = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            row = _row(path, number, raw)
            if row is None:
                continue
            if not first:
                columns, first = {name: [] for name in row}, number
            elif row.keys() != columns.keys():
                raise _other_columns(f"{path}, line {number}", row, f"line {first}", columns)
            for name, value in row.items():
                columns[name].append(value)
    if not columns:
        raise TutelageError(f"{path} holds no tasks: it is empty. Expected one JSON object per line; check how the file was made.")
    return columns


def _row(path: Path, number: int, raw: bytes) -> dict[str, Any] | None:
    """One line as a mapping, or None for a blank one."""
    where = f"{path}, line {number}"
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise TutelageError(
            f"{where} is not UTF-8 (byte {raw[error.start]:#04x} at position {error.start + 1}). JSON is UTF-8 by standard; "
            f"convert the file, for instance: iconv -f latin1 -t utf-8 {path.name} > {path.stem}.utf8{path.suffix}"
        ) from None
    if not text:
        return None
    try:
        row = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise TutelageError(
            f"{where} is not valid JSON: {error.msg} at column {error.colno}, near {text[max(0, error.pos - 20) : error.pos + 20]!r}. "
            + _likely_cause(text, raw)
        ) from None
    except (ValueError, RecursionError) as error:
        raise TutelageError(f"{where} cannot be read: {error}. Expected one JSON object per line; mend or drop the line.") from None
    if not isinstance(row, dict) or not row:
        kind = "an empty object" if row == {} else f"{type(row).__name__} {text[:40]!r}"
        raise TutelageError(
            f'{where} holds {kind}; expected a JSON object such as {{"prompt": "1 + 1 =", "answer": "2"}}. ' + _likely_cause(text, raw)
        )
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
    return row


def _likely_cause(text: str, raw: bytes) -> str:
    if text.startswith("["):
        return "The file looks like one JSON array; write one object per line instead."
    if text in ("{", "}") or text.endswith(","):
        return "The file looks like indented JSON; write each object on one line."
    if text.startswith("{'"):
        return "It looks like a printed Python dict; write it with json.dumps, which puts names in double quotes."
    if not raw.endswith(b"\n"):
        return "It is the last line and has no end: the file may have been cut off; fetch or write it again."
    return "Mend or drop the line."


def _other_columns(where: str, row: Mapping[str, Any], reference: str, columns: Mapping[str, Any]) -> TutelageError:
    missing, further = [n for n in columns if n not in row], [n for n in row if n not in columns]
    differences = ([f"lacks {', '.join(map(repr, missing))}"] if missing else []) + (
        [f"has {', '.join(map(repr, further))} besides"] if further else []
    )
    return TutelageError(
        f"{where} has other columns than {reference}: it {' and '.join(differences)}. All rows need the same columns "
        f"({', '.join(map(repr, columns))}); write null where a value is absent."
    )


def columns_of_rows(rows: Sequence[Any], source: str = "") -> dict[str, list[Any]]:
    """The columns of a list of mappings, all with the same keys; another shape raises `TutelageError` with the row (counted from 1)."""
    of_source = f" of {source}" if source else ""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise TutelageError(f"Row {number}{of_source} is of type {type(row).__name__}; expected a mapping from column names to values.")
        if row.keys() != rows[0].keys():
            raise _other_columns(f"Row {number}{of_source}", row, "row 1", rows[0])
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def read_parquet(path: str | Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file. Needs pyarrow, which comes with the extra `lm`."""
    path = _existing(path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "lm") from None
    try:
        with path.open("rb") as file:  # a handle, so that a folder name such as "level=3" is not read as a partition
            table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise TutelageError(
            f"{path} cannot be read as Parquet: {_first_line(error)}. The file may be of another format or cut off; write it again."
        ) from None
    return table.to_pydict()


def read_directory(path: str | Path) -> Any:
    """The `datasets.Dataset` that `save_to_disk` has written to a directory (memory-mapped). Needs the extra `lm`."""
    path = _existing(path)
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "lm") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        inside = sorted(entry.name for entry in path.iterdir())[:8] if path.is_dir() else ["not a directory"]
        raise TutelageError(
            f"{path} is not a dataset directory ({_first_line(error)}); it holds: {', '.join(inside) or 'nothing'}. Expected what "
            "Dataset.save_to_disk writes; name single JSONL or Parquet files instead."
        ) from None
    return one_split(loaded, str(path), "Name one of them as a path")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def one_split(dataset: Any, source: str, remedy: str) -> Any:
    """The dataset itself, or the only split of a `DatasetDict`; several splits raise `TutelageError` with their names."""
    if not isinstance(dataset, Mapping):
        return dataset
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    names = list(dataset)
    example = f"{source}/{names[0]}" if names and source else (names or ["train"])[0]
    raise TutelageError(f"{source or 'The dataset'} has the splits {', '.join(names) or 'none'}; expected one. {remedy}: {example}.")


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.exists():
        if not os.access(path, os.R_OK):
            raise TutelageError(f"{path} exists, but you may not read it; change its permissions or copy it.")
        return path
    folder = path.parent
    if not folder.is_dir():
        raise TutelageError(f"There is no file {path}: the directory {folder} does not exist. Check the path (relative to {Path.cwd()}).")
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.5)
    hint = f" Did you mean {folder / near[0]}?" if near else ""
    raise TutelageError(f"There is no file {path}.{hint} Check the path (relative to {Path.cwd()}).")
