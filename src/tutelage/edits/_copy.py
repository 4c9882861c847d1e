"""Writing a checkpoint in the layout of another, headers included: where no tensor changes, the files are equal to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.edits._dtypes import FLOATS, NAMES, Array, storage
from tutelage.edits._safetensors import Header, TensorInfo, build_header, write_header
from tutelage.edits._spread import Tell, spread
from tutelage.edits.store import INDEX, WeightStore

Chunks = Generator[Array, None, Any]
Produce = Callable[[TensorInfo], Chunks]


def write_like(
    template: WeightStore,
    folder: Path,
    produce: Produce,
    *,
    dtype: str | None = None,
    workers: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write a checkpoint into `folder` in the layout of `template`; returns what `produce` returned for each tensor.

    Args:
        produce: a generator of the chunks of bits of a tensor; its return value is handed on. Pickled where there are several workers.
        dtype: (such as "BF16") converts the floating-point tensors; the configuration and the index follow.
        workers: processes, each with tensors of its own.
        tell: called with the bytes written.

    Other files are copied. The caller wraps this in `files.atomic_dir`, so that nothing half-written ever bears the final name.
    """
    places: dict[str, Place] = {}
    infos: list[TensorInfo] = []
    for file, header in template.headers.items():
        raw, stored = _converted(header, dtype)
        places |= lay_out(folder / file.name, raw, stored)
        infos += stored
    results = spread(Writing(produce, places), infos, workers=workers, tell=tell)
    for path in template.others()[0]:
        shutil.copyfile(path, folder / path.name)
    _write_index(template, folder, sum(info.nbytes for info in infos))
    if dtype is not None:
        _write_config(template, folder, dtype)
    return results


@dataclass(frozen=True)
class Place:
    """Where a tensor's bits go."""

    file: Path
    start: int


def lay_out(file: Path, raw: bytes, infos: list[TensorInfo]) -> dict[str, Place]:
    """Make a file with this header and room for the tensors, and say where each goes."""
    with open(file, "wb") as out:
        write_header(out, raw)
        at, places = out.tell(), {}
        for info in infos:
            places[info.name] = Place(file, at)
            at += info.nbytes
        out.truncate(at)
    return places


@dataclass(frozen=True)
class Writing:
    """The work of writing one tensor's chunks into its place."""

    produce: Produce
    places: dict[str, Place]

    def __call__(self, info: TensorInfo) -> Any:
        place = self.places[info.name]
        with open(place.file, "r+b", buffering=0) as out:
            out.seek(place.start)
            result = returned(self.produce(info), lambda part: _write_all(out, part.data.cast("B")))
            if out.tell() - place.start != info.nbytes:
                raise RuntimeError(f"{info.name}: {out.tell() - place.start} bytes were made, not {info.nbytes}")
        return result


def returned(chunks: Chunks, use: Callable[[Array], object]) -> Any:
    """Use every chunk, and return what the generator returns."""
    while True:
        try:
            part = next(chunks)
        except StopIteration as end:
            return end.value
        use(part)


def _write_all(out: Any, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


def _converted(header: Header, dtype: str | None) -> tuple[bytes, list[TensorInfo]]:
    infos = list(header.tensors.values())
    if dtype is None or all(info.dtype in (dtype,) or info.dtype not in FLOATS for info in infos):
        return header.raw, infos
    infos = [converted(info, dtype) for info in infos]
    return build_header([(i.name, i.dtype, i.shape, i.nbytes) for i in infos], header.metadata), infos


def converted(info: TensorInfo, dtype: str | None) -> TensorInfo:
    """`info` as it is stored in `dtype`, for a floating-point tensor."""
    if dtype is None or info.dtype not in FLOATS:
        return info
    return TensorInfo(info.name, dtype, info.shape, info.file, info.start, info.numel * storage(dtype).itemsize)


def _write_index(template: WeightStore, folder: Path, total: int) -> None:
    if template.index is None:
        return
    text = (template.path / INDEX).read_text(encoding="utf-8")
    table = json.loads(text)
    if "total_size" in table.get("metadata", {}) and total != template.nbytes:
        table["metadata"]["total_size"] = total
        text = json.dumps(table, indent=2) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")


def _write_config(template: WeightStore, folder: Path, dtype: str) -> None:
    config = template.config
    word = next(name for name, code in NAMES.items() if code == dtype)
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    if keys and any(config[key] != word for key in keys):
        config.update(dict.fromkeys(keys, word))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
