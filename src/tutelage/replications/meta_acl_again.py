"""AGAIN (arXiv 2011.08463): the curriculum of a similar earlier student, distilled and mixed into that of a new one.

**Claim.** A new student learns faster under AGAIN, which looks among earlier students for one whose test scores resemble its own, than
under ALP-GMM, which begins anew.

**Set-up.** The gridded student (8 x 8 cells, each unlocked by one of its four neighbours) starts in one of the four corners; no teacher is
told which. A classroom holds the ALP-GMM runs of twelve students, three per corner. A new student is taught for 12,000 episodes, ten at a
time, with a test on all 64 cells every 1,200; after the first test AGAIN chooses among the 3 nearest earlier students. Mixtures of 2 to 5
components every 250 episodes. Primary metric: the area under the curve of the share of cells mastered. Seeds 0 to 15, seed s starting in
corner s mod 4; every four seeds have a classroom of their own. Fixed before the first full run, on pilot seeds from 100 on: ALP-GMM's share
of uniform tasks, 0.3, the best of seven from 0.02 to 0.5 and used wherever ALP-GMM is (alone, in the classroom, before the first test);
3 nearest students (of 5, the best at the end was of another corner for every fourth student); and the distance of the opt-out, halfway
between students of the same corner and of others. AGAIN's other settings are the published ones.

**Arms and controls.** Uniform tasks; ALP-GMM; AGAIN; AGAIN with an expert drawn from all earlier students; AGAIN with its opt-out (no
expert beyond a root mean square difference of test scores of 0.15: ALP-GMM then). Negative control: the classroom without the students of
the new one's corner, for AGAIN as published, with the opt-out, and with patience (a niche is left after 250 episodes, the interval of one
fit). `same_corner` is the share of experts that started where the new student does, `expert` of students who got one.

**Departures from the paper.** Twelve earlier students instead of 128, four hidden starts instead of 400 (or four directions), 8 x 8 cells
instead of 20 x 20, 12,000 episodes instead of 200,000; no walkers. Cut from the miniature of the sheet: nothing. Cells in `visited`: the
cell of every task in order, so that any run can be replayed (`replay`).
"""

from __future__ import annotations

import base64
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula.again import Again
from tutelage.curricula.classroom import Classroom
from tutelage.outcomes import Outcomes
from tutelage.registry import curricula, replications
from tutelage.spaces import TaskSpace
from tutelage.students.gridded import GriddedStudent
from tutelage.study import stats
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

Float = NDArray[np.float64]
Room = Literal["whole", "without the corner"]

CORNERS = 4
ALP_GMM_SHARE, NEAREST = 0.3, 3


@dataclass(frozen=True)
class Scale:
    """The size of an experiment. per_corner: earlier students; batch: episodes per lesson; measure_every: episodes between measurements."""

    cells: int = 8
    episodes: int = 12_000
    test_every: int = 1200
    measure_every: int = 300
    batch: int = 10
    per_corner: int = 3
    fit_every: int = 250
    max_components: int = 5


FULL = Scale()
OPT_OUT: dict[str, Any] = {"max_distance": 0.15}
PATIENCE: dict[str, Any] = {"patience": FULL.fit_every}
SMOKE = Scale(cells=4, episodes=900, test_every=300, per_corner=1, fit_every=50, max_components=3)


