"""SPDL, case by case: Gaussians in closed form, one step by hand, updates, queries of the critic, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

import tutelage as tt
from tutelage.curricula._gaussian import Gaussian
from tutelage.curricula.self_paced import SelfPaced, alpha_of, conjugate_gradient, natural_step
from tutelage.state import load_state, save_state

UNIT = tt.TaskSpace([0.0], [1.0])
WIDE = tt.TaskSpace([-1.0, 2.0], [3.0, 10.0])


def gaussian(mean: list[float], root: list[list[float]]) -> Gaussian:
    return Gaussian(np.array(mean), np.array(root))


SKEW = gaussian([0.3, -0.2, 1.0], [[0.5, 0, 0], [0.2, 1.5, 0], [-0.7, 0.1, 0.8]])
OTHER = gaussian([0.0, 0.4, 0.5], [[1.0, 0, 0], [-0.3, 0.6, 0], [0.2, 0.5, 2.0]])


# --- Gaussians


def test_flat_cholesky_by_hand() -> None:
    root_DD = np.linalg.cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
    flat_P = Gaussian(np.array([7.0, 8.0]), root_DD).flat_P
    np.testing.assert_allclose(flat_P, [7.0, 8.0, np.log(2), np.log(2), 1.0])
    np.testing.assert_allclose(Gaussian.of_flat(flat_P, 2).root_DD, [[2.0, 0.0], [1.0, 2.0]])


def test_divergences_by_hand() -> None:
    standard = gaussian([0.0], [[1.0]])
    assert standard.kl(gaussian([1.0], [[1.0]])) == pytest.approx(0.5)
    assert standard.kl(gaussian([0.0], [[2.0]])) == pytest.approx(np.log(2) + 1 / 8 - 1 / 2)
    assert standard.kl(standard) == 0.0


def test_densities_are_scipys() -> None:
    x_ND = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(SKEW.log_prob(x_ND), multivariate_normal(SKEW.mean_D, SKEW.root_DD @ SKEW.root_DD.T).logpdf(x_ND))


def test_gradients_are_those_of_finite_differences() -> None:
    x_ND = np.random.default_rng(0).normal(size=(4, 3))
    for row in range(4):
        numeric_P = approx_fprime(SKEW.flat_P, lambda p_P, row=row: Gaussian.of_flat(p_P, 3).log_prob(x_ND)[row], 1e-7)
        np.testing.assert_allclose(SKEW.score(x_ND)[row], numeric_P, rtol=1e-4, atol=1e-5)
    numeric_P = approx_fprime(SKEW.flat_P, lambda p_P: Gaussian.of_flat(p_P, 3).kl(OTHER), 1e-7)
    np.testing.assert_allclose(SKEW.kl_gradient(OTHER), numeric_P, rtol=1e-4, atol=1e-5)


def test_the_fisher_information_is_the_hessian_of_kl() -> None:
    """KL(p || p') rises as half the quadratic form; by central second differences, every pair of parameters."""
    flat_P, h = SKEW.flat_P, 1e-4
    eye_PP = h * np.eye(len(flat_P))

    def kl(change_P: np.ndarray) -> float:
        return SKEW.kl(Gaussian.of_flat(flat_P + change_P, 3))

    hessian_PP = [[(kl(a + b) - kl(a - b) - kl(b - a) + kl(-a - b)) / (4 * h * h) for b in eye_PP] for a in eye_PP]
    np.testing.assert_allclose(SKEW.fisher(), hessian_PP, rtol=1e-3, atol=1e-4)


def test_the_score_has_the_fisher_information_as_covariance() -> None:
    x_ND = SKEW.mean_D + np.random.default_rng(0).standard_normal((200_000, 3)) @ SKEW.root_DD.T
    score_NP = SKEW.score(x_ND)
    np.testing.assert_allclose(score_NP.T @ score_NP / len(x_ND), SKEW.fisher(), atol=0.15)


# --- one step


def test_conjugate_gradients_solve() -> None:
    b_P = np.arange(1.0, 10.0)
    matrix_PP = SKEW.fisher() + 0.01 * np.eye(9)
    np.testing.assert_allclose(conjugate_gradient(matrix_PP, b_P), np.linalg.solve(matrix_PP, b_P), rtol=1e-5, atol=1e-6)


def test_alpha_by_hand() -> None:
    assert alpha_of(4.0, 2.0, 0.25) == 0.5
    assert alpha_of(-1.0, 2.0, 0.25) == 0.0
    assert alpha_of(4.0, 0.0, 0.25) == 1e5


def test_a_step_to_a_far_target_has_the_length_of_the_trust_region() -> None:
    """Equal spreads: only the mean moves. Damped, x = g / (1 / s^2 + d), so the full step is sqrt(2 max_kl / (1 / s^2 + d))."""
    old, target = gaussian([0.0], [[0.5]]), gaussian([100.0], [[0.5]])
    new = natural_step(old, -old.kl_gradient(target), lambda g: -g.kl(target), 0.08)
    assert new.mean_D[0] == pytest.approx(np.sqrt(0.16 / 4.01))
    assert new.root_DD[0, 0] == pytest.approx(0.5)
    assert old.kl(new) == pytest.approx(0.08 * 4 / 4.01)


def test_a_near_target_is_not_overshot() -> None:
    """The full step, 0.5, would pass the target and end farther off; half of it does not."""
    old, target = gaussian([0.0], [[1.0]]), gaussian([0.2], [[1.0]])

    def objective(g: Gaussian) -> float:
        return -g.kl(target)

    new = natural_step(old, -old.kl_gradient(target), objective, 0.125)
    assert new.mean_D[0] == pytest.approx(np.sqrt(0.25 / 1.01) / 2)
    released = natural_step(old, -old.kl_gradient(target), objective, 0.125, either=True)
    assert released.mean_D[0] == pytest.approx(np.sqrt(0.25 / 1.01))


def test_no_gradient_no_step_and_an_unacceptable_one_is_left() -> None:
    old = gaussian([0.0], [[1.0]])
    assert natural_step(old, np.zeros(2), lambda g: 0.0, 0.1) is old
    assert natural_step(old, np.ones(2), lambda g: -float(np.abs(g.flat_P).max()), 0.1) is old
    assert natural_step(old, np.ones(2), lambda g: float("nan"), 0.1) is old


# --- the curriculum


def teach(curriculum: tt.Curriculum, space: tt.TaskSpace, lessons: int, best_D: np.ndarray, *, n: int = 20) -> None:
    for _ in range(lessons):
        wants = curriculum.wants()
        if wants is not None:
            value_N = 1 - np.abs((wants.rows_N - best_D) / space.range_D).sum(axis=1)
            curriculum.observe(tt.Outcomes.of(space, wants.rows_N, signals={"value": value_N}), probe=True)
        points_ND = curriculum.propose(n)
        curriculum.observe(tt.Outcomes.of(space, points_ND, reward=1 - np.abs((points_ND - best_D) / space.range_D).sum(axis=1)))


def test_the_first_gaussians() -> None:
    drawn = SelfPaced(WIDE, seed=3)
    assert ((drawn.gaussian.mean_D > 0) & (drawn.gaussian.mean_D < 1)).all()
    np.testing.assert_allclose(drawn.gaussian.root_DD, 0.1 * np.eye(2))
    np.testing.assert_allclose([*drawn.target.mean_D, *np.diag(drawn.target.root_DD)], [0.5, 0.5, 0.25, 0.25])
    given = SelfPaced(WIDE, initial_mean=(1.0, 4.0), initial_std=(0.4, 0.4), target_mean=(3.0, 10.0), target_std=(2.0, 2.0))
    np.testing.assert_allclose(given.gaussian.flat_P, [0.5, 0.25, np.log(0.1), np.log(0.05), 0.0])
    np.testing.assert_allclose(given.target.flat_P, [1.0, 1.0, np.log(0.5), np.log(0.25), 0.0])


def test_draws_follow_the_gaussian_and_are_clipped() -> None:
    curriculum = SelfPaced(WIDE, initial_mean=(1.0, 4.0), initial_std=(0.4, 0.8))
    points_ND = curriculum.propose(20_000)
    np.testing.assert_allclose(points_ND.mean(axis=0), [1.0, 4.0], atol=0.03)
    np.testing.assert_allclose(points_ND.std(axis=0), [0.4, 0.8], rtol=0.03)
    corner = SelfPaced(WIDE, initial_mean=(-1.0, 2.0))
    assert (corner.propose(1000) == WIDE.low_D).any(axis=0).all()


def test_an_update_by_hand() -> None:
    """Two contexts one deviation either side; values 0 and 1, alpha 0: mean and spread follow g = (1 / s, 0) / 2 in (mean, log s)."""
    curriculum = SelfPaced(UNIT, initial_mean=(0.5,), initial_std=(0.1,), update_every=2, update_offset=2, zeta=0.0, max_kl=0.02)
    curriculum._learn(np.array([[0.4]]), np.array([0.0]))
    before_P = curriculum.flat_P.copy()
    curriculum._learn(np.array([[0.6]]), np.array([1.0]))
    step_P = curriculum.flat_P - before_P
    assert step_P[0] == pytest.approx(np.sqrt(0.04 / 100.01))
    assert step_P[1] == pytest.approx(0.0, abs=1e-12)
    assert curriculum.metrics["updates"] == 1.0
    assert not len(curriculum.context_MD)


def test_alpha_waits_and_then_pulls() -> None:
    curriculum = SelfPaced(UNIT, initial_mean=(0.1,), update_every=10, update_offset=20, alpha_offset=3, zeta=0.5, max_kl=0.1)
    alphas = []
    for _ in range(5):
        kl = curriculum.metrics["kl_to_target"]
        curriculum._learn(curriculum.propose(10), np.ones(10))
        alphas.append((curriculum.updates, curriculum.alpha, 0.5 / kl))
    assert [a[0] for a in alphas] == [0, 1, 2, 3, 4]
    assert [a[1] for a in alphas[:3]] == [0.0, 0.0, 0.0]
    assert [a[1] for a in alphas[3:]] == [pytest.approx(a[2]) for a in alphas[3:]]


def test_it_reaches_its_target_when_all_is_well() -> None:
    curriculum = SelfPaced(WIDE, initial_mean=(-0.5, 3.0), update_every=20, update_offset=20, zeta=1.0, max_kl=0.2)
    start = curriculum.metrics["kl_to_target"]
    for _ in range(40):
        points_ND = curriculum.propose(20)
        curriculum.observe(tt.Outcomes.of(WIDE, points_ND, reward=np.ones(20)))
    assert start > 3
    assert curriculum.metrics["kl_to_target"] < 0.2


def test_the_floor_holds_until_the_target_is_near() -> None:
    hyper: dict[str, Any] = {"initial_mean": (0.2,), "update_every": 20, "update_offset": 20, "zeta": 0.0}
    floored, free = SelfPaced(UNIT, std_floor=0.08, floor_kl=0.01, **hyper), SelfPaced(UNIT, **hyper)
    teach(floored, UNIT, 12, np.array([0.2]))
    teach(free, UNIT, 12, np.array([0.2]))
    assert floored.metrics["std_mean"] == pytest.approx(0.08)
    assert free.metrics["std_mean"] < 0.06


def test_queries_wait_for_their_answer() -> None:
    curriculum = SelfPaced(WIDE, update_every=20, update_offset=20, values="query")
    assert curriculum.wants() is None
    teach(curriculum, WIDE, 1, WIDE.low_D)
    wants = curriculum.wants()
    assert wants is not None
    assert wants.rows_N.shape == (20, 2)
    assert (wants.attempts, wants.signals) == (0, ("value",))
    before = curriculum.state_dict()
    for points_ND, signals, told in [
        (wants.rows_N, {}, "needs the signal 'value'"),
        (wants.rows_N, {"value": np.full(20, np.nan)}, "one finite number per context"),
        (wants.rows_N[:5], {"value": np.zeros(5)}, "20 contexts and got an answer of 5"),
        (wants.rows_N * 0 + WIDE.low_D, {"value": np.zeros(20)}, "are not these"),
    ]:
        with pytest.raises(tt.TutelageError, match=told):
            curriculum.observe(tt.Outcomes.of(WIDE, points_ND, signals=signals), probe=True)
    assert curriculum.updates == before["memory"]["updates"] == 0
    twin = SelfPaced(WIDE, update_every=20, update_offset=20, values="query")
    twin.load_state_dict(before)
    value_N = wants.rows_N[:, 0]
    curriculum.observe(tt.Outcomes.of(WIDE, wants.rows_N, signals={"value": value_N}), probe=True)
    twin.observe(tt.Outcomes.of(WIDE, wants.rows_N[::-1], signals={"value": value_N[::-1]}), probe=True)
    assert curriculum.updates == 1
    assert curriculum.wants() is None
    assert np.array_equal(curriculum.flat_P, twin.flat_P)
    assert curriculum.gaussian.mean_D[0] > Gaussian.of_flat(np.array(before["memory"]["flat_P"]), 2).mean_D[0]


def test_who_has_asked_nothing_takes_no_answer() -> None:
    for curriculum in (SelfPaced(WIDE), tt.curriculum("random", WIDE)):
        points_ND = curriculum.propose(2)
        with pytest.raises(tt.TutelageError, match="has asked nothing"):
            curriculum.observe(tt.Outcomes.of(WIDE, points_ND, reward=[0.0, 1.0]), probe=True)


@pytest.mark.parametrize("values", ["returns", "query"])
def test_a_long_run_resumes_exactly(values: Any, tmp_path: Path) -> None:
    hyper: dict[str, Any] = {"seed": 1, "update_every": 30, "update_offset": 50, "values": values, "zeta": 0.5}
    whole = SelfPaced(WIDE, **hyper)
    teach(whole, WIDE, 11, WIDE.low_D)
    save_state(tmp_path / "state.npz", whole.state_dict())
    resumed = SelfPaced(WIDE, **hyper)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    for curriculum in (whole, resumed):
        teach(curriculum, WIDE, 9, WIDE.low_D)
    assert np.array_equal(whole.propose(5), resumed.propose(5))
    assert whole.metrics == resumed.metrics
    assert whole.metrics["updates"] > 3


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"update_every": 0}, "update_every and buffer must be at least 1"),
        ({"zeta": -1.0}, "zeta at least 0"),
        ({"max_kl": 0.0}, "max_kl and std_floor above 0"),
        ({"std_floor": 0.0}, "std_floor=0.0"),
        ({"values": "critic"}, "values='critic' does not fit"),
        ({"initial_mean": (9.0, 3.0)}, "initial_mean row 0: x0 is 9.0, outside"),
        ({"initial_mean": (1.0,)}, "initial_mean has shape"),
        ({"target_std": (1.0, 0.0)}, "target_std needs one finite number above 0"),
        ({"target_std": (1.0,)}, "target_std needs one finite number above 0"),
    ],
)
def test_bad_settings(hyper: dict[str, Any], told: str) -> None:
    with pytest.raises(tt.TutelageError, match=told):
        tt.curriculum("self-paced", WIDE, **hyper)
