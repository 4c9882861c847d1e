"""Neurons of a model's feed-forward blocks: where they lie in the weights, how much they matter for a text, and which are locked.

A neuron is one hidden unit of a feed-forward block: a row of the up projection (and of the gate) with its bias, and a column of the down
projection. Found by the names that stock models give them: gate_proj/up_proj/down_proj, a fused gate_up_proj, c_fc/c_proj, fc1/fc2,
dense_h_to_4h/dense_4h_to_h, and up/down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.model_edits.statistics import collect, transposed, weight_OI

Kind = Literal["snip", "wanda", "activation", "random"]
_BLOCKS = (
    (("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"), (("c_fc",), "c_proj"), (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"), (("up",), "down"),
)  # fmt: skip


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block of F neurons. ups: its up projections (and gate); down: its down projection; both by their full names."""

    name: str
    ups: tuple[tuple[str, nn.Module], ...]
    down: tuple[str, nn.Module]

    @property
    def neurons(self) -> int:
        return weight_OI(self.down[1]).shape[1]

    def layers(self) -> dict[str, nn.Module]:
        return dict([*self.ups, self.down])

    def entries(self, locked_F: Tensor) -> dict[str, Tensor]:
        """Parameter name → mask of the entries of the locked neurons, in the parameter's shape. The down projection's bias is nobody's."""
        masks: dict[str, Tensor] = {}
        for name, layer in self.ups:
            rows_O = locked_F.repeat(weight_OI(layer).shape[0] // self.neurons)  # a fused projection holds the gate's rows, then the up's
            masks[f"{name}.weight"] = _laid(layer, rows_O.unsqueeze(1).expand(weight_OI(layer).shape))
            if layer.bias is not None:
                masks[f"{name}.bias"] = rows_O.clone()
        name, layer = self.down
        masks[f"{name}.weight"] = _laid(layer, locked_F.unsqueeze(0).expand(weight_OI(layer).shape))
        return masks


def _laid(layer: nn.Module, mask_OI: Tensor) -> Tensor:
    """A mask over (O, I) as the parameter lies in memory."""
    return (mask_OI.T if transposed(layer) else mask_OI).contiguous()


def feed_forwards(model: nn.Module, depth: tuple[float, float] = (0.0, 1.0)) -> list[FeedForward]:
    """The feed-forward blocks in the model's order whose place lies in `depth`, shares of their number: 0 is the first, 1 past the last.

    At least one block; a model without any known block raises.
    """
    found = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for ups, down in _BLOCKS:
            if all(up in children for up in ups) and down in children:
                prefix = f"{name}." if name else ""
                found.append(FeedForward(name, tuple((prefix + up, children[up]) for up in ups), (prefix + down, children[down])))
                break
    if not found:
        raise TutelageError(
            f"{type(model).__name__} has no feed-forward block with known projections "
            f"({'; '.join('/'.join([*ups, down]) for ups, down in _BLOCKS)}). Mixtures of experts are not supported."
        )
    low, high = depth
    if not 0 <= low < high <= 1:
        raise TutelageError(f"depth is a range within [0, 1], such as (0.25, 0.4) for layers 8 to 12 of 32; got {depth}.")
    first = min(round(low * len(found)), len(found) - 1)
    return found[first : max(round(high * len(found)), first + 1)]


def neuron_scores(
    model: nn.Module,
    batches: Callable[[], Iterable[Mapping[str, Tensor]]],
    blocks: Sequence[FeedForward],
    *,
    kind: Kind = "snip",
    seed: int = 0,
) -> dict[str, Tensor]:
    """How much each neuron of each block matters for a text: block name → (F,), float64.

    | kind | score of neuron j |
    |---|---|
    | `snip` | Σ over its weights of Σ_b abs(w · ∂L_b/∂w), b single sequences (the sources average over batches, whose cut then matters) |
    | `wanda` | ‖W_down[:, j]‖₂ · ‖a_j‖₂, a_j its activation over the text's tokens |
    | `activation` | mean abs(a_j) |
    | `random` | uniform: the control |
    """
    if kind not in get_args(Kind):
        raise unknown("neuron score", kind, get_args(Kind))
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {block.name: torch.rand(block.neurons, generator=generator, dtype=torch.float64) for block in blocks}
    if kind == "snip":
        return {block.name: _snip(model, batches, block) for block in blocks}  # block by block: a saliency is as large as the layer
    found = collect(model, batches, dict(block.down for block in blocks), what=("absolute",) if kind == "activation" else ("square",))
    scores = {}
    for block in blocks:
        stats = found[block.down[0]]
        if kind == "activation":
            assert stats.absolute_I is not None
            scores[block.name] = stats.absolute_I / max(stats.tokens, 1)
        else:
            scores[block.name] = weight_OI(block.down[1]).detach().double().cpu().norm(dim=0) * stats.norm()
    return scores


def _snip(model: nn.Module, batches: Callable[[], Iterable[Mapping[str, Tensor]]], block: FeedForward) -> Tensor:
    found = collect(model, batches, block.layers(), what=("saliency",))
    score_F = torch.zeros(block.neurons, dtype=torch.float64)
    for name, _ in block.ups:
        stats = found[name]
        assert stats.saliency_OI is not None
        score_F += stats.saliency_OI.sum(1).view(-1, block.neurons).sum(0)
        if stats.bias_saliency_O is not None:
            score_F += stats.bias_saliency_O.view(-1, block.neurons).sum(0)
    down = found[block.down[0]].saliency_OI
    assert down is not None
    return score_F + down.sum(0)


def lock_mask(scores: Mapping[str, Tensor], rate: float, *, inverse: bool = False) -> dict[str, Tensor]:
    """Which neurons are locked: the top `rate` of each block by score (`inverse`: the bottom, a control), exactly round(rate · F) of F.

    Ranked block by block, for the scale of gradients differs with depth. Ties go to the lower index.
    """
    if not 0 <= rate <= 1:
        raise TutelageError(f"rate is the share of neurons that is locked and lies in [0, 1]; got {rate}.")
    masks = {}
    for name, score_F in scores.items():
        order_F = (score_F if inverse else -score_F).sort(stable=True).indices
        masks[name] = torch.zeros(len(score_F), dtype=torch.bool)
        masks[name][order_F[: round(rate * len(score_F))]] = True
    return masks
