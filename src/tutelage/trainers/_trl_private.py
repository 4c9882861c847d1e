"""Everything this library knows of the insides of TRL and transformers, in one file.

| package | tested | outside the range |
|---|---|---|
| trl | 1.16 | `TutelageError` |
| transformers | 5.19 to 5.23 | `TutelageError` |

`tests/test_trl_contract.py` checks against the installed packages that every private name in use is still there.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trl.models import unwrap_model_for_generation

from tutelage.errors import TutelageError
from tutelage.teachers._forward import logits_at
from tutelage.trainers import _batches, _checkpoint
from tutelage.trainers._batches import Batch
from tutelage.trainers._judgement import Judge
from tutelage.trainers._sync import agree

if TYPE_CHECKING:
    Base = Any
else:
    Base = object

TESTED = {"trl": ((1, 16), (1, 17)), "transformers": ((5, 19), (5, 24))}
"""Package -> first tested version, first version beyond."""
IN_MEMORY = ("_step", "_buffered_inputs", "_total_train_tokens")
"""What TRL keeps in memory alone and a resumed run needs."""
PER_SAMPLE = ("grpo", "sapo", "dr_grpo", "luspo")
"""TRL's losses that divide by the number of samples, those that do not train included; the others divide by trained tokens."""


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


@dataclass
class Rollouts:
    """What one generation batch gave.

    batch: this process's tensors, as TRL made them. length_b: tokens of this process's completions. Over all processes: reward_BF, raw
    rewards, one column per reward function; columns, (N, G) each: solved and kind where known, reward, advantage, length, ended (by
    itself, not by the limit). texts: the table of completions that TRL keeps, by column, where it is to be logged.
    """

    batch: Batch
    reward_BF: Tensor
    columns: dict[str, NDArray[Any]]
    length_b: list[int]
    texts: dict[str, list[Any]]


@dataclass
class _Heard:
    """What the reward functions were given and gave, caught on the way."""

    reward_BF: Tensor | None = None
    length_b: list[int] = field(default_factory=list)
    ended_b: list[bool] = field(default_factory=list)
    solved_b: list[float] | None = None
    kind_b: list[int] | None = None


class Engine(Base):
    """What all adapters need of `transformers.Trainer`: rows, metrics, and checkpoints written whole or not at all."""

    curriculum: Any
    objective: Any
    teacher: Any
    _staging: str | None = None

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
        if self.curriculum is None:
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
        if self.curriculum is not None:
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


