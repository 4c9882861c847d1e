"""What every environment here has in common: a space of tasks, and the door through which a task enters."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]


class TaskedEnv(gym.Env[Any, Any]):
    """A Gymnasium environment of which one episode is one point of `task_space`.

        observation, info = env.reset(seed=0, options={"task": point_D})

    `point_D` is the float64 row that a curriculum proposed; `info["task"]` gives it back unchanged, at the reset and at every step, so that
    a vectorised environment that resets itself still says which task an episode had. Without a task one is drawn uniformly from the space
    by the environment's own generator. `info["is_success"]` says whether the return up to now lies above `mastery_return`.
    """

    task_space: TaskSpace
    mastery_return: float
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - declared by Gymnasium
    task: Float
    episode_return: float = 0.0

    def _choose(self, options: dict[str, Any] | None) -> Float:
        """The task of the coming episode, checked; read-only. Raises `TutelageError` that names the field."""
        options = options or {}
        for name in options:
            if name != "task":
                raise unknown("reset option", name, ["task"])
        task = options.get("task")
        if task is None:
            task_D = self.task_space.sample(1, self.np_random)[0]
        else:
            task_D = one_task(self.task_space, task)
        task_D.flags.writeable = False
        self.task, self.episode_return = task_D, 0.0
        return task_D

    def _info(self) -> dict[str, Any]:
        return {"task": self.task.copy(), "is_success": self.episode_return > self.mastery_return}


def one_task(space: TaskSpace, task: Any) -> Float:
    """`task` as a new float64 vector of `space`; a wrong shape, a NaN or a value outside raises `TutelageError`."""
    try:
        task_D = np.array(task, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TutelageError(f"options['task'] must be a vector of numbers, one per parameter; got {task!r} ({error}).") from None
    if task_D.shape != (space.dimensions,):
        raise TutelageError(
            f"options['task'] has shape {task_D.shape}; expected ({space.dimensions},): one number for each of {', '.join(space.names)}. "
            "One reset takes one task; give each copy of a vectorised environment its own row."
        )
    return space.check(task_D[None], field="options['task']")[0]


def check_space(space: TaskSpace | None, default: TaskSpace) -> TaskSpace:
    """`space` in place of an environment's `default`; another number of parameters raises `TutelageError`."""
    if space is None:
        return default
    space = TaskSpace.of(space)
    if space.dimensions != default.dimensions:
        raise TutelageError(
            f"space has {space.dimensions} parameters ({', '.join(space.names)}); this environment takes {default.dimensions}: "
            f"{', '.join(default.names)}, in that order. Only the bounds may differ."
        )
    return space


def check_render_mode(mode: str | None) -> str | None:
    """`mode` if these environments know it."""
    if mode not in (None, "rgb_array"):
        raise unknown("render_mode", str(mode), ["rgb_array"])
    return mode


def task_space_of(env: Any) -> TaskSpace:
    """The task space of a Gymnasium environment under any wrappers; one that takes no task raises `TutelageError`."""
    inner = getattr(env, "unwrapped", env)
    space = getattr(inner, "task_space", None)
    if not isinstance(space, TaskSpace):
        raise TutelageError(
            f"The environment {type(inner).__name__} has no attribute task_space (a tutelage.TaskSpace), so it does not say which tasks it "
            "accepts and a curriculum cannot set any. Use one of tutelage.environments, or give yours a task_space and let its reset "
            "read options['task']."
        )
    return space
