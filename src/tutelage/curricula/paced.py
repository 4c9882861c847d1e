"""Ordered curricula: from easy to hard, or from hard to easy, at a pace.

Source: competence-based curricula (Platanios et al. 2019, arXiv 1903.09848) and the pacing functions of Wu, Dyer and Neyshabur
(2021, arXiv 2012.03107, table 1): the first g(t) tasks of the sorted pool are available at lesson t and drawn uniformly.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError, unknown
from tutelage.pools import TaskPool
from tutelage.registry import curricula

Pace = Literal["linear", "root", "quadratic", "exponential", "logarithmic", "step"]


def pace(kind: Pace, a: float, b: float, t: int, total: int, size: int) -> int:
    """How many tasks of a sorted pool are available at lesson `t` (Wu et al. 2021, table 1).

    a: the fraction of `total` lessons after which all are available. b: the fraction of the `size` tasks available at the start.
    At least one task is always available, and never more than `size`.
    """
    x = 1.0 if a <= 0 else min(t / (a * total), 1.0)
    shape = {
        "linear": x,
        "root": math.sqrt(x),
        "quadratic": x * x,
        "exponential": (math.exp(10 * x) - 1) / (math.exp(10) - 1),
        "logarithmic": 1 + 0.1 * math.log(x + math.exp(-10)) if x < 1 else 1.0,
        "step": 1.0 if x >= 1 else 0.0,
    }[kind]
    return int(min(max(math.floor(size * (b + (1 - b) * shape) + 1e-9), 1), size))


class _Paced(Curriculum):
    """Draws uniformly from a growing prefix of the pool in the order of its prior difficulty."""

    descending = False

    def __init__(
        self, pool: TaskPool, *, seed: int = 0, steps: int = 100, pacing: Pace = "linear", full_at: float = 0.8, start: float = 0.2
    ) -> None:
        super().__init__(pool, seed=seed, config={"steps": steps, "pacing": pacing, "full_at": full_at, "start": start})
        if pool.difficulty_N is None:
            raise TutelageError(
                f"The curriculum {self.name!r} orders tasks by difficulty, and this pool has none. Give TaskPool(difficulty=...)."
            )
        if pacing not in get_args(Pace):
            raise unknown(f"pacing of {self.name}", pacing, get_args(Pace))
        if steps < 1 or not 0 < start <= 1 or not 0 <= full_at <= 1:
            raise TutelageError(
                f"{self.name}: steps must be at least 1, start in (0, 1], full_at in [0, 1]; got steps={steps}, start={start}, "
                f"full_at={full_at}."
            )
        key_N = -pool.difficulty_N if self.descending else pool.difficulty_N
        self._order_N = np.argsort(key_N, kind="stable").astype(np.int32 if len(pool) < 2**31 else np.int64)

    @property
    def available(self) -> int:
        """How many tasks may be drawn at the next lesson."""
        c = self.config
        return pace(c["pacing"], c["full_at"], c["start"], self.lessons, c["steps"], len(self.pool))

    def _propose(self, n: int) -> NDArray[np.int64]:
        available = self.available
        # With replacement only where the prefix is smaller than the batch.
        place_N = self.rng.choice(available, n, replace=False, shuffle=True) if n <= available else self.rng.integers(available, size=n)
        return self._order_N[place_N].astype(np.int64)

    @property
    def metrics(self) -> dict[str, float]:
        return {"available": self.available / len(self.pool)}


@curricula.register("easy_to_hard")
class EasyToHard(_Paced):
    """The easiest tasks first; the rest becomes available at a pace.

    steps: lessons of the whole run (`compare` and `train` fill it in). pacing: linear, root, quadratic, exponential, logarithmic or step.
    full_at: fraction of `steps` after which the whole pool is available. start: fraction available at the first lesson.
    The pool's prior difficulty decides the order; equal difficulties keep the pool's order.
    """

    name = "easy_to_hard"


@curricula.register("hard_to_easy")
class HardToEasy(_Paced):
    """The hardest tasks first (the anti-curriculum control); parameters as for `easy_to_hard`."""

    name = "hard_to_easy"
    descending = True
