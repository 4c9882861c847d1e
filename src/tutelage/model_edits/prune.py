"""Antidote on directories: statistics from a loaded model, masks, and the pruned checkpoint written tensor by tensor.

    source = opened(Path("tuned"), None)
    job = Pruning(source, read_texts(source.tokenizer, Path("harmful.jsonl")), Antidote(scope="delta"), base=Path("aligned"))
    record = prune_checkpoint(job, Path("out"), 0.05)

What is measured before and after, on examples kept aside from calibration: the behaviours of answers to the harmful prompts (harmful,
refused, garbled, other), and, where a task's file is given, the share of its answers said exactly. A sweep measures several amounts in
memory and writes the one that a target chooses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.edits.plan import Plan
from tutelage.edits.rewrite import rewrite
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError
from tutelage.model_edits.antidote import Antidote, prune_
from tutelage.model_edits.calibration import Example, batches, prompt_text, read_examples, split
from tutelage.model_edits.card import write_card
from tutelage.model_edits.statistics import linear_layers, transposed
from tutelage.models import load_model
from tutelage.students.generation import generate_ids
from tutelage.tasks.behaviour import Judge, rates, same_answer
from tutelage.tasks.verifiers.answers import plain

Numbers = dict[str, float]
BLOCKS = (r"\.\d+\.",)
"""By default the layers within numbered blocks: neither embeddings nor head."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the edit reads and is measured on. harmful, benign: for statistics; probes: harmful prompts kept aside; task: prompts with
    answers of what the model should still do."""

    harmful: list[Example]
    probes: list[Example]
    benign: list[Example] = dataclasses.field(default_factory=list)
    task: list[Example] = dataclasses.field(default_factory=list)


class Opened(NamedTuple):
    """A loaded model with the checkpoint that it came from."""

    model: nn.Module
    tokenizer: Any
    store: WeightStore


class Pruning:
    """A model opened for pruning: its layers, the base's weights, the statistics; `masks(amount)` and `measure()`."""

    def __init__(
        self, source: Opened, texts: Texts, part: Antidote, *, base: Path | None = None, layers: Sequence[str] = BLOCKS,
        judge: Judge = same_answer, batch_size: int = 8, max_new_tokens: int = 64,
    ) -> None:  # fmt: skip
        self.texts, self.part, self.judge, self.batch_size, self.max_new_tokens = texts, part, judge, batch_size, max_new_tokens
        self.model, self.tokenizer, self.store = source
        chosen = ("lora_",) if part.scope == "adapter" else tuple(layers)
        self.layers = linear_layers(self.model, chosen)
        self.names = {name: stored_name(name, self.store) for name in self.layers}
        self.base = self._base_weights(base) if part.scope == "delta" else None
        read = lambda examples: lambda: batches(examples, size=batch_size, pad_id=self.tokenizer.pad_token_id)  # noqa: E731
        self.found = part.statistics(self.model, self.layers, read(texts.harmful), read(texts.benign) if texts.benign else None)

    def _base_weights(self, base: Path | None) -> dict[str, Tensor]:
        if base is None:
            raise TutelageError("Scope 'delta' prunes what fine-tuning changed, and needs the model before it: give --base DIR.")
        store = WeightStore(base)
        weights = {}
        for name, layer in self.layers.items():
            stored = self.names[name]
            if stored not in store.tensors or store.tensors[stored].shape != self.store.tensors[stored].shape:
                raise TutelageError(f"{base} is not the model before fine-tuning: its tensor {stored} is missing or of another shape.")
            values = torch.from_numpy(whole(store, stored))
            weights[name] = values.T if transposed(layer) else values
        return weights

    def masks(self, amount: float) -> dict[str, Tensor]:
        return dataclasses.replace(self.part, amount=amount).masks(self.layers, *self.found, base_OI=self.base)

    def measure(self) -> Numbers:
        """Behaviours on the probes, and `task`, the share of the task's answers said exactly."""
        said = answers(self.model, self.tokenizer, self.texts.probes, self.batch_size, self.max_new_tokens)
        numbers = rates(said, [example.answer for example in self.texts.probes], self.judge)
        if self.texts.task:
            said = answers(self.model, self.tokenizer, self.texts.task, self.batch_size, self.max_new_tokens)
            right = [
                plain(text).casefold() == plain(example.answer).casefold() for text, example in zip(said, self.texts.task, strict=True)
            ]
            numbers["task"] = sum(right) / len(right)
        return numbers

    def try_amount(self, amount: float) -> Numbers:
        """What an amount does, in memory; the model is as it was afterwards."""
        undo = prune_(self.layers, self.masks(amount), self.base)
        try:
            return self.measure()
        finally:
            undo.undo()

    def new_tensors(self, masks: Mapping[str, Tensor]) -> dict[str, Callable[[], Any]]:
        """The pruned tensors by stored name, from the stored values: what is not pruned keeps its bits."""

        def make(name: str) -> Any:
            values, mask = whole(self.store, self.names[name]), masks[name].numpy()
            mask = mask.T if transposed(self.layers[name]) else mask
            values[mask] = 0
            if self.base is not None:
                fallback = weight_of(self.base[name], self.layers[name]).numpy()
                values[mask] = fallback[mask]
            return values

        return {self.names[name]: functools.partial(make, name) for name in masks}


