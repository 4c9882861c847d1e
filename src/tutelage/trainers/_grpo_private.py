"""Everything this library knows of the insides of TRL's `GRPOTrainer`, in one file; the tested versions stand in `_trl_private`."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from tutelage.trainers import _batches
from tutelage.trainers._batches import Batch, Heard, Rollouts
from tutelage.trainers._judgement import Judge
from tutelage.trainers._sync import gathered
from tutelage.trainers._trl_private import Engine

PER_SAMPLE = ("grpo", "sapo", "dr_grpo", "luspo")
"""TRL's losses that divide by the number of samples, those that do not train included; the others divide by trained tokens."""


class GRPOEngine(Engine):
    """The seam in `trl.GRPOTrainer`: generation is ours to start, and what comes back is ours to see."""

    judge: Judge
    num_generations: int
    _logs: Any
    _heard: Heard | None = None
    _scoring: Batch | None = None

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

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Batch], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.mix is not None and batches:
            self.mix.begin(len(batches))
        return batches, items

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if self.mix is None or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        return self.mix.inputs(functools.partial(super()._prepare_inputs, generation_batch))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.mix is not None:
            self.mix.clipped(norm)
        return norm

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer of the model's text, also where the processing class does more."""
        return self._tokenizer

    @property
    def template(self) -> dict[str, Any]:
        """What the engine passes to `apply_chat_template` beside the conversation."""
        return {"tools": self.tools or None, "chat_template": self.chat_template, **self.chat_template_kwargs}

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
        heard = self._heard
        if heard is not None and heard.prompts is not None:
            prompts = heard.prompts
        reward_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if heard is not None:
            heard.reward_BF, heard.length_b = reward_BF, [len(ids) for ids in completion_ids_list]
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            heard.ended_b = [ids[-1] in ends for ids in completion_ids_list]
            if self.curriculum is not None:
                attempts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
                heard.solved_b, heard.kind_b = self.judge.local(inputs, self.state, **attempts)
        return reward_BF

    @contextmanager
    def _hearing(self) -> Iterator[Heard]:
        self._heard = Heard()
        try:
            yield self._heard
        finally:
            self._heard = None

    def roll_out(self, rows_N: NDArray[np.int64], attempts: int, prompts: Sequence[Any] | None = None) -> Rollouts:
        """Generate and score `attempts` completions of each row, in equal shares per process; a group may straddle two of them.

        prompts: one for each row, to generate from in place of its own; what is scored is scored as an answer to its own.
        """
        group_b = np.repeat(np.arange(len(rows_N)), attempts)[self.local(len(rows_N) * attempts)]
        rows = self.rows(rows_N[group_b])
        usual, self.num_generations = self.num_generations, attempts
        try:
            with self._hearing() as heard:
                if prompts is not None:
                    heard.prompts = [row["prompt"] for row in rows]
                    rows = [{**row, "prompt": prompts[n]} for row, n in zip(rows, group_b, strict=True)]
                batch = super()._generate_and_score_completions(rows)
        finally:
            self.num_generations = usual
        return self._reported(batch, heard, (len(rows_N), attempts))

    def _reported(self, batch: Batch, heard: Heard, shape: tuple[int, int]) -> Rollouts:
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
        return Rollouts(batch, reward_BF, numpy, heard.length_b, self._texts(len(reward_BF)) if self.log_completions else {})

    def token_columns(self, model: Any, inputs: Batch, chunk: int | None = None, entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probability and (the policy's alone) entropy of each completion token (B, T), `chunk` rows at a time (default: all)."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        pictures = {key: inputs[key] for key in _batches.PICTURES if key in inputs}
        logp_BT, entropy_BT, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, inputs["completion_ids"].shape[1], batch_size=chunk, compute_entropy=entropy, **pictures
        )
        return logp_BT, entropy_BT

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Forward passes without gradient, as TRL makes them between generation and loss."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            yield

    def reference_logp(self, inputs: Batch, chunk: int | None = None) -> Tensor:
        """Log-probability of each completion token (B, T) under the reference: a model of its own, or the one without its adapter."""
        if self.ref_model is not None:
            return self.token_columns(self.ref_model, inputs, chunk, entropy=False)[0]
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self.token_columns(self.model, inputs, chunk, entropy=False)[0]

    def said(self, rollouts: Rollouts) -> list[str]:
        """The texts of all processes' completions."""
        ids = zip(rollouts.batch["completion_ids"].tolist(), rollouts.length_b, strict=True)
        return gathered(self._tokenizer.batch_decode([row[:length] for row, length in ids], skip_special_tokens=True))

    def encoded(self, text: str) -> list[int]:
        """A text as the tokens of a completion that ends."""
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs = self._scoring
        if inputs is not None:  # TRL's loss reads the old log-probabilities after this call
            inputs["old_per_token_logps"] = torch.where(inputs["no_ratio"].unsqueeze(1), found[0].detach(), inputs["old_per_token_logps"])
        return found

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        if self.objective is not None:
            return self.objective_loss(model, inputs)
        try:
            if "no_ratio" in inputs and "old_per_token_logps" in inputs:
                self._scoring = inputs = dict(inputs)
            loss = super()._compute_loss(model, inputs)
        finally:
            self._scoring = None
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

    def _texts(self, size: int) -> dict[str, list[Any]]:
        """The rows of TRL's table of completions that the last generation batch wrote, `size` of them (it keeps one full batch)."""
        names = ["prompt", "completion", "advantages", *(f"{part}/{n}" for part in ("rewards", "extra") for n in self._logs[part])]
        return {name: list(self.table_column(name))[-size:] for name in names}

    def table_column(self, name: str) -> Any:
        """A column of TRL's table of completions, a deque."""
        part, _, column = name.partition("/")
        return self._logs[part][column] if column else self._logs[part]
