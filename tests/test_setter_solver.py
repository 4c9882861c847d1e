"""Setter-Solver, case by case: the flow against autograd, losses by hand, the optimiser against torch's, exact resume, the battery."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt
from tutelage.registry import curricula
from tutelage.state import load_state, save_state
from tutelage.testing import OverSpaces, parametrize_with_checks

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm
torch.set_num_threads(1)

from tutelage.curricula.neural._flow import RealNVP, Weights, couplings, softplus_like  # noqa: E402
from tutelage.curricula.neural.setter_solver import Judge, SetterSolver, judge_loss, setter_losses  # noqa: E402

SQUARE = tt.TaskSpace([0.0, 2.0], [1.0, 6.0])
TINY: dict[str, Any] = {"hidden": 4, "blocks": 1, "layers": 1, "judge": (8,), "update": 10, "success": 0.5}


def flow(dimensions: int, seed: int = 0, **sizes: Any) -> RealNVP:
    rng = np.random.default_rng(seed)
    return RealNVP(dimensions, rng, **{"hidden": 16, "blocks": 3, "layers": 3, "learning_rate": 1e-3, **sizes})


def noise(batch: int, dimensions: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((batch, dimensions))), torch.from_numpy(rng.random((batch, 1)))


def teach(curriculum: tt.Curriculum, lessons: int, *, n: int = 7, solves: Callable[[Any], Any] = lambda p: p[:, 0] < 0.4) -> list[Any]:
    points = []
    for _ in range(lessons):
        points.append(curriculum.propose(n))
        curriculum.observe(tt.Outcomes.of(SQUARE, points[-1], reward=solves(points[-1]).astype(float)))
    return points


# --- the flow


def test_softplus_like() -> None:
    assert float(softplus_like(torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(1 / math.pi)
    x_B = torch.tensor([-1e6, -30.1, -29.9, -1.0, 0.0, 3.0, 1e6], dtype=torch.float64, requires_grad=True)
    y_B = softplus_like(x_B)
    y_B.sum().backward()
    assert (y_B > 0).all()
    assert (x_B.grad > 0).all()
    y_B = y_B.detach()
    assert float(y_B[1]) == pytest.approx(1 / (3 * math.pi * 30.1**2))
    assert float(y_B[2]) == pytest.approx(float(y_B[1]), rel=0.05)
    assert float(y_B[6]) == pytest.approx(1e6)


def test_couplings_by_hand() -> None:
    assert couplings(3, 1) == [([0], [1, 2]), ([1, 2], [0]), ([1], [0, 2])]
    assert couplings(1, 2) == [([], [0]), ([], [0])] * 2  # without an empty half, which has nothing to change


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_infer_undoes_sample(dimensions: int) -> None:
    setter = flow(dimensions)
    z_BD, f_B1 = noise(64, dimensions)
    x_BD, logp_B = setter.sample(z_BD, f_B1)
    assert ((x_BD > 0) & (x_BD < 1)).all()
    back_BD, again_B = setter.infer(x_BD, f_B1)
    torch.testing.assert_close(back_BD, z_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(again_B, logp_B, atol=1e-5, rtol=1e-5)
    assert (setter.sample(z_BD, 1 - f_B1)[0] - x_BD).abs().max() > 1e-3  # the condition matters


@pytest.mark.parametrize("dimensions", [1, 3])
def test_densities_are_those_of_the_jacobian(dimensions: int) -> None:
    setter = flow(dimensions)
    z_BD, f_B1 = noise(6, dimensions, seed=1)
    _, logp_B = setter.sample(z_BD, f_B1)
    for b in range(6):
        jacobian_DD = torch.autograd.functional.jacobian(lambda z, b=b: setter.sample(z[None], f_B1[b : b + 1])[0][0], z_BD[b])
        expected = -0.5 * (z_BD[b] ** 2).sum() - torch.linalg.slogdet(jacobian_DD).logabsdet
        torch.testing.assert_close(logp_B[b], expected, atol=1e-8, rtol=1e-8)


def test_the_flow_sums_to_one() -> None:
    setter = flow(1)
    x_BD = torch.linspace(1e-5, 1 - 1e-5, 4001, dtype=torch.float64)[:, None]
    _, logp_B = setter.infer(x_BD, torch.full_like(x_BD, 0.3))
    assert float(torch.trapezoid(logp_B.detach().exp() / math.sqrt(2 * math.pi), x_BD[:, 0])) == pytest.approx(1, abs=1e-3)


def test_the_networks_are_highways() -> None:
    setter = flow(2, layers=1, blocks=1, hidden=4)
    x_BK, f_B1 = noise(5, 1)
    w_in, b_in, w, b, w_out, b_out = setter._networks()[0][2]
    s = []
    for net in (0, 1):
        h = torch.tanh(torch.cat([x_BK, f_B1], 1) @ w_in[net] + b_in[net])
        both = h @ w[net] + b[net]
        gate = torch.sigmoid(both[:, 4:])
        h = gate * torch.tanh(both[:, :4]) + (1 - gate) * h
        s.append(h @ w_out[net] + b_out[net])
    scale_BC, t_BC = setter._scale_and_shift(x_BK, f_B1, setter._networks()[0][2])
    torch.testing.assert_close(scale_BC, 0.01 + softplus_like(s[0]))
    torch.testing.assert_close(t_BC, s[1])


def test_the_optimiser_is_torchs() -> None:
    weights = Weights([(3, 2), (1, 2)], np.random.default_rng(0), learning_rate=0.01)
    twin = [tensor.detach().clone().requires_grad_() for tensor in weights.tensors()]
    optimiser = torch.optim.Adam(twin, lr=0.01)
    x_BD = noise(8, 3)[0]
    for _ in range(4):
        matrix, bias = weights.tensors()
        weights.step(((x_BD @ matrix + bias - 0.3) ** 2).mean())
        optimiser.zero_grad()
        ((x_BD @ twin[0] + twin[1] - 0.3) ** 2).mean().backward()
        optimiser.step()
    for mine, theirs in zip(weights.tensors(), twin, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


# --- the losses


def test_losses_by_hand() -> None:
    rng = np.random.default_rng(0)
    setter, judge = flow(2, hidden=8), Judge(2, rng, hidden=[8, 8, 8], learning_rate=1e-3)
    assert len(judge.weights.tensors()) == 8
    x_BD, f_B1 = torch.from_numpy(rng.random((6, 2))), torch.from_numpy(rng.random((6, 1)))
    losses = setter_losses(setter, judge, x_BD, f_B1, x_BD[:2], f_B1[:2])
    logp_B = setter.infer(x_BD, f_B1)[1]
    asked_B = torch.log(f_B1 / (1 - f_B1))[:, 0]  # S(z_i, f_i) is g_i itself
    torch.testing.assert_close(losses["feasibility"], ((judge(x_BD) - asked_B) ** 2).mean())
    torch.testing.assert_close(losses["coverage"], logp_B.mean())
    torch.testing.assert_close(losses["validity"], -logp_B[:2].mean())
    assert "validity" not in setter_losses(setter, judge, x_BD, f_B1, x_BD[:0], f_B1[:0])
    logit_B, solved_B = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert float(judge_loss(logit_B, solved_B)) == pytest.approx((math.log(2) + 2 + math.log1p(math.exp(-2))) / 2)


def test_the_judge_as_released_has_a_layer_less() -> None:
    assert len(SetterSolver(SQUARE, **{**TINY, "judge": (64, 64, 64)}).judge.weights.tensors()) == 8
    assert len(SetterSolver(SQUARE, **{**TINY, "judge": (64, 64)}).judge.weights.tensors()) == 6


# --- the curriculum


def test_feasibility_comes_back_with_its_task() -> None:
    curriculum = SetterSolver(SQUARE, **TINY)
    first_ND, second_ND = curriculum.propose(3), curriculum.propose(3)
    asked_N = curriculum.open_f_P.copy()
    assert ((asked_N >= 1e-8) & (asked_N < 1)).all()
    curriculum.observe(tt.Outcomes.of(SQUARE, second_ND[::-1], reward=[1.0, 0.5, 0.0]))  # 0.5 is not above 0.5
    assert curriculum.feasibility_M.tolist() == asked_N[3:].tolist()
    assert curriculum.solved_M.tolist() == [False, False, True]
    np.testing.assert_allclose(curriculum.goal_MD, (second_ND - SQUARE.low_D) / SQUARE.range_D)
    curriculum.observe(tt.Outcomes.of(SQUARE, first_ND, reward=np.ones(3)))
    assert curriculum.feasibility_M[3:].tolist() == asked_N[:3].tolist()
    assert not len(curriculum.open_f_P)


def test_training_takes_an_interval_and_forgets() -> None:
    curriculum = SetterSolver(SQUARE, **TINY)
    before = curriculum.networks
    teach(curriculum, 1, n=23)
    assert (curriculum.trainings, len(curriculum.goal_MD)) == (2, 3)
    for name in ("judge", "setter"):
        assert not np.array_equal(before[name][0], curriculum.networks[name][0])
        assert curriculum.networks[name][3].tolist() == [2.0]


def test_nothing_solved_is_no_reason_to_break() -> None:
    curriculum = SetterSolver(SQUARE, **TINY)
    teach(curriculum, 20, n=10, solves=lambda p: np.zeros(len(p)))
    assert curriculum.trainings == 20
    assert all(np.isfinite(array).all() for arrays in curriculum.networks.values() for array in arrays)


def test_it_learns_to_set_what_is_solved() -> None:
    """Tasks asked to be feasible move into the region that the student solves; those asked to be infeasible, less so."""
    wide: dict[str, Any] = {**TINY, "hidden": 16, "judge": (32, 32), "update": 50, "learning_rate": 3e-3}
    curriculum = SetterSolver(SQUARE, seed=0, **wide)
    teach(curriculum, 100, n=50)
    points_ND = curriculum.propose(2000)
    solved_N, asked_N = points_ND[:, 0] < 0.4, curriculum.open_f_P[-2000:]
    assert solved_N[asked_N > 0.8].mean() > solved_N[asked_N < 0.2].mean() + 0.3


def test_a_long_run_resumes_exactly(tmp_path: Path) -> None:
    whole = SetterSolver(SQUARE, seed=1, **TINY)
    teach(whole, 9)
    whole.propose(5)  # stays open
    save_state(tmp_path / "state.npz", whole.state_dict())
    resumed = SetterSolver(SQUARE, seed=1, **TINY)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    for one, other in zip(teach(whole, 12), teach(resumed, 12), strict=True):
        assert np.array_equal(one, other)
    assert whole.metrics == resumed.metrics
    assert whole.trainings == 14
    assert all(map(np.array_equal, whole.networks["setter"], resumed.networks["setter"]))


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"hidden": 0}, "hidden, blocks, layers and judge must be at least 1"),
        ({"judge": (64, 0)}, "judge must be at least 1"),
        ({"noise": -0.1}, "noise at least 0"),
        ({"success": float("nan")}, "success must be finite"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
    ],
)
def test_bad_settings(hyper: dict[str, Any], told: str) -> None:
    with pytest.raises(tt.TutelageError, match=told):
        tt.curriculum("setter-solver", SQUARE, **{**TINY, **hyper})


def test_without_torch_it_is_listed_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "setter-solver" in curricula.names()
    with pytest.raises(tt.TutelageError, match="needs the package 'torch'"):
        tt.curriculum("setter-solver", SQUARE)


def factory(**hyper: Any) -> OverSpaces:
    return OverSpaces(lambda space, seed: tt.curriculum("setter-solver", space, seed=seed, **hyper))


@parametrize_with_checks({"small": factory(hidden=8), "tiny": factory(**{**TINY, "update": 3}, reward_range=(0.0, 1.1))})
def test_the_battery(check: Callable[[], None]) -> None:
    check()
