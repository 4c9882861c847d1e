"""What a run has spent, and what each lesson showed: the two records that a trainer hands out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes


@dataclass
class Ledger:
    """What a run has spent so far, over all processes. What is thrown away counts.

    updates: optimiser steps. lessons: proposals taught. rollouts: attempts generated, everything included. rejected_rollouts: those of them
    that were generated to train on and were not trained on. probe_rollouts: those that answered `wants`. tokens: completion tokens
    generated, everything included. training_tokens: tokens that entered a training batch, counted once however often the batch is reused.
    guided_rollouts: those that a teacher helped with. Demonstrations beside rollouts are not generated and count in `training_tokens`
    alone. A pass over prompts or rollouts for signals alone generates nothing and counts in time only (the trainer's
    `curriculum_seconds`). In supervised training nothing is generated: `rollouts` counts the probes alone, and `tokens` the tokens trained
    on or probed. Without a curriculum only `updates` and demonstrations are counted.
    """

    updates: int = 0
    lessons: int = 0
    rollouts: int = 0
    rejected_rollouts: int = 0
    probe_rollouts: int = 0
    guided_rollouts: int = 0
    tokens: int = 0
    training_tokens: int = 0

    def copy(self) -> Ledger:
        """The ledger as it stands now."""
        return replace(self)

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = [f.name for f in fields(self)]
        if set(state) != set(names):
            raise TutelageError(f"A ledger has the entries {', '.join(names)}; the saved one has {', '.join(sorted(state))}.")
        for name in names:
            setattr(self, name, int(state[name]))


@dataclass(frozen=True)
class Attempts:
    """The student's own attempts of a lesson in words.

    prompt_N: each task's prompt, as the data set has it. completion_NG: lists of texts, without special tokens. terms_NG: what each reward
    function gave, unweighted, (N, G) each, NaN where it did not score.
    """

    prompt_N: list[Any]
    completion_NG: list[list[str]]
    terms_NG: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Lesson:
    """One proposal and what came of it, as `lesson_callbacks` get it on rank 0.

    step: the optimiser step, from 0. rows_N: the proposed rows of the pool. outcomes: of all of them. admitted_N: which groups may train
    (of these a full batch takes the first it needs). ledger: as it stood right after. attempts: of GRPO, and only where a callback has the
    attribute `needs_attempts = True`, for texts must be decoded and gathered.
    """

    step: int
    rows_N: NDArray[np.int64]
    outcomes: Outcomes
    admitted_N: NDArray[np.bool_]
    ledger: Ledger
    attempts: Attempts | None = None
