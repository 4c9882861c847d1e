"""The walkers of the benchmark: their profiles, what a cell records and leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.errors import TutelageError
from tutelage.study.acl import bench, profiles
from tutelage.study.acl.profiles import Lessons
from tutelage.study.acl.walker import MASTERY, PROFILES, SHOWN, TESTED, Sizes, WalkerRoom, WalkerSuite, grid_of
from tutelage.study.config import validate
from tutelage.traces import read_trace

pytestmark = pytest.mark.rl
pytest.importorskip("stable_baselines3")

TINY = {"steps": 400, "evaluations": 1, "grid": 2, "slots": 2, "samples": 100, "batch": 50}
SUITE = WalkerSuite()


def teach(room: WalkerRoom, name: str = "random", **more: Any) -> tuple[Lessons, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    parameters = {**SUITE.tuned.get(name, {}), **more}
    teacher = profiles.build_teacher(name, (), room.space, room.expert, seed=0, parameters=parameters)
    return room.run(teacher, told.append), told


def plan(out: Path) -> bench.Benchmark:
    sets = ["profiles=base", "knowledge=none", *(f"{key}={value}" for key, value in TINY.items())]
    return bench.plan(bench.make_bench("acl-walker", ["random", "alp-gmm:fit_every=5"], sets, 1), out=out)


def test_a_cell_records_a_curve_and_leaves_the_walker_behind(tmp_path: Path) -> None:
    told: list[Any] = []
    result = bench.run_benchmark(plan(tmp_path), jobs=1, tell=lambda kind, payload: told.append((kind, payload)))
    assert [payload[1]["step"] for kind, payload in told if kind == "step"] == [0, 400, 0, 400]
    record = next(cell for cell in result["cells"] if cell["row"].startswith("alp-gmm"))
    assert record["curve"]["episodes"] == [0, 400]
    assert record["curve"]["mastered"] == [0.0, 0.0]
    assert record["totals"]["episodes"] > 1
    assert record["totals"]["steps"] == 400
    assert -200 < record["totals"]["test_return"] < MASTERY
    films = [tmp_path / path for path in record["kept"] if path.endswith(".gif")]
    assert len(films) == len(SHOWN)
    from PIL import Image

    with Image.open(films[0]) as film:
        assert film.n_frames > 5
    assert "data:image/gif;base64," in (tmp_path / "report.html").read_text()
    again = bench.run_benchmark(plan(tmp_path), jobs=1, tell=lambda kind, payload: told.append((kind, payload)))
    assert [kind for kind, _ in told].count("done") == 2  # nothing is run twice
    assert again["cells"] == result["cells"]
    job = next(job for job in plan(tmp_path).jobs if job.line.teacher.curriculum == "alp-gmm")
    trace = read_trace(tmp_path / "students" / job.file_name / "trace.jsonl")
    assert np.isfinite(trace.reward_M).sum() == record["totals"]["episodes"]
    from stable_baselines3 import PPO

    assert PPO.load(tmp_path / "students" / job.file_name / "model.zip", device="cpu").num_timesteps == 400


def test_the_same_cell_twice_is_the_same() -> None:
    one, other = (teach(SUITE.room("rugged", 3, Sizes(**TINY)), "alp-gmm", fit_every=5)[0] for _ in range(2))
    np.testing.assert_array_equal(one.return_E, other.return_E)
    np.testing.assert_array_equal(one.point_ED, other.point_ED)
    assert (one.episodes, one.mastered) == (other.episodes, other.mastered)


def test_students_of_the_profiles() -> None:
    sizes = Sizes(**TINY)
    rooms = {name: SUITE.room(name, 0, sizes) for name in PROFILES}
    assert rooms["unfeasible"].space.high_D.tolist() == [9.0, 6.0]
    assert rooms["trivial"].space.low_D.tolist() == [-3.0, 0.0]
    assert rooms["rugged"].view is not None
    easy_D = rooms["rugged"].view.forward(np.array([rooms["rugged"].expert.easy_mean]))[0]
    np.testing.assert_allclose(easy_D, [0.0, 6.0], atol=1e-9)  # rugged to the teacher, easy to the walker
    assert rooms["unfeasible"].expert.easy_std == (pytest.approx(0.9), pytest.approx(0.6))
    four = [SUITE.room("diverse", seed, sizes) for seed in range(4)]
    assert [(room.body, room.algorithm) for room in four] == [
        ("small-bipedal", "ppo"),
        ("spider", "ppo"),
        ("small-bipedal", "sac"),
        ("spider", "sac"),
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_teacher_is_told_what_its_level_allows(profile: str) -> None:
    room = SUITE.room(profile, 0, Sizes(**TINY))
    built = 0
    for name in [*profiles.registered(), "oracle"]:
        for level in profiles.LEVELS:
            told = profiles.facts(name, level)
            if told is not None:
                teacher = profiles.build_teacher(name, told, room.space, room.expert, seed=0, parameters=SUITE.tuned.get(name, {}))
                assert room.space.contains(teacher.propose(3)).all()
                built += 1
    assert built >= 18


def test_a_small_walker_by_sac() -> None:
    lessons, _ = teach(SUITE.room("diverse", 2, Sizes(**{**TINY, "steps": 60})))
    assert lessons.episodes == [0, 60]


def test_a_forgetful_walker_begins_anew_and_its_teacher_does_not() -> None:
    room = SUITE.room("forgetful", 0, Sizes(**{**TINY, "evaluations": 4}))
    students: list[Any] = []
    fresh = room._student
    room._student = lambda env, seed: students.append(fresh(env, seed)) or students[-1]  # type: ignore[method-assign]
    lessons, _ = teach(room)
    assert len(students) == 2
    assert students[0].num_timesteps == 200  # 35 % of 400, rounded up to whole updates
    assert room.model is students[1]
    assert lessons.episodes[-1] == 400


def test_the_tests_are_the_grid_of_the_source() -> None:
    grid_ND = grid_of(TESTED, 10)
    assert grid_ND.shape == (100, 2)
    assert sorted(set(grid_ND[:, 0])) == np.linspace(0, 3, 10).tolist()
    assert sorted(set(grid_ND[:, 1])) == np.linspace(0, 6, 10).tolist()


def test_tests_that_a_teacher_asks_for_are_run() -> None:
    room = SUITE.room("base", 0, Sizes(**TINY))
    lessons, _ = teach(room, "again", test_every=2, tests=3, fit_every=5, max_components=2, reward_range=(-150.0, 350.0))
    assert len(lessons.return_E) >= 2


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(TutelageError, match="algorithm"):
        validate(Sizes, {"algorithm": "dqn"}, "--set")
