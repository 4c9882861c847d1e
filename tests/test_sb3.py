"""Curricula in Stable-Baselines3 scripts: whose return is whose, whatever the vector environment; resume; hooks; what is refused."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage as tt
from tutelage.curricula._base import Wants
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.testing._lessons import first_difference
from tutelage.traces import read_trace

pytestmark = pytest.mark.rl
gym = pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")

import torch  # noqa: E402
from stable_baselines3 import PPO, SAC  # noqa: E402
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize  # noqa: E402

from tutelage.trainers.sb3 import CurriculumCallback, TaskDoor, TaskVecEnv, evaluate, with_curriculum  # noqa: E402

torch.set_num_threads(1)

SPACE = tt.TaskSpace([0.0, 1.0], [1.0, 9.0], names=["height", "length"])


class Encoder(gym.Env):
    """An episode of floor(length) steps, each with a reward that the task decides: its return is `worth(task)`. Observes the task."""

    task_space: Any = SPACE
    observation_space = gym.spaces.Box(-10, 10, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    resets = 0

    def __init__(self, *, echo: bool = True, truncate: bool = False) -> None:
        self.echo, self.truncate = echo, truncate

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        self.t, self.task = 0, np.array([0.5, 4.0]) if not options else np.array(options["task"])
        return self._observation(), {"task": self.task.copy()} if self.echo else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t >= int(self.task[1])
        info = {"task": self.task.copy()} if self.echo else {}
        info |= {"is_success": bool(self.task[0] > 0.5)} if over else {}
        return self._observation(), self.task[0] * self.t, over and not self.truncate, over and self.truncate, info

    def _observation(self) -> Any:
        return np.array([*self.task, self.t])


def worth(points_ND: np.ndarray) -> np.ndarray:
    steps_N = np.floor(points_ND[:, 1])
    return points_ND[:, 0] * steps_N * (steps_N + 1) / 2


class Recorder(SpaceCurriculum):
    """Uniform points, and everything that came back."""

    name = "recorder"

    def __init__(self, space: tt.TaskSpace = SPACE, seed: int = 0) -> None:
        super().__init__(space, seed=seed)
        self.came: list[tuple[np.ndarray, tt.Outcomes]] = []

    def _propose(self, n: int) -> np.ndarray:
        return self.space.sample(n, self.rng)

    def _learn(self, points_ND: np.ndarray, reward_N: np.ndarray) -> None:
        np.testing.assert_allclose(reward_N, worth(points_ND), rtol=1e-5)

    def observe(self, outcomes: tt.Outcomes, *, probe: bool = False) -> None:
        super().observe(outcomes, probe=probe)
        self.came.append((outcomes.point_ND, outcomes))  # type: ignore[arg-type]


def drive(env: Any, steps: int) -> Any:
    """Step with zeros; every observation must be of the task that its slot runs, and a first one where an episode ended."""
    observations = env.reset()
    for _ in range(steps):
        np.testing.assert_array_equal(observations[:, :2], env.point_ED)
        observations, _, done_E, infos = env.step(np.zeros((env.num_envs, 1), np.float32))
        np.testing.assert_array_equal(observations[done_E, 2], 0)
        assert all("terminal_observation" in infos[e] for e in np.flatnonzero(done_E))
    return observations


@pytest.mark.parametrize("kwargs", [{}, {"echo": False}, {"truncate": True}])
def test_the_return_of_a_task_is_that_of_its_episode(kwargs: dict[str, Any]) -> None:
    """Slots with episodes of 1 to 9 steps that end at odd moments and together: each return, length and mastery is its own task's."""
    curriculum = Recorder()
    env = with_curriculum(make_vec_env(Encoder, n_envs=5, env_kwargs=kwargs), curriculum)
    drive(env, 200)
    assert env.episodes == sum(len(points_ND) for points_ND, _ in curriculum.came) > 150
    assert any(len(points_ND) > 1 for points_ND, _ in curriculum.came)  # some ended together
    for points_ND, outcomes in curriculum.came:
        np.testing.assert_allclose(outcomes.reward_NG[:, 0], worth(points_ND), rtol=1e-6)  # type: ignore[index]
        np.testing.assert_array_equal(outcomes.length_NG[:, 0], np.floor(points_ND[:, 1]))  # type: ignore[index]
        np.testing.assert_array_equal(outcomes.solved_NG[:, 0], points_ND[:, 0] > 0.5)  # type: ignore[index]
    assert len(curriculum.open_PD) == 5  # those that run


