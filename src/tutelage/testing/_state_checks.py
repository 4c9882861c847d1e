"""Checks of a curriculum's state: whole, plain, small, its own; run by `tutelage.testing.check_curriculum`."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.curricula._base import Curriculum
from tutelage.pools import TaskPool
from tutelage.spaces import TaskSpace
from tutelage.state import load_state, save_state
from tutelage.testing._lessons import (
    Factory,
    OverSpaces,
    expect,
    first_difference,
    lesson,
    make_pool,
    make_tasks,
    raises,
    run,
    same,
    signals_of,
    simulate,
    snapshot,
    state_bytes,
)


def check_state_is_plain(factory: Factory) -> None:
    """The state holds plain JSON values and arrays only, and comes back from disk as it was."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 3)
    state = curriculum.state_dict()
    expect(same(state, _through_disk(state)), "the state read back from disk differs from the one saved")


def check_state_is_a_copy(factory: Factory) -> None:
    """A state shares no memory with the curriculum, whether it was taken or loaded; neither do proposals."""
    pool = make_tasks(factory)
    curriculum, twin = factory(pool, 0), factory(pool, 0)
    run(curriculum, pool, 3)
    run(twin, pool, 3)
    taken = curriculum.state_dict()
    before = copy.deepcopy(taken)
    _overwrite(curriculum.state_dict())
    expect(same(before, curriculum.state_dict()), "changing the arrays of a state changed the curriculum that gave it")
    loaded = copy.deepcopy(before)
    curriculum.load_state_dict(loaded)
    _overwrite(loaded)
    expect(same(before, curriculum.state_dict()), "changing the arrays of a state changed the curriculum that had loaded it")
    curriculum.propose(16).fill(-1)
    twin.propose(16)
    difference = first_difference(run(curriculum, pool, 3, start=3), run(twin, pool, 3, start=3))
    expect(not difference, f"writing to the proposed rows changed later decisions: {difference}")
    expect(same(before, taken), "a state taken earlier changed while the run went on")


def check_resume(factory: Factory) -> None:
    """A run resumed from disk decides exactly as the unbroken one, cut between lessons or between `propose` and `observe`."""
    pool = make_tasks(factory)
    for cut in (0, 1, 4):
        curriculum = factory(pool, 0)
        run(curriculum, pool, cut)
        resumed = _resumed(factory, pool, curriculum)
        _continue(curriculum, resumed, pool, cut, f"after lesson {cut}")
        rows_N = curriculum.propose(16)
        resumed = _resumed(factory, pool, curriculum)
        for each in (curriculum, resumed):
            each.observe(simulate(pool, rows_N, step=20, signals=signals_of(each)))
        _continue(curriculum, resumed, pool, 21, "between propose and observe")


def _continue(curriculum: Curriculum, resumed: Curriculum, pool: TaskPool | TaskSpace, step: int, when: str) -> None:
    difference = first_difference(run(curriculum, pool, 5, start=step), run(resumed, pool, 5, start=step))
    expect(not difference, f"a run resumed {when} differs: {difference}; is something missing in `memory`?")
    expect(same(dict(curriculum.metrics), dict(resumed.metrics)), f"a run resumed {when} reports other metrics")
    expect(same(curriculum.state_dict(), resumed.state_dict()), f"a run resumed {when} ends in another state")


def check_string_keys(factory: Factory) -> None:
    """Keys may be strings, in lessons and through a saved state."""
    pool = make_pool(string_keys=True)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 3)
    resumed = _resumed(factory, pool, curriculum)
    difference = first_difference(run(curriculum, pool, 3, start=3), run(resumed, pool, 3, start=3))
    expect(not difference, f"with string keys a resumed run differs: {difference}")