def student_of(corner: int, size: Scale) -> GriddedStudent:
    last = size.cells - 1
    start = (last * (corner // 2), last * (corner % 2))
    return GriddedStudent(cells=size.cells, start=start, neighbours="adjacent")


def cell_centres(size: Scale) -> tuple[tuple[float, ...], ...]:
    """The middle of every cell."""
    return tuple(((row + 0.5) / size.cells, (column + 0.5) / size.cells) for row, column in np.ndindex(size.cells, size.cells))


def mixtures(size: Scale) -> dict[str, Any]:
    return {"fit_every": size.fit_every, "min_components": 2, "max_components": size.max_components}


def again(space: TaskSpace, size: Scale, **hyper: Any) -> Again:
    shared: dict[str, Any] = {"test_points": cell_centres(size), "test_every": size.test_every, "pretest_random": ALP_GMM_SHARE}
    return Again(space, **shared, **mixtures(size), **hyper)


def teach(student: GriddedStudent, curriculum: Curriculum, size: Scale) -> tuple[dict[str, list[float]], NDArray[np.uint8]]:
    """A whole run: the share mastered along the way, and the cell of every task."""
    course: dict[str, list[float]] = {"episodes": [0], "mastered": [student.mastered]}
    visited = []
    for episode in range(size.batch, size.episodes + 1, size.batch):
        wants = curriculum.wants()
        if wants is not None:
            curriculum.observe(Outcomes.of(student.space, wants.rows_N, reward=marks(student, wants.rows_N)), probe=True)
        points_ND = curriculum.propose(size.batch)
        visited.append(student.cell_of(points_ND).astype(np.uint8))
        curriculum.observe(Outcomes.of(student.space, points_ND, reward=student.attempt(points_ND)))
        if episode % size.measure_every == 0:
            course["episodes"].append(episode)
            course["mastered"].append(student.mastered)
    return course, np.concatenate(visited)


def marks(student: GriddedStudent, points_ND: Float) -> Float:
    """What a test shows, without teaching anything."""
    return np.minimum(student.competence_C[student.cell_of(points_ND)] / student.most, 1.0)


@lru_cache(maxsize=2)
def classrooms(number: int, size: Scale) -> tuple[tempfile.TemporaryDirectory[str], Mapping[str, int]]:
    """A folder with the classroom `whole` and, for every corner, one without its students; the corner of every run."""
    folder, corner_of = tempfile.TemporaryDirectory(), {}
    for place, child in enumerate(np.random.SeedSequence([number, 1]).spawn(CORNERS * size.per_corner)):
        corner, student = place % CORNERS, student_of(place % CORNERS, size)
        curriculum = again(student.space, size, seed=int(child.generate_state(1)[0]))
        teach(student, curriculum, size)
        for name in ("whole", *(str(other) for other in range(CORNERS) if other != corner)):
            kept = Classroom(Path(folder.name) / name, student.space, curriculum.test_TD).add(curriculum.trace)
            if kept is not None:
                corner_of[kept] = corner
    return folder, corner_of


def run_again(seed: int, size: Scale, room: Room, hyper: Mapping[str, Any]) -> Cell:
    """A new student taught by AGAIN."""
    corner = seed % CORNERS
    folder, corner_of = classrooms(seed // CORNERS, size)
    student = student_of(corner, size)
    path = Path(folder.name) / ("whole" if room == "whole" else str(corner))
    curriculum = again(student.space, size, seed=seed, classroom=str(path), **hyper)
    cell = _cell(student, curriculum, size)
    same = float(corner_of.get(curriculum.expert) == corner)
    cell["score"] |= {"expert": float(bool(curriculum.expert)), "same_corner": same, "last_niche": float(curriculum.ended)}
    return cell


def run_alone(seed: int, size: Scale, name: str, hyper: Mapping[str, Any]) -> Cell:
    """A new student taught by a curriculum without a past."""
    student = student_of(seed % CORNERS, size)
    return _cell(student, curricula.build(name, student.space, seed=seed, **hyper), size)


def _cell(student: GriddedStudent, curriculum: Curriculum, size: Scale) -> Cell:
    course, visited_M = teach(student, curriculum, size)
    area = stats.area_under_curve(course["episodes"], course["mastered"], until=size.episodes)
    trace = base64.b64encode(zlib.compress(visited_M.tobytes(), 9)).decode()
    return {"score": {"area": float(area), "mastered": student.mastered}, "course": course, "visited": trace}


def replay(corner: int, visited: str, size: Scale = FULL) -> tuple[NDArray[np.uint8], Float, GriddedStudent]:
    """A recorded run again: the cell of every task, its return, and the student as it ended."""
    student = student_of(corner, size)
    visited_M = np.frombuffer(zlib.decompress(base64.b64decode(visited)), dtype=np.uint8)
    return visited_M, student.attempt(np.array(cell_centres(size))[visited_M]), student


@dataclass(frozen=True)
class Teacher:
    """One arm's teacher: AGAIN with a classroom, or a registered curriculum alone."""

    curriculum: str = "again"
    room: Room = "whole"
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def run(self, seed: int, smoke: bool) -> Cell:
        size = SMOKE if smoke else FULL
        if self.curriculum == "again":
            return run_again(seed, size, self.room, {"nearest": NEAREST} | dict(self.hyper))
        shared = mixtures(size) if self.curriculum == "alp-gmm" else {}
        return run_alone(seed, size, self.curriculum, {**shared, **self.hyper})


def arm(about: str, teacher: Teacher) -> Arm:
    room = {"classroom": teacher.room} if teacher.curriculum == "again" else {}
    return Arm(run=teacher.run, about=about, settings={"curriculum": teacher.curriculum, **room, **teacher.hyper})


@replications.register("meta-acl-again")
def meta_acl_again() -> Replication:
    """With a similar student in its classroom, AGAIN masters more of a task space, sooner, than ALP-GMM, which starts from nothing.

    See the module for set-up, controls and departures.
    """
    absent: Room = "without the corner"
    return Replication(
        paper="arXiv 2011.08463",
        metric="area",
        metric_about="area under the share of cells mastered against episodes, as its mean height",
        budget=f"{FULL.episodes:,} episodes of one new student; the classroom's {CORNERS * FULL.per_corner} earlier students are given",
        seeds=16,
        settings={**asdict(FULL), "alp_gmm_random_share": ALP_GMM_SHARE, "nearest": NEAREST},
        arms={
            "random": arm("uniform tasks", Teacher("random")),
            "alp_gmm": arm("ALP-GMM, from nothing", Teacher("alp-gmm", hyper={"random_share": ALP_GMM_SHARE})),
            "again": arm("AGAIN, rule R with the live mixture", Teacher()),
            "again_random_expert": arm("AGAIN, the expert drawn from all earlier students", Teacher(hyper={"select": "random"})),
            "again_opt_out": arm("AGAIN, no expert beyond a distance", Teacher(hyper=OPT_OUT)),
            "absent": arm("AGAIN, no earlier student of this corner", Teacher(room=absent)),
            "absent_opt_out": arm("the same, no expert beyond a distance", Teacher(room=absent, hyper=OPT_OUT)),
            "absent_patience": arm("the same, a niche is left in time", Teacher(room=absent, hyper=PATIENCE)),
        },
        comparisons=(
            Comparison(method="again", baseline="alp_gmm"),
            Comparison(method="again", baseline="again_random_expert"),
            Comparison(method="again_opt_out", baseline="alp_gmm"),
            Comparison(method="absent", baseline="alp_gmm"),
            Comparison(method="absent_opt_out", baseline="absent"),
            Comparison(method="absent_patience", baseline="absent"),
            Comparison(method="alp_gmm", baseline="random"),
        ),
    )
