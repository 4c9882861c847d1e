"""Checks of a curriculum over a continuous space; run by `tutelage.testing.check_space_curriculum` beside those of all curricula."""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tutelage.curricula._base import Curriculum
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.outcomes import Outcomes
from tutelage.spaces import TaskSpace
from tutelage.testing._lessons import (
    OverSpaces,
    expect,
    expect_finite_metrics,
    first_difference,
    make_pool,
    make_space,
    raises,
    run,
    same,
    simulate,
    snapshot,
    state_bytes,
)
from tutelage.traces import read_trace

SHARED = (
    "check_declaration",
    "check_wants",
    "check_deterministic",
    "check_seed_matters",
    "check_global_rng",
    "check_empty_outcomes",
    "check_all_solved",
    "check_all_failed",
    "check_group_sizes",
    "check_missing_columns",
    "check_declared_columns_suffice",
    "check_outcomes_untouched",
    "check_admit",
    "check_metrics",
    "check_state_is_plain",
    "check_state_is_a_copy",
    "check_resume",
    "check_load_replaces_everything",
    "check_foreign_state",
)


def check_points(factory: OverSpaces) -> None:
    """`propose(n)` gives exactly n float64 points inside the space, in one dimension or many, tiny or vast, and refuses n below 1."""
    wide = TaskSpace(np.arange(5.0), np.arange(5.0) + 0.25)
    for space in (make_space(), wide, TaskSpace([-1e6], [1e6]), TaskSpace([1.0], [1.0 + 1e-9])):
        curriculum = factory(space, 0)
        for step, n in enumerate((1, 2, 33, 64, 1)):
            points_ND = curriculum.propose(n)
            shape = (n, space.dimensions)
            expect(
                isinstance(points_ND, np.ndarray) and points_ND.dtype == np.float64 and points_ND.shape == shape,
                f"propose({n}) over {space!r} gave {points_ND!r:.80}, not float64 of shape {shape}",
            )
            expect(space.contains(points_ND).all(), f"propose({n}) left {space!r}: {points_ND[~space.contains(points_ND)][:1].tolist()}")
            curriculum.observe(simulate(space, points_ND, step=step))
        expect_finite_metrics(curriculum)
        for n in (0, -1):
            raises(functools.partial(curriculum.propose, n), f"propose({n})")


def check_a_pool_is_refused(factory: OverSpaces) -> None:
    """A `TaskPool` in place of a space raises `TutelageError` and says what was expected."""
    message = raises(lambda: factory(make_pool(), 0), "building a curriculum over spaces from a TaskPool")
    expect("TaskSpace" in message, f"the error for a pool does not name TaskSpace: {message}")


def check_bad_spaces(factory: OverSpaces) -> None:
    """A box with a side that is empty, reversed or not finite raises `TutelageError` and names the side."""
    for low, high in ((2.0, 2.0), (2.0, 1.0), (2.0, math.inf), (-math.inf, 2.0), (math.nan, 2.0)):
        box = SimpleNamespace(low=np.array([0.0, low]), high=np.array([1.0, high]))
        message = raises(functools.partial(factory, box, 0), f"building a curriculum over a side from {low} to {high}")
        expect("'x1'" in message, f"the error for a side from {low} to {high} does not name it: {message}")


def check_points_outside(factory: OverSpaces) -> None:
    """A point outside the space, or with a NaN, raises, names `point_ND` and the parameter, and teaches nothing."""
    space = make_space()
    curriculum = factory(space, 0)
    run(curriculum, space, 2)
    points_ND = curriculum.propose(4)
    good = simulate(space, points_ND, step=2)
    for bad in (space.high_D[1] + 1.0, math.nan, math.inf):
        outside_ND = points_ND.copy()
        outside_ND[3, 1] = bad
        message = raises(functools.partial(Outcomes.of, space, outside_ND, reward=np.zeros(4)), f"Outcomes.of a point at {bad}")
        expect("row 3" in message and space.names[1] in message, f"the error for a point at {bad} does not name it: {message}")
        _refused(curriculum, replace(good, point_ND=outside_ND), "point_ND row 3", f"a point at {bad}")
    curriculum.observe(good)


def check_order_of_rows(factory: OverSpaces) -> None:
    """The rows of a lesson may come back in any order, and in parts of later lessons' size."""
    space = make_space()
    one, other = factory(space, 0), factory(space, 0)
    for step in range(6):
        points_ND = one.propose(32)
        expect(same(points_ND, other.propose(32)), f"the order of rows in earlier lessons changed the proposals of lesson {step}")
        outcomes = simulate(space, points_ND, step=step)
        one.observe(outcomes)
        other.observe(outcomes.take(np.random.default_rng(step).permutation(32)))
    difference = first_difference(run(one, space, 3, start=6), run(other, space, 3, start=6))
    expect(not difference, f"the same outcomes in another order lead to other decisions: {difference}")


