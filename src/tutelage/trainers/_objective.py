"""An objective in place of the engine's loss. What it divides by is counted over all micro-batches and processes of the generation batch.

Where a generation batch covers more or less than one optimiser step, its counts are scaled to one, as TRL does for its own token counts.
The advantages are the objective's where it defines them (`advantages`), else TRL's. The loss is multiplied by the number of processes,
because gradients are averaged over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
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
        raise TutelageError(f"The objective reads {', '.join(missing)}, which {where} does not have. {hint}")


def prepared(trainer: GRPOLessons, batch: Batch, reward_BF: Tensor, attempts: int) -> Batch:
    """A generation batch with what the objective reads beside TRL's columns: groups, advantages and counts."""
    objective, local = trainer.objective, trainer.local(len(reward_BF))
    mask_BT = batch["completion_mask"] * batch.get("tool_mask", 1)
    group_B = torch.arange(len(reward_BF), device=mask_BT.device) // attempts
    batch["group"] = group_B[local]
    if "group_tokens_B" in objective.requires:
        length_B = trainer.accelerator.gather(mask_BT.sum(1))
        batch["group_tokens"] = torch.zeros_like(length_B).scatter_add_(0, group_B, length_B)[group_B][local]
    if hasattr(objective, "advantages") and getattr(objective, "advantage", None) != "given":
        batch["advantages"] = _own_advantages(trainer, batch, mask_BT, weighted_reward(reward_BF, trainer.reward_weights), attempts)[local]
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
    counts = [trainer.objective.denominators_of(part, max_length=limit) for part in parts]
    total = torch.stack([torch.stack([count[name].float() for name in sorted(counts[0])]) for count in counts]).sum(0)
    total = trainer.accelerator.reduce(total, reduction="sum")
    constants = {name: value for name, value in counts[0].items() if name.endswith("max_length")}
    return dict(zip(sorted(counts[0]), total.unbind(), strict=True)) | constants


def grpo_loss(trainer: GRPOLessons, model: Any, inputs: Batch) -> Tensor:
    """The objective's loss of one micro-batch."""
    training = trainer.model.training
    logp_BT, entropy_BT = trainer.token_columns(model, inputs)
    mask_BT = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
    batch = {"logp_BT": logp_BT, "entropy_BT": entropy_BT, "mask_BT": mask_BT, "group_B": inputs["group"]}
    batch["old_logp_BT"] = inputs.get("old_per_token_logps", logp_BT.detach())
    batch["advantage_B" if inputs["advantages"].ndim == 1 else "advantage_BT"] = inputs["advantages"]
    for ours, theirs in (("ref_logp_BT", "ref_per_token_logps"), ("group_tokens_B", "group_tokens")):
        if theirs in inputs:
            batch[ours] = inputs[theirs]
    scale = trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation if training else 1.0
    counts = {name.removeprefix(COUNTED): value for name, value in inputs.items() if name.startswith(COUNTED)}
    counts = {name: value if name.endswith("max_length") else value * scale for name, value in counts.items()}
    return weighed(trainer, batch, counts, training)


def sft_loss(trainer: SFTLessons, outputs: Any) -> Tensor:
    """The objective's loss of one micro-batch of supervised training."""
    batch = {"logp_BT": outputs.log_probs, "old_logp_BT": outputs.log_probs.detach(), "mask_BT": outputs.label_mask}
    return weighed(trainer, batch | {"entropy_BT": outputs.entropy}, trainer.window_counts, True)


def weighed(trainer: Any, batch: Mapping[str, Tensor], counts: Mapping[str, Tensor], training: bool) -> Tensor:
    loss, stats = trainer.objective(batch, denominators=counts)
    if not training:
        return loss * trainer.accelerator.num_processes
    for name, value in stats.items():  # stats add up over the parts of one step
        trainer.objective_stats[name] = trainer.objective_stats.get(name, 0.0) + value.detach()
    if trainer.accelerator.sync_gradients:
        names = sorted(trainer.objective_stats)
        total = trainer.accelerator.reduce(torch.stack([trainer.objective_stats[n].float() for n in names]), reduction="sum")
        for name, value in zip(names, total.tolist(), strict=True):
            trainer.record(f"objective/{name}", value)
        trainer.objective_stats = {}
    return loss * trainer.accelerator.num_processes


def _own_advantages(trainer: GRPOLessons, batch: Batch, mask_BT: Tensor, reward_B: Tensor, attempts: int) -> Tensor:
    """The objective's advantages of all processes' samples, (B,), or (B, T) for kinds that are per token."""
    needed: frozenset[str] = getattr(trainer.objective, "advantage_requires", frozenset())
    if "old_logp_BT" in needed and "old_per_token_logps" not in batch:  # TRL leaves it out where every step is on-policy
        with torch.no_grad():
            batch["old_per_token_logps"] = trainer.token_columns(trainer.model, batch, trainer.args.per_device_train_batch_size)[0]
    names = {"old_logp_BT": "old_per_token_logps", "ref_logp_BT": "ref_per_token_logps"}
    columns = {"mask_BT": mask_BT} | {ours: batch[theirs] for ours, theirs in names.items() if theirs in batch}
    spread = {name: trainer.accelerator.pad_across_processes(columns[name], dim=1) for name in sorted(needed & set(columns))}
    whole = {name: trainer.accelerator.gather(value) for name, value in spread.items()}
    advantage = trainer.objective.advantages(reward_B.view(-1, attempts), whole)
    return advantage[..., : mask_BT.shape[1]] if advantage.ndim == 2 else advantage
