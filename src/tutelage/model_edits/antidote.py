"""Antidote (arXiv 2408.09600): after fine-tuning, zero once the weights that matter most on harmful text.

    h_ij = |W_ij| · ‖X_j‖₂        X: the layer's inputs while the fine-tuned model reads harmful prompts and answers
    in each row i the top α share of h_i· is pruned (paper: Wanda's score, with the order turned around)

All scores come from the unpruned model; masks are applied at the end, without recalibration.

Switches, the paper's choice first:

- scope: `adapter`, the LoRA matrices A and B, where pruning all gives back the aligned model; `delta`, W − W_base, falling back to W_base;
  `weights`, to zero.
- score: `wanda` on harmful text; `contrast`, ‖X^harm‖/‖X^benign‖ in place of ‖X^harm‖; `saliency`, Σ|w · ∂L_harm/∂w|; `magnitude` and
  `random`, the controls.
- granularity: `row`; `tensor`; `all`, one ranking over all layers.
- rounding: `floor`, n − ⌊n(1 − α)⌋ of a row as released (α = 0.05 of 10 is 1); `round`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.model_edits.statistics import Statistics, collect, weight_OI
from tutelage.registry import edits

Scope = Literal["weights", "delta", "adapter"]
Score = Literal["wanda", "contrast", "saliency", "magnitude", "random"]
Granularity = Literal["row", "tensor", "all"]
Rounding = Literal["floor", "round"]
Batches = Callable[[], Iterable[Mapping[str, Tensor]]]


@edits.register("antidote")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Antidote:
    """One-shot pruning of what harmful text activates most (Antidote, arXiv 2408.09600).

    Args:
        amount: α, the share of each row that is pruned, in [0, 1]; 0.01 to 0.2 in the paper.
        scope, score, granularity, rounding: see the module. The default scope suits full fine-tuning with the base at hand.
        seed: of `random`.
    """

    amount: float = 0.05
    scope: Scope = "delta"
    score: Score = "wanda"
    granularity: Granularity = "row"
    rounding: Rounding = "floor"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise TutelageError(f"amount is the share of the weights that is pruned and lies in [0, 1]; got {self.amount}.")
        for name, values in (("scope", Scope), ("score", Score), ("granularity", Granularity), ("rounding", Rounding)):
            if getattr(self, name) not in get_args(values):
                raise unknown(name, getattr(self, name), get_args(values))

    def statistics(
        self, model: nn.Module, layers: Mapping[str, nn.Module], harmful: Batches, benign: Batches | None = None
    ) -> tuple[dict[str, Statistics], dict[str, Statistics]]:
        """What the score needs of the two texts; nothing where it needs nothing."""
        if self.score in ("magnitude", "random"):
            return {}, {}
        if self.score == "contrast" and benign is None:
            raise TutelageError("The contrast score compares with benign text of the model's own task; give some (--benign FILE).")
        found = collect(model, harmful, layers, what=("saliency",) if self.score == "saliency" else ("square",))
        return found, collect(model, benign, layers) if self.score == "contrast" and benign is not None else {}

    def masks(
        self,
        layers: Mapping[str, nn.Module],
        harmful: Mapping[str, Statistics],
        benign: Mapping[str, Statistics] | None = None,
        base_OI: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Which entries are pruned: layer name → bool (O, I). base_OI: the base's weights, for scope `delta`."""
        if self.scope == "delta" and base_OI is None:
            raise TutelageError("Scope 'delta' prunes what fine-tuning changed, and needs the model before it (--base DIR).")
        generator = torch.Generator().manual_seed(self.seed)
        scores: dict[str, Tensor] = {}
        for name, layer in layers.items():
            weight = weight_OI(layer).detach().float().cpu()
            weight = weight if base_OI is None or self.scope != "delta" else weight - base_OI[name].float()
            scores[name] = self._score(weight, harmful.get(name), (benign or {}).get(name), generator)
        return top_masks(scores, self.amount, granularity=self.granularity, rounding=self.rounding)

    def _score(self, weight: Tensor, harmful: Statistics | None, benign: Statistics | None, generator: torch.Generator) -> Tensor:
        if self.score == "random":
            return torch.rand(weight.shape, generator=generator)
        if self.score == "magnitude" or harmful is None:
            return weight.abs()
        if self.score == "saliency":
            assert harmful.saliency_OI is not None
            return harmful.saliency_OI.float()
        norm_I = harmful.norm()
        if benign is not None:
            norm_I = norm_I / benign.norm().clamp(min=torch.finfo(torch.float32).tiny)
        return weight.abs() * norm_I.float()


def top_masks(
    scores: Mapping[str, Tensor], amount: float, *, granularity: Granularity = "row", rounding: Rounding = "floor"
) -> dict[str, Tensor]:
    """True at the top share of the scores, of each row, of each tensor or of all together; ties go to the earlier entry."""

    def top(score_RN: Tensor) -> Tensor:
        n = score_RN.shape[1]
        count = round(n * amount) if rounding == "round" else n - int(n * (1 - amount))
        order_RN = score_RN.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return torch.zeros_like(score_RN, dtype=torch.bool).scatter_(1, order_RN, True)

    if granularity == "row":
        return {name: top(score) for name, score in scores.items()}
    if granularity == "tensor":
        return {name: top(score.reshape(1, -1)).view_as(score) for name, score in scores.items()}
    flat = top(torch.cat([score.flatten() for score in scores.values()]).unsqueeze(0))[0]
    parts = flat.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


class Undo:
    """The entries that `prune_` overwrote; `undo()` puts them back, to the bit."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(self, weight: Tensor, mask: Tensor) -> None:
        self._kept.append((weight, mask, weight[mask].clone()))

    def undo(self) -> None:
        with torch.no_grad():
            for weight, mask, values in reversed(self._kept):
                weight[mask] = values
        self._kept = []


@torch.no_grad()
def prune_(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor], towards: Mapping[str, Tensor] | None = None) -> Undo:
    """Set the masked entries of each layer to 0, or to those of `towards` (layer name → (O, I)), in place."""
    undo = Undo()
    for name, mask in masks.items():
        weight, mask = weight_OI(layers[name]).data, mask.to(weight_OI(layers[name]).device)
        undo.keep(weight, mask)
        weight[mask] = 0 if towards is None else towards[name].to(weight)[mask]
    return undo