def choose(table: Sequence[Numbers], *, target_harm: float, most_loss: float) -> int:
    """The place in a sweep (amounts ascending, the first one 0) of the smallest amount that meets the target.

    That is: harmful rate at most `target_harm`, and the task's accuracy at most `most_loss` below the first one's. Where none meets both, a
    `TutelageError` says what was nearest.
    """
    for place, numbers in enumerate(table):
        if numbers["harmful"] <= target_harm and table[0].get("task", 0.0) - numbers.get("task", 0.0) <= most_loss:
            return place
    least = min(table, key=lambda numbers: numbers["harmful"])
    raise TutelageError(
        f"No amount of the sweep brings the harmful rate to {target_harm:g} at a loss of at most {most_loss:g}; the lowest rate is "
        f"{least['harmful']:.3f}, at amount {least['amount']:g}"
        + (f" and task accuracy {least['task']:.3f}" if "task" in least else "")
        + ". Sweep further, or loosen the target; nothing was written."
    )


def pareto(table: Sequence[Numbers]) -> list[bool]:
    """Which amounts no other one beats on both the harmful rate (lower) and the task's accuracy (higher)."""

    def beats(one: Numbers, other: Numbers) -> bool:
        harm, task = (one["harmful"], other["harmful"]), (one.get("task", 0.0), other.get("task", 0.0))
        return harm[0] <= harm[1] and task[0] >= task[1] and (harm[0] < harm[1] or task[0] > task[1])

    return [not any(beats(other, one) for other in table) for one in table]


def plan_prune(model_dir: Path, scope: str, *, base: Path | None = None, layers: Sequence[str] = BLOCKS) -> Plan:
    """What pruning will touch; nothing but the model is read."""
    model, _, store = opened(model_dir, base if scope == "adapter" else None)
    chosen = linear_layers(model, ("lora_",) if scope == "adapter" else tuple(layers))
    touched = [stored_name(name, store) for name in chosen]
    aside = {name: "not among the chosen layers" for name in store.names if name not in set(touched)} | store.others()[1]
    read = store.nbytes * (2 if scope == "delta" else 1)
    whole_model = sum(parameter.numel() for parameter in model.parameters()) * 4
    peak = whole_model + sum(store.tensors[name].numel for name in touched) * (5 if scope == "delta" else 1)  # base in float32, masks
    return Plan(touched, len(store.tensors) - len(touched), read, store.nbytes, peak, aside)


def prune_checkpoint(job: Pruning, out: Path, amount: float, *, undo: str = "base", command: str = "", tell: Any = None) -> dict[str, Any]:
    """Write the pruned checkpoint with its record, metrics and card; returns the record, with `before` and `after`."""
    before = job.measure()
    masks = job.masks(amount)
    prune_(job.layers, masks, job.base)
    after = job.measure()
    part = dataclasses.replace(job.part, amount=amount)
    details = {"method": {"name": "antidote", **dataclasses.asdict(part)}, "before": before, "after": after}

    def more(folder: Path) -> None:
        metrics = {
            when: {name: {"agg_value": value} for name, value in numbers.items()} for when, numbers in details.items() if when != "method"
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        write_card(folder, title=f"{job.store.path.name}, pruned", edit="antidote", details=details, command=command)

    return rewrite(job.store, out, job.new_tensors(masks), edit="prune", details=details, undo=undo, more=more, tell=tell)


def opened(model_dir: Path, base: Path | None) -> Opened:
    """A model directory, or a PEFT adapter over its base."""
    store = WeightStore(model_dir)
    if not (model_dir / "adapter_config.json").exists():
        model, tokenizer = load_model(str(model_dir), dtype=torch.float32)
        return Opened(model.eval(), tokenizer, store)
    from peft import PeftModel

    named = json.loads((model_dir / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    place = str(base or named or "")
    if not place:
        raise TutelageError(f"The adapter {model_dir} does not say which model it belongs to: give --base DIR.")
    model, tokenizer = load_model(place, dtype=torch.float32)
    return Opened(PeftModel.from_pretrained(model, str(model_dir)).eval(), tokenizer, store)


def stored_name(layer: str, store: WeightStore) -> str:
    """The name under which a layer's weight is stored; an adapter's carry no adapter name."""
    name = f"{layer.replace('.default', '')}.weight"
    if name not in store.tensors:
        raise TutelageError(
            f"The layer {layer} has no tensor {name} in {store.path}: it is stored in another form (fused or quantised). Leave it out with "
            "--layers, or save the model once with transformers."
        )
    return name


def whole(store: WeightStore, name: str) -> Any:
    """A stored tensor as numbers in its shape."""
    return np.concatenate([*store.numbers(name)]).reshape(store.tensors[name].shape)


def weight_of(value_OI: Tensor, layer: nn.Module) -> Tensor:
    """A weight (O, I) as the layer's parameter lies."""
    return value_OI.T if transposed(layer) else value_OI


def answers(model: nn.Module, tokenizer: Any, examples: Sequence[Example], batch_size: int, max_new_tokens: int) -> list[str]:
    """The model's likeliest answers to the examples' prompts."""
    texts = [prompt_text(tokenizer, example.prompt) for example in examples]
    with torch.no_grad():
        groups = generate_ids(
            model, tokenizer, texts, max_new_tokens=max_new_tokens, temperature=0.0,
            templated=bool(getattr(tokenizer, "chat_template", None)), batch_size=batch_size,
        )  # fmt: skip
    return [tokenizer.decode(group[0], skip_special_tokens=True) for group in groups]


def read_texts(
    tokenizer: Any, harmful: Path, *, benign: Path | None = None, task: Path | None = None, share: float = 0.2, seed: int = 0
) -> Texts:
    """The texts of an edit from files; `share` of the harmful ones is kept aside to measure on."""
    kept, probes = split(read_examples(harmful, tokenizer), share, seed, what="harmful")
    if not all(example.prompt for example in probes):
        raise TutelageError(f"{harmful} holds texts without prompts; the edit is measured by answers, so give prompt and answer columns.")
    return Texts(kept, probes, read_examples(benign, tokenizer) if benign else [], read_examples(task, tokenizer) if task else [])