def check_load_replaces_everything(factory: Factory) -> None:
    """Loading into a curriculum that has already taught forgets what it knew."""
    pool = make_tasks(factory)
    curriculum, used = factory(pool, 0), factory(pool, 0)
    run(curriculum, pool, 3)
    run(used, pool, 5, start=50, n=7)
    used.load_state_dict(_through_disk(curriculum.state_dict()))
    difference = first_difference(run(curriculum, pool, 4, start=3), run(used, pool, 4, start=3))
    expect(not difference, f"a state loaded over another leaves something of the old: {difference}")


def check_state_size(factory: Factory) -> None:
    """The state grows with arms and with tasks that have statistics (taught, or measured because it asked), not with the pool."""
    sizes, seen = [], 0
    for tasks in (1_000, 200_000):
        pool = make_pool(tasks)
        curriculum = factory(pool, 0)
        seen = 5 * 16
        for step in range(5):
            wants = curriculum.wants()
            seen += 0 if wants is None else len(wants.rows_N)
            lesson(curriculum, pool, step)
        sizes.append(state_bytes(curriculum.state_dict()))
    allowed = sizes[0] + 64 * seen + 2048
    expect(sizes[1] <= allowed, f"after the same 5 lessons the state takes {sizes[0]:,} bytes for 1,000 tasks and {sizes[1]:,} for 200,000")


def check_state_bounded_in_time(factory: Factory) -> None:
    """The state does not grow with the number of lessons."""
    pool = make_pool(8, 2)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 40, n=4)
    early = state_bytes(curriculum.state_dict())
    run(curriculum, pool, 260, start=40, n=4)
    late = state_bytes(curriculum.state_dict())
    expect(
        late <= early + 64 * len(pool) + 256,
        f"the state grew from {early:,} bytes at lesson 40 to {late:,} at lesson 300, for {len(pool)} tasks",
    )


def check_foreign_state(factory: Factory) -> None:
    """The state of another pool, seed, configuration or curriculum, or a damaged one, raises `TutelageError` and changes nothing."""
    pool = make_tasks(factory)
    curriculum = factory(pool, 0)
    run(curriculum, pool, 2)
    other_pool = make_tasks(factory, seed=1)
    strangers: list[tuple[str, dict[str, Any]]] = [
        ("space" if isinstance(factory, OverSpaces) else "pool", _taught(factory(other_pool, 0), other_pool)),
        ("seed", _taught(factory(pool, 1), pool)),
        ("curriculum", {**snapshot(curriculum), "curriculum": "another"}),
    ]
    config = snapshot(curriculum).get("config", {})
    strangers += [(key, {**snapshot(curriculum), "config": {**config, key: "something else"}}) for key in config]
    strangers += [("", {k: v for k, v in snapshot(curriculum).items() if k != lost}) for lost in snapshot(curriculum)]
    before = snapshot(curriculum)
    for difference, state in strangers:
        what = f"loading a state that differs in {difference}" if difference else f"loading a state without {({*before} - {*state}).pop()}"
        message = raises(functools.partial(curriculum.load_state_dict, state), what)
        expect(difference in message, f"{what} raises, but the message does not say so: {message}")
        expect(same(before, snapshot(curriculum)), f"{what} raised, but had already changed the curriculum")


def _taught(curriculum: Curriculum, pool: TaskPool | TaskSpace) -> dict[str, Any]:
    run(curriculum, pool, 2)
    return curriculum.state_dict()


def _through_disk(state: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curriculum.npz"
        save_state(path, state)
        return load_state(path)


def _resumed(factory: Factory, pool: Any, curriculum: Curriculum) -> Curriculum:
    fresh = factory(pool, 0)
    fresh.load_state_dict(_through_disk(curriculum.state_dict()))
    return fresh


def _overwrite(value: Any) -> None:
    """Write over every array in a state, and empty its mappings and lists."""
    if isinstance(value, np.ndarray):
        zeros = np.zeros_like(value)
        value[...] = np.ones_like(value) if same(value, zeros) else zeros
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _overwrite(item)
        value.clear()
