"""DUMP: upper confidence bounds on the learnability of task distributions.

Source: Wang, Cui, Wan and Zhao, "DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM Post-training" (arXiv 2504.09710).

    L(j)   = mean |A| over the last `window` rollouts of arm j        (0 when none)
    UCB(j) = L(j) + exploration * sqrt(2 ln(n + 1) / (n(j) + 1))      n = max(1, sum_j n(j))
    P(j)   = softmax(UCB / tau)                                       tasks with replacement inside an arm
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import draw_arms, entropy, softmax
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula


@curricula.register("dump")
class DUMP(Curriculum):
    """Distribution-level UCB on windowed mean absolute advantage (arXiv 2504.09710).

    window: rollouts remembered per arm (300). tau: temperature (0.1). exploration: weight of the count bonus (1.0). count: what n counts,
    "rollouts" as published or "prompts" (the bonus then lives G times longer). by: the arm columns whose product makes the arms.
    Arms absent from a batch keep their value. Departures from the release: validation passes do not enter the windows (there they leak test
    data), windows keep the rollouts' order, unscorable attempts (NaN) are left out.
    """

    name = "dump"
    needs = frozenset({"advantage_NG", "reward_NG"})
    memory = ("recent_AK", "pushed_A", "mean_A", "count_A")
    by_arm = ("recent_AK", "pushed_A", "mean_A", "count_A")

    def __init__(
        self,
        pool: TaskPool,
        *,
        seed: int = 0,
        window: int = 300,
        tau: float = 0.1,
        exploration: float = 1.0,
        count: Literal["rollouts", "prompts"] = "rollouts",
        by: str | tuple[str, ...] | None = None,
    ) -> None:
        if not (window >= 1 and tau > 0 and exploration >= 0):
            raise TutelageError(
                f"dump: window must be at least 1, tau above 0, exploration at least 0; got {window}, {tau}, {exploration}."
            )
        if count not in ("rollouts", "prompts"):
            raise unknown("count of dump", count, ("rollouts", "prompts"))
        super().__init__(pool, seed=seed, config={"window": window, "tau": tau, "exploration": exploration, "count": count, "by": by})
        arms = len(self.arms)
        self.recent_AK = np.zeros((arms, window), dtype=np.float32)
        self.pushed_A = np.zeros(arms, dtype=np.int64)  # values ever pushed: the ring's write position
        self.mean_A = np.zeros(arms)
        self.count_A = np.zeros(arms)

    @property
    def score_A(self) -> NDArray[np.float64]:
        """The upper confidence bound of each arm, shape (A,)."""
        total = max(1.0, self.count_A.sum())
        return self.mean_A + self.config["exploration"] * np.sqrt(2 * np.log(total + 1) / (self.count_A + 1))

    @property
    def share_A(self) -> NDArray[np.float64]:
        """The probability of each arm, shape (A,)."""
        return softmax(self.score_A, self.config["tau"])

    def _propose(self, n: int) -> NDArray[np.int64]:
        arm_N = draw_arms(self.share_A, n, self.rng)
        return self.arms.rows(arm_N, self.rng.integers(self.arms.size_A[arm_N]))

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        assert outcomes.advantage_NG is not None
        assert outcomes.reward_NG is not None
        known_NG = ~np.isnan(outcomes.reward_NG) & ~np.isnan(outcomes.advantage_NG)
        arm_N = self._arm_of(outcomes)
        self._push(np.repeat(arm_N, known_NG.sum(axis=1)), np.abs(outcomes.advantage_NG)[known_NG])
        counted_N = known_NG.sum(axis=1) if self.config["count"] == "rollouts" else known_NG.any(axis=1)
        np.add.at(self.count_A, arm_N, counted_N)

    def _push(self, arm_M: NDArray[np.int64], value_M: NDArray[np.float64]) -> None:
        """Append values to their arms' rings in order, and refresh the means of the arms touched."""
        window = self.config["window"]
        order = np.argsort(arm_M, kind="stable")
        arm_M, value_M = arm_M[order], value_M[order]
        arms, first, size = np.unique(arm_M, return_index=True, return_counts=True)
        rank_M = np.arange(len(arm_M)) - np.repeat(first, size)
        fresh_M = rank_M >= np.repeat(size, size) - window  # earlier values would be overwritten by this very batch
        slot_M = (self.pushed_A[arm_M] + rank_M) % window
        self.recent_AK[arm_M[fresh_M], slot_M[fresh_M]] = value_M[fresh_M]
        self.pushed_A[arms] += size
        held = np.minimum(self.pushed_A[arms], window)
        self.mean_A[arms] = self.recent_AK[arms].sum(axis=1, dtype=np.float64) / np.maximum(held, 1)

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "learnability_mean": float(self.mean_A.mean()),
            "learnability_max": float(self.mean_A.max()),
            "arm_entropy": entropy(self.share_A),
        }
