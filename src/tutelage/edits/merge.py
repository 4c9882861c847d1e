"""Running a merge recipe over checkpoints, tensor by tensor."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._dtypes import FLOATS, Array, decode, encode, require_finite_bits
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits.apply import RECORD, VERSION
from tutelage.edits.plan import Plan, peak_memory
from tutelage.edits.recipe import Recipe
from tutelage.edits.store import CHUNK, WeightStore, compare_shapes, converted, write_like
from tutelage.edits.task_vector import Tell
from tutelage.errors import TutelageError
from tutelage.files import atomic_dir
from tutelage.registry import edits


class Merge:
    """A recipe with its checkpoints opened and checked: `plan()` says what `run(out)` does.

    `template` is the base, or the first model: its layout, configuration and tokenizer are those of the result.
    """

    def __init__(self, recipe: Recipe, *, seed: int = 0) -> None:
        self.recipe, self.seed = recipe, seed
        self.base = WeightStore(recipe.base) if recipe.base is not None and recipe.method != "linear" else None
        self.models = [WeightStore(path) for path in recipe.models]
        self.template = self.base if self.base is not None else self.models[0]
        for model in self.models:
            if model is not self.template:
                compare_shapes(self.template, model)
        recipe.check_filters(self.template.names)
        part = edits.get(recipe.method)
        self.function = part.target
        self.takes_rng = "rng" in inspect.signature(part.target).parameters
        self.chunk = CHUNK if getattr(part.target, "elementwise", False) else None
        self.hyper = {name: part.check(recipe.hyper(name)) for name in self._floats(self.template.names)}
        self._try_weights()

    def _floats(self, names: list[str]) -> list[str]:
        return [name for name in names if self.template.tensors[name].dtype in FLOATS]

    def _try_weights(self) -> None:
        """Let the method object to its settings before anything is read."""
        one = np.zeros(1, np.float32)
        for hyper in {repr(h): h for h in self.hyper.values()}.values():
            self._call([one] * len(self.models), one, np.random.default_rng(0), hyper)

    def plan(self) -> Plan:
        """What `run` will do."""
        stores = [*self.models, *([self.base] if self.base is not None else [])]
        touched = list(self.hyper)
        skipped = {n: "not a floating-point tensor; must be equal in all" for n in self.template.names if n not in self.hyper}
        out = sum(converted(info, self.recipe.dtype).nbytes for info in self.template.tensors.values())
        infos = self.template.tensors.values()
        return Plan(
            touched, len(self.template.tensors) - len(touched), sum(s.nbytes for s in stores), out,
            peak_memory(infos, len(stores), whole=self.chunk is None), skipped | self.template.others()[1],
        )  # fmt: skip

    def run(self, out: Path, *, tell: Tell | None = None) -> dict[str, Any]:
        """Write the merged checkpoint to the directory `out`, and return the record kept there as edit.json."""
        self.tell = tell or (lambda count: None)
        self.inputs: dict[str, dict[str, str]] = {str(s.path.resolve()): {} for s in [*self.models, *([self.base] if self.base else [])]}
        self.tensors: dict[str, str] = {}
        with atomic_dir(out) as folder:
            write_like(self.template, folder, self._produce, dtype=self.recipe.dtype)
            record = {
                "format": VERSION, "edit": "merge", "method": self.recipe.method, "seed": self.seed,
                "base": str(self.base.path.resolve()) if self.base else None, "models": [str(m.path.resolve()) for m in self.models],
                "settings": {key: [s.entries for s in settings] for key, settings in self.recipe.settings.items()},
                "options": self.recipe.options, "inputs": self.inputs, "tensors": self.tensors,
            }  # fmt: skip
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record

    def _produce(self, info: TensorInfo) -> Iterator[Array]:
        name = self.template.tied.get(info.name, info.name)
        source = self.template.tensors[name]
        digest = Fingerprint(info)
        for part in self._merged(source, info.dtype) if name in self.hyper else self._equal(source):
            digest.update(part)
            yield part
        self.tensors[info.name] = digest.hexdigest()

    def _merged(self, source: TensorInfo, dtype: str) -> Iterator[Array]:
        name = source.name
        rng = np.random.default_rng([self.seed, *hashlib.sha256(name.encode()).digest()])
        stores = [*self.models, *([self.base] if self.base is not None else [])]
        for parts in zip(*(self._numbers(store, name) for store in stores), strict=True):
            merged = self._call(list(parts[: len(self.models)]), parts[-1], rng, self.hyper[name])
            result = encode(merged, dtype)
            require_finite_bits(result, dtype, name, f"the merged tensor (it does not fit {dtype})")
            yield result

    def _numbers(self, store: WeightStore, name: str) -> Iterator[Array]:
        """Decoded chunks, with the input's fingerprint taken on the way."""
        place = name if name in store.tensors else store.tied.get(name, name)
        info = store.tensors[place]
        if info.dtype not in FLOATS:
            raise TutelageError(f"The tensor {place} is stored as {info.dtype} in {info.file}, and as floating point elsewhere.")
        digest = Fingerprint(info)
        for stored in store.chunks(place, self.chunk):
            digest.update(stored)
            self.tell(stored.nbytes)
            require_finite_bits(stored, info.dtype, place, info.file)
            yield decode(stored, info.dtype)
        self.inputs[str(store.path.resolve())][place] = digest.hexdigest()

    def _call(self, models: list[Array], base: Array, rng: np.random.Generator, hyper: dict[str, Any]) -> Array:
        arguments: list[Any] = [models] if self.base is None else [base, models]
        return np.asarray(self.function(*arguments, *([rng] if self.takes_rng else []), **hyper))

    def _equal(self, source: TensorInfo) -> Iterator[Array]:
        prints = {str(s.path): s.fingerprint(source.name) for s in [self.template, *self.models] if source.name in s.tensors}
        if len(set(prints.values())) > 1:
            raise TutelageError(
                f"The tensor {source.name} is stored as {source.dtype}, which cannot be merged, and differs between {', '.join(prints)}."
            )
        yield from self.template.chunks(source.name)
