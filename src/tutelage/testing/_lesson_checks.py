"""Checks of what a curriculum proposes, what chance it uses and what it learns from; run by `tutelage.testing.check_curriculum`."""

from __future__ import annotations

import copy
import functools
import math
import random
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError
from tutelage.pools import TaskPool
from tutelage.spaces import TaskSpace
from tutelage.testing._lessons import (
    COLUMNS,
    Factory,
    expect,
    expect_finite_metrics,
    first_difference,
    keep_only,
    lesson,
    make_pool,
    make_tasks,
    raises,
    run,
    same,
    signals_of,
    simulate,
    snapshot,
)

# What it is and what it proposes ------------------------------------------------------------------------------------------------------


def check_declaration(factory: Factory) -> None:
    """A subclass of Curriculum with a name, whose `needs` are columns and whose `memory` exists."""
    curriculum = factory(make_tasks(factory), 0)
    expect(isinstance(curriculum, Curriculum), f"the factory built a {type(curriculum).__name__}, which is no tutelage.Curriculum")
    expect(isinstance(curriculum.name, str) and curriculum.name, "the class attribute `name` is empty")
    strange = [c for c in curriculum.needs if c not in COLUMNS and not c.startswith("signals/")]
    expect(not strange, f"`needs` names {strange}; columns are {', '.join(COLUMNS)}, and signals are written 'signals/<name>'")
    absent = [m for m in {*curriculum.memory, *curriculum.by_arm} if not hasattr(curriculum, m)]
    expect(not absent, f"`memory` names {absent}, which the curriculum does not have")


def check_proposals(factory: Factory) -> None:
    """`propose(n)` gives exactly n int64 row numbers of the pool, for n from 1 to beyond its size, and refuses n below 1."""
    pool = make_pool()
    curriculum = factory(pool, 0)
    size = len(pool)
    for step, n in enumerate((1, 2, 3, 16, size - 1, size, size + 1, 2 * size + 3, 1)):
        rows_N = curriculum.propose(n)
        expect(isinstance(rows_N, np.ndarray), f"propose({n}) gave a {type(rows_N).__name__}, not an array")
        expect(
            rows_N.dtype == np.int64 and rows_N.shape == (n,),
            f"propose({n}) gave shape {rows_N.shape} of {rows_N.dtype}, not ({n},) of int64",
        )
        expect(rows_N.min() >= 0 and rows_N.max() < size, f"propose({n}) left the pool: rows {rows_N.min()} to {rows_N.max()} of {size}")
        curriculum.observe(simulate(pool, rows_N, step=step, signals=signals_of(curriculum)))
    for n in (0, -1):
        raises(functools.partial(curriculum.propose, n), f"propose({n})")