def check_late_returns(factory: OverSpaces) -> None:
    """Several lessons may be open at once, and episodes come back one by one."""
    space = make_space()
    curriculum = factory(space, 0)
    lessons = [curriculum.propose(6) for _ in range(4)]
    for step, points_ND in enumerate(reversed(lessons)):
        outcomes = simulate(space, points_ND, step=step)
        for row in range(6):
            curriculum.observe(outcomes.take(np.array([row])))
    run(curriculum, space, 2, start=4)
    expect_finite_metrics(curriculum)


def check_never_proposed(factory: OverSpaces) -> None:
    """A point that was not proposed, was observed already, or came back in float32 raises, names `point_ND` and teaches nothing."""
    space = make_space()
    curriculum = factory(space, 0)
    run(curriculum, space, 2)
    points_ND = curriculum.propose(8)
    good = simulate(space, points_ND, step=2)
    foreign_ND = points_ND.copy()
    foreign_ND[5] = space.low_D + 0.123456789 * space.range_D
    _refused(curriculum, simulate(space, foreign_ND, step=2), "point_ND row 5", "a point that was never proposed")
    curriculum.observe(good)
    _refused(curriculum, good, "point_ND", "a lesson that was observed already")


def check_returns_are_finite(factory: OverSpaces) -> None:
    """A return that is NaN or infinite raises, names the reward and teaches nothing (where the curriculum reads returns)."""
    space = make_space()
    curriculum = factory(space, 0)
    run(curriculum, space, 2)
    points_ND = curriculum.propose(4)
    good = simulate(space, points_ND, step=2)
    for bad in (math.nan, math.inf, -math.inf):
        reward_NG = np.array(good.reward_NG)
        reward_NG[2, 0] = bad
        message = raises(functools.partial(Outcomes.of, space, points_ND, reward=reward_NG), f"Outcomes.of a return of {bad}")
        expect("reward" in message, f"the error for a return of {bad} does not name the reward: {message}")
        if "reward_NG" in curriculum.needs:
            _refused(curriculum, replace(good, reward_NG=reward_NG), "reward_NG", f"a return of {bad}")
    curriculum.observe(good)


def _refused(curriculum: Curriculum, outcomes: Outcomes, field: str, what: str) -> None:
    before = snapshot(curriculum)
    message = raises(functools.partial(curriculum.observe, outcomes), f"observing {what}")
    expect(field in message, f"the error for {what} does not name {field}: {message}")
    expect(same(before, snapshot(curriculum)), f"observing {what} raised, but had already changed the curriculum")


def check_trace(factory: OverSpaces) -> None:
    """A run that is logged decides as one that is not, and its trace holds every point and return, over a resume too."""
    space = make_space()
    plain, logged, resumed = (factory(space, 0) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        assert isinstance(logged, SpaceCurriculum)
        assert isinstance(resumed, SpaceCurriculum)
        logged.log_to(path)
        expected = [*run(plain, space, 3), *run(plain, space, 2, start=3)]
        before = run(logged, space, 3)
        state = logged.state_dict()
        run(logged, space, 1, start=3)  # taken back
        resumed.load_state_dict(state)
        resumed.log_to(path)
        difference = first_difference(expected, before + run(resumed, space, 2, start=3))
        expect(not difference, f"a logged run decides otherwise than one that is not logged: {difference}")
        trace = read_trace(path)
    points_MD = np.concatenate([points_ND for points_ND, _ in expected])
    expect(same(trace.point_MD, points_MD), "the trace does not hold the points that were proposed")
    expect(bool(np.isfinite(trace.returned_M).all()), "the trace lacks lessons that were observed")


def check_state_growth(factory: OverSpaces) -> None:
    """The state grows at most with the episodes observed, and abandoned proposals do not accumulate without end."""
    space = make_space()
    curriculum = factory(space, 0)
    run(curriculum, space, 10, n=8)
    early = state_bytes(curriculum.state_dict())
    run(curriculum, space, 60, start=10, n=8)
    grown = state_bytes(curriculum.state_dict()) - early
    allowed = 60 * 8 * 256 * (space.dimensions + 2) + 8192
    expect(grown <= allowed, f"the state grew by {grown:,} bytes in 480 episodes; allowed are {allowed:,}")
    for _ in range(12):
        curriculum.propose(1000)
    early = state_bytes(curriculum.state_dict())
    for _ in range(12):
        curriculum.propose(1000)
    late = state_bytes(curriculum.state_dict())
    expect(late <= early + 1024, f"proposals that are never observed make the state grow from {early:,} to {late:,} bytes")
