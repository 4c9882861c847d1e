"""The step that all Box2D worlds share: motors, physics, a lidar, and the reward of Gymnasium's BipedalWalker-v3.

    reward = 130/30 * (progress in metres) - 5 * (growth of the trunk's tilt) - cost * sum |action|;  -100 instead when a fatal part touches
    the terrain or the trunk leaves by the left; the episode ends then, and at the far end of the track

Each episode has a new Box2D world, so that a rollout depends on the task, the generator and the actions alone, and never on the episodes
before it (a world that is cleared and used again keeps the shape of its collision tree, and with it another order of rounding).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.environments._tasked import Float, TaskedEnv, check_render_mode, check_space
from tutelage.environments.bodies import GROUND, PIXELS, Body, Built, Part, build
from tutelage.errors import TutelageError, missing_extra
from tutelage.spaces import TaskSpace

try:
    import Box2D
    from gymnasium.spaces import Box
    from gymnasium.utils import EzPickle
except ImportError:
    raise missing_extra("Box2D", "rl") from None

FPS = 50
VIEW = (600, 400)
TERRAIN_STEP = 14 / PIXELS
TERRAIN_LENGTH = 200  # in steps, as the two below
STARTPAD = 20
FINISH = 10
TERRAIN_HEIGHT = VIEW[1] / PIXELS / 4
FRICTION = 2.5
RAYS = 10
LIDAR_RANGE = 160 / PIXELS
PUSH = 5.0
ALIVE_PROGRESS, TILT = 130 / PIXELS, 5.0
FALLEN = -100.0

Shape = tuple[list[tuple[float, float]], tuple[int, int, int]]


class Contacts(Box2D.b2ContactListener):
    """Counts what each part touches, and notes when a fatal one does."""

    def __init__(self) -> None:
        super().__init__()
        self.fatal = False

    def BeginContact(self, contact: Any) -> None:
        for part in (contact.fixtureA.body.userData, contact.fixtureB.body.userData):
            if isinstance(part, Part):
                part.touching += 1
                self.fatal |= part.fatal

    def EndContact(self, contact: Any) -> None:
        for part in (contact.fixtureA.body.userData, contact.fixtureB.body.userData):
            if isinstance(part, Part):
                part.touching -= 1


class Ray(Box2D.b2RayCastCallback):
    """The nearest terrain along a ray."""

    fraction = 1.0

    def ReportFixture(self, fixture: Any, point: Any, normal: Any, fraction: float) -> float:
        if not fixture.filterData.categoryBits & GROUND:
            return -1.0
        self.fraction = fraction
        return fraction


class EmbodiedEnv(TaskedEnv, EzPickle):
    """An agent with a body in a Box2D world that its task builds. A subclass lays the terrain.

    Observation, float32: the trunk's angle, angular velocity and velocity; then of every joint its angle and speed, and of every shin whether
    it touches the ground; then ten lidar distances. Action: one number in [-1, 1] per joint, its sign the direction and its size the torque.
    """

    mastery_return = 230.0

    def __init__(self, body: Body, *, space: TaskSpace | None, render_mode: str | None) -> None:
        self.task_space = check_space(space, type(self).task_space)
        self.render_mode = check_render_mode(render_mode)
        self._body = body
        self._joints = [(limb.offset, limb.speed, limb.feels) for limb in body.limbs]
        self._start = max(STARTPAD, body.width / PIXELS / TERRAIN_STEP + 5) * TERRAIN_STEP
        self.action_space = Box(-1.0, 1.0, (len(body.limbs),), np.float32)
        self.observation_space = self._observation_space()
        self._world: Any = None
        self._rays = [(math.sin(1.5 * i / RAYS) * LIDAR_RANGE, -math.cos(1.5 * i / RAYS) * LIDAR_RANGE) for i in range(RAYS)]
        self._ray = Ray()

    def _observation_space(self) -> Any:
        """The bounds of BipedalWalker-v3, joint by joint."""
        low, high = [-math.pi, -5.0, -5.0, -5.0], [math.pi, 5.0, 5.0, 5.0]
        for _, _, feels in self._joints:
            low += [-math.pi, -5.0] + [0.0] * feels
            high += [math.pi, 5.0] + [5.0] * feels
        return Box(np.array(low + [-1.0] * RAYS, np.float32), np.array(high + [1.0] * RAYS, np.float32))

    # --- for subclasses

    def _lay(self, task_D: Float) -> None:
        """Build the terrain of a task in `self._world`."""
        raise NotImplementedError

    def _scenery(self) -> Iterator[Shape]:
        """Polygons of the terrain, with their colours, from the back to the front."""
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
        self._agent = build(self._world, self._body, self._start / 2, TERRAIN_HEIGHT, fatal_trunk=True)
        self._agent.trunk.ApplyForceToCenter((self.np_random.uniform(-PUSH, PUSH), 0), True)
        observation = self.step(np.zeros(len(self._joints)))[0]
        self.episode_return = 0.0
        return observation, self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One fiftieth of a second. The limit on steps is that of the registration (a `TimeLimit`), so `truncated` is always False here."""
        effort = self._drive(self._checked(action))
        self._world.Step(1.0 / FPS, 6 * 30, 2 * 30)
        trunk = self._agent.trunk
        x, y = trunk.position
        observation = self._observe(x, y)
        shaping = ALIVE_PROGRESS * x - TILT * abs(observation[0])
        reward = -effort * self._body.cost + (0.0 if self._shaping is None else shaping - self._shaping)
        self._shaping = shaping
        fallen = self._contacts.fatal or x < 0
        if fallen:
            reward = FALLEN
        self.episode_return += reward
        terminated = fallen or x > (TERRAIN_LENGTH - FINISH) * TERRAIN_STEP
        return np.array(observation, dtype=np.float32), reward, terminated, False, self._info()

    def close(self) -> None:
        self._world = None

    # --- one step

    def _checked(self, action: Any) -> list[float]:
        if self._world is None:
            raise TutelageError("step() before reset(): the world of an episode is built by reset(options={'task': ...}).")
        values = np.asarray(action, dtype=np.float64).tolist()
        if not isinstance(values, list) or len(values) != len(self._joints) or not all(map(math.isfinite, values)):
            raise TutelageError(
                f"The action {action!r} does not fit; expected {len(self._joints)} finite numbers in [-1, 1], one per joint. NaN usually comes "
                "from a policy whose training diverged."
            )
        return values

    def _drive(self, action: list[float]) -> float:
        """Set the motors; returns the sum of the sizes of the actions, each at most 1."""
        effort, torque = 0.0, self._body.torque
        for joint, (_, speed, _), value in zip(self._agent.joints, self._joints, action, strict=True):
            size = min(abs(value), 1.0)
            joint.motorSpeed = speed if value > 0 else -speed if value < 0 else 0.0
            joint.maxMotorTorque = torque * size
            effort += size
        return effort

    def _observe(self, x: float, y: float) -> list[float]:
        trunk = self._agent.trunk
        velocity = trunk.linearVelocity
        state = [
            trunk.angle,
            2.0 * trunk.angularVelocity / FPS,
            0.3 * velocity[0] * (VIEW[0] / PIXELS) / FPS,
            0.3 * velocity[1] * (VIEW[1] / PIXELS) / FPS,
        ]
        for joint, part, (offset, speed, feels) in zip(self._agent.joints, self._agent.parts[1:], self._joints, strict=True):
            state.append(joint.angle + offset)
            state.append(joint.speed / speed)
            if feels:
                state.append(1.0 if part.touching else 0.0)
        world, ray = self._world, self._ray
        for dx, dy in self._rays:
            ray.fraction = 1.0
            world.RayCast(ray, (x, y), (x + dx, y + dy))
            state.append(ray.fraction)
        return state

    # --- what others read

    @property
    def agent(self) -> Built:
        """The Box2D bodies and joints of the agent in the present episode."""
        return self._agent