def check_wants(factory: Factory) -> None:
    """`wants()` is None or asks for valid rows, at least one attempt or signal each, and reading it decides nothing."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    for step in range(6):
        before = snapshot(curriculum)
        wants = curriculum.wants()
        expect(
            same(before, snapshot(curriculum)), f"wants() changed the state at lesson {step}; it is a question, asked any number of times"
        )
        if wants is not None:
            _expect_rows(pool, wants.rows_N, step)
            expect(
                wants.attempts >= (0 if wants.signals else 1),
                f"wants() asks for {wants.attempts} attempts and {len(wants.signals)} signals at lesson {step}",
            )
        lesson(curriculum, pool, step)


def _expect_rows(tasks: TaskPool | TaskSpace, rows_N: NDArray[Any], step: int) -> None:
    """Rows of the pool, or points of the space."""
    if isinstance(tasks, TaskSpace):
        told = f"wants().rows_N has shape {rows_N.shape} of {rows_N.dtype}, not (N, {tasks.dimensions}) of float64"
        expect(rows_N.dtype == np.float64 and rows_N.ndim == 2 and rows_N.shape[1] == tasks.dimensions, told)
        expect(tasks.contains(rows_N).all(), f"wants() asks for points outside the space at lesson {step}")
        return
    expect(rows_N.dtype == np.int64 and rows_N.ndim == 1, f"wants().rows_N has shape {rows_N.shape} of {rows_N.dtype}, not (N,) of int64")
    expect(((rows_N >= 0) & (rows_N < len(tasks))).all(), f"wants() asks for rows outside the pool at lesson {step}")


def check_one_task(factory: Factory) -> None:
    """A pool of one task works."""
    pool = make_pool(1, 1)
    curriculum = factory(pool, 0)
    for rows_N, _ in run(curriculum, pool, 4, n=5):
        expect((rows_N == 0).all(), f"a pool of one task gave the rows {rows_N.tolist()}")
    expect_finite_metrics(curriculum)


def check_pool_untouched(factory: Factory) -> None:
    """The pool is shared by all that use it: nothing in it changes."""
    pool, twin = make_pool(), make_pool()
    run(factory(pool, 0), pool, 4)
    assert pool.difficulty_N is not None
    assert twin.difficulty_N is not None
    kept = np.array_equal(pool.key_N, twin.key_N) and np.array_equal(pool.difficulty_N, twin.difficulty_N)
    kept = kept and all(np.array_equal(getattr(pool.arms(), a), getattr(twin.arms(), a)) for a in ("arm_N", "order_N", "start_A", "size_A"))
    expect(kept and pool.columns == twin.columns, "the curriculum changed the pool's arrays")


# Randomness ---------------------------------------------------------------------------------------------------------------------------


def check_deterministic(factory: Factory) -> None:
    """The same pool, seed and outcomes give the same decisions; two instances share nothing."""
    pool, twin = make_tasks(factory), make_tasks(factory)
    one, other = factory(pool, 3), factory(twin, 3)
    difference = first_difference(run(one, pool, 6), run(other, twin, 6))
    expect(not difference, f"two instances with the same seed differ: {difference}")


def check_seed_matters(factory: Factory) -> None:
    """Another seed gives other proposals (a curriculum whose order is fixed by design expects to fail this)."""
    pool = make_tasks(factory)
    runs = [run(factory(pool, seed), pool, 4) for seed in range(3)]
    expect(any(first_difference(runs[0], r) for r in runs[1:]), "three seeds gave the same proposals for four lessons")


def check_global_rng(factory: Factory) -> None:
    """No generator of the process is used: `random`, `numpy.random` and, where loaded, torch's keep their state."""
    before = _global_rng()
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 4)
    curriculum.load_state_dict(curriculum.state_dict())
    after = _global_rng()
    touched = [name for name in before if not same(before[name], after[name])]
    expect(not touched, f"the curriculum draws from the global generator of {', '.join(touched)}; use self.rng")


def _global_rng() -> dict[str, Any]:
    state: dict[str, Any] = {"random": random.getstate(), "numpy.random": np.random.get_state()}  # noqa: NPY002 - to see it untouched
    torch = sys.modules.get("torch")
    return state if torch is None else {**state, "torch": torch.get_rng_state().numpy()}


# What it learns from ------------------------------------------------------------------------------------------------------------------


def check_empty_outcomes(factory: Factory) -> None:
    """A lesson without rows teaches nothing and breaks nothing."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 2)
    empty = simulate(pool, curriculum.propose(1)[:0], step=2, signals=signals_of(curriculum))
    before = snapshot(curriculum)
    curriculum.observe(empty)
    expect(same(before, snapshot(curriculum)), "observing no rows changed the state")
    expect(np.shape(curriculum.admit(empty)) == (0,), "admit of no rows must have shape (0,)")
    run(curriculum, pool, 2, start=3)


def check_all_solved(factory: Factory) -> None:
    """Lessons in which everything is solved."""
    _extreme(factory, 1.0)


def check_all_failed(factory: Factory) -> None:
    """Lessons in which nothing is solved."""
    _extreme(factory, 0.0)


def check_unscorable(factory: Factory) -> None:
    """Lessons in which no attempt, or only some, could be scored (NaN); a normal lesson afterwards works."""
    _extreme(factory, math.nan)
    pool = make_pool()
    curriculum = factory(pool, 0)
    for step in range(6):
        outcomes = simulate(pool, curriculum.propose(16), step=step, signals=signals_of(curriculum))
        hole_NG = np.random.default_rng(step).random((16, 4)) < 0.5
        assert outcomes.solved_NG is not None
        assert outcomes.reward_NG is not None
        blank: dict[str, Any] = {c: np.where(hole_NG, np.nan, getattr(outcomes, c)) for c in ("solved_NG", "reward_NG", "advantage_NG")}
        curriculum.observe(replace(outcomes, **blank))
        expect_finite_metrics(curriculum)


def _extreme(factory: Factory, solved: float) -> None:
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 8, solved=solved)
    expect_finite_metrics(curriculum)
    run(curriculum, pool, 2, start=8)
    expect_finite_metrics(curriculum)


def check_group_sizes(factory: Factory) -> None:
    """The number of attempts may change between lessons, and be one."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    for step, attempts in enumerate((1, 8, 2, 1, 16)):
        lesson(curriculum, pool, step, attempts=attempts)
    expect_finite_metrics(curriculum)


