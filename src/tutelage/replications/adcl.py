"""ADCL (arXiv 2505.08364, part A): batches from easy to hard, each measured and sorted anew before it begins.

**Claim.** A curriculum fixed by the initial difficulty goes stale; re-measuring each batch before it begins teaches better.

**Set-up.** The parallel-answers student sorts 2 to 9 digits (`tutelage.study.miniature`). It trains on 1024 fixed items, 128 of each
length, which differ in duplicates and disorder too, and twice on each: 64 updates of 32 prompts x 8 rollouts. K = 4 batches, S = 8
attempts per measurement. Held-out and warm-start tasks are others of the same kind. Primary metric: sampled accuracy on held-out tasks,
all lengths alike, after the last update. Seeds 0 to 9. Fixed before the first full run; learning rate and length were chosen on other
seeds, looking at the uniform arm alone (5e-4 against 1e-3 and 2e-3).

**What is counted.** Measuring costs rollouts and they count: 1024 x 8 before the first update, as many again in each pass but for the
first batch of the first. ADCL spends 38,912 rollouts, of which 16,384 train; the predefined curriculum 24,576. The claim is put at equal
updates, which flatters whatever measures; beside it ADCL stands against uniform sampling with as many rollouts in all (`uniform_long`,
152 updates), and against the predefined curriculum where ADCL has spent what that one spends in all.

**Arms and controls.** `shuffled` keeps the first measurement's four batches and draws each in random order: all that ADCL corrects is the
order within a batch, so this asks whether that order matters. `partition` measures everything that is left before each batch, sorts and
cuts it anew. `reverse` goes from hard to easy by the initial measurement.

**Difficulty shift.** At every fourth update: `nir`, the normalised inversion rate between the initial measurement of all items and a new
one; `nir_floor`, that between two measurements of the student as it is; `nir_excess`, the difference; `shift`, the rate between initial
and present chances of success, which this student gives without noise (pairs tied in either are left out, in all of them). `order`, for
the arms that sort: 1 minus the rate between the order in which the batch in hand is taught and the items' present difficulty, so 1/2 is
what a shuffle gives; whether re-measuring mends it is the last comparison. These measurements are the observer's, and are not counted.
`dead_share`: groups trained on whose answers were all right or all wrong.

**Departures from the paper.** A miniature student instead of Qwen2.5-7B on mathematics; two passes; S and the breaking of ties are not
published (S = G here; the previous order, at first a random one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.curricula._base import Curriculum
from tutelage.curricula.adcl import Adcl, nir
from tutelage.registry import replications
from tutelage.study.miniature import FULL, SMOKE, Scale, arm
from tutelage.study.replicate import Arm, Comparison, Replication

if TYPE_CHECKING:
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks

ITEMS = replace(FULL, updates=64, evaluate_every=4, items=128)
LONG = replace(ITEMS, updates=152)
TINY = replace(SMOKE, items=4)
ATTEMPTS = 8


def drift(
    student: ParallelAnswers, tasks: SortingTasks, curriculum: Curriculum, rng: np.random.Generator
) -> Callable[[], dict[str, float]]:
    """Measures how far the student's ranking of the items has moved, beside the noise of measuring it, and how well it is taught."""
    from tutelage.students.parallel_answers import success_chance

    def measure(chance_N: np.ndarray) -> np.ndarray:
        return 1 - rng.binomial(ATTEMPTS, np.clip(chance_N, 0, 1)) / ATTEMPTS

    first_N = success_chance(student, tasks)
    measured_N = measure(first_N)

    def numbers() -> dict[str, float]:
        now_N = success_chance(student, tasks)
        again_N, twin_N = measure(now_N), measure(now_N)
        found = {"nir": nir(measured_N, again_N), "nir_floor": nir(again_N, twin_N), "shift": nir(first_N, now_N)}
        found["nir_excess"] = found["nir"] - found["nir_floor"]
        if isinstance(curriculum, Adcl):
            rows_N = curriculum.batch_rows
            found["order"] = 1 - nir(np.arange(len(rows_N)), -now_N[rows_N])
        return found

    return numbers


def taught(curriculum: str, about: str, *, full: Scale = ITEMS, **hyper: Any) -> Arm:
    """An arm on the fixed items, watched for drift, with the share of its groups that were dead."""
    made = arm(curriculum, about, full=full, smoke=TINY, watch=drift, **hyper)

    def run(seed: int, smoke: bool) -> dict[str, Any]:
        cell = made.run(seed, smoke)
        cell["score"]["dead_share"] = cell["cost"]["dead"] / (cell["cost"]["updates"] * full.batch)
        return cell

    return replace(made, run=run)


@replications.register("adcl")
def adcl() -> Replication:
    """At equal updates, re-measuring and re-sorting each batch before it begins teaches better than a curriculum fixed at the start.

    See the module for set-up, controls, what is counted and departures.
    """
    return Replication(
        paper="arXiv 2505.08364",
        metric="accuracy",
        metric_about="sampled accuracy on held-out tasks, all lengths alike, after the last update",
        budget="64 updates of 32 prompts x 8 rollouts on 1024 fixed items, measurements on top and counted; uniform_long: 152 updates",
        settings={
            "attempts_of_measurement": ATTEMPTS,
            "objective": "grpo",
            "kl_coef": 0.0,
            "aggregation": "token_mean",
            "optimizer": "Adam",
        },
        arms={
            "uniform": taught("uniform", "every item once per pass, in random order"),
            "predefined": taught("adcl", "sorted once, by the initial measurement", rescore=None),
            "adcl": taught("adcl", "ADCL, K = 4: the coming batch measured and sorted anew"),
            "partition": taught("adcl", "all that is left measured, sorted and cut anew before each batch", rescore="partition"),
            "shuffled": taught("adcl", "the initial batches, each in random order", rescore=None, order="random"),
            "reverse": taught("adcl", "sorted once, hard to easy", rescore=None, order="descending"),
            "uniform_long": taught("uniform", "uniform with as many rollouts as ADCL spends, measuring included", full=LONG),
        },
        comparisons=(
            Comparison(method="adcl", baseline="predefined"),
            Comparison(method="adcl", baseline="uniform"),
            Comparison(method="adcl", baseline="uniform_long", equal="rollouts"),
            Comparison(method="adcl", baseline="predefined", equal="rollouts"),
            Comparison(method="partition", baseline="predefined"),
            Comparison(method="predefined", baseline="uniform"),
            Comparison(method="adcl", baseline="shuffled"),
            Comparison(method="reverse", baseline="uniform"),
            Comparison(method="adcl", baseline="predefined", metric="order", note="order within a batch"),
        ),
    )
