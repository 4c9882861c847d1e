"""Running a merge recipe over checkpoints, tensor by tensor."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._copy import Chunks, converted, write_like
from tutelage.edits._dtypes import FLOATS, Array, decode, encode, finite_bits, require_finite, require_finite_bits
from tutelage.edits._fingerprints import Fingerprint
from tutelage.edits._safetensors import TensorInfo
from tutelage.edits._spread import Tell
from tutelage.edits.apply import RECORD, VERSION
from tutelage.edits.plan import Plan, peak_memory
from tutelage.edits.recipe import Recipe
from tutelage.edits.store import CHUNK, WeightStore, compare_shapes
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
        touched = list(self.hyper)
        skipped = {n: "not a floating-point tensor; must be equal in all" for n in self.template.names if n not in self.hyper}
        out = sum(converted(info, self.recipe.dtype).nbytes for info in self.template.tensors.values())
        infos = self.template.tensors.values()
        return Plan(
            touched, len(self.template.tensors) - len(touched), sum(s.nbytes for s in self.stores), out,
            peak_memory(infos, len(self.stores), whole=self.chunk is None), skipped | self.template.others()[1],
        )  # fmt: skip

    def run(self, out: Path, *, workers: int = 1, tell: Tell | None = None) -> dict[str, Any]:
        """Write the merged checkpoint to the directory `out`, and return the record kept there as edit.json.

        Args:
            workers: processes (see `_spread.spread`); one for a method that takes whole tensors, whose memory they would multiply.
            tell: called with the bytes written.
        """
        workers = 1 if self.chunk is None else workers
        with atomic_dir(out) as folder:
            prints = write_like(self.template, folder, self._produce, dtype=self.recipe.dtype, workers=workers, tell=tell)
            inputs: dict[str, dict[str, str]] = {str(store.path.resolve()): {} for store in self.stores}
            for _, sources in prints.values():
                for path, place, print_ in sources:
                    inputs[path][place] = print_
            record = {
                "format": VERSION, "edit": "merge", "method": self.recipe.method, "seed": self.seed,
                "base": str(self.base.path.resolve()) if self.base else None, "models": [str(m.path.resolve()) for m in self.models],
                "settings": {key: [s.entries for s in settings] for key, settings in self.recipe.settings.items()},
                "options": self.recipe.options, "inputs": inputs, "tensors": {name: after for name, (after, _) in prints.items()},
            }  # fmt: skip
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record

    @property
    def stores(self) -> list[WeightStore]:
        return [*self.models, *([self.base] if self.base is not None else [])]

    def _produce(self, info: TensorInfo) -> Chunks:
        """The chunks of a merged tensor; returned are its fingerprint, and path, tensor and fingerprint of each that it is made of."""
        name = self.template.tied.get(info.name, info.name)
        digest = Fingerprint(info)
        sources = [_Source(store, name) for store in self.stores] if name in self.hyper else []
        for part in self._merged(sources, name, info.dtype) if sources else self._equal(self.template.tensors[name]):
            digest.update(part)
            yield part
        return digest.hexdigest(), [(str(s.store.path.resolve()), s.info.name, s.digest.hexdigest()) for s in sources]

    def _merged(self, sources: Sequence[_Source], name: str, dtype: str) -> Iterator[Array]:
        rng = np.random.default_rng([self.seed, *hashlib.sha256(name.encode()).digest()])
        for parts in zip(*(source.numbers(self.chunk, check=self.chunk is None) for source in sources), strict=True):
            merged = self._call(list(parts[: len(self.models)]), parts[-1], rng, self.hyper[name])
            result = encode(merged, dtype)
            if not finite_bits(result, dtype):
                for source, part in zip(sources, parts, strict=True):
                    require_finite(part, source.info.name, source.info.file)
                require_finite_bits(result, dtype, name, f"the merged tensor (it does not fit {dtype})")
            yield result

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


class _Source:
    """One of the tensors that are merged, its fingerprint taken as it is read."""

    def __init__(self, store: WeightStore, name: str) -> None:
        place = name if name in store.tensors else store.tied.get(name, name)
        self.store, self.info = store, store.tensors[place]
        if self.info.dtype not in FLOATS:
            raise TutelageError(f"The tensor {place} is stored as {self.info.dtype} in {self.info.file}, and as floating point elsewhere.")
        self.digest = Fingerprint(self.info)

    def numbers(self, elements: int | None, *, check: bool) -> Iterator[Array]:
        """Decoded chunks."""
        for stored in self.store.chunks(self.info.name, elements):
            self.digest.update(stored)
            if check:
                require_finite_bits(stored, self.info.dtype, self.info.name, self.info.file)
            yield decode(stored, self.info.dtype)
