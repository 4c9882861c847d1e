"""What calibration text shows of a model's linear layers: Σx², Σ|x|, Σxxᵀ and Σ|w·∂L/∂w|, streaming, whatever the batches.

    stats = collect(model, batches, ["model.layers.0.mlp.down_proj"], what=("square",))
    norm_I = stats["model.layers.0.mlp.down_proj"].norm()          # Wanda's ‖X_j‖₂

One collector for all who need such statistics: pruning scores (Wanda, Antidote), calibrated quantisation (Σxxᵀ is half the Hessian of a
layer's squared error), neuron attribution (SNIP). All are sums over sequences and tokens, so that any cut into batches gives the same.

Array suffixes: `B` sequences, `T` tokens, `I` inputs and `O` outputs of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tutelage.errors import TutelageError, missing_extra, unknown

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

What = Literal["square", "absolute", "gram", "saliency"]
IGNORED = -100
"""The label of tokens that are not predicted, as everywhere in this field."""


@dataclass
class Statistics:
    """The sums of one linear layer, float64 on the CPU.

    square_I: Σ x_j² over counted tokens. absolute_I: Σ |x_j|. gram_II: Σ x xᵀ. saliency_OI, bias_saliency_O: Σ over sequences of
    |w ⊙ ∂L_b/∂w|, L_b being the mean negative log-likelihood of sequence b's labelled tokens. None where not asked for, or where a layer
    has no bias. sequences, tokens: how many were counted.
    """

    sequences: int = 0
    tokens: int = 0
    square_I: Tensor | None = None
    absolute_I: Tensor | None = None
    gram_II: Tensor | None = None
    saliency_OI: Tensor | None = None
    bias_saliency_O: Tensor | None = None

    def add(self, name: str, value: Tensor) -> None:
        """Add to one of the sums, from any device and in any format."""
        value, before = value.detach().double().cpu(), getattr(self, name)
        setattr(self, name, value if before is None else before + value)

    def norm(self) -> Tensor:
        """‖X_j‖₂ (I,): the root of the mean over sequences of each sequence's Σ_t x_j², as Antidote (arXiv 2408.09600) and its code do.

        Wanda divides by tokens instead; a common factor never changes an order within a row.
        """
        if self.square_I is None:
            raise TutelageError('These statistics hold no Σx². Collect them with what=("square",).')
        return (self.square_I / max(self.sequences, 1)).sqrt()


def linear_layers(model: nn.Module, patterns: Sequence[str] = ("",)) -> dict[str, nn.Module]:
    """The linear layers whose names hold a match of any of the regular expressions, in the model's order.

    Layers are `nn.Linear` and the transposed `Conv1D` of GPT-2. A pattern that matches none raises.
    """
    layers = {name: module for name, module in model.named_modules() if _is_linear(module)}
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in layers):
            some = ", ".join(list(layers)[:4])
            raise TutelageError(f"No linear layer of this model has a name that matches {pattern!r}; its layers are {some}, ...")
    return {name: module for name, module in layers.items() if any(re.search(pattern, name) for pattern in patterns)}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or transposed(module)


def transposed(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as (inputs, outputs), as GPT-2's Conv1D does."""
    return type(layer).__name__ == "Conv1D"


def weight_OI(layer: nn.Module) -> Tensor:
    """A layer's weight as (outputs, inputs), a view of the parameter; writing into it changes the layer."""
    weight: Any = layer.weight
    return weight.T if transposed(layer) else weight


def collect(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]] | Callable[[], Iterable[Mapping[str, Tensor]]],
    layers: Sequence[str] | Mapping[str, nn.Module],
    *,
    what: Sequence[What] = ("square",),
    per_pass: int | None = None,
    tell: Callable[[int], None] | None = None,
) -> dict[str, Statistics]:
    """Run calibration batches through the model and sum up the inputs of linear layers.

    Args:
        model: left in the mode and with the gradients that it had; it runs in evaluation mode.
        batches: `input_ids` (B, T), `attention_mask` (B, T; default all ones) and, for saliency, `labels` (B, T; −100 = not predicted).
            `token_mask` (B, T), where given, says which tokens Σx² and Σxxᵀ count (default: the attention mask), for instance only the
            answers'. A function that returns the batches anew allows several passes.
        layers: names of linear layers, or patterns' result (`linear_layers`).
        what: "square", "absolute", "gram" (as large as I × I per layer) and "saliency" (needs a backward pass; as large as the layer).
        per_pass: at most so many layers at a time, one pass over the batches each: bounds the memory of grams and saliencies.
        tell: called with the number of sequences after each batch.

    Raises:
        TutelageError: a name that is no linear layer, no batch, missing labels, a kind that is unknown, or activations that are not finite.
    """
    for kind in what:
        if kind not in get_args(What):
            raise unknown("statistic", kind, get_args(What))
    chosen = layers if isinstance(layers, Mapping) else _named(model, layers)
    names = list(chosen)
    size = per_pass or max(len(names), 1)
    if size < len(names) and not callable(batches):
        raise TutelageError("per_pass needs the batches several times: pass a function that returns them, such as lambda: iter(batches).")
    found: dict[str, Statistics] = {}
    for start in range(0, len(names), size):
        part = {name: chosen[name] for name in names[start : start + size]}
        with _still(model):
            found |= _Pass(model, part, frozenset(what)).run(batches() if callable(batches) else batches, tell)
    return found


