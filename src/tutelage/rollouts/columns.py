"""The columns of a rollout log: which there are, and their values as arrays or an error that names the line."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import Tally, TutelageError

REQUIRED = ("step", "prompt_id", "completion", "reward", "solved")
OPTIONAL = ("prompt", "group", "tokens", "logprobs", "source", "span", "kl", "entropy")
TERM = "reward/"
"""Before the name of a term of the reward."""
MOST = 2**53
"""The greatest step and the greatest number that stays whole as a float."""

Where = Callable[[int], str]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a log, in order.

    step_B: int64. prompt_id_B: strings. completion_B: text. reward_B and solved_B: float64, NaN where unknown. columns: the optional
    columns that the log has, as lists with None where a row has no value. line_B: where each row stands in `file`, counted from 1; `unit`
    is "line" or "row".
    """

    step_B: NDArray[np.int64]
    prompt_id_B: list[str]
    completion_B: list[str]
    reward_B: NDArray[np.float64]
    solved_B: NDArray[np.float64]
    columns: dict[str, list[Any]]
    line_B: NDArray[np.int64]
    file: str
    unit: str

    def __len__(self) -> int:
        return len(self.prompt_id_B)

    def where(self, b: int) -> str:
        """Row `b` as a reader finds it."""
        return f"{self.file}, {self.unit} {self.line_B[b]}"

    @property
    def group_B(self) -> list[str]:
        """Whom each attempt was compared with: those with the same step and the same entry here. The prompt, where no group is given."""
        group = self.columns.get("group")
        if group is None:
            return self.prompt_id_B
        return [prompt if given is None else f"group {given}" for given, prompt in zip(group, self.prompt_id_B, strict=True)]


def is_known(name: str) -> bool:
    """Whether a column means something in a rollout log."""
    return name in REQUIRED or name in OPTIONAL or (name.startswith(TERM) and len(name) > len(TERM))


