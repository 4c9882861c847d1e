"""ODF: keep only the groups that the current policy solves with intermediate frequency, and refill the batch.

Source: Bae et al., "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning" (arXiv 2504.03380); the strict filter is the
dynamic sampling of DAPO (arXiv 2503.14476). Why: with a KL-regularised objective of coefficient beta and initial pass rate p, the optimum
gains p (1 - p) (e^t - 1) / Z with t = 1 / beta and Z = 1 - p + p e^t: between (1 - e^-t) and (e^t - 1) times the variance of success. The
maximiser of that gain, p = 1 / (1 + e^(t/2)), moves towards hard prompts for small beta; p = 1/2 is the small-step optimum. The helpers
below put numbers to this: `accept_probability`, `expected_rollouts`, `optimum_pass_rate`, `kl_init_opt`, `kl_opt_init`.

    keep a group iff  low <= k / G <= high      k = number solved, compared as integers: k >= ceil(low G), k <= floor(high G)

The filter gates on `solved`, never on the shaped reward: with a length term even all-failed groups have spread, and training on that noise
destroys the policy. The trainer refills: it draws until the batch is full or its cap is reached.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula

Float = NDArray[np.float64]
Window = Literal["balanced", "skewed_easy", "skewed_hard", "strict"]


def keep_groups(solved_N: NDArray[Any], size_N: NDArray[Any], window: Window, low: float, high: float) -> NDArray[np.bool_]:
    """Which groups of `size_N` scorable attempts with `solved_N` solved a window keeps; bounds are compared as integers.

    balanced: low <= p <= high. skewed_easy: 0 < p <= high (cuts the easy side, and the hopeless). skewed_hard: low <= p < 1.
    strict: 0 < p < 1. A group without a scorable attempt is never kept, except by balanced with low = 0 (which then keeps everything).
    """
    if window not in get_args(Window):
        raise unknown("window of odf", window, get_args(Window))
    tiny = 1e-9  # 0.57 * 100 is 56.99999999999999 in floats; the bound means 57 of 100
    least_N = np.ceil(low * size_N - tiny)
    most_N = np.floor(high * size_N + tiny)
    above_N = solved_N >= least_N if window in ("balanced", "skewed_hard") else solved_N > 0
    below_N = solved_N <= most_N if window in ("balanced", "skewed_easy") else solved_N < size_N
    known_N = (size_N > 0) if (window != "balanced" or low > 0) else np.ones(len(size_N), bool)
    return above_N & below_N & known_N


def _counts(outcomes: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Solved and scorable attempts of each group, shapes (N,)."""
    if outcomes.solved_NG is None:
        raise TutelageError("odf filters on the column solved_NG, which these outcomes do not have. Pass solved= to Outcomes.of.")
    return (outcomes.solved_NG >= 1).sum(axis=1), (~np.isnan(outcomes.solved_NG)).sum(axis=1)


def accept_probability(p: float, group: int, window: Window = "balanced", low: float = 0.2, high: float = 0.8) -> float:
    """The chance that a prompt of true pass rate `p` is kept, for groups of `group` attempts (a binomial sum)."""
    from scipy.stats import binom

    k = np.arange(group + 1)
    keep = keep_groups(k, np.full(group + 1, group), window, low, high)
    return float(binom.pmf(k, group, p)[keep].sum())


def expected_rollouts(groups: int, group: int, acceptance: float) -> float:
    """Rollouts needed on average to fill a batch of `groups` accepted groups of `group` attempts; infinite where nothing is accepted."""
    return groups * group / acceptance if acceptance > 0 else np.inf


def _log_normaliser(p: ArrayLike, beta: float) -> tuple[Float, Float]:
    """p as an array, and ln Z = ln(1 - p + p e^(1/beta)), without overflow for small beta."""
    p = np.asarray(p, dtype=np.float64)
    if not beta > 0 or ((p < 0) | (p > 1)).any():
        raise TutelageError(f"Expected pass rates in [0, 1] and beta above 0; got p={p}, beta={beta}.")
    with np.errstate(divide="ignore"):
        return p, np.logaddexp(np.log1p(-p), np.log(p) + 1 / beta)


def optimum_pass_rate(p: ArrayLike, beta: float) -> Float:
    """Pass rate p* = p e^t / Z of the best policy under reward minus beta * KL to a policy of pass rate p; t = 1 / beta, 0/1 reward.

    The gain p* - p lies between p (1 - p) (1 - e^-t) and p (1 - p) (e^t - 1): the variance of success bounds what a prompt can teach.
    """
    p, log_z = _log_normaliser(p, beta)
    with np.errstate(divide="ignore"):
        return np.exp(np.log(p) + 1 / beta - log_z)


def kl_init_opt(p: ArrayLike, beta: float) -> Float:
    """KL(initial || optimum) = ln Z - p t in nats, for the policies of `optimum_pass_rate`.

    To leading order in t = 1 / beta it is t^2 p (1 - p) / 2, which is no lower bound (beta = 1, p = 0.5: exactly 0.120, not 0.125). The
    maximiser over p is beta - 1 / (e^t - 1): 0.49 for beta = 10 and 0.01 for beta = 0.01, so small coefficients favour hard prompts.
    """
    p, log_z = _log_normaliser(p, beta)
    return log_z - p / beta


def kl_opt_init(p: ArrayLike, beta: float) -> Float:
    """KL(optimum || initial) = t p* - ln Z in nats; the same leading term as `kl_init_opt`."""
    _, log_z = _log_normaliser(p, beta)
    return optimum_pass_rate(p, beta) / beta - log_z


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
        if window not in get_args(Window):
            raise unknown("window of odf", window, get_args(Window))
        super().__init__(pool, seed=seed, config={"window": window, "low": low, "high": high})
        self.accepted = self.rejected_easy = self.rejected_hard = 0
        self.deck = Deck(np.array([len(pool)]), self.seed)

    def _propose(self, n: int) -> NDArray[np.int64]:
        assert self.deck is not None
        return self.deck.draw(np.zeros(n, dtype=np.int64))

    def admit(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        solved_N, size_N = _counts(outcomes)
        return keep_groups(solved_N, size_N, self.config["window"], self.config["low"], self.config["high"])

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        keep_N = self.admit(outcomes)
        solved_N, size_N = _counts(outcomes)
        easy_N = ~keep_N & (2 * solved_N > size_N)
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
