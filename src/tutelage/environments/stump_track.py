"""A flat track with stumps for a walker: the task is how high they are and how far apart.

    a stump every TERRAIN_STEP + max(0.01, spacing) metres from the start pad on, as wide as one terrain step (14/30 m)
    its height max(0.05, N(stump_height, 0.1)) terrain steps

Source: the Stump Tracks of Portelas et al. (CoRL 2019, arXiv 1910.07224) and of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815),
on Gymnasium's BipedalWalker-v3: same body, observation, action and reward. Differences: the flat ground is one edge, not one for each gap
between stumps; a foot is in contact for as long as it touches anything (the original forgets it when the first of two contacts ends); every
episode has a new Box2D world, so that it depends on its task and seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from gymnasium.utils import EzPickle

from tutelage.environments._embodied import END, START, TERRAIN_HEIGHT, TERRAIN_STEP, EmbodiedEnv, Shape
from tutelage.environments._tasked import Float
from tutelage.environments.bodies import WALKERS, named
from tutelage.spaces import TaskSpace

LOWEST, SPREAD, NEAREST = 0.05, 0.1, 0.01
GRASS, STONE = (102, 153, 76), (153, 153, 153)


class StumpTrack(EmbodiedEnv):
    """A walker crosses stumps; mastered is a return above 230.

    Registered as `tutelage/StumpTrack-v0`, 2,000 steps an episode. body: one of `tutelage.environments.bodies.WALKERS`. space: other bounds
    for (stump_height, spacing), such as a height in [0, 9], mostly out of reach, or in [-3, 3], half of it flat. limb_size: factor on the
    length of the legs. Raises `TutelageError` for an unknown body and for a task that is not in the space.
    """

    task_space = TaskSpace([0.0, 0.0], [3.0, 6.0], names=["stump_height", "spacing"])

    def __init__(
        self, *, body: str = "default", space: TaskSpace | None = None, limb_size: float = 1.0, render_mode: str | None = None
    ) -> None:
        EzPickle.__init__(self, body=body, space=space, limb_size=limb_size, render_mode=render_mode)
        super().__init__(named(body, WALKERS, limb_size), space=space, render_mode=render_mode)

    def _lay(self, task_D: Float) -> None:
        height, spacing = float(task_D[0]), max(NEAREST, float(task_D[1]))
        stumps = math.ceil((END - START) / (TERRAIN_STEP + spacing))
        left_S = START + np.arange(stumps) * (TERRAIN_STEP + spacing)
        height_S = np.maximum(LOWEST, self.np_random.normal(height, SPREAD, stumps)) * TERRAIN_STEP
        self.stumps_S2 = np.stack([left_S, height_S], axis=1)
        ground = self._world.CreateStaticBody()
        self._terrain.line(ground, [(0.0, TERRAIN_HEIGHT), (END + spacing, TERRAIN_HEIGHT)])
        for left, high in self.stumps_S2.tolist():
            self._terrain.box(ground, left, TERRAIN_HEIGHT, TERRAIN_STEP, high)

    def scenery(self) -> Iterator[Shape]:
        yield [(0, 0), (2 * END, 0), (2 * END, TERRAIN_HEIGHT), (0, TERRAIN_HEIGHT)], GRASS
        for left, high in self.stumps_S2.tolist():
            right, top = left + TERRAIN_STEP, TERRAIN_HEIGHT + high
            yield [(left, TERRAIN_HEIGHT), (right, TERRAIN_HEIGHT), (right, top), (left, top)], STONE
