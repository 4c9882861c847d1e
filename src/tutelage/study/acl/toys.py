"""The suite `acl`: gridded students, which learn thousands of episodes in a second, in TeachMyAgent's challenge profiles.

The transposition to the toy: the student's tasks are the unit square, cut in cells that unlock one another from a start cell
(`tutelage.students.gridded`). In the profiles the teacher sees another space, or the student differs; the test tasks are always the cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.curricula._base import Wants
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.spaces import ShuffledBox, TaskSpace
from tutelage.students.gridded import GriddedStudent
from tutelage.study.acl.profiles import Expert, Lessons, Tell
from tutelage.study.config import Strict

Float = NDArray[np.float64]

PROFILES = {
    "base": "the plain task space",
    "unfeasible": "mostly unfeasible: the tasks are a third of the space, what lies beyond returns 0 for ever",
    "trivial": "mostly trivial: half of the space returns 1 from the beginning",
    "forgetful": "the student forgets everything once, after 35 % of its episodes",
    "rugged": "each side is cut in four slices that have changed places",
    "diverse": "four students in turn, seed by seed: two start cells, fast and slow learners",
}
FORGETS_AT = 0.35


class Sizes(Strict):
    """How large the toy is. cells: per side. visits: that unlock a cell's neighbours. evaluations: points of a curve after the first."""

    cells: int = Field(5, ge=2)
    visits: int = Field(14, ge=1)
    episodes: int = Field(1000, ge=1)
    evaluations: int = Field(10, ge=1)

    @property
    def lessons(self) -> dict[str, int]:
        return {"episodes": self.episodes, "evaluations": self.evaluations}


class GriddedRoom:
    """A gridded student behind a space that its teacher sees; points outside the student's own return `outside`."""

    def __init__(
        self,
        student: GriddedStudent,
        sizes: Sizes,
        *,
        space: TaskSpace | None = None,
        view: ShuffledBox | None = None,
        outside: float = 0.0,
        forgets: bool = False,
    ) -> None:
        self.student, self.sizes, self.outside, self.forgets = student, sizes, outside, forgets
        self.space = student.space if space is None else space
        self.forward: Callable[[Float], Float] = (lambda points_ND: points_ND) if view is None else view.forward
        start_D = (np.array(np.unravel_index(student.start, student.shape)) + 0.5) / student.cells
        easy_D = start_D if view is None else view.inverse(start_D[None])[0]
        away_D = np.where(start_D < 0.5, 1.0, -1.0) * self.space.range_D / 30
        self.expert = Expert(
            success=0.7499, falls=0.05, rises=0.5, easy_mean=tuple(easy_D.tolist()), easy_std=tuple((0.1 * self.space.range_D).tolist()),
            harder=tuple(away_D.tolist()),
        )  # fmt: skip

    def attempt(self, points_ND: Float) -> Float:
        """Returns of one episode per point, shape (N,)."""
        return self._seen(points_ND, self.student.attempt)

    def score(self, points_ND: Float) -> Float:
        """Returns of points as they stand, without learning, shape (N,)."""
        return self._seen(points_ND, self.student.score)

    def _seen(self, points_ND: Float, returns: Callable[[Float], Float]) -> Float:
        inner_ND = self.forward(points_ND)
        inside_N = self.student.space.contains(inner_ND)
        reward_N = np.full(len(points_ND), self.outside)
        reward_N[inside_N] = returns(inner_ND[inside_N])
        return reward_N

    def run(self, teacher: SpaceCurriculum, tell: Tell) -> Lessons:
        """Episode by episode, as the sources do: one proposal, one return."""
        forgets = {round(FORGETS_AT * self.sizes.episodes): self.student.reset} if self.forgets else {}
        measure: Callable[[], float] = lambda: self.student.mastered  # noqa: E731
        return teach(teacher, self.attempt, measure, tell, **self.sizes.lessons, events=forgets, score=self.score)


