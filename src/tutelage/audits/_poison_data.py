"""The task file of the audit of poison: its prompts, how a log's prompts are found in it, and the file without what was found.

Array suffixes: `N` tasks of the file, `P` prompts of a log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.audits._watched import Bools, Ints, Watched
from tutelage.errors import TutelageError
from tutelage.files import atomic_open
from tutelage.tasks.loaders import default_verifier, load_columns, prompt_key
from tutelage.tasks.requests import chained, clip_rider, prompt_text
from tutelage.tasks.tables import PROMPT_NAMES, columns_of, renamed


@dataclass(frozen=True)
class Data:
    """A task file. columns: as they stand in it. tasks: the same with the columns `prompt` and `answer` under these names. key_N: the
    tasks' keys as a log would have them: the column named, else the prompt's hash. text_N: prompts as text."""

    path: Path
    columns: Mapping[str, Any]
    tasks: Mapping[str, Any]
    key_N: list[str]
    text_N: list[str]

    def __len__(self) -> int:
        return len(self.text_N)

    def task(self, row: int) -> dict[str, Any]:
        return {"key": self.key_N[row], **{name: column[row] for name, column in self.tasks.items() if name != "key"}}

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The first row with each key."""
        return {key: row for row, key in reversed(list(enumerate(self.key_N)))}

    @cached_property
    def chained_N(self) -> Bools:
        return chained(self.text_N)

    def verifier(self) -> str | None:
        """The verifier that training would choose, None without answers."""
        answers = self.tasks.get("answer")
        if answers is None or any(answer is None or not str(answer).strip() for answer in answers):
            return None
        return default_verifier(answers)


def load_data(path: Path, *, prompt: str | None = None, answer: str | None = None, key: str | None = None) -> Data:
    """Read a task file as training does; what is wrong with it raises `TutelageError` with the line."""
    columns = columns_of(load_columns(path), str(path))
    tasks = renamed(columns, prompt=prompt, answer=answer, solution=None, source=str(path))
    if "prompt" not in tasks:
        raise TutelageError(
            f"{path} has no prompt column; its columns are {', '.join(map(repr, columns))}. Looked for: {', '.join(PROMPT_NAMES)}. Name "
            "yours with --prompt. A rollout log is given with --log, beside the data."
        )
    for row, value in enumerate(tasks["prompt"]):
        if not value:
            raise TutelageError(f"The prompt in row {row + 1} of {path} (counted from 1) is {value!r}; fill it or drop the row.")
    name = key or ("key" if "key" in columns else None)
    if name is not None and name not in columns:
        raise TutelageError(f"{path} has no column {name!r} to find a log's prompts by; its columns are {', '.join(map(repr, columns))}.")
    keys = map(prompt_key, tasks["prompt"]) if name is None else map(str, columns[name])
    return Data(path, columns, tasks, list(keys), [prompt_text(value) for value in tasks["prompt"]])


class Joined(NamedTuple):
    """A log's prompts: row_P in the file, -1 where they are not in it; text_P; chained_P; unread: how many have a text nowhere."""

    row_P: Ints
    text_P: list[str]
    chained_P: Bools
    unread: int


def join(data: Data, log: Watched) -> Joined:
    """Find each prompt of a log in the file, by its id, else by its text.

    Raises:
        TutelageError: none of them is in the file and the log has no texts.
    """
    row_P = np.full(len(log.id_P), -1)
    text_P, unread = [], 0
    for p, (key, text) in enumerate(zip(log.id_P, log.text_P, strict=True)):
        row = data.row_of.get(key)
        if row is None and text is not None:
            row = data.row_of.get(prompt_key(text))
        row_P[p] = -1 if row is None else row
        unread += row is None and text is None
        text_P.append(data.text_N[row] if row is not None else text or "")
    if unread == len(text_P):
        raise TutelageError(
            f"None of the {len(text_P):,} prompts of {log.path} is in {data.path}: the log's first prompt_id is {log.id_P[0]!r}, the "
            f"file's first key {data.key_N[0]!r}. Name the column that holds the log's ids with --key, or log the column prompt."
        )
    foreign = [p for p in range(len(text_P)) if row_P[p] < 0]
    chained_P = data.chained_N[np.maximum(row_P, 0)] & (row_P >= 0)
    if foreign:
        chained_P[foreign] = chained([*data.text_N, *(text_P[p] for p in foreign)])[len(data) :]
    return Joined(row_P, text_P, chained_P, unread)


def write_clean_data(
    data: Data, out: Path, reason_by_row: Mapping[int, str], *, riders: Callable[[str], Sequence[tuple[int, int]]] | None = None
) -> tuple[int, int]:
    """Write the file without the rows that have a reason, and those with their reasons beside it; how many were dropped, and clipped.

    riders: clip instead: the sentences that touch these spans are cut out of a row's prompt, and the row stays, where anything is left;
    chat prompts are dropped. `<out>` is JSON Lines; `<stem>.removed.jsonl` holds each changed row as it was, its number from 1, why, and
    what became of it.
    """
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise TutelageError(f"{out}: clean data are written as JSON Lines; give the file the suffix .jsonl.")
    if out.resolve() == data.path.resolve():
        raise TutelageError(f"{out} is the data that were audited; the clean ones need another name.")
    prompt_column = next(name for name, column in data.columns.items() if column is data.tasks["prompt"])
    dropped = clipped = 0
    with atomic_open(out) as kept, atomic_open(out.with_suffix(".removed.jsonl")) as removed:
        for n in range(len(data)):
            row = {name: column[n] for name, column in data.columns.items()}
            if n in reason_by_row:
                prompt = row[prompt_column]
                rest = clip_rider(prompt, riders(prompt)) if riders is not None and isinstance(prompt, str) else ""
                cut = 0 < len(rest) < len(prompt)
                removed.write(_line({"row": n + 1, "why": reason_by_row[n], "became": rest if cut else None, **row}))
                dropped, clipped = dropped + (not cut), clipped + cut
                if not cut:
                    continue
                row[prompt_column] = rest
            kept.write(_line(row))
    return dropped, clipped


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8", "replace") + b"\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
