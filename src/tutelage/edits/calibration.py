"""Statistics of what a layer is fed: the second moments of its inputs, which say which weights matter.

    H = 2/N Σ x xᵀ    over the N input vectors x of a linear layer (Frantar et al. 2023, "GPTQ", eq. 3; a running mean)

The file is an ordinary safetensors file that maps the name of a layer's weight to its H, (N, N) in float32. Nothing depends on how the
inputs were cut into batches, but for rounding.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.edits._dtypes import Array, encode
from tutelage.edits._safetensors import build_header, write_header
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError, missing_extra
from tutelage.files import atomic_open

if TYPE_CHECKING:
    import torch


class Calibration:
    """Statistics on disk, read one layer at a time."""

    def __init__(self, path: str | Path) -> None:
        self.store = WeightStore(path)
        for name, info in self.store.tensors.items():
            if len(info.shape) != 2 or info.shape[0] != info.shape[1]:
                raise TutelageError(f"{path} is not a file of statistics: {name} has the shape {info.shape}, and H = 2/N Σ x xᵀ is square.")

    def check(self, base: WeightStore) -> None:
        """Refuse statistics that are not of this model's layers."""
        ours = [name for name in self.store.tensors if name in base.tensors]
        if not ours:
            some = ", ".join(list(self.store.tensors)[:3])
            raise TutelageError(f"{self.store.path} has no statistics of any tensor of {base.path}; its names are such as {some}.")
        for name in ours:
            size, shape = self.store.tensors[name].shape[0], base.tensors[name].shape
            if len(shape) != 2 or shape[1] != size:
                raise TutelageError(f"{self.store.path}: {name} has statistics of {size} inputs, and the weight's shape is {shape}.")

    def gram(self, name: str) -> Array | None:
        """H of a weight's inputs in float32, or None where there are none."""
        if name not in self.store.tensors:
            return None
        return next(self.store.numbers(name, None)).reshape(self.store.tensors[name].shape)

    def content(self) -> dict[str, str]:
        return {name: self.store.fingerprint(name)[:16] for name in self.store.tensors}


def collect_inputs(
    model: torch.nn.Module, batches: Iterable[Any], out: Path, *, only: list[str] | None = None, call: Callable[[Any], Any] | None = None
) -> dict[str, int]:
    """Run `model` over `batches` and write H of each linear layer's inputs to the .safetensors file `out`.

    Args:
        batches: mappings are passed as keyword arguments, all else as the one argument.
        only: shell-style patterns of weight names; a pattern that matches no linear layer raises. Memory is Σ N² floats over the layers.
        call: runs the model on a batch, if not by calling it.

    Returns the number of input vectors each layer saw. Positions that are padding count as any other: leave padding out of the batches.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise missing_extra("torch", "lm") from None

    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    for pattern in only or []:
        if not fnmatch.filter(layers, pattern):
            raise TutelageError(
                f"The pattern {pattern!r} matches none of the {len(layers)} linear layers, such as {', '.join([*layers][:3])}."
            )
    chosen = {n: layer for n, layer in layers.items() if only is None or any(fnmatch.fnmatchcase(n, p) for p in only)}
    gram_of: dict[str, Array] = {}
    seen = dict.fromkeys(chosen, 0)

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            x_BN = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).to("cpu", torch.float32).numpy()
            gram_of[name] = gram_of.get(name, 0) + x_BN.T @ x_BN
            seen[name] += len(x_BN)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in chosen.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                if call is not None:
                    call(batch)
                elif isinstance(batch, dict):
                    model(**batch)
                else:
                    model(batch)
    finally:
        for handle in handles:
            handle.remove()
    _write(out, {name: gram * np.float32(2 / seen[name]) for name, gram in gram_of.items()})
    return seen


def _write(out: Path, gram_of: dict[str, Array]) -> None:
    if out.suffix != ".safetensors" or out.exists():
        raise TutelageError(f"Statistics go to a .safetensors file that does not exist yet, not to {out}.")
    if not gram_of:
        raise TutelageError("No linear layer saw any input: the batches are empty, or the model has no torch.nn.Linear.")
    with atomic_open(out) as file:
        entries = [(name, "F32", gram.shape, gram.nbytes) for name, gram in gram_of.items()]
        write_header(file, build_header(entries, {"format": "tutelage.calibration", "version": "1"}))
        for gram in gram_of.values():
            file.write(encode(gram, "F32").tobytes())
