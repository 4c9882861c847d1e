"""TRL: a curriculum, an objective, and checkpoints that hold, in two changed lines.

    from tutelage.trainers.trl import with_curriculum

    trainer = with_curriculum(trl.GRPOTrainer)(..., train_dataset=dataset, curriculum=cur)
    trainer.train()

Everything else is TRL's, under TRL's names. The dataloader is only a clock: rows come from `propose` at the moment of generation, so that
a decision uses every outcome before it; in supervised training, at the moment of the optimiser step that they are for. Rank 0 decides
and broadcasts; whole groups are gathered before `observe`. TRL's `shuffle_dataset` (of GRPO) and the loader's worker settings have no
say in training. Evaluation leaves every random state as it was. With `curriculum=None` and no objective a trainer is TRL's to the bit.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError, missing_extra
from tutelage.trainers.ledger import Ledger, Lesson

try:
    import torch
    import trl
    from datasets import Dataset as HFDataset
    from datasets import IterableDataset
    from torch.utils.data import DataLoader, Dataset
    from transformers import TrainerCallback
except ImportError as error:
    raise missing_extra(error.name or "trl", "lm") from error

from tutelage.trainers import _distillation, _gkd, _intervention, _mix, _objective, _refill, _resume, _rng, _signals, _supervised
from tutelage.trainers._batches import Batch
from tutelage.trainers._checkpoint import complete_checkpoints
from tutelage.trainers._gkd import GKDRule
from tutelage.trainers._grpo_private import GRPOEngine
from tutelage.trainers._judgement import Judge
from tutelage.trainers._trl_private import Engine, SFTEngine, check_versions

__all__ = ["GKDRule", "Ledger", "Lesson", "complete_checkpoints", "with_curriculum"]
OnShort = Literal["pad", "partial", "raise"]


@functools.cache
def with_curriculum(base: type) -> type:
    """The trainer class `base` with curriculum learning.

    Args:
        base: `trl.GRPOTrainer`, `trl.SFTTrainer`, or a subclass of either.

    Returns:
        A subclass whose constructor takes, beside everything `base` takes:

        - `curriculum`: what the model learns next, over a pool whose row i is row i of `train_dataset`. None trains exactly as `base` does;
          what else is said here of lessons has then no effect.
        - `objective`: a loss in place of TRL's, see `tutelage.objectives`. Losses that TRL has are left to TRL (`loss_type`).
        - `teacher`: who gives a further signal, see `tutelage.teachers`. One that scores feeds the objective that reads its columns: on
          GRPO that is on-policy distillation, on SFT distillation on the data's completions. One that intervenes (`egsr`) takes GRPO and
          a curriculum: the curriculum observes the student's own attempts, and admits or rejects the groups that the teacher has mixed.
        - `lesson_callbacks`: functions `f(lesson: Lesson)`, called on rank 0 after every lesson.

        and, for GRPO:

        - `solved`: which judgement the curriculum sees: None for the first reward function where its values lie in [0, 1]; a reward
          function's name; or a callable with a reward function's signature.
        - `refill_cap`: for a curriculum that filters, how many generation batches may be drawn for one training batch (at least 1).
        - `on_short`: what happens when the cap is reached and groups are missing. "pad": the first rejected groups train, unfiltered; after
          ten batches in a row without one admitted group it raises. "partial": the admitted groups alone train. "raise": an error.
        - `demonstrations`: a `datasets.Dataset` of prompts and completions (or messages) for the parts of the objective that are
          `On("demonstrations", ...)`; they train in the same optimiser steps, see `_sources.py`. Their passes are kept in memory
          together with those over the rollouts of a micro-batch.
        - `demonstrations_per_step`: how many of them in one optimiser step, over all micro-batches and processes; by default as many as
          tasks are rolled out for it.

        A controller in the objective (SASR) decides at the start of each step which parts take part: in a step without a part on rollouts
        nothing is proposed or generated. Without a curriculum the prompts that TRL's loader had for that step are passed over.

        GRPO measures what a curriculum asks for: attempts, and by a forward pass the angle concentration of prompts (`wants`) and of
        rollouts (`needs`), see `tutelage.students.angles`; the length of prompts too.

        and, for SFT with a teacher:

        - `data_rule`: whose completions a step trains on, a `GKDRule`: the data's, the student's own or the teacher's.

        It has `ledger`, what the run has spent; `curriculum_seconds`, the time the curriculum took on rank 0; and `skipped_checkpoints`,
        what a resumed run passed over and why. Metrics of the curriculum are logged as `curriculum/<name>`, the teacher's as
        `teacher/<name>`.

    Raises:
        TutelageError: another class, or a version of TRL or transformers that was not tested.
    """
    check_versions()
    if isinstance(base, type) and issubclass(base, Lessons):
        return base
    for engine, lessons in ((trl.GRPOTrainer, GRPOLessons), (trl.SFTTrainer, SFTLessons)):
        if isinstance(base, type) and issubclass(base, engine):
            return type(f"Curriculum{base.__name__}", (lessons, base), {"__module__": __name__, "__doc__": base.__doc__})
    raise TutelageError(f"with_curriculum takes trl.GRPOTrainer, trl.SFTTrainer or a subclass of either; got {base!r}.")


class CountUpdates(TrainerCallback):
    """Keeps the ledger's updates; stands first, so that callbacks that stop by budget see the current count."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ledger.updates = state.global_step


