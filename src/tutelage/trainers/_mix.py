"""What one optimiser step is made of, where the parts of a `Sum` read different rows or a controller sets their weights.

At the start of a step, on every process: the controller (asked on rank 0) gives the weights of the parts that take part, from what the
last step showed; the demonstrations of the step are drawn, if a part reads them. Where no part reads rollouts, nothing is proposed and
nothing generated. In each micro-batch the forward pass over rollouts and that over demonstrations are followed by one backward pass of
the weighted sum; each part divides by what was counted over all micro-batches and processes of the step.

Nothing is measured by an extra pass: a part's gradient norm is the engine's own, which it clips by, of a step on that part alone. Only a
controller that sums parts and wants the norm of one (SASR's "expected" mode) costs a second backward pass of that part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType
from accelerate.utils import send_to_device
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.objectives.compose import Sum
from tutelage.trainers._batches import Batch
from tutelage.trainers._sources import Source, scored, tokenised, tokeniser
from tutelage.trainers._sync import decide

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons

SOURCE = "demonstrations"


def reads(part: Any, source: str = SOURCE) -> bool:
    """Whether an objective reads a source; one that reads a source and the rollouts too raises `TutelageError`."""
    inside = {key.startswith(f"{source}/") for key in part.requires}
    if len(inside) == 2:
        raise TutelageError(
            f"{part!r} reads both rollouts and {source}. A trainer must be able to leave either out: make each a part of the outermost Sum."
        )
    return inside == {True}


def rollout_part(objective: Any) -> Any:
    """The part of an objective that reads rollouts."""
    if not isinstance(objective, Sum):
        found = None if reads(objective) else objective
    else:
        own = {name: weight for name, (part, weight) in objective.parts.items() if not reads(part)}
        found = objective if len(own) == len(objective.parts) else objective.only(own) if own else None
    if found is None:
        raise TutelageError(
            f"No part of the objective reads rollouts, so there is nothing to do for GRPO. Train on {SOURCE} with trl.SFTTrainer."
        )
    return found


def of(trainer: GRPOLessons, dataset: Any, per_step: int | None) -> Mix | None:
    """The trainer's mix; None where its objective reads rollouts alone with fixed weights."""
    objective = trainer.objective
    parts = [part for part, _ in objective.parts.values()] if isinstance(objective, Sum) else []
    wanted = any(reads(part) for part in parts)
    if dataset is None and per_step is not None:
        raise TutelageError(f"{SOURCE}_per_step={per_step!r} was given without {SOURCE}=.")
    if dataset is not None and not wanted:
        raise TutelageError(
            f"{SOURCE}= was given and no part of the objective reads them. Say how they are learned: objective=Sum({{'policy': "
            f"(objective('grpo'), 1.0), 'imitate': (On({SOURCE!r}, objective('nll')), 0.1)}})."
        )
    if getattr(objective, "controller", None) is not None:
        _check_window(trainer)
    elif not wanted:
        return None
    return Mix(trainer, _source(trainer, dataset, per_step) if wanted else None)


