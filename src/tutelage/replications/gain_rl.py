"""GAIN-RL (arXiv 2506.02281): does the concentration of hidden states tell which tasks to learn first?

**Claim.** At equal rollouts, a window sliding over the tasks ranked by angle concentration teaches faster than drawing them uniformly.

**Set-up.** The parallel-answers student sorts n = 2 ... 9 digits (`tutelage.study.miniature`) behind a fixed prefix of four symbols,
among 0 to 8 symbols to be ignored, drawn independently of n: length and difficulty come apart. 512 tasks of each n; n of the window and
sigma are a seventh of the pool, 585, so that the window crosses the pool about once in the run. 200 updates of 32 prompts x 8 rollouts from
the same warm start in each seed (200 supervised steps, for the clutter makes the task harder). Primary metric: the area under the curve of
sampled accuracy over all n, the mean height from the first update to the last. Seeds 0 to 9. Fixed before the first full run. The warm
start was set on seed 100, looking at the uniform baseline alone; the pool was doubled after all arms had been seen on seeds 100 and 101
with 256 tasks of each n, where the window runs off the tail.

**Arms and controls.** GAIN-RL with the paper's C and with C without the diagonal; under the same window and shift, tasks ranked by length
(short first), by true pass rate (the easiest first) and by chance. The comparison that decides whether the angles say more than length
is the one with `by_length`, where length alone says little about difficulty.

**Signal check**, the arms `signal_*`: over 500 training prompts of the warm-started student, Spearman's correlation of a signal with the
norm of the prompt's expected GRPO gradient, raw and partial given the prompt's length, and with the length itself. The norm is exact: with
pass rate p and k successes of G = 8, the expected gradient is grad p / (p (1 - p)) E[sqrt(k (G - k) (G - 1) / G)] / G. Against a random
signal, and beside p (1 - p), the variance of the reward.

**Departures from the paper.** A miniature student instead of 0.5B to 7B models; its concentration of a lesson is that of the prompts,
prefix against question included, for it answers without writing; one gradient step per batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula.gain_rl import rank_correlation
from tutelage.registry import replications
from tutelage.study import stats
from tutelage.study.miniature import BUDGET, FULL, SETTINGS, SMOKE, Scale, arm, classroom
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

Float = NDArray[np.float64]

CLUTTER: dict[str, Any] = {"distractors": 8, "prefix": 4}
WHOLE = replace(FULL, per_arm=512, warm_steps=200, **CLUTTER)
QUICK = replace(SMOKE, **CLUTTER)
EPOCH = 585
"""A seventh of the pool, as many as the paper's 1024 are of GSM8K."""
PROMPTS = 500
ABOUT = "area under the curve of sampled accuracy over all lengths, from the first update to the last"


def schooled(curriculum: str, about: str, **hyper: Any) -> Arm:
    """An arm of the miniature whose cells have the metric `area`, as a curve the mean height so far."""
    hyper |= {"n": EPOCH} if curriculum == "gain-rl" else {}
    plain = arm(curriculum, about, full=WHOLE, smoke=QUICK, **hyper)

    def run(seed: int, smoke: bool) -> Cell:
        cell = plain.run(seed, smoke)
        step, accuracy = cell["curve"]["step"], cell["curve"]["accuracy"]
        area = [stats.area_under_curve(step, accuracy, until=end) for end in step]
        return {**cell, "curve": {**cell["curve"], "area": area}, "score": {"area": area[-1], **cell["score"]}}

    return replace(plain, run=run)


def checked(signal: str, about: str) -> Arm:
    """An arm of the signal check."""

    def run(seed: int, smoke: bool) -> Cell:
        table = measured(seed, QUICK if smoke else WHOLE, 40 if smoke else PROMPTS, SETTINGS["attempts"])
        value, norm, length = table[signal], table["gradient"], table["length"]
        raw = rank_correlation(value, norm)
        score = {"gradient": raw, "gradient_given_length": partial(raw, rank_correlation(value, length), rank_correlation(norm, length))}
        return {"score": {**score, "with_length": rank_correlation(value, length)}}

    return Arm(run=run, about=about, settings={"signal": signal, "prompts": PROMPTS})


def partial(ab: float, ac: float, bc: float) -> float:
    """The correlation of a and b given c, from the three correlations."""
    return (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))


