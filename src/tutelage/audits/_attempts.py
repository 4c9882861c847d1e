"""A rollout log as flat arrays: under a hundred bytes an attempt, whatever the length of its text. Array suffix: `B` attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.audits._texts import candidates, odd_span, repeated_marks
from tutelage.errors import TutelageError, Warned
from tutelage.rollouts import Chunk, RolloutReader
from tutelage.tasks.behaviour import garbled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LONG = 40
"""Signs from which on two equal completions are no coincidence: short answers are equal because they are answers."""
LOOKED_AT = 8
"""The first attempts of each step, whose text is read for being garbled."""
EXCERPT = 400


@dataclass(frozen=True)
class Attempts:
    """What the rules read of a log, in its order.

    step_B. prompt_B, group_B: numbers of prompts, and of groups within their step. reward_B, solved_B: NaN where unknown. length_B: tokens,
    or signs where the log has no tokens. markup_B: marks of form in the text beyond the first of each kind, for form that is paid once is
    fair. text_B: a hash of the text. long_B: whether the text is long enough to compare. garbled_B: 1 or 0, NaN where nobody looked.
    candidates_B: different answers that the text marks as such. odd_B: what is odd about the verifier's span (`_texts.Odd`), NaN without
    one. kl_B, entropy_B: nats a token, NaN where unknown; the entropy is minus the mean log-probability where the log has those alone.
    source_B: places in `sources`, -1 where unknown.
    """

    path: Path
    step_B: Ints
    prompt_B: Ints
    group_B: Ints
    reward_B: Floats
    solved_B: Floats
    length_B: Floats
    markup_B: Floats
    text_B: Ints
    long_B: Bools
    garbled_B: Floats
    candidates_B: Floats
    odd_B: Floats
    kl_B: Floats
    entropy_B: Floats
    source_B: Ints
    sources: tuple[str, ...] = ()
    warnings: tuple[Warned, ...] = ()

    def __len__(self) -> int:
        return len(self.step_B)

    @property
    def tolerance(self) -> float:
        """Rewards that differ by less are equal: float32 noise, not a signal."""
        largest = np.nanmax(np.abs(self.reward_B), initial=1.0)
        return float(1e-6 * largest)


class Gathering:
    """Attempts as they come, a chunk at a time: what one read of a log needs, and what an audit of a run that goes on keeps."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._groups: dict[tuple[int, str], int] = {}
        self._sources: dict[str, int] = {}
        self._looked: dict[int, int] = {}
        self._parts: list[dict[str, Any]] = []

    def add(self, chunk: Chunk) -> None:
        """Read one chunk."""
        texts, steps = chunk.completion_B, chunk.step_B.tolist()
        self._parts.append(
            {
                "step_B": chunk.step_B,
                "prompt_B": _numbered(chunk.prompt_id_B, self._prompts),
                "group_B": _numbered(list(zip(steps, chunk.group_B, strict=True)), self._groups),
                "reward_B": chunk.reward_B,
                "solved_B": chunk.solved_B,
                "length_B": _lengths(chunk),
                "markup_B": np.array([repeated_marks(text) for text in texts], dtype=np.float64),
                "text_B": np.array([hash(text.strip()) for text in texts], dtype=np.int64),
                "long_B": np.array([len(text.strip()) >= LONG for text in texts]),
                "garbled_B": self._garbled(texts, steps),
                "candidates_B": np.array([candidates(text) for text in texts], dtype=np.float64),
                "odd_B": _odd(chunk),
                "kl_B": _column(chunk, "kl"),
                "entropy_B": _entropies(chunk),
                "source_B": self._source(chunk),
            }
        )

    def attempts(self, path: Path, warnings: tuple[Warned, ...]) -> Attempts:
        """All that was read so far. The parts are joined, so that asking again costs little."""
        if not self._parts:
            raise TutelageError(f"{path} holds no rollouts yet.")
        self._parts = [{name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}]
        return Attempts(path=path, sources=tuple(self._sources), warnings=warnings, **self._parts[0])

    def _source(self, chunk: Chunk) -> Ints:
        names = chunk.columns.get("source")
        if names is None:
            return np.full(len(chunk), -1)
        return np.array([-1 if name is None else self._sources.setdefault(name, len(self._sources)) for name in names], dtype=np.int64)

    def _garbled(self, texts: Sequence[str], steps: Sequence[int]) -> Floats:
        """Whether each text is garbled; only of the first of each step, for it is slow."""
        found = np.full(len(texts), np.nan)
        looked = self._looked
        for b, (text, step) in enumerate(zip(texts, steps, strict=True)):
            before = looked.get(step, 0)
            if before < LOOKED_AT:
                looked[step] = before + 1
                found[b] = garbled(text)
        return found


