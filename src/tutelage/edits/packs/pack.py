"""A SkillPack on disk: an ordinary safetensors file, one run of bytes per tensor, and a manifest in its metadata.

Metadata, all JSON but the first two:

    format    "tutelage.pack"          version   2; a newer one is refused
    base      {tensor of the base: fingerprint}: the pack refuses any other base
    tensors   {tensor: {operator, shape, meta, error}}: how its bytes are laid out, and ‖Δ − Δ̂‖ / ‖Δ‖ as measured
    recipe    the rules, the budget, the calibration's fingerprint
    sizes     {delta: bytes of the difference in the base's number format, data: bytes of the packed tensors}
    content   the SHA-256 over the manifest and all bytes

A pack is a task vector whose numbers are decoded when they are read: whatever takes a `TaskVector` takes a `SkillPack`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits.adapter import CONFIG, Adapter
from tutelage.edits.packs.coding import Code, decode
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector
from tutelage.errors import TutelageError

FORMAT = "tutelage.pack"
VERSION = 2  # 1: fingerprints of SHA-256


class SkillPack(TaskVector):
    """A pack opened for reading: `names` are the tensors that it changes, `decode(name)` is a tensor's difference.

    `manifest`, `recipe` and `sizes` are those of the file; `file_bytes` is its size, header and all.
    """

    FORMAT, VERSION = FORMAT, VERSION
    KIND, MAKE = "a pack", "tutelage edit pack BASE TUNED -o"
    WHOLE = True

    def _open(self, metadata: dict[str, str]) -> None:
        try:
            self.manifest: dict[str, dict[str, Any]] = json.loads(metadata["tensors"])
            self.recipe: dict[str, Any] = json.loads(metadata["recipe"])
            self.sizes: dict[str, int] = json.loads(metadata["sizes"])
            same = self.manifest.keys() == self.stored.tensors.keys()
        except (ValueError, KeyError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None
        if not same:
            raise self._damaged("its manifest and its tensors do not agree")

    def _damaged(self, what: str) -> TutelageError:
        return TutelageError(f"The pack {self.path} is damaged ({what}). Make it again, or fetch it again.")

    @property
    def file_bytes(self) -> int:
        return self.path.stat().st_size

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.manifest[name]["shape"])

    def error(self, name: str) -> float:
        """‖Δ − Δ̂‖ / ‖Δ‖ of a tensor, as measured when the pack was made."""
        return float(self.manifest[name]["error"])

    def code(self, name: str) -> Code:
        """A tensor as it is stored."""
        entry = self.manifest[name]
        data = next(self.stored.chunks(name, None), np.empty(0, np.uint8))
        return Code(entry["operator"], tuple(entry["shape"]), data, entry["meta"])

    def decode(self, name: str) -> Array:
        """A tensor's difference in float32 and its shape."""
        try:
            return decode(self.code(name))
        except (ValueError, KeyError, IndexError, StopIteration) as error:
            if isinstance(error, TutelageError):
                raise
            raise self._damaged(f"{name}: {type(error).__name__}: {error}") from None

    def numbers(self, name: str, elements: int | None) -> Iterator[Array]:
        flat = self.decode(name).reshape(-1)
        for start in range(0, flat.size, elements or max(flat.size, 1)):
            yield flat[start : start + (elements or flat.size)]

    def measured_content(self) -> str:
        """The fingerprint of manifest and bytes as they are; `content` is what it was when the pack was made."""
        digest = content_digest(self.manifest, self.base)
        for name in self.stored.tensors:
            for part in self.stored.chunks(name):
                digest.update(part.data)
        return digest.hexdigest()


def content_digest(manifest: dict[str, Any], base: dict[str, str]) -> Any:
    """A SHA-256 begun with the manifest, to be updated with the bytes of the tensors in order."""
    return hashlib.sha256(json.dumps([manifest, base], sort_keys=True).encode())


def open_vector(path: str | Path) -> TaskVector:
    """A task vector, a pack, or a PEFT adapter, whichever lies there."""
    if (Path(path) / CONFIG).exists():
        return Adapter(path)
    store = WeightStore(path)
    metadata = store.headers[store.path].metadata if store.path in store.headers else {}
    return SkillPack(path) if metadata.get("format") == FORMAT else TaskVector(path)
