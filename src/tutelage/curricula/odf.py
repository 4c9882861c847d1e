"""ODF: keep only the groups that the current policy solves with intermediate frequency, and refill the batch.

Source: Bae et al., "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning" (arXiv 2504.03380); the strict filter is the
dynamic sampling of DAPO (arXiv 2503.14476). Why: with a KL-regularised objective of coefficient beta and initial pass rate p, the optimum
gains p (1 - p) (e^t - 1) / Z with t = 1 / beta and Z = 1 - p + p e^t: at least the variance of success times (1 - e^-t). (The maximiser of
that gain moves towards hard prompts for small beta; p = 1/2 is the small-step optimum.)

    keep a group iff  low <= k / G <= high      k = number solved, compared as integers: k >= ceil(low G), k <= floor(high G)

The filter gates on `solved`, never on the shaped reward: with a length term even all-failed groups have spread, and training on that noise
destroys the policy. The trainer refills: it draws until the batch is full or its cap is reached.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula

Window = Literal["balanced", "skewed_easy", "skewed_hard", "strict"]


def keep_groups(solved_N: NDArray[Any], size_N: NDArray[Any], window: Window, low: float, high: float) -> NDArray[np.bool_]:
    """Which groups of `size_N` scorable attempts with `solved_N` solved a window keeps; bounds are compared as integers.

    balanced: low <= p <= high. skewed_easy: 0 < p <= high (cuts the easy side, and the hopeless). skewed_hard: low <= p < 1.
    strict: 0 < p < 1. A group without a scorable attempt is never kept, except by balanced with low = 0 (which then keeps everything).
    """
    tiny = 1e-9  # 0.3 * 10 is 3.0000000000000004's neighbour in floats; the bound means 3 of 10
    least_N = np.array([math.ceil(low * s - tiny) for s in size_N])
    most_N = np.array([math.floor(high * s + tiny) for s in size_N])
    above_N = solved_N >= least_N if window in ("balanced", "skewed_hard") else solved_N > 0
    below_N = solved_N <= most_N if window in ("balanced", "skewed_easy") else solved_N < size_N
    known_N = (size_N > 0) if (window != "balanced" or low > 0) else np.ones(len(size_N), bool)
    return above_N & below_N & known_N


def accept_probability(p: float, group: int, window: Window = "balanced", low: float = 0.2, high: float = 0.8) -> float:
    """The chance that a prompt of true pass rate `p` is kept, for groups of `group` attempts (a binomial sum)."""
    from scipy.stats import binom

    k = np.arange(group + 1)
    keep = keep_groups(k, np.full(group + 1, group), window, low, high)
    return float(binom.pmf(k, group, p)[keep].sum())


@curricula.register("odf")
class ODF(Curriculum):
    """Online difficulty filtering: uniform proposals, only groups of intermediate pass rate train (arXiv 2504.03380).

    window: "balanced" (low <= p <= high), "skewed_easy" (0 < p <= high), "skewed_hard" (low <= p < 1), "strict" (0 < p < 1, DAPO).
    low, high: the thresholds on the group's pass rate (0.2 and 0.8; the paper's exact pairs are not public).
    A rejected task is set aside for this step only and comes up again in the next pass. Judgements strictly between 0 and 1 count as
    unsolved. How much may be thrown away, and what happens when a batch falls short, is the trainer's: `refill_cap` and `on_short`.
    """

    name = "odf"
    needs = frozenset({"solved_NG"})
    memory = ("accepted", "rejected_easy", "rejected_hard")

    def __init__(self, pool: TaskPool, *, seed: int = 0, window: Window = "balanced", low: float = 0.2, high: float = 0.8) -> None:
        if not 0 <= low < high <= 1:
            raise TutelageError(f"odf: thresholds must satisfy 0 <= low < high <= 1; got low={low}, high={high}.")
        super().__init__(pool, seed=seed, config={"window": window, "low": low, "high": high})
        self.accepted = self.rejected_easy = self.rejected_hard = 0
        self.deck = Deck(np.array([len(pool)]), self.seed)

    def _propose(self, n: int) -> NDArray[np.int64]:
        assert self.deck is not None
        return self.deck.draw(np.zeros(n, dtype=np.int64))

    def admit(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        if outcomes.solved_NG is None:
            raise TutelageError("odf filters on `solved_NG`, which these outcomes do not have.")
        solved_N = (outcomes.solved_NG >= 1).sum(axis=1)
        size_N = (~np.isnan(outcomes.solved_NG)).sum(axis=1)
        return keep_groups(solved_N, size_N, self.config["window"], self.config["low"], self.config["high"])

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        keep_N = self.admit(outcomes)
        easy_N = ~keep_N & (np.nan_to_num(outcomes.pass_rate_N) > 0.5)
        self.accepted += int(keep_N.sum())
        self.rejected_easy += int(easy_N.sum())
        self.rejected_hard += int((~keep_N & ~easy_N).sum())

    @property
    def metrics(self) -> dict[str, float]:
        seen = max(self.accepted + self.rejected_easy + self.rejected_hard, 1)
        return {
            "acceptance": self.accepted / seen,
            "rejected_easy": self.rejected_easy / seen,
            "rejected_hard": self.rejected_hard / seen,
        }
