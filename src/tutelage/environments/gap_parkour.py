"""Walls with a gap: the task is how high the gap lies and how far the walls are apart.

    the ceiling 10 m above flat ground; from 8 m on, every max(1, ceil(spacing / TERRAIN_STEP)) terrain steps a wall, 0.8 steps wide:
    from the ground a stump of max(0.05, N(max(0, gap - 2.5), 0.05)) metres
    from the ceiling one of max(0.05, N(max(0, 10 - gap - 2.5), 0.2)) metres, with a creeper around it
    and a creeper 0.5 m thick along the whole ceiling

A walker steps over low stumps, a climber swings under short walls, so that the same box of tasks is another one for each. Source: the
parkour of Portelas et al. (Meta Automatic Curriculum Learning, arXiv 2011.08463), whose students have limbs of size 0.5 to 1. Difference:
the observation is that of `parkour`, with what each ray met instead of the share of rays that meet water, of which there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from gymnasium.utils import EzPickle

from tutelage.environments._embodied import CEILING, END, TERRAIN_HEIGHT, TERRAIN_STEP, Shape
from tutelage.environments._hanging import LEAF, ROCK, CeilingEnv
from tutelage.environments._tasked import Float
from tutelage.environments.bodies import CLIMBERS, WALKERS, named
from tutelage.environments.stump_track import GRASS, STONE
from tutelage.spaces import TaskSpace

GAP, FIRST, WIDTH = 5.0, 8.0, 0.8 * TERRAIN_STEP
LOWEST, STUMP_SPREAD, WALL_SPREAD = 0.05, 0.05, 0.2
LINING, NEAREST = 0.5, 0.01

Box = tuple[float, float, float, float]  # left, bottom, width, height


class GapParkour(CeilingEnv):
    """A walker over stumps or a climber under walls, in one space of tasks; mastered is a return above 230.

    Registered as `tutelage/GapParkour-v0`, 2,000 steps an episode. body: a walker of `tutelage.environments.bodies`, or "climber". space:
    other bounds for (gap, spacing). limb_size: factor on the length of legs and arms. Raises `TutelageError` for an unknown body and for a
    task that is not in the space.
    """

    task_space = TaskSpace([2.5, 0.0], [7.5, 6.0], names=["gap", "spacing"])
    roof = 10.0

    def __init__(
        self, *, body: str = "default", space: TaskSpace | None = None, limb_size: float = 1.0, render_mode: str | None = None
    ) -> None:
        EzPickle.__init__(self, body=body, space=space, limb_size=limb_size, render_mode=render_mode)
        super().__init__(named(body, WALKERS | CLIMBERS, limb_size), space=space, render_mode=render_mode)

    def _lay(self, task_D: Float) -> None:
        gap, top = float(task_D[0]), TERRAIN_HEIGHT + self.roof
        ground, ceiling = self._world.CreateStaticBody(), self._world.CreateStaticBody(userData=CEILING)
        self._terrain.line(ground, [(0.0, TERRAIN_HEIGHT), (END, TERRAIN_HEIGHT)])
        self._terrain.line(ceiling, [(0.0, top), (END, top)])
        stride = max(1, math.ceil(max(NEAREST, float(task_D[1])) / TERRAIN_STEP))
        left_W = np.arange(math.ceil(FIRST / TERRAIN_STEP), END / TERRAIN_STEP - 1, stride) * TERRAIN_STEP
        low_W = np.maximum(LOWEST, self.np_random.normal(max(0.0, gap - GAP / 2), STUMP_SPREAD, len(left_W)))
        high_W = np.maximum(LOWEST, self.np_random.normal(max(0.0, self.roof - gap - GAP / 2), WALL_SPREAD, len(left_W)))
        self.stumps: list[Box] = [(x, TERRAIN_HEIGHT, WIDTH, low) for x, low in zip(left_W.tolist(), low_W.tolist(), strict=True)]
        self.walls: list[Box] = [(x, top - high, WIDTH, high) for x, high in zip(left_W.tolist(), high_W.tolist(), strict=True)]
        self.creepers: list[Box] = [(0.0, top - LINING, END, LINING)]
        self.creepers += [(x - WIDTH, y - WIDTH, 3 * WIDTH, high + WIDTH) for x, y, _, high in self.walls]
        for body, boxes in ((ground, self.stumps), (ceiling, self.walls)):
            for box in boxes:
                self._terrain.box(body, *box)
        for box in self.creepers:
            self._terrain.box(ceiling, *box, creeper=True)

    def scenery(self) -> Iterator[Shape]:
        top, far = TERRAIN_HEIGHT + self.roof, 2 * END
        yield _rectangle((0.0, -far, far, far + TERRAIN_HEIGHT)), GRASS
        yield _rectangle((0.0, top, far, far)), ROCK
        for boxes, colour in ((self.creepers, LEAF), (self.stumps, STONE), (self.walls, STONE)):
            for box in boxes:
                yield _rectangle(box), colour


def _rectangle(box: Box) -> list[tuple[float, float]]:
    left, bottom, width, height = box
    return [(left, bottom), (left + width, bottom), (left + width, bottom + height), (left, bottom + height)]
