"""A PEFT adapter as a task vector: its matrices, multiplied when they are read.

    τ = s · B A,   s = α / r, or α / √r with `use_rslora`      (Hu et al. 2021, LoRA, eq. 3; Kalajdzievski 2023)

An adapter does not know its base: names, shapes and what it copied of its base are checked; the name in its configuration is not looked
at, for the base may have moved. What is no product of matrices (DoRA's magnitudes, saved modules, biases, trained rows) is refused: it
replaces weights and does not add up with other vectors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits._fingerprints import Fingerprint, new_content
from tutelage.edits.packs.low_rank import exact_product
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector, wrong_base
from tutelage.errors import TutelageError

CONFIG = "adapter_config.json"
_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.weight$")
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?$")


class Adapter(TaskVector):
    """A LoRA adapter in a folder, as `PeftModel.save_pretrained` writes it; `apply` and `remove` take it as any task vector."""

    WHOLE = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stored = WeightStore(self.path)
        self.config: dict[str, Any] = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        if self.config.get("peft_type") != "LORA":
            raise TutelageError(f"{path} is an adapter of type {self.config.get('peft_type')}; expected LORA. {_MERGE}")
        self.base: dict[str, str] = {}
        self.factors: dict[str, dict[str, str]] = {}
        self.copies: dict[str, str] = {}  # of the base's embeddings, which PEFT saves beside their factors
        for name in self.stored.tensors:
            found = _FACTOR.match(name)
            if copy := _COPY.match(name):
                self.copies[f"{copy['module']}.weight"] = name
                continue
            if not found:
                raise TutelageError(f"The adapter {path} holds {name}, which is no factor of a product. {_MERGE}")
            self.factors.setdefault(f"{found['module']}.weight", {})[found["side"]] = name
        for tensor, sides in self.factors.items():
            if sides.keys() != {"A", "B"} or any(len(self.stored.tensors[n].shape) != 2 for n in sides.values()):
                raise TutelageError(f"The adapter {path} has no pair of matrices for {tensor}: {', '.join(sides.values())}. {_MERGE}")
        content = new_content()
        for name, info in self.stored.tensors.items():
            content.update(f"{name} {Fingerprint(info).over(self.stored.chunks(name)).hexdigest()} {self._scale(name)}".encode())
        self.content = content.hexdigest()

    @property
    def names(self) -> list[str]:
        return list(self.factors)

    def __contains__(self, name: str) -> bool:
        return name in self.factors

    def shape(self, name: str) -> tuple[int, ...]:
        (_, columns), (rows, _) = (self.stored.tensors[self.factors[name][side]].shape for side in "AB")
        return (columns, rows) if self._transposed(name) else (rows, columns)

    def nbytes(self, name: str) -> int:
        return sum(self.stored.tensors[n].nbytes for n in self.factors[name].values())

    def numbers(self, name: str, elements: int | None) -> Iterator[Array]:
        a_RN, b_MR = (self._matrix(self.factors[name][side]) for side in "AB")
        delta = exact_product(b_MR, a_RN) * np.float32(self._scale(name))
        flat = (delta.T if self._transposed(name) else delta).reshape(-1)
        for start in range(0, flat.size, elements or max(flat.size, 1)):
            yield flat[start : start + (elements or flat.size)]

    def check_names(self, base: WeightStore) -> None:
        shapes = {name: self.shape(name) for name in self.names}
        differ = [n for n, shape in shapes.items() if n not in base.tensors or base.tensors[n].shape != shape]
        differ += [n for n, copy in self.copies.items() if n not in base.tensors or not self._same(copy, base, n)]
        if differ:
            raise wrong_base(self.path, base.path, differ)

    def check_base(self, base: WeightStore) -> None:
        self.check_names(base)

    def _same(self, copy: str, base: WeightStore, name: str) -> bool:
        pairs = zip_longest(self.stored.numbers(copy), base.numbers(name), fillvalue=np.empty(0))
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)

    def _matrix(self, name: str) -> Array:
        parts = list(self.stored.numbers(name, None))
        return parts[0].reshape(self.stored.tensors[name].shape)

    def _transposed(self, name: str) -> bool:
        """Whether the weight lies as (in, out), as embeddings and GPT-2's layers do."""
        return "embedding" in self.factors[name]["A"].rsplit(".lora_", 1)[1] or bool(self.config.get("fan_in_fan_out"))

    def _scale(self, name: str) -> float:
        """s of a module; `rank_pattern` and `alpha_pattern` are matched as PEFT does."""
        found = _FACTOR.match(name)
        module = found["module"] if found else name.removesuffix(".weight")
        rank = _by_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


_MERGE = "Merge it with peft (model.merge_and_unload()), save the model, and make a task vector of that: tutelage edit diff."


def _by_pattern(patterns: dict[str, float] | None, module: str, usual: float) -> float:
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), usual)