class GRPOEngine(Engine):
    """The seam in `trl.GRPOTrainer`: generation is ours to start, and what comes back is ours to see."""

    judge: Judge
    num_generations: int
    _logs: Any
    _heard: _Heard | None = None

    def next_batch(self) -> Batch:
        """The next generation batch; the adapter above supplies it."""
        raise NotImplementedError

    def prepared(self, batch: Batch, reward_BF: Tensor, attempts: int) -> Batch:
        """A generation batch with all that the objective reads; the adapter above supplies it."""
        raise NotImplementedError

    def objective_loss(self, model: Any, inputs: Batch) -> Tensor:
        """The objective's loss of one micro-batch; the adapter above supplies it."""
        raise NotImplementedError

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id

    def _generate_and_score_completions(self, inputs: Any) -> Batch:
        if self.curriculum is not None and self.model.training:
            return self.next_batch()
        if self.objective is None:
            return super()._generate_and_score_completions(inputs)
        with self._hearing() as heard:
            batch = super()._generate_and_score_completions(inputs)
        assert heard.reward_BF is not None
        return self.prepared(batch, heard.reward_BF, self.num_generations if self.model.training else self.num_generations_eval)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        reward_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        heard = self._heard
        if heard is not None:
            heard.reward_BF, heard.length_b = reward_BF, [len(ids) for ids in completion_ids_list]
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            heard.ended_b = [ids[-1] in ends for ids in completion_ids_list]
            if self.curriculum is not None:
                attempts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
                heard.solved_b, heard.kind_b = self.judge.local(inputs, self.state, **attempts)
        return reward_BF

    @contextmanager
    def _hearing(self) -> Iterator[_Heard]:
        self._heard = _Heard()
        try:
            yield self._heard
        finally:
            self._heard = None

    def roll_out(self, rows_N: NDArray[np.int64], attempts: int) -> Rollouts:
        """Generate and score `attempts` completions of each row, in equal shares per process; a group may straddle two of them."""
        rows_B = np.repeat(rows_N, attempts)
        usual, self.num_generations = self.num_generations, attempts
        try:
            with self._hearing() as heard:
                batch = super()._generate_and_score_completions(self.rows(rows_B[self.local(len(rows_B))]))
        finally:
            self.num_generations = usual
        return self._reported(batch, heard, (len(rows_N), attempts))

    def _reported(self, batch: Batch, heard: _Heard, shape: tuple[int, int]) -> Rollouts:
        assert heard.reward_BF is not None
        reward_BF, advantage = heard.reward_BF, batch["advantages"]
        if advantage.ndim == 2:  # a subclass's advantage per token
            mask = batch["completion_mask"]
            advantage = (advantage * mask).sum(1) / mask.sum(1).clamp(min=1)
        mine: dict[str, Any] = {"advantage": advantage, "length": heard.length_b, "ended": heard.ended_b}
        mine |= {"solved": heard.solved_b, "kind": heard.kind_b}
        mine = {k: torch.as_tensor(v, dtype=torch.float32, device=reward_BF.device) for k, v in mine.items() if v is not None}
        table_BK = self.accelerator.gather(torch.stack(list(mine.values()), dim=1))
        columns = {"reward": _batches.weighted_reward(reward_BF, self.reward_weights)}
        columns |= {name: table_BK[:, k] for k, name in enumerate(mine)}
        if "solved" not in columns and self.judge.column is not None:
            columns["solved"] = reward_BF[:, self.judge.column]
        numpy = {name: column.double().cpu().numpy().reshape(shape) for name, column in columns.items()}
        return Rollouts(batch, reward_BF, numpy, heard.length_b, self._texts() if self.log_completions else {})

    def token_columns(self, model: Any, inputs: Batch, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each completion token (B, T) under `model`, `chunk` rows at a time (default: all)."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        pictures = {key: inputs[key] for key in _batches.PICTURES if key in inputs}
        logp_BT, entropy_BT, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, inputs["completion_ids"].shape[1], batch_size=chunk, compute_entropy=True, **pictures
        )
        return logp_BT, entropy_BT

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        if self.objective is not None:
            return self.objective_loss(model, inputs)
        loss = super()._compute_loss(model, inputs)
        return loss * inputs["loss_scale"] if "loss_scale" in inputs else loss

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Generate without a trace in TRL's metrics and tables; its count of tokens goes on."""
        metrics = {name: list(values) for name, values in self._metrics["train"].items() if name != "num_tokens"}
        logs = copy.deepcopy(self._logs) if self.log_completions else None
        try:
            yield
        finally:
            self._metrics["train"] = defaultdict(list, metrics | {"num_tokens": self._metrics["train"]["num_tokens"]})
            self._logs = self._logs if logs is None else logs

    def _texts(self) -> dict[str, list[Any]]:
        """The rows of TRL's table of completions that the last generation batch wrote (it keeps one batch)."""
        names = ["prompt", "completion", "advantages", *(f"{part}/{n}" for part in ("rewards", "extra") for n in self._logs[part])]
        return {name: list(self.table_column(name)) for name in names}

    def table_column(self, name: str) -> Any:
        """A column of TRL's table of completions, a deque."""
        part, _, column = name.partition("/")
        return self._logs[part][column] if column else self._logs[part]


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

    def scored(self, model: Any, inputs: Batch) -> Any:
        """A forward pass: `log_probs`, `entropy` and `label_mask`, (B, T - 1) each; position t predicts token t + 1."""
        return model(**{**inputs, "use_cache": False}, fused_lm_head=True)
