"""Rollouts beside the lesson's own: what a curriculum wants measured, what a teacher has made with help.

And the check of a judgement, and a lesson in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.trainers._batches import Rollouts
from tutelage.trainers.ledger import Attempts

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons


def aside(
    trainer: GRPOLessons, rows_N: NDArray[np.int64], attempts: int, prompts: Sequence[Any] | None = None
) -> list[tuple[Rollouts, int]]:
    """Rollouts of any number of rows, without a trace in the engine's metrics: in batches, each with the number of rows that count.

    The batches are no larger than a generation batch and fall to the processes in equal shares; copies of the last row make them up, which
    are not to be looked at. prompts: see `roll_out`.
    """
    world = trainer.accelerator.num_processes
    size = world * max(trainer.args.generation_batch_size // (attempts * world), 1)
    batches = []
    with trainer.unlogged():
        for start in range(0, len(rows_N), size):
            index_M = np.arange(start, min(start + size, len(rows_N)))
            padded_M = np.concatenate([index_M, np.repeat(index_M[-1:], -len(index_M) % world)])
            shown = None if prompts is None else [prompts[n] for n in padded_M]
            batches.append((trainer.roll_out(rows_N[padded_M], attempts, shown), len(index_M)))
    return batches


def joined_columns(batches: Sequence[tuple[Rollouts, int]]) -> dict[str, NDArray[Any]]:
    """The columns (N, G) of all rows that count."""
    parts = [{name: value[:count] for name, value in rollouts.columns.items()} for rollouts, count in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def attempts_in_words(trainer: GRPOLessons, rows_N: NDArray[np.int64], rollouts: Rollouts) -> Attempts:
    """Prompts, texts and terms of the reward of a lesson, on every rank."""
    shape = rollouts.columns["reward"].shape
    said_B, reward_BF = trainer.said(rollouts), rollouts.reward_BF.double().cpu().numpy()
    return Attempts(
        prompt_N=[row["prompt"] for row in trainer.rows(rows_N)],
        completion_NG=[said_B[start : start + shape[1]] for start in range(0, len(said_B), shape[1])],
        terms_NG={name: reward_BF[:, f].reshape(shape) for f, name in enumerate(trainer.reward_func_names)},
    )


def check_judgement(trainer: GRPOLessons, columns: dict[str, NDArray[Any]]) -> None:
    """Drop `solved`, for good, where nobody named a judge and the first reward is none; raise if curriculum or teacher needs one."""
    if trainer.judge.given is not None or "solved" not in columns:
        return
    low, high = np.nanmin(columns["solved"], initial=0.0), np.nanmax(columns["solved"], initial=1.0)
    if low >= 0 and high <= 1:
        return
    if "solved_NG" in trainer.curriculum.needs or trainer.intervenes:
        who = "The teacher" if trainer.intervenes else f"The curriculum {trainer.curriculum.name!r}"
        raise TutelageError(
            f"{who} looks at what was solved, and the first reward function "
            f"({trainer.reward_func_names[0]!r}) gives values from {low:g} to {high:g}; a judgement lies in [0, 1]. "
            "Say which reward function is the verifier, or give one: with_curriculum(...)(..., solved='its_name' or a function)."
        )
    del columns["solved"]
    trainer.judge.column = None
