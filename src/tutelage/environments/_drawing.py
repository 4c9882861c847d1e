"""Pictures of Box2D worlds, drawn with pygame on a surface in memory: no display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.environments._building import placed
from tutelage.environments.bodies import PIXELS, Point
from tutelage.errors import missing_extra

try:
    import pygame
    from pygame import gfxdraw
except ImportError:
    raise missing_extra("pygame", "rl") from None

if TYPE_CHECKING:
    from tutelage.environments._embodied import EmbodiedEnv

VIEW = (600, 400)
SKY = (215, 215, 255)
TRUNK, NEAR, FAR = (127, 51, 229), (178, 101, 152), (128, 51, 102)
OUTLINE = (60, 40, 90)
HELD = (255, 220, 0)

Points = Sequence[Point]


def picture(env: EmbodiedEnv) -> NDArray[np.uint8]:
    """The scene around the agent of `env`, (400, 600, 3) uint8."""
    surface = pygame.Surface(VIEW)
    surface.fill(SKY)
    left, bottom = env.camera
    right = left + VIEW[0] / PIXELS
    for points, colour in env.scenery():
        if max(x for x, _ in points) >= left and min(x for x, _ in points) <= right:
            _polygon(surface, _pixels(points, left, bottom), colour)
    agent = env.agent
    # Far limbs first, the trunk between them and the near ones.
    order = [*range(1, len(agent.bodies), 2), 0, *range(2, len(agent.bodies), 2)]
    for i in order:
        outline = _pixels(placed(agent.outlines[i], agent.bodies[i]), left, bottom)
        _polygon(surface, outline, TRUNK if i == 0 else NEAR if i % 2 == 0 else FAR, OUTLINE)
    for grip in agent.grips:
        if grip.joint is not None:
            pygame.draw.circle(surface, HELD, _pixels([grip.hand.GetWorldPoint(grip.tip)], left, bottom)[0], 3)
    return np.transpose(pygame.surfarray.array3d(surface), (1, 0, 2))


def _pixels(points: Points, left: float, bottom: float) -> list[tuple[int, int]]:
    return [(_screen((x - left) * PIXELS), _screen(VIEW[1] - (y - bottom) * PIXELS)) for x, y in points]


def _screen(value: float) -> int:
    """A pixel, kept inside the 16 bits that pygame's drawing holds."""
    return round(min(max(value, -9_000.0), 9_000.0))


def _polygon(
    surface: Any, points: list[tuple[int, int]], colour: tuple[int, int, int], outline: tuple[int, int, int] | None = None
) -> None:
    gfxdraw.filled_polygon(surface, points, colour)
    gfxdraw.aapolygon(surface, points, outline or colour)
