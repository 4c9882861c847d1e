"""A student without a network: one skill per arm, learned from the spread within groups of attempts.

    p(j) = sigmoid((x(j) - b(j)) / s)                    pass rate of arm j at skill x and barrier b
    x(j) += rate * mean |A|,   x(j +- 1) += spill * rate * mean |A|      for each group practised

A group whose attempts all succeed or all fail teaches nothing, as under GRPO; neighbours profit from practice. Thousands of steps take a
second, so a curriculum's logic can be tested on hundreds of seeds. Suffixes: `N` tasks, `G` attempts, `A` arms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tutelage.errors import TutelageError

Float = NDArray[np.float64]


class SimulatedStudent:
    """Skills x_A (0 at first) against barriers b_A.

    barrier_A: b, the skill at which half of an arm's attempts succeed. slope: s, how gradually. rate: skill won from a group of |A| = 1.
    spill: share of that which reaches each of the two neighbouring arms.
    """

    def __init__(self, barrier_A: Float, *, slope: float = 0.5, rate: float = 0.01, spill: float = 0.5) -> None:
        if slope <= 0 or rate <= 0 or spill < 0:
            raise TutelageError(
                f"A simulated student needs slope and rate above 0 and spill of at least 0; got slope={slope}, rate={rate}, spill={spill}."
            )
        self.barrier_A = np.asarray(barrier_A, dtype=np.float64)
        self.slope, self.rate, self.spill = slope, rate, spill
        self.skill_A = np.zeros(len(self.barrier_A))

    @property
    def pass_rate_A(self) -> Float:
        """The chance that one attempt succeeds, per arm."""
        return expit((self.skill_A - self.barrier_A) / self.slope)

    def attempt(self, arm_N: NDArray[np.int64], attempts: int, rng: np.random.Generator) -> Float:
        """Successes (N, G), 1 or 0, of independent attempts."""
        return (rng.random((len(arm_N), attempts)) < self.pass_rate_A[arm_N][:, None]).astype(np.float64)

    def practise(self, arm_N: NDArray[np.int64], abs_advantage_N: Float) -> None:
        """Learn from groups of these arms, by their mean |A|; all groups count from the skill before."""
        gain_A = self.rate * np.bincount(arm_N, abs_advantage_N, minlength=len(self.skill_A))
        self.skill_A += gain_A
        self.skill_A[1:] += self.spill * gain_A[:-1]
        self.skill_A[:-1] += self.spill * gain_A[1:]
