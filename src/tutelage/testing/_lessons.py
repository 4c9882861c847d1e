"""What the battery of curricula teaches: small pools, a simulated student, whole lessons, and comparison of states."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError
from tutelage.outcomes import Kind, Outcomes
from tutelage.pools import TaskPool
from tutelage.spaces import TaskSpace

COLUMNS = tuple(f.name for f in fields(Outcomes) if f.name not in ("key_N", "step", "signals"))
Factory = Callable[[TaskPool, int], Curriculum]
Decision = tuple[NDArray[Any], NDArray[np.bool_]]


@dataclass(frozen=True)
class OverSpaces:
    """Marks a factory of curricula over a `TaskSpace`, so that the checks hand it spaces and ask for points."""

    build: Callable[[TaskSpace, int], Curriculum]

    def __call__(self, space: Any, seed: int) -> Curriculum:
        return self.build(space, seed)


def expect(condition: Any, message: str) -> None:
    """An assertion that survives `python -O`."""
    if not condition:
        raise AssertionError(message)


def make_pool(size: int = 60, arms: int = 3, *, seed: int = 0, string_keys: bool = False) -> TaskPool:
    """A pool of `size` tasks in arms of unequal sizes, with prior difficulties and keys that are no row numbers."""
    rng = np.random.default_rng([size, arms, seed])
    key_N: NDArray[Any] = rng.permutation(4 * size)[:size] + 1000
    arm_N = np.floor(arms * (np.arange(size) / size) ** 1.5).astype(np.int64)
    return TaskPool(
        key=[f"task-{k:x}" for k in key_N] if string_keys else key_N,
        arm=[f"level {a}" for a in rng.permutation(arm_N)],
        difficulty=rng.normal(size=size),
        columns={"prompt": [f"What is {k}?" for k in key_N]} if size <= 1000 else None,
    )


def make_space(*, seed: int = 0) -> TaskSpace:
    """A space of two sides of unequal length, neither of which starts at 0."""
    return TaskSpace([-1.0, 2.0], [0.5 + seed, 8.0], names=["slope", "length"])


def make_tasks(factory: Factory | OverSpaces, *, seed: int = 0) -> Any:
    """The pool or the space that a factory takes."""
    return make_space(seed=seed) if isinstance(factory, OverSpaces) else make_pool(seed=seed)


def simulate(
    pool: TaskPool | TaskSpace,
    rows_N: NDArray[Any],
    *,
    step: int,
    attempts: int = 4,
    solved: ArrayLike | None = None,
    signals: Iterable[str] = (),
) -> Outcomes:
    """What a student that improves with `step` shows on these rows (or points of a space).

    Every column, and the named signals as numbers in [0, 1), shape (N,).

    solved: the judgements to give instead, one for all or shape (N, attempts), NaN for unscorable; the reward then equals them.
    """
    rng = np.random.default_rng([step, attempts, len(rows_N)])
    shape = (len(rows_N), attempts)
    chance_N1 = 1 / (1 + np.exp(_difficulty(pool, rows_N) - 0.2 * step))[:, None]
    solved_NG = (rng.random(shape) < chance_N1).astype(np.float64) if solved is None else np.broadcast_to(solved, shape).astype(np.float64)
    reward_NG = solved_NG if solved is not None else solved_NG + 0.1 * rng.random(shape)
    kind_NG = np.where(np.isnan(solved_NG), Kind.MALFORMED, np.where(solved_NG >= 1, Kind.CORRECT, Kind.WRONG))
    unscorable_N = np.isnan(solved_NG).all(axis=1) & (attempts > 0)
    value_N = np.where(unscorable_N, np.nan, rng.random(len(rows_N)))
    return Outcomes.of(
        pool,
        rows_N,
        step=step,
        solved=solved_NG,
        kind=kind_NG,
        reward=reward_NG,
        length=rng.integers(1, 100, shape),
        signals={name: value_N.copy() for name in signals},
    )


def _difficulty(tasks: TaskPool | TaskSpace, rows_N: NDArray[Any]) -> NDArray[np.float64]:
    """How hard each task is, about 0 on average; in a space it grows along every parameter."""
    if isinstance(tasks, TaskSpace):
        return np.asarray(4 * ((rows_N - tasks.low_D) / tasks.range_D).mean(axis=1) - 2)
    assert tasks.difficulty_N is not None
    return tasks.difficulty_N[rows_N].astype(np.float64)


def signals_of(curriculum: Curriculum) -> set[str]:
    """The signals that a curriculum declares."""
    return {column.removeprefix("signals/") for column in curriculum.needs if column.startswith("signals/")}


def keep_only(outcomes: Outcomes, needs: Iterable[str]) -> Outcomes:
    """The outcomes with no columns but key, step and those named (fields by name, signals as "signals/<name>")."""
    names = set(needs)
    dropped: dict[str, Any] = {column: None for column in COLUMNS if column not in names}
    return replace(outcomes, **dropped, signals={k: v for k, v in outcomes.signals.items() if f"signals/{k}" in names})


def lesson(curriculum: Curriculum, pool: TaskPool | TaskSpace, step: int, *, n: int = 16, bare: bool = False, **student: Any) -> Decision:
    """One whole lesson: what was proposed and what was admitted. `bare` withholds every column that is not declared."""
    declared = signals_of(curriculum)
    wants = curriculum.wants()
    if wants is not None:
        asked = declared | set(wants.signals)
        answer = simulate(pool, wants.rows_N, step=step, attempts=wants.attempts, signals=asked)
        answer = keep_only(answer, {*curriculum.needs, *(f"signals/{s}" for s in asked)}) if bare else answer
        curriculum.observe(answer, probe=True)
    rows_N = curriculum.propose(n)
    outcomes = simulate(pool, rows_N, step=step, signals=declared if bare else declared | {"undeclared"}, **student)
    outcomes = keep_only(outcomes, curriculum.needs) if bare else outcomes
    curriculum.observe(outcomes)
    return rows_N.copy(), np.array(curriculum.admit(outcomes))


def run(curriculum: Curriculum, pool: TaskPool | TaskSpace, lessons: int, *, start: int = 0, **options: Any) -> list[Decision]:
    """Several lessons in a row, at the steps `start`, `start + 1`, ..."""
    return [lesson(curriculum, pool, step, **options) for step in range(start, start + lessons)]


def snapshot(curriculum: Curriculum) -> dict[str, Any]:
    """A copy of the state that nothing can change any more."""
    return copy.deepcopy(curriculum.state_dict())


def same(one: Any, other: Any) -> bool:
    """Deep equality of states, decisions and metrics; NaN equals NaN, a list equals a tuple."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other or (one != one and other != other)


def first_difference(one: list[Decision], other: list[Decision]) -> str:
    """Where two runs part, in words; empty if they do not."""
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        if not same(a[0], b[0]):
            return f"lesson {step} proposed {a[0][:6].tolist()}... in one run and {b[0][:6].tolist()}... in the other"
        if not same(a[1], b[1]):
            return f"lesson {step} admitted {int(a[1].sum())} groups in one run and {int(b[1].sum())} in the other"
    return ""


def state_bytes(value: Any) -> int:
    """Size of a state: its arrays, and the rest as JSON."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(len(str(key)) + state_bytes(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(state_bytes(item) for item in value)
    return len(json.dumps(value, default=str))


def raises(call: Callable[[], Any], what: str) -> str:
    """The message of the `TutelageError` that `call` must raise."""
    try:
        call()
    except TutelageError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what} must raise TutelageError; it raised {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} must raise TutelageError; nothing was raised")


def expect_finite_metrics(curriculum: Curriculum) -> None:
    for name, value in curriculum.metrics.items():
        expect(math.isfinite(value), f"the metric {name!r} is {value}")
