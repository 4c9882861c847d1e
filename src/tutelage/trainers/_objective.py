"""An objective in place of the engine's loss. What it divides by is counted over all micro-batches and processes of the generation batch.

Where a generation batch covers more or less than one optimiser step, its counts are scaled to one, as TRL does for its own token counts.
The advantages are the objective's where it defines them (`advantages`, of a sum those of the part that has them), else TRL's. The loss is
multiplied by the number of processes, because gradients are averaged over them. Parts that read other rows than the rollouts, and weights
that change from step to step, are the business of `_mix.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.objectives.compose import Sum
from tutelage.trainers import _distillation
from tutelage.trainers._batches import Batch, weighted_reward

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons, SFTLessons

GRPO_COLUMNS = frozenset({"logp_BT", "old_logp_BT", "mask_BT", "advantage_B", "advantage_BT", "entropy_BT", "group_B", "group_tokens_B"})
SFT_COLUMNS = frozenset({"logp_BT", "old_logp_BT", "mask_BT", "entropy_BT"})
COUNTED = "denominator:"


def check_columns(objective: Any, columns: frozenset[str], where: str, hint: str) -> None:
    """Raise unless the engine can give every column that the objective reads."""
    missing = sorted(set(objective.requires) - columns)
    if missing:
        hint = _distillation.HINT if any(name.startswith("teacher_") for name in missing) else hint
        raise TutelageError(f"The objective reads {', '.join(missing)}, which {where} does not have. {hint}")


def prepared(trainer: GRPOLessons, batch: Batch, reward_BF: Tensor, attempts: int) -> Batch:
    """A generation batch with what the objective reads beside TRL's columns: groups, advantages and counts."""
    objective, local = trainer.main_objective, trainer.local(len(reward_BF))
    policy, reward_B = with_advantages(objective), weighted_reward(reward_BF, trainer.reward_weights)
    if trainer.mix is not None and trainer.model.training:
        trainer.mix.stats["reward"] = reward_B.nanmean().item()
    mask_BT = batch["completion_mask"] * batch.get("tool_mask", 1)
    group_B = torch.arange(len(reward_BF), device=mask_BT.device) // attempts
    batch["group"] = group_B[local]
    if "group_tokens_B" in objective.requires:
        length_B = trainer.accelerator.gather(mask_BT.sum(1))
        batch["group_tokens"] = torch.zeros_like(length_B).scatter_add_(0, group_B, length_B)[group_B][local]
    if policy is not None:
        batch["advantages"] = _own_advantages(trainer, policy, batch, mask_BT, reward_B, attempts)[local]
    if "advantage_BT" in objective.requires and batch["advantages"].ndim == 1:
        batch["advantages"] = batch["advantages"].unsqueeze(1) * mask_BT
    live_B = batch.get("live", torch.ones(len(mask_BT), dtype=torch.bool, device=mask_BT.device))
    counts = counted(trainer, [{"mask_BT": mask_BT[live_B], "group_B": batch["group"][live_B]}])
    groups = trainer.accelerator.gather(live_B).view(-1, attempts).any(1).sum()  # a group may straddle two processes
    for name, count in counts.items():
        batch[COUNTED + name] = groups if name.endswith("groups") else count
    return batch