@lru_cache(maxsize=2)
def measured(seed: int, size: Scale, prompts: int, attempts: int) -> dict[str, Float]:
    """Signals, lengths and gradient norms of some training prompts under the warm-started student of a seed."""
    _, student = classroom(seed, size)
    rng = np.random.default_rng([seed, 1])
    rows_N = rng.choice(len(student.tasks), prompts, replace=False)
    found = student.signals(rows_N, ("angle_concentration", "off_diagonal_concentration", "prompt_length", "loss"))
    p_N = np.exp(-found["loss"])
    return {
        "angle": found["angle_concentration"],
        "off_diagonal": found["off_diagonal_concentration"],
        "variance": p_N * (1 - p_N),
        "random": rng.random(prompts),
        "length": found["prompt_length"],
        "gradient": gradient_norms(student, rows_N, attempts),
    }


def gradient_norms(student: Any, rows_N: NDArray[np.int64], attempts: int) -> Float:
    """Norm of the expected GRPO gradient of each prompt, (N,): groups of `attempts`, normalised rewards, summed over an answer's tokens."""
    import torch

    from tutelage.students.parallel_answers import log_success

    weights = list(student.parameters())
    norm_N = np.empty(len(rows_N))
    for place in range(len(rows_N)):
        logp = log_success(student, student.tasks, rows_N[place : place + 1])[0]
        gradient = torch.autograd.grad(logp, weights, allow_unused=True)
        square = sum(float(g.double().square().sum()) for g in gradient if g is not None)
        norm_N[place] = math.sqrt(square) * gradient_factor(math.exp(logp.item()), attempts)
    return norm_N


def gradient_factor(p: float, attempts: int) -> float:
    """Length of the expected GRPO gradient as a multiple of that of grad log p.

    Advantages of a group with k successes are sqrt((G - 1)(G - k) / (G k)) and -sqrt((G - 1) k / (G (G - k))); given the outcome, a sampled
    answer's score has mean grad p / p or -grad p / (1 - p).
    """
    from scipy.stats import binom

    k = np.arange(attempts + 1)
    spread = np.sqrt(k * (attempts - k) * (attempts - 1) / attempts) / attempts
    return float(binom.pmf(k, attempts, p) @ spread) / max(1 - p, 1e-12)


@replications.register("gain-rl")
def gain_rl() -> Replication:
    """At equal rollouts, tasks ranked by angle concentration under a sliding window teach faster than uniform sampling.

    See the module for set-up, controls and departures.
    """
    checks = ("signal_angle", "signal_off_diagonal", "signal_variance")
    return Replication(
        paper="arXiv 2506.02281",
        metric="area",
        metric_about=ABOUT,
        budget=BUDGET,
        settings={**SETTINGS, **vars(WHOLE)},
        arms={
            "uniform": schooled("uniform", "every task equally often"),
            "gain_rl": schooled("gain-rl", "ranked by the paper's C"),
            "off_diagonal": schooled("gain-rl", "ranked by C without the diagonal", rank_by="off_diagonal_concentration"),
            "by_length": schooled("gain-rl", "the same window, ranked by prompt length, short first", rank_by="length"),
            "by_pass_rate": schooled("gain-rl", "the same window, ranked by true pass rate, easy first", rank_by="loss"),
            "by_chance": schooled("gain-rl", "the same window over a random ranking", rank_by="random"),
            "signal_angle": checked("angle", "the paper's C against the gradient norm"),
            "signal_off_diagonal": checked("off_diagonal", "C without the diagonal against the gradient norm"),
            "signal_variance": checked("variance", "p (1 - p) against the gradient norm"),
            "signal_random": checked("random", "random numbers against the gradient norm"),
        },
        comparisons=(
            Comparison(method="gain_rl", baseline="uniform"),
            Comparison(method="gain_rl", baseline="by_length"),
            Comparison(method="gain_rl", baseline="by_chance"),
            Comparison(method="off_diagonal", baseline="by_length"),
            Comparison(method="by_length", baseline="uniform"),
            Comparison(method="by_pass_rate", baseline="uniform"),
            *(Comparison(method=signal, baseline="signal_random", metric="gradient_given_length") for signal in checks),
        ),
    )
