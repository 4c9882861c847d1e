"""The step that all Box2D worlds share: motors, physics, a lidar, and the reward of Gymnasium's BipedalWalker-v3.

    reward = 130/30 * (progress in metres) - 5 * (growth of the head's tilt, if the body is upright) - cost * sum |action|
    -100 instead when the terrain touches a fatal part or the head leaves by the left; the episode ends then, and at the end of the track

Each episode has a new Box2D world, so that a rollout depends on the task, the generator and the actions alone, and never on the episodes
before it (a world that is cleared and used again keeps the shape of its collision tree, and with it another order of rounding).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from tutelage.environments._building import CREEPER, GROUND, Box2D, Builder, Built, Terrain
from tutelage.environments._tasked import Float, TaskedEnv, check_render_mode, check_space
from tutelage.environments.bodies import PIXELS, Body
from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace

FPS = 50
VIEW = (600, 400)
TERRAIN_STEP = 14 / PIXELS
TERRAIN_LENGTH = 200  # in steps
START = 20 * TERRAIN_STEP
END = TERRAIN_LENGTH * TERRAIN_STEP
TERRAIN_HEIGHT = VIEW[1] / PIXELS / 4
FRICTION = 2.5
RAYS = 10
LIDAR_RANGE = 160 / PIXELS
PUSH = 5.0
PROGRESS, TILT = 130 / PIXELS, 5.0
FALLEN = -100.0
CEILING = "ceiling"  # user data of terrain that hands can grip, and that kills no climber

Shape = tuple[list[tuple[float, float]], tuple[int, int, int]]


class Contacts(Box2D.b2ContactListener):
    """Counts what each part touches, collects the surfaces under each grip, and notes when terrain touches a fatal part."""

    def __init__(self) -> None:
        super().__init__()
        self.agent: Built | None = None
        self.fatal = False

    def BeginContact(self, contact: Any) -> None:
        self._note(contact.fixtureA, contact.fixtureB, 1)
        self._note(contact.fixtureB, contact.fixtureA, 1)

    def EndContact(self, contact: Any) -> None:
        self._note(contact.fixtureA, contact.fixtureB, -1)
        self._note(contact.fixtureB, contact.fixtureA, -1)

    def _note(self, fixture: Any, other: Any, change: int) -> None:
        """`fixture` begins (1) or ends (-1) to touch `other`."""
        number = fixture.body.userData
        if self.agent is None or not isinstance(number, int):
            return
        ceiling = other.body.userData == CEILING
        if fixture.sensor:
            surfaces = self.agent.grips[fixture.userData].surfaces
            if ceiling and change > 0:
                surfaces.append(other.body)
            elif ceiling:
                surfaces.remove(other.body)
        elif not other.sensor:
            part = self.agent.parts[number]
            part.touching += change
            self.fatal |= part.fatal and not (ceiling and self.agent.grips)


class Ray(Box2D.b2RayCastCallback):
    """The nearest terrain or creeper along a ray."""

    fraction, creeper = 1.0, False

    def ReportFixture(self, fixture: Any, point: Any, normal: Any, fraction: float) -> float:
        bits = fixture.filterData.categoryBits
        if not bits & (GROUND | CREEPER):
            return -1.0
        self.fraction, self.creeper = fraction, bits == CREEPER
        return fraction


class EmbodiedEnv(TaskedEnv, EzPickle):
    """An agent with a body in a Box2D world that its task builds. A subclass lays the terrain.

    Observation, float32: the head's angle, angular velocity and velocity; then of every motor its angle and speed, and of every shin
    whether it touches the terrain; then ten lidar distances. Action: one number in [-1, 1] per motor, its sign the direction, its size the
    torque. As in Gymnasium, a joint's speed may overshoot its bound in a step that meets an obstacle.
    """

    mastery_return = 230.0
    fatal_trunk = True
    finish = END - 10 * TERRAIN_STEP

    def __init__(self, body: Body, *, space: TaskSpace | None, render_mode: str | None) -> None:
        self.task_space = check_space(space, type(self).task_space)
        self.render_mode = check_render_mode(render_mode)
        self._body = body
        self._motors = [(limb.offset, limb.speed, limb.feels) for limb in body.limbs if limb.speed]
        self._feeling = [i + 1 for i, limb in enumerate(body.limbs) if limb.speed]
        self._tilt = TILT if body.upright else 0.0
        self._actions = len(self._motors) + sum(limb.grips for limb in body.limbs)
        self.action_space = Box(-1.0, 1.0, (self._actions,), np.float32)
        self.observation_space = self._observation_space()
        angles = [body.sweep[0] * i / RAYS + body.sweep[1] for i in range(RAYS)]
        self._rays = [(math.sin(angle) * LIDAR_RANGE, -math.cos(angle) * LIDAR_RANGE) for angle in angles]
        self._ray = Ray()
        self._builder = Builder(body, fatal_trunk=self.fatal_trunk or body.climbs)
        self._terrain = Terrain(FRICTION)
        self._world: Any = None

    def _observation_space(self) -> Any:
        """The bounds of BipedalWalker-v3, joint by joint."""
        low, high = [-math.pi, -5.0, -5.0, -5.0], [math.pi, 5.0, 5.0, 5.0]
        for _, _, feels in self._motors:
            low += [-math.pi, -5.0] + [0.0] * feels
            high += [math.pi, 5.0] + [5.0] * feels
        return Box(np.array(low + [-1.0] * RAYS, np.float32), np.array(high + [1.0] * RAYS, np.float32))

    # --- what a subclass says

    def _lay(self, task_D: Float) -> None:
        """Build the terrain of a task in `self._world`."""
        raise NotImplementedError

    def scenery(self) -> Iterator[Shape]:
        """Polygons of the terrain in metres, with their colours, from the back to the front."""
        raise NotImplementedError

    # --- Gymnasium

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode of `options["task"]`, or of a task drawn uniformly."""
        super().reset(seed=seed)
        task_D = self._choose(options)
        self._contacts = Contacts()
        self._world = Box2D.b2World(contactListener=self._contacts)
        self._shaping: float | None = None
        self._lay(task_D)
        self.agent = self._contacts.agent = self._builder.build(self._world, START / 2, TERRAIN_HEIGHT)
        push = self.np_random.uniform(-PUSH, PUSH)
        if not self._body.swims:
            self.agent.head.ApplyForceToCenter((push, 0), True)
        observation = self._settle()
        self.episode_return = 0.0
        return observation, self._info()

    def _settle(self) -> NDArray[np.float32]:
        """The first observation: after one step of rest."""
        return self.step(np.zeros(self._actions))[0]

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One fiftieth of a second. The limit on steps is that of the registration (a `TimeLimit`), so `truncated` is always False here."""
        effort = self._drive(self._checked(action))
        self._world.Step(1.0 / FPS, 6 * 30, 2 * 30)
        self._respond()
        x, y = self.agent.head.position
        observation = self._observe(x, y)
        shaping = PROGRESS * x - self._tilt * abs(observation[0])
        reward = -effort * self._body.cost + (0.0 if self._shaping is None else shaping - self._shaping)
        self._shaping = shaping
        fallen = self._contacts.fatal or x < 0
        if fallen:
            reward = FALLEN
        self.episode_return += reward
        return np.array(observation, dtype=np.float32), reward, fallen or x > self.finish, False, self._info()

    def render(self) -> Any:
        """The scene around the agent as (400, 600, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        self._open()
        from tutelage.environments._drawing import picture

        return picture(self)

    def close(self) -> None:
        """Let go of the Box2D world."""
        self._world = None

    # --- one step

    def _open(self) -> None:
        if self._world is None:
            raise TutelageError("step() or render() before reset(): an episode's world is built by reset(options={'task': ...}).")

    def _checked(self, action: Any) -> list[float]:
        self._open()
        values = np.asarray(action, dtype=np.float64).tolist()
        if not isinstance(values, list) or len(values) != self._actions or not all(map(math.isfinite, values)):
            raise TutelageError(
                f"The action {action!r} does not fit; expected {self._actions} finite numbers in [-1, 1], one per motor or grip. NaN "
                "usually comes from a policy whose training diverged."
            )
        return values

    def _drive(self, action: list[float]) -> float:
        """Set the motors; returns the sum of the sizes of the actions, each at most 1."""
        effort, torque = 0.0, self._body.torque
        for joint, (_, speed, _), value in zip(self.agent.motors, self._motors, action, strict=False):
            size = min(abs(value), 1.0)
            joint.motorSpeed = speed if value > 0 else -speed if value < 0 else 0.0
            joint.maxMotorTorque = torque * size
            effort += size
        return effort

    def _respond(self) -> None:
        """What the world does to the agent besides Box2D's own physics."""

    def _observe(self, x: float, y: float) -> list[float]:
        return self._head_state() + self._motor_state() + self._lidar(x, y)

    def _head_state(self) -> list[float]:
        head = self.agent.head
        vx, vy = head.linearVelocity
        scale = 0.3 / PIXELS / FPS
        return [head.angle, 2.0 * head.angularVelocity / FPS, scale * VIEW[0] * vx, scale * VIEW[1] * vy]

    def _motor_state(self) -> list[float]:
        state, parts = [], self.agent.parts
        for joint, i, (offset, speed, feels) in zip(self.agent.motors, self._feeling, self._motors, strict=True):
            state.append(joint.angle + offset)
            state.append(joint.speed / speed)
            if feels:
                state.append(1.0 if parts[i].touching else 0.0)
        return state

    def _lidar(self, x: float, y: float) -> list[float]:
        fractions, ray, cast = [], self._ray, self._world.RayCast
        for dx, dy in self._rays:
            ray.fraction = 1.0
            cast(ray, (x, y), (x + dx, y + dy))
            fractions.append(ray.fraction)
        return fractions

    # --- what a picture needs

    agent: Built

    @property
    def camera(self) -> tuple[float, float]:
        """The lower left corner of the picture, in metres."""
        return self.agent.head.position[0] - VIEW[0] / PIXELS / 5, 0.0
