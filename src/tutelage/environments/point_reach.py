"""A toy of control: a point walks to a goal against the wind. The task is how far the goal is and how strong the wind blows.

    20 steps; position += 0.1 * (action, at most of length 1, minus wind * direction from start to goal)
    reached within 0.1 of the goal: +2, and the episode ends
    reward otherwise: the distance gained, as a share of the way (of at least 0.1)

The goal's direction is drawn anew in each episode and seen. No agent gains more than 0.1 * (1 - wind) a step: a goal can be reached
if

    distance - 0.1 <= 20 * 0.1 * (1 - wind)

and not otherwise: of the default box, distance [0, 3] by wind [0, 1], about 37 % (`tasks_reachable` says which). Near goals are reached by
chance, so that learning starts there. A PPO of Stable-Baselines3 masters some 85 % of what can be reached after 10,000 steps of tasks drawn
uniformly, seconds on one core.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tutelage.environments._tasked import Float, TaskedEnv, check_space
from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace

STEPS, STRIDE, RADIUS, BONUS = 20, 0.1, 0.1, 2.0


class PointReach(TaskedEnv):
    """A point in the plane that walks to a goal; mastered is a return above 1.5, which is to have reached it.

    Registered as `tutelage/PointReach-v0`, 20 steps an episode. Observation, float32 (5,): the way to the goal, the wind, the share of
    steps that is left. Action (2,): the step, shortened to length 1. space: other bounds for (distance, wind).
    """

    task_space = TaskSpace([0.0, 0.0], [3.0, 1.0], names=["distance", "wind"])
    mastery_return = 1.5

    def __init__(self, *, space: TaskSpace | None = None, render_mode: None = None) -> None:
        self.task_space = check_space(space, type(self).task_space)
        self.render_mode = None
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = Box(-np.inf, np.inf, (5,), np.float32)
        self._steps = STEPS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode of `options["task"]`, or of a task drawn uniformly."""
        super().reset(seed=seed)
        self._distance, self._wind = self._choose(options).tolist()
        turn = self.np_random.uniform(0.0, 2 * math.pi)
        self._heading_2 = np.array([math.cos(turn), math.sin(turn)])
        self._way_2 = self._distance * self._heading_2
        self._steps = 0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step; `truncated` is that of the registration's `TimeLimit`."""
        step_2 = np.asarray(action, dtype=np.float64)
        if step_2.shape != (2,) or not np.isfinite(step_2).all():
            raise TutelageError(f"The action {action!r} does not fit; expected two finite numbers, the step in x and in y.")
        step_2 = step_2 / max(1.0, float(np.linalg.norm(step_2)))
        before = float(np.linalg.norm(self._way_2))
        self._way_2 = self._way_2 - STRIDE * (step_2 - self._wind * self._heading_2)
        after = float(np.linalg.norm(self._way_2))
        self._steps += 1
        reached = after <= RADIUS
        reward = (before - after) / max(self._distance, RADIUS) + BONUS * reached
        self.episode_return += reward
        return self._observe(), reward, reached, False, self._info()

    def _observe(self) -> NDArray[np.float32]:
        left = 1.0 - self._steps / STEPS
        return np.array([*self._way_2, *(self._wind * self._heading_2), left], dtype=np.float32)


def tasks_reachable(tasks_ND: Float) -> NDArray[np.bool_]:
    """Which tasks (distance, wind) an agent can master at all, shape (N,)."""
    return np.asarray(tasks_ND[:, 0] - RADIUS <= STEPS * STRIDE * (1.0 - tasks_ND[:, 1]) + 1e-9)
