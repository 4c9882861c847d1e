"""SEC: a bandit over task categories that chases the mean absolute advantage.

Source: Chen et al., "Self-Evolving Curriculum for LLM Reasoning" (arXiv 2505.14970). With 0/1 rewards and pass rate p the expected |A| is
2 sqrt(p (1 - p)), so the bandit prefers categories the student solves about half the time.

    pi(c) = softmax(Q / tau)                      one independent draw per slot of the batch
    r(c)  = mean |A| over the rollouts of arm c   in this batch
    Q(c) <- (1 - alpha) Q(c) + alpha r(c)         r(c) = 0 for arms absent from the batch (released code), or no update (textbook)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck, draw_arms, proportional, softmax
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.pools import Arms, TaskPool
from tutelage.registry import curricula


@curricula.register("sec")
class SEC(Curriculum):
    """Self-evolving curriculum: a bandit over arms, paid in mean absolute advantage (arXiv 2505.14970).

    alpha: learning rate of the values (0.5 in all of the paper's scripts). tau: temperature (1.0 for 3 arms, 0.4 for 5, 0.2 for the 9
    arms of a product). by: the arm columns whose product makes the arms, default all ("SEC-2D"). decay_unseen: True as released (arms
    absent from a batch move towards 0), False as in a textbook bandit. policy: "softmax"; "proportional" (shares proportional to
    max(Q, 0.01)) or "greedy" (epsilon 0.1), the release's alternatives. signal: "advantage"; "unnormalised" (|r - mean|) or "progress"
    (absolute change of the arm's mean reward since it was last seen).

    Departures: decks refill arm by arm (see `Deck`); the softmax subtracts its maximum; unscorable attempts (NaN) do not count.
    """

    name = "sec"
    needs = frozenset({"reward_NG", "advantage_NG"})
    memory = ("value_A", "last_reward_A")
    by_arm = ("value_A", "last_reward_A")

    def __init__(
        self,
        pool: TaskPool,
        *,
        seed: int = 0,
        alpha: float = 0.5,
        tau: float = 1.0,
        by: str | tuple[str, ...] | None = None,
        decay_unseen: bool = True,
        policy: Literal["softmax", "proportional", "greedy"] = "softmax",
        signal: Literal["advantage", "unnormalised", "progress"] = "advantage",
    ) -> None:
        if not 0 < alpha <= 1 or tau <= 0:
            raise TutelageError(f"sec: alpha must lie in (0, 1] and tau above 0; got alpha={alpha}, tau={tau}.")
        config = {"alpha": alpha, "tau": tau, "by": by, "decay_unseen": decay_unseen, "policy": policy, "signal": signal}
        super().__init__(pool, seed=seed, config=config)
        self.value_A = np.zeros(len(self.arms))
        self.last_reward_A = np.full(len(self.arms), np.nan)
        self.deck = Deck(self.arms.size_A, self.seed)

    @property
    def arms(self) -> Arms:
        return self.pool.arms(self.config["by"])

    @property
    def share_A(self) -> NDArray[np.float64]:
        """The probability of each arm, shape (A,)."""
        match self.config["policy"]:
            case "softmax":
                return softmax(self.value_A, self.config["tau"])
            case "proportional":
                return proportional(np.maximum(self.value_A, 0.01))
            case _:
                best_A = self.value_A == self.value_A.max()
                return 0.1 / len(best_A) + 0.9 * best_A / best_A.sum()

    def _propose(self, n: int) -> NDArray[np.int64]:
        return self._deal(draw_arms(self.share_A, n, self.rng))

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        arm_N = self._arm_of(outcomes)
        signal_N = self._signal(outcomes, arm_N)
        known_N = ~np.isnan(signal_N)
        arms, place_N = np.unique(arm_N[known_N], return_inverse=True)
        mean = np.bincount(place_N, signal_N[known_N], len(arms)) / np.maximum(np.bincount(place_N, minlength=len(arms)), 1)
        alpha = self.config["alpha"]
        if self.config["decay_unseen"]:
            self.value_A *= 1 - alpha
            self.value_A[arms] += alpha * mean
        else:
            self.value_A[arms] += alpha * (mean - self.value_A[arms])

    def _signal(self, outcomes: Outcomes, arm_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each task pays its arm, shape (N,); NaN where unscorable."""
        assert outcomes.reward_NG is not None
        known_NG = ~np.isnan(outcomes.reward_NG)
        count_N = known_NG.sum(axis=1)
        mean_N = np.where(count_N > 0, np.where(known_NG, outcomes.reward_NG, 0).sum(axis=1) / np.maximum(count_N, 1), np.nan)
        if self.config["signal"] == "advantage":
            return np.where(count_N > 0, outcomes.mean_abs_advantage_N, np.nan)
        if self.config["signal"] == "unnormalised":
            spread_NG = np.where(known_NG, np.abs(outcomes.reward_NG - mean_N[:, None]), 0)
            return np.where(count_N > 0, spread_NG.sum(axis=1) / np.maximum(count_N, 1), np.nan)
        signal_N = np.full(len(arm_N), np.nan)
        for arm in np.unique(arm_N[count_N > 0]):
            here_N = (arm_N == arm) & (count_N > 0)
            now, before = mean_N[here_N].mean(), self.last_reward_A[arm]
            signal_N[here_N] = 0.0 if np.isnan(before) else abs(now - before)
            self.last_reward_A[arm] = now
        return signal_N

    @property
    def metrics(self) -> dict[str, float]:
        share_A = self.share_A
        entropy = -(share_A * np.log(np.maximum(share_A, 1e-300))).sum()
        return {"value_mean": float(self.value_A.mean()), "value_max": float(self.value_A.max()), "arm_entropy": float(entropy)}
