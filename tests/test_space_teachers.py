"""The teachers over spaces, case by case: published formulas by hand, and the toy on which they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.mixture import GaussianMixture

import tutelage as tt
from tutelage.curricula._draws import proportional
from tutelage.curricula._mixtures import criterion_of, fit_mixture, parameter_count
from tutelage.curricula._progress import AbsoluteLearningProgress
from tutelage.curricula.adr import ADR
from tutelage.curricula.alp_gmm import ALPGMM
from tutelage.curricula.covar_gmm import CovarGMM
from tutelage.curricula.riac import RIAC, learning_progress
from tutelage.state import load_state, save_state
from tutelage.students.gridded import GriddedStudent

UNIT = tt.TaskSpace([0.0], [1.0])
SQUARE = tt.TaskSpace([0.0, 0.0], [1.0, 1.0])


def teach(curriculum: tt.Curriculum, student: GriddedStudent, episodes: int, *, batch: int = 8) -> float:
    """What the student has mastered after `episodes`."""
    for _ in range(episodes // batch):
        points_ND = curriculum.propose(batch)
        curriculum.observe(tt.Outcomes.of(student.space, points_ND, reward=student.attempt(points_ND)))
    return student.mastered


# --- absolute learning progress


def test_progress_by_hand() -> None:
    progress = AbsoluteLearningProgress(1)
    assert [progress.observe(np.array([x]), 0.0) for x in (0, 0.1, 0.2, 0.3, 0.4, 0.5)] == [0.0] * 6
    assert progress.observe(np.array([0.52]), 0.8) == pytest.approx(0.8)
    assert progress.observe(np.array([0.53]), 0.9) == pytest.approx(0.1)


def test_progress_is_that_of_a_full_search() -> None:
    rng = np.random.default_rng(0)
    task_MD, reward_M = rng.random((1700, 3)), rng.random(1700)
    progress = AbsoluteLearningProgress(3)
    for m, (task_D, reward) in enumerate(zip(task_MD, reward_M, strict=True)):
        got = progress.observe(task_D, float(reward))
        if m >= 6:
            nearest = np.argmin(((task_MD[:m] - task_D) ** 2).sum(axis=1))
            assert got == abs(reward - reward_M[nearest])
    again = AbsoluteLearningProgress(3)
    again.pairs = progress.pairs
    for task_D in rng.random((50, 3)):
        assert again.observe(task_D, 0.5) == progress.observe(task_D, 0.5)


@pytest.mark.parametrize("most", [1, 1024])
def test_progress_of_a_bounded_history(most: int) -> None:
    """Whole blocks of 512, and the one under way; a store that is cut and restored answers alike."""
    rng = np.random.default_rng(0)
    task_MD, reward_M = rng.random((3000, 2)), rng.random(3000)
    progress, blocks = AbsoluteLearningProgress(2, most=most), 512 * -(-most // 512)
    for m, (task_D, reward) in enumerate(zip(task_MD, reward_M, strict=True)):
        first = max(0, m - m % 512 - blocks) if m >= 512 else 0
        got = progress.observe(task_D, float(reward))
        if m >= 6:
            assert got == abs(reward - reward_M[first + np.argmin(((task_MD[first:m] - task_D) ** 2).sum(axis=1))])
    assert len(progress.pairs) == blocks + 3000 % 512
    again = AbsoluteLearningProgress(2, most=most)
    again.pairs = progress.pairs
    for task_D in rng.random((700, 2)):
        assert again.observe(task_D, 0.5) == progress.observe(task_D, 0.5)


def test_proportional_choice() -> None:
    assert proportional(np.array([0.0, 0.0])).tolist() == [0.5, 0.5]
    assert proportional(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert proportional(np.array([0.0, 2.0])).tolist() == [0.0, 1.0]


# --- mixtures


def test_parameters_and_criteria() -> None:
    assert [parameter_count(k, 3) for k in (1, 2, 5)] == [9, 19, 49]
    assert criterion_of(-100.0, 250, 19, "aic") == 238.0
    assert criterion_of(-100.0, 250, 19, "aicc") == pytest.approx(238.0 + 2 * 19 * 20 / 230)
    assert criterion_of(-100.0, 20, 19, "aicc") == np.inf
    assert criterion_of(-100.0, 250, 19, "bic") == pytest.approx(19 * np.log(250) + 200)


@pytest.mark.parametrize("criterion", ["aic", "bic"])
@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_scikit_learns(criterion: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs_MQ = np.concatenate([rng.normal(c, 0.05, (60, 2)) for c in (0.0, 1.0, 2.0)])
    row_MQ = blobs_MQ if seed < 2 else np.column_stack([rng.random((250, 3)), np.maximum(rng.normal(0, 0.1, 250), 0)])
    fitted = fit_mixture(row_MQ, range(1, 6), criterion, np.random.default_rng(0))
    assert fitted is not None
    states = np.random.default_rng(0)
    fits = [GaussianMixture(k, random_state=int(states.integers(2**31))).fit(row_MQ) for k in range(1, 6)]
    best = fits[int(np.argmin([getattr(fit, criterion)(row_MQ) for fit in fits]))]
    np.testing.assert_allclose(fitted[0], best.means_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted[1], best.covariances_, rtol=1e-6, atol=1e-9)
    m, q = row_MQ.shape
    mine = [criterion_of(f.score(row_MQ) * m, m, parameter_count(k, q), criterion) for k, f in enumerate(fits, 1)]
    np.testing.assert_allclose(mine, [getattr(fit, criterion)(row_MQ) for fit in fits])


def test_rows_without_a_mixture_keep_the_last_one() -> None:
    """On a face of a vast space the covariance of two coordinates is lost in rounding, whatever the number of components."""
    row_MQ = np.column_stack([np.linspace(0, 1e9, 40), np.linspace(0, 1e9, 40)])
    assert fit_mixture(row_MQ, range(1, 3), "aic", np.random.default_rng(0)) is None
    curriculum = ALPGMM(tt.TaskSpace([0.0], [1e9]), fit_every=40, max_components=2)
    before = curriculum.mean_KQ = np.array([[5.0, 1.0]])
    curriculum.cov_KQQ = np.eye(2)[None]
    curriculum._row = lambda point_D, reward: np.array([point_D[0], point_D[0]])  # type: ignore[method-assign]
    curriculum._learn(row_MQ[:, :1], np.zeros(40))
    assert np.array_equal(curriculum.mean_KQ, before)
    assert curriculum.propose(3).shape == (3, 1)


def test_alp_gmm_bootstraps_uniformly() -> None:
    curriculum = ALPGMM(UNIT, seed=0)
    points_ND = np.concatenate([curriculum.propose(25) for _ in range(10)])
    assert kstest(points_ND[:, 0], "uniform").pvalue > 0.01


def test_alp_gmm_samples_by_mean_progress() -> None:
    curriculum = ALPGMM(UNIT, seed=0, random_share=0.0)
    curriculum.mean_KQ = np.array([[0.2, 0.1], [0.8, 0.3], [0.5, 0.0]])
    curriculum.cov_KQQ = np.tile(1e-8 * np.eye(2), (3, 1, 1))
    share = [np.mean(np.abs(curriculum.propose(4000)[:, 0] - x) < 0.01) for x in (0.2, 0.8, 0.5)]
    np.testing.assert_allclose(share, [0.25, 0.75, 0.0], atol=0.03)
    curriculum.mean_KQ[:, 1] = 0.0
    share = [np.mean(np.abs(curriculum.propose(4000)[:, 0] - x) < 0.01) for x in (0.2, 0.8, 0.5)]
    np.testing.assert_allclose(share, 1 / 3, atol=0.03)


def test_alp_gmm_fits_the_last_window() -> None:
    curriculum = ALPGMM(UNIT, seed=0, fit_every=20, max_components=2)
    curriculum._learn(np.linspace(0, 1, 19)[:, None], np.zeros(19))
    assert not len(curriculum.mean_KQ)
    curriculum._learn(np.linspace(0, 1, 8)[:, None], np.ones(8))
    assert len(curriculum.mean_KQ) == 2
    assert curriculum.row_MQ.shape == (20, 2)
    assert curriculum.row_MQ[-1].tolist() == [1.0, 1.0]  # failed before, succeeds now
    assert curriculum.episodes == 27
    curriculum._learn(np.array([[1.0]]), np.ones(1))
    assert curriculum.row_MQ[-1].tolist() == [1.0, 0.0]  # the latest of equal neighbours counts


def test_reward_range_maps_and_clips() -> None:
    curriculum = CovarGMM(UNIT, seed=0, reward_range=(-150.0, 350.0))
    points_ND = curriculum.propose(3)
    curriculum.observe(tt.Outcomes.of(UNIT, points_ND, reward=[-200.0, 100.0, 400.0]))
    assert curriculum.row_MQ[:, -1].tolist() == [0.0, 0.5, 1.0]


def test_covar_gmm_time_and_utility() -> None:
    curriculum = CovarGMM(UNIT, seed=0, fit_every=4, max_components=2)
    curriculum._learn(np.full((7, 1), 0.5), np.arange(7.0))
    assert curriculum.row_MQ[:, 1].tolist() == [0.75, 0.0, 0.25, 0.5]
    for absolute, expected in ((False, [0.0, 2.0]), (True, [1.0, 2.0])):
        curriculum = CovarGMM(UNIT, seed=0, absolute=absolute)
        curriculum.cov_KQQ = np.stack([np.eye(3), np.eye(3)])
        curriculum.cov_KQQ[:, 1, 2] = [-1.0, 2.0]
        assert curriculum._utility_K().tolist() == expected


# --- RIAC


def test_riac_progress_by_hand() -> None:
    assert learning_progress(np.array([0, 0, 1, 1]), 200) == 1.0
    assert learning_progress(np.array([0, 1, 0, 1, 0]), 200) == pytest.approx(1 / 6)
    assert learning_progress(np.array([0.0, 1.0]), 200) == 0.0
    assert learning_progress(np.array([9.0, 0, 0, 1, 1]), 4) == 1.0


def test_riac_splits_where_progress_differs() -> None:
    curriculum = RIAC(UNIT, seed=0, window=40)
    rng = np.random.default_rng(0)
    points_ND = rng.random((41, 1))
    reward_N = np.where((points_ND[:, 0] > 0.5) & (np.arange(41) > 20), 1.0, 0.0)
    curriculum._learn(points_ND[:40], reward_N[:40])
    assert len(curriculum.regions) == 1
    curriculum._learn(points_ND[40:], reward_N[40:])
    root, left, right = curriculum.regions
    assert root.children == (1, 2)
    assert root.cut[1] == pytest.approx(0.5, abs=0.15)
    assert right.progress > left.progress
    assert (left.low_D[0], left.high_D[0], right.high_D[0]) == (0.0, root.cut[1], 1.0)
    assert sorted(p[1] for r in (left, right) for p in r.pairs) == sorted(points_ND[:, 0])
    assert all(p[1] <= root.cut[1] for p in left.pairs)
    assert len(root.pairs) == 41


def test_riac_scores() -> None:
    """A narrow slice of high gap wins as released; the published score prefers the broad one."""
    points_ND = np.linspace(0.0, 1.0, 41)[:, None]
    reward_N = np.zeros(41)
    reward_N[39:] = 5.0  # only the last few, all late: a high gap at the right edge
    cuts = {}
    for score in ("alp_gap", "population"):
        curriculum = RIAC(UNIT, seed=0, window=40, score=score, attempts=200)
        curriculum._learn(points_ND, reward_N)
        cuts[score] = curriculum.regions[0].cut[1]
    assert cuts["alp_gap"] > cuts["population"]


def test_riac_without_a_valid_cut_drops_the_oldest_quarter() -> None:
    curriculum = RIAC(UNIT, seed=0, window=40)
    curriculum._learn(np.full((41, 1), 0.5), np.arange(41.0))  # one point: no cut has pairs on both sides
    assert len(curriculum.regions) == 1
    assert [p[0] for p in curriculum.regions[0].pairs] == list(range(10, 41))


def test_riac_smallest_side() -> None:
    curriculum = RIAC(SQUARE, seed=0, window=12, min_side=0.2)
    teach(curriculum, GriddedStudent(), 2000)
    sides_RD = np.array([region.high_D - region.low_D for region in curriculum.regions])
    assert len(sides_RD) > 5
    assert sides_RD.min() >= 0.2 - 1e-12


def test_riac_mutates_the_worst_task_of_a_region() -> None:
    curriculum = RIAC(UNIT, seed=0, mutation_share=1.0, random_share=0.0, mutation_noise=1e-4)
    curriculum._learn(np.array([[0.2], [0.7], [0.4]]), np.array([1.0, 0.1, 0.6]))
    assert np.abs(curriculum.propose(50) - 0.7).max() < 1e-3


# --- ADR


def adr(**hyper: Any) -> ADR:
    return ADR(UNIT, seed=0, **({"low": 0.2, "high": 0.8, "initial": (0.5,), "step": 0.1, "queue": 2} | hyper))


def test_adr_by_hand() -> None:
    curriculum = adr()
    curriculum._learn(np.array([[0.5], [0.5]]), np.array([0.9, 0.9]))
    assert (curriculum.low_D[0], curriculum.high_D[0]) == (0.4, 0.6)
    curriculum._learn(np.array([[0.6], [0.6]]), np.array([0.1, 0.1]))
    assert (curriculum.low_D[0], curriculum.high_D[0]) == (0.4, 0.5)
    curriculum._learn(np.array([[0.5], [0.5]]), np.array([0.5, 0.5]))
    assert (curriculum.low_D[0], curriculum.high_D[0]) == (0.4, 0.5)
    assert curriculum.count_2D.tolist() == [[0], [0]]


def test_adr_stays_in_the_space_and_its_faces_do_not_cross() -> None:
    curriculum = adr(step=0.4)
    for _ in range(3):
        curriculum._learn(np.repeat(curriculum.high_D[None], 2, axis=0), np.ones(2))
    assert curriculum.high_D[0] == 1.0
    for _ in range(5):
        curriculum._learn(np.repeat(curriculum.high_D[None], 2, axis=0), np.zeros(2))
    assert curriculum.high_D[0] == curriculum.low_D[0]


def test_adr_puts_tasks_on_faces() -> None:
    curriculum = adr(boundary_share=0.6)
    curriculum.low_D[:], curriculum.high_D[:] = 0.25, 1.0
    points_ND = curriculum.propose(4000)
    assert np.mean(points_ND == 0.25) == pytest.approx(0.3, abs=0.03)
    assert np.mean(points_ND == 1.0) == pytest.approx(0.3, abs=0.03)  # a face at its bound too
    curriculum.low_D[:] = 0.0  # the whole space: nothing left to grow
    assert np.mean(np.isin(curriculum.propose(1000), (0.0, 1.0))) == 0.0


def test_adr_relative_step() -> None:
    curriculum = ADR(tt.TaskSpace([0.0, 0.0], [10.0, 1.0]), queue=1, high=1.0, relative_step=True)
    curriculum._learn(np.array([[5.0, 0.5]]), np.array([1.0]))
    np.testing.assert_allclose([curriculum.low_D, curriculum.high_D], [[4.0, 0.4], [6.0, 0.6]])


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("adr", {"initial": (2.0,)}, r"adr: initial row 0: x0 is 2.0, outside \[0.0, 1.0\]"),
        ("adr", {"low": 3.0, "high": 2.0}, "low must lie below high"),
        ("adr", {"step": float("nan")}, "step be above 0"),
        ("oracle", {"threshold": float("nan")}, "threshold must be finite"),
        ("riac", {"mutation_noise": float("nan")}, "mutation_noise finite and at least 0"),
        ("riac", {"random_share": float("nan")}, "mutation_share and random_share"),
        ("alp-gmm", {"history": 0}, "history must be at least 1"),
        ("oracle", {"step": (0.1, 0.1)}, "step needs one finite number for each of x0"),
        ("oracle", {"width": 0.0}, "width must lie in"),
        ("riac", {"discard": 0.0}, "discard"),
        ("riac", {"mutation_share": 0.9}, "mutation_share and random_share"),
        ("riac", {"score": "populatio"}, "populatio"),
        ("alp-gmm", {"min_components": 5, "max_components": 2}, "min_components"),
        ("alp-gmm", {"random_share": 1.5}, "random_share"),
        ("alp-gmm", {"criterion": "aci"}, "criterion"),
        ("covar-gmm", {"reward_range": (1.0, 0.0)}, "reward_range must be finite, low before high"),
        ("alp-gmm", {"fit_evry": 3}, "Did you mean 'fit_every'"),
    ],
)
def test_bad_hyperparameters(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(tt.TutelageError, match=message):
        tt.curriculum(name, UNIT, **hyper)


# --- Oracle


def test_oracle_by_hand() -> None:
    space = tt.TaskSpace([0.0, 0.0], [3.0, 6.0])
    curriculum = tt.curriculum("oracle", space, step=(0.1, -0.2))
    assert curriculum.width_D.tolist() == [0.5, 1.0]
    assert curriculum.corner_D.tolist() == [0.0, 5.0]
    inside_ND = curriculum.propose(500)
    assert inside_ND.min(axis=0).tolist() >= [0.0, 5.0]
    assert inside_ND.max(axis=0).tolist() <= [0.5, 6.0]
    curriculum._learn(inside_ND[:50], np.full(50, 231.0))
    np.testing.assert_allclose(curriculum.corner_D, [0.1, 4.8])
    curriculum._learn(inside_ND[:50], np.full(50, 230.0))
    np.testing.assert_allclose(curriculum.corner_D, [0.1, 4.8])
    for _ in range(40):
        curriculum._learn(inside_ND[:50], np.full(50, 300.0))
    assert curriculum.corner_D.tolist() == [2.5, 0.0]
    assert curriculum.metrics == {"progress": 1.0}


# --- long runs


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("alp-gmm", {"fit_every": 100, "max_components": 3}),
        ("covar-gmm", {"fit_every": 100, "max_components": 3}),
        ("riac", {"window": 60}),
    ],
)
def test_a_long_run_resumes_exactly(name: str, hyper: dict[str, Any], tmp_path: Path) -> None:
    """Across fits, splits and the blocks of the store of pairs, cut at an uneven place."""
    student = GriddedStudent(cells=4)
    whole = tt.curriculum(name, student.space, seed=1, **hyper)
    teach(whole, student, 1176)
    save_state(tmp_path / "state.npz", whole.state_dict())
    resumed = tt.curriculum(name, student.space, seed=1, **hyper)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    for _ in range(60):
        points_ND = whole.propose(8)
        assert np.array_equal(points_ND, resumed.propose(8))
        outcomes = tt.Outcomes.of(student.space, points_ND, reward=student.attempt(points_ND))
        whole.observe(outcomes)
        resumed.observe(outcomes)
    assert whole.metrics == resumed.metrics


# --- the toy


def test_the_grid_unlocks() -> None:
    student = GriddedStudent()
    assert student.attempt(np.array([[0.15, 0.15], [0.95, 1.0]])).tolist() == [0.0, 0.0]
    origin_ND = np.full((75, 2), 0.05)
    assert student.attempt(origin_ND)[[0, 74]].tolist() == [0.01, 0.75]
    around_ND = np.array([[0.15, 0.05], [0.05, 0.15], [0.15, 0.15], [0.25, 0.05]])
    assert student.attempt(around_ND).tolist() == [0.01, 0.01, 0.01, 0.0]
    assert student.mastered == 0.0
    student.attempt(origin_ND)
    assert student.attempt(origin_ND[:1]).tolist() == [1.0]
    assert student.mastered == 0.01


def test_what_nobody_can_learn_and_what_does_not_matter() -> None:
    student = GriddedStudent(cells=2, irrelevant=1, unlearnable=0.5)
    assert student.space.dimensions == 3
    student.attempt(np.tile([0.1, 0.1, 0.9], (80, 1)))
    assert student.attempt(np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1]])).tolist() == [0.0, 0.01]
    assert student.mastered == 0.5


@pytest.mark.parametrize("name", ["riac", "alp-gmm", "covar-gmm", "adr"])
def test_teachers_beat_random_on_the_grid(name: str) -> None:
    """Half of the grid is out of reach for ever; every seed of a teacher ends above every seed of Random."""
    hyper: dict[str, dict[str, Any]] = {
        "riac": {"window": 100},
        "adr": {"low": 0.1, "high": 0.5, "initial": (0.0, 0.0)},
        "alp-gmm": {"fit_every": 150, "max_components": 4},
        "covar-gmm": {"fit_every": 150, "max_components": 4},
    }

    def mastered(name: str, seed: int, **hyper: Any) -> float:
        student = GriddedStudent(cells=8, unlearnable=0.5)
        return teach(tt.curriculum(name, student.space, seed=seed, **hyper), student, 4000)

    taught = [mastered(name, seed, **hyper[name]) for seed in range(3)]
    left_alone = [mastered("random", seed) for seed in range(3)]
    assert min(taught) > max(left_alone), (taught, left_alone)
