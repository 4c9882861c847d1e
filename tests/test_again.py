"""AGAIN, case by case: distillation, the choice of an expert, its mixing, a classroom that grows on disk, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt
from tutelage.curricula.again import Again
from tutelage.curricula.classroom import Classroom, Fit, Niche, Trace, distil
from tutelage.state import load_state, save_state
from tutelage.students.gridded import GriddedStudent
from tutelage.testing import check_space_curriculum
from tutelage.testing._lessons import make_space

UNIT = tt.TaskSpace([0.0], [1.0])
TESTS = np.array([[0.25], [0.75]])
SMALL: dict[str, Any] = {"fit_every": 20, "max_components": 3, "test_every": 40, "tests": 8}


def fit(episode: int, *progress: float) -> Fit:
    mean_KQ = np.array([[0.1 * (k + 1), alp] for k, alp in enumerate(progress)])
    return Fit(episode, mean_KQ, np.tile(1e-4 * np.eye(2), (len(progress), 1, 1)))


def trace(kc: Any, *, fits: tuple[Fit, ...] | None = None, rewards: Any = (0.5,) * 8, origins: Any = (0,) * 8, tests: Any = TESTS) -> Trace:
    chosen = (fit(4, 0.5),) if fits is None else fits
    return Trace(np.asarray(tests), np.array(kc, dtype=float), 4, chosen, np.array(rewards, dtype=float), np.array(origins, dtype=np.int64))


def teach(curriculum: tt.Curriculum, student: GriddedStudent, lessons: int, *, n: int = 10) -> list[np.ndarray]:
    points = []
    for _ in range(lessons):
        wants = curriculum.wants()
        if wants is not None:
            score_N = student.competence_C[student.cell_of(wants.rows_N)] / 100
            curriculum.observe(tt.Outcomes.of(student.space, wants.rows_N, reward=score_N), probe=True)
        points.append(curriculum.propose(n))
        curriculum.observe(tt.Outcomes.of(student.space, points[-1], reward=student.attempt(points[-1])))
    return points


def with_niches(*niches: Niche, **hyper: Any) -> Again:
    curriculum = Again(UNIT, **{"returns": 3, "fit_every": 1000, **hyper})
    curriculum.niches = list(niches)
    return curriculum


def feed(curriculum: Again, origins: list[tuple[int, int]], rewards: list[float]) -> None:
    """Episodes whose tasks came from (niche, component), a niche of -1 standing for the live mixture."""
    curriculum._settled_N3 = np.array([(*origin, 0) for origin in origins])
    curriculum._learn(np.full((len(rewards), 1), 0.5), np.array(rewards))


def niche(*progress: float, target: float = 0.5) -> Niche:
    return Niche(fit(0, *progress).mean_KQ, fit(0, *progress).cov_KQQ, target)


# --- distillation


def test_distil_by_hand() -> None:
    """Component 0 promises too little, exactly 0.2 is too little, and uniform tasks do not count; of 60 returns the latest 50."""
    origins = [0, -1, 2] + [1, 2] * 30
    rewards = [9.0, 9.0, 9.0] + [5.0] * 10 + [1.0] * 50
    run = Trace(TESTS, np.zeros((1, 2)), 70, (fit(3, 0.1, 0.3, 0.25), fit(73, 0.2, 0.1)), np.array(rewards), np.array(origins))
    (found,) = distil(run)
    np.testing.assert_allclose(found.mean_KQ[:, -1], [0.3, 0.25])
    assert found.cov_KQQ.shape == (2, 2, 2)
    assert found.target == 1.0
    assert distil(run, last=60)[0].target == pytest.approx((10 * 5 + 50) / 60)
    assert distil(run, least_progress=0.3) == []


def test_a_fit_without_returns_is_dropped_and_windows_do_not_overlap() -> None:
    run = trace([[0, 0]], fits=(fit(0, 0.5), fit(4, 0.5), fit(8, 0.5)), rewards=[1, 1, 0, 0, 0.25, 0.75, 0, 0], origins=[0, 0] + [-1] * 6)
    assert [n.target for n in distil(run)] == [1.0]
    run = trace([[0, 0]], fits=(fit(0, 0.5), fit(4, 0.5)), rewards=[1, 1, 0, 0, 0.25, 0.75, 0, 0], origins=[0, 0, -1, -1, 0, 0, -1, -1])
    assert [n.target for n in distil(run)] == [1.0, 0.5]


# --- the classroom


def test_nearest_and_best_by_hand(tmp_path: Path) -> None:
    room = Classroom(tmp_path, UNIT, TESTS)
    runs = {"a": [[0, 0], [5, 0]], "b": [[1, 0], [4, 0]], "c": [[0, 3], [9, 0]]}
    room.traces = {name: trace(kc) for name, kc in runs.items()}
    near = room.nearest(np.array([0.9, 0.0]), 1, 2)
    assert [name for name, _ in near] == ["b", "a"]
    assert near[0][1] == pytest.approx(0.1 / np.sqrt(2))
    assert room.best([name for name, _ in near]) == "a"
    assert len(room.nearest(np.zeros(2), 1, 50)) == 3
    assert room.nearest(np.zeros(2), 3, 5) == []
    assert [name for name, _ in room.nearest(np.zeros(2), 1, 5, among=["c"])] == ["c"]
    with pytest.raises(tt.TutelageError, match="no longer has the run z"):
        room.nearest(np.zeros(2), 1, 5, among=["z"])


def test_it_grows_run_after_run(tmp_path: Path) -> None:
    room = Classroom(tmp_path / "room", UNIT, TESTS)
    first, second = trace([[0, 0], [1, 0]]), trace([[0, 0], [1, 1]])
    names = [room.add(first), room.add(second), room.add(first)]
    assert names[0] == names[2] != names[1]
    again = Classroom(tmp_path / "room", UNIT, TESTS)
    assert list(again.traces) == sorted({str(name) for name in names}) == list(room.traces)
    kept = again.traces[str(names[0])]
    assert (kept.fit_every, kept.fits[0].episode) == (4, 4)
    for field in ("kc_ET", "reward_M", "origin_M", "test_TD"):
        assert np.array_equal(getattr(kept, field), getattr(first, field))
    assert np.array_equal(kept.fits[0].cov_KQQ, first.fits[0].cov_KQQ)


def test_what_is_not_worth_keeping(tmp_path: Path) -> None:
    room = Classroom(tmp_path, UNIT, TESTS)
    assert room.add(trace([[1, 1], [0, 1]])) is None
    assert Classroom(tmp_path / "walkers", UNIT, TESTS).add(trace([[1, 1], [0, 1]]), improved=False) is not None
    assert room.add(trace([[0, 0], [1, 1]], fits=(fit(4, 0.1),))) is None
    assert room.add(trace(np.zeros((0, 2)))) is None
    assert not list(tmp_path.glob("*.npz"))
    assert room.add(trace([[1, 1], [1, 1]])) is not None


def test_strangers_are_refused(tmp_path: Path) -> None:
    name = Classroom(tmp_path, UNIT, TESTS).add(trace([[0, 0], [1, 1]]))
    file = tmp_path / f"{name}.npz"
    for told, build in {
        "its space is": lambda: Classroom(tmp_path, tt.TaskSpace([0.0], [2.0]), TESTS),
        "its tests is": lambda: Classroom(tmp_path, UNIT, TESTS / 2),
        "its reward_range is None": lambda: Classroom(tmp_path, UNIT, TESTS, reward_range=[0.0, 1.0]),
        "expected a directory": lambda: Classroom(file, UNIT, TESTS),
    }.items():
        with pytest.raises(tt.TutelageError, match=told):
            build()
    with pytest.raises(tt.TutelageError, match="tested on other tasks"):
        Classroom(tmp_path, UNIT, TESTS).add(trace([[0, 0], [1, 1]], tests=TESTS / 2))
    state = load_state(file)
    for told, damaged in {"its classroom is 2, expected 1": {**state, "classroom": 2}, "not a whole run": {**state, "fits": [{}]}}.items():
        save_state(file, damaged)
        with pytest.raises(tt.TutelageError, match=told):
            Classroom(tmp_path, UNIT, TESTS)
    file.write_bytes(b"PK not a zip")
    with pytest.raises(tt.TutelageError, match="not a whole tutelage state"):
        tt.curriculum("again", UNIT, classroom=str(tmp_path), test_points=((0.25,), (0.75,)))


# --- mixing


def test_shares_of_the_pool_by_hand() -> None:
    curriculum = with_niches(niche(0.3))
    curriculum.mean_KQ, curriculum.cov_KQQ = np.add(fit(0, 0.1, 0.2).mean_KQ, [0.5, 0]), fit(0, 0.1, 0.2).cov_KQQ
    progress_K = curriculum._pool()[2]
    np.testing.assert_allclose(progress_K / progress_K.sum(), [0.5, 1 / 6, 1 / 3])
    curriculum.propose(6000)
    origin_N3 = curriculum.open_origin_P3
    assert np.mean((origin_N3 == -1).all(axis=1)) == pytest.approx(0.02, abs=0.01)
    guided = 6000 - (origin_N3 == -1).all(axis=1).sum()
    counts = [(origin_N3 == row).all(axis=1).sum() / guided for row in ([0, 0, -1], [-1, 0, 0], [-1, 1, 0])]
    np.testing.assert_allclose(counts, [0.5, 1 / 6, 1 / 3], atol=0.02)


def test_rule_r_by_hand() -> None:
    curriculum = with_niches(niche(0.3, target=0.5), niche(0.3, target=0.8))
    feed(curriculum, [(-1, -1), (0, 0), (-1, 0), (0, 0)], [1.0, 0.4, 1.0, 0.5])
    assert (curriculum.stage, curriculum.queue) == (0, [0.4, 0.5])
    feed(curriculum, [(0, 0)], [0.6])
    assert (curriculum.stage, curriculum.queue) == (1, [])
    feed(curriculum, [(0, 0)] * 3, [1.0] * 3)  # of the niche that was left
    assert (curriculum.stage, curriculum.queue) == (1, [])
    feed(curriculum, [(1, 0)] * 4, [0.1, 0.7, 0.8, 1.0])
    assert (curriculum.stage, curriculum.ended) == (1, True)


def test_tolerance_and_patience() -> None:
    lenient = with_niches(niche(0.3), niche(0.3), tolerance=0.5)
    feed(lenient, [(0, 0)] * 3, [0.25] * 3)
    assert lenient.stage == 1
    patient = with_niches(niche(0.3), niche(0.3), patience=5)
    feed(patient, [(-1, -1)] * 4, [0.0] * 4)
    assert patient.stage == 0
    feed(patient, [(-1, -1)], [0.0])
    assert patient.stage == 1


def test_after_the_last_niche_its_progress_is_live() -> None:
    curriculum = with_niches(niche(0.3, 0.4), end_random=0.5)
    curriculum.ended, curriculum.recent = True, [[], []]
    feed(curriculum, [(0, 0)] * 99 + [(-1, 0)], [float(i % 2) for i in range(99)] + [0.0])
    assert curriculum.niches[0].mean_KQ[:, -1].tolist() == [0.3, 0.4]
    expected = np.mean([*curriculum.recent[0], 1.0])  # the last return was 0
    feed(curriculum, [(0, 0)], [1.0])
    np.testing.assert_allclose(curriculum.niches[0].mean_KQ[:, -1], [expected, 0.0])
    assert curriculum.uniform_share == 0.5


def test_rules_t_and_p(tmp_path: Path) -> None:
    curriculum = with_niches(niche(0.3), niche(0.3), advance="T", fit_every=250)
    feed(curriculum, [(-1, -1)] * 249, [0.0] * 249)
    assert curriculum.stage == 0
    feed(curriculum, [(-1, -1)], [0.0])
    assert curriculum.stage == 1
    feed(curriculum, [(-1, -1)] * 250, [0.0] * 250)
    assert (curriculum.stage, curriculum.ended) == (1, False)
    points = {"test_points": ((0.25,), (0.75,)), "test_every": 1}
    fits = (fit(0, 0.5), fit(4, 0.3, 0.4))
    Classroom(tmp_path, UNIT, TESTS).add(trace([[0, 0], [1, 1]], fits=fits))
    pooled = Again(UNIT, classroom=str(tmp_path), advance="P", **points)
    feed(pooled, [(-1, -1)], [0.0])
    pooled.observe(tt.Outcomes.of(UNIT, TESTS, reward=[0.0, 0.0]), probe=True)
    assert [n.mean_KQ[:, -1].tolist() for n in pooled.niches] == [[0.5, 0.3, 0.4]]


# --- whole runs


def test_without_the_live_mixture(tmp_path: Path) -> None:
    """Niches alone, and after fit_every episodes at the last one the live mixture alone, with a tenth of uniform tasks."""
    curriculum = with_niches(niche(0.3), niche(0.4), live=False, fit_every=5, max_components=2, random_share=0.0, returns=1)
    curriculum.mean_KQ, curriculum.cov_KQQ = np.array([[0.9, 1.0]]), 1e-4 * np.eye(2)[None]
    assert curriculum._pool()[2].tolist() == [0.3]
    feed(curriculum, [(0, 0)], [0.5])  # reaches the target
    assert (curriculum.stage, curriculum._pool()[2].tolist(), curriculum.uniform_share) == (1, [0.4], 0.0)
    curriculum.propose(5)
    assert (curriculum.open_origin_P3[:, 0] == 1).all()
    feed(curriculum, [(1, 0)] * 3, [0.9] * 3)
    assert (curriculum.ended, curriculum.follows) == (True, True)
    curriculum.niches[1] = niche(0.4)
    feed(curriculum, [(1, 0)] * 2, [0.0] * 2)
    assert (curriculum.follows, curriculum.uniform_share) == (False, 0.1)
    curriculum.propose(50)
    assert set(curriculum.open_origin_P3[5:, 0]) == {-1}


def test_the_choice_of_an_expert(tmp_path: Path) -> None:
    room = Classroom(tmp_path, UNIT, TESTS)
    low = room.add(trace([[0, 0], [0.5, 0]]))
    high = room.add(trace([[1, 1], [1, 1]], fits=(fit(4, 0.5, 0.6),)))
    hyper: dict[str, Any] = {"classroom": str(tmp_path), "test_points": ((0.25,), (0.75,)), "test_every": 1, "nearest": 1}

    def chosen(scores: list[float], **more: Any) -> str:
        curriculum = Again(UNIT, **{**hyper, **more})
        feed(curriculum, [(-1, -1)], [0.0])
        wants = curriculum.wants()
        assert wants is not None
        assert (wants.rows_N.tolist(), wants.attempts) == ([[0.25], [0.75]], 1)
        curriculum.observe(tt.Outcomes.of(UNIT, wants.rows_N[::-1], reward=scores[::-1]), probe=True)
        assert curriculum.uniform_share == (0.02 if curriculum.expert else 0.1)
        return curriculum.expert

    assert chosen([0.1, 0.0]) == low
    assert chosen([0.9, 1.0]) == high
    assert chosen([0.1, 0.0], nearest=5) == high  # among both, it ended better
    assert chosen([0.5, 0.5], max_distance=0.3) == ""
    assert chosen([0.9, 0.9], max_distance=0.3) == high
    assert chosen([0.9, 0.9], pretest_epochs=2) == ""
    assert {chosen([0.9, 0.9], select="random", seed=seed) for seed in range(8)} == {low, high}


def test_alone_it_is_alp_gmm() -> None:
    """Without a classroom, the rows, fits and progress are those of ALP-GMM on the same episodes."""
    student = GriddedStudent(cells=4)
    curriculum = Again(student.space, seed=0, fit_every=50, max_components=3)
    lessons = teach(curriculum, student, 30)
    plain = tt.curriculum("alp-gmm", student.space, seed=0, fit_every=50, max_components=3)
    for points_ND, reward_N in zip(lessons, np.split(curriculum.reward_M, 30), strict=True):
        plain._learn(points_ND, reward_N)
    assert np.array_equal(plain.row_MQ, curriculum.row_MQ)
    assert len(curriculum.fits) == 6
    assert set(curriculum.origin_M[:50]) == {-1}
    assert (curriculum.origin_M[50:] >= 0).mean() > 0.8


def test_a_preliminary_run_serves_the_next_student(tmp_path: Path) -> None:
    hyper: dict[str, Any] = {**SMALL, "classroom": str(tmp_path / "room"), "least_progress": 0.0}
    student = GriddedStudent(cells=4)
    first = Again(student.space, seed=0, **SMALL)
    teach(first, student, 60)
    fits = first.trace.fits
    assert len(fits) == 30
    assert first.trace.kc_ET.shape == (14, 8)
    with pytest.raises(tt.TutelageError, match="no classroom to enrol in"):
        first.enrol()
    room = Classroom(tmp_path / "room", student.space, first.test_TD)
    made = Trace(
        first.test_TD, first.kc_ET, 20, tuple(Fit(f.episode, np.add(f.mean_KQ, [0, 0, 0.5]), f.cov_KQQ) for f in fits), *origins(first)
    )
    name = room.add(made)
    assert name is not None
    student = GriddedStudent(cells=4)
    second = Again(student.space, seed=1, **hyper)
    teach(second, student, 6)
    assert second.expert == name
    assert second.metrics["niches"] > 10
    save_state(tmp_path / "state.npz", second.state_dict())
    room.add(trace([[0] * 8, [1] * 8], tests=first.test_TD))
    resumed = Again(student.space, seed=1, **hyper)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    twin = GriddedStudent(cells=4)
    twin.competence_C = student.competence_C.copy()
    for one, other in zip(teach(second, student, 30), teach(resumed, twin, 30), strict=True):
        assert np.array_equal(one, other)
    assert second.metrics == resumed.metrics
    assert len(resumed.students) == 1


def origins(curriculum: Again) -> tuple[np.ndarray, np.ndarray]:
    return curriculum.reward_M, curriculum.origin_M


def test_the_battery_with_an_expert(tmp_path: Path) -> None:
    """Every run of the battery takes up an expert after its first lesson."""
    space = make_space()
    test_TD = space.low_D + np.array([[0.2], [0.8]]) * space.range_D
    fits = tuple(
        Fit(e, np.array([[*space.low_D + at * space.range_D, 0.5]]), np.diag([0.01, 0.01, 0.001])[None]) for e, at in ((0, 0.3), (4, 0.6))
    )
    run = Trace(test_TD, np.array([[0.0, 0], [1, 1]]), 4, fits, np.full(8, 0.4), np.zeros(8, dtype=np.int64))
    assert Classroom(tmp_path, space, test_TD).add(run)

    def build(given: tt.TaskSpace, seed: int) -> tt.Curriculum:
        same = tt.TaskSpace.of(given).fingerprint == space.fingerprint
        hyper = {**SMALL, "classroom": str(tmp_path), "test_points": tuple(map(tuple, test_TD)), "test_every": 10} if same else SMALL
        return Again(given, seed=seed, **hyper)

    curriculum = build(space, 0)
    curriculum.propose(10)
    check_space_curriculum(build)


def test_answers_that_were_not_asked_for() -> None:
    curriculum = Again(UNIT, test_points=((0.25,), (0.75,)), test_every=1)
    answer = tt.Outcomes.of(UNIT, TESTS, reward=[0.0, 1.0])
    with pytest.raises(tt.TutelageError, match="has asked nothing"):
        curriculum.observe(answer, probe=True)
    feed(curriculum, [(-1, -1)], [0.0])
    for wrong in (answer.take(np.array([0])), tt.Outcomes.of(UNIT, TESTS), tt.Outcomes.of(UNIT, TESTS / 2, reward=[0.0, 1.0])):
        with pytest.raises(tt.TutelageError, match="returns of its 2 test tasks"):
            curriculum.observe(wrong, probe=True)
    assert not len(curriculum.kc_ET)


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"returns": 0}, "returns must be at least 1"),
        ({"tolerance": float("nan")}, "tolerance must be finite"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"end_random": 1.5}, "end_random must lie in"),
        ({"max_distance": -1.0}, "max_distance must be at least 0"),
        ({"advance": "Q"}, "advance='Q' does not fit"),
        ({"test_points": ((2.0,),)}, "test_points row 0: x0 is 2.0, outside"),
        ({"fit_every": 5}, "components must run from"),
    ],
)
def test_bad_settings(hyper: dict[str, Any], told: str) -> None:
    with pytest.raises(tt.TutelageError, match=told):
        tt.curriculum("again", UNIT, **hyper)
