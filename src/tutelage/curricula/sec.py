"""SEC: a bandit over task categories that chases the mean absolute advantage.

Source: Chen et al., "Self-Evolving Curriculum for LLM Reasoning" (arXiv 2505.14970). With 0/1 rewards and pass rate p the expected |A| is
2 sqrt(p (1 - p)), so the bandit prefers categories the student solves about half the time.

    pi(c) = softmax(Q / tau)                      one independent draw per slot of the batch
    r(c)  = mean |A| over the rollouts of arm c   in this batch
    Q(c) <- (1 - alpha) Q(c) + alpha r(c)         r(c) = 0 for arms absent from the batch (released code), or no update (textbook)
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck, draw_arms, entropy, proportional, softmax
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula

Policy = Literal["softmax", "proportional", "greedy"]
Signal = Literal["advantage", "unnormalised", "progress"]
POLICIES, SIGNALS = get_args(Policy), get_args(Signal)


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
        policy: Policy = "softmax",
        signal: Signal = "advantage",
    ) -> None:
        if not (0 < alpha <= 1 and tau > 0):
            raise TutelageError(f"sec: alpha must lie in (0, 1] and tau above 0; got alpha={alpha}, tau={tau}.")
        if policy not in POLICIES:
            raise unknown("policy of sec", policy, POLICIES)
        if signal not in SIGNALS:
            raise unknown("signal of sec", signal, SIGNALS)
        config = {"alpha": alpha, "tau": tau, "by": by, "decay_unseen": decay_unseen, "policy": policy, "signal": signal}
        super().__init__(pool, seed=seed, config=config)
        self.value_A = np.zeros(len(self.arms))
        self.last_reward_A = np.full(len(self.arms), np.nan)
        self.deck = Deck(self.arms.size_A, self.seed)

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
        signal_NG = self._signal(outcomes)
        known_NG = ~np.isnan(signal_NG)
        arm_M = np.repeat(self._arm_of(outcomes), known_NG.sum(axis=1))  # one entry per scorable rollout
        size_A = np.bincount(arm_M, minlength=len(self.arms))
        seen_A = size_A > 0
        pay_A = np.bincount(arm_M, signal_NG[known_NG], len(size_A)) / np.maximum(size_A, 1)
        if self.config["signal"] == "progress":
            pay_A, reward_A = np.nan_to_num(np.abs(pay_A - self.last_reward_A)) * seen_A, pay_A
            self.last_reward_A[seen_A] = reward_A[seen_A]
        learns_A = np.ones_like(seen_A) if self.config["decay_unseen"] else seen_A
        self.value_A += np.where(learns_A, self.config["alpha"] * (pay_A - self.value_A), 0.0)

    def _signal(self, outcomes: Outcomes) -> NDArray[np.float64]:
        """What each rollout pays its arm, shape (N, G), NaN where unscorable; for "progress" its reward."""
        reward_NG, advantage_NG = outcomes.reward_NG, outcomes.advantage_NG
        assert reward_NG is not None
        assert advantage_NG is not None
        match self.config["signal"]:
            case "advantage":
                return np.where(np.isnan(reward_NG), np.nan, np.abs(advantage_NG))
            case "unnormalised":
                known_NG = ~np.isnan(reward_NG)
                mean_N = np.where(known_NG, reward_NG, 0.0).sum(axis=1) / np.maximum(known_NG.sum(axis=1), 1)
                return np.abs(reward_NG - mean_N[:, None])
            case _:
                return reward_NG

    @property
    def metrics(self) -> dict[str, float]:
        return {"value_mean": float(self.value_A.mean()), "value_max": float(self.value_A.max()), "arm_entropy": entropy(self.share_A)}
