"""ALP-GMM (arXiv 1910.07224): teachers by learning progress on the toy of cells, and on a network that learns to add.

**Claim.** On the gridded student, ALP-GMM masters more cells than random tasks do.

**Set-up.** The paper's toy: 10 x 10 cells that unlock one another, 75 visits each (`tutelage.students.gridded`), 10,000 episodes instead
of 20,000, so that all fits in minutes. Mixtures of 2 to 6 components, fitted every 250 episodes. Primary metric: the share of cells
mastered at the end. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** Random, ALP-GMM, Covar-GMM and RIAC in both forms: its split score weighs populations, as published, or not, as
released. A second test gives the box two irrelevant parameters. In pilots RIAC was ahead of ALP-GMM on this toy, which the paper does not
report: it is a comparison of its own.

**A true learner.** A perceptron learns sums (`tutelage.students.adding`): how long they are and how often they carry is the space, and the
third of it with the longest sums has random answers. 4,000 episodes of 32 sums and one optimiser step each; metric `accuracy`, exact
answers on an even grid of the learnable points at the end (`accuracy_half`, reported, after half of the episodes). ALP-GMM and RIAC against
Random. The returns of 32 sums are noisy where the student is half good, and noise looks like progress to ALP-GMM: in a pilot (seed 100) it
led at half time and had fallen behind Random at the end. The length was fixed before that and kept.

**Departures from the paper.** No Box2D walkers; the paired sign-flip test instead of Welch's; fewer components and episodes. Random has
nothing to tune, the others keep the paper's settings.
"""

from __future__ import annotations

from typing import Any

from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.registry import curricula, replications
from tutelage.students.adding import AddingStudent
from tutelage.students.gridded import GriddedStudent
from tutelage.study.acl.bench import record_of
from tutelage.study.acl.profiles import Lessons
from tutelage.study.acl.toys import teach
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

CELLS, VISITS, EPISODES, EVALUATIONS = 10, 75, 10_000, 10
SUMS = 4000
SWEEP = {"fit_every": 250, "min_components": 2, "max_components": 6}


def _silent(info: dict[str, Any]) -> None:
    """Nobody watches an episode of a replication."""


def cell_of(teacher: SpaceCurriculum, lessons: Lessons, metric: str) -> Cell:
    """A cell from what a student's lessons showed, with what the teacher proposed when."""
    record = record_of(teacher.space, lessons)
    episodes, score = record["curve"]["episodes"], record["curve"]["mastered"]
    return {
        "score": {metric: score[-1]},
        "curve": {"step": episodes, "rollouts": episodes, metric: score},
        "proposed": record["proposed"],
        "cost": record["totals"],
    }


def on_cells(name: str, about: str, *, irrelevant: int = 0, **settings: Any) -> Arm:
    """An arm on the gridded student."""

    def run(seed: int, smoke: bool) -> Cell:
        cells, visits, episodes = (3, 5, 300) if smoke else (CELLS, VISITS, EPISODES)
        student = GriddedStudent(cells=cells, visits=visits, irrelevant=irrelevant)
        teacher = curricula.build(name, student.space, seed=seed, **settings)
        lessons = teach(teacher, student.attempt, lambda: student.mastered, _silent, episodes=episodes, evaluations=EVALUATIONS)
        return cell_of(teacher, lessons, "mastered")

    return Arm(run=run, about=about, settings={"curriculum": name, **settings, "student": "gridded", "irrelevant": irrelevant})


def on_sums(name: str, about: str, **settings: Any) -> Arm:
    """An arm on the adding student."""

    def run(seed: int, smoke: bool) -> Cell:
        student, episodes = AddingStudent(seed=seed), 60 if smoke else SUMS
        teacher = curricula.build(name, student.space, seed=seed, **settings)
        lessons = teach(teacher, student.attempt, lambda: student.accuracy, _silent, episodes=episodes, evaluations=EVALUATIONS)
        cell = cell_of(teacher, lessons, "accuracy")
        cell["score"]["accuracy_half"] = lessons.mastered[EVALUATIONS // 2]
        return cell

    return Arm(run=run, about=about, settings={"curriculum": name, **settings, "student": "adding", "episodes": SUMS})


@replications.register("alp-gmm")
def alp_gmm() -> Replication:
    """On cells that unlock one another, ALP-GMM masters more of them than random tasks do.

    See the module for set-up, controls and departures.
    """
    pairs = [("alp-gmm", "random"), ("riac", "random"), ("covar-gmm", "random"), ("alp-gmm", "riac"), ("riac", "riac_gap")]
    pairs += [("alp-gmm_irrelevant", "random"), ("alp-gmm_irrelevant", "alp-gmm")]
    sums = [("alp-gmm_sums", "random_sums"), ("riac_sums", "random_sums")]
    return Replication(
        paper="arXiv 1910.07224",
        metric="mastered",
        metric_about="share of cells mastered after the last episode",
        budget=f"{EPISODES} episodes; of sums {SUMS}",
        settings={"cells": CELLS, "visits": VISITS, "episodes": EPISODES, "sums": SUMS},
        arms={
            "random": on_cells("random", "uniform points"),
            "riac": on_cells("riac", "RIAC, splits weighed by population, as published"),
            "riac_gap": on_cells("riac", "RIAC, splits by the gap in progress alone, as released", score="alp_gap"),
            "alp-gmm": on_cells("alp-gmm", "ALP-GMM", **SWEEP),
            "covar-gmm": on_cells("covar-gmm", "Covar-GMM", **SWEEP),
            "alp-gmm_irrelevant": on_cells("alp-gmm", "ALP-GMM with two irrelevant parameters", irrelevant=2, **SWEEP),
            "random_sums": on_sums("random", "sums: uniform points"),
            "alp-gmm_sums": on_sums("alp-gmm", "sums: ALP-GMM", **SWEEP),
            "riac_sums": on_sums("riac", "sums: RIAC"),
        },
        comparisons=(
            *(Comparison(method=method, baseline=baseline) for method, baseline in pairs),
            *(Comparison(method=method, baseline=baseline, metric="accuracy") for method, baseline in sums),
        ),
    )
