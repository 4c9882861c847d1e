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
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.trainers import _intervention
from tutelage.trainers._batches import (
    Batch,
    Rollouts,
    Sample,
    advantages,
    completion_metrics,
    put_together,
    reward_metrics,
    take_apart,
    token_columns,
)
from tutelage.trainers._grpo_private import PER_SAMPLE
from tutelage.trainers._lesson import Taught, answer_wants, teach
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
    answer_wants(trainer)
    mark = {name: len(values) for name, values in trainer.training_metrics.items()}
    rounds = [teach(trainer)]
    while _admitted(rounds).sum() < trainer.groups_per_batch and len(rounds) < trainer.refill_cap:
        rounds.append(teach(trainer))
    admitted_M = _admitted(rounds)
    _check_enough(trainer, rounds, admitted_M)
    choice = choose(admitted_M, trainer.groups_per_batch, partial=trainer.on_short == "partial")
    batch, reward_BF = rounds[0].rollouts.batch, rounds[0].rollouts.reward_BF
    if any(taught.help.stand_ins for taught in rounds) or not admitted_M.all():
        batch, reward_BF = assemble(trainer, [taught.rollouts for taught in rounds], choice, mark, [taught.help for taught in rounds])
    _account(trainer, rounds, choice, admitted_M)
    if trainer.objective is not None:
        batch = trainer.prepared(batch, reward_BF, trainer.num_generations)
        _intervention.cap_own_advantages(batch)
    return batch


def choose(admitted_M: NDArray[np.bool_], wanted: int, *, partial: bool) -> Choice:
    """The first `wanted` admitted groups. Too few are made up by the first rejected ones, or (partial) by inert copies of the admitted."""
    chosen_N = np.flatnonzero(admitted_M)[:wanted]
    short = wanted - len(chosen_N)
    filler_N = np.resize(chosen_N, short) if partial else np.flatnonzero(~admitted_M)[:short]
    return Choice(np.concatenate([chosen_N, filler_N]), np.arange(wanted) >= wanted - short * partial)


def assemble(
    trainer: GRPOLessons, rounds: Sequence[Rollouts], choice: Choice, mark: dict[str, int], helps: Sequence[_intervention.Help] = ()
) -> tuple[Batch, Tensor]:
    """This process's part of the training batch of the chosen groups, wherever their samples were generated, and all its raw rewards.

    Advantages, counts, metrics and TRL's table of completions are those of a batch that was generated in one. helps: what a teacher changed
    in each round; its stand-ins take the places of the samples that gave way.
    """
    attempts = trainer.num_generations
    own_B = (choice.group_N[:, None] * attempts + np.arange(attempts)).ravel()  # samples, counted over rounds, then over ranks
    live_B = np.repeat(~choice.inert_N, attempts)
    local = trainer.local(len(own_B))
    sources = [*rounds, *(rollouts for help in helps for rollouts in help.rollouts)]
    stand_ins, number_B = _stand_ins(rounds, helps, own_B, live_B)
    samples, wide = _fetch(trainer, sources, own_B, number_B, local)
    kept = {row: sample.pop(_intervention.GUIDED_LOGP) for row, sample in enumerate(samples) if _intervention.GUIDED_LOGP in sample}
    batch = put_together(samples, wide, pad_id=trainer.pad_id, multiple_of=trainer.pad_to_multiple_of)
    reward_BF = torch.cat([r.reward_BF for r in sources])[torch.from_numpy(number_B).to(rounds[0].reward_BF.device)]
    alive_B = torch.from_numpy(live_B).to(reward_BF.device)
    rule = {"scale": trainer.scale_rewards, "aggregation": trainer.multi_objective_aggregation}
    advantage_L, std_L = advantages(reward_BF[alive_B], trainer.reward_weights, attempts, **rule)
    advantage_B = torch.zeros_like(alive_B, dtype=advantage_L.dtype).masked_scatter(alive_B, advantage_L)
    advantage_B = _intervention.capped(advantage_B, stand_ins)
    if batch["advantages"].ndim == 1:  # a subclass's advantages per token stay as they are
        batch["advantages"] = advantage_B[local].to(batch["advantages"])
    batch["completion_mask"] = batch["completion_mask"] * alive_B[local].to(batch["completion_mask"]).unsqueeze(1)
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    batch["num_items_in_batch"] = trainer.accelerator.gather(mask.sum()).sum()
    if not live_B.all():
        batch["live"] = alive_B[local]
        reward_BF[~alive_B] = torch.nan
        if trainer.loss_type in PER_SAMPLE:
            batch["loss_scale"] = torch.tensor(float(len(live_B) / live_B.sum()), device=mask.device)
    told = reward_metrics(reward_BF[alive_B], trainer.reward_weights, trainer.reward_func_names, std_L)
    _rewrite_metrics(trainer, sources, own_B[live_B], number_B[live_B], mark, told, advantage_B[alive_B].tolist())
    _intervention.settle(trainer, batch, stand_ins, kept, len(own_B))
    return batch, reward_BF


