"""A GIF of an agent at a task."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from tutelage.environments._tasked import task_space_of
from tutelage.errors import TutelageError, missing_extra
from tutelage.files import atomic_write


@dataclass(frozen=True)
class Film:
    """What was filmed: the file, the return of the episode, its steps, whether it counts as a success."""

    path: Path
    episode_return: float
    steps: int
    success: bool


def film(
    env: Any, policy: Any, task: ArrayLike, path: str | Path, *, seed: int = 0, every: int = 3, width: int = 300, steps: int = 2000
) -> Film:
    """Play one episode of `task` and write it as a GIF.

    env: with render_mode="rgb_array". policy: a function from observation to action, or an agent of Stable-Baselines3 (its `predict` is
    called with deterministic=True). every: steps of 1/50 s between frames. width: of the picture in pixels. steps: at most so many. Raises
    `TutelageError` for an environment that takes no task or gives no pictures; an existing file stays as it is until the new one is whole.
    """
    task_space_of(env)
    if getattr(env, "render_mode", None) != "rgb_array":
        raise TutelageError(
            f"film() needs pictures, but the render_mode of the environment is {env.render_mode!r}; make it with 'rgb_array'."
        )
    if every < 1 or width < 1 or steps < 1:
        raise TutelageError(f"film() needs every, width and steps of at least 1; got every={every}, width={width}, steps={steps}.")
    act = (lambda seen: policy.predict(seen, deterministic=True)[0]) if hasattr(policy, "predict") else policy
    observation, info = env.reset(seed=seed, options={"task": task})
    frames, total, step, done = [env.render()], 0.0, 0, False
    while not done and step < steps:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        total, step, done = total + float(reward), step + 1, terminated or truncated
        if step % every == 0 or done:
            frames.append(env.render())
    fps = env.unwrapped.metadata.get("render_fps", 50)
    atomic_write(path, _gif(frames, width, milliseconds=round(1000 * every / fps)))
    return Film(Path(path), total, step, bool(info.get("is_success", False)))


def _gif(frames: list[Any], width: int, *, milliseconds: int) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "rl") from None
    height = max(1, round(frames[0].shape[0] * width / frames[0].shape[1]))
    pictures = [Image.fromarray(frame).resize((width, height)).quantize(32) for frame in frames]
    out = BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return out.getvalue()
