"""Worlds for agents: their terrain, bodies and rewards, what depends on what, and the errors that name the field."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.rl
gym = pytest.importorskip("gymnasium")
pytest.importorskip("Box2D")

from gymnasium.envs.box2d import bipedal_walker  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402

import tutelage.environments as te  # noqa: E402
from tutelage.environments import _cppn, _embodied, _water  # noqa: E402
from tutelage.environments._building import Box2D, Builder, placed  # noqa: E402
from tutelage.environments._embodied import END, PROGRESS, START, TERRAIN_HEIGHT, TERRAIN_STEP  # noqa: E402
from tutelage.environments.bodies import CLIMBERS, SWIMMERS, WALKERS, named  # noqa: E402
from tutelage.environments.point_reach import tasks_reachable  # noqa: E402
from tutelage.students.gridded import GriddedStudent  # noqa: E402

FLAT = [0.0, 6.0]
CAVE = [-0.15, 0.8, 0.1, 0.5, 2.0, 1.0]
DRY, FLOODED = [-0.15, 0.8, 0.1, 0.0, 2.0, 5.0], [-0.15, 0.8, 0.1, 1.0, 2.0, 5.0]

EMBODIED = [
    *(("StumpTrack", body, [1.0, 2.0]) for body in WALKERS),
    *(("Parkour", body, CAVE) for body in ("bipedal", "spider", "climber", "fish")),
    *(("GapParkour", body, [4.0, 3.0]) for body in ("default", "climber")),
]


def make(name: str, **settings: Any) -> Any:
    return getattr(te, name)(**settings)


def rollout(env: Any, task: Any, *, seed: int, steps: int = 60) -> np.ndarray:
    """Observations and rewards of random actions, one row per step."""
    rng = np.random.default_rng(7)
    rows = [np.append(env.reset(seed=seed, options={"task": task})[0], 0.0)]
    for _ in range(steps):
        observation, reward, terminated, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        rows.append(np.append(observation, reward))
        if terminated:
            break
    return np.array(rows)


# --- the contract with Gymnasium


@pytest.mark.parametrize("name", ["StumpTrack", "Parkour", "GapParkour", "PointReach", "Gridded"])
def test_registered_and_in_order(name: str) -> None:
    settings = {} if name in ("PointReach", "Gridded") else {"render_mode": "rgb_array"}
    env = gym.make(f"tutelage/{name}-v0", **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|probably too).*")
        check_env(env.unwrapped, skip_render_check=not settings)
    assert isinstance(env.unwrapped.task_space, tt.TaskSpace)
    assert te.task_space_of(env) is env.unwrapped.task_space
    te.register()  # a second time changes nothing
    assert gym.make(f"tutelage.environments:tutelage/{name}-v0").unwrapped.mastery_return == env.unwrapped.mastery_return


@pytest.mark.parametrize(("name", "body", "task"), EMBODIED)
def test_every_body_reads_what_its_space_says(name: str, body: str, task: list[float]) -> None:
    env = make(name, body=body)
    rows = rollout(env, task, seed=3, steps=30)
    assert rows.shape[1] - 1 == env.observation_space.shape[0]
    assert np.isfinite(rows).all()
    limbs = (WALKERS | CLIMBERS | SWIMMERS)[body].limbs
    assert env.action_space.shape == (sum(limb.speed > 0 for limb in limbs) + sum(limb.grips for limb in limbs),)


@pytest.mark.parametrize(("name", "body", "task"), EMBODIED)
def test_a_rollout_depends_on_task_seed_and_actions_alone(name: str, body: str, task: list[float]) -> None:
    env = make(name, body=body)
    first = rollout(env, task, seed=5)
    other = rollout(env, task, seed=6)
    env.reset(seed=1)  # another episode in between, of another task
    for _ in range(10):
        env.step(env.action_space.sample())
    np.testing.assert_array_equal(rollout(env, task, seed=5), first)
    np.testing.assert_array_equal(rollout(make(name, body=body), task, seed=5), first)
    if body != "fish":  # which is not pushed at the start, and does not see the creepers
        assert other.shape != first.shape or not np.array_equal(other, first)


def test_the_task_comes_back_bit_by_bit() -> None:
    env = gym.make("tutelage/StumpTrack-v0")
    point_D = tt.curriculum("random", te.StumpTrack.task_space, seed=0).propose(1)[0]
    _, info = env.reset(seed=0, options={"task": point_D})
    assert info["task"].tobytes() == point_D.tobytes()
    info["task"][0] = 99.0  # the caller's copy
    info = env.step(np.zeros(4))[-1]
    assert info["task"].tobytes() == point_D.tobytes()
    assert info["is_success"] is False


def test_without_a_task_one_is_drawn() -> None:
    env = make("StumpTrack")
    tasks = [env.reset(seed=0)[1]["task"], *(env.reset()[1]["task"] for _ in range(50))]
    assert env.task_space.contains(np.array(tasks)).all()
    assert len({task.tobytes() for task in tasks}) == 51
    np.testing.assert_array_equal(env.reset(seed=0)[1]["task"], tasks[0])


def test_pickled_and_vectorised() -> None:
    space = tt.TaskSpace([0, 0], [9, 6])
    env = pickle.loads(pickle.dumps(make("StumpTrack", body="short", space=space)))
    assert env.task_space.high_D.tolist() == [9, 6]
    np.testing.assert_array_equal(rollout(env, FLAT, seed=0), rollout(make("StumpTrack", body="short"), FLAT, seed=0))
    envs = gym.make_vec("tutelage/StumpTrack-v0", num_envs=2, vectorization_mode="sync")
    _, infos = envs.reset(seed=0, options={"task": np.array(FLAT)})
    np.testing.assert_array_equal(infos["task"], [FLAT, FLAT])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
def test_episodes_leave_no_memory_behind() -> None:
    def megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    for env, task in ((make("StumpTrack"), [1.0, 0.0]), (make("GapParkour", body="climber"), [4.0, 1.0])):
        for reset in range(320):
            env.reset(options={"task": task})
            if reset == 20:
                before = megabytes()
        assert megabytes() - before < 3  # new definitions of fixtures for each episode would leave 10


# --- the stump track


def test_where_stumps_stand_and_how_high() -> None:
    env = make("StumpTrack")
    env.reset(seed=0, options={"task": [2.0, 1.0]})
    left_S, height_S = env.stumps_S2.T
    assert left_S[0] == START == 20 * TERRAIN_STEP
    np.testing.assert_allclose(np.diff(left_S), TERRAIN_STEP + 1.0)
    assert left_S[-1] < END <= left_S[-1] + TERRAIN_STEP + 1.0
    np.testing.assert_allclose(height_S.mean() / TERRAIN_STEP, 2.0, atol=0.05)
    np.testing.assert_allclose(height_S.std() / TERRAIN_STEP, 0.1, atol=0.04)
    env.reset(seed=0, options={"task": [0.0, 0.0]})
    assert env.stumps_S2[:, 1].min() == 0.05 * TERRAIN_STEP
    np.testing.assert_allclose(np.diff(env.stumps_S2[:, 0]), TERRAIN_STEP + 0.01)


def test_other_bounds() -> None:
    flat = make("StumpTrack", space=tt.TaskSpace([-3, 0], [3, 6], names=["stump_height", "spacing"]))
    flat.reset(seed=0, options={"task": [-3.0, 1.0]})
    np.testing.assert_allclose(flat.stumps_S2[:, 1], 0.05 * TERRAIN_STEP)
    high = make("StumpTrack", space=tt.TaskSpace([0, 0], [9, 6]))
    high.reset(seed=0, options={"task": [9.0, 1.0]})
    assert high.stumps_S2[:, 1].min() > 8 * TERRAIN_STEP


class FlatWalker(bipedal_walker.BipedalWalker):
    """Gymnasium's walker on flat ground."""

    def _generate_terrain(self, hardcore: bool) -> None:
        super()._generate_terrain(hardcore)
        for body in self.terrain:
            self.world.DestroyBody(body)
        self.fd_edge.shape.vertices = [(0, TERRAIN_HEIGHT), (END, TERRAIN_HEIGHT)]
        self.terrain = [self.world.CreateStaticBody(fixtures=self.fd_edge)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_body_is_gymnasiums(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same actions, same ground, no push at the start: the same observations and rewards."""
    monkeypatch.setattr(_embodied, "PUSH", 0.0)
    monkeypatch.setattr(bipedal_walker, "INITIAL_RANDOM", 0.0)
    ours, theirs = make("StumpTrack"), FlatWalker()
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_allclose(ours.reset(seed=seed, options={"task": FLAT})[0], theirs.reset(seed=seed)[0], atol=1e-5)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        a, b = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(a[0][:20], b[0][:20], atol=1e-3)  # the farthest rays see our first stump
        assert a[1] == pytest.approx(b[1], abs=1e-3)
        assert a[2] == b[2]


def carry(env: Any, task: list[float], speed: float) -> tuple[float, int, Any]:
    """Carry a walker along at a constant speed, whatever its legs meet; return, steps and what the last step said."""
    env.reset(seed=0, options={"task": task})
    total, steps, done = 0.0, 0, False
    while not done:
        for body in env.unwrapped.agent.bodies:
            body.linearVelocity, body.angularVelocity = (speed, 0.2), 0.0  # gravity takes 0.2 m/s a step
        last = env.step(np.zeros(4))
        total, steps, done = total + last[1], steps + 1, last[2] or last[3]
    return total, steps, last


def test_who_gets_to_the_end_has_mastered_the_task() -> None:
    env = gym.make("tutelage/StumpTrack-v0")
    total, steps, (_, _, terminated, truncated, info) = carry(env, FLAT, speed=6.0)
    assert env.unwrapped.agent.head.position[0] > 190 * TERRAIN_STEP
    assert total == pytest.approx(PROGRESS * (190 - 10) * TERRAIN_STEP, rel=0.02)
    assert total == pytest.approx(env.unwrapped.episode_return)
    assert total > env.unwrapped.mastery_return == 230.0
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    total, steps, (_, _, terminated, truncated, info) = carry(env, FLAT, speed=1.0)
    assert (steps, terminated, truncated, info["is_success"]) == (2000, False, True, False)
    assert 100 < total < 230


def test_a_fall_costs_a_hundred_and_ends() -> None:
    env = make("StumpTrack")
    env.reset(seed=0, options={"task": FLAT})
    for _ in range(300):
        _, reward, terminated, truncated, info = env.step(np.zeros(4))
        if terminated:
            break
    assert (reward, terminated, truncated) == (-100.0, True, False)
    assert not info["is_success"]


def test_the_reward_is_progress_tilt_and_effort() -> None:
    env = make("StumpTrack")
    env.reset(seed=0, options={"task": FLAT})
    x, tilt = env.agent.head.position[0], abs(env.agent.head.angle)
    _, reward, *_ = env.step(np.array([1.0, -0.5, 0.0, 7.0]))  # the size of an action counts up to 1
    gained = PROGRESS * (env.agent.head.position[0] - x) - 5 * (abs(env.agent.head.angle) - tilt)
    assert reward == pytest.approx(gained - 0.028 * 2.5)


# --- bodies


def test_short_is_the_default_with_legs_half_as_long() -> None:
    short = rollout(make("StumpTrack", body="short"), FLAT, seed=0)
    np.testing.assert_array_equal(rollout(make("StumpTrack", body="default", limb_size=0.5), FLAT, seed=0), short)


@pytest.mark.parametrize(("name", "body"), [("StumpTrack", "bipedal"), ("StumpTrack", "spider"), ("GapParkour", "climber")])
def test_hinges_meet_at_every_size(name: str, body: str) -> None:
    for size in (0.5, 1.0, 1.5):
        chosen = named(body, WALKERS | CLIMBERS, size)
        world = Box2D.b2World()
        agent = Builder(chosen, fatal_trunk=True).build(world, 4.0, TERRAIN_HEIGHT)
        for joint in agent.joints:
            np.testing.assert_allclose(joint.anchorA, joint.anchorB, atol=1e-5)
            assert joint.lowerLimit <= joint.angle <= joint.upperLimit + 0.11  # a straight knee bends at once
        lowest = min(y for outline, part in zip(agent.outlines, agent.bodies, strict=True) for _, y in placed(outline, part))
        assert TERRAIN_HEIGHT - 0.02 <= lowest < TERRAIN_HEIGHT + 0.4


def test_what_a_body_is_made_of() -> None:
    assert len(WALKERS["quadrupedal"].limbs) == 8
    assert len(WALKERS["spider"].limbs) == 12
    assert WALKERS["quadrupedal"].torque == 300
    assert WALKERS["quadrupedal"].cost == pytest.approx(0.00035 / 8 * 300)
    assert CLIMBERS["climber"].climbs
    assert SWIMMERS["fish"].swims


# --- the parkour


def test_the_network_draws_the_same_caves() -> None:
    ground, ceiling = _cppn.terrain(np.array(CAVE[:3]))
    assert ground.shape == ceiling.shape == (200,)
    np.testing.assert_array_equal(_cppn.terrain(np.array(CAVE[:3]))[0], ground)
    assert max(np.abs(w).max() for w in _cppn.weights()) <= 4.0
    assert [w.shape for w in _cppn.weights()] == [(4, 64), (64, 64), (64, 64), (64, 64), (64, 2)]
    env = make("Parkour")
    env.reset(seed=0, options={"task": CAVE})
    np.testing.assert_array_equal(env.ground_X[:21], TERRAIN_HEIGHT)
    np.testing.assert_allclose(env.ceiling_X[:21], TERRAIN_HEIGHT + 20)
    np.testing.assert_allclose(np.diff(env.ground_X[20:]), np.diff(ground))
    assert (env.ceiling_X >= env.ground_X).all()


def test_the_seed_of_the_network_is_the_first_that_fits() -> None:
    low, high = te.Parkour.task_space.low_D[:3], te.Parkour.task_space.high_D[:3]
    grid = list(itertools.product(*np.linspace(low, high, 3).T))

    def fits(seed: int) -> bool:
        cliffs, closed = [], []
        for inputs in grid:
            ground, ceiling = _cppn.terrain(np.array(inputs), seed)
            cliffs.append((np.abs(np.diff(ground)) > 1).sum())
            closed.append((ceiling - ceiling[0] + 20 - (ground - ground[0])).min() < 2)
        return bool(np.median(cliffs) <= 5 and np.mean(closed) <= 0.1)

    assert [seed for seed in range(_cppn.SEED + 1) if fits(seed)] == [_cppn.SEED]


def test_water_and_creepers() -> None:
    env = make("Parkour")
    for task in (DRY, CAVE, FLOODED):
        env.reset(seed=0, options={"task": task})
        assert env.water == pytest.approx(-100 + max(0.01, task[3]) * (env.ceiling_X.max() + 100))
        length_C = np.array([length for _, _, length in env.creepers])
        np.testing.assert_allclose(length_C.mean(), 2.0, atol=0.1)
        steps = np.ceil(task[5] / TERRAIN_STEP) + 1
        np.testing.assert_allclose(np.diff([left for left, *_ in env.creepers]), steps * TERRAIN_STEP)


def test_what_a_polygon_has_under_water() -> None:
    square = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
    assert _water.below(square, 3.0) == square
    assert _water.below(square, -1.0) == []
    area, centre = _water.area_and_centre(_water.below(square, 0.5))
    assert area == pytest.approx(1.0)
    assert centre == pytest.approx((1.0, 0.25))
    area, centre = _water.area_and_centre([(0.0, 0.0), (3.0, 0.0), (0.0, 3.0)])
    assert area == pytest.approx(4.5)
    assert centre == pytest.approx((1.0, 1.0))


def test_a_still_fish_floats_in_water_and_falls_out_of_it() -> None:
    env = make("Parkour", body="fish")
    for task, low, high in ((DRY, -11.0, -9.0), (FLOODED, 0.0, 0.3)):  # metres per second squared; it is a little lighter than water
        env.reset(seed=0, options={"task": task})
        before = env.agent.head.linearVelocity[1]
        for _ in range(15):
            env.step(np.zeros(4))
        assert low < (env.agent.head.linearVelocity[1] - before) / 0.3 < high


@pytest.mark.parametrize(("body", "deadly", "safe"), [("fish", DRY, FLOODED), ("bipedal", FLOODED, DRY)])
def test_out_of_its_element_an_agent_dies_after_600_steps(body: str, deadly: list[float], safe: list[float]) -> None:
    env = make("Parkour", body=body)
    for task, dies in ((deadly, True), (safe, False)):
        env.reset(seed=0, options={"task": task})
        flags = [env.step(np.full(4, 0.001))[0][5] for _ in range(602)]
        assert flags == [0.0] * 600 + [1.0 if dies else 0.0] * 2
        assert env.dead is dies
        head = env.agent.head
        x, tilt = head.position[0], abs(head.angle)
        _, reward, *_ = env.step(np.ones(4))
        gained = PROGRESS * (head.position[0] - x) - (0.0 if body == "fish" else 5 * (abs(head.angle) - tilt))
        assert reward == pytest.approx(gained - (0.0 if dies else 4 * 0.028), abs=1e-6)  # the dead make no effort


def test_time_runs_out_after_2000_steps() -> None:
    env = gym.make("tutelage/Parkour-v0", body="fish")
    env.reset(seed=0, options={"task": DRY})
    ends = [env.step(np.zeros(4))[2:4] for _ in range(2000)]
    assert ends == [(False, False)] * 1999 + [(False, True)]


def test_a_climber_hangs_until_it_lets_go() -> None:
    env = make("Parkour", body="climber")
    observation, _ = env.reset(seed=0, options={"task": DRY})
    grips = 6 + sum(2 + limb.feels for limb in CLIMBERS["climber"].limbs if limb.speed)
    assert observation[grips : grips + 4].tolist() == [0.0, 1.0, 0.0, 1.0]  # nothing to take hold of while it holds
    hold = np.zeros(12)
    hold[-2:] = 1.0
    height = env.agent.head.position[1]
    for _ in range(100):
        observation, *_, terminated, _, _ = env.step(hold)
        assert not terminated
    assert abs(env.agent.head.position[1] - height) < 1.0
    for _ in range(200):
        observation, reward, terminated, *_ = env.step(-hold)
        if terminated:
            break
    assert (reward, terminated) == (-100.0, True)
    assert observation[grips : grips + 4].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_lidar_ray_says_what_it_met() -> None:
    env = make("Parkour", body="climber")
    observation, _ = env.reset(seed=0, options={"task": [-0.15, 0.8, 0.1, 0.0, 4.0, 0.5]})
    assert 1.0 in observation[-10:]  # a creeper beside it
    assert -1.0 not in observation[-10:]
    env = make("Parkour")
    env.reset(seed=0, options={"task": DRY})
    level = (TERRAIN_HEIGHT + 0.5 + 100) / (env.ceiling_X.max() + 100)  # to the knee
    observation, _ = env.reset(seed=0, options={"task": [*DRY[:3], level, 0.0, 5.0]})
    assert observation[4] == 0.0
    assert observation[-10] == -1.0  # straight down
    assert observation[-20] == pytest.approx((env.agent.head.position[1] - TERRAIN_HEIGHT - 0.5) * 30 / 160, abs=1e-5)


def test_gaps() -> None:
    env = make("GapParkour")
    env.reset(seed=0, options={"task": [4.0, 3.0]})
    top = TERRAIN_HEIGHT + 10
    left_W = np.array([box[0] for box in env.stumps])
    assert 8.0 <= left_W[0] < 8.0 + TERRAIN_STEP
    np.testing.assert_allclose(np.diff(left_W), 7 * TERRAIN_STEP)  # ceil(3 / 0.4667)
    np.testing.assert_allclose(np.mean([box[3] for box in env.stumps]), 1.5, atol=0.05)
    np.testing.assert_allclose(np.mean([box[3] for box in env.walls]), 3.5, atol=0.2)
    assert all(box[1] + box[3] == pytest.approx(top) for box in env.walls)


# --- toys


def test_the_best_policy_of_the_toy_reaches_exactly_what_can_be_reached() -> None:
    env = gym.make("tutelage/PointReach-v0")
    tasks_ND = te.PointReach.task_space.sample(300, np.random.default_rng(0))
    solved = []
    for seed, task in enumerate(tasks_ND):
        observation, _ = env.reset(seed=seed, options={"task": task})
        done = False
        while not done:
            observation, _, terminated, truncated, info = env.step(observation[:2] / max(np.linalg.norm(observation[:2]), 1e-9))
            done = terminated or truncated
        assert terminated == info["is_success"]
        solved.append(info["is_success"])
    np.testing.assert_array_equal(solved, tasks_reachable(tasks_ND))
    assert 0.3 < np.mean(solved) < 0.45


def test_no_share_of_the_way_counts_as_a_success() -> None:
    env = make("PointReach")
    env.reset(seed=0, options={"task": [3.0, 0.0]})
    for _ in range(20):
        way = env._way_2
        _, _, terminated, _, info = env.step(way / np.linalg.norm(way))
    assert not terminated
    assert not info["is_success"]
    assert env.episode_return == pytest.approx(2 / 3)


@pytest.mark.slow
def test_an_agent_learns_the_toy() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = gym.make("tutelage/PointReach-v0")
    agent = sb3.PPO("MlpPolicy", env, n_steps=512, learning_rate=1e-3, gamma=0.95, seed=0, device="cpu")
    tasks_ND = te.PointReach.task_space.sample(100, np.random.default_rng(5))

    def share() -> float:
        solved = []
        for seed, task in enumerate(tasks_ND):
            observation, _ = env.reset(seed=seed, options={"task": task})
            done = False
            while not done:
                observation, _, terminated, truncated, info = env.step(agent.predict(observation, deterministic=True)[0])
                done = terminated or truncated
            solved.append(info["is_success"])
        return float(np.mean(np.array(solved)[tasks_reachable(tasks_ND)]))

    before = share()
    agent.learn(10_000)
    assert before < 0.3
    assert share() > 0.6


def test_the_gridded_environment_is_the_student() -> None:
    env, student = make("Gridded", cells=4, unlearnable=0.25), GriddedStudent(cells=4, unlearnable=0.25)
    points_ND = student.space.sample(400, np.random.default_rng(0)) * 0.3
    rewards = []
    env.reset(seed=0)
    for point in points_ND:
        env.reset(options={"task": point})
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert terminated
        assert info["is_success"] == (reward > 0.75)
        rewards.append(reward)
    np.testing.assert_array_equal(rewards, student.attempt(points_ND))
    assert env.student.mastered == student.mastered > 0
    env.reset(seed=0)
    assert env.student.mastered == 0


# --- pictures


@pytest.mark.parametrize(("name", "body", "task"), [EMBODIED[0], EMBODIED[8], EMBODIED[9], EMBODIED[-1]])
def test_pictures_need_no_display_and_change_nothing(name: str, body: str, task: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    env, blind = make(name, body=body, render_mode="rgb_array"), make(name, body=body)
    for one in (env, blind):
        one.reset(seed=0, options={"task": task})
    picture = env.render()
    assert picture.shape == (400, 600, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4  # sky, terrain and a body
    assert blind.render() is None
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.step(action)[0], blind.step(action)[0])


def test_films_take_an_agent_of_stable_baselines3(tmp_path: Path) -> None:
    class Agent:
        def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
            assert deterministic
            return np.full(12, 0.5), None

    env = gym.make("tutelage/StumpTrack-v0", body="spider", render_mode="rgb_array")
    made = te.film(env, Agent(), [1.0, 2.0], tmp_path / "agent.gif", steps=3)
    other = te.film(env, lambda observation: np.full(12, 0.5), [1.0, 2.0], tmp_path / "function.gif", steps=3)
    assert made.episode_return == other.episode_return
    assert made.path.read_bytes() == other.path.read_bytes()


def test_a_film(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    env = gym.make("tutelage/StumpTrack-v0", body="spider", render_mode="rgb_array")
    made = te.film(env, lambda observation: np.zeros(12), [1.0, 2.0], tmp_path / "walk.gif", every=2, steps=8, width=150)
    picture = image.open(made.path)
    assert picture.format == "GIF"
    assert picture.size == (150, 100)
    assert picture.n_frames == 5  # the start and every other step
    assert (made.steps, made.success) == (8, False)
    with pytest.raises(tt.TutelageError, match="render_mode of the environment is None"):
        te.film(gym.make("tutelage/StumpTrack-v0"), lambda observation: np.zeros(4), FLAT, tmp_path / "x.gif")
    with pytest.raises(tt.TutelageError, match="every=0"):
        te.film(env, lambda observation: np.zeros(12), FLAT, tmp_path / "x.gif", every=0)
    with pytest.raises(tt.TutelageError, match="no attribute task_space"):
        te.film(gym.make("CartPole-v1", render_mode="rgb_array"), lambda observation: 0, FLAT, tmp_path / "x.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["walk.gif"]


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": [1.0]}, r"options\['task'\] has shape \(1,\); expected \(2,\): one number for each of stump_height, spacing"),
        ({"task": [[1.0, 2.0]]}, r"options\['task'\] has shape \(1, 2\)"),
        ({"task": [1.0, np.nan]}, r"options\['task'\] row 0: spacing is nan, outside \[0.0, 6.0\]"),
        ({"task": [3.5, 1.0]}, r"stump_height is 3.5, outside \[0.0, 3.0\]"),
        ({"task": ["high", 1.0]}, r"options\['task'\] must be a vector of numbers"),
        ({"tsak": [1.0, 1.0]}, r"Unknown reset option 'tsak'. Did you mean 'task'\?"),
    ],
)
def test_tasks_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    env = gym.make("tutelage/StumpTrack-v0")
    with pytest.raises(tt.TutelageError, match=message):
        env.reset(seed=0, options=options)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("StumpTrack", {"body": "defualt"}, r"Unknown body 'defualt'. Did you mean 'default'\?"),
        ("StumpTrack", {"body": "fish"}, r"Unknown body 'fish'.*Known: bipedal, default, quadrupedal, short, small-bipedal, spider"),
        ("StumpTrack", {"limb_size": 0.0}, r"limb_size is 0.0"),
        ("Parkour", {"body": "fish", "limb_size": 0.5}, r"the body 'fish' has no legs or arms"),
        ("StumpTrack", {"render_mode": "human"}, r"Unknown render_mode 'human'"),
        (
            "StumpTrack",
            {"space": tt.TaskSpace([0], [1])},
            r"space has 1 parameters \(x0\); this environment takes 2: stump_height, spacing",
        ),
        ("StumpTrack", {"space": "big"}, r"Expected a TaskSpace"),
        ("Gridded", {"cells": 1}, r"cells >= 2"),
    ],
)
def test_arguments_that_do_not_fit(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(tt.TutelageError, match=message):
        make(name, **settings)


@pytest.mark.parametrize("action", [np.zeros(3), np.full(4, np.nan), 0.0])
def test_actions_that_do_not_fit(action: Any) -> None:
    env = make("StumpTrack")
    with pytest.raises(tt.TutelageError, match=r"step\(\) or render\(\) before reset"):
        env.step(action)
    env.reset(seed=0, options={"task": FLAT})
    with pytest.raises(tt.TutelageError, match="expected 4 finite numbers"):
        env.step(action)


def test_an_environment_that_takes_no_task() -> None:
    with pytest.raises(tt.TutelageError, match="CartPoleEnv has no attribute task_space"):
        te.task_space_of(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("gymnasium", "import tutelage.environments"),
        ("Box2D", "import tutelage.environments as te; te.PointReach; te.StumpTrack"),
        ("pygame", "import tutelage.environments as te; e = te.StumpTrack(render_mode='rgb_array'); e.reset(); e.render()"),
    ],
)
def test_what_is_not_installed_is_named(missing: str, code: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None\nimport tutelage\nassert not sys.modules.get('gymnasium')\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"MissingExtraError: This needs the package '{missing}'" in done.stderr, done.stderr
    assert "tutelage[rl]" in done.stderr
