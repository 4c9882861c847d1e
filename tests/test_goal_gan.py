"""GoalGAN, case by case: losses by hand, the optimiser against torch's, labels and the mastered, exact resume, bad input, the battery."""

from __future__ import annotations

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

from tutelage.curricula.neural._lsgan import LSGAN, discriminator_loss, generator_loss  # noqa: E402
from tutelage.curricula.neural.goal_gan import GoalGAN  # noqa: E402

SQUARE = tt.TaskSpace([0.0, 2.0], [1.0, 6.0])
TINY: dict[str, Any] = {"generator": (8, 8), "discriminator": (8, 8), "iterations": 5, "update": 10, "success": 0.5}


def network(seed: int = 0, **widths: Any) -> LSGAN:
    return LSGAN(2, np.random.default_rng(seed), **{"generator": [16, 16], "discriminator": [16, 16], **widths}, learning_rate=1e-3)


def teach(curriculum: tt.Curriculum, lessons: int, *, n: int = 7) -> list[np.ndarray]:
    """A student that solves tasks near a line half of the time, and easier ones always."""
    points, rng = [], np.random.default_rng(0)
    for _ in range(lessons):
        points.append(curriculum.propose(n))
        ease_N = points[-1][:, 0] < 0.3 + 0.4 * rng.random(n)
        curriculum.observe(tt.Outcomes.of(SQUARE, points[-1], reward=ease_N.astype(float)))
    return points


# --- the network


def test_losses_by_hand() -> None:
    zero_B, label_B = torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert float(discriminator_loss(zero_B, label_B)) == 1.0
    assert float(generator_loss(zero_B)) == 1.0
    assert float(discriminator_loss(2 * label_B - 1, label_B)) == 0.0
    assert float(discriminator_loss(torch.tensor([3.0]), torch.tensor([0.0]))) == 16.0


def test_the_networks_are_what_they_should_be() -> None:
    gan = network()
    weights = [torch.from_numpy(array) for array in gan.arrays[:12]]
    x_BD = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    h = torch.relu(x_BD @ weights[0].T + weights[1])
    h = torch.relu(h @ weights[2].T + weights[3])
    torch.testing.assert_close(gan.generator(x_BD), torch.tanh(h @ weights[4].T + weights[5]))
    h = torch.where((h := x_BD @ weights[6].T + weights[7]) > 0, h, 0.1 * h)
    h = torch.where((h := h @ weights[8].T + weights[9]) > 0, h, 0.1 * h)
    torch.testing.assert_close(gan.discriminator(x_BD), (h @ weights[10].T + weights[11])[:, 0])


def test_the_optimiser_is_torchs() -> None:
    gan = network()
    twin = [torch.from_numpy(array).requires_grad_() for array in gan.arrays[:6]]
    optimiser = torch.optim.RMSprop(twin, lr=1e-3)
    z_BD = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        gan._step(((gan.generator(z_BD) - 0.3) ** 2).mean(), slice(None, 6))
        h = torch.relu(torch.relu(z_BD @ twin[0].T + twin[1]) @ twin[2].T + twin[3])
        optimiser.zero_grad()
        ((torch.tanh(h @ twin[4].T + twin[5]) - 0.3) ** 2).mean().backward()
        optimiser.step()
    for mine, theirs in zip(gan.arrays[:6], twin, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=1e-6)
    for mine, start in zip(gan.arrays[6:12], network().arrays[6:12], strict=True):
        assert np.array_equal(mine, start)  # the discriminator's weights were not touched


def test_it_learns_where_the_labels_are() -> None:
    rng = np.random.default_rng(1)
    x_ND = rng.uniform(-1, 1, (200, 2))
    gan = network(generator=[32, 32], discriminator=[32, 32])
    before = gan.sample(400, np.random.default_rng(2))[:, 0]
    gan.train(x_ND, x_ND[:, 0] > 0.4, 250, rng)
    after = gan.sample(400, np.random.default_rng(2))[:, 0]
    assert after.mean() > before.mean() + 0.2


# --- the curriculum


def test_a_task_is_rolled_out_twice_in_a_row() -> None:
    points_ND = GoalGAN(SQUARE, **TINY).propose(10)
    assert np.array_equal(points_ND[::2], points_ND[1::2])
    assert len(np.unique(points_ND, axis=0)) == 5
    thrice_ND = GoalGAN(SQUARE, **TINY, rollouts=3).propose(6)
    assert np.array_equal(thrice_ND[0], thrice_ND[2])


def test_the_generators_range() -> None:
    """The space as it should be; as released half of each side beyond it, so that about half of what is generated is clipped."""
    corner_ND, edge_ND = np.array([[1.0, 6.0]]), np.array([[-1.0, 1.0]])
    for generated, seen, made, proposed in (("space", 1.0, [[0.0, 6.0]], [[0.95, 2.2]]), ("twice", 0.5, [[-0.5, 8.0]], [[1.0, 2.0]])):
        curriculum = GoalGAN(SQUARE, **TINY, generated=generated, noise=0.0)
        assert curriculum._inside(corner_ND).tolist() == [[seen, seen]]
        assert curriculum._outside(edge_ND).tolist() == made
        np.testing.assert_allclose(curriculum._outside(curriculum._inside(np.array([[0.3, 2.5]]))), [[0.3, 2.5]])
        curriculum.gan.sample = lambda n, rng: np.array([[0.9, -0.9]])  # type: ignore[method-assign]
        np.testing.assert_allclose(curriculum.propose(1), proposed)
    with pytest.raises(tt.TutelageError, match="Unknown generated of goal-gan 'half'"):
        GoalGAN(SQUARE, **TINY, generated="half")


