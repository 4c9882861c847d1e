"""TeachMyAgent (arXiv 2103.09815): eight teachers in five challenge profiles, transposed to a student of cells.

**Claim.** Without expert knowledge, ALP-GMM teaches better than random tasks over the five challenge profiles.

**Set-up.** The gridded student, 8 x 8 cells, behind the spaces of `tutelage.study.acl.toys`: the base; a space of which two thirds are
unfeasible; one of which half is trivial; a student that forgets everything at 35 % of the episodes; a shuffled space; students with another
start, fast and slow. 30 visits unlock a cell's neighbours, in 2,400 episodes: the sheet's 75 and 6,000, both cut by the same factor so that
all fits in minutes. Mixtures of 2 to 5 components every 150 episodes. Primary metric: the share of cells mastered at the end, mean over the
five challenges; each profile is a metric of its own. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** Random, and the three teachers by learning progress, which are told nothing: 3 comparisons on the mean and 15 on the
profiles. ADR is told the start cell and what good returns are: compared in the base, the mostly trivial and the rugged profile, where the
source sees it gain from knowledge and fail without smoothness. GoalGAN, Self-Paced and Setter-Solver, told all an expert knows, are
reported on fewer seeds and judged in nothing: some thousand episodes are few for them. Holm over all 21 comparisons.

**Tuning.** As the benchmark's scripts have it (`TUNED`); the toy's returns lie in [0, 1], so ADR's thresholds are 0.05 and 0.5, chosen for
ADR on seeds 100 and 101 among five pairs that end alike. Random has nothing to tune.

**Departures from the paper.** A toy instead of Box2D walkers with SAC and PPO; the paired sign-flip test instead of Welch's; Self-Paced
takes an episode's return as the value of its task; GoalGAN trains 50 alternations at a time, and Setter-Solver has one block of 32 units
instead of three of 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.registry import replications
from tutelage.study.acl.bench import Row, Teacher, learn, record_of
from tutelage.study.acl.profiles import Level, facts
from tutelage.study.acl.toys import PROFILES, GriddedSuite, Sizes
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

FULL = Sizes(cells=8, visits=30, episodes=2400, evaluations=16)
SMOKE = Sizes(cells=3, visits=4, episodes=160, evaluations=2)
CHALLENGES = tuple(profile for profile in PROFILES if profile != "base")
BY_PROGRESS = ("alp-gmm", "covar-gmm", "riac")
REPORTED = 4
TUNED: dict[str, dict[str, Any]] = {
    "alp-gmm": {"fit_every": 150, "max_components": 5},
    "covar-gmm": {"fit_every": 150, "max_components": 5},
}


def arm(teacher: str, about: str, *, level: Level = "none", seeds: int | None = None) -> Arm:
    """A teacher with what an expert tells it at a level, in all profiles."""
    told = facts(teacher, level)
    if told is None:
        raise AssertionError(f"{teacher} cannot run at the level {level}")
    row = Row(Teacher(name=teacher, curriculum=teacher, parameters=TUNED.get(teacher, {})), told, (level,))
    settings = {**GriddedSuite.tuned.get(teacher, {}), **row.teacher.parameters, "told": list(told)}

    def run(seed: int, smoke: bool) -> Cell:
        return every_profile(row, seed, SMOKE if smoke else FULL)

    return Arm(run=run, about=about, settings=settings, seeds=seeds)


def every_profile(row: Row, seed: int, sizes: Sizes) -> Cell:
    """One cell: the seed's student of every profile, one after the other, each with a new teacher."""
    suite, records = GriddedSuite(), {}
    for profile in PROFILES:
        room, lessons = learn(suite, row, profile, seed, sizes, lambda info: None)
        records[profile] = record_of(room.space, lessons)
    mastered = {profile: record["curve"]["mastered"] for profile, record in records.items()}
    mastered["mastered"] = np.mean([mastered[profile] for profile in CHALLENGES], axis=0).tolist()
    episodes = records["base"]["curve"]["episodes"]
    cost = {key: sum(record["totals"][key] for record in records.values()) for key in ("episodes", "seconds", "teacher_seconds")}
    return {
        "score": {name: curve[-1] for name, curve in mastered.items()},
        "curve": {"step": episodes, "rollouts": episodes, **mastered},
        "proposed": {profile: record["proposed"] for profile, record in records.items()},
        "cost": cost,
    }


@replications.register("teachmyagent")
def teachmyagent() -> Replication:
    """Without expert knowledge, ALP-GMM teaches better than random tasks over five challenge profiles.

    See the module for set-up, controls and departures.
    """
    comparisons = [Comparison(method=teacher, baseline="random") for teacher in BY_PROGRESS]
    comparisons += [
        Comparison(method=teacher, baseline="random", metric=profile, note=profile) for profile in CHALLENGES for teacher in BY_PROGRESS
    ]
    comparisons += [Comparison(method="adr", baseline="random", metric=p, note=p) for p in ("base", "trivial", "rugged")]
    return Replication(
        paper="arXiv 2103.09815",
        metric="mastered",
        metric_about="share of cells mastered after the last episode, mean over the five challenge profiles",
        budget=f"{FULL.episodes} episodes in each profile",
        settings={**FULL.model_dump(), "profiles": PROFILES},
        arms={
            "random": arm("random", "uniform points"),
            "alp-gmm": arm("alp-gmm", "ALP-GMM, told nothing"),
            "covar-gmm": arm("covar-gmm", "Covar-GMM, told nothing"),
            "riac": arm("riac", "RIAC, told nothing"),
            "adr": arm("adr", "ADR, told an easy task and what good returns are", level="high"),
            "self-paced": arm("self-paced", "Self-Paced (SPDL), told easy tasks", level="high", seeds=REPORTED),
            "goal-gan": arm("goal-gan", "GoalGAN, told easy tasks and what success is", level="high", seeds=REPORTED),
            "setter-solver": arm("setter-solver", "Setter-Solver, told what success is", level="high", seeds=REPORTED),
        },
        comparisons=tuple(comparisons),
    )
