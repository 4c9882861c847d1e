"""Worlds of reinforcement-learning agents whose difficulty is a point of a box (the extra `rl`).

    import gymnasium as gym, tutelage.environments
    env = gym.make("tutelage/StumpTrack-v0", body="short")
    observation, info = env.reset(seed=0, options={"task": point_D})

Importing this module registers them with Gymnasium; `gym.make("tutelage.environments:tutelage/StumpTrack-v0")` does both at once.
"""

from __future__ import annotations

import importlib
from typing import Any

from tutelage.errors import missing_extra

STEPS = 2000
_IDS: dict[str, dict[str, Any]] = {
    "tutelage/StumpTrack-v0": {"entry_point": "tutelage.environments.stump_track:StumpTrack", "max_episode_steps": STEPS},
}
_NAMES = {"StumpTrack": "stump_track", "task_space_of": "_tasked"}
__all__ = ["StumpTrack", "register", "task_space_of"]


def register() -> None:
    """Make the environments known to Gymnasium; a second call changes nothing."""
    try:
        from gymnasium.envs.registration import register as register_with_gymnasium
        from gymnasium.envs.registration import registry
    except ImportError:
        raise missing_extra("gymnasium", "rl") from None
    for name, spec in _IDS.items():
        if name not in registry:
            register_with_gymnasium(id=name, **spec)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


register()