def _named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not _is_linear(modules[name]):
            raise unknown("linear layer", name, [n for n, m in modules.items() if _is_linear(m)])
    return {name: modules[name] for name in names}


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode and gradients as they were."""
    training, gradients = model.training, {name: p.grad for name, p in model.named_parameters()}
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]


class _Pass:
    """One pass over the batches with hooks on some layers."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], what: frozenset[What]) -> None:
        self.model, self.layers, self.what = model, layers, what
        self.stats = {name: Statistics() for name in layers}
        self.inputs: dict[str, Tensor] = {}
        self.token_mask_BT: Tensor = torch.ones(0)

    def run(self, batches: Iterable[Mapping[str, Tensor]], tell: Callable[[int], None] | None) -> dict[str, Statistics]:
        handles = [layer.register_forward_pre_hook(self._heard(name)) for name, layer in self.layers.items()]
        if "saliency" in self.what:
            handles += [layer.register_forward_hook(self._blamed(name)) for name, layer in self.layers.items()]
        seen = 0
        try:
            for batch in batches:
                self._one(batch)
                seen += len(batch["input_ids"])
                if tell:
                    tell(len(batch["input_ids"]))
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise TutelageError("There are no calibration batches: expected at least one, with input_ids.")
        return self.stats

    def _one(self, batch: Mapping[str, Tensor]) -> None:
        ids_BT = batch["input_ids"]
        attention_BT = batch.get("attention_mask", torch.ones_like(ids_BT))
        self.token_mask_BT = batch.get("token_mask", attention_BT).bool()
        with torch.set_grad_enabled("saliency" in self.what):
            logits_BTV = self.model(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False).logits
            if "saliency" in self.what:
                wanted = [p for layer in self.layers.values() for p in layer.parameters() if p.requires_grad]
                if not wanted:
                    raise TutelageError("Saliency needs gradients, and every weight of these layers has requires_grad=False.")
                torch.autograd.grad(_sequence_losses(logits_BTV, batch).sum(), wanted, allow_unused=True)
        self.inputs.clear()

    def _heard(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x_BTI = args[0].detach()
            if x_BTI.shape[:2] != self.token_mask_BT.shape:
                raise TutelageError(
                    f"The layer {name} gets inputs of shape {tuple(x_BTI.shape)} for {tuple(self.token_mask_BT.shape)} tokens: it does not "
                    "see whole sequences (a mixture of experts?). Leave it out."
                )
            if "saliency" in self.what:
                self.inputs[name] = x_BTI
            self._add(name, x_BTI[self.token_mask_BT.to(x_BTI.device)].float(), len(x_BTI))

        return hook

    def _add(self, name: str, x_NI: Tensor, sequences: int) -> None:
        stats = self.stats[name]
        stats.sequences, stats.tokens = stats.sequences + sequences, stats.tokens + len(x_NI)
        square_I = x_NI.double().square().sum(0)
        if not torch.isfinite(square_I).all():
            raise TutelageError(f"The layer {name} gets NaN or infinite inputs. Is the model whole, and its number format wide enough?")
        if "square" in self.what:
            stats.add("square_I", square_I)
        if "absolute" in self.what:
            stats.add("absolute_I", x_NI.double().abs().sum(0))
        if "gram" in self.what:
            stats.add("gram_II", x_NI.T.double() @ x_NI.double())

    def _blamed(self, name: str) -> Callable[..., None]:
        def backward(layer: nn.Module, delta_BTO: Tensor) -> None:
            weight, stats = weight_OI(layer).detach(), self.stats[name]
            for x_TI, delta_TO in zip(self.inputs[name], delta_BTO, strict=True):  # one sequence's gradient at a time: (O, I), no more
                stats.add("saliency_OI", ((delta_TO.T @ x_TI) * weight).abs())
                if layer.bias is not None:
                    stats.add("bias_saliency_O", (delta_TO.sum(0) * layer.bias).abs())

        def hook(layer: nn.Module, args: Any, output_BTO: Tensor) -> None:
            output_BTO.register_hook(lambda delta_BTO: backward(layer, delta_BTO))

        return hook


def _sequence_losses(logits_BTV: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of each sequence's labelled tokens (B,), in nats; 0 for a sequence without any."""
    if "labels" not in batch:
        raise TutelageError("Saliency needs the column labels (−100 where nothing is predicted), which a batch does not have.")
    label_BT = batch["labels"][:, 1:]
    nll_BT = F.cross_entropy(logits_BTV[:, :-1].float().transpose(1, 2), label_BT, ignore_index=IGNORED, reduction="none")
    return nll_BT.sum(1) / (label_BT != IGNORED).sum(1).clamp(min=1)
