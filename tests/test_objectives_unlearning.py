"""Forget losses: hand-computed values, the conventions of open-unlearning, and the objective battery."""

from __future__ import annotations

import math

import pytest

from tutelage.errors import TutelageError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm
KINDS = ["ascent", "npo", "simnpo", "wga", "satimp", "erase"]


def value(name, logp, ref=None, **hyper):
    from tutelage.registry import objectives

    part = objectives.build(name, **hyper)
    logp_BT = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    batch = {"logp_BT": logp_BT, "mask_BT": torch.isfinite(logp_BT)}
    if ref is not None:
        batch["ref_logp_BT"] = torch.tensor(ref, dtype=torch.float64)
    loss, stats = part(batch, denominators=part.denominators_of(batch))
    loss.backward()
    return loss.item(), logp_BT.grad, stats["nll"].item()


def test_values_by_hand():
    half, nan = math.log(0.5), math.nan
    assert value("ascent", [[half, half], [half, nan]])[0] == pytest.approx(half)
    assert value("wga", [[half]])[0] == pytest.approx(0.5 * half)
    assert value("satimp", [[half]], beta=2.0, beta2=3.0)[0] == pytest.approx(0.5**5 * half)
    assert value("erase", [[half, half], [half, nan]])[0] == pytest.approx((0.25 + 0.5) / 2)
    assert value("npo", [[-1.0, -2.0]], [[-1.0, -2.0]], beta=0.1)[0] == pytest.approx(20 * math.log(2))
    assert value("npo", [[-3.0]], [[-1.0]], beta=0.5)[0] == pytest.approx(4 * math.log1p(math.exp(-1.0)))
    assert value("simnpo", [[-1.0, -3.0]], beta=2.0, delta=0.5)[0] == pytest.approx(math.log1p(math.exp(-3.0)))


def test_ascent_has_the_negative_gradient_of_the_likelihood_loss_and_npo_starts_like_it():
    _, grad, nll = value("ascent", [[-1.0, -2.0]])
    assert grad.tolist() == [[0.5, 0.5]]  # of −NLL: minimising it lowers log p
    assert nll == pytest.approx(1.5)
    _, at_start, _ = value("npo", [[-1.0, -2.0]], [[-1.0, -2.0]], beta=0.1)
    assert at_start.tolist() == [[1.0, 1.0]]  # (2/β) · β · σ(0): the gradient of a sum of log-likelihoods
    _, forgotten, _ = value("npo", [[-100.0, -2.0]], [[-1.0, -2.0]], beta=0.1)
    assert forgotten.max() < 1e-3  # bounded: what is forgotten pushes no more


@pytest.mark.parametrize("name", KINDS)
def test_forget_losses_pass_the_battery(name):
    from tutelage.registry import objectives
    from tutelage.testing import check_objective

    check_objective(lambda: objectives.build(name), finite_differences=name not in ("wga", "satimp"))


def test_head_projection_and_entropy_by_hand():
    from tutelage.objectives.unlearning import head_projection, max_entropy

    three, four = torch.tensor([[[0.5, 0.3, 0.2]]]), torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    first, last = torch.tensor([0]), torch.tensor([3])
    assert head_projection(three, first, k=1, exclude_target=False).item() == 0
    assert head_projection(three, first, k=1).item() == pytest.approx(0.2)
    assert head_projection(four, first, k=2, exclude_target=False).item() == pytest.approx(0.2)
    assert head_projection(four, last, k=2, exclude_target=False).item() == pytest.approx(0.10)
    assert max_entropy(torch.full((1, 1, 4), 0.25)).item() == pytest.approx(-math.log(4))
    with pytest.raises(TutelageError, match="below the vocabulary"):
        head_projection(three, first, k=3)


def test_a_bad_setting_is_refused():
    from tutelage.registry import objectives

    with pytest.raises(TutelageError, match="must be positive"):
        objectives.build("npo", beta=0.0)
