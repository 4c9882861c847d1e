"""A fixed mixture: each arm gets a stated share of every batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.curricula._draws import Deck, allocate, proportional
from tutelage.errors import TutelageError, unknown
from tutelage.pools import TaskPool
from tutelage.registry import curricula


@curricula.register("mixture")
class Mixture(Curriculum):
    """Fixed weights by arm; shares are met exactly in the long run (largest remainder, carried over).

    weights: weight per arm name; arms left out get weight 0. None gives all arms the same weight (which differs from `uniform` when arms
    differ in size). by: the arm columns whose product makes the arms (default: all). Within an arm tasks come without replacement.
    """

    name = "mixture"
    memory = ("carry_A",)
    by_arm = ("carry_A",)

    def __init__(
        self, pool: TaskPool, *, seed: int = 0, weights: Mapping[str, float] | None = None, by: str | tuple[str, ...] | None = None
    ) -> None:
        super().__init__(pool, seed=seed, config={"weights": dict(weights) if weights else None, "by": by})
        names = self.arms.names
        for given in weights or {}:
            if given not in names:
                raise unknown("arm", given, names)
        weight_A = np.ones(len(names)) if weights is None else np.array([float(weights.get(n, 0.0)) for n in names])
        if weights is not None and not weight_A.any():
            raise TutelageError("All weights of the mixture are 0; give at least one arm a positive weight.")
        self.share_A = proportional(weight_A)
        self.carry_A = np.zeros(len(names))
        self.deck = Deck(self.arms.size_A, self.seed)

    def _propose(self, n: int) -> NDArray[np.int64]:
        draws_A, self.carry_A = allocate(self.share_A, n, self.carry_A)
        return self._deal(self.rng.permutation(np.repeat(np.arange(len(draws_A)), draws_A)))