def teach(
    teacher: SpaceCurriculum,
    attempt: Callable[[Float], Float],
    measure: Callable[[], float],
    tell: Tell,
    *,
    episodes: int,
    evaluations: int,
    events: Mapping[int, Callable[[], None]] | None = None,
    score: Callable[[Float], Float] | None = None,
) -> Lessons:
    """Teach a student episode by episode.

    attempt: points (1, D) to returns (1,), learning on the way. measure: the share of test tasks mastered, called before the first episode
    and `evaluations` times, evenly. events: what happens before an episode, counted from 0. score: returns of points without learning, for
    teachers that ask (`Curriculum.wants`), as returns or as the signal "value".
    """
    marks, began, teaching = {round(episodes * i / evaluations) for i in range(1, evaluations + 1)}, time.process_time(), 0.0
    point_ED, return_E = np.empty((episodes, teacher.space.dimensions)), np.empty(episodes)
    lessons = Lessons([0], [measure()], point_ED, return_E)
    for episode in range(episodes):
        if events and episode in events:
            events[episode]()
        if (wants := teacher.wants()) is not None:
            _answer(teacher, wants, score)
        start = time.perf_counter()
        points_1D = teacher.propose(1)
        teaching += time.perf_counter() - start
        reward_1 = attempt(points_1D)
        start = time.perf_counter()
        teacher.observe(Outcomes.of(teacher.space, points_1D, reward=reward_1))
        teaching += time.perf_counter() - start
        point_ED[episode], return_E[episode] = points_1D[0], reward_1[0]
        if (done := episode + 1) in marks:
            lessons.episodes.append(done)
            lessons.mastered.append(measure())
            tell({"step": done, "share": done / episodes, "reward": float(return_E[:done][-100:].mean()), "accuracy": lessons.mastered[-1]})
    lessons.totals = {"seconds": time.process_time() - began, "teacher_seconds": teaching, "episodes": float(episodes)}
    return lessons


def _answer(teacher: SpaceCurriculum, wants: Wants, score: Callable[[Float], Float] | None) -> None:
    """Measure what a teacher asks for."""
    if score is None or set(wants.signals) - {"value"}:
        raise TutelageError(
            f"The curriculum {teacher.name!r} asks for measurements beside its lessons, which this student does not give. "
            "Choose another, or another way to feed it (self-paced: values=returns)."
        )
    return_N = score(wants.rows_N)
    signals = dict.fromkeys(wants.signals, return_N)
    reward = return_N if wants.attempts else None
    teacher.observe(Outcomes.of(teacher.space, wants.rows_N, reward=reward, signals=signals), probe=True)


class GriddedSuite:
    """The toys: see the module."""

    name = "acl"
    title = "Gridded students"
    unit = "episodes"
    profiles: Mapping[str, str] = PROFILES
    sizes = Sizes
    tuned: Mapping[str, Mapping[str, Any]] = {
        "alp-gmm": {"fit_every": 100, "random_share": 0.05, "min_components": 2, "max_components": 4},
        "covar-gmm": {"fit_every": 100, "random_share": 0.1, "min_components": 2, "max_components": 4},
        "riac": {"window": 150, "attempts": 75, "min_side": 0.1},
        "adr": {"boundary_share": 0.7},
        "goal-gan": {"noise": 0.1, "replay": 0.1, "pretrain": 100, "iterations": 50},
        "self-paced": {"update_every": 50, "update_offset": 100, "alpha_offset": 10, "zeta": 0.25, "max_kl": 0.1, "performance": "return"},
        "setter-solver": {"update": 50, "noise": 0.1, "hidden": 32, "blocks": 1},
    }

    def room(self, profile: str, seed: int, sizes: Sizes) -> GriddedRoom:
        """The student of a seed; only "rugged" and "diverse" differ from seed to seed, the toy being without chance."""
        grid: dict[str, Any] = {"cells": sizes.cells, "visits": sizes.visits}
        if profile == "diverse":
            corner, slow = seed % 2, seed // 2 % 2
            grid |= {"start": (corner * (sizes.cells - 1),) * 2, "visits": max(1, round(sizes.visits * (110 if slow else 40) / 75))}
        student = GriddedStudent(**grid)
        if profile == "unfeasible":
            return GriddedRoom(student, sizes, space=TaskSpace([0.0, 0.0], [3.0, 1.0]))
        if profile == "trivial":
            return GriddedRoom(student, sizes, space=TaskSpace([-1.0, 0.0], [1.0, 1.0]), outside=1.0)
        if profile == "rugged":
            return GriddedRoom(student, sizes, view=ShuffledBox(student.space, cuts=4, seed=seed))
        return GriddedRoom(student, sizes, forgets=profile == "forgetful")
