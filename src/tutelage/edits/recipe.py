"""Merge recipes: mergekit's YAML for linear, task_arithmetic, ties and dare (dare_linear, dare_ties).

    merge_method: ties
    base_model: path/to/base
    models:
      - model: path/to/one
        parameters: {weight: 0.6, density: 0.5}
      - model: path/to/other
        parameters:
          weight: [{filter: mlp, value: 0.2}, {value: 0.4}]   # the first filter that is part of the tensor's name wins
          density: 0.5
    parameters: {normalize: true, lambda: 1.0}
    dtype: bfloat16

Departures from mergekit: sums are of float32 numbers whatever `dtype` says, which is only how the result is stored (default: as the base,
or the first model, stores it); `density` must be given; a filter that matches no tensor or a key that is not understood fails. Gradients
(lists of numbers over layers), slices and changes of tokenizer are not done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.edits._dtypes import NAMES
from tutelage.errors import TutelageError, unknown

_METHODS = {
    "linear": "linear",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare": "dare",
    "dare_linear": "dare",
    "dare_ties": "dare",
}
_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source", "name")
_PER_MODEL = {"linear": ("weight",), "task_arithmetic": ("weight",), "ties": ("weight", "density"), "dare": ("weight", "density")}
_GLOBAL = {
    "linear": ("normalize",), "task_arithmetic": ("normalize", "lambda"), "ties": ("normalize", "lambda", "int8_mask"),
    "dare": ("normalize", "lambda", "rescale", "int8_mask"),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A value per tensor: the first entry whose filter is part of the name; a filter of None matches every name."""

    entries: tuple[tuple[str | None, float], ...]

    def at(self, tensor: str, what: str) -> float:
        for pattern, value in self.entries:
            if pattern is None or pattern in tensor:
                return value
        raise TutelageError(f"No filter of {what} matches the tensor {tensor}. End the list with a value without a filter.")