def load(path: Path) -> Attempts:
    """Read a log once. Errors and warnings are those of `RolloutReader`."""
    reader, gathering = RolloutReader(path), Gathering()
    for chunk in reader:
        gathering.add(chunk)
    return gathering.attempts(path, reader.warnings)


def _numbered(keys: Sequence[Any], known: dict[Any, int]) -> Ints:
    """Each key's number in the order in which keys first came; `known` is updated."""
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _lengths(chunk: Chunk) -> Floats:
    tokens = chunk.columns.get("tokens")
    if tokens is None:
        return np.array([len(text) for text in chunk.completion_B], dtype=np.float64)
    return np.array([len(t) if isinstance(t, list) else np.nan if t is None else t for t in tokens], dtype=np.float64)


def _column(chunk: Chunk, name: str) -> Floats:
    """A column of numbers; NaN where the log lacks it."""
    values = chunk.columns.get(name)
    return np.full(len(chunk), np.nan) if values is None else np.array(values, dtype=np.float64)


def _entropies(chunk: Chunk) -> Floats:
    """Nats a token: as logged, or minus the mean log-probability of what was sampled, whose expectation the entropy is."""
    known, logprobs = _column(chunk, "entropy"), chunk.columns.get("logprobs")
    if logprobs is None:
        return known
    for b in np.flatnonzero(np.isnan(known)):
        if logprobs[b]:
            try:
                known[b] = -np.mean(np.array(logprobs[b], dtype=np.float64))
            except (TypeError, ValueError):
                raise TutelageError(f"{chunk.where(int(b))}: logprobs are {str(logprobs[b])[:40]}...; expected numbers.") from None
    return known


def _odd(chunk: Chunk) -> Floats:
    found, spans = np.full(len(chunk), np.nan), chunk.columns.get("span")
    if spans is not None:
        for b, span in enumerate(spans):
            if span is not None:
                found[b] = odd_span(chunk.completion_B[b], span)
    return found


def excerpts(path: Path, rows: Sequence[int], *, signs: int | None = EXCERPT) -> dict[int, dict[str, Any]]:
    """Attempts that one can read, by their number in the log (from 0). signs: of each completion; None is all of it."""
    wanted, found, start = set(rows), {}, 0
    if not wanted:
        return {}
    for chunk in RolloutReader(path):
        for b in (row - start for row in wanted if start <= row < start + len(chunk)):
            found[start + b] = _excerpt(chunk, b, signs)
        start += len(chunk)
        if start > max(wanted):
            break
    return found


def _excerpt(chunk: Chunk, b: int, signs: int | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "where": chunk.where(b),
        "step": int(chunk.step_B[b]),
        "prompt_id": _sound(chunk.prompt_id_B[b]),
        "reward": float(chunk.reward_B[b]),
        "solved": float(chunk.solved_B[b]),
    }
    span, text = chunk.columns.get("span"), chunk.completion_B[b]
    if span is not None and span[b] is not None:
        first, end = span[b]
        shown["span"] = _sound(text[max(first, 0) : max(end, 0)][:EXCERPT])
    for name in ("source", "kl", "entropy"):
        if name in chunk.columns and chunk.columns[name][b] is not None:
            value = chunk.columns[name][b]
            shown[name] = _sound(value) if isinstance(value, str) else value
    return shown | {"completion": _sound(text[:signs])}


def _sound(text: str) -> str:
    """A text that every output can hold: without lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")