@settings(max_examples=12, deadline=None)
@given(slots=st.integers(1, 4), seed=st.integers(0, 99), legs=st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_whatever_the_slots_and_resets_each_proposal_has_one_return(slots: int, seed: int, legs: list[int]) -> None:
    curriculum = Recorder(seed=seed)
    env = with_curriculum(make_vec_env(Encoder, n_envs=slots), curriculum)
    for leg in legs:  # each begins with a reset, in the midst of episodes
        drive(env, leg)
    assert len(curriculum.open_PD) == slots
    came = [point_D.tobytes() for points_ND, _ in curriculum.came for point_D in points_ND]
    assert len(came) == len(set(came)) == env.episodes


def test_one_decision_per_episode_and_none_ahead() -> None:
    """With one slot, each proposal sees the return of the one before; the environment is reset once per episode."""
    curriculum = Recorder()
    venv = make_vec_env(Encoder, n_envs=1)
    env = with_curriculum(venv, curriculum)
    drive(env, 60)
    assert curriculum.lessons == env.episodes + 1
    assert venv.get_attr("resets") == [env.episodes + 1]
    assert env.steps == 60


def test_without_a_door_the_same_is_learned() -> None:
    came = []
    for door in (True, False):
        curriculum = Recorder()
        env = with_curriculum(make_vec_env(Encoder, n_envs=3), curriculum)
        if not door:
            env.venv.envs = [wrapped.env for wrapped in env.venv.envs]  # as in a SubprocVecEnv without TaskDoor
        drive(env, 80)
        came.append([outcomes.reward_NG for _, outcomes in curriculum.came])
    np.testing.assert_array_equal(np.concatenate(came[0]), np.concatenate(came[1]))


def test_a_door_alone_is_transparent() -> None:
    door = TaskDoor(Encoder())
    assert door.reset()[1]["task"].tolist() == [0.5, 4.0]
    door.reset(options={"task": np.array([0.2, 1.0])})
    door.step(None)
    observation, info = door.reset()  # the vector environment's own, left out
    assert (observation.tolist(), info) == ([0.2, 1.0, 1.0], {})
    assert door.reset()[0].tolist() == [0.5, 4.0, 0.0]
    door.reset(options={"task": np.array([0.2, 1.0])})
    door.step(None)
    assert door.reset(seed=3)[0].tolist() == [0.5, 4.0, 0.0]
    for _ in range(4):
        door.step(None)
    assert door.reset()[0].tolist() == [0.5, 4.0, 0.0]  # after an episode without a task


@pytest.mark.parametrize("wrapper", [TaskDoor, None])
def test_in_processes_of_their_own(wrapper: Any) -> None:
    curriculum = Recorder()
    venv = make_vec_env(Encoder, n_envs=2, wrapper_class=wrapper, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    env = with_curriculum(venv, curriculum)
    try:
        drive(env, 50)
        assert env.episodes > 12
        resets_E = venv.get_attr("resets")
        assert sum(resets_E) == env.episodes * (1 if wrapper else 2) + 2
    finally:
        env.close()


def test_dictionary_observations_and_normalisation_around() -> None:
    class Keyed(Encoder):
        observation_space = gym.spaces.Dict({"task": Encoder.observation_space})

        def _observation(self) -> Any:
            return {"task": super()._observation()}

    env = with_curriculum(DummyVecEnv([Keyed, Keyed]), Recorder())
    observations = env.reset()
    for _ in range(30):
        np.testing.assert_array_equal(observations["task"][:, :2], env.point_ED)
        observations, *_ = env.step(np.zeros((2, 1)))
    normal = VecNormalize(with_curriculum(make_vec_env(Encoder, n_envs=2), Recorder()), clip_obs=1e9)
    normal.reset()
    for _ in range(30):
        normal.step(np.zeros((2, 1)))
        np.testing.assert_array_equal(normal.get_original_obs()[:, :2], normal.venv.point_ED)


def test_a_reset_begins_the_running_tasks_anew() -> None:
    curriculum = Recorder()
    env = with_curriculum(make_vec_env(Encoder, n_envs=3), curriculum)
    drive(env, 5)
    running = env.point_ED.copy()
    drive(env, 40)
    taught = np.concatenate([points_ND for points_ND, _ in curriculum.came])
    assert all((taught == row).all(axis=1).sum() == 1 for row in running)


def test_options_and_seeds_go_through() -> None:
    class Seeded(Encoder):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            observation, info = super().reset(seed=seed, options=options)
            return observation, info | {"seed": seed, "more": (options or {}).get("more")}

    env = with_curriculum(make_vec_env(Seeded, n_envs=2, seed=5), Recorder())
    env.set_options([{"more": 1}, {"more": 2}])
    env.reset()
    assert [(info["seed"], info["more"]) for info in env.reset_infos] == [(5, 1), (6, 2)]
    with pytest.raises(tt.TutelageError, match="leave 'task' out"):
        env.set_options({"task": [0, 0]})


def test_points_can_be_mapped_at_the_door() -> None:
    unit = tt.TaskSpace([0.0, 0.0], [1.0, 1.0])
    env = with_curriculum(make_vec_env(Encoder), tt.curriculum("random", unit), transform=lambda p_ND: SPACE.low_D + p_ND * SPACE.range_D)
    observation = env.reset()
    np.testing.assert_array_equal(observation[:, :2], SPACE.low_D + env.point_ED * SPACE.range_D)


# Training -----------------------------------------------------------------------------------------------------------------------------


def ppo(env: Any, **settings: Any) -> Any:
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **settings)


def sac(env: Any) -> Any:
    return SAC("MlpPolicy", env, learning_starts=30, batch_size=8, buffer_size=500, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")


@pytest.mark.parametrize("algorithm", [ppo, sac])
def test_both_algorithms_train_with_it(algorithm: Any, tmp_path: Path) -> None:
    curriculum = tt.curriculum("alp-gmm", SPACE, fit_every=10, max_components=3)
    assert isinstance(curriculum, SpaceCurriculum)
    curriculum.log_to(tmp_path / "trace.jsonl")
    env = with_curriculum(make_vec_env(Encoder, n_envs=2), curriculum)
    model = algorithm(env)
    model.learn(128, callback=CurriculumCallback(), log_interval=10**6)
    trace = read_trace(tmp_path / "trace.jsonl")
    back_M = np.isfinite(trace.reward_M)
    assert back_M.sum() == env.episodes > 10
    np.testing.assert_allclose(trace.reward_M[back_M], worth(trace.point_MD[back_M]), rtol=1e-5)
    np.testing.assert_array_equal(trace.solved_M[back_M], trace.point_MD[back_M, 0] > 0.5)
    assert env.steps == 128
    assert len(trace.fits) == env.episodes // 10
    assert model.logger.name_to_value["curriculum/components"] > 0


@pytest.mark.parametrize("algorithm", [ppo, sac])
def test_a_resumed_run_decides_as_one_that_went_on(algorithm: Any, tmp_path: Path) -> None:
    """Saved and loaded, the curriculum makes the decisions of the same environment reset at that moment."""

    def begin(resume: Path | None = None) -> TaskVecEnv:
        curriculum = tt.curriculum("alp-gmm", SPACE, fit_every=10, max_components=3, seed=3)
        return with_curriculum(make_vec_env(Encoder, n_envs=3), curriculum, resume=resume)

    env = begin()
    checkpoints = {"save_freq": 40, "save_path": str(tmp_path)}
    model = algorithm(env)
    model.learn(180, callback=[CheckpointCallback(**checkpoints), CurriculumCallback(**checkpoints)])  # saved after 40 steps of 3 slots
    saved = tmp_path / "rl_model_curriculum_120_steps.npz"

    one, other = begin(saved), begin(saved)
    assert one.steps == 120
    resumed = type(model).load(tmp_path / "rl_model_120_steps.zip", env=one, device="cpu")
    resumed.learn(60, reset_num_timesteps=False, callback=CurriculumCallback())
    drive(other, one.steps // 3 - 40)  # the returns of this environment do not depend on actions
    assert first_difference(one.curriculum.state_dict(), other.curriculum.state_dict()) == ""
    np.testing.assert_array_equal(one.point_ED, other.point_ED)
    assert one.episodes == other.episodes > env.episodes // 2


def test_the_state_is_the_unbroken_runs(tmp_path: Path) -> None:
    """With episodes of one step nothing is unfinished: broken and unbroken runs are one, to the bit, whatever the number of slots after."""
    narrow = tt.TaskSpace([0.0, 1.0], [1.0, 1.5], names=SPACE.names)

    def begin(slots: int) -> TaskVecEnv:
        return with_curriculum(make_vec_env(Encoder, n_envs=slots), tt.curriculum("riac", narrow, window=8))

    unbroken, broken = begin(2), begin(2)
    drive(unbroken, 50)
    drive(broken, 20)
    broken.save_curriculum(tmp_path / "state.npz")
    resumed = begin(2)
    resumed.load_curriculum(tmp_path / "state.npz")
    with pytest.raises(tt.TutelageError, match="call reset"):
        resumed.step(np.zeros((2, 1)))
    drive(resumed, 30)
    assert first_difference(unbroken.curriculum.state_dict(), resumed.curriculum.state_dict()) == ""
    fewer = begin(1)
    fewer.load_curriculum(tmp_path / "state.npz")
    fewer.reset()
    np.testing.assert_array_equal(np.concatenate([fewer.point_ED, fewer.waiting_WD]), broken.point_ED)
    fewer.save_curriculum(tmp_path / "again.npz")
    more = begin(3)
    more.load_curriculum(tmp_path / "again.npz")
    more.reset()
    np.testing.assert_array_equal(more.point_ED[:2], broken.point_ED)
    tt.curriculum("riac", narrow, window=9)
    other = with_curriculum(make_vec_env(Encoder), tt.curriculum("riac", narrow, window=9))
    with pytest.raises(tt.TutelageError, match="window: the state has 8"):
        other.load_curriculum(tmp_path / "state.npz")


def test_evaluation_beside_training() -> None:
    env = VecNormalize(with_curriculum(make_vec_env(Encoder, n_envs=2), Recorder()))
    model = ppo(env)
    test = VecNormalize(with_curriculum(make_vec_env(Encoder), tt.curriculum("random", SPACE)), training=False)
    model.learn(64, callback=EvalCallback(test, eval_freq=16, n_eval_episodes=2, verbose=0))
    points_ND = SPACE.sample(7, np.random.default_rng(0))
    reward_NG, solved_NG = evaluate(model, make_vec_env(Encoder, n_envs=3), points_ND, attempts=2)
    np.testing.assert_allclose(reward_NG, np.stack([worth(points_ND)] * 2, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(solved_NG, np.stack([points_ND[:, 0] > 0.5] * 2, axis=1))


def test_the_example_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parent.parent / "examples" / "sb3_stump_track.py"
    assert sum(line.rstrip()[-3:] in ("- 1", "- 2", "- 3") for line in script.read_text().splitlines()) == 3
    monkeypatch.setattr(sys, "argv", [str(script), "256", str(tmp_path)])
    for steps in (256, 512):
        runpy.run_path(str(script))
        assert f"{steps} steps; mean return on the grid" in capsys.readouterr().out
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.space.names == ("stump_height", "spacing")
    assert trace.step_M.max() > 256
    assert trace.warnings == ()


# Hooks --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [ppo, sac])
def test_values_are_those_of_first_observations(algorithm: Any, tmp_path: Path) -> None:
    asked: list[np.ndarray] = []

    def value_fn(observations: np.ndarray) -> np.ndarray:
        asked.append(observations)
        return observations[:, 0]

    hyper: dict[str, Any] = {"update_every": 6, "update_offset": 0, "values": "query"}
    curriculum = tt.curriculum("self-paced", SPACE, **hyper)
    env = with_curriculum(make_vec_env(Encoder, n_envs=2), curriculum, value_fn=value_fn)
    algorithm(env).learn(150, callback=CurriculumCallback())
    assert curriculum.metrics["updates"] == len(asked) >= 2
    assert all((batch[:, 2] == 0).all() and len(batch) >= 6 for batch in asked)

    env = with_curriculum(make_vec_env(Encoder, n_envs=2), tt.curriculum("self-paced", SPACE, **hyper))  # the model's own critic
    algorithm(env).learn(150, callback=CurriculumCallback())
    assert env.curriculum.metrics["updates"] >= 2
    env.save_curriculum(tmp_path / "state.npz")
    again = with_curriculum(make_vec_env(Encoder, n_envs=2), tt.curriculum("self-paced", SPACE, **hyper), resume=tmp_path / "state.npz")
    algorithm(again).learn(64, callback=CurriculumCallback())


def test_the_critic_of_ppo_by_hand() -> None:
    from tutelage.trainers._sb3_episodes import critic_values

    model = ppo(with_curriculum(make_vec_env(Encoder), Recorder()))
    batch = np.array([[0.1, 2.0, 0.0], [0.9, 3.0, 0.0]])
    with torch.no_grad():
        expected = model.policy.predict_values(torch.tensor(batch)).numpy()[:, 0]
    np.testing.assert_array_equal(critic_values(model, batch), expected)


def test_tests_are_run_on_environments_of_their_own(tmp_path: Path) -> None:
    hyper: dict[str, Any] = {"test_every": 10, "tests": 5, "fit_every": 10, "max_components": 2, "classroom": str(tmp_path / "room")}
    curriculum = tt.curriculum("again", SPACE, **hyper)
    env = with_curriculum(make_vec_env(Encoder, n_envs=2), curriculum, test_env=make_vec_env(Encoder, n_envs=2))
    ppo(env).learn(160, callback=CurriculumCallback())
    kc_ET = curriculum.kc_ET  # type: ignore[attr-defined]
    assert len(kc_ET) == env.episodes // 10 >= 2
    np.testing.assert_allclose(kc_ET, np.stack([worth(curriculum.test_TD)] * len(kc_ET)), rtol=1e-6)  # type: ignore[attr-defined]


def test_hooks_are_refused_before_training_where_nobody_answers() -> None:
    with pytest.raises(tt.TutelageError, match="test_env="):
        with_curriculum(make_vec_env(Encoder), tt.curriculum("again", SPACE))
    query = tt.curriculum("self-paced", SPACE, update_every=2, update_offset=0, values="query")
    with pytest.raises(tt.TutelageError, match=r"CurriculumCallback\(\)"):
        drive(with_curriculum(make_vec_env(Encoder), query), 50)

    class Curious(Recorder):
        asks = frozenset({"gradients"})

        def wants(self) -> Wants | None:
            return None

    with pytest.raises(tt.TutelageError, match="asks for gradients"):
        with_curriculum(make_vec_env(Encoder), Curious())


# Refusals -----------------------------------------------------------------------------------------------------------------------------


class Deaf(gym.Wrapper):
    """Takes no options."""

    def reset(self, *, seed: int | None = None) -> Any:  # type: ignore[override]
        return self.env.reset(seed=seed)


@pytest.mark.parametrize("vec", [DummyVecEnv, SubprocVecEnv])
def test_environments_that_take_no_task(vec: Any) -> None:
    cart = with_curriculum(make_vec_env("CartPole-v1", n_envs=1), Recorder())
    with pytest.raises(tt.TutelageError, match=r"did not accept reset\(options=\{'task'"):
        cart.reset()
    more = {"start_method": "fork"} if vec is SubprocVecEnv else {}
    env = with_curriculum(make_vec_env(lambda: Deaf(Encoder()), vec_env_cls=vec, vec_env_kwargs=more), Recorder())
    with pytest.raises(tt.TutelageError, match="did not accept"):
        env.reset()


def test_a_task_space_of_other_parameters_is_refused() -> None:
    wide = tt.TaskSpace([0.0, 1.0], [1.0, 10.0])
    turned = tt.TaskSpace([1.0, 0.0], [9.0, 1.0], names=["length", "height"])
    for space, message in (
        (wide, r"length|x1 runs over \[1, 10\]"),
        (turned, "not the same parameters in the same order"),
        (tt.TaskSpace([0.0], [1.0]), "not the same parameters"),
    ):
        with pytest.raises(tt.TutelageError, match=message):
            with_curriculum(make_vec_env(Encoder), tt.curriculum("random", space))
    inside = tt.TaskSpace([0.2, 2.0], [0.3, 3.0], names=SPACE.names)
    with_curriculum(make_vec_env(Encoder), tt.curriculum("random", inside)).reset()


class Boxed(Encoder):
    task_space = gym.spaces.Box(np.array([0.1, 1.1], np.float32), np.array([0.7, 2.2], np.float32))


def test_a_float32_box_is_a_task_space_too() -> None:
    with_curriculum(make_vec_env(Boxed), tt.curriculum("random", tt.TaskSpace([0.1, 1.1], [0.7, 2.2]))).reset()


class Poisoned(Encoder):
    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return (observation, np.nan if self.t == 2 else 1.0, *rest)


def test_a_return_that_is_not_finite_is_named_and_not_learned() -> None:
    env = with_curriculum(make_vec_env(Poisoned), tt.curriculum("alp-gmm", tt.TaskSpace([0.0, 3.0], [1.0, 5.0], names=SPACE.names)))
    with pytest.raises(tt.TutelageError, match=r"Environment 0 ended an episode of \d steps on task .* with the return nan"):
        drive(env, 10)
    assert env.episodes == 0


def test_a_task_that_someone_else_changed_is_noticed() -> None:
    env = with_curriculum(make_vec_env(Encoder), Recorder())
    env.reset()
    env.env_method("reset", options={"task": np.array([0.5, 2.0])})
    env.step(np.zeros((1, 1)))
    with pytest.raises(tt.TutelageError, match="where the curriculum had handed it"):
        env.step(np.zeros((1, 1)))


class Silent(Encoder):
    """Never says whether a task was mastered."""

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return (*rest, {})


class Rated(Silent):
    mastery_return = 3.0


def test_who_says_that_a_task_was_mastered() -> None:
    def solved(env_class: Any, **settings: Any) -> list[float | None]:
        curriculum = Recorder()
        drive(with_curriculum(make_vec_env(env_class), curriculum, **settings), 60)
        reward = np.concatenate([o.reward_NG[:, 0] for _, o in curriculum.came])  # type: ignore[index]
        told = [None if o.solved_NG is None else float(o.solved_NG[0, 0]) for _, o in curriculum.came]
        limit = settings.get("mastery", 3.0)
        assert told == [None] * len(told) or env_class is Encoder or told == [float(r > limit) for r in reward]
        return told

    assert None not in solved(Rated)
    assert None not in solved(Silent, mastery=1.5)
    assert set(solved(Silent)) == {None}

    class Needy(Recorder):
        needs = Recorder.needs | {"solved_NG"}

    with pytest.raises(tt.TutelageError, match="mastery="):
        drive(with_curriculum(make_vec_env(Silent), Needy()), 20)


def test_what_else_is_refused(tmp_path: Path) -> None:
    pool = tt.curriculum("uniform", tt.TaskPool(arm=np.zeros(4, dtype=int)))
    with pytest.raises(tt.TutelageError, match="needs a curriculum over a TaskSpace"):
        with_curriculum(make_vec_env(Encoder), pool)
    with pytest.raises(tt.TutelageError, match="got a VecNormalize"):
        with_curriculum(VecNormalize(make_vec_env(Encoder)), Recorder())
    with pytest.raises(tt.TutelageError, match="got a Encoder"):
        with_curriculum(Encoder(), Recorder())  # type: ignore[arg-type]
    with pytest.raises(tt.TutelageError, match="found no curriculum"):
        ppo(make_vec_env(Encoder)).learn(1, callback=CurriculumCallback())
    from tutelage.state import save_state

    save_state(tmp_path / "other.npz", {"lessons": 3})
    with pytest.raises(tt.TutelageError, match="not what save_curriculum"):
        with_curriculum(make_vec_env(Encoder), Recorder(), resume=tmp_path / "other.npz")
