"""A rollout log of a run, for audits and for reading: a lesson callback.

from tutelage.trainers.rollout_log import RolloutLog

trainer = with_curriculum(trl.GRPOTrainer)(..., curriculum=cur, lesson_callbacks=[RolloutLog("rollouts.jsonl")])
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from tutelage.errors import TutelageError
from tutelage.rollouts import RolloutWriter
from tutelage.rollouts.columns import TERM, as_text
from tutelage.trainers.ledger import Lesson


class RolloutLog:
    """Writes every attempt of every lesson to a rollout log, those included that a filter rejects; see `tutelage.rollouts`.

    The student's own attempts are logged, as the curriculum sees them, before a teacher changes a group. Every process is given the
    callback; rank 0 writes. It needs GRPO and a curriculum (`uniform` is one). Texts come from the tokens themselves, so that TRL's
    `log_completions` has no part in it. The source of an attempt is the arm of its task. path: a .jsonl file, which `tutelage.audits.live`
    can follow, or with the suffix .parquet a folder that gets a part with each lesson.
    """

    needs_attempts = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._writer = RolloutWriter(path)

    def __call__(self, lesson: Lesson) -> None:
        if lesson.attempts is None:
            raise TutelageError("RolloutLog needs the texts of attempts, which supervised training has not. Use it with trl.GRPOTrainer.")
        self._writer.write(*rows_of(lesson))


def rows_of(lesson: Lesson) -> Iterator[dict[str, Any]]:
    """The rows of a rollout log that a lesson makes, task by task."""
    outcomes, attempts = lesson.outcomes, lesson.attempts
    assert attempts is not None
    assert outcomes.reward_NG is not None
    for n, key in enumerate(outcomes.key_N):
        for g, completion in enumerate(attempts.completion_NG[n]):
            row = {
                "step": lesson.step,
                "prompt_id": str(key),
                "completion": completion,
                "reward": float(outcomes.reward_NG[n, g]),
                "solved": None if outcomes.solved_NG is None else float(outcomes.solved_NG[n, g]),
                "prompt": as_text(attempts.prompt_N[n]),
                "group": f"{lesson.ledger.lessons}/{n}",  # a refill draws several lessons in one step
            }
            if outcomes.arm_N is not None:
                row["source"] = str(int(outcomes.arm_N[n]))
            if outcomes.length_NG is not None:
                row["tokens"] = int(outcomes.length_NG[n, g])
            yield row | {TERM + name: float(term_NG[n, g]) for name, term_NG in attempts.terms_NG.items()}
