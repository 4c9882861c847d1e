"""TRL: a curriculum in two changed lines.

    from tutelage.trainers.trl import with_curriculum

    trainer = with_curriculum(trl.GRPOTrainer)(..., train_dataset=dataset, curriculum=cur)
    trainer.train()

Everything else is TRL's, under TRL's names. The dataloader is only a clock: rows come from `propose` at the moment of generation, so that
a decision uses every outcome before it. Rank 0 decides and broadcasts; whole groups are gathered before `observe`. TRL's
`shuffle_dataset` and the loader's worker settings have no say in training; evaluation is untouched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError, missing_extra
from tutelage.trainers.ledger import Ledger, Lesson

try:
    import torch
    import trl
    from datasets import IterableDataset
    from torch.utils.data import DataLoader, Dataset
    from transformers import TrainerCallback
except ImportError as error:
    raise missing_extra(error.name or "trl", "lm") from error

from tutelage.trainers import _refill, _resume, _rng
from tutelage.trainers._batches import Batch
from tutelage.trainers._checkpoint import complete_checkpoints
from tutelage.trainers._judgement import Judge
from tutelage.trainers._trl_private import GRPOEngine, check_versions

__all__ = ["Ledger", "Lesson", "complete_checkpoints", "with_curriculum"]
OnShort = Literal["pad", "partial", "raise"]


@functools.cache
def with_curriculum(base: type) -> type:
    """The trainer class `base` with curriculum learning.

    Args:
        base: `trl.GRPOTrainer` or any subclass.

    Returns:
        A subclass whose constructor takes, beside everything `base` takes:

        - `curriculum`: what the model learns next, over a pool whose row i is row i of `train_dataset`. None trains exactly as `base` does.
        - `solved`: which judgement the curriculum sees: None for the first reward function where its values lie in [0, 1]; a reward
          function's name; or a callable with a reward function's signature.
        - `refill_cap`: for a curriculum that filters, how many generation batches may be drawn for one training batch (at least 1).
        - `on_short`: what happens when the cap is reached and groups are missing. "pad": the first rejected groups train, unfiltered; after
          ten batches in a row without one admitted group it raises. "partial": the admitted groups alone train. "raise": an error.
        - `lesson_callbacks`: functions `f(lesson: Lesson)`, called on rank 0 after every lesson.

        and which has `ledger`, what the run has spent. Metrics of the curriculum are logged as `curriculum/<name>`.

    Raises:
        TutelageError: another class, or a version of TRL or transformers that was not tested.
    """
    check_versions()
    if isinstance(base, type) and issubclass(base, GRPOEngine):
        return base
    if not (isinstance(base, type) and issubclass(base, trl.GRPOTrainer)):
        raise TutelageError(f"with_curriculum takes trl.GRPOTrainer or a subclass; got {base!r}.")
    return type(f"Curriculum{base.__name__}", (GRPOLessons, base), {"__module__": __name__, "__doc__": base.__doc__})


class _CountUpdates(TrainerCallback):
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


class GRPOLessons(GRPOEngine):
    """What `with_curriculum` puts before a GRPO trainer."""

    def __init__(
        self,
        *args: Any,
        curriculum: Curriculum | None = None,
        solved: str | Callable[..., Any] | None = None,
        refill_cap: int = 4,
        on_short: OnShort = "pad",
        lesson_callbacks: Sequence[Callable[[Lesson], None]] = (),
        **kwargs: Any,
    ) -> None:
        self.curriculum = curriculum
        if refill_cap < 1 or on_short not in get_args(OnShort):
            raise TutelageError(
                f"refill_cap must be at least 1 and on_short one of {get_args(OnShort)}; got {refill_cap!r} and {on_short!r}."
            )
        self.refill_cap, self.on_short, self.barren = refill_cap, on_short, 0
        self.lesson_callbacks = tuple(lesson_callbacks)
        self.ledger = Ledger()
        if curriculum is not None:
            _check_given(curriculum, _argument(super().__init__, "train_dataset", args, kwargs))
        super().__init__(*args, **kwargs)
        self.callback_handler.callbacks.insert(0, _CountUpdates(self.ledger))
        if curriculum is not None:
            _check_pool(curriculum, self.train_dataset)
            self.judge = Judge(solved, self.reward_funcs, self.reward_func_names)

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

    def state_files(self, folder: Path) -> None:
        _resume.write(self, folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint: a path, or True for the newest whole one in `output_dir`.

        Raises `TutelageError` if the checkpoint asked for is not whole, or belongs to another curriculum, configuration or pool.
        """
        if self.curriculum is not None and resume_from_checkpoint:
            resume_from_checkpoint = _resume.take_up(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.curriculum is None:
            return super().evaluate(*args, **kwargs)
        with _rng.preserved():
            return super().evaluate(*args, **kwargs)


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