class _Silent(Dataset[Any]):
    """As long as the training set, and says nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {}


def clock(size: int, ticks: int) -> DataLoader[Any]:
    """A loader of `ticks` empty batches over a training set of `size` rows, with its own generator, for it draws a seed when it starts."""
    return DataLoader(_Silent(size), batch_sampler=[[0]] * ticks, collate_fn=lambda rows: rows[0], generator=torch.Generator())


class Lessons(Engine):
    """What `with_curriculum` puts before any trainer."""

    available: frozenset[str]
    fixed_texts = False
    """Whether all texts are known before training, so that a teacher's record of them can serve."""

    def __init__(
        self,
        *args: Any,
        curriculum: Curriculum | None = None,
        objective: Any = None,
        teacher: Any = None,
        lesson_callbacks: Sequence[Callable[[Lesson], None]] = (),
        **kwargs: Any,
    ) -> None:
        self.curriculum, self.objective, self.teacher = curriculum, objective, teacher
        self.lesson_callbacks = tuple(lesson_callbacks)
        self.ledger = Ledger()
        self.curriculum_seconds = 0.0
        self.skipped_checkpoints: dict[str, str] = {}
        self.objective_stats: dict[str, torch.Tensor] = {}
        self.barren = 0
        if curriculum is not None:
            _check_given(curriculum, _argument(super().__init__, "train_dataset", args, kwargs))
            self.check_fit(curriculum)
        super().__init__(*args, **kwargs)
        self.callback_handler.callbacks.insert(0, CountUpdates(self.ledger))
        if curriculum is not None:
            self.check_settings()
            _check_pool(curriculum, self.train_dataset)
        if self.intervenes:
            self.check_intervention()

    def check_settings(self) -> None:
        """Raise if a setting of the engine cannot go with a curriculum."""

    @property
    def intervenes(self) -> bool:
        """Whether there is a teacher who changes groups."""
        return hasattr(self.teacher, "intervene")

    def check_intervention(self) -> None:
        """Raise if this trainer has no place for a teacher who changes groups."""
        raise TutelageError(
            f"This trainer has no use for the teacher {type(self.teacher).__name__}: SFT has no groups of attempts to intervene in. Use it "
            "with trl.GRPOTrainer."
        )

    def check_fit(self, curriculum: Curriculum) -> None:
        """Raise if the engine cannot give what the curriculum needs."""
        missing = sorted(curriculum.needs - self.available)
        if missing:
            raise TutelageError(
                f"The curriculum {curriculum.name!r} needs {', '.join(missing)}; this trainer gives {', '.join(sorted(self.available))}. "
                "Choose a curriculum that learns from those, or the other trainer: GRPO gives groups of attempts, SFT gives signals."
            )

    def state_files(self, folder: Path) -> None:
        _resume.write(self, folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint: a path, or True for the newest whole one in `output_dir`.

        Raises `TutelageError` if the checkpoint asked for is not whole, or belongs to another curriculum, configuration or pool.
        """
        if self.remembers and resume_from_checkpoint:
            resume_from_checkpoint = _resume.take_up(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.curriculum is None:
            return super().evaluate(*args, **kwargs)
        with _rng.preserved():
            return super().evaluate(*args, **kwargs)


class GRPOLessons(Lessons, GRPOEngine):
    """What `with_curriculum` puts before a GRPO trainer."""

    available = frozenset({"arm_N", "solved_NG", "kind_NG", "reward_NG", "advantage_NG", "length_NG"}) | _signals.OF_LESSONS

    def __init__(
        self,
        *args: Any,
        solved: str | Callable[..., Any] | None = None,
        refill_cap: int = 4,
        on_short: OnShort = "pad",
        demonstrations: HFDataset | None = None,
        demonstrations_per_step: int | None = None,
        **kwargs: Any,
    ) -> None:
        if refill_cap < 1 or on_short not in get_args(OnShort):
            raise TutelageError(
                f"refill_cap must be at least 1 and on_short one of {get_args(OnShort)}; got {refill_cap!r} and {on_short!r}."
            )
        self.refill_cap, self.on_short = refill_cap, on_short
        super().__init__(*args, **kwargs)
        if self.curriculum is not None:
            self.judge = Judge(solved, self.reward_funcs, self.reward_func_names)
        taught = _distillation.offered(self)
        if self.objective is not None:
            columns = _objective.GRPO_COLUMNS | taught | ({"ref_logp_BT"} if self.beta else frozenset())
            columns |= {f"{_mix.SOURCE}/{name}" for name in _objective.SFT_COLUMNS}
            hint = "For ref_logp_BT give GRPOConfig a beta above 0, so that TRL computes it; the objective's own coefficient counts."
            _objective.check_columns(self.objective, columns, "GRPO", hint)
            _objective.with_advantages(self.main_objective)
        self.mix = _mix.of(self, demonstrations, demonstrations_per_step)

    @functools.cached_property
    def main_objective(self) -> Any:
        return None if self.objective is None else _mix.rollout_part(self.objective)

    def check_intervention(self) -> None:
        _intervention.check_teacher(self)

    def check_settings(self) -> None:
        if self.num_generations < 2:
            raise TutelageError("num_generations=1 leaves no group to compare within: every advantage is 0. Set it to at least 2.")
        _signals.check_model(self)

    @property
    def groups_per_batch(self) -> int:
        """Tasks in one generation batch, over all processes."""
        return self.args.generation_batch_size // self.num_generations

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.curriculum is None:
            return super().get_train_dataloader()
        generations = max(len(self.train_dataset) // self.groups_per_batch, 1)
        return clock(len(self.train_dataset), generations * self.num_iterations * self.args.steps_per_generation)

    def next_batch(self) -> Batch:
        return _refill.next_batch(self)

    def prepared(self, batch: Batch, reward_BF: torch.Tensor, attempts: int) -> Batch:
        return _objective.prepared(self, batch, reward_BF, attempts)

    def objective_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        return _objective.grpo_loss(self, model, inputs)


class SFTLessons(Lessons, SFTEngine):
    """What `with_curriculum` puts before an SFT trainer."""

    available = frozenset({"arm_N", "length_NG", "signals/loss", "signals/entropy"})
    fixed_texts = True
    rows_N: Any
    pending: list[torch.Tensor]
    window_counts: dict[str, torch.Tensor]

    def __init__(self, *args: Any, data_rule: GKDRule | None = None, **kwargs: Any) -> None:
        self.data_rule = data_rule
        super().__init__(*args, **kwargs)
        _gkd.check(self)
        taught = _distillation.offered(self)
        if self.objective is not None:
            self.loss_is_scaled_for_ga = True  # the objective divides by the whole step's counts itself
            if getattr(self.objective, "controller", None) is not None:
                raise TutelageError(
                    "A controller switches between supervision and rollouts, and SFTTrainer has no rollouts; use trl.GRPOTrainer."
                )
            hint = "Use it with GRPO (demonstrations= are a keyword there), or take an objective of log-likelihoods."
            _objective.check_columns(self.objective, _objective.SFT_COLUMNS | taught, "SFT", hint)

    def check_settings(self) -> None:
        names = ("packing", "padding_free", "shuffle_dataset", "auto_find_batch_size")
        given = [name for name in names if getattr(self.args, name)]
        given += ["train_sampling_strategy"] if self.args.train_sampling_strategy != "random" else []
        if given:
            raise TutelageError(
                f"A curriculum chooses whole rows by number and needs each example's own loss; {', '.join(given)} of SFTConfig would "
                "join, reorder or repeat them. Leave these settings at their defaults."
            )

    def check_fit(self, curriculum: Curriculum) -> None:
        super().check_fit(curriculum)
        if curriculum.filters:
            raise TutelageError(
                f"The curriculum {curriculum.name!r} rejects groups after their attempts, and supervised training learns an example's loss "
                "in the very pass that trains on it. Use it with GRPO, or a curriculum that does not filter."
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.curriculum is None:
            return super().get_train_dataloader()
        share, rounded = self.args.per_device_train_batch_size, math.floor if self.args.dataloader_drop_last else math.ceil
        ticks = rounded(rounded(len(self.train_dataset) / share) / self.accelerator.num_processes)
        return clock(len(self.train_dataset), max(ticks, 1))

    def next_window(self, count: int) -> list[Batch]:
        return _supervised.next_window(self, count)

    def overheard(self, outputs: Any) -> None:
        _supervised.overheard(self, outputs)

    def sourced(self, batches: list[Batch]) -> list[Batch]:
        return batches if self.data_rule is None else _gkd.drawn(self, batches)

    def count_window(self, batches: list[Batch]) -> None:
        masks = [batch["labels"][:, 1:].to(self.accelerator.device) != -100 for batch in batches]
        self.window_counts = _objective.counted(self, [{"mask_BT": mask} for mask in masks])

    def trained_outputs(self, model: Any, inputs: Batch) -> Any:
        return _distillation.sft_outputs(self, model, inputs) if _distillation.reads_logits(self) else self.scored(model, inputs)

    def objective_loss(self, outputs: Any) -> torch.Tensor:
        return _objective.sft_loss(self, outputs)


def _argument(function: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The argument called `name` of a call, wherever it stands; None where it cannot be told."""
    if name in kwargs:
        return kwargs[name]
    names = list(inspect.signature(function).parameters)
    return args[names.index(name)] if name in names and names.index(name) < len(args) else None


def _check_given(curriculum: Any, dataset: Any) -> None:
    if not isinstance(curriculum, Curriculum):
        raise TutelageError(
            f"curriculum={curriculum!r} is a {type(curriculum).__name__}; expected a curriculum over a pool, "
            "for example tutelage.curriculum('sec', tutelage.TaskPool.from_dataset(dataset, arm='level'))."
        )
    if isinstance(dataset, IterableDataset):
        raise TutelageError(
            "A curriculum chooses rows by number, which an IterableDataset cannot give. Load the data without streaming, or turn a "
            "finite stream into a data set: datasets.Dataset.from_generator(lambda: iter(stream))."
        )


def _check_pool(curriculum: Curriculum, dataset: Any) -> None:
    if len(curriculum.pool) != len(dataset):
        raise TutelageError(
            f"The curriculum's pool has {len(curriculum.pool):,} tasks and train_dataset {len(dataset):,} rows; row i of the pool must be "
            "row i of the data set. Likely cause: the data set was filtered, shuffled or split after the pool was made. Make the pool from "
            "the very data set that is trained on: TaskPool.from_dataset(dataset, ...)."
        )
    if "key" in dataset.column_names:
        _check_order(curriculum, dataset)


def _check_order(curriculum: Curriculum, dataset: Any) -> None:
    """Compare keys at a thousand places, where the data set has them (`to_dataset` puts them in)."""
    rows_M = np.unique(np.linspace(0, len(dataset) - 1, 1000).astype(np.int64))
    key_M = np.asarray(list(dataset.select(rows_M)["key"]))
    if key_M.dtype.kind != curriculum.pool.key_N.dtype.kind or not np.isin(key_M, curriculum.pool.key_N).all():
        return  # a column of that name which means something else
    wrong_M = rows_M[key_M != curriculum.pool.key_N[rows_M]]
    if len(wrong_M):
        row = int(wrong_M[0])
        raise TutelageError(
            f"Row {row} of train_dataset has the key {str(dataset[row]['key'])!r} and row {row} of the curriculum's pool the key "
            f"{str(curriculum.pool.key_N[row])!r}; they must be in the same order. Likely cause: the data set was shuffled or sorted after "
            "the pool was made. Leave the order to the curriculum, or make the pool anew."
        )
