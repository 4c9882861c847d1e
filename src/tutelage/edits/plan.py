"""What an edit will do, before it does it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tutelage.edits.store import CHUNK, TensorInfo
from tutelage.errors import TutelageError

_IDLE = 64 << 20  # bytes of an interpreter with numpy


@dataclass(frozen=True)
class Plan:
    """`touched`: tensors that are calculated; `copied`: how many go over as they are; sizes in bytes; `skipped`: name and reason."""

    touched: list[str]
    copied: int
    bytes_in: int
    bytes_out: int
    peak_memory: int
    skipped: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def peak_memory(infos: Iterable[TensorInfo], models: int, *, whole: bool) -> int:
    """An estimate of the bytes needed to combine `models` checkpoints: in chunks, or a whole tensor at a time."""
    largest = max((info.numel for info in infos), default=0)
    elements = largest if whole else min(largest, CHUNK)
    return _IDLE + elements * 4 * (2 * models + 8 if whole else models + 4)


def match(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that fit any of the shell-style patterns, in order; a pattern that fits none raises `TutelageError`."""
    known, chosen = list(names), set()
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise TutelageError(
                f"The pattern {pattern!r} matches none of the {len(known)} tensors, such as {', '.join(known[:3])}. Patterns are those of "
                "the shell and must fit the whole name: '*.mlp.*'."
            )
        chosen.update(found)
    return [name for name in known if name in chosen]
