"""DUMP (arXiv 2504.09710): upper confidence bounds on the learnability of task distributions.

**Claim.** At equal rollouts, DUMP teaches faster and higher than drawing from the pooled data, most of all on the hard distributions.

**Set-up.** As in the replication of SEC: the parallel-answers student sorts n digits, n = 2 ... 9 being the distributions
(`tutelage.study.miniature`). 200 updates of 32 prompts x 8 rollouts from the same warm start in each seed. Primary metric: sampled
accuracy on the three longest inputs (n = 7, 8, 9) after the last update. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** DUMP at tau 0.1 with a window of 60 *rollouts*, which is to the miniature's 256 rollouts a step what the release's
300 is to its 2048 over twelve distributions: about two steps of an evenly served distribution. `dump_wide` remembers 60 *prompts*, that
is 480 rollouts. `dump_no_bonus` drops the count bonus; SEC (tau 0.3) pays the same signal without windows or bonus. An unlearnable ninth
arm as in SEC's replication (`noise_share`). `worst` is the worst distribution's accuracy, for tau 0.1 concentrates a batch on few of
them. DUMP draws more long tasks, hence more training tokens: the comparison is repeated at equal training tokens.

**Without a network.** The same bandit teaches `SimulatedStudent`, eight arms whose barriers rise by 1, for 100 steps on 200 seeds;
`skill` is the final mean pass rate and `order` the rank correlation between an arm's barrier and the mean step at which it was visited.

**Departures from the paper.** A miniature student instead of Qwen2.5-7B on Knights and Knaves; one gradient step per batch instead of
four; no KL term; reward 0/1; validation passes do not enter the windows (see `tutelage.curricula.dump`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula, replications
from tutelage.students.simulated import SimulatedStudent
from tutelage.study.miniature import BUDGET, METRIC_ABOUT, SETTINGS, arm
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

PUBLISHED: dict[str, Any] = {"tau": 0.1, "window": 60}
SIMULATED_SEEDS = 200


def simulate(curriculum: str, seed: int, *, steps: int, arms: int = 8, batch: int = 32, attempts: int = 8, **hyper: Any) -> Cell:
    """Teach a simulated student; answers and curriculum draw from separate children of the seed."""
    answers, method = np.random.SeedSequence(seed).spawn(2)
    rng, student = np.random.default_rng(answers), SimulatedStudent(np.arange(arms, dtype=np.float64))
    pool = TaskPool(arm=np.repeat(np.arange(arms), 100))
    teacher = curricula.build(curriculum, pool, seed=int(method.generate_state(1)[0]), **hyper)
    visit_A, when_A = np.zeros(arms), np.zeros(arms)
    for step in range(steps):
        rows_N = teacher.propose(batch)
        arm_N = pool.arms().arm_N[rows_N].astype(np.int64)
        outcomes = Outcomes.of(pool, rows_N, step=step, solved=student.attempt(arm_N, attempts, rng))
        teacher.observe(outcomes)
        student.practise(arm_N, outcomes.mean_abs_advantage_N)
        count_A = np.bincount(arm_N, minlength=arms)
        visit_A, when_A = visit_A + count_A, when_A + step * count_A
    order = spearmanr(np.arange(arms), when_A / np.maximum(visit_A, 1)).statistic
    pass_rate_A = student.pass_rate_A
    return {"score": {"skill": float(pass_rate_A.mean()), "order": float(order)}, "by_arm": pass_rate_A.tolist()}


def _simulated(curriculum: str, about: str, **hyper: Any) -> Arm:
    def run(seed: int, smoke: bool) -> Cell:
        return simulate(curriculum, seed, steps=10 if smoke else 100, **hyper)

    return Arm(run=run, about=about, settings={"curriculum": curriculum, **hyper}, seeds=SIMULATED_SEEDS)


@replications.register("dump")
def dump() -> Replication:
    """At equal rollouts, upper confidence bounds on mean |advantage| teach hard tasks better than uniform sampling.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2504.09710",
        metric="hard",
        metric_about=METRIC_ABOUT,
        budget=BUDGET,
        settings=SETTINGS,
        arms={
            "uniform": arm("uniform", "every task equally often"),
            "dump": arm("dump", "DUMP, tau 0.1, window 60 rollouts", **PUBLISHED),
            "dump_wide": arm("dump", "DUMP, tau 0.1, window 480 rollouts (60 prompts)", tau=0.1, window=480),
            "dump_no_bonus": arm("dump", "DUMP without its count bonus", **PUBLISHED, exploration=0.0),
            "sec": arm("sec", "SEC, tau 0.3", tau=0.3, alpha=0.5),
            "uniform_noise": arm("uniform", "uniform, with an unlearnable ninth arm", noise=True),
            "dump_noise": arm("dump", "DUMP, with an unlearnable ninth arm", noise=True, **PUBLISHED),
            "simulated_uniform": _simulated("uniform", "uniform, student without a network"),
            "simulated_dump": _simulated("dump", "DUMP, student without a network", **PUBLISHED),
        },
        comparisons=(
            Comparison(method="dump", baseline="uniform"),
            Comparison(method="dump_wide", baseline="uniform"),
            Comparison(method="dump_no_bonus", baseline="uniform"),
            Comparison(method="dump", baseline="sec"),
            Comparison(method="dump_noise", baseline="uniform_noise"),
            Comparison(method="dump", baseline="uniform", equal="training_tokens"),
            Comparison(method="simulated_dump", baseline="simulated_uniform", metric="skill"),
        ),
    )
