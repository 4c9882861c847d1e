"""The two training stages of a round of self-play: pairs through TRL's `DPOTrainer`, demonstrations through its `SFTTrainer`.

Both start from the weights the model has, take a given number of optimiser steps with a fresh optimiser, and go on from their newest
whole checkpoint where an earlier process was killed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from transformers import PrinterCallback

from tutelage.curricula.uniform import Uniform
from tutelage.errors import TutelageError, unknown
from tutelage.pools import TaskPool
from tutelage.teachers.replies import Replies
from tutelage.trainers._checkpoint import complete_checkpoints
from tutelage.trainers._dpo_private import LOSS_SETTINGS, REFERENCES, without_traces
from tutelage.trainers.dpo import with_objective
from tutelage.trainers.trl import with_curriculum

__all__ = ["REFERENCES"]
OWNED = ("output_dir", "max_steps", "num_train_epochs", "seed", "data_seed", "max_length", "precompute_ref_log_probs", "sync_ref_model")
DEFAULTS: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_total_limit": 1, "max_length": None}
Settings = Mapping[str, Any]


def check_settings(settings: Settings, config: Any, owned: tuple[str, ...]) -> None:
    """Raise if a setting is none of the configuration's, or is the rounds' own to choose."""
    names = [field.name for field in dataclasses.fields(config)]
    for key in settings:
        if key not in names:
            raise unknown(f"setting of {config.__name__}", key, names)
        if key in owned:
            raise TutelageError(
                f"The setting {key} is chosen by self_play itself: rounds, steps and seed are its arguments, what shapes the loss are the "
                "objective's, and replies are never cut, since their scores are of the whole."
            )


def pair_config(settings: Settings, folder: Path, steps: int, seed: int) -> Any:
    """TRL's settings of a round on pairs."""
    check_settings(settings, trl.DPOConfig, OWNED + LOSS_SETTINGS)
    return trl.DPOConfig(**{**_machine(), **DEFAULTS, **settings, "output_dir": str(folder), "max_steps": steps, "seed": seed})


def supervised_config(settings: Settings, own: Settings, folder: Path, steps: int, seed: int) -> Any:
    """TRL's settings of the control: those of the pairs that supervised training has, and then its own."""
    check_settings(own, trl.SFTConfig, OWNED)
    names = {field.name for field in dataclasses.fields(trl.SFTConfig)}
    shared = {key: value for key, value in settings.items() if key in names}
    fixed = {"output_dir": str(folder), "max_steps": steps, "seed": seed, "completion_only_loss": True}
    return trl.SFTConfig(**{**_machine(), **DEFAULTS, **shared, **own, **fixed})


def precision(args: Any) -> torch.dtype | None:
    """The type of mixed precision that training uses."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def train_pairs(model: Any, tokenizer: Any, pairs: datasets.Dataset, objective: Any, args: Any) -> int:
    """A round on pairs with reference columns; returns the reply tokens trained on."""
    with without_traces(model):
        trainer = with_objective(trl.DPOTrainer)(
            model=model, args=args, train_dataset=pairs, processing_class=tokenizer, objective=objective
        )
        return _trained(trainer)


def train_supervised(model: Any, tokenizer: Any, demonstrations: Replies, args: Any, seed: int) -> int:
    """As many steps of supervised training on demonstrations; returns the reply tokens trained on."""
    both = list(zip(demonstrations.prompt_N, demonstrations.reply_N, strict=True))
    rows = {"input_ids": [p + r for p, r in both], "completion_mask": [[0] * len(p) + [1] * len(r) for p, r in both]}
    curriculum = Uniform(TaskPool(arm=[0] * len(both)), seed=seed)
    with without_traces(model):
        trainer = with_curriculum(trl.SFTTrainer)(
            model=model, args=args, train_dataset=datasets.Dataset.from_dict(rows), processing_class=tokenizer, curriculum=curriculum
        )
        return _trained(trainer)


def _trained(trainer: Any) -> int:
    """Train to the end, from the newest whole checkpoint if there is one; the optimiser's memory is given back.

    In silence: what a round showed is in its report, and the loggers that `report_to` names hear as ever.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=bool(complete_checkpoints(trainer.args.output_dir)) or None)
    trainer.accelerator.free_memory()
    return trainer.ledger.training_tokens


def _machine() -> dict[str, Any]:
    """Full precision on a CPU, where half precision is slow and inexact; TRL's default elsewhere."""
    return {} if torch.cuda.is_available() else {"bf16": False, "use_cpu": True, "dataloader_pin_memory": False}
