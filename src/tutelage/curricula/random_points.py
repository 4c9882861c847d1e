"""Random: points uniform in the space. The honest baseline of every teacher over a space."""

from __future__ import annotations

from tutelage.curricula._spaces import Float, SpaceCurriculum
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace


@curricula.register("random")
class Random(SpaceCurriculum):
    """Points uniform in a continuous space: the baseline of its teachers.

    No hyperparameters and no memory but the generator; learns from nothing.
    """

    name = "random"
    needs = frozenset({"point_ND"})

    def __init__(self, space: TaskSpace, *, seed: int = 0) -> None:
        super().__init__(space, seed=seed)

    def _propose(self, n: int) -> Float:
        return self.space.sample(n, self.rng)
