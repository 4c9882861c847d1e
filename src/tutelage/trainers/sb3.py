"""Stable-Baselines3: a curriculum over a space of tasks, in a user's own script.

    from tutelage.trainers.sb3 import CurriculumCallback, with_curriculum                      # 1

    env = make_vec_env("tutelage/StumpTrack-v0", n_envs=4)
    env = with_curriculum(env, tt.curriculum("alp-gmm", env.get_attr("task_space")[0]))        # 2
    model = SAC("MlpPolicy", env)
    model.learn(1_000_000, callback=CurriculumCallback())                                      # 3, where it is needed

Everything else is Stable-Baselines3's, and any of its algorithms will do. When an episode ends, its return goes to `observe` and the next
task comes from `propose`, in this order, so that no decision is made ahead. A task belongs to the slot it was handed to until that slot's
episode ends; an environment that returns the task in its info is held to it. The third line logs the curriculum's metrics, writes its
state beside the model's checkpoints, and lets the curriculum ask for values or tests (`self-paced`, `again`).

Only public names of Stable-Baselines3 are used. `E` slots, `K` episodes that ended in one step, `D` parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._spaces import LEDGER, SpaceCurriculum
from tutelage.errors import TutelageError, missing_extra
from tutelage.outcomes import Outcomes
from tutelage.state import load_state, save_state
from tutelage.trainers._sb3_episodes import Episode, Slots, TaskDoor, check_space, critic_values, evaluate, place, rows, stacked

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_wrapper
except ImportError as error:
    raise missing_extra(error.name or "stable-baselines3", "rl") from error

__all__ = ["CurriculumCallback", "TaskDoor", "TaskVecEnv", "evaluate", "with_curriculum"]

Float = NDArray[np.float64]
Transform = Callable[[Float], Float]
ValueFn = Callable[[Any], Float]

VERSION = 1


def with_curriculum(
    venv: VecEnv,
    curriculum: Any,
    *,
    mastery: float | None = None,
    transform: Transform | None = None,
    test_env: VecEnv | None = None,
    value_fn: ValueFn | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> TaskVecEnv:
    """A vector environment whose every episode runs a task that the curriculum proposed.

    Args:
        venv: `make_vec_env(...)`, a DummyVecEnv or a SubprocVecEnv, not wrapped; VecNormalize and the like go around the result. Its
            environments read `options["task"]`, float64 (D,), at reset. A SubprocVecEnv saves a reset per episode with
            `wrapper_class=TaskDoor`.
        curriculum: one over a `TaskSpace`. Its reward is the episode's undiscounted return as `venv` gives it, before any VecNormalize.
        mastery: a return above it masters a task (`solved`); None: `info["is_success"]`, else a return above the environment's
            `mastery_return`; a curriculum that needs neither does without.
        transform: from the curriculum's points (N, D) to the environment's tasks, such as a view of its space.
        test_env: environments on which tests that the curriculum asks for are run, in the middle of training (`again`).
        value_fn: from a batch of first observations to values (N,), for a curriculum that asks for them (`self-paced` with
            values="query"); None: the model's own critic.
        resume: a file of `save_curriculum` to go on from.

    An EvalCallback beside a VecNormalize wants an environment that is wrapped alike: give it one with a `random` curriculum, or use
    `evaluate` on tasks of your choice. Raises `TutelageError` where the spaces do not match, the environment takes no task, or the
    curriculum asks for what is not given.
    """
    env = TaskVecEnv(venv, curriculum, mastery=mastery, transform=transform, test_env=test_env, value_fn=value_fn)
    if resume is not None:
        env.load_curriculum(resume)
    return env


class TaskVecEnv(VecEnvWrapper):
    """What `with_curriculum` returns. episodes: how many have ended; steps: environment steps so far; point_ED: the points that run now."""

    def __init__(
        self,
        venv: VecEnv,
        curriculum: Any,
        *,
        mastery: float | None = None,
        transform: Transform | None = None,
        test_env: VecEnv | None = None,
        value_fn: ValueFn | None = None,
    ) -> None:
        if not isinstance(curriculum, SpaceCurriculum):
            raise TutelageError(
                f"with_curriculum needs a curriculum over a TaskSpace, such as tt.curriculum('alp-gmm', space); got a "
                f"{type(curriculum).__name__}."
            )
        self.slots = Slots(venv, mastery=mastery)
        if self.slots.declared is not None and transform is None:
            check_space(curriculum.space, self.slots.declared)
        _check_hooks(curriculum, test_env)
        super().__init__(venv)
        self.curriculum = curriculum
        self.transform, self.test_env, self.value_fn = transform, test_env, value_fn
        self.model: Any = None
        self.point_ED = np.zeros((0, curriculum.space.dimensions))
        self.waiting_WD = np.zeros((0, curriculum.space.dimensions))  # of unfinished episodes, to begin before anything is proposed
        self.episodes, self.steps = 0, 0
        self._begun = False
        self._first: dict[bytes, Any] = {}  # first observations of episodes, where values are asked for
        self._more_options: list[dict[str, Any]] = []

    # The vector environment -----------------------------------------------------------------------------------------------------------

    def reset(self) -> Any:
        """Begin an episode in every slot. Tasks whose episodes were running begin anew: every proposal has one return."""
        if self._begun:
            self.waiting_WD = np.concatenate([self.point_ED, self.waiting_WD])
        self._begun = False
        self.point_ED = self._next(self.num_envs)
        observations = self.slots.begin_all(self._tasks(self.point_ED), self._more_options)
        self._more_options, self._begun = [], True
        self.reset_infos = list(self.venv.reset_infos)
        for e in range(self.num_envs):
            self._remember(e, observations)
        return observations

    def step_wait(self) -> tuple[Any, NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        if not self._begun:
            raise TutelageError("This environment has no tasks yet, or was given a state since; call reset() before step().")
        observations, reward_E, done_E, infos = self.slots.step_wait()
        self.steps += self.num_envs
        ended: list[int] = np.flatnonzero(done_E).tolist()
        if ended:
            self._observe(ended, [self.slots.finished(e, infos[e]) for e in ended])
            self._answer()
            self.point_ED[ended] = self._next(len(ended))
            for e, task_D in zip(ended, self._tasks(self.point_ED[ended]), strict=True):
                place(observations, e, self.slots.begin(e, task_D))
                self._remember(e, observations)
            self.reset_infos = list(self.venv.reset_infos)
        return observations, reward_E, done_E, infos

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Further options of the next `reset()`, beside the task."""
        given = [options or {}] * self.num_envs if not isinstance(options, list) else options
        if any("task" in each for each in given):
            raise TutelageError("The curriculum says which task runs; leave 'task' out of the options.")
        self._more_options = [dict(each) for each in given]

    # The curriculum -------------------------------------------------------------------------------------------------------------------

    def _next(self, n: int) -> Float:
        """The points of n episodes: unfinished ones first, then the curriculum's."""
        old_WD, self.waiting_WD = self.waiting_WD[:n], self.waiting_WD[n:]
        return old_WD if len(old_WD) == n else np.concatenate([old_WD, self.curriculum.propose(n - len(old_WD))])

    def _tasks(self, point_KD: Float) -> Float:
        return point_KD if self.transform is None else np.asarray(self.transform(point_KD), dtype=np.float64)

    def _observe(self, ended: list[int], episodes: list[Episode]) -> None:
        solved_K = None if any(episode.solved is None for episode in episodes) else [episode.solved for episode in episodes]
        if solved_K is None and "solved_NG" in self.curriculum.needs:
            raise TutelageError(
                f"The curriculum {self.curriculum.name!r} needs to know whether a task was mastered, and the environment gives neither "
                "info['is_success'] nor mastery_return. Give with_curriculum mastery=, the return above which it was."
            )
        reward_K, length_K = [episode.reward for episode in episodes], [episode.length for episode in episodes]
        columns: dict[str, Any] = {"reward": reward_K, "length": length_K, "solved": solved_K}
        self.curriculum.observe(Outcomes.of(self.curriculum.space, self.point_ED[ended], step=self.steps, **columns))
        self.episodes += len(ended)

    def _remember(self, e: int, observations: Any) -> None:
        """Keep the first observation of slot e's episode, for values asked later; the oldest go."""
        if "value" in self.curriculum.asks:
            key = self.point_ED[e].tobytes()
            self._first.pop(key, None)
            self._first[key] = rows(observations, e)
            while len(self._first) > max(LEDGER, self.num_envs):
                del self._first[next(iter(self._first))]

    def _answer(self) -> None:
        """Measure what the curriculum asks for, until it asks no more."""
        while self.curriculum.asks and (wants := self.curriculum.wants()) is not None:
            if self.model is None:
                raise TutelageError(
                    f"The curriculum {self.curriculum.name!r} asks for {', '.join(sorted(self.curriculum.asks))}, which needs the model. "
                    "Pass callback=CurriculumCallback() to learn(), which lends it."
                )
            reward_NG, solved_NG = None, None
            if wants.attempts:
                assert self.test_env is not None
                tasks_ND = self._tasks(wants.rows_N)
                reward_NG, solved_NG = evaluate(self.model, self.test_env, tasks_ND, attempts=wants.attempts, mastery=self.slots.mastery)
            signals = {"value": self._values(wants.rows_N)} if "value" in wants.signals else {}
            columns: dict[str, Any] = {"reward": reward_NG, "solved": solved_NG, "signals": signals}
            self.curriculum.observe(Outcomes.of(self.curriculum.space, wants.rows_N, step=self.steps, **columns), probe=True)

    def _values(self, points_ND: Float) -> Float:
        """The critic's value at the first observation of each point's episode."""
        missing = [point_D.tolist() for point_D in points_ND if point_D.tobytes() not in self._first]
        if missing:
            raise TutelageError(f"The curriculum asks for the value of the point {missing[0]}, of which no episode began here.")
        batch = stacked([self._first[point_D.tobytes()] for point_D in points_ND])
        value_N = critic_values(self.model, batch) if self.value_fn is None else np.asarray(self.value_fn(batch), dtype=np.float64)
        running = {point_D.tobytes() for point_D in self.point_ED}
        self._first = {key: observation for key, observation in self._first.items() if key in running}
        return value_N

    # State ----------------------------------------------------------------------------------------------------------------------------

    def save_curriculum(self, path: str | os.PathLike[str]) -> None:
        """Write the curriculum's state and the tasks of the unfinished episodes, beside `model.save(...)`.

        Going on from it (`resume=`), those tasks begin anew, for a model's file does not hold the environments either; every decision
        is then that of a run in which those episodes had begun at the save. Neither is the generator of the environments in it.
        """
        point_RD = np.concatenate([self.point_ED, self.waiting_WD]) if self._begun else self.waiting_WD
        state: dict[str, Any] = {"sb3": VERSION, "curriculum": self.curriculum.state_dict(), "point_RD": point_RD}
        state |= {"episodes": self.episodes, "steps": self.steps}
        if self._first:
            first = stacked(list(self._first.values()))
            point_FD = np.array([np.frombuffer(key) for key in self._first])
            state["first"] = {"point_FD": point_FD, "observations": first if isinstance(first, dict) else {"": first}}
        save_state(path, state)

    def load_curriculum(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save_curriculum`; the next reset begins the unfinished episodes' tasks anew."""
        state = load_state(path)
        missing = [key for key in ("curriculum", "point_RD", "episodes", "steps") if key not in state]
        if state.get("sb3") != VERSION or missing:
            raise TutelageError(f"{path} is not what save_curriculum of this version writes; it has the entries {', '.join(state)}.")
        self.curriculum.load_state_dict(state["curriculum"])
        self.waiting_WD, self.episodes, self.steps = state["point_RD"], state["episodes"], state["steps"]
        self._begun, self._first = False, {}
        if "first" in state:
            parts = state["first"]["observations"]
            for row, point_D in enumerate(state["first"]["point_FD"]):
                self._first[point_D.tobytes()] = parts[""][row] if "" in parts else {key: part[row] for key, part in parts.items()}


class CurriculumCallback(BaseCallback):
    """Lends the model to the curriculum, logs the curriculum's metrics and writes its state beside the model's checkpoints.

    save_freq, save_path, name_prefix: as of Stable-Baselines3's CheckpointCallback; with the same values as one beside it, each
    `<name_prefix>_<n>_steps.zip` has its `<name_prefix>_curriculum_<n>_steps.npz`. save_freq 0: no files.
    """

    def __init__(self, save_freq: int = 0, save_path: str | os.PathLike[str] = ".", name_prefix: str = "rl_model") -> None:
        super().__init__()
        self.save_freq, self.save_path, self.name_prefix = save_freq, save_path, name_prefix
        self._logged = 0

    def _init_callback(self) -> None:
        env = unwrap_vec_wrapper(self.training_env, TaskVecEnv)
        if not isinstance(env, TaskVecEnv):
            raise TutelageError("CurriculumCallback found no curriculum in the model's environment; wrap it: with_curriculum(env, ...).")
        self.env = env
        env.model = self.model

    def _on_rollout_end(self) -> None:
        if self.env.episodes != self._logged:
            self._logged = self.env.episodes
            for name, value in self.env.curriculum.metrics.items():
                self.logger.record(f"curriculum/{name}", value)

    def _on_step(self) -> bool:
        if self.save_freq and self.n_calls % self.save_freq == 0:
            self.env.save_curriculum(os.path.join(self.save_path, f"{self.name_prefix}_curriculum_{self.num_timesteps}_steps.npz"))
        return True


def _check_hooks(curriculum: SpaceCurriculum, test_env: VecEnv | None) -> None:
    """Refuse, before training, a curriculum that will ask for what nobody here can answer."""
    unanswered = curriculum.asks - {"tests", "value"}
    if unanswered:
        raise TutelageError(
            f"The curriculum {curriculum.name!r} asks for {', '.join(sorted(unanswered))}; what is answered here is: tests, value."
        )
    if "tests" in curriculum.asks and test_env is None:
        raise TutelageError(
            f"The curriculum {curriculum.name!r} asks for tests on tasks of its choice; give with_curriculum test_env=make_vec_env(...), "
            "environments apart from those in training."
        )
