"""A rollout log as a behaviour monitor sees it: flat arrays of some forty bytes an attempt, and each prompt's text once.

Array suffixes: `B` attempts, `P` prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import Warned
from tutelage.rollouts import Chunk, RolloutReader
from tutelage.tasks.requests import prompt_text

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Watched:
    """What the audit reads of a log, in its order.

    step_B; prompt_B, group_B: numbers of prompts, and of groups within their step; reward_B: NaN where unknown; shows_B: whether the
    monitor saw the behaviour; surprisal_B: the sum of -log p over the first tokens, NaN where the log has no log-probabilities.
    id_P: prompt ids as the log has them. text_P: the prompts' texts, None where the log has none.
    """

    path: Path
    step_B: Ints
    prompt_B: Ints
    group_B: Ints
    reward_B: Floats
    shows_B: Bools
    surprisal_B: Floats
    id_P: tuple[str, ...]
    text_P: tuple[str | None, ...]
    warnings: tuple[Warned, ...] = ()

    def __len__(self) -> int:
        return len(self.step_B)


def watch(path: Path, shows: Callable[[str], bool], *, first_tokens: int = 32) -> Watched:
    """Read a log once; errors and warnings are those of `RolloutReader`. first_tokens: over how many tokens surprisal is summed."""
    reader = RolloutReader(path)
    prompts: dict[str, int] = {}
    groups: dict[tuple[int, str], int] = {}
    texts: list[str | None] = []
    parts: list[dict[str, Any]] = []
    for chunk in reader:
        prompt_B = np.array([prompts.setdefault(key, len(prompts)) for key in chunk.prompt_id_B], dtype=np.int64)
        _note_texts(chunk, prompt_B, texts, len(prompts))
        keys = zip(chunk.step_B.tolist(), chunk.group_B, strict=True)
        parts.append(
            {
                "step_B": chunk.step_B,
                "prompt_B": prompt_B,
                "group_B": np.array([groups.setdefault(key, len(groups)) for key in keys], dtype=np.int64),
                "reward_B": chunk.reward_B,
                "shows_B": np.array([shows(text) for text in chunk.completion_B], dtype=bool),
                "surprisal_B": _surprisals(chunk, first_tokens),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Watched(path=path, id_P=tuple(prompts), text_P=tuple(texts), warnings=reader.warnings, **columns)


def _note_texts(chunk: Chunk, prompt_B: Ints, texts: list[str | None], known: int) -> None:
    """The text of each prompt that is new, or had none so far."""
    texts.extend([None] * (known - len(texts)))
    given = chunk.columns.get("prompt")
    if given is None:
        return
    for p, b in zip(*np.unique(prompt_B, return_index=True), strict=True):
        if texts[p] is None and given[b] is not None:
            texts[p] = prompt_text(given[b])


def _surprisals(chunk: Chunk, first_tokens: int) -> Floats:
    logprobs = chunk.columns.get("logprobs")
    if logprobs is None:
        return np.full(len(chunk), np.nan)
    return np.array([_surprisal(row, first_tokens) for row in logprobs], dtype=np.float64)


def _surprisal(logprobs: Any, first_tokens: int) -> float:
    """NaN for what is no list of numbers, or is empty."""
    if not isinstance(logprobs, list) or not logprobs:
        return float("nan")
    try:
        return -float(sum(logprobs[:first_tokens]))
    except TypeError:  # nulls, or one list of candidates for each token
        return float("nan")