@dataclass(frozen=True)
class Recipe:
    """A merge: the method, the models in order, and their settings; `options` go to the method for every tensor alike."""

    method: str
    models: list[Path]
    base: Path | None
    settings: dict[str, list[Setting]]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    source: str = "recipe"

    def hyper(self, tensor: str) -> dict[str, Any]:
        """The method's keyword arguments for one tensor."""
        lists = {key: [s.at(tensor, key) for s in settings] for key, settings in self.settings.items()}
        return lists | self.options

    def check_filters(self, names: list[str]) -> None:
        """Raise where a filter matches no tensor."""
        for key, settings in self.settings.items():
            for pattern in (p for s in settings for p, _ in s.entries if p is not None):
                if not any(pattern in name for name in names):
                    raise TutelageError(
                        f"{self.source}: the filter {pattern!r} of {key} matches none of the {len(names)} tensors, such as "
                        f"{', '.join(names[:3])}. A filter is a part of a tensor's name."
                    )


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe file. Model paths are looked up from the working directory, then from the recipe's folder."""
    path = Path(path)
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TutelageError(f"Cannot read the recipe {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TutelageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    return parse_recipe(table, folder=path.parent, source=str(path))


def parse_recipe(table: Any, *, folder: Path = Path(), source: str = "recipe") -> Recipe:
    """Check a recipe that is already read; `source` names it in errors."""
    if not isinstance(table, dict):
        raise TutelageError(f"{source}: expected a mapping with merge_method and models, got {type(table).__name__}.")
    _known(table, _KEYS, f"key of {source}:")
    named = str(table.get("merge_method"))
    if named not in _METHODS:
        raise unknown(f"merge_method of {source}:", named, _METHODS)
    method = _METHODS[named]
    if table.get("tokenizer_source", "base") != "base":
        raise TutelageError(f"{source}: tokenizer_source can only be 'base'; the tokenizers of other models are not merged.")
    base = _place(table["base_model"], folder, source) if table.get("base_model") else None
    if base is None and method != "linear":
        raise TutelageError(f"{source}: merge_method {named} needs base_model, the checkpoint that the models were trained from.")
    options = _options(table, named, method, source)
    models, settings = _models(table, method, base, folder, source)
    return Recipe(method, models, base, settings, options, _dtype(table, source), source)


def _known(table: dict[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in keys:
            raise unknown(what, str(key), keys)


def _place(name: Any, folder: Path, source: str) -> Path:
    for place in (Path(str(name)), folder / str(name)):
        if place.exists():
            return place
    raise TutelageError(
        f"{source}: there is no checkpoint at {name}. Expected a directory or a .safetensors file; a model on the hub is fetched first, "
        f"with: hf download {name} --local-dir DIR"
    )


def _models(
    table: dict[str, Any], method: str, base: Path | None, folder: Path, source: str
) -> tuple[list[Path], dict[str, list[Setting]]]:
    shared = table.get("parameters") or {}
    models: list[Path] = []
    settings: dict[str, list[Setting]] = {key: [] for key in _PER_MODEL[method]}
    for number, entry in enumerate(_list(table.get("models"), f"{source}: models")):
        if not isinstance(entry, dict) or "model" not in entry:
            raise TutelageError(f"{source}: models[{number}] should be a mapping with the key model, not {entry!r}.")
        _known(entry, ("model", "parameters"), f"key of models[{number}] in {source}:")
        place, own = _place(entry["model"], folder, source), entry.get("parameters") or {}
        _known(own, _PER_MODEL[method], f"parameter of models[{number}] in {source}:")
        if method != "linear" and base is not None and place.resolve() == base.resolve():
            continue  # a task vector of zero, which recipes list by habit
        models.append(place)
        for key, values in settings.items():
            given = own.get(key, shared.get(key, 1.0 if key == "weight" else None))
            if given is None:
                raise TutelageError(
                    f"{source}: models[{number}] has no density. Give it: mergekit takes 1.0 (nothing is dropped) where it is absent, and "
                    "TIES was published with 0.2."
                )
            values.append(_setting(given, f"{source}: {key} of models[{number}]"))
    if not models:
        raise TutelageError(f"{source}: there is no model to merge besides the base.")
    return models, settings


def _setting(given: Any, what: str) -> Setting:
    if not isinstance(given, list):
        return Setting(((None, _number(given, what)),))
    if given and all(isinstance(v, int | float) for v in given):
        raise TutelageError(f"{what} is a gradient over layers, which is not done here. Give filters: [{{filter: layers.0., value: 0.1}}].")
    entries = []
    for entry in _list(given, what):
        if not isinstance(entry, dict) or "value" not in entry:
            raise TutelageError(f"{what}: expected mappings with filter and value, got {entry!r}.")
        _known(entry, ("filter", "value"), f"key of {what}:")
        pattern = entry.get("filter")
        entries.append((None if pattern in (None, "*") else str(pattern), _number(entry["value"], what)))
    return Setting(tuple(entries))


def _options(table: dict[str, Any], named: str, method: str, source: str) -> dict[str, Any]:
    shared = table.get("parameters") or {}
    _known(shared, _GLOBAL[method] + _PER_MODEL[method], f"parameter of {source}:")
    options: dict[str, Any] = {}
    for key in ("normalize", "rescale"):
        if key in shared:
            if not isinstance(shared[key], bool):
                raise TutelageError(f"{source}: {key} is true or false, not {shared[key]!r}.")
            options[key] = shared[key]
    if "lambda" in shared:
        options["scale"] = _number(shared["lambda"], f"{source}: lambda")
    if named == "dare_ties":
        options["sign_election"] = True
    return options


def _dtype(table: dict[str, Any], source: str) -> str | None:
    word = table.get("out_dtype", table.get("dtype"))
    if word is None:
        return None
    if word not in NAMES:
        raise unknown(f"number format of {source}:", str(word), NAMES)
    return NAMES[word]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TutelageError(f"{what}: expected a number, got {value!r}.")
    return float(value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise TutelageError(f"{what}: expected a list, got {value!r}.")
    return value
