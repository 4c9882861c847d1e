"""What a suite of the benchmark is made of: challenge profiles, students, and what an expert tells the teachers.

Source: TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815). Every teacher is tried on one base task space and on five that are hard in
one way each (mostly unfeasible, mostly trivial, a student that forgets, rugged difficulty, diverse students), with three levels of expert
knowledge:

    none   the space alone
    low    what counts as success: returns at which a task is solved, and at which a student does badly or well
    high   also a Gaussian of easy tasks to begin with, and in which direction tasks become harder

A teacher is given at each level what it can use (`TELLS`); one that cannot begin without (`LEAST`) does not run below that level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.errors import unknown
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace
from tutelage.study.config import Strict

Float = NDArray[np.float64]
Level = Literal["none", "low", "high"]
LEVELS: tuple[Level, ...] = get_args(Level)
Vector = tuple[float, ...]
Tell = Callable[[dict[str, Any]], None]

BASELINE = "random"
TEACHERS = ("random", "adr", "alp-gmm", "covar-gmm", "goal-gan", "riac", "self-paced", "setter-solver")
"""The eight of the source. Those that are registered are the default."""


@dataclass(frozen=True, kw_only=True)
class Expert:
    """What somebody who knows the student and its tasks can tell; points in the parameters' units, returns as the student gives them.

    success: a return above this is a task solved. falls, rises: returns at or below and above which a student does badly, and well.
    easy_mean, easy_std: a Gaussian of easy tasks. harder: steps towards harder tasks, one per parameter, signed.
    """

    success: float
    falls: float
    rises: float
    easy_mean: Vector
    easy_std: Vector
    harder: Vector


_EASY = {"initial_mean": ("high", "easy_mean"), "initial_std": ("high", "easy_std")}
TELLS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "alp-gmm": _EASY,
    "covar-gmm": _EASY,
    "self-paced": _EASY,
    "goal-gan": {"success": ("low", "success"), **_EASY},
    "setter-solver": {"success": ("low", "success")},
    "adr": {"low": ("low", "falls"), "high": ("low", "rises"), "initial": ("high", "easy_mean")},
    "oracle": {"threshold": ("high", "success"), "step": ("high", "harder")},
}
"""For each teacher its hyperparameters that an expert sets: from which level on, and which of the expert's facts."""

LEAST: Mapping[str, Level] = {"adr": "low", "goal-gan": "low", "setter-solver": "low", "oracle": "high"}
"""The least level at which a teacher can run, if not "none"."""


def registered() -> list[str]:
    """Those of the source's teachers that are there and can run; torch is looked for, not imported."""
    known, torch = curricula.names(), find_spec("torch") is not None
    return [name for name in TEACHERS if name in known and (torch or ".neural." not in curricula.get(name).target.__module__)]


def facts(teacher: str, level: Level) -> tuple[str, ...] | None:
    """The hyperparameters that an expert sets for a teacher at a level; None where the teacher cannot run with so little."""
    if LEVELS.index(level) < LEVELS.index(LEAST.get(teacher, "none")):
        return None
    return tuple(name for name, (since, _) in TELLS.get(teacher, {}).items() if LEVELS.index(since) <= LEVELS.index(level))


def build_teacher(
    name: str, told: tuple[str, ...], space: TaskSpace, expert: Expert, *, seed: int, parameters: Mapping[str, Any]
) -> SpaceCurriculum:
    """A teacher with what an expert tells it (names of hyperparameters, see `facts`) and `parameters`, which win.

    ADR that is not told an easy task begins at a point drawn uniformly, as released.
    """
    settings = {key: getattr(expert, TELLS[name][key][1]) for key in told}
    if name == "adr" and "initial" not in told:
        settings["initial"] = tuple(space.sample(1, np.random.default_rng([seed, 1]))[0].tolist())
    teacher: SpaceCurriculum = curricula.build(name, space, seed=seed, **{**settings, **parameters})
    return teacher


@dataclass
class Lessons:
    """What one student's whole training showed.

    episodes, mastered: the curve, the share of test tasks mastered after so many episodes (or what the suite's `unit` says). point_ED,
    return_E: of every episode, in order. totals: costs by name, "seconds" among them.
    """

    episodes: list[int]
    mastered: list[float]
    point_ED: Float
    return_E: Float
    totals: dict[str, float] = field(default_factory=dict)


class Room(Protocol):
    """One student before its first lesson: the space as its teacher sees it, an expert on it, and its whole training."""

    space: TaskSpace
    expert: Expert

    def run(self, teacher: SpaceCurriculum, tell: Tell) -> Lessons:
        """Teach from start to end; `tell` hears {"step", "share", "reward", "accuracy"} at times, accuracy being mastered tasks."""


@runtime_checkable
class KeepingRoom(Room, Protocol):
    """A room whose student leaves something behind, such as weights and films."""

    def keep(self, folder: Path) -> list[Path]:
        """Write it after `run`; returns the files. The report shows those that end in .gif."""


class Suite(Protocol):
    """A family of students in all challenge profiles.

    name: as in `--suite`. title, unit: for reports ("episodes"). profiles: what each one is, by name, the plain one first. sizes: the
    schema of `--set`, whose defaults are the command's. tuned: hyperparameters of teachers in this suite, over the library's defaults.
    """

    name: str
    title: str
    unit: str
    profiles: Mapping[str, str]
    tuned: Mapping[str, Mapping[str, Any]]

    @property
    def sizes(self) -> type[Strict]: ...

    def room(self, profile: str, seed: int, sizes: Any) -> Room:
        """The student of a seed in a profile: the same for every teacher."""


SUITES = {"acl": "tutelage.study.acl.toys:GriddedSuite", "acl-walker": "tutelage.study.acl.walker:WalkerSuite"}
"""Where each suite is written, as module:class; it is imported when it is asked for."""


def suite(name: str) -> Suite:
    """The suite called `name`."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    module, _, cls = SUITES[name].partition(":")
    found: Suite = getattr(import_module(module), cls)()
    return found
