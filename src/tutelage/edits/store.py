"""Checkpoints on disk, read chunk by chunk: a Hugging Face directory (one file, shards with an index, or a PEFT adapter) or a
bare file. Nothing is ever unpickled, and no torch is needed. `_copy` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._dtypes import FLOATS, Array, decode, require_finite_bits, storage
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import Header, TensorInfo, read_header
from tutelage.errors import TutelageError

CHUNK = 1 << 16  # elements read at a time: what fits a core's cache, with the temporaries of a calculation

INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".index.json")
_OWN = ("edit.json", "undo.zip")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")


class WeightStore:
    """The tensors of a checkpoint by name, without loading them.

    `tensors` maps each stored name to its `TensorInfo`; `tied` maps the second copy of a tied weight to the first, where a configuration
    with `tie_word_embeddings` goes with two copies that are equal to the bit: both are then edited as one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.index: dict[str, str] | None = None
        self.folder = self.path if self.path.is_dir() else None
        self.headers: dict[Path, Header] = {file: read_header(file) for file in self._files()}
        self.tensors: dict[str, TensorInfo] = {}
        for file, header in self.headers.items():
            for name, info in header.tensors.items():
                if name in self.tensors:
                    raise TutelageError(f"The tensor {name} stands both in {self.tensors[name].file} and in {file}; remove one of the two.")
                self.tensors[name] = info
        self._check_index()
        self.tied = self._find_tied()

    def _files(self) -> list[Path]:
        if self.folder is None:
            if not self.path.is_file():
                raise TutelageError(
                    f"There is no checkpoint at {self.path}. Expected a model directory or a .safetensors file; a model on the hub is "
                    f"fetched first, with: hf download {self.path} --local-dir DIR"
                )
            if self.path.suffix != ".safetensors":
                raise TutelageError(f"{self.path} is not a .safetensors file. Pickled weights are not read; convert them first.")
            return [self.path]
        if (self.folder / "adapter_config.json").exists():  # PEFT writes an adapter's tensors into one file
            return [self._adapter()]
        whole = self.folder / "model.safetensors"
        if whole.exists():  # as transformers does, a whole file comes before shards
            return [whole]
        self.index = self._read_index()
        if self.index is not None:
            return [self.folder / name for name in dict.fromkeys(sorted(self.index.values()))]
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) == 1:
            return found
        if found:
            raise TutelageError(f"{self.path} has {len(found)} .safetensors files and no {INDEX}, which says what each holds.")
        pickled = any(next(self.folder.glob(f"*{end}"), None) for end in (".bin", ".pt", ".pth"))
        why = "only pickled weights, which are not read; load and save the model once with transformers" if pickled else "no weights"
        raise TutelageError(f"{self.path} has {why}. Expected model.safetensors, or shards with {INDEX}.")

    def _adapter(self) -> Path:
        path = self.path / "adapter_model.safetensors"
        if not path.exists():
            raise TutelageError(
                f"{self.path} is a PEFT adapter without {path.name}. Pickled weights are not read: load and save it once with peft."
            )
        return path

    def _read_index(self) -> dict[str, str] | None:
        path = self.path / INDEX
        if not path.exists():
            return None
        try:
            index = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise TutelageError(f"{path} is not an index of shards ({type(error).__name__}: {error}); fetch it again.") from None
        for name in dict.fromkeys(index.values()):
            if Path(name).name != name or not (self.path / name).exists():
                raise TutelageError(f"{path} names the file {name}, which is not there. Fetch it again.")
        return index

    def _check_index(self) -> None:
        for name, file in (self.index or {}).items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise TutelageError(f"{self.path / INDEX} places the tensor {name} in {file}, which does not hold it. Fetch both again.")
        if self.index is not None and (extra := self.tensors.keys() - self.index.keys()):
            name = min(extra)
            raise TutelageError(f"The tensor {name} of {self.tensors[name].file} is missing from {INDEX}. Fetch both again.")

    def _find_tied(self) -> dict[str, str]:
        config = self.config
        if not config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings", False)):
            return {}
        heads = [n for n in self.tensors if n.endswith(_HEADS)]
        sources = [n for n in self.tensors if n.endswith(_EMBEDDINGS)]
        return {head: source for head in heads for source in sources[:1] if self.equal(head, source)}

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same in format, shape and every bit."""
        a, b = self.tensors[one], self.tensors[other]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(self.chunks(one), self.chunks(other), strict=True))

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration; empty for a bare file."""
        path = self.path / "config.json"
        if self.folder is None or not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise TutelageError(f"{path} is not a JSON object: {error}.") from None

    @property
    def names(self) -> list[str]:
        """Every tensor once: second copies of tied weights are left out."""
        return [name for name in self.tensors if name not in self.tied]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def chunks(self, name: str, elements: int | None = CHUNK) -> Iterator[Array]:
        """The stored bits of a tensor, flat, `elements` at a time (None: all at once); decode them with `numbers`."""
        info = self.tensors[name]
        dtype = storage(info.dtype)
        left = info.nbytes // dtype.itemsize
        with open(info.file, "rb", buffering=0) as file:
            file.seek(info.start)
            while left:
                count = min(left, elements or left)
                part = np.empty(count, dtype)
                view = part.data.cast("B")
                got = 0
                while got < len(view):
                    read = file.readinto(view[got:])
                    if not read:
                        raise TutelageError(f"{info.file} ended within the tensor {name}: it was cut short while being read.")
                    got += read
                left -= count
                yield part

    def numbers(self, name: str, elements: int | None = CHUNK) -> Iterator[Array]:
        """The values of a floating-point tensor, flat, `elements` at a time, as float32 (F64: float64); NaN and infinities raise."""
        info = self.tensors[name]
        require_editable(info)
        for part in self.chunks(name, elements):
            require_finite_bits(part, info.dtype, name, info.file)
            yield decode(part, info.dtype)

    def fingerprint(self, name: str) -> str:
        """The hash of a tensor's format, shape and bits (see `_fingerprints`)."""
        return Fingerprint(self.tensors[name]).over(self.chunks(name)).hexdigest()

    def matches(self, name: str, expected: str) -> bool:
        """Whether a tensor has this fingerprint, by reading it."""
        return Fingerprint(self.tensors[name], expected).over(self.chunks(name)).matches(expected)

    def others(self) -> tuple[list[Path], dict[str, str]]:
        """The files beside the weights: those that go along with a copy, and those that do not, with the reason."""
        carried: list[Path] = []
        skipped: dict[str, str] = {}
        for path in sorted(self.folder.iterdir()) if self.folder is not None else []:
            if path in self.headers or (path.name == INDEX and self.index is not None) or path.name in _OWN:
                continue
            if path.is_dir():
                skipped[path.name + "/"] = "a folder"
            elif path.name.startswith("."):
                skipped[path.name] = "a hidden file"
            elif path.name.endswith(_WEIGHTS):
                skipped[path.name] = "other weights, or pickled state"
            elif path.name.lower() == "readme.md":
                skipped[path.name] = "describes the weights before the edit"
            else:
                carried.append(path)
        return carried, skipped


