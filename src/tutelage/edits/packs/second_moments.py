"""Statistics of what a layer is fed, which say which of its weights matter to what it says.

    H = 2/N Σ x xᵀ    over the N input vectors x of a linear layer (Frantar et al. 2023, "GPTQ", eq. 3; a running mean)

The file is an ordinary safetensors file that maps the name of a layer's weight to its H, (inputs, inputs) in float32.
`tutelage.model_edits.second_moments` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tutelage.edits._dtypes import Array, encode
from tutelage.edits._safetensors import build_header, write_header
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError
from tutelage.files import atomic_open


class SecondMoments:
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
        """The beginning of each tensor's fingerprint, for the record."""
        return {name: self.store.fingerprint(name)[:16] for name in self.store.tensors}


def write_second_moments(out: Path, gram_of: Mapping[str, Array]) -> None:
    """Write H of each weight to the .safetensors file `out`, which must not exist yet."""
    if out.suffix != ".safetensors" or out.exists():
        raise TutelageError(f"Statistics go to a .safetensors file that does not exist yet, not to {out}.")
    with atomic_open(out) as file:
        entries = [(name, "F32", gram.shape, 4 * gram.size) for name, gram in gram_of.items()]
        write_header(file, build_header(entries, {"format": "tutelage.second_moments", "version": "1"}))
        for gram in gram_of.values():
            file.write(encode(gram, "F32").tobytes())
