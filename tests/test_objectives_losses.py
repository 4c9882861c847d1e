"""Losses against the numbers of the published code, and gradients against their closed forms."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tutelage.errors import TutelageError  # noqa: E402
from tutelage.objectives import (  # noqa: E402
    PolicyGradient,
    denominators_of,
    group_tokens,
    kl_estimate,
    log_ratio,
    objective,
    surrogate_loss,
)

pytestmark = pytest.mark.lm
RATIOS = [[1, 1.5], [1, 0.5, 1.5, 4], [0.9], [1.1, 1.25, 0.7]]


@pytest.fixture
def batch():
    """The sheet's four sequences: rewards [1, 0, 0, 1], lengths 2, 4, 1, 3, advantages ±1, given ratios."""
    ratio_BT = torch.tensor([row + [1.0] * (4 - len(row)) for row in RATIOS], dtype=torch.float64)
    mask_BT = torch.arange(4) < torch.tensor([len(row) for row in RATIOS]).unsqueeze(1)
    old_logp_BT = -torch.arange(1.0, 17.0, dtype=torch.float64).view(4, 4) / 8
    return {
        "logp_BT": (old_logp_BT + ratio_BT.log()).requires_grad_(),
        "old_logp_BT": old_logp_BT,
        "mask_BT": mask_BT,
        "advantage_B": torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64),
    }


def value(part, batch, **hyper):
    return part(batch, denominators=part.denominators_of(batch), **hyper)[0].item()


@pytest.mark.parametrize(
    ("aggregation", "plain", "dual", "higher", "higher_dual"),
    [
        ("token_mean", 0.30, 0.20, 0.287, 0.187),
        ("seq_mean_token_mean", 0.15625, 0.09375, 0.142083, 0.079583),
        ("seq_mean_token_sum", 0.75, 0.50, 0.7175, 0.4675),
        ("seq_mean_token_sum_norm", 0.1875, 0.125, 0.179375, 0.116875),
        ("token_sum_norm", 0.75, 0.50, 0.7175, 0.4675),
    ],
)
def test_losses_of_the_published_code(batch, aggregation, plain, dual, higher, higher_dual):
    part = PolicyGradient(aggregation=aggregation, max_length=4)
    assert value(part, batch) == pytest.approx(plain, abs=1e-6)
    assert value(part, batch, dual_clip=3.0) == pytest.approx(dual, abs=1e-6)
    assert value(part, batch, clip_high=0.28) == pytest.approx(higher, abs=1e-6)
    assert value(part, batch, clip_high=0.28, dual_clip=3.0) == pytest.approx(higher_dual, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("trl:dapo", 0.30),
        ("trl:grpo", 0.15625),
        ("trl:dr_grpo", 0.1875),
        ("verl:grpo", 0.20),
        ("verl:dapo", 0.187),
        ("verl:dr_grpo", 0.50),
        ("verl:rloo", 0.20),
        ("openrlhf:group_norm", 0.30),
        ("dapo", 0.287),
        ("dr_grpo", 0.1875),
    ],
)
def test_presets_give_their_librarys_number(batch, name, loss):
    assert value(objective(name, max_length=4), batch) == pytest.approx(loss, abs=1e-6)


def test_dr_grpo_with_twice_the_length_is_half_as_large(batch):
    assert value(objective("dr_grpo", max_length=8), batch) == pytest.approx(0.1875 / 2)
    part = objective("dr_grpo")
    assert part(batch, denominators=part.denominators_of(batch, max_length=8))[0].item() == pytest.approx(0.1875 / 2)