def check_repeated_tasks(factory: Factory) -> None:
    """One task may stand in a lesson several times."""
    pool = make_pool()
    curriculum = factory(pool, 0)
    curriculum.propose(12)
    curriculum.observe(simulate(pool, np.repeat([5, 7, 5, 2], 3), step=0, signals=signals_of(curriculum)))
    run(curriculum, pool, 2, start=1)
    expect_finite_metrics(curriculum)


def check_keys_not_positions(factory: Factory) -> None:
    """Outcomes count by their keys: in any order, and of tasks that were not proposed (other workers', replayed, refilled)."""
    pool = make_pool()
    one, other = factory(pool, 0), factory(pool, 0)
    one.propose(16)
    other.propose(16)
    rows_N = np.arange(10, 34)
    by_arm = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])  # in reach, solved, out of reach
    outcomes = simulate(pool, rows_N, step=0, solved=by_arm[pool.arms().arm_N[rows_N]], signals=signals_of(one))
    order = np.random.default_rng(0).permutation(len(rows_N))
    shuffled = outcomes.take(order)
    one.observe(outcomes)
    other.observe(shuffled)
    expect(same(one.admit(outcomes)[order], other.admit(shuffled)), "admit depends on the order of the rows")
    difference = first_difference(run(one, pool, 3, start=1, n=64), run(other, pool, 3, start=1, n=64))
    expect(not difference, f"the same outcomes in another order lead to other decisions: {difference}")


def check_missing_columns(factory: Factory) -> None:
    """A declared column that is missing raises `TutelageError`, names the column and leaves the state as it was."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 2)
    full = simulate(pool, curriculum.propose(16), step=2, signals=signals_of(curriculum))
    before = snapshot(curriculum)
    for column in sorted(curriculum.needs):
        lacking = keep_only(full, curriculum.needs - {column})
        message = raises(functools.partial(curriculum.observe, lacking), f"observe without {column}")
        expect(column.removeprefix("signals/") in message, f"the error for the missing column {column} does not name it: {message}")
        expect(same(before, snapshot(curriculum)), f"observe raised for the missing column {column} after it had changed the state")
        with suppress(TutelageError):  # `admit` may do without the column, or say what it lacks
            curriculum.admit(lacking)


def check_declared_columns_suffice(factory: Factory) -> None:
    """With the declared columns alone, decisions are the same: nothing undeclared is looked at."""
    pool = make_tasks(factory)
    difference = first_difference(run(factory(pool, 0), pool, 6), run(factory(pool, 0), pool, 6, bare=True))
    expect(not difference, f"columns outside `needs` change decisions: {difference}")


def check_outcomes_untouched(factory: Factory) -> None:
    """Outcomes belong to the trainer: they are not written to, and not kept by reference."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    outcomes = simulate(pool, curriculum.propose(16), step=0, signals=signals_of(curriculum))
    columns = {**outcomes.columns(), **outcomes.signals}
    before = copy.deepcopy(columns)
    curriculum.observe(outcomes)
    curriculum.admit(outcomes)
    written = [name for name in before if not same(before[name], columns[name])]
    expect(not written, f"the curriculum wrote to the outcomes' {', '.join(written)}")
    state = snapshot(curriculum)
    for column in columns.values():
        column.fill(0)
    expect(same(state, snapshot(curriculum)), "the curriculum keeps a reference to the outcomes' arrays; copy what it remembers")


def check_admit(factory: Factory) -> None:
    """`admit` gives a bool per row, the same twice, and changes nothing."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    for step in range(4):
        outcomes = simulate(pool, curriculum.propose(16), step=step, signals=signals_of(curriculum))
        before = snapshot(curriculum)
        keep_N = curriculum.admit(outcomes)
        expect(
            isinstance(keep_N, np.ndarray) and keep_N.dtype == bool and keep_N.shape == (16,),
            f"admit gave {keep_N!r}, not a bool array (16,)",
        )
        expect(same(keep_N, curriculum.admit(outcomes)), "admit answered the same question differently the second time")
        expect(same(before, snapshot(curriculum)), "admit changed the state; it must be pure, for engines call it any number of times")
        curriculum.observe(outcomes)


def check_metrics(factory: Factory) -> None:
    """`metrics` are finite floats by name, before the first lesson too, and reading them changes nothing."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    for step in range(4):
        before = snapshot(curriculum)
        for name, value in curriculum.metrics.items():
            expect(isinstance(name, str) and isinstance(value, float), f"the metric {name!r} is of type {type(value).__name__}, not float")
        expect_finite_metrics(curriculum)
        expect(same(before, snapshot(curriculum)), "reading the metrics changed the state")
        lesson(curriculum, pool, step)
    expect_finite_metrics(curriculum)
