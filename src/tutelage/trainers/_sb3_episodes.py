"""Episodes in a Stable-Baselines3 vector environment: which task runs in which slot, what it returned, and a policy tried on given tasks.

A vector environment resets a slot by itself when its episode ends, without a word about the next task. So the slot is reset once more,
with the task in `options`; `TaskDoor`, around an environment, leaves the first of the two resets out. `E` slots, `N` tasks, `G` attempts,
`D` parameters.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra
from tutelage.spaces import TaskSpace

try:
    import gymnasium as gym
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
except ImportError as error:
    raise missing_extra(error.name or "stable-baselines3", "rl") from error

Float = NDArray[np.float64]

_HOW = (
    "An environment takes a curriculum's tasks by reading options['task'] in its reset(self, *, seed=None, options=None), and says so by "
    "an attribute task_space (a TaskSpace or a Box) or by returning the task in its info as 'task'; a gymnasium.Wrapper around yours can."
)


class TaskDoor(gym.Wrapper):
    """Leaves out the reset that a vector environment makes by itself after an episode with a task, for the next task's own reset follows.

    `with_curriculum` puts it around the environments of a DummyVecEnv. Give it as `wrapper_class=TaskDoor` to `make_vec_env` with a
    SubprocVecEnv; without it each episode there costs one reset more. It changes nothing else: a reset with a seed or options, or a
    second one, is made as asked.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._tasked = False
        self._last: Any = None

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last = observation if self._tasked and (terminated or truncated) else None
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        last, self._last = self._last, None
        if last is not None and seed is None and not options:
            return last, {}
        self._tasked = options is not None and "task" in options
        return self.env.reset(seed=seed, options=options)


@dataclass(frozen=True)
class Episode:
    """A finished episode: its undiscounted return, its length in steps, and whether the task was mastered (None where nobody says)."""

    reward: float
    length: int
    solved: float | None


