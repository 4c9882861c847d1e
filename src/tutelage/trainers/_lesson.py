"""One lesson in a language-model engine: propose, roll out, observe, admit. Rank 0 decides; every rank generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.trainers._sync import decide
from tutelage.trainers._trl_private import Rollouts
from tutelage.trainers.ledger import Lesson

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons


@dataclass
class Taught:
    """A lesson as every rank knows it: the rollouts and which groups may train."""

    rollouts: Rollouts
    admitted_N: NDArray[np.bool_]


def teach(trainer: GRPOLessons) -> Taught:
    """One lesson: a whole generation batch of fresh proposals."""
    cur, step, ledger = trainer.curriculum, trainer.state.global_step, trainer.ledger
    groups, attempts = trainer.groups_per_batch, trainer.num_generations
    rows_N = decide(lambda: cur.propose(groups))
    rollouts = trainer.roll_out(rows_N, attempts)
    _check_judgement(trainer, rollouts.columns)
    ledger.lessons += 1
    ledger.rollouts += groups * attempts
    ledger.tokens += int(rollouts.columns["length"].sum())

    def learn() -> NDArray[np.bool_]:
        outcomes = Outcomes.of(cur.pool, rows_N, step=step, **_fields(rollouts.columns))
        cur.observe(outcomes)
        admitted_N = np.asarray(cur.admit(outcomes))
        if admitted_N.shape != rows_N.shape or admitted_N.dtype != bool:
            raise TutelageError(
                f"{type(cur).__name__}.admit returned {admitted_N.dtype} of shape {admitted_N.shape}; expected bool, {rows_N.shape}."
            )
        lesson = Lesson(step, rows_N, outcomes, admitted_N, ledger.copy())
        for callback in trainer.lesson_callbacks:
            callback(lesson)
        return admitted_N

    return Taught(rollouts, decide(learn))


def _fields(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if name != "ended"}


def _check_judgement(trainer: GRPOLessons, columns: dict[str, NDArray[Any]]) -> None:
    """Drop `solved` where nobody named a judge and the first reward is no judgement; raise if the curriculum needs one."""
    if trainer.judge.given is not None or "solved" not in columns:
        return
    low, high = np.nanmin(columns["solved"], initial=0.0), np.nanmax(columns["solved"], initial=1.0)
    if low >= 0 and high <= 1:
        return
    if "solved_NG" in trainer.curriculum.needs:
        raise TutelageError(
            f"The curriculum {trainer.curriculum.name!r} looks at what was solved, and the first reward function "
            f"({trainer.reward_func_names[0]!r}) gives values from {low:g} to {high:g}; a judgement lies in [0, 1]. "
            "Say which reward function is the verifier, or give one: with_curriculum(...)(..., solved='its_name' or a function)."
        )
    del columns["solved"]