class Mix:
    """The weights and the demonstrations of a trainer's steps.

    active: the objective of the current step, the parts that take part. counts: what its parts on demonstrations divide by. stats: what
    the step has shown so far. controller: the trainer's own copy, so that an objective can be given to several trainers. queue: this
    process's micro-batches of demonstrations that are still to come in this step. rolls_out: whether a part of it reads rollouts.
    gradients: sums over the micro-batches so far, of parts whose own gradient is measured.
    """

    def __init__(self, trainer: GRPOLessons, source: Source | None) -> None:
        self.trainer, self.source = trainer, source
        self.controller = copy.deepcopy(trainer.objective.controller)
        self.active: Sum = trainer.objective.only({name: weight for name, (_, weight) in trainer.objective.parts.items()})
        self.counts: dict[str, Tensor] = {}
        self.stats: dict[str, float] = {}
        self.queue: list[Batch] = []
        self.rolls_out = True
        self.gradients: dict[str, list[Tensor]] = {}

    def begin(self, micro_batches: int) -> None:
        """Start an optimiser step of so many micro-batches."""
        trainer = self.trainer
        if self.controller is not None:
            self.active = self.decided()
        self.stats, self.counts, self.queue, self.gradients = {}, {}, [], {}
        learned = {name: 1.0 for name, (part, _) in self.active.parts.items() if reads(part)}
        self.rolls_out = len(learned) < len(self.active.parts)
        if learned and self.source is not None:
            window = self.source.draw(micro_batches, *trainer.shares)
            self.queue = window.batches
            mask_BT = self.source.mask(window.rows_N).to(trainer.accelerator.device)
            own = {f"{SOURCE}/mask_BT": mask_BT}
            self.counts = self.active.only(learned).denominators_of(own, max_length=trainer.max_completion_length)
            trainer.ledger.training_tokens += int(mask_BT.sum())

    def decided(self) -> Sum:
        """What the controller wants of the next step, the same on every process."""
        active = self.weighed(decide(lambda: self.controller.update(self.stats)))
        if self.trainer.accelerator.is_main_process:
            for name, value in self.controller.metrics.items():
                self.trainer.record(f"{self.controller.name}/{name}", value)
        return active

    def inputs(self, roll_out: Callable[[], Batch]) -> Batch:
        """The next micro-batch: rollouts if a part reads them, and demonstrations, their keys prefixed, if a part reads those."""
        batch = dict(roll_out()) if self.rolls_out else {}
        if self.queue:
            demonstrations = send_to_device(self.queue.pop(0), self.trainer.accelerator.device)
            batch |= {f"{SOURCE}/{key}": value for key, value in demonstrations.items()}
        return batch

    def columns(self, model: Any, inputs: Batch) -> dict[str, Tensor]:
        """What the objective reads of a micro-batch's demonstrations; none where it has none."""
        own = {key.removeprefix(f"{SOURCE}/"): value for key, value in inputs.items() if key.startswith(f"{SOURCE}/")}
        if not own:
            return {}
        seen = scored(self.trainer, model, own)
        found = {"logp_BT": seen.log_probs, "old_logp_BT": seen.log_probs.detach(), "mask_BT": seen.label_mask, "entropy_BT": seen.entropy}
        return {f"{SOURCE}/{key}": value for key, value in found.items()}

    def measure(self, batch: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """Gradient norms of the parts that the controller measures in a step of several, by a backward pass of their own."""
        if self.controller is None or len(self.active.parts) < 2:
            return
        weights = {name: weight for name, (_, weight) in self.trainer.objective.parts.items()}
        for name in sorted(self.controller.measures & set(self.active.parts)):
            loss, _ = self.active.only({name: weights[name]})(batch, denominators=counts)
            leaves = [p for p in self.trainer.model.parameters() if p.requires_grad]
            found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            fresh = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]
            sums = self.gradients.setdefault(name, fresh)
            if sums is not fresh:
                for total, g in zip(sums, fresh, strict=True):
                    total += g
            if self.trainer.accelerator.sync_gradients:
                whole = [self.trainer.accelerator.reduce(g, reduction="sum") for g in sums]
                self.stats[f"{name}/grad_norm"] = torch.stack([g.float().norm() for g in whole]).norm().item()
                del self.gradients[name]

    def clipped(self, norm: Any) -> None:
        """Told at the end of each step: the engine's gradient norm, before clipping."""
        if self.controller is None:
            return
        if norm is None:
            raise TutelageError(
                f"The controller {self.controller.name!r} needs the gradient norm of each step, and this engine "
                f"({self.trainer.accelerator.distributed_type.value}) does not tell it before the step. Train with DDP or FSDP."
            )
        self.stats["grad_norm"] = value = float(norm)
        if len(self.active.parts) == 1:
            self.stats[f"{next(iter(self.active.parts))}/grad_norm"] = value

    def state_dict(self) -> dict[str, Any]:
        return {
            "stats": self.stats,
            "source": None if self.source is None else self.source.state_dict(),
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in (("source", self.source), ("controller", self.controller)):
            if (part is None) != (state[name] is None):
                raise TutelageError(
                    f"The checkpoint was made {'with' if part is None else 'without'} a {name} of the objective; give the same one."
                )
            if part is not None:
                part.load_state_dict(state[name])
        self.stats = dict(state["stats"])

    def weighed(self, weights: Mapping[str, float]) -> Sum:
        """The parts named, at their own weights times these."""
        if not weights:
            raise TutelageError(f"The controller {self.controller.name!r} left no part of the objective for this step; name at least one.")
        parts = self.trainer.objective.parts
        return self.trainer.objective.only({name: w * (parts[name][1] if name in parts else 1.0) for name, w in weights.items()})


def _source(trainer: GRPOLessons, dataset: Any, per_step: int | None) -> Source:
    """The tokenised demonstrations; by default as many per step as tasks are rolled out for it."""
    if dataset is None:
        raise TutelageError(f"The objective reads {SOURCE}, and there are none. Give the trainer a data set of them: {SOURCE}=dataset.")
    args, world = trainer.args, trainer.accelerator.num_processes
    samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
    examples = tokenised(dataset, tokeniser(trainer), trainer.text_tokenizer.eos_token, SOURCE)
    seed = args.seed if args.data_seed is None else args.data_seed
    return Source(SOURCE, examples, max(samples // trainer.num_generations, 1) if per_step is None else per_step, seed, trainer.pad_id)


def _check_window(trainer: GRPOLessons) -> None:
    """Raise unless one generation batch is one optimiser step, so that a step can be without one."""
    args, controller = trainer.args, trainer.objective.controller
    if args.steps_per_generation != args.gradient_accumulation_steps or trainer.num_iterations != 1:
        raise TutelageError(
            f"The controller {controller.name!r} decides at every optimiser step whether to generate, so a generation batch must be one "
            f"step; here steps_per_generation={args.steps_per_generation}, gradient_accumulation_steps={args.gradient_accumulation_steps} "
            f"and num_iterations={trainer.num_iterations}. Set steps_per_generation={args.gradient_accumulation_steps} (and no "
            "generation_batch_size) and num_iterations=1 in GRPOConfig."
        )
    sharded = trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if controller.measures and sharded:
        raise TutelageError(
            f"The controller {controller.name!r} measures the gradient of one part of a sum, which a sharded model cannot give. "
            "Use mode='coin', which needs no more than the norm that the engine clips by."
        )