class Slots:
    """The episodes that run in a vector environment.

    mastery: a return above it masters a task; None: the environment's word, `info["is_success"]`, else a return above its attribute
    `mastery_return`, where it has one.
    """

    def __init__(self, venv: VecEnv, *, mastery: float | None = None) -> None:
        if isinstance(venv, VecEnvWrapper):
            raise TutelageError(
                f"Tasks are handed out directly above the environments; got a {type(venv).__name__}. Put the curriculum around "
                "make_vec_env(...), DummyVecEnv or SubprocVecEnv itself, and VecNormalize, VecFrameStack and the like around that."
            )
        if not isinstance(venv, VecEnv):
            raise TutelageError(
                f"Expected a Stable-Baselines3 VecEnv; got a {type(venv).__name__}. Make one: make_vec_env(lambda: env, 1)."
            )
        if isinstance(venv, DummyVecEnv):
            venv.envs = [env if isinstance(env, TaskDoor) else TaskDoor(env) for env in venv.envs]
        self.venv = venv
        self.mastery = mastery
        self.declared = venv.get_attr("task_space")[0] if venv.has_attr("task_space") else None
        self.mastery_return = venv.get_attr("mastery_return")[0] if venv.has_attr("mastery_return") else None
        self.task_ED: Float = np.zeros((venv.num_envs, 0))
        self.reward_E = np.zeros(venv.num_envs)
        self.steps, self.began_E = 0, np.zeros(venv.num_envs, dtype=np.int64)  # of the vector environment, and at each slot's beginning

    def begin_all(self, task_ED: Float, options: Sequence[dict[str, Any]] = ()) -> Any:
        """Reset every slot to its task; the first observations. options: further options of each slot."""
        more = options or [{}] * len(task_ED)
        self.venv.set_options([{**given, "task": task_D.copy()} for given, task_D in zip(more, task_ED, strict=True)])
        try:
            observations = self.venv.reset()
        except (TypeError, EOFError, ConnectionError) as error:
            raise self._refused(error) from error
        self.task_ED = task_ED.copy()
        self.reward_E[:], self.began_E[:] = 0.0, self.steps
        for e, info in enumerate(self.venv.reset_infos):
            self._check_began(e, info)
        return observations

    def begin(self, e: int, task_D: Float) -> Any:
        """Reset slot e to a task; its first observation."""
        ((observation, info),) = self.venv.env_method("reset", options={"task": task_D.copy()}, indices=[e])
        self.task_ED[e], self.reward_E[e], self.began_E[e] = task_D, 0.0, self.steps
        self._check_began(e, info)
        infos = list(self.venv.reset_infos)
        infos[e] = info
        self.venv.reset_infos = infos
        return observation

    def step_wait(self) -> tuple[Any, NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """The vector environment's step; where an episode ended, what comes for the next one is not yet its first observation."""
        observations, reward_E, done_E, infos = self.venv.step_wait()
        self.reward_E += reward_E
        self.steps += 1
        return observations, reward_E, done_E, infos

    def finished(self, e: int, info: dict[str, Any]) -> Episode:
        """The episode that just ended in slot e. A return that is not finite, or another task than the slot's, raises."""
        reward, length = float(self.reward_E[e]), int(self.steps - self.began_E[e])
        self._check_task(e, info, "ended an episode of")
        if not np.isfinite(reward):
            raise TutelageError(
                f"Environment {e} ended an episode of {length} steps on task {self.task_ED[e].tolist()} with the return {reward}; returns "
                "must be finite. The curriculum has learned nothing from it. A reward of one of its steps was NaN or infinite: look at the "
                "environment on this task, or at a policy that gives NaN actions."
            )
        if self.mastery is not None:
            return Episode(reward, length, float(reward > self.mastery))
        if info.get("is_success") is not None:
            return Episode(reward, length, float(info["is_success"]))
        return Episode(reward, length, None if self.mastery_return is None else float(reward > self.mastery_return))

    def _check_began(self, e: int, info: dict[str, Any]) -> None:
        if self.declared is None and "task" not in info:
            raise self._refused(None)
        self._check_task(e, info, "began")

    def _check_task(self, e: int, info: dict[str, Any], did: str) -> None:
        """An environment that says which task it runs must run the slot's, in float32 at least."""
        if "task" in info and not np.array_equal(np.asarray(info["task"], np.float32).ravel(), self.task_ED[e].astype(np.float32)):
            raise TutelageError(
                f"Environment {e} {did} task {np.asarray(info['task']).tolist()} where the curriculum had handed it "
                f"{self.task_ED[e].tolist()}. Does a wrapper or a callback reset the environment, or does the environment round its task?"
            )

    def _refused(self, error: BaseException | None) -> TutelageError:
        said = f" ({type(error).__name__}: {error})" if error is not None and str(error) else ""
        return TutelageError(f"The environment did not accept reset(options={{'task': ...}}){said}. {_HOW}")


def check_space(mine: TaskSpace, declared: Any) -> None:
    """Refuse a curriculum whose space has other parameters than the environment's, or leaves its box."""
    theirs = TaskSpace.of(declared)
    mine_named, theirs_named = (space.names != tuple(f"x{d}" for d in range(space.dimensions)) for space in (mine, theirs))
    renamed = mine_named and theirs_named and mine.names != theirs.names
    if mine.dimensions != theirs.dimensions or renamed:
        raise TutelageError(
            f"The curriculum teaches {mine!r}, the environment takes {theirs!r}: not the same parameters in the same order. Build the "
            "curriculum over the environment's own task_space, or give transform= to map its points."
        )
    slack_D = 1e-6 * theirs.range_D  # a Box in float32 rounds its bounds
    for d, name in enumerate(mine.names):
        if mine.low_D[d] < theirs.low_D[d] - slack_D[d] or mine.high_D[d] > theirs.high_D[d] + slack_D[d]:
            raise TutelageError(
                f"The curriculum's {name} runs over [{mine.low_D[d]:g}, {mine.high_D[d]:g}], the environment's task_space only over "
                f"[{theirs.low_D[d]:g}, {theirs.high_D[d]:g}]. Build the curriculum over a part of the environment's space, or widen that."
            )


def place(observations: Any, e: int, observation: Any) -> None:
    """Write the observation of slot e into those of all slots."""
    if isinstance(observations, dict):
        for key, part in observations.items():
            part[e] = observation[key]
    elif isinstance(observations, tuple):
        for part, new in zip(observations, observation, strict=True):
            part[e] = new
    else:
        observations[e] = observation


def rows(observations: Any, e: int) -> Any:
    """A copy of slot e's observation."""
    if isinstance(observations, dict):
        return {key: part[e].copy() for key, part in observations.items()}
    return copy.deepcopy(observations[e])


def stacked(observations: Sequence[Any]) -> Any:
    """Observations of single slots as one batch."""
    if isinstance(observations[0], dict):
        return {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def seen_by(model: Any, observations: Any) -> Any:
    """Observations as the model gets them in training: normalised, where a VecNormalize stands between."""
    normalizer = model.get_vec_normalize_env()
    return observations if normalizer is None else normalizer.normalize_obs(observations)


def critic_values(model: Any, observations: Any) -> Float:
    """The critic's estimate of the return from each observation (as the environment gives it) under the policy, shape (N,).

    predict_values of an actor-critic (PPO, A2C); the least of the critics at the deterministic action (SAC, TD3, DDPG); the greatest
    action value (DQN). Anything else raises: give `value_fn`.
    """
    import torch

    policy, seen = model.policy, seen_by(model, observations)
    with torch.no_grad():
        tensor, _ = policy.obs_to_tensor(seen)
        if hasattr(policy, "predict_values"):
            value = policy.predict_values(tensor)
        elif hasattr(policy, "actor") and hasattr(policy, "critic"):
            action, _ = policy.predict(seen, deterministic=True)
            scaled = torch.as_tensor(policy.scale_action(action), dtype=torch.float32, device=policy.device)
            value = torch.cat(policy.critic(tensor, scaled), dim=1).min(dim=1).values
        elif hasattr(policy, "q_net"):
            value = policy.q_net(tensor).max(dim=1).values
        else:
            raise TutelageError(
                f"No critic is known in a {type(model).__name__}'s {type(policy).__name__}; give value_fn=, a function from a batch of "
                "observations to their values."
            )
    return value.cpu().numpy().reshape(-1).astype(np.float64)


def evaluate(model: Any, venv: VecEnv, points_ND: Float, *, attempts: int = 1, mastery: float | None = None) -> tuple[Float, Float | None]:
    """The model's deterministic policy on given tasks: returns (N, G), and whether each was mastered (N, G; None where nobody says).

    venv: environments apart from those in training, not wrapped. mastery: see `with_curriculum`. Ends mid-episode in slots that had no
    task left.
    """
    slots = Slots(venv, mastery=mastery)
    todo = deque((n, g) for n in range(len(points_ND)) for g in range(attempts))
    reward_NG, solved_NG = np.full((len(points_ND), attempts), np.nan), np.full((len(points_ND), attempts), np.nan)
    doing: list[tuple[int, int] | None] = [todo.popleft() if todo else None for _ in range(venv.num_envs)]
    observations = slots.begin_all(np.stack([points_ND[at[0] if at else 0] for at in doing]))
    while any(at is not None for at in doing):
        action_E, _ = model.predict(seen_by(model, observations), deterministic=True)
        venv.step_async(action_E)
        observations, _, done_E, infos = slots.step_wait()
        for e in np.flatnonzero(done_E).tolist():
            at = doing[e]
            if at is not None:
                episode = slots.finished(e, infos[e])
                reward_NG[at], solved_NG[at] = episode.reward, np.nan if episode.solved is None else episode.solved
            doing[e] = following = todo.popleft() if todo else None
            place(observations, e, slots.begin(e, points_ND[following[0] if following else 0]))
    return reward_NG, None if np.isnan(solved_NG).any() else solved_NG
