"""Second moments of the layers' inputs, collected on calibration batches and written for `tutelage edit pack --calibration`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tutelage.edits.packs.second_moments import write_second_moments
from tutelage.errors import TutelageError
from tutelage.model_edits.statistics import collect, linear_layers, transposed


def plan_second_moments(model: nn.Module, *, layers: Sequence[str] = ("",), per_pass: int | None = None) -> dict[str, Any]:
    """What `save_second_moments` will do: {layers: {name: inputs}, passes, bytes_out, peak_memory: bytes beside the model}."""
    inputs = {name: cast(Tensor, layer.weight).shape[-1] for name, layer in _chosen(model, layers).items()}
    at_once = per_pass or len(inputs)
    wide = sorted((n * n for n in inputs.values()), reverse=True)
    return {
        "layers": inputs, "passes": -(-len(inputs) // at_once), "bytes_out": 4 * sum(wide),
        "peak_memory": 8 * sum(wide[:at_once]) + 4 * sum(wide),
    }  # fmt: skip


def save_second_moments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]] | Callable[[], Iterable[Mapping[str, Tensor]]],
    out: Path,
    *,
    layers: Sequence[str] = ("",),
    per_pass: int | None = None,
    tell: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write H = 2/N Σ x xᵀ of linear layers' inputs to the .safetensors file `out`; returns N, the tokens each layer saw.

    Args:
        batches: `input_ids`, `attention_mask`; padding is not counted. A function that returns them anew allows several passes.
        layers: regular expressions, searched for in the layers' names; one that matches none raises.
        per_pass: at most so many layers at a time: inputs² float64 numbers are held for each.
        tell: called with the number of sequences after each batch.
    """
    chosen = _chosen(model, layers)
    found = collect(model, batches, chosen, what=("gram",), per_pass=per_pass, tell=tell)
    gram_of = {f"{name}.weight": (s.gram_II * (2 / s.tokens)).numpy() for name, s in found.items() if s.gram_II is not None}
    write_second_moments(out, gram_of)
    return {name: s.tokens for name, s in found.items()}


def _chosen(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    chosen = linear_layers(model, layers)
    if wrong := [name for name, layer in chosen.items() if transposed(layer)]:
        raise TutelageError(
            f"The layer {wrong[0]} keeps its weight transposed (Conv1D), which calibrated packing does not do; leave it out."
        )
    return chosen
