"""TRL's `DPOTrainer` with a pairwise objective: DPO, SPIN, TPAW or another, against players that never run during training.

    from tutelage.trainers.dpo import with_objective

    trainer = with_objective(trl.DPOTrainer)(..., train_dataset=pairs, objective=tutelage.objectives.objective("tpaw"))
    trainer.train()

`train_dataset` holds pairs in TRL's format (`prompt`, `chosen`, `rejected`, text or messages), or already as token ids (`prompt_ids`,
`chosen_ids`, `rejected_ids`, end token included), and two columns of J floats each: `ref_chosen_logp` and `ref_rejected_logp`, the
log-probability in nats of the whole reply under each of J players. `tutelage.teachers.replies.score_replies` computes them. No reference
model is loaded, none is kept. (Scores and the policy's own values come from batches of different shapes, so they agree up to rounding:
right at θ = θ_j, TPAW's target multiplier acts on those pairs alone whose rounding falls to its side.)

Everything else is TRL's, under TRL's names. The loss divides by the pairs of the whole optimiser step, so gradient accumulation and the
number of processes do not change it. Checkpoints are whole or not there, as those of `with_curriculum`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import TutelageError, missing_extra
from tutelage.trainers.ledger import Ledger

try:
    import torch
    import trl
    from datasets import Dataset
except ImportError as error:
    raise missing_extra(error.name or "trl", "lm") from error

from tutelage.trainers import _objective, _resume, _rng
from tutelage.trainers._batches import Batch
from tutelage.trainers._checkpoint import complete_checkpoints
from tutelage.trainers._dpo_private import REFERENCES, DPOEngine, WithReferences, changed_loss_settings
from tutelage.trainers._trl_private import check_versions
from tutelage.trainers.trl import CountUpdates

__all__ = ["complete_checkpoints", "with_objective"]
COLUMNS = frozenset(
    f"{part}{side}_{what}" for side in ("chosen", "rejected") for part, what in (("", "logp_BT"), ("", "mask_BT"), ("ref_", "logp_BJ"))
)


@functools.cache
def with_objective(base: type) -> type:
    """The trainer class `base` with a pairwise objective.

    Args:
        base: `trl.DPOTrainer` or a subclass.

    Returns:
        A subclass whose constructor takes, beside everything `base` takes, `objective`: a loss of pairs, see
        `tutelage.objectives.pairwise`. None trains exactly as `base` does. It has `ledger`, what the run has spent, and
        `skipped_checkpoints`, what a resumed run passed over and why. The objective's stats are logged as `objective/<name>`.

    Raises:
        TutelageError: another class, or a version of TRL or transformers that was not tested.
    """
    check_versions()
    if isinstance(base, type) and issubclass(base, PairTraining):
        return base
    if isinstance(base, type) and issubclass(base, trl.DPOTrainer):
        return type(f"Objective{base.__name__}", (PairTraining, base), {"__module__": __name__, "__doc__": base.__doc__})
    raise TutelageError(f"with_objective takes trl.DPOTrainer or a subclass; got {base!r}.")


class PairTraining(DPOEngine):
    """What `with_objective` puts before a DPO trainer."""

    curriculum = None
    barren = 0
    window_counts: dict[str, torch.Tensor]
    data_collator: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *others: Any,
        objective: Any = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective
        self.ledger = Ledger()
        self.skipped_checkpoints: dict[str, str] = {}
        self.objective_stats: dict[str, torch.Tensor] = {}
        if objective is not None:
            _objective.check_columns(objective, COLUMNS, "a DPO trainer", "Use it with GRPO or SFT, or take one of pairs: dpo, spin, tpaw.")
            _check_settings(args, ref_model)
            evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
            for dataset in [train_dataset, *(d for d in evaluated if d is not None)]:
                _check_references(dataset)
            args = copy.copy(args) if args is not None else trl.DPOConfig("trainer_output")
            args.precompute_ref_log_probs = True  # they are: TRL must neither load nor keep a reference model
        super().__init__(model, ref_model, args, data_collator, train_dataset, eval_dataset, *others, **kwargs)
        self.callback_handler.callbacks.insert(0, CountUpdates(self.ledger))
        if objective is not None:
            self.loss_is_scaled_for_ga = True  # the objective divides by the whole step's counts itself
            self.data_collator = WithReferences(self.data_collator)
            self.precompute_ref_logps = False  # from here on TRL need not think of references at all
            self.drop_reference_adapter()
            if self.routes_experts:
                raise TutelageError("An objective replaces TRL's whole loss, router balance included: set router_aux_loss_coef=0.")

    @property
    def remembers(self) -> bool:
        return self.objective is not None

    def state_files(self, folder: Path) -> None:
        _resume.write(self, folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint: a path, or True for the newest whole one in `output_dir`."""
        if self.remembers and resume_from_checkpoint:
            resume_from_checkpoint = _resume.take_up(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        given = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in given if self.objective is not None else ():
            if dataset is not None and not isinstance(dataset, str):  # a name is that of a data set checked before
                _check_references(dataset)
        with _rng.preserved() if self.objective is not None else contextlib.nullcontext():
            return super().evaluate(eval_dataset, *args, **kwargs)

    def count_window(self, batches: list[Batch]) -> None:
        device = self.accelerator.device
        masks = [batch["completion_mask"].to(device)[:, 1:] for batch in batches]
        self.window_counts = _objective.counted(self, [{"chosen_mask_BT": mask.chunk(2)[0]} for mask in masks])
        seen = sum(batch["attention_mask"].to(device).sum() for batch in batches)
        tokens = self.accelerator.reduce(torch.stack([sum(mask.sum() for mask in masks), seen]), reduction="sum").tolist()
        self.ledger.training_tokens += tokens[0]
        self.count_tokens(tokens[1])

    def objective_loss(self, batch: Batch, training: bool) -> torch.Tensor:
        if not training:
            return self.objective(batch, denominators=self.objective.denominators_of(batch))[0]
        return _objective.weighed(self, self.objective, batch, self.window_counts, True)


def _check_settings(args: Any, ref_model: Any) -> None:
    if ref_model is not None:
        raise TutelageError(
            "An objective reads its references from the columns ref_chosen_logp and ref_rejected_logp, and ref_model would have no say. "
            "Leave it out; score_replies(ref_model, ...) of tutelage.teachers.replies makes the columns."
        )
    changed = changed_loss_settings(args) if args is not None else []
    if changed:
        raise TutelageError(
            f"{', '.join(changed)} of DPOConfig shape TRL's loss, which the objective replaces. Leave them at their defaults and give the "
            "objective its own: objective('dpo', beta=0.3)."
        )


def _check_references(dataset: Any) -> None:
    """Two columns with one and the same number of finite floats in every row."""
    if not isinstance(dataset, Dataset):
        raise TutelageError(
            f"The pairs are a {type(dataset).__name__}; expected a datasets.Dataset, whose reference columns can be checked. Load the data "
            "without streaming, or turn a finite stream into one: Dataset.from_generator(lambda: iter(stream))."
        )
    names = dataset.column_names
    missing = [name for name in REFERENCES if name not in names]
    if missing:
        raise TutelageError(
            f"The data set has no column {' and no column '.join(missing)}; it has {', '.join(names) or 'none that can be told'}. The "
            "objective needs the log-probability of both replies under each player, a list of J floats a row: "
            "tutelage.teachers.replies.score_replies computes them, once."
        )
    shapes = []
    for name in REFERENCES:
        rows = list(dataset.with_format(None)[name])
        width = len(rows[0]) if isinstance(rows[0], list) else 0
        for number, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != width or width == 0 or not np.isfinite(np.asarray(row, dtype=np.float64)).all():
                raise TutelageError(
                    f"Row {number} has {name}={row!r}; expected a list of {width or 'J'} finite floats, one per player, in every row. With "
                    "one player it is a list of one."
                )
        shapes.append(width)
    if shapes[0] != shapes[1]:
        raise TutelageError(f"{REFERENCES[0]} has {shapes[0]} players and {REFERENCES[1]} {shapes[1]}; score both under the same ones.")
