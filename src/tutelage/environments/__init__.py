"""Worlds of reinforcement-learning agents whose difficulty is a point of a box (the extra `rl`).

    import gymnasium as gym, tutelage.environments
    env = gym.make("tutelage/StumpTrack-v0", body="short")
    observation, info = env.reset(seed=0, options={"task": point_D})

    tutelage/StumpTrack-v0   a walker over stumps                              task: height, spacing
    tutelage/Parkour-v0      walker, climber or fish through a cave            task: three of its shape, water, creepers' height and spacing
    tutelage/GapParkour-v0   walker or climber through walls with a gap        task: gap, spacing
    tutelage/PointReach-v0   a point to a goal against the wind, a toy         task: distance, wind
    tutelage/Gridded-v0      the exact gridded student, one step an episode    task: a point of the grid

Importing this module registers them with Gymnasium; `gym.make("tutelage.environments:tutelage/StumpTrack-v0")` does both at once. Each has
a `task_space` (`task_space_of(env)` finds it under wrappers) and a `mastery_return`; `film` writes a GIF of an agent at a task.
"""

from __future__ import annotations

import importlib
from typing import Any

from tutelage.errors import missing_extra

_STEPS: dict[str, int | None] = {"StumpTrack": 2000, "Parkour": 2000, "GapParkour": 2000, "PointReach": 20, "Gridded": None}
_MODULES = {
    "StumpTrack": "stump_track",
    "Parkour": "parkour",
    "GapParkour": "gap_parkour",
    "PointReach": "point_reach",
    "Gridded": "gridded",
    "film": "filming",
    "task_space_of": "_tasked",
}
__all__ = ["GapParkour", "Gridded", "Parkour", "PointReach", "StumpTrack", "film", "register", "task_space_of"]


def register() -> None:
    """Make the environments known to Gymnasium; a second call changes nothing."""
    try:
        from gymnasium.envs.registration import register as add
        from gymnasium.envs.registration import registry
    except ImportError:
        raise missing_extra("gymnasium", "rl") from None
    for name, steps in _STEPS.items():
        if f"tutelage/{name}-v0" not in registry:
            add(id=f"tutelage/{name}-v0", entry_point=f"{__name__}.{_MODULES[name]}:{name}", max_episode_steps=steps)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


register()