@pytest.mark.parametrize("ratio", ["seq_mean", "seq_mean_token"])
def test_gspo(batch, ratio):
    part = PolicyGradient(ratio=ratio)
    assert value(part, batch) == pytest.approx(0.0071834, abs=1e-7)
    assert value(part, batch, clip_high=0.28) == pytest.approx(0.0009972, abs=1e-7)
    assert value(part, batch, clip_low=3e-4, clip_high=4e-4) == pytest.approx(0.0820084, abs=1e-7)
    assert value(objective("verl:gspo", clip_low=0.2, clip_high=0.2, ratio=ratio), batch) == pytest.approx(0.0071834, abs=1e-7)
    assert value(objective("gspo", ratio=ratio), batch) == pytest.approx(0.0820084, abs=1e-7)


def test_gspo_ratios_and_the_token_mean_that_is_not_gspo(batch):
    ratio_B = log_ratio(batch["logp_BT"], batch["old_logp_BT"], batch["mask_BT"], level="seq_mean").exp().flatten()
    torch.testing.assert_close(ratio_B, torch.tensor([1.224745, 1.316074, 0.9, 0.987341], dtype=torch.float64), rtol=0, atol=1e-6)
    assert value(PolicyGradient(ratio="seq_mean", aggregation="token_mean"), batch) == pytest.approx(0.0802275, abs=1e-7)


def test_gspo_token_has_the_gradient_of_gspo(batch):
    grads = []
    for ratio in ("seq_mean", "seq_mean_token"):
        part = PolicyGradient(ratio=ratio)
        part(batch, denominators=part.denominators_of(batch))[0].backward()
        grads.append(batch["logp_BT"].grad.clone())
        batch["logp_BT"].grad = None
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


def test_rloo_clips_whole_sequences(batch):
    part = objective("rloo", kl_coef=0.0)
    product_B = torch.tensor([math.prod(row) for row in RATIOS])
    expected = -torch.minimum(product_B * batch["advantage_B"], product_B.clamp(0.8, 1.2) * batch["advantage_B"]).mean()
    assert value(part, batch) == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "slope"),
    [
        (0.5, 1, None, -0.5),
        (1.5, 1, None, 0),
        (0.5, -1, None, 0),
        (1.5, -1, None, 1.5),
        (4, -1, None, 4),
        (4, -1, 3.0, 0),
        (0.5, 1, 3.0, -0.5),
    ],
)
def test_slope_of_the_surrogate(ratio, advantage, dual, slope):
    delta = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, clipped = surrogate_loss(delta, torch.tensor([[float(advantage)]], dtype=torch.float64), dual_clip=dual)
    loss.backward()
    assert delta.grad.item() == pytest.approx(slope)
    assert any(side.item() for side in clipped) == (slope == 0)


@pytest.mark.parametrize("delta", [1.2, 2.0, 3.0])
def test_dual_clip_is_trls_delta(delta):
    log_rho = torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(0)
    for advantage in (-1.3, 0.0, 0.7):
        a = torch.full_like(log_rho, advantage)
        rho = log_rho.exp()
        trl = -torch.min(rho.clamp(max=delta) * a, rho.clamp(0.8, 1.2) * a)
        torch.testing.assert_close(surrogate_loss(log_rho, a, dual_clip=delta)[0], trl)


@pytest.mark.parametrize(("low", "high"), [(None, 4.0), (0.2, 0.2)])
def test_cispo_gradient(batch, low, high):
    part = objective("cispo", clip_low=low, clip_high=high)
    part(batch, denominators=part.denominators_of(batch))[0].backward()
    rho_BT = (batch["logp_BT"] - batch["old_logp_BT"]).exp().clamp(0.0 if low is None else 1 - low, 1 + high).detach()
    expected_BT = -rho_BT * batch["advantage_B"].unsqueeze(1) * batch["mask_BT"] / 10
    torch.testing.assert_close(batch["logp_BT"].grad, expected_BT)


