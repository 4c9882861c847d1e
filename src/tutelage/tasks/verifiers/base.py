"""What a verdict is, the order in which every verifier reaches it, and the loop over a lesson's completions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.tasks.verifiers.answers import after_thinking, refused


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one completion was judged: `kind`, and `grade` in [0, 1], which is 1 exactly where the kind is CORRECT."""

    kind: Kind
    grade: float

    def __post_init__(self) -> None:
        if not isinstance(self.grade, Real) or not 0 <= self.grade <= 1:  # NaN fails the comparison too
            raise TutelageError(f"A grade must be a number in [0, 1]; got {self.grade!r}.")
        if (self.grade == 1) != (self.kind == Kind.CORRECT):
            raise TutelageError(f"A grade of 1 means CORRECT and nothing else does; got {self.kind!r} with grade {self.grade!r}.")


class Verifier(Protocol):
    """Judges one completion of a task; `task` maps column names to values, at least `answer`."""

    def __call__(self, completion: str, task: Mapping[str, Any], /) -> Judgement: ...


def gold_of(task: Mapping[str, Any]) -> str:
    """The task's `answer` column as text; missing or empty raises `TutelageError`."""
    gold = task.get("answer")
    if gold is None or not str(gold).strip():
        raise TutelageError(
            f"This task has no answer to judge by: column 'answer' is {gold!r} and the columns are {', '.join(map(str, task))}. "
            "Fill the column, rename yours to 'answer', or use a verifier that needs none (reasoning_gym, module:function)."
        )
    return str(gold)


def judge(completion: str, grade: Callable[[], float | bool | None], *, unless: Iterable[str] = ()) -> Judgement:
    """The order every built-in verifier follows: empty is MALFORMED, a refusal is REFUSED, then `grade()` decides.

    `grade` returns a number in [0, 1] (1 is CORRECT, less is WRONG) or None where the completion holds no parsable answer (MALFORMED). A
    refusal is no refusal where one of the texts in `unless` reads as one: "cannot be determined" may be the gold answer or an option.
    """
    if not after_thinking(completion).strip():
        return Judgement(Kind.MALFORMED, 0.0)
    if refused(completion) and not any(refused(text) for text in unless):
        return Judgement(Kind.REFUSED, 0.0)
    value = grade()
    if value is None:
        return Judgement(Kind.MALFORMED, 0.0)
    return Judgement(Kind.CORRECT if value == 1 else Kind.WRONG, float(value))


def as_judgement(value: Any, completion: str) -> Judgement:
    """What a user's function returned, as a `Judgement`: one already, a bool, or a number in [0, 1]; anything else raises `TutelageError`.

    A bool or a number says nothing of the kind of failure, so below 1 it is MALFORMED for an empty completion, REFUSED for a refusal,
    WRONG otherwise; the grade stays as given.
    """
    if isinstance(value, Judgement):
        return value
    if not isinstance(value, (bool, np.bool_, Real)) or math.isnan(value):
        raise TutelageError(
            f"A verifier must return a Judgement, a bool or a number in [0, 1]; got {value!r} of type {type(value).__name__}."
        )
    if value == 1:
        return Judgement(Kind.CORRECT, 1.0)
    if not after_thinking(completion).strip():
        return Judgement(Kind.MALFORMED, float(value))
    return Judgement(Kind.REFUSED if refused(completion) else Kind.WRONG, float(value))


def judge_all(
    verifier: Callable[[str, Mapping[str, Any]], Any], completions_NG: Sequence[Sequence[str]], tasks_N: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Judge G completions of each of N tasks: (`kind_NG` int8 of `Kind` codes, `grade_NG` float64 in [0, 1]).

    A verifier that raises or returns no valid verdict raises `TutelageError`, which names the task, the verifier and the original
    exception: a broken verifier must stop a run, not teach it.
    """
    if len(completions_NG) != len(tasks_N):
        raise TutelageError(f"Got completions of {len(completions_NG)} tasks for {len(tasks_N)} tasks; pass one list of attempts per task.")
    sizes = {len(row) for row in completions_NG}
    if len(sizes) > 1:
        raise TutelageError(f"Every task needs the same number of attempts; got groups of {', '.join(map(str, sorted(sizes)))}.")
    shape = (len(tasks_N), sizes.pop() if sizes else 0)
    kind_NG, grade_NG = np.zeros(shape, dtype=np.int8), np.zeros(shape, dtype=np.float64)
    for n, (row, task) in enumerate(zip(completions_NG, tasks_N, strict=True)):
        for g, completion in enumerate(row):
            judgement = _judge_one(verifier, completion, task)
            kind_NG[n, g], grade_NG[n, g] = judgement.kind, judgement.grade
    return kind_NG, grade_NG


def _judge_one(verifier: Callable[[str, Mapping[str, Any]], Any], completion: str, task: Mapping[str, Any]) -> Judgement:
    if not isinstance(completion, str):
        raise TutelageError(
            f"A completion must be text; got {type(completion).__name__} for task {name_of_task(task)}. "
            "Of a chat completion pass the content of the assistant's message."
        )
    try:
        return as_judgement(verifier(completion, task), completion)
    except Exception as error:
        raise TutelageError(
            f"Verifier {name_of(verifier)} failed on task {name_of_task(task)}: {type(error).__name__}: {error} "
            f"The completion began {completion[:80]!r}. Mend the task or the verifier; a run must not train on a verdict that is missing."
        ) from error


def name_of_task(task: Mapping[str, Any]) -> str:
    """A task's key, else the first 80 characters of its prompt or question, for error messages."""
    if task.get("key") is not None:
        return repr(task["key"])
    text = task.get("prompt") or task.get("question")
    if isinstance(text, Sequence) and not isinstance(text, str):  # a chat: the last message holds the question
        text = text[-1].get("content") if isinstance(text[-1], Mapping) else text[-1]
    return repr(str(text)[:80]) if text is not None else f"without key or question (columns {', '.join(map(str, task))})"


def name_of(verifier: Callable[..., Any]) -> str:
    """A readable name: `numeric(rel_tol=0.01)` for a built-in one, `module:function` for a user's."""
    if not isinstance(verifier, functools.partial):
        return f"{getattr(verifier, '__module__', '?')}:{getattr(verifier, '__qualname__', type(verifier).__qualname__)}"
    if verifier.args:  # a user's function inside its adapter, see custom.py
        return name_of(verifier.args[0])
    settings = ", ".join(f"{key}={value!r}" for key, value in verifier.keywords.items())
    return f"{verifier.func.__name__.strip('_')}({settings})"