def test_labels_and_the_mastered_by_hand() -> None:
    """0, 1 and 2 of 2 solved: s = 0, 0.5, 1, labels 0, 1, 0; only the last is mastered."""
    curriculum = GoalGAN(SQUARE, **TINY, noise=0.3)
    points_ND = curriculum.propose(6)
    curriculum.observe(tt.Outcomes.of(SQUARE, points_ND, reward=[0.5, 0.0, 0.0, 1.0, 0.6, 1.0]))  # 0.5 is not above 0.5
    assert curriculum.label_L.tolist() == [False, True, False]
    assert np.array_equal(curriculum.task_LD, points_ND[::2])
    assert np.array_equal(curriculum.mastered_MD, points_ND[4:5])
    assert not len(curriculum.pending_PD)


def test_the_mastered_keep_their_distance() -> None:
    curriculum = GoalGAN(SQUARE, **TINY, distance=0.1)
    for x in (0.0, 0.1, 0.5, 0.95):  # the diagonal is sqrt(17), a tenth of it 0.41
        curriculum._label(np.array([x, 3.0]), 1.0)
    assert curriculum.mastered_MD[:, 0].tolist() == [0.0, 0.5, 0.95]


def test_the_mastered_are_replayed() -> None:
    curriculum = GoalGAN(SQUARE, **TINY, replay=1.0, noise=0.001)
    curriculum._label(np.array([0.5, 4.0]), 1.0)
    points_ND = curriculum.propose(20)
    assert np.abs((points_ND - [0.5, 4.0]) / SQUARE.range_D).max() < 0.01
    curriculum.observe(tt.Outcomes.of(SQUARE, points_ND, reward=np.ones(20)))
    assert len(curriculum.label_L) == 1


def test_training_needs_a_positive_label_and_forgets() -> None:
    curriculum = GoalGAN(SQUARE, **TINY, replay=0.0)
    before = curriculum.network
    points_ND = curriculum.propose(20)
    curriculum.observe(tt.Outcomes.of(SQUARE, points_ND, reward=np.zeros(20)))
    assert not len(curriculum.label_L)
    assert curriculum.trainings == 0
    assert all(map(np.array_equal, before, curriculum.network))
    points_ND = curriculum.propose(24)
    curriculum.observe(tt.Outcomes.of(SQUARE, points_ND, reward=np.tile([0.0, 1.0], 12)))
    assert len(curriculum.label_L) == 2  # trained after the tenth
    assert curriculum.trainings == 1
    assert not any(map(np.array_equal, before[::2], curriculum.network[::2]))


def test_pretraining_moves_the_first_tasks() -> None:
    where: dict[str, Any] = {"initial_mean": (0.9, 5.5), "initial_std": (0.02, 0.1)}
    wide: dict[str, Any] = {**TINY, "generator": (32, 32), "discriminator": (32, 32)}
    plain, pretrained = GoalGAN(SQUARE, **wide), GoalGAN(SQUARE, **wide, **where, pretrain=250)
    assert pretrained.propose(200)[:, 0].mean() > plain.propose(200)[:, 0].mean() + 0.1


def test_a_long_run_resumes_exactly(tmp_path: Path) -> None:
    whole = GoalGAN(SQUARE, seed=1, **TINY)
    teach(whole, 9)
    save_state(tmp_path / "state.npz", whole.state_dict())
    resumed = GoalGAN(SQUARE, seed=1, **TINY)
    resumed.load_state_dict(load_state(tmp_path / "state.npz"))
    for one, other in zip(teach(whole, 12), teach(resumed, 12), strict=True):
        assert np.array_equal(one, other)
    assert whole.metrics == resumed.metrics
    assert whole.trainings > 2
    assert all(map(np.array_equal, whole.network, resumed.network))


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"rollouts": 0}, "rollouts, iterations and hidden widths must be at least 1"),
        ({"generator": (8, 0)}, "hidden widths must be at least 1"),
        ({"replay": 1.5}, "replay in"),
        ({"noise": -0.1}, "noise and distance at least 0"),
        ({"success": float("nan")}, "success must be finite"),
        ({"pretrain": 1, "initial_mean": (0.5, 9.0)}, "initial_mean row 0: x1 is 9.0, outside"),
        ({"pretrain": 1, "initial_std": (0.5,)}, "initial_std needs one finite number above 0"),
    ],
)
def test_bad_settings(hyper: dict[str, Any], told: str) -> None:
    with pytest.raises(tt.TutelageError, match=told):
        tt.curriculum("goal-gan", SQUARE, **{**TINY, **hyper})


def test_without_torch_it_is_listed_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "goal-gan" in curricula.names()
    with pytest.raises(tt.TutelageError, match="needs the package 'torch'"):
        tt.curriculum("goal-gan", SQUARE)


def factory(**hyper: Any) -> OverSpaces:
    return OverSpaces(lambda space, seed: tt.curriculum("goal-gan", space, seed=seed, **hyper))


@parametrize_with_checks({"default": factory(), "tiny": factory(**{**TINY, "update": 3}, reward_range=(0.0, 1.1))})
def test_the_battery(check: Callable[[], None]) -> None:
    check()