def require_editable(info: TensorInfo) -> None:
    """Raise for a format that is not a plain floating-point one."""
    if info.dtype not in FLOATS:
        raise TutelageError(
            f"The tensor {info.name} of {info.file} is stored as {info.dtype}, which cannot be calculated with. Expected one of "
            f"{', '.join(FLOATS)}: dequantise the checkpoint first, or leave this tensor out."
        )


def compare_shapes(base: WeightStore, other: WeightStore) -> None:
    """Raise `TutelageError` unless both hold the same tensors in the same shapes (tied copies apart)."""
    here, there = base.tensors, other.tensors
    missing = [n for n in base.names if n not in there]
    untied = base.tensors.keys() - base.tied.keys()
    extra = [n for n in other.names if n not in untied and not (n in base.tied and other.equal(n, base.tied[n]))]
    if missing or extra:
        parts = [f"{len(m)} only in {s.path} ({', '.join(m[:3])}{', ...' if len(m) > 3 else ''})" for m, s in
                 ((missing, base), (extra, other)) if m]  # fmt: skip
        hint = " One has tied word embeddings and the other a head of its own." if any(n.endswith(_HEADS) for n in missing + extra) else ""
        raise TutelageError(f"{base.path} and {other.path} do not hold the same tensors: {'; '.join(parts)}.{hint}")
    for name in base.names:
        a, b = here[name], there[name]
        if a.shape != b.shape:
            words = name.endswith(_EMBEDDINGS + _HEADS)
            hint = " The vocabularies differ: resize one model's embeddings to the other's first." if words else ""
            raise TutelageError(f"The tensor {name} has the shape {a.shape} in {base.path} and {b.shape} in {other.path}.{hint}")
