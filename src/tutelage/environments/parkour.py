"""Procedural terrain with ground, ceiling, water and creepers: the task shapes all four.

    ground, ceiling   from a pattern network (`_cppn`) with the inputs input_0, input_1, input_2; both start level, the ceiling 20 m up, and
                      where the ceiling would sink below the ground they meet
    water_level       the surface stands at -100 + level * (highest ceiling + 100) metres, level at least 0.01
    creeper_height    creepers of length max(0.2, N(creeper_height, 0.1)) hang from the ceiling, 0.25 m wide
    creeper_spacing   every 1 + ceil(spacing / TERRAIN_STEP) terrain steps, spacing at least 0.01 m

Source: the Parkour of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815), its medium box for the network's inputs. Differences: the
network's weights (see `_cppn`), so that terrains are of the same kind but not the same; water is a half-plane; a hand is one body with its
sensor. Rewards, bodies, lidar and deaths are those of the source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from gymnasium.utils import EzPickle

from tutelage.environments import _cppn
from tutelage.environments._embodied import CEILING, END, START, TERRAIN_HEIGHT, TERRAIN_STEP, Shape
from tutelage.environments._hanging import BODIES, LEAF, ROCK, WATER, CeilingEnv
from tutelage.environments._tasked import Float
from tutelage.environments.bodies import named
from tutelage.environments.stump_track import GRASS
from tutelage.spaces import TaskSpace

DEPTH = 100.0  # how far ground and ceiling reach down and up
DRIEST = 0.01
SHORTEST, SPREAD, WIDTH, NEAREST = 0.2, 0.1, 0.25, 0.01


class Parkour(CeilingEnv):
    """Forward through caves, over cliffs and under water, as a walker, a climber or a fish; mastered is a return above 230.

    Registered as `tutelage/Parkour-v0`, 2,000 steps an episode. body: one of `tutelage.environments.bodies` (walkers, climber, fish).
    space: other bounds for the six parameters. limb_size: factor on the length of legs and arms. Raises `TutelageError` for an unknown body
    and for a task that is not in the space.
    """

    task_space = TaskSpace(
        [-0.35, 0.6, -0.1, 0.0, 0.0, 0.0],
        [0.05, 1.0, 0.3, 1.0, 4.0, 5.0],
        names=["input_0", "input_1", "input_2", "water_level", "creeper_height", "creeper_spacing"],
    )
    fatal_trunk = False
    finish = START + END - 5 * TERRAIN_STEP
    roof = 20.0

    def __init__(
        self, *, body: str = "bipedal", space: TaskSpace | None = None, limb_size: float = 1.0, render_mode: str | None = None
    ) -> None:
        EzPickle.__init__(self, body=body, space=space, limb_size=limb_size, render_mode=render_mode)
        super().__init__(named(body, BODIES, limb_size), space=space, render_mode=render_mode)

    def _lay(self, task_D: Float) -> None:
        ground, ceiling = _cppn.terrain(task_D[:3])
        pad = round(START / TERRAIN_STEP)
        self.ground_X = TERRAIN_HEIGHT + np.concatenate([np.zeros(pad), ground - ground[0]])
        ceiling_X = TERRAIN_HEIGHT + self.roof + np.concatenate([np.zeros(pad), ceiling - ceiling[0]])
        self.ceiling_X = np.maximum(ceiling_X, self.ground_X)
        self.x_X = np.arange(len(self.ground_X)) * TERRAIN_STEP
        self.water = float(-DEPTH + max(DRIEST, task_D[3]) * (self.ceiling_X.max() + DEPTH))
        ground_body, ceiling_body = self._world.CreateStaticBody(), self._world.CreateStaticBody(userData=CEILING)
        self._terrain.line(ground_body, list(zip(self.x_X.tolist(), self.ground_X.tolist(), strict=True)))
        self._terrain.line(ceiling_body, list(zip(self.x_X.tolist(), self.ceiling_X.tolist(), strict=True)))
        self.creepers = self._creepers(float(task_D[4]), float(task_D[5]))
        for left, top, length in self.creepers:
            self._terrain.box(ceiling_body, left, top - length, WIDTH, length, creeper=True)

    def _creepers(self, height: float, spacing: float) -> list[tuple[float, float, float]]:
        """Left side, top and length of each: the first at the start, the others one terrain step past the spacing."""
        steps = math.ceil(max(NEAREST, spacing) / TERRAIN_STEP) + 1
        places = range(0, len(self.x_X) - 1, steps)
        length_C = np.maximum(SHORTEST, self.np_random.normal(height, SPREAD, len(places)))
        tops = [float(max(self.ceiling_X[i], self.ceiling_X[i + 1])) for i in places]
        return [(i * TERRAIN_STEP, top, float(length)) for i, top, length in zip(places, tops, length_C, strict=True)]

    def scenery(self) -> Iterator[Shape]:
        end = float(self.x_X[-1])
        yield [(0, -DEPTH), (end, -DEPTH), (end, self.water), (0, self.water)], WATER
        for left, top, length in self.creepers:
            yield [(left, top - length), (left + WIDTH, top - length), (left + WIDTH, top), (left, top)], LEAF
        for line, limit, colour in ((self.ground_X.tolist(), -DEPTH, GRASS), (self.ceiling_X.tolist(), DEPTH, ROCK)):
            for i in range(len(line) - 1):
                x0, x1 = i * TERRAIN_STEP, (i + 1) * TERRAIN_STEP
                yield [(x0, limit), (x1, limit), (x1, line[i + 1]), (x0, line[i])], colour