def counted(trainer: Any, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The objective's denominators over parts on all processes."""
    limit = getattr(trainer, "max_completion_length", None) or getattr(trainer.args, "max_length", None)
    counts = [trainer.main_objective.denominators_of(part, max_length=limit) for part in parts]
    total = torch.stack([torch.stack([count[name].float() for name in sorted(counts[0])]) for count in counts]).sum(0)
    total = trainer.accelerator.reduce(total, reduction="sum")
    constants = {name: value for name, value in counts[0].items() if name.endswith("max_length")}
    return dict(zip(sorted(counts[0]), total.unbind(), strict=True)) | constants


def grpo_loss(trainer: GRPOLessons, model: Any, inputs: Batch) -> Tensor:
    """The objective's loss of one micro-batch."""
    training, mix = trainer.model.training, trainer.mix
    batch, counts = _rollouts(trainer, model, inputs) if "completion_ids" in inputs else ({}, {})
    if mix is None or not training:
        return weighed(trainer, trainer.main_objective, batch, counts, training)
    batch, counts = batch | mix.columns(model, inputs), counts | mix.counts
    mix.measure(batch, counts)
    return weighed(trainer, mix.active, batch, counts, training)


def with_advantages(objective: Any) -> Any:
    """The objective, or the one part of a sum, that computes its own advantages; None if there is none."""
    parts = [part for part, _ in objective.parts.values()] if isinstance(objective, Sum) else [objective]
    found = [part for part in parts if hasattr(part, "advantages") and getattr(part, "advantage", None) != "given"]
    if len(found) > 1:
        raise TutelageError(
            f"{len(found)} parts of the objective compute advantages, and a batch has one column of them. Leave one such part, or give all "
            "but it advantage='given'."
        )
    return found[0] if found else None


def _rollouts(trainer: GRPOLessons, model: Any, inputs: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The columns of a micro-batch of rollouts, and what its part of the objective divides by."""
    mask_BT = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
    if _distillation.reads_logits(trainer):
        batch = _distillation.grpo_columns(trainer, model, inputs, mask_BT)
    else:
        batch = dict(zip(("logp_BT", "entropy_BT"), trainer.token_columns(model, inputs), strict=True))
    batch |= {"mask_BT": mask_BT, "group_B": inputs["group"]}
    batch["old_logp_BT"] = inputs.get("old_per_token_logps", batch["logp_BT"].detach())
    if "no_ratio" in inputs:  # see `_intervention.py`: a ratio of 1 with the gradient of the log-likelihood
        batch["old_logp_BT"] = torch.where(inputs["no_ratio"].unsqueeze(1), batch["logp_BT"].detach(), batch["old_logp_BT"])
    batch["advantage_B" if inputs["advantages"].ndim == 1 else "advantage_BT"] = inputs["advantages"]
    for ours, theirs in (("ref_logp_BT", "ref_per_token_logps"), ("group_tokens_B", "group_tokens")):
        if theirs in inputs:
            batch[ours] = inputs[theirs]
    scale = trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation if trainer.model.training else 1.0
    counts = {name.removeprefix(COUNTED): value for name, value in inputs.items() if name.startswith(COUNTED)}
    return batch, {name: value if name.endswith("max_length") else value * scale for name, value in counts.items()}


def sft_loss(trainer: SFTLessons, outputs: Any) -> Tensor:
    """The objective's loss of one micro-batch of supervised training."""
    batch = {"logp_BT": outputs.log_probs, "old_logp_BT": outputs.log_probs.detach(), "mask_BT": outputs.label_mask}
    batch |= {"entropy_BT": outputs.entropy, **getattr(outputs, "columns", {})}
    return weighed(trainer, trainer.main_objective, batch, trainer.window_counts, True)


def weighed(trainer: Any, objective: Any, batch: Mapping[str, Tensor], counts: Mapping[str, Tensor], training: bool) -> Tensor:
    loss, stats = objective(batch, denominators=counts)
    if not training:
        return loss * trainer.accelerator.num_processes
    for name, value in stats.items():  # stats add up over the parts of one step
        trainer.objective_stats[name] = trainer.objective_stats.get(name, 0.0) + value.detach()
    if trainer.accelerator.sync_gradients:
        names = sorted(trainer.objective_stats)
        total = trainer.accelerator.reduce(torch.stack([trainer.objective_stats[n].float() for n in names]), reduction="sum")
        for name, value in zip(names, total.tolist(), strict=True):
            trainer.record(f"objective/{name}", value)
        if trainer.mix is not None:
            trainer.mix.stats |= dict(zip(names, total.tolist(), strict=True))
        trainer.objective_stats = {}
    return loss * trainer.accelerator.num_processes


def _own_advantages(trainer: GRPOLessons, policy: Any, batch: Batch, mask_BT: Tensor, reward_B: Tensor, attempts: int) -> Tensor:
    """The objective's advantages of all processes' samples, (B,), or (B, T) for kinds that are per token."""
    needed: frozenset[str] = getattr(policy, "advantage_requires", frozenset())
    if "old_logp_BT" in needed and "old_per_token_logps" not in batch:  # TRL leaves it out where every step is on-policy
        with torch.no_grad():
            batch["old_per_token_logps"] = trainer.token_columns(trainer.model, batch, trainer.args.per_device_train_batch_size)[0]
    names = {"old_logp_BT": "old_per_token_logps", "ref_logp_BT": "ref_per_token_logps"}
    columns = {"mask_BT": mask_BT} | {ours: batch[theirs] for ours, theirs in names.items() if theirs in batch}
    spread = {name: trainer.accelerator.pad_across_processes(columns[name], dim=1) for name in sorted(needed & set(columns))}
    whole = {name: trainer.accelerator.gather(value) for name, value in spread.items()}
    advantage = policy.advantages(reward_B.view(-1, attempts), whole)
    return advantage[..., : mask_BT.shape[1]] if advantage.ndim == 2 else advantage