@pytest.mark.parametrize(
    ("kind", "at_ln2", "at_minus_ln2"),
    [("k1", 0.693147, -0.693147), ("k2", 0.240227, 0.240227), ("k3", 0.193147, 0.306853)],
)
def test_kl_values(kind, at_ln2, at_minus_ln2):
    x = torch.tensor([[math.log(2), -math.log(2)]], dtype=torch.float64)
    expected = torch.tensor([[at_ln2, at_minus_ln2]], dtype=torch.float64)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(kl_estimate(x, zero, kind=kind), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(kl_estimate(x, zero, kind=kind, straight_through=True), expected, rtol=0, atol=1e-6)


KL_PI_REF = 0.205990  # logit gradient of KL(π‖ref)


@pytest.mark.parametrize(
    ("kind", "straight_through", "importance", "mean", "slope"),
    [
        ("k1", False, False, 0.130812, 0.0),
        ("k2", False, False, 0.121707, KL_PI_REF),
        ("k3", False, False, 0.130812, 0.25),  # = KL(ref‖π)
        ("k3", False, True, 0.130812, KL_PI_REF),
        ("k1", True, False, 0.130812, KL_PI_REF),
        ("k3", True, False, 0.130812, KL_PI_REF),
    ],
)
def test_expected_kl_gradients_of_two_classes(kind, straight_through, importance, mean, slope):
    """π = (.75, .25), ref = (.5, .5): expectation over samples of the estimate and of its gradient, by enumeration."""
    logit = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
    logp_BT = torch.log_softmax(torch.stack([logit, torch.zeros_like(logit)]), 0).unsqueeze(1)
    weight_B = torch.tensor([0.75, 0.25], dtype=torch.float64)
    part = PolicyGradient(kl=kind, kl_straight_through=straight_through, kl_importance=importance, kl_coef=1.0)
    total = {"kl": 0.0, "slope": 0.0}
    for row, weight in enumerate(weight_B):
        one = {
            "logp_BT": logp_BT[row : row + 1],
            "old_logp_BT": logp_BT[row : row + 1].detach(),
            "ref_logp_BT": torch.full((1, 1), math.log(0.5), dtype=torch.float64),
            "mask_BT": torch.ones(1, 1, dtype=torch.bool),
            "advantage_B": torch.zeros(1, dtype=torch.float64),
        }
        loss, stats = part(one, denominators=part.denominators_of(one))
        total["kl"] += weight.item() * stats["kl"].item()
        total["slope"] += weight.item() * torch.autograd.grad(loss, logit, retain_graph=True)[0].item()
    assert total["kl"] == pytest.approx(mean, abs=1e-6)
    assert total["slope"] == pytest.approx(slope, abs=1e-6)


def test_kl_clamps():
    x = torch.tensor([[-30.0, 30.0]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(x)
    verl = kl_estimate(x, zero, inner_clamp=20.0, clamp=10.0)
    assert verl.tolist() == [[10.0, 10.0]]
    verl.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0]]
    assert kl_estimate(x, zero, kind="k1").tolist() == [[-30.0, 30.0]]
    assert kl_estimate(x, zero, kind="k1", clamp=10.0).tolist() == [[-10.0, 10.0]]
    assert kl_estimate(x, zero, inner_clamp=20.0)[0, 1].item() == pytest.approx(19.0, abs=1e-6)


def test_log_ratio_bounds(batch):
    batch["logp_BT"] = (batch["old_logp_BT"] + 30.0).requires_grad_()
    for ratio, name in (("token", "verl:grpo"), ("seq_mean_token", "verl:gspo")):
        part = objective(name, ratio=ratio)
        loss, stats = part(batch, denominators=part.denominators_of(batch))
        loss.backward()
        assert stats["ratio"].item() == pytest.approx(math.exp(20 if ratio == "token" else 10))
        assert (batch["logp_BT"].grad == 0).all()
        batch["logp_BT"].grad = None


def test_fully_masked_sequences_count_unless_dropped(batch):
    batch["mask_BT"] = batch["mask_BT"].clone()
    batch["mask_BT"][2] = False
    part = PolicyGradient()
    kept = value(part, batch)
    assert value(part, batch, drop_empty=True) == pytest.approx(kept * 4 / 3)
    assert value(part, batch, aggregation="token_mean", drop_empty=True) == pytest.approx(value(part, batch, aggregation="token_mean"))


def test_group_token_mean_is_equation_8(batch):
    batch["group_B"] = torch.tensor([5, 5, 9, 9])
    batch["group_tokens_B"] = group_tokens(batch["mask_BT"], batch["group_B"])
    assert batch["group_tokens_B"].tolist() == [6, 6, 4, 4]
    part = PolicyGradient(aggregation="group_token_mean")
    halves = [{key: x[rows] for key, x in batch.items()} for rows in ([0, 1], [2, 3])]
    expected = sum(value(PolicyGradient(aggregation="token_mean"), half) for half in halves) / 2
    assert value(part, batch) == pytest.approx(expected)


def test_stats_describe_the_step(batch):
    part = PolicyGradient(clip_high=0.2, dual_clip=3.0, aggregation="token_mean")
    loss, stats = part(batch, denominators=part.denominators_of(batch))
    assert stats["policy_loss"].item() == pytest.approx(loss.item())
    assert stats["ratio"].item() == pytest.approx(sum(sum(row) for row in RATIOS) / 10)
    assert stats["clipped_high"].item() == pytest.approx(0.2)  # 1.5 of the first, 1.25 of the last
    assert stats["clipped_low"].item() == pytest.approx(0.1)  # .5 of the second
    assert stats["clipped_dual"].item() == pytest.approx(0.1)  # 4 of the second


def test_given_token_advantages(batch):
    part = PolicyGradient(advantage="given", aggregation="token_mean")
    spread = {**batch, "advantage_BT": batch["advantage_B"].unsqueeze(1).expand(4, 4)}
    assert value(part, spread) == pytest.approx(0.30)
    assert "advantage_BT" in part.requires
    assert "advantage_B" not in part.requires


def test_an_empty_step_has_no_loss_and_no_gradient(batch):
    batch["mask_BT"] = torch.zeros(4, 4, dtype=torch.bool)
    for name in ("grpo", "dapo", "gspo", "cispo"):
        part = objective(name, kl_coef=0.0)
        loss, _ = part(batch, denominators=part.denominators_of(batch))
        loss.backward()
        assert loss.item() == 0
        assert (batch["logp_BT"].grad == 0).all()


def test_errors_say_what_came(batch):
    part = PolicyGradient(kl_coef=0.1)
    counts = part.denominators_of(batch)
    with pytest.raises(TutelageError, match=r"needs the column.*ref_logp_BT"):
        part(batch, denominators=counts)
    with pytest.raises(TutelageError, match=r"disagree in shape.*advantage_B \(3,\)"):
        part({**batch, "ref_logp_BT": batch["old_logp_BT"], "advantage_B": torch.zeros(3)}, denominators=counts)
    with pytest.raises(TutelageError, match="denominator 'sequences' is missing"):
        PolicyGradient()(batch, denominators={})
    with pytest.raises(TutelageError, match=r"'max_length' is missing.*Dr. GRPO divides by a constant"):
        objective("dr_grpo")(batch, denominators=counts)
    with pytest.raises(TutelageError, match="Did you mean 'clip_high'"):
        part(batch, denominators=counts, clip_hihg=0.3)
    with pytest.raises(TutelageError, match="Did you mean 'token_mean'"):
        PolicyGradient(aggregation="tokenmean")
    with pytest.raises(TutelageError, match="clip_low must not be negative"):
        PolicyGradient(clip_low=-0.1)
    with pytest.raises(TutelageError, match="dual_clip must exceed 1"):
        PolicyGradient(dual_clip=0.5)
    with pytest.raises(TutelageError, match="kl_placement='return'"):
        PolicyGradient(kl_coef=0.1, kl_placement="return")
    with pytest.raises(TutelageError, match="'response_mask_BT'"):
        denominators_of(batch, mask="response_mask_BT")
