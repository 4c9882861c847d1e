"""The gridded student as an environment, to test loops in milliseconds: what it teaches is the student inside, whatever the agent does."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tutelage.environments._tasked import TaskedEnv
from tutelage.students.gridded import GriddedStudent


class Gridded(TaskedEnv):
    """One step an episode: `tutelage.students.gridded.GriddedStudent` attempts the task, and the reward is its return in [0, 1].

    Registered as `tutelage/Gridded-v0`. The action is ignored and the observation always 0. What the student has learned stays from episode
    to episode; a reset with a seed starts it anew. The arguments are those of the student.
    """

    def __init__(self, *, render_mode: None = None, **student: Any) -> None:
        self._arguments = student
        self.student = GriddedStudent(**student)
        self.mastery_return = self.student.visits / self.student.most
        self.task_space = self.student.space
        self.render_mode = None
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Choose the task of the next attempt; with a seed, forget what was learned."""
        super().reset(seed=seed)
        if seed is not None:
            self.student = GriddedStudent(**self._arguments)
        self._choose(options)
        return np.zeros(1, np.float32), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """The attempt, and the end of the episode."""
        self.episode_return = float(self.student.attempt(self.task[None])[0])
        return np.zeros(1, np.float32), self.episode_return, True, False, self._info()
