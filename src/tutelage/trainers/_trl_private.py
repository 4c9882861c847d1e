"""Everything this library knows of the insides of TRL and transformers, in one file.

| package | tested | outside the range |
|---|---|---|
| trl | 1.16 | `TutelageError` |
| transformers | 5.23 | `TutelageError` |

`tests/test_trl_contract.py` checks against the installed packages that every private name in use is still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.trainers import _batches, _checkpoint
from tutelage.trainers._batches import Batch, Sample
from tutelage.trainers._judgement import Judge
from tutelage.trainers._sync import agree

if TYPE_CHECKING:
    Base = Any
else:
    Base = object

TESTED = {"trl": ((1, 16), (1, 17)), "transformers": ((5, 23), (5, 24))}
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


class CheckpointEngine(Base):
    """The seam in `transformers.Trainer` where checkpoints are written and read."""

    curriculum: Any
    _staging: str | None = None
    _published: str | None = None

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


class GRPOEngine(CheckpointEngine):
    """The seam in `trl.GRPOTrainer`: generation is ours to start, and what comes back is ours to see."""

    judge: Judge
    _heard: _Heard | None = None

    def next_batch(self) -> Batch:
        """The next generation batch; the adapter above supplies it."""
        raise NotImplementedError

    def _generate_and_score_completions(self, inputs: Any) -> Batch:
        if self.curriculum is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        return self.next_batch()

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        reward_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._heard is not None:
            heard = self._heard
            heard.reward_BF, heard.length_b = reward_BF, [len(ids) for ids in completion_ids_list]
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            heard.ended_b = [ids[-1] in ends for ids in completion_ids_list]
            heard.solved_b, heard.kind_b = self.judge.local(
                inputs, self.state, prompts=prompts, completions=completions, completion_ids=completion_ids_list
            )
        return reward_BF

    def roll_out(self, rows_N: NDArray[np.int64], attempts: int) -> Rollouts:
        """Generate and score `attempts` completions of each row, spread evenly over the processes in whole or straddling groups."""
        rows_B = np.repeat(rows_N, attempts)
        share = len(rows_B) // self.accelerator.num_processes
        first = self.accelerator.process_index * share
        self._heard = _Heard()
        try:
            with self._attempts(attempts):
                batch = super()._generate_and_score_completions(self.rows(rows_B[first : first + share]))
            return self._reported(batch, self._heard, (len(rows_N), attempts))
        finally:
            self._heard = None

    @contextmanager
    def _attempts(self, attempts: int) -> Iterator[None]:
        usual, self.num_generations = self.num_generations, attempts
        try:
            yield
        finally:
            self.num_generations = usual

    def _reported(self, batch: Batch, heard: _Heard, shape: tuple[int, int]) -> Rollouts:
        assert heard.reward_BF is not None
        reward_BF = heard.reward_BF
        advantage = batch["advantages"]
        if advantage.ndim == 2:  # a subclass's advantage per token
            mask = batch["completion_mask"]
            advantage = (advantage * mask).sum(1) / mask.sum(1).clamp(min=1)
        local: dict[str, Any] = {"advantage": advantage, "length": heard.length_b, "ended": heard.ended_b}
        local |= {"solved": heard.solved_b, "kind": heard.kind_b}
        local = {k: torch.as_tensor(v, dtype=torch.float32, device=reward_BF.device) for k, v in local.items() if v is not None}
        table_BK = self.accelerator.gather(torch.stack(list(local.values()), dim=1))
        columns = {"reward": _batches.weighted_reward(reward_BF, self.reward_weights)}
        columns |= {name: table_BK[:, k] for k, name in enumerate(local)}
        if "solved" not in columns and self.judge.column is not None:
            columns["solved"] = reward_BF[:, self.judge.column]
        numpy = {name: column.double().cpu().numpy().reshape(shape) for name, column in columns.items()}
        return Rollouts(batch, reward_BF, numpy, heard.length_b, self._texts() if self.log_completions else {})

    def rows(self, rows_B: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Rows of the training set, one fresh dict each, without the columns that `remove_unused_columns` drops."""
        if not hasattr(self, "_row_source"):
            self._row_source = self._remove_unused_columns(self.train_dataset, description="training")
        return self._row_source.__getitems__(rows_B.tolist())

    def record(self, name: str, value: float) -> None:
        """Add a training metric; it is averaged until the next log, as TRL's own are."""
        self._metrics["train"][name].append(float(value))

    def record_total(self, name: str, value: float) -> None:
        """Set a training metric that only grows; the latest value is logged."""
        self._metrics["train"][name] = [float(value)]

    def mark_metrics(self) -> dict[str, int]:
        """How many values each training metric has now."""
        return {name: len(values) for name, values in self._metrics["train"].items()}

    def rebuild(
        self,
        samples: list[Sample],
        wide: frozenset[str],
        rounds: Sequence[Rollouts],
        number_B: NDArray[np.int64],
        inert_B: NDArray[np.bool_],
        local: slice,
        mark: dict[str, int],
    ) -> Batch:
        """This process's part (`local`) of a batch of samples that came in several rounds, with advantages, counts, metrics and the logged
        table as if it had been generated in one. number_B: the samples of all processes, counted over rounds. inert_B: those to leave out.
        """
        reward_BF = torch.cat([r.reward_BF for r in rounds])[torch.from_numpy(number_B).to(rounds[0].reward_BF.device)]
        live_B = torch.from_numpy(~inert_B).to(reward_BF.device)
        advantage_L, std_L = _batches.advantages(
            reward_BF[live_B],
            self.reward_weights,
            self.num_generations,
            scale=self.scale_rewards,
            aggregation=self.multi_objective_aggregation,
        )
        samples = [{key: value.to(self.accelerator.device) for key, value in sample.items()} for sample in samples]
        batch = _batches.put_together(samples, wide, pad_id=self._tokenizer.pad_token_id, multiple_of=self.pad_to_multiple_of)
        if batch["advantages"].ndim == 1:  # a subclass's advantages per token stay as they are
            advantage_B = torch.zeros(len(live_B), device=reward_BF.device, dtype=advantage_L.dtype).masked_scatter(live_B, advantage_L)
            batch["advantages"] = advantage_B[local].to(batch["advantages"])
        batch["completion_mask"] = batch["completion_mask"] * live_B[local].to(batch["completion_mask"]).unsqueeze(1)
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        batch["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        if inert_B.any() and self.loss_type in PER_SAMPLE:
            batch["loss_scale"] = torch.tensor(float(len(inert_B) / (~inert_B).sum()), device=mask.device)
        self._rewrite_metrics(mark, reward_BF[live_B], std_L, rounds, number_B[~inert_B])
        return batch

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        return loss * inputs["loss_scale"] if "loss_scale" in inputs else loss

    def _rewrite_metrics(
        self, mark: dict[str, int], reward_LF: Tensor, std_L: Tensor, rounds: Sequence[Rollouts], number_L: NDArray[np.int64]
    ) -> None:
        """One value per metric for the whole training batch: of the samples trained on where that can be told, else the rounds' mean."""
        length_L, ended_L = (np.concatenate([r.columns[name].ravel() for r in rounds])[number_L] for name in ("length", "ended"))
        told = _batches.reward_metrics(reward_LF, self.reward_weights, self.reward_func_names, std_L)
        told |= _batches.completion_metrics(length_L, ended_L)
        for name, values in self._metrics["train"].items():
            fresh = values[mark.get(name, 0) :]
            if fresh and name != "num_tokens":  # TRL keeps a running total there
                values[mark.get(name, 0) :] = [told.get(name, float(np.nanmean(fresh)))]
        for name, old in rounds[0].texts.items():
            everything = [entry for r in rounds for entry in r.texts.get(name, [None] * len(old))]
            self._table(name).extend(everything[n] for n in number_L)

    def _texts(self) -> dict[str, list[Any]]:
        """The rows of TRL's table of completions that the last generation batch wrote (it keeps one batch)."""
        names = ["prompt", "completion", "advantages", *(f"{part}/{n}" for part in ("rewards", "extra") for n in self._logs[part])]
        return {name: list(self._table(name)) for name in names}

    def _table(self, name: str) -> Any:
        part, _, column = name.partition("/")
        return self._logs[part][column] if column else self._logs[part]