def _stand_ins(
    rounds: Sequence[Rollouts], helps: Sequence[_intervention.Help], own_B: NDArray[np.int64], live_B: NDArray[np.bool_]
) -> tuple[dict[int, _intervention.StandIn], NDArray[np.int64]]:
    """The stand-ins by their place in the training batch, and the number of the sample in each place, over rounds and then helps."""
    size = len(rounds[0].reward_BF)
    guided = [sum(len(rollouts.reward_BF) for rollouts in help.rollouts) for help in helps]
    first = size * len(rounds) + np.cumsum([0, *guided])
    stand_ins, number_B = {}, own_B.copy()
    for place, (own, live) in enumerate(zip(own_B.tolist(), live_B, strict=True)):
        stand_in = helps[own // size].stand_ins.get(own % size) if helps and live else None
        if stand_in is not None:
            stand_ins[place], number_B[place] = stand_in, first[own // size] + stand_in.number
    return stand_ins, number_B


def _fetch(
    trainer: GRPOLessons, sources: Sequence[Rollouts], own_B: NDArray[np.int64], number_B: NDArray[np.int64], local: slice
) -> tuple[list[Sample], frozenset[str]]:
    """The samples of this process's part, from whichever process generated them, and which of their columns run over tokens.

    own_B: whose prompt a sample has. number_B: whose everything else. The two differ where a teacher put in a guided attempt.
    """
    wide = token_columns([r.batch for r in sources])
    needed = {*own_B.tolist(), *number_B.tolist()}
    mine: dict[int, Sample] = {}
    end = 0
    for rolled in sources:
        part, end = trainer.local(len(rolled.reward_BF)), end + len(rolled.reward_BF)
        numbers = range(end - len(rolled.reward_BF) + part.start, end - len(rolled.reward_BF) + part.stop)
        if needed.intersection(numbers):
            samples = take_apart(rolled.batch, rolled.length_b, wide)
            mine |= {n: sample for n, sample in zip(numbers, samples, strict=True) if n in needed}
    if trainer.accelerator.num_processes > 1:
        mine = {n: {key: value.cpu() for key, value in sample.items()} for n, sample in mine.items()}
    everybody = {n: sample for part in gathered([mine]) for n, sample in part.items()}
    device = trainer.accelerator.device
    chosen = [
        everybody[n] | {key: value for key, value in everybody[own].items() if key.startswith("prompt")}
        for own, n in zip(own_B[local].tolist(), number_B[local].tolist(), strict=True)
    ]
    return [{key: value.to(device) for key, value in sample.items()} for sample in chosen], wide


def _rewrite_metrics(
    trainer: GRPOLessons,
    sources: Sequence[Rollouts],
    own_L: NDArray[np.int64],
    number_L: NDArray[np.int64],
    mark: dict[str, int],
    told: dict[str, float],
    advantage_L: list[float],
) -> None:
    """One value per metric for the whole training batch: of the samples trained on where that can be told, else the rounds' mean."""
    length_L, ended_L = (np.concatenate([r.columns[name].ravel() for r in sources])[number_L] for name in ("length", "ended"))
    told = told | completion_metrics(length_L, ended_L)
    for name, values in trainer.training_metrics.items():
        fresh = values[mark.get(name, 0) :]
        if fresh and name != "num_tokens":  # TRL keeps a running total there
            values[mark.get(name, 0) :] = [told.get(name, float(np.nanmean(fresh)))]
    for name in sources[0].texts:
        everything = [entry for r in sources for entry in r.texts.get(name, [None] * len(r.reward_BF))]
        rows_L = own_L if name == "prompt" else number_L
        trainer.table_column(name).extend(advantage_L if name == "advantages" else [everything[n] for n in rows_L])


def _admitted(rounds: Sequence[Taught]) -> NDArray[np.bool_]:
    return np.concatenate([taught.admitted_N for taught in rounds])


def _solved(rounds: Sequence[Taught]) -> NDArray[np.float64] | None:
    """Pass rates of all groups drawn (M,), 0 where unscorable; None without a judgement."""
    if any("solved" not in taught.rollouts.columns for taught in rounds):
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
    length_MG = np.concatenate([taught.columns["length"] for taught in rounds])
    gave_way = [r * trainer.groups_per_batch + place // attempts for r, taught in enumerate(rounds) for place in taught.help.stand_ins]
    trainer.ledger.rejected_rollouts += (len(admitted_M) - len(trained_N)) * attempts + int(np.isin(gave_way, trained_N).sum())
    trainer.ledger.training_tokens += int(length_MG[trained_N].sum())
    metrics = {"acceptance": float(admitted_M.mean())} if trainer.curriculum.filters else {}
    rate_M = _solved(rounds) if metrics else None
    if rate_M is not None:
        metrics["rejected_easy"] = float((~admitted_M & (rate_M > 0.5)).mean())
        metrics["rejected_hard"] = float((~admitted_M & (rate_M <= 0.5)).mean())
    if trainer.accelerator.is_main_process:
        metrics = trainer.curriculum.metrics | metrics
    for name, value in metrics.items():
        trainer.record(f"curriculum/{name}", value)
    trainer.training_metrics["curriculum/rollouts"] = [float(trainer.ledger.rollouts)]  # a running total, not a mean
