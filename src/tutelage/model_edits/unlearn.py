"""Unlearning: a plain loop that raises a forget loss's aim and holds on to what is to be kept.

    L = γ · forget(what is to go) + α · retain(what is to stay)       each averaged over its own batch

The forget losses are those of `tutelage.objectives.unlearning`; the retain side is `nll` on the retain text, `kl` (forward KL from the
model as it was, per token of the answers) or `none`. The model as it was is never loaded twice: the parameters that train are kept aside
and put in their place for one forward pass. Batches follow from (seed, step) alone, so that a resumed run goes on with the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_open
from tutelage.model_edits.calibration import Example, batches
from tutelage.model_edits.masks import FrozenEntries
from tutelage.model_edits.statistics import IGNORED
from tutelage.objectives import Distillation
from tutelage.registry import objectives

Retain = Literal["kl", "nll", "none"]
NOT_STOPPED = float("inf")


class Unlearning:
    """Steps of unlearning on a loaded model, with a state that can be kept and taken up.

    Args:
        model: changed in place; only `trainable` parameters move, in evaluation mode (no dropout).
        forget, retain: what is to go and what is to stay; each step takes `batch_size` of each, in a new order every epoch.
        trainable: names of the parameters that may move; None for all.
        frozen: entries of them that may not.
        forget_loss: a registered forget loss (ascent, npo, simnpo, wga, satimp, erase), with its hyperparameters in `forget_settings`.
        retain_loss: "kl", "nll" or "none". gamma, alpha: γ and α.
        lr, max_grad_norm: of AdamW without weight decay, which would move what is locked.

    Raises:
        TutelageError: an empty set, an unknown loss or parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        forget: Sequence[Example],
        retain: Sequence[Example],
        *,
        trainable: Sequence[str] | None = None,
        frozen: Mapping[str, Tensor] | None = None,
        forget_loss: str = "ascent",
        forget_settings: Mapping[str, Any] | None = None,
        retain_loss: Retain = "kl",
        gamma: float = 1.0,
        alpha: float = 1.0,
        lr: float = 1e-5,
        max_grad_norm: float = 1.0,
        batch_size: int = 8,
        pad_id: int = 0,
        seed: int = 0,
    ) -> None:
        if retain_loss not in get_args(Retain):
            raise unknown("retain loss", retain_loss, get_args(Retain))
        for what, examples in (("forget", forget), *([("retain", retain)] if retain_loss != "none" else [])):
            if not examples:
                raise TutelageError(f"There is nothing to {what}: expected at least one example.")
        self.model, self.sets = model, {"forget": forget, "retain": retain}
        self.batch_size, self.pad_id, self.seed, self.max_grad_norm = batch_size, pad_id, seed, max_grad_norm
        self.gamma, self.alpha, self.retain_loss = gamma, alpha, retain_loss
        self.forget_loss = objectives.build(forget_loss, **(forget_settings or {}))
        self.parameters = _trainable(model, trainable)
        self.original = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.frozen = FrozenEntries(model, frozen or {})
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=lr, weight_decay=0.0)
        self.history: list[dict[str, float]] = []
        model.eval()

    def step(self) -> dict[str, float]:
        """One optimiser step; returns, and keeps in `history`, the two losses and the forget batch's `nll`, all from before the step."""
        stats = {"forget_loss": 0.0, "retain_loss": 0.0, "nll": 0.0}
        self.optimizer.zero_grad()
        loss, of_forget = self._forget(self._batch("forget"))
        stats |= {"forget_loss": loss.item(), "nll": float(of_forget["nll"])}
        (self.gamma * loss).backward()
        if self.retain_loss != "none" and self.alpha:
            loss = self._retain(self._batch("retain"))
            stats["retain_loss"] = loss.item()
            (self.alpha * loss).backward()
        self.frozen.zero_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        self.optimizer.step()
        self.frozen.restore()
        self.history.append(stats)
        return stats

    def run(
        self,
        steps: int,
        *,
        stop_nll: float = NOT_STOPPED,
        check_every: int = 10,
        tell: Callable[[dict[str, float]], None] | None = None,
    ) -> bool:
        """Steps up to `steps` in all, or until the whole forget set's mean NLL reaches `stop_nll` (nats per token, checked every
        `check_every` steps); returns whether it was reached. Ascent has no bound of its own: give it one."""
        while len(self.history) < steps:
            if stop_nll < NOT_STOPPED and len(self.history) % check_every == 0 and self.forget_nll() >= stop_nll:
                return True
            stats = self.step()
            if tell:
                tell(stats)
        return stop_nll < NOT_STOPPED and self.forget_nll() >= stop_nll

    @torch.no_grad()
    def forget_nll(self) -> float:
        """Mean NLL of a forget answer's token, in nats, over the whole set."""
        total, tokens = 0.0, 0
        for batch in batches(self.sets["forget"], size=self.batch_size, pad_id=self.pad_id, device=self._device):
            found = columns(self.model, batch)
            total -= float(torch.where(found["mask_BT"], found["logp_BT"], 0.0).sum())
            tokens += int(found["mask_BT"].sum())
        return total / max(tokens, 1)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _batch(self, which: str) -> dict[str, Tensor]:
        """The batch of the present step: consecutive places of an order that is new in every epoch."""
        examples, places = self.sets[which], len(self.history) * self.batch_size + np.arange(self.batch_size)
        orders = {epoch: np.random.default_rng([self.seed, which == "forget", epoch]).permutation(len(examples))
                  for epoch in set((places // len(examples)).tolist())}  # fmt: skip
        chosen = [examples[int(orders[place // len(examples)][place % len(examples)])] for place in places.tolist()]
        return next(batches(chosen, size=len(chosen), pad_id=self.pad_id, device=self._device))

    def _forget(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found = columns(self.model, batch)
        if "ref_logp_BT" in self.forget_loss.requires:
            with torch.no_grad(), self.as_it_was():
                found["ref_logp_BT"] = columns(self.model, batch)["logp_BT"]
        return self.forget_loss(found, denominators=self.forget_loss.denominators_of(found))

    def _retain(self, batch: Mapping[str, Tensor]) -> Tensor:
        found = columns(self.model, batch)
        if self.retain_loss == "nll":
            part = objectives.build("nll")
        else:
            part = Distillation(kind="forward_kl")
            with torch.no_grad(), self.as_it_was():
                found["teacher_logp_BTV"] = columns(self.model, batch)["logp_BTV"]
        return part(found, denominators=part.denominators_of(found))[0]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """The model before any unlearning, within the block."""
        now = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.original[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = now[name]

    def save(self, path: Path) -> None:
        """Keep parameters, moments and history in one safetensors file, whole or not at all."""
        from safetensors.torch import save

        tensors = {f"parameter/{name}": parameter.detach().contiguous() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": torch.as_tensor(value).contiguous() for key, value in moments.items()}
        with atomic_open(path) as file:
            file.write(save(tensors, metadata={"history": json.dumps(self.history), "seed": str(self.seed)}))

    def load(self, path: Path) -> None:
        """Take up what `save` kept: of the same model, parameters and seed."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            kept, names = file.metadata() or {}, set(file.keys())
            mine = {f"parameter/{name}" for name in self.parameters}
            if kept.get("seed") != str(self.seed) or mine != {name for name in names if name.startswith("parameter/")}:
                raise TutelageError(f"{path} belongs to an unlearning with another seed or other parameters. Delete it to start anew.")
            for name, parameter in self.parameters.items():
                parameter.data.copy_(file.get_tensor(f"parameter/{name}"))
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in names]
                self.optimizer.state[parameter] = {key: file.get_tensor(f"{key}/{name}") for key in keys}
            self.history = json.loads(kept["history"])


def columns(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the objectives read: `logp_BTV`, `logp_BT` and `mask_BT` of a batch; position t predicts token t + 1."""
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    logp_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
    label_BT = batch["labels"][:, 1:]
    mask_BT = label_BT != IGNORED
    return {
        "logp_BTV": logp_BTV,
        "logp_BT": logp_BTV.gather(-1, label_BT.clamp(min=0).unsqueeze(-1)).squeeze(-1),
        "mask_BT": mask_BT,
    }


def _trainable(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    everything = dict(model.named_parameters())
    for name in names or ():
        if name not in everything:
            raise unknown("parameter", name, list(everything))
    chosen = {name: parameter for name, parameter in everything.items() if names is None or name in set(names)}
    for name, parameter in everything.items():
        parameter.requires_grad_(name in chosen)
    return chosen
