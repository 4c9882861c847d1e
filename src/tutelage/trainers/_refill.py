"""Refill: draw whole generation batches until enough groups are admitted, then make one training batch of the admitted ones.

Every rank generates in every round, so that no rank waits for another. Surplus groups are dropped: by the next batch they would be stale.
Metrics that TRL logs describe the groups trained on; `curriculum/acceptance`, `curriculum/rejected_easy` and
`curriculum/rejected_hard` are shares of all groups drawn (easy: solved by more than half of the attempts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.trainers._batches import Batch, Sample, take_apart, token_columns
from tutelage.trainers._lesson import Taught, teach
from tutelage.trainers._sync import gathered

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons

PATIENCE = 10
"""Training batches in a row without one admitted group that `on_short="pad"` endures before it raises."""


@dataclass(frozen=True)
class Choice:
    """The groups of a training batch, numbered over all rounds, in order. inert_N: those that only keep its shape and do not train."""

    group_N: NDArray[np.int64]
    inert_N: NDArray[np.bool_]


def next_batch(trainer: GRPOLessons) -> Batch:
    """One training batch: a single lesson, or as many as a filter needs, up to `refill_cap`."""
    mark = trainer.mark_metrics()
    rounds = [teach(trainer)]
    while _admitted(rounds).sum() < trainer.groups_per_batch and len(rounds) < trainer.refill_cap:
        rounds.append(teach(trainer))
    admitted_M = _admitted(rounds)
    _check_enough(trainer, rounds, admitted_M)
    choice = choose(admitted_M, trainer.groups_per_batch, partial=trainer.on_short == "partial")
    batch = rounds[0].rollouts.batch
    if not admitted_M.all():
        batch = assemble(trainer, rounds, choice, mark)
    _account(trainer, rounds, choice, admitted_M)
    return batch


def choose(admitted_M: NDArray[np.bool_], wanted: int, *, partial: bool) -> Choice:
    """The first `wanted` admitted groups. Too few are made up by the first rejected ones, or (partial) by inert copies of the admitted."""
    chosen_N = np.flatnonzero(admitted_M)[:wanted]
    short = wanted - len(chosen_N)
    filler_N = np.resize(chosen_N, short) if partial else np.flatnonzero(~admitted_M)[:short]
    return Choice(np.concatenate([chosen_N, filler_N]), np.arange(wanted) >= wanted - short * partial)


def assemble(trainer: GRPOLessons, rounds: Sequence[Taught], choice: Choice, mark: dict[str, int]) -> Batch:
    """This process's part of the training batch of the chosen groups, wherever their samples were generated."""
    attempts = trainer.num_generations
    number_B = (choice.group_N[:, None] * attempts + np.arange(attempts)).ravel()  # samples, counted over rounds, then over ranks
    share = len(number_B) // trainer.accelerator.num_processes
    first = trainer.accelerator.process_index * share
    rollouts = [taught.rollouts for taught in rounds]
    wide = token_columns([r.batch for r in rollouts])
    needed = set(number_B.tolist())
    mine: dict[int, Sample] = {}
    for r, rolled in enumerate(rollouts):
        numbers = range(r * len(number_B) + first, r * len(number_B) + first + share)
        if needed.intersection(numbers):
            samples = take_apart(rolled.batch, rolled.length_b, wide)
            mine |= {n: sample for n, sample in zip(numbers, samples, strict=True) if n in needed}
    if trainer.accelerator.num_processes > 1:
        mine = {n: {key: value.cpu() for key, value in sample.items()} for n, sample in mine.items()}
    everybody = {n: sample for part in gathered([mine]) for n, sample in part.items()}
    local = slice(first, first + share)
    inert_B = np.repeat(choice.inert_N, attempts)
    return trainer.rebuild([everybody[n] for n in number_B[local].tolist()], wide, rollouts, number_B, inert_B, local, mark)


def _admitted(rounds: Sequence[Taught]) -> NDArray[np.bool_]:
    return np.concatenate([taught.admitted_N for taught in rounds])


def _solved(rounds: Sequence[Taught]) -> NDArray[np.float64] | None:
    """Pass rates of all groups drawn (M,), 0 where unscorable; None without a judgement."""
    if "solved" not in rounds[0].rollouts.columns:
        return None
    solved_MG = np.concatenate([taught.rollouts.columns["solved"] for taught in rounds])
    known_M = (~np.isnan(solved_MG)).sum(axis=1)
    return np.nansum(solved_MG, axis=1) / np.maximum(known_M, 1)


def _check_enough(trainer: GRPOLessons, rounds: Sequence[Taught], admitted_M: NDArray[np.bool_]) -> None:
    """Count the barren batches, and raise where `on_short` says so or patience is at an end."""
    kept, wanted = int(admitted_M.sum()), trainer.groups_per_batch
    trainer.barren = 0 if kept else trainer.barren + 1
    if kept >= wanted or (kept and trainer.on_short != "raise") or (trainer.on_short == "pad" and trainer.barren < PATIENCE):
        return
    rate_M = _solved(rounds)
    counts = "" if rate_M is None else f" {(rate_M == 1).sum()} were solved by all {trainer.num_generations} attempts, "
    counts += "" if rate_M is None else f"{(rate_M == 0).sum()} by none."
    again = f" It is the {trainer.barren}th batch in a row without any." if trainer.barren > 1 else ""
    way_out = "." if trainer.on_short == "pad" else ", or let on_short='pad' fill up with groups that were not admitted."
    raise TutelageError(
        f"The curriculum {trainer.curriculum.name!r} admitted {kept} of {len(admitted_M)} groups drawn for one training batch of {wanted} "
        f"(refill_cap={trainer.refill_cap} generation batches).{counts}{again} Likely cause: the tasks are too easy or too hard for this "
        f"model now. Give tasks nearer to what it can do, widen the filter's window, raise num_generations or refill_cap{way_out}"
    )


def _account(trainer: GRPOLessons, rounds: Sequence[Taught], choice: Choice, admitted_M: NDArray[np.bool_]) -> None:
    """Ledger and metrics of one training batch."""
    attempts = trainer.num_generations
    trained_N = choice.group_N[~choice.inert_N]
    length_MG = np.concatenate([taught.rollouts.columns["length"] for taught in rounds])
    trainer.ledger.rejected_rollouts += (len(admitted_M) - len(trained_N)) * attempts
    trainer.ledger.training_tokens += int(length_MG[trained_N].sum())
    metrics = {"acceptance": float(admitted_M.mean())}
    rate_M = _solved(rounds)
    if rate_M is not None:
        metrics["rejected_easy"] = float((~admitted_M & (rate_M > 0.5)).mean())
        metrics["rejected_hard"] = float((~admitted_M & (rate_M <= 0.5)).mean())
    if trainer.accelerator.is_main_process:
        metrics = trainer.curriculum.metrics | metrics
    for name, value in metrics.items():
        trainer.record(f"curriculum/{name}", value)
    trainer.record_total("curriculum/rollouts", trainer.ledger.rollouts)
