"""Responses of a model to prompts, as a file: a row per response, with `prompt`, `completion`, and if known `task` and its decoding.

Prompts and completions are texts or lists of chat messages. Rows with the same prompt are samples of it. Array suffixes: `B` responses,
`X` prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import Tally, TutelageError
from tutelage.tasks.readers import load_columns

Floats = NDArray[np.float64]
DECODING = ("temperature", "max_new_tokens", "top_p", "top_k")
"""Columns that say how a response was decoded; student and teacher must not differ in them."""
ALL = "all"
"""The task of responses whose file names none."""


@dataclass(frozen=True)
class Responses:
    """Responses in the order of their file. prompt_B, completion_B: as texts. task_B: `ALL` where unknown. decoding: see `DECODING`."""

    name: str
    prompt_B: Sequence[str]
    completion_B: Sequence[str]
    task_B: Sequence[str]
    decoding: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.prompt_B)

    @cached_property
    def rows_by_prompt(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for b, prompt in enumerate(self.prompt_B):
            rows.setdefault(prompt, []).append(b)
        return rows

    @cached_property
    def task_by_prompt(self) -> dict[str, str]:
        return dict(zip(self.prompt_B, self.task_B, strict=True))

    def rate_X(self, prompts: Sequence[str], emits: Callable[[str], bool]) -> Floats:
        """Of each prompt the share of its responses for which `emits` holds."""
        return np.array([np.mean([emits(self.completion_B[b]) for b in self.rows_by_prompt[p]]) for p in prompts], dtype=np.float64)

    def on(self, prompts: Sequence[str]) -> tuple[list[str], list[float], list[str]]:
        """Texts, weights (1 / samples of the prompt) and tasks of all responses to these prompts."""
        places = [(b, 1 / len(self.rows_by_prompt[p])) for p in prompts for b in self.rows_by_prompt[p]]
        return [self.completion_B[b] for b, _ in places], [w for _, w in places], [self.task_B[b] for b, _ in places]

    def excerpt(self, row: int, **more: Any) -> dict[str, Any]:
        """A response that one can read; rows count from 1."""
        return {
            "where": f"{self.name}, row {row + 1}",
            "task": self.task_B[row],
            "prompt": self.prompt_B[row][-160:],
            "completion": self.completion_B[row][:400],
            **more,
        }


def load(path: str | Path) -> Responses:
    """Read a file of responses: JSON Lines, Parquet, or a saved data set (`tutelage.tasks.readers.load_columns`)."""
    table = load_columns(path)
    names = table if isinstance(table, Mapping) else table.column_names
    return of_columns(str(path), {name: table[name] for name in names})


def of_columns(name: str, columns: Mapping[str, Sequence[Any]]) -> Responses:
    """Responses out of columns; `name` stands in errors.

    Raises:
        TutelageError: no column `prompt` or `completion`, one that is neither text nor messages, a prompt under two tasks, rows that were
            decoded in different ways.
    """
    missing = [c for c in ("prompt", "completion") if c not in columns]
    if missing:
        raise TutelageError(
            f"{name} has no column {' and no '.join(map(repr, missing))}; it has {', '.join(map(repr, columns))}. Expected a row per "
            "response with `prompt` and `completion`, and if known `task`; rename the columns."
        )
    prompt_B, completion_B = ([_text(value, name, b, c) for b, value in enumerate(columns[c])] for c in ("prompt", "completion"))
    task_B = [ALL if task is None else str(task) for task in columns.get("task", [ALL] * len(prompt_B))]
    task_of: dict[str, str] = {}
    for b, (prompt, task) in enumerate(zip(prompt_B, task_B, strict=True)):
        if task_of.setdefault(prompt, task) != task:
            raise TutelageError(
                f"{name}, row {b + 1}: this prompt stands under the task {task!r}, and earlier under {task_of[prompt]!r}. Give a prompt "
                "one task, or write the task into the prompt."
            )
    decoding = {}
    for column in DECODING:
        found = sorted({str(value) for value in columns.get(column, []) if value is not None})
        if len(found) > 1:
            raise TutelageError(
                f"{name} mixes responses of {column} {' and '.join(found[:3])}. Rates of different decodings are not one rate: give each a "
                "file of its own."
            )
        if found:
            decoding[column] = found[0]
    return Responses(name, prompt_B, completion_B, task_B, decoding)


def _text(value: Any, name: str, row: int, column: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in value):
        return json.dumps(value, ensure_ascii=False) if column == "prompt" else "\n".join(m["content"] for m in value)
    raise TutelageError(f"{name}, row {row + 1}: {column!r} is {str(value)[:60]!r}; expected a text or a list of chat messages.")


def shared_prompts(one: Responses, other: Responses, tally: Tally) -> list[str]:
    """Prompts that both answered, in the order of `one`; those that only one answered are counted as warnings.

    Raises:
        TutelageError: no prompt in common, or another decoding.
    """
    for column in DECODING:
        mine, theirs = one.decoding.get(column), other.decoding.get(column)
        if mine is not None and theirs is not None and mine != theirs:
            raise TutelageError(
                f"{one.name} was decoded with {column} {mine}, {other.name} with {theirs}. A greedy student beside a sampled teacher shows "
                "amplification where there is none: decode both alike."
            )
    prompts = [p for p in one.rows_by_prompt if p in other.rows_by_prompt]
    if not prompts:
        raise TutelageError(
            f"{one.name} and {other.name} have no prompt in common, so nothing can be compared. Ask both models the same prompts, written "
            f"alike (the first ones are {one.prompt_B[0][:60]!r} and {other.prompt_B[0][:60]!r})."
        )
    for a, b in ((one, other), (other, one)):
        if lonely := len(a.rows_by_prompt) - len(prompts):
            tally.add(f"prompts of {a.name} that {b.name} lacks; comparisons of the two leave them out", count=lonely)
    return prompts
