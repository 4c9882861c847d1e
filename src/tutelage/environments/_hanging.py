"""What worlds with a ceiling add to `_embodied`: hands that grip, water and breath, and a lidar that knows what it sees.

A climber starts hanging from the ceiling. The last actions are its grips: above 0 a hand that touches ceiling or creeper holds on to it,
at or below 0 it lets go. Its head, chest and shins must not touch the ground; whether walkers may fall the world says. A body that breathes
air dies after 600 consecutive steps with its head under water, one that swims after 600 outside: from then on its actions count as zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tutelage.environments._building import Grip, b2
from tutelage.environments._embodied import RAYS, TERRAIN_HEIGHT, VIEW, EmbodiedEnv
from tutelage.environments._water import press
from tutelage.environments.bodies import CLIMBERS, PIXELS, SWIMMERS, WALKERS, Body

BREATH = 600
HANGING = 5  # steps of holding on before an episode starts
ROCK, LEAF, WATER = (128, 128, 128), (111, 158, 96), (119, 172, 229)

BODIES: dict[str, Body] = WALKERS | CLIMBERS | SWIMMERS


class CeilingEnv(EmbodiedEnv):
    """An agent between ground and ceiling.

    Observation, float32: the head's angle, angular velocity and velocity; whether it is under water, whether the agent is dead; every
    motor's angle and speed, and contact where the part feels it; of every hand whether it touches something to take hold of, and whether it
    holds; ten lidar distances, and what each ray met: -1 water, 1 a creeper, 0 else. A subclass sets `water` (the height of the surface)
    and `roof` (that of the ceiling over the ground at the start).
    """

    water = -math.inf
    roof = 0.0

    def _observation_space(self) -> Any:
        """Without bounds, but for the lidar."""
        before = 6 + sum(2 + feels for _, _, feels in self._motors) + 2 * sum(limb.grips for limb in self._body.limbs)
        high = np.array([np.inf] * before + [1.0] * 2 * RAYS, np.float32)
        return Box(-high, high)

    def _settle(self) -> NDArray[np.float32]:
        self._breathless, self._under = 0, False
        rest = np.zeros(self._actions)
        if self._body.climbs:
            rest[len(self._motors) :] = 1.0
            self._hang()
            for _ in range(HANGING):
                self.step(rest)
        observation = self.step(rest)[0]
        self._breathless = 0
        return observation

    def _hang(self) -> None:
        """Move the agent up until its hands are at the ceiling."""
        grip = self.agent.grips[0]
        rise = TERRAIN_HEIGHT + self.roof - grip.hand.GetWorldPoint(grip.tip)[1]
        for body in self.agent.bodies:
            x, y = body.position
            body.position = (x, y + rise)

    # --- one step

    @property
    def dead(self) -> bool:
        """Whether the agent has been out of its element for too long."""
        return self._breathless > BREATH

    def _drive(self, action: list[float]) -> float:
        if self.dead:
            action = [0.0] * len(action)
        effort = super()._drive(action)
        for grip, value in zip(self.agent.grips, action[len(self._motors) :], strict=True):
            grip.wants = value > 0
            if grip.joint is not None and not grip.wants:
                self._world.DestroyJoint(grip.joint)
                grip.joint = None
            effort += min(abs(value), 1.0)
        return effort

    def _respond(self) -> None:
        for grip in self.agent.grips:
            if grip.wants and grip.joint is None and grip.surfaces:
                grip.joint = self._hold(grip)
        if self.water > -math.inf:
            press(self.agent, self.water)
        self._under = self.agent.head.position[1] <= self.water
        if not self.dead:
            self._breathless = self._breathless + 1 if self._under != self._body.swims else 0

    def _hold(self, grip: Grip) -> Any:
        surface, at = grip.surfaces[0], grip.hand.GetWorldPoint(grip.tip)
        hold = b2.revoluteJointDef(bodyA=grip.hand, bodyB=surface, localAnchorA=grip.tip, localAnchorB=surface.GetLocalPoint(at))
        return self._world.CreateJoint(hold)

    def _observe(self, x: float, y: float) -> list[float]:
        state = [*self._head_state(), float(self._under), float(self.dead), *self._motor_state()]
        for grip in self.agent.grips:
            state += [float(bool(grip.surfaces)), float(grip.joint is not None)]
        return state + self._sights(x, y)

    def _sights(self, x: float, y: float) -> list[float]:
        """Ten distances, then what is there. Water is seen from above only."""
        fractions, kinds = [], []
        for dx, dy in self._rays:
            ray = self._ray
            ray.fraction, ray.creeper = 1.0, False
            self._world.RayCast(ray, (x, y), (x + dx, y + dy))
            fraction, kind = ray.fraction, 1.0 if ray.creeper else 0.0
            if y > self.water and y + dy * fraction < self.water:
                fraction, kind = (self.water - y) / dy, -1.0
            fractions.append(fraction)
            kinds.append(kind)
        return fractions + kinds

    @property
    def camera(self) -> tuple[float, float]:
        x, y = self.agent.head.position
        return x - VIEW[0] / PIXELS / 5, y - VIEW[1] / PIXELS / 2