def check_names(names: Iterable[str], where: str, tally: Tally, told: set[str]) -> None:
    """Raise if a required column is missing; count those that nothing is known of, each once: `told` are those that were counted."""
    names = list(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise TutelageError(_missing(missing, names, where))
    for name in names:
        if not is_known(name) and name not in told:
            told.add(name)
            tally.add(f"the column {name!r} is none of a rollout log's and was not read", where)


def _missing(missing: Sequence[str], names: Sequence[str], where: str) -> str:
    others = [name for name in names if not is_known(name)]
    near = [(want, difflib.get_close_matches(want, others, n=1, cutoff=0.6)) for want in missing]
    renamed = [f"is {found[0]!r} meant as {want!r}?" for want, found in near if found]
    if {"input", "output", "score"} <= set(names):
        fix = "It looks like a dump of verl: convert it with tutelage.rollouts.from_verl(path, out, solved='acc')."
    elif {"prompt", "completion", "advantage"} <= set(names):
        fix = "It looks like TRL's table of completions: convert it with tutelage.rollouts.from_trl(path, out, solved='its_verifier')."
    else:
        fix = (" ".join(renamed) + " " if renamed else "") + "Rename or add them; `solved` may be null where no verifier judged."
    return (
        f"{where} lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, names)) or 'no columns'}. A rollout log needs "
        f"{', '.join(REQUIRED)}. {fix}"
    )


def steps(values: Sequence[Any], where: Where) -> NDArray[np.int64]:
    """Steps as int64: whole numbers, none negative."""
    if all(type(value) is int and 0 <= value <= MOST for value in values):
        return np.array(values, dtype=np.int64)
    for b, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST or value != int(value):
            raise TutelageError(f"{where(b)}: step is {value!r}; expected a whole number, 0 or more: the optimiser step of the attempt.")
    return np.array(values, dtype=np.int64)


def names_of(values: Sequence[Any], where: Where) -> list[str]:
    """Prompt ids as strings."""
    if all(type(value) is str for value in values):
        return list(values)
    for b, value in enumerate(values):
        if value is None or isinstance(value, float | bool | list | dict):
            raise TutelageError(
                f"{where(b)}: prompt_id is {value!r}; expected a string or a whole number that stands for the same prompt in every step."
            )
    return [str(value) for value in values]


def texts(values: Sequence[Any], where: Where, tally: Tally) -> list[str]:
    """Completions as text; of chat messages, their contents one after the other."""
    if all(type(value) is str for value in values):
        return list(values)
    found = []
    for b, value in enumerate(values):
        text = as_text(value)
        if text is None:
            raise TutelageError(f"{where(b)}: completion is {str(value)[:60]!r}; expected text, or a list of chat messages.")
        if value is None:
            tally.add("completions that are null, read as empty", where(b))
        found.append(text)
    return found


def as_text(value: Any) -> str | None:
    """A text or the contents of chat messages; empty for null, None for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(message, Mapping) for message in value):
        contents = [message.get("content") for message in value]
        return "\n".join(text if isinstance(text, str) else "" if text is None else str(text) for text in contents)
    return None


def prompt_key(prompt: str) -> str:
    """An id for a prompt that is known by its text alone."""
    return hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).hexdigest()


def numbers(values: Sequence[Any], name: str, where: Where, tally: Tally) -> NDArray[np.float64]:
    """A column of numbers as float64; null, NaN and infinite ones are NaN and counted (a null `solved` is normal, and is not)."""
    for b, value in enumerate(values):
        if not (value is None or isinstance(value, int | float)):
            raise TutelageError(f"{where(b)}: {name} is {str(value)[:40]!r} of type {type(value).__name__}; expected a number or null.")
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number beyond the floats
        array = np.array([_float(value) for value in values])
    bad_B = ~np.isfinite(array)
    if name == "solved":
        off_B = ~bad_B & ((array < 0) | (array > 1))
        if off_B.any():
            b = int(off_B.argmax())
            raise TutelageError(
                f"{where(b)}: solved is {array[b]:g}; it is the verifier's judgement before any shaping, in [0, 1]. Likely cause: the "
                "shaped reward was logged in its place. Log the judgement, or null where there is none."
            )
        bad_B &= np.array([value is not None for value in values])
    if bad_B.any():
        tally.add(f"values of {name} that are null, NaN or infinite", where(int(bad_B.argmax())), int(bad_B.sum()))
    return np.where(np.isfinite(array), array, np.nan)


def _float(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def spans(values: Sequence[Any], where: Where) -> list[Any]:
    """Spans, checked to be pairs of whole numbers. Whether one lies within its text is for an audit to say."""
    for b, value in enumerate(values):
        if value is not None and not (isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)):
            raise TutelageError(
                f"{where(b)}: span is {str(value)[:40]!r}; expected [first, end], the places in the completion of the first sign that the "
                "verifier read and of the one after the last, or null."
            )
    return list(values)


def sources(values: Sequence[Any], where: Where) -> list[str | None]:
    """Sources as strings."""
    for b, value in enumerate(values):
        if isinstance(value, float | bool | list | dict):
            raise TutelageError(f"{where(b)}: source is {str(value)[:40]!r}; expected the name or the number of a data set, or null.")
    return [None if value is None else str(value) for value in values]


def measures(values: Sequence[Any], name: str, where: Where) -> list[Any]:
    """Tokens (ids, or their number) or log-probabilities (one a token), unchanged; anything else raises."""
    kind: Any = list if name == "logprobs" else list | int | float
    for b, value in enumerate(values):
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            wanted = "a list of numbers, one for each token" if name == "logprobs" else "a list of ids, or their number"
            raise TutelageError(f"{where(b)}: {name} is {str(value)[:40]!r} of type {type(value).__name__}; expected {wanted}, or null.")
    return list(values)


def make_chunk(columns: Mapping[str, list[Any]], line_B: Sequence[int], file: str, unit: str, tally: Tally) -> Chunk:
    """Checked arrays of raw columns."""

    def where(b: int) -> str:
        return f"{file}, {unit} {line_B[b]}"

    extra = {name: values for name, values in columns.items() if name not in REQUIRED}
    for name in extra:
        if name.startswith(TERM) or name in ("kl", "entropy"):
            extra[name] = numbers(extra[name], name, where, tally).tolist()
        elif name in ("tokens", "logprobs"):
            extra[name] = measures(extra[name], name, where)
    if "span" in extra:
        extra["span"] = spans(extra["span"], where)
    if "source" in extra:
        extra["source"] = sources(extra["source"], where)
    return Chunk(
        step_B=steps(columns["step"], where),
        prompt_id_B=names_of(columns["prompt_id"], where),
        completion_B=texts(columns["completion"], where, tally),
        reward_B=numbers(columns["reward"], "reward", where, tally),
        solved_B=numbers(columns["solved"], "solved", where, tally),
        columns=extra,
        line_B=np.array(line_B, dtype=np.int64),
        file=file,
        unit=unit,
    )
