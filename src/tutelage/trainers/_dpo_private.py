"""Everything this library knows of the insides of TRL's `DPOTrainer`, in one file; the tested versions stand in `_trl_private`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig

from tutelage.teachers.replies import bare
from tutelage.trainers._batches import Batch
from tutelage.trainers._trl_private import Engine

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Columns of a data set that is tokenised already."""
REFERENCES = ("ref_chosen_logp", "ref_rejected_logp")
"""Columns of a data set with J floats each: log-probabilities of the whole replies under J players."""
LOSS_SETTINGS = (
    "loss_type", "loss_weights", "label_smoothing", "beta", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting",
    "discopop_tau",
)  # fmt: skip
"""Settings that shape TRL's own loss."""
PATCHES = ("forward", "_original_forward")
"""What TRL and accelerate set on a model object itself."""


def changed_loss_settings(args: Any) -> list[str]:
    """Loss settings of a `DPOConfig` that are not at their defaults."""
    default = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(DPOConfig)}
    return [name for name in LOSS_SETTINGS if getattr(args, name) not in (default[name], [default[name]])]


@dataclasses.dataclass
class WithReferences:
    """TRL's collator for pairs, and beside what it makes the reference columns, `ref_chosen_logp_BJ` and `ref_rejected_logp_BJ`."""

    collate: Any

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        batch = self.collate(examples)
        if REFERENCES[0] in examples[0]:
            for name in REFERENCES:
                batch[f"{name}_BJ"] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


def halves(both: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen and the rejected rows of what TRL's collator made of pairs."""
    chosen, rejected = both.chunk(2, dim=0)
    return chosen, rejected


def _read_by_model(inputs: Batch) -> Batch:
    return {name: value for name, value in inputs.items() if name != "completion_mask" and not name.startswith("ref_")}


class DPOEngine(Engine):
    """The seam in `trl.DPOTrainer`: pairs with reference columns come in, the loss of one micro-batch of them is ours."""

    def count_window(self, batches: list[Batch]) -> None:
        """Count what the objective divides by; the adapter above supplies it."""
        raise NotImplementedError

    def objective_loss(self, batch: Batch, training: bool) -> Tensor:
        """The objective's loss of one micro-batch; the adapter above supplies it."""
        raise NotImplementedError

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's, but rows that come as token ids stay as they are: text need not give the ids back that were sampled."""
        if self.objective is not None and set(TOKENS) <= set(dataset.column_names or ()):
            return dataset
        return super()._prepare_dataset(dataset, *args, **kwargs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The references are in the data set; no model is asked."""
        return dataset if self.objective is not None else super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.objective is not None:
            self._signature_columns += [name for name in REFERENCES if name not in self._signature_columns]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Batch], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.objective is not None and batches:
            self.count_window(batches)
        return batches, items

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> Any:
        if self.objective is None:
            return super()._compute_loss(model, inputs, return_outputs)
        loss = self.objective_loss(self.pair_columns(model, inputs), model.training)
        if not return_outputs:
            return loss
        with torch.no_grad():  # for the caller's own metrics, which read logits; the fused head makes none
            return loss, model(**_read_by_model(inputs), use_cache=False)

    def pair_columns(self, model: Any, inputs: Batch) -> Batch:
        """What a pairwise objective reads, of a collated batch; token t + 1 stands at position t."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        mask_BT = inputs["completion_mask"][:, 1:].bool()
        batch = {name: inputs[name] for name in (f"{column}_BJ" for column in REFERENCES)}
        outputs = model(**_read_by_model(inputs), labels=labels, use_cache=False, fused_lm_head=True)
        logp_BT = outputs.log_probs[:, -mask_BT.shape[1] :]  # prompt-learning adapters put virtual tokens in front
        batch["chosen_logp_BT"], batch["rejected_logp_BT"] = halves(logp_BT)
        batch["chosen_mask_BT"], batch["rejected_mask_BT"] = halves(mask_BT)
        return batch

    def count_tokens(self, tokens: int) -> None:
        """Add to TRL's count of tokens trained on, padding left out."""
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def drop_reference_adapter(self) -> None:
        """TRL copies a given adapter as its reference; with reference columns the copy would only take memory and disk."""
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")

    @property
    def routes_experts(self) -> bool:
        """Whether TRL adds a load-balancing loss to its own."""
        return self.aux_loss_enabled


@contextmanager
def without_traces(model: Any) -> Iterator[None]:
    """Take off afterwards what an engine hangs on a model: TRL's fused head, accelerate's mixed precision. A next one starts clean."""
    parts = dict.fromkeys((model, bare(model)))
    patched = [(part, {name: vars(part)[name] for name in PATCHES if name in vars(part)}) for part in parts]
    try:
        yield
    finally:
        for part, before in patched:
            for name in PATCHES:
                vars(part).pop(name, None)
            vars(part).update(before)
