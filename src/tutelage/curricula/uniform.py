"""Uniform sampling: every task once per pass, in random order. The honest baseline of every comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck
from tutelage.pools import TaskPool
from tutelage.registry import curricula


@curricula.register("uniform")
class Uniform(Curriculum):
    """Every task once per pass over the pool, in a random order: the honest baseline.

    No hyperparameters, no memory but the position in the order; what engines do by default with `shuffle`.
    """

    name = "uniform"

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.deck = Deck(np.array([len(pool)]), self.seed)

    def _propose(self, n: int) -> NDArray[np.int64]:
        assert self.deck is not None
        return self.deck.draw(np.zeros(n, dtype=np.int64))
