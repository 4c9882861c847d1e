"""A rollout log as flat arrays: some fifty bytes an attempt, whatever the length of its text. Array suffix: `B` attempts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import Warned
from tutelage.rollouts import Chunk, RolloutReader
from tutelage.tasks.behaviour import garbled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LONG = 40
"""Signs from which on two equal completions are no coincidence: short answers are equal because they are answers."""
LOOKED_AT = 8
"""The first attempts of each step, whose text is read for being garbled."""
EXCERPT = 400
MARKUP = re.compile(r"</?\w+>|\\boxed|```|\*\*|^#+ |####", re.MULTILINE)
"""Marks of form: tags, boxes, code fences, bold, headings, the mark before a final answer."""


@dataclass(frozen=True)
class Attempts:
    """What the rules read of a log, in its order.

    step_B. prompt_B, group_B: numbers of prompts, and of groups within their step. reward_B, solved_B: NaN where unknown. length_B: tokens,
    or signs where the log has no tokens. markup_B: marks of form in the text beyond the first of each kind, for form that is paid once is
    fair. text_B: a hash of the text. long_B: whether the text is long enough to compare. garbled_B: 1 or 0, NaN where nobody looked.
    """

    path: Path
    step_B: Ints
    prompt_B: Ints
    group_B: Ints
    reward_B: Floats
    solved_B: Floats
    length_B: Floats
    markup_B: Floats
    text_B: Ints
    long_B: Bools
    garbled_B: Floats
    warnings: tuple[Warned, ...]

    def __len__(self) -> int:
        return len(self.step_B)

    @property
    def tolerance(self) -> float:
        """Rewards that differ by less are equal: float32 noise, not a signal."""
        largest = np.nanmax(np.abs(self.reward_B), initial=1.0)
        return float(1e-6 * largest)


def load(path: Path) -> Attempts:
    """Read a log once. Errors and warnings are those of `RolloutReader`."""
    reader = RolloutReader(path)
    prompts: dict[str, int] = {}
    groups: dict[tuple[int, str], int] = {}
    looked: dict[int, int] = {}
    parts: list[dict[str, Any]] = []
    for chunk in reader:
        steps = chunk.step_B.tolist()
        keys = zip(steps, chunk.group_B, strict=True)
        parts.append(
            {
                "step_B": chunk.step_B,
                "prompt_B": np.array([prompts.setdefault(key, len(prompts)) for key in chunk.prompt_id_B], dtype=np.int64),
                "group_B": np.array([groups.setdefault(key, len(groups)) for key in keys], dtype=np.int64),
                "reward_B": chunk.reward_B,
                "solved_B": chunk.solved_B,
                "length_B": _lengths(chunk),
                "markup_B": np.array([_repeated_marks(text) for text in chunk.completion_B], dtype=np.float64),
                "text_B": np.array([hash(text.strip()) for text in chunk.completion_B], dtype=np.int64),
                "long_B": np.array([len(text.strip()) >= LONG for text in chunk.completion_B]),
                "garbled_B": _garbled(chunk.completion_B, steps, looked),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Attempts(path=path, warnings=reader.warnings, **columns)


def _repeated_marks(text: str) -> int:
    marks = MARKUP.findall(text)
    return len(marks) - len(set(marks))


def _lengths(chunk: Chunk) -> Floats:
    tokens = chunk.columns.get("tokens")
    if tokens is None:
        return np.array([len(text) for text in chunk.completion_B], dtype=np.float64)
    return np.array([len(t) if isinstance(t, list) else np.nan if t is None else t for t in tokens], dtype=np.float64)


def _garbled(texts: Sequence[str], steps: Sequence[int], looked: dict[int, int]) -> Floats:
    """Whether each text is garbled; only of the first of each step, for it is slow. looked: how many were, by step; it is updated."""
    found = np.full(len(texts), np.nan)
    for b, (text, step) in enumerate(zip(texts, steps, strict=True)):
        looked[step] = looked.get(step, 0) + 1
        if looked[step] <= LOOKED_AT:
            found[b] = garbled(text)
    return found


def excerpts(path: Path, rows: Sequence[int], *, signs: int | None = EXCERPT) -> dict[int, dict[str, Any]]:
    """Attempts that one can read, by their number in the log (from 0). signs: of each completion; None is all of it."""
    wanted, found, start = set(rows), {}, 0
    if not wanted:
        return {}
    for chunk in RolloutReader(path):
        for b in (row - start for row in wanted if start <= row < start + len(chunk)):
            found[start + b] = {
                "where": chunk.where(b),
                "step": int(chunk.step_B[b]),
                "prompt_id": chunk.prompt_id_B[b],
                "reward": float(chunk.reward_B[b]),
                "solved": float(chunk.solved_B[b]),
                "completion": chunk.completion_B[b][:signs],
            }
        start += len(chunk)
        if start > max(wanted):
            break
    return found
