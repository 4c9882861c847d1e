"""Everything this library knows of the insides of TRL and transformers, in one file.

| package | tested | outside the range |
|---|---|---|
| trl | 1.16 | `TutelageError` |
| transformers | 5.23 | `TutelageError` |

Private names in use: of `GRPOTrainer`, `_generate_and_score_completions` (the moment rows are needed), `_calculate_rewards` (what came back),
`_metrics`; of `Trainer`, `_remove_unused_columns`. `tests/test_trl_contract.py` runs them against the real packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.trainers._judgement import Judge

if TYPE_CHECKING:
    from trl import GRPOTrainer as GRPOBase
else:
    GRPOBase = object

Batch = dict[str, Any]
TESTED = {"trl": ((1, 16), (1, 17)), "transformers": ((5, 23), (5, 24))}
"""Package -> first tested version, first version beyond."""


def check_versions() -> None:
    """Raise unless every engine is one that this file was tested with."""
    for package, (low, high) in TESTED.items():
        found = version(package)
        numbers = tuple(int(part) for part in found.split(".")[:2])
        if not low <= numbers < high:
            span = f"{package}>={low[0]}.{low[1]},<{high[0]}.{high[1]}"
            raise TutelageError(
                f"This adapter was tested with {span} and found {package} {found}. It uses private names of the engine, which other versions "
                f"may have changed. Install a tested one: pip install '{span}'"
            )


@dataclass
class Rollouts:
    """What one generation batch gave. `batch`: this process's tensors, as TRL made them. `reward_BF`: raw rewards of all processes, one column
    per reward function. `columns`: solved, kind, reward, advantage and length, (N, G) each and over all processes. `length_b`: tokens of
    this process's completions.
    """

    batch: Batch
    reward_BF: Tensor
    columns: dict[str, NDArray[Any]]
    length_b: list[int]


@dataclass
class _Heard:
    """What the reward functions were given and gave, caught on the way."""

    reward_BF: Tensor | None = None
    length_b: list[int] = field(default_factory=list)
    solved_b: list[float] | None = None
    kind_b: list[int] | None = None


class GRPOEngine(GRPOBase):
    """The seam in `trl.GRPOTrainer`: generation is ours to start, and what comes back is ours to see."""

    curriculum: Any
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
        local: dict[str, Any] = {"advantage": advantage, "length": heard.length_b, "solved": heard.solved_b, "kind": heard.kind_b}
        local = {k: torch.as_tensor(v, dtype=torch.float32, device=reward_BF.device) for k, v in local.items() if v is not None}
        table_BK = self.accelerator.gather(torch.stack(list(local.values()), dim=1))
        known_B = ~torch.isnan(reward_BF).all(dim=1)
        total_B = torch.where(known_B, (reward_BF * self.reward_weights.to(reward_BF.device)).nansum(dim=1), torch.nan)
        columns = {"reward": total_B} | {name: table_BK[:, k] for k, name in enumerate(local)}
        if "solved" not in columns and self.judge.column is not None:
            columns["solved"] = reward_BF[:, self.judge.column]
        numpy = {name: column.double().cpu().numpy().reshape(shape) for name, column in columns.items()}
        return Rollouts(batch, reward_BF, numpy, heard.length_b)

    def rows(self, rows_B: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Rows of the training set, one fresh dict each, without the columns that `remove_unused_columns` drops."""
        if not hasattr(self, "_row_source"):
            self._row_source = self._remove_unused_columns(self.train_dataset, description="training")
        return self._row_source.__getitems__(rows_B.tolist())

    def record(self, name: str, value: float) -> None:
        """Add a training metric; it is averaged until the next log, as TRL's own are."""
        self._metrics["train"][name].append(float(value))
