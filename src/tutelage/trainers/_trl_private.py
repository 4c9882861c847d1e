"""Everything this library knows of the insides of transformers' trainer and of TRL's `SFTTrainer`; GRPO's and DPO's have their own files.

| package | tested | outside the range |
|---|---|---|
| trl | 1.16 | `TutelageError` |
| transformers | 5.19 to 5.23 | `TutelageError` |

`tests/test_trl_contract.py` checks against the installed packages that every private name in use is still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from tutelage.errors import TutelageError
from tutelage.teachers._forward import logits_at
from tutelage.trainers import _checkpoint
from tutelage.trainers._batches import Batch
from tutelage.trainers._sync import agree

if TYPE_CHECKING:
    Base = Any
else:
    Base = object

TESTED = {"trl": ((1, 16), (1, 17)), "transformers": ((5, 19), (5, 24))}
"""Package -> first tested version, first version beyond."""
IN_MEMORY = ("_step", "_buffered_inputs", "_total_train_tokens")
"""What TRL keeps in memory alone and a resumed run needs."""


def check_versions() -> None:
    """Raise unless every engine is one that this file was tested with."""
    for package, (low, high) in TESTED.items():
        found = version(package)
        numbers = tuple(int(part) for part in found.split(".")[:2])
        if not low <= numbers < high:
            span = f"{package}>={low[0]}.{low[1]},<{high[0]}.{high[1]}"
            raise TutelageError(
                f"This adapter was tested with {span} and found {package} {found}. It uses private names of the engine, which other "
                f"versions may have changed. Install a tested one: pip install '{span}'"
            )


class Engine(Base):
    """What all adapters need of `transformers.Trainer`: rows, metrics, and checkpoints written whole or not at all."""

    curriculum: Any
    objective: Any
    teacher: Any
    mix: Any = None
    _staging: str | None = None

    @property
    def remembers(self) -> bool:
        """Whether the adapter has a state of its own, which a checkpoint must carry."""
        return self.curriculum is not None or self.mix is not None

    @property
    def main_objective(self) -> Any:
        """What of the objective reads the engine's own batches."""
        return self.objective

    @property
    def shares(self) -> tuple[int, int]:
        """This process's number and how many there are."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def local(self, size: int) -> slice:
        """This process's part of `size` things that lie in the order of processes."""
        rank, world = self.shares
        return slice(rank * (size // world), (rank + 1) * (size // world))

    def rows(self, rows_B: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Rows of the training set, one fresh dict each, without the columns that `remove_unused_columns` drops."""
        if not hasattr(self, "_row_source"):
            self._row_source = self._remove_unused_columns(self.train_dataset, description="training")
        return self._row_source.__getitems__(rows_B.tolist())

    def logits_at(self, model: Any, inputs: Batch, places_BT: Tensor) -> Tensor:
        """The student's logits at places of each row (B, T, V), with gradient; other positions get none."""
        rows_BT = torch.arange(len(places_BT), device=places_BT.device).unsqueeze(1).expand_as(places_BT)
        with self.accelerator.autocast():
            return logits_at(model, inputs, rows_BT, places_BT)

    @property
    def training_metrics(self) -> dict[str, list[float]]:
        """TRL's unlogged training metrics: the values since the last log, by name; their means are logged."""
        return self._metrics["train"]

    def record(self, name: str, value: float) -> None:
        """Add a training metric; it is averaged until the next log, as TRL's own are."""
        self._metrics["train"][name].append(float(value))

    def state_files(self, folder: Path) -> None:
        """Write what the adapter must remember; every process calls it. The adapter above supplies it."""
        raise NotImplementedError

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Everything that TRL and the adapter write, under a temporary name, all processes together; then one rename."""
        if not self.remembers:
            return super()._save_checkpoint(model, trial)
        run = Path(super()._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        staged = run / _checkpoint.STAGING / final.name
        with self._told_of_failure(final):
            if self.args.should_save:
                _checkpoint.clear_staging(run)
        with self._told_of_failure(final):
            self._staging = str(staged.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / "trainer_state.json"))
            self.state_files(staged)
        with self._told_of_failure(final):
            if self.args.should_save:
                _checkpoint.publish(staged, final, self._facts())
                best = {Path(self.state.best_model_checkpoint)} if self.state.best_model_checkpoint else set()
                _checkpoint.rotate(run, self.args.save_total_limit, {final} | best)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        return None

    def _finalize_training(self, *args: Any) -> Any:
        """TRL's, but with `save_total_limit=1` it would delete the newest checkpoint where another one is the best."""
        limit = self.args.save_total_limit
        if self.remembers:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    @contextmanager
    def _told_of_failure(self, final: Path) -> Iterator[None]:
        """A step of saving that all processes finish together; if it fails on one, all raise and nothing half-written stays."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        try:
            agree(error)
        except Exception as cause:
            if self.args.should_save:
                _checkpoint.clear_staging(final.parent)
            raise TutelageError(
                f"The checkpoint {final} could not be written: {cause} Earlier checkpoints are as they were. Free some space or mend the "
                "cause, and go on with trainer.train(resume_from_checkpoint=True)."
            ) from cause

    def _facts(self) -> dict[str, Any]:
        versions = {name: version(name) for name in ("torch", "transformers", "trl")}
        return {"step": self.state.global_step, "resumable": not self.args.save_only_model, "shape": self.shape(), "versions": versions}

    def shape(self) -> dict[str, int]:
        """What must be the same for a resumed run to be the unbroken one, number for number."""
        names = ("steps_per_generation", "num_iterations", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps")
        return {"processes": self.accelerator.num_processes} | {n: getattr(self.args, n) for n in names if hasattr(self.args, n)}

    def engine_state(self) -> dict[str, Any]:
        """This process's share of what TRL keeps in memory alone: its step, the generated batch it still trains on, unlogged metrics."""
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        return {"metrics": metrics} | {name: getattr(self, name) for name in IN_MEMORY if hasattr(self, name)}

    def load_engine_state(self, state: dict[str, Any]) -> None:
        self._metrics["train"].clear()
        for name, values in state.pop("metrics").items():
            self._metrics["train"][name] = values
        for name, value in state.items():
            setattr(self, name, value)

    def scored(self, model: Any, inputs: Batch) -> Any:
        """A forward pass: `log_probs`, `entropy` and `label_mask`, (B, T - 1) each; position t predicts token t + 1."""
        return model(**{**inputs, "use_cache": False}, fused_lm_head=True)


class SFTEngine(Engine):
    """The seam in `trl.SFTTrainer`: the batches of one optimiser step are ours to choose, and its forward pass is ours to overhear."""

    def next_window(self, count: int) -> list[Batch]:
        """The micro-batches of one optimiser step; the adapter above supplies them."""
        raise NotImplementedError

    def overheard(self, outputs: Any) -> None:
        """Called with the outputs of each training forward pass; the adapter above supplies it."""
        raise NotImplementedError

    def sourced(self, batches: list[Batch]) -> list[Batch]:
        """The micro-batches of one step with the completions that are to be trained; the adapter above supplies it."""
        raise NotImplementedError

    @contextmanager
    def generating(self, who: str) -> Iterator[Any]:
        """The model that writes: "student", gathered and unwrapped, or "teacher", where the student is."""
        if who == "teacher":
            yield self.teacher.model.to(self.accelerator.device)
            return
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            yield model

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id

    @property
    def end_ids(self) -> list[int]:
        """What ends an answer: the tokenizer's end and those of the model's generation settings."""
        ends = self.model.generation_config.eos_token_id
        return sorted({self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})

    def count_window(self, batches: list[Batch]) -> None:
        """Count what the objective divides by; the adapter above supplies it."""
        raise NotImplementedError

    def trained_outputs(self, model: Any, inputs: Batch) -> Any:
        """The forward pass whose outputs an objective reads; the adapter above supplies it."""
        raise NotImplementedError

    def objective_loss(self, outputs: Any) -> Tensor:
        """The objective's loss of one micro-batch; the adapter above supplies it."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Batch], Any]:
        if self.curriculum is None:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        else:
            ticks = [tick for _, tick in zip(range(num_batches), epoch_iterator, strict=False)]
            batches = self.next_window(len(ticks)) if ticks else []
            items = self._get_num_items_in_batch(batches, device)
        if self.objective is not None and batches:
            batches = self.sourced(batches)
            self.count_window(batches)
        return batches, items

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if not self.model.training or (self.curriculum is None and self.objective is None):
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        heard: list[Any] = []
        hook = model.register_forward_hook(lambda module, args, outputs: heard.append(outputs))
        try:
            if self.objective is None:
                loss = super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            else:
                heard.append(self.trained_outputs(model, inputs))
                loss = self.objective_loss(heard[-1])
        finally:
            hook.remove()
        if self.curriculum is not None:
            self.overheard(next(outputs for outputs in reversed(heard) if getattr(outputs, "log_probs", None) is not None))
        return loss

    def on_device(self, inputs: Batch) -> Batch:
        return self._prepare_inputs(inputs)
