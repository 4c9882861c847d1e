"""The pairwise logistic loss: the papers' numbers, the two weightings' invariants, the battery, TRL's `DPOTrainer` on a tiny Llama."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

import tiny  # noqa: E402
from tutelage.errors import TutelageError  # noqa: E402
from tutelage.objectives import Objective, objective  # noqa: E402
from tutelage.objectives.pairwise import Pairwise, pairwise_logistic, player_weights, sequence_logp, target_multipliers  # noqa: E402
from tutelage.testing.objectives import check_objective, evaluate, random_batch  # noqa: E402

pytestmark = pytest.mark.lm
SWITCHES = [
    {"supervised_weight": 1.0},
    {"supervised_weight": 0.5, "supervised_aggregation": "token_mean", "label_smoothing": 0.2},
    {"target_multiplier": 6.0},
    {"player_gamma": 0.5},
    {"target_multiplier": 6.0, "player_gamma": 3.0, "label_smoothing": 0.1, "beta": 0.7},
]


def f64(rows):
    return torch.tensor(rows, dtype=torch.float64)


def pair(chosen, rejected, ref_chosen, ref_rejected, tokens=1):
    """A batch of one pair with the given log-probabilities of whole replies, spread evenly over `tokens` tokens."""
    mask = torch.ones(1, tokens, dtype=torch.bool)
    return {
        "chosen_logp_BT": f64([[chosen / tokens] * tokens]).requires_grad_(),
        "rejected_logp_BT": f64([[rejected / tokens] * tokens]).requires_grad_(),
        "chosen_mask_BT": mask,
        "rejected_mask_BT": mask,
        "ref_chosen_logp_BJ": f64([ref_chosen]),
        "ref_rejected_logp_BJ": f64([ref_rejected]),
    }


def run(part, batch, **hyper):
    loss, stats = part(batch, denominators=part.denominators_of(batch), **hyper)
    return loss, {name: value.item() for name, value in stats.items()}


TEAM = ([-12.0, -9.0, -10.0], [-11.0, -13.0, -12.0])


def softplus(x):
    return math.log1p(math.exp(x))


# --- numbers worked by hand


def test_the_parts_of_tpaw():
    target_BJ, other_BJ = f64([[0.2, -0.1, 0.0]]), f64([[-0.1, 0.1, 0.0]])
    multiplier_BJ = target_multipliers(target_BJ)
    assert multiplier_BJ.tolist() == [[1, 6, 6]]  # the boundary counts as not moved
    weight_BJ = player_weights(target_BJ - other_BJ)
    torch.testing.assert_close(weight_BJ, f64([[0.290203, 0.372628, 0.337168]]), rtol=0, atol=1e-6)
    one = torch.ones(1, 1)
    for j, expected in enumerate([0.554355, 1.103186, math.log(2)]):
        columns = (x[:, j : j + 1] for x in (target_BJ, other_BJ))
        loss_B = pairwise_logistic(*columns, multiplier_BJ=multiplier_BJ[:, j : j + 1], weight_BJ=one)
        assert loss_B.item() == pytest.approx(expected, abs=1e-6)


def test_tpaw_on_three_players():
    loss, stats = run(objective("tpaw"), pair(-10.0, -12.0, *TEAM))
    assert loss.item() == pytest.approx(0.805661, abs=1e-6)
    assert stats["target_drift"] == pytest.approx((2 - 1 + 0) / 3)
    assert stats["rejected_drift"] == pytest.approx((-1 + 1 + 0) / 3)
    assert stats["margin"] == pytest.approx((0.3 - 0.2 + 0) / 3)
    assert stats["not_moved"] == pytest.approx(2 / 3)
    assert stats["accuracy"] == pytest.approx(1 / 3)
    weights = [0.290203, 0.372628, 0.337168]
    assert stats["player_entropy"] == pytest.approx(-sum(w * math.log(w) for w in weights), abs=1e-5)


def test_each_weighting_switches_off_alone():
    batch = pair(-10.0, -12.0, *TEAM)
    margins = (0.3, -0.2, 0.0)
    plain, stats = run(objective("tpaw", target_multiplier=1.0, player_gamma=0.0), batch)
    assert plain.item() == pytest.approx(0.681880, abs=1e-6)
    assert plain.item() == pytest.approx(sum(softplus(-m) for m in margins) / 3)
    assert stats["player_entropy"] == pytest.approx(math.log(3))
    assert run(objective("dpo"), batch)[0].item() == plain.item()
    no_alpha, _ = run(objective("tpaw", target_multiplier=1.0), batch)
    assert no_alpha.item() == pytest.approx(
        sum(w * softplus(-m) for w, m in zip((0.290203, 0.372628, 0.337168), margins, strict=True)), abs=1e-6
    )
    no_beta, _ = run(objective("tpaw", player_gamma=0.0), batch)
    assert no_beta.item() == pytest.approx((softplus(-0.3) + softplus(0.7) + math.log(2)) / 3)


@pytest.mark.parametrize(
    "part", [objective("dpo"), objective("spin"), objective("tpaw", target_multiplier=1.0)], ids=["dpo", "spin", "tpaw"]
)
def test_one_player_is_spin_and_dpo(part):
    loss, _ = run(part, pair(-10.0, -12.0, [-12.0], [-11.0]))
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)


def test_the_first_step_of_tpaw():
    batch = pair(-10.0, -12.0, [-10.0], [-12.0])
    loss, stats = run(objective("tpaw"), batch)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert stats["target_drift"] == 0
    assert stats["not_moved"] == 1
    loss.backward()
    assert batch["chosen_logp_BT"].grad.item() == pytest.approx(-0.1 / 2 * 6)
    assert batch["rejected_logp_BT"].grad.item() == pytest.approx(0.1 / 2)


@pytest.mark.parametrize(
    ("logp", "ref", "weight", "tokens", "preference", "total"),
    [
        ((-10.0, -12.0), (-11.0, -11.0), 1.0, 5, 0.598139, 2.598139),  # Honest LLM; ReaderLM and ARTE have the same margin
        ((-10.0, -12.0), (-10.0, -12.0), 0.0, 5, 0.693147, 0.693147),  # the start of any stage
        ((-1.0, -5.0), (-3.0, -6.0), 50.0, 50, 0.644397, 1.644397),  # Learning by Teaching: chosen NLL 0.02 a token
    ],
)
def test_dpo_with_a_supervised_term(logp, ref, weight, tokens, preference, total):
    loss, stats = run(objective("dpo", supervised_weight=weight), pair(*logp, [ref[0]], [ref[1]], tokens))
    assert loss.item() == pytest.approx(total, abs=1e-6)
    assert stats["pairwise_loss"] == pytest.approx(preference, abs=1e-6)
    assert stats.get("supervised_loss", 0.0) == pytest.approx(total - preference, abs=2e-6)


def test_the_two_averages_of_the_supervised_term():
    """Replies of 1 and 3 tokens at −4 and −1 nats a token: (4 + 1) / 2 by reply, (4 + 3) / 4 by token."""
    batch = {key: x.repeat(2, *[1] * (x.dim() - 1)).detach() for key, x in pair(-3.0, -3.0, [0.0], [0.0], 3).items()}
    batch["chosen_logp_BT"] = f64([[-4, math.nan, math.nan], [-1, -1, -1]])
    batch["chosen_mask_BT"] = torch.tensor([[1, 0, 0], [1, 1, 1]])
    for aggregation, expected in (("seq_mean_token_mean", 2.5), ("token_mean", 1.75)):
        _, stats = run(objective("dpo", supervised_weight=2.0, supervised_aggregation=aggregation), batch)
        assert stats["supervised_loss"] == pytest.approx(2 * expected)


def test_an_empty_reply_is_a_reply():
    """It has log-probability 0, and its pair counts in the mean; TRL counts it too."""
    batch = {key: x.repeat(2, *[1] * (x.dim() - 1)).detach() for key, x in pair(-10.0, -12.0, [-12.0], [-11.0]).items()}
    batch["chosen_mask_BT"] = torch.tensor([[True], [False]])
    loss, stats = run(objective("dpo"), batch)
    assert loss.item() == pytest.approx((softplus(-0.3) + softplus(-(1.2 + 0.1))) / 2)
    assert stats["target_drift"] == pytest.approx((2 + 12) / 2)


def test_label_smoothing_mixes_the_two_directions():
    loss, _ = run(objective("dpo", label_smoothing=0.2), pair(-10.0, -12.0, [-12.0], [-11.0]))
    assert loss.item() == pytest.approx(0.8 * softplus(-0.3) + 0.2 * softplus(0.3))


# --- invariants


def test_player_weights_are_a_distribution_that_favours_the_worst():
    margin_BJ = f64([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    weight_BJ = player_weights(margin_BJ, gamma=2.0)
    torch.testing.assert_close(weight_BJ.sum(dim=1), f64([1.0, 1.0]))
    assert weight_BJ[0].argmax() == 1
    assert weight_BJ[0].argmin() == 0
    torch.testing.assert_close(player_weights(margin_BJ, gamma=0.0), torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert player_weights(margin_BJ, gamma=200.0)[0, 1] == pytest.approx(1.0)


def test_a_common_shift_of_the_players_moves_rewards_but_not_weights():
    batch = pair(-10.0, -12.0, *TEAM)
    shifted = batch | {key: batch[key] + 1.5 for key in ("ref_chosen_logp_BJ", "ref_rejected_logp_BJ")}
    (_, before), (_, after) = run(objective("tpaw"), batch), run(objective("tpaw"), shifted)
    assert after["player_entropy"] == pytest.approx(before["player_entropy"])
    assert after["margin"] == pytest.approx(before["margin"])
    assert after["target_drift"] == pytest.approx(before["target_drift"] - 1.5)


def test_the_loss_is_continuous_where_its_slope_jumps():
    def at(chosen):
        batch = pair(chosen, -12.0, [-10.0], [-11.5])
        loss, _ = run(objective("tpaw"), batch)
        loss.backward()
        return loss.item(), batch["chosen_logp_BT"].grad.item()

    (below, slope_below), (above, slope_above) = at(-10 - 1e-9), at(-10 + 1e-9)
    assert below == pytest.approx(above, abs=1e-8)
    assert slope_below == pytest.approx(6 * slope_above, rel=1e-6)


def test_equal_sides_have_no_gradient_without_the_multiplier():
    batch = pair(-10.0, -10.0, [-12.0, -9.0], [-12.0, -9.0])
    shared = batch["chosen_logp_BT"]
    loss, _ = run(objective("tpaw", target_multiplier=1.0), batch | {"rejected_logp_BT": shared})
    loss.backward()
    assert shared.grad.item() == 0
    assert loss.item() == pytest.approx(math.log(2))


def test_the_gradient_of_tpaw():
    """−λ Σ_j β_j σ(−z_j) [ α_j ∇log π(y) − ∇log π(y') ]."""
    batch = pair(-10.0, -12.0, *TEAM)
    run(objective("tpaw", player_gamma=2.0), batch)[0].backward()
    target, other = f64([0.2, -0.1, 0.0]), f64([-0.1, 0.1, 0.0])
    alpha = f64([1.0, 6.0, 6.0])
    weight = torch.softmax(-2.0 * (target - other), dim=0) * torch.sigmoid(-(alpha * target - other))
    assert batch["chosen_logp_BT"].grad.item() == pytest.approx(-0.1 * (weight * alpha).sum().item(), abs=1e-12)
    assert batch["rejected_logp_BT"].grad.item() == pytest.approx(0.1 * weight.sum().item(), abs=1e-12)


def test_player_weights_do_not_depend_on_the_policy():
    """The policy's part of the margin is common to all players, so the paper's silence about a stop-gradient is harmless."""
    entropies = [run(objective("tpaw"), pair(chosen, rejected, *TEAM))[1]["player_entropy"] for chosen, rejected in ((-10, -12), (-3, -40))]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-12)
    logp_B = f64([-10.0]).requires_grad_()
    margin_BJ = 0.1 * (logp_B.unsqueeze(1) - f64([TEAM[0]])) - f64([[-0.1, 0.1, 0.0]])
    worst = torch.softmax(-0.5 * margin_BJ, dim=1)[0, 1]
    assert torch.autograd.grad(worst, logp_B)[0].item() == pytest.approx(0.0, abs=1e-15)


def test_only_counting_tokens_are_summed():
    logp_BT = f64([[-1.0, -2.0, math.nan], [-4.0, math.inf, -8.0]])
    assert sequence_logp(logp_BT, torch.tensor([[1, 1, 0], [1, 0, 1]])).tolist() == [-3.0, -12.0]
    assert sequence_logp(torch.full((1, 3), -1.0, dtype=torch.bfloat16), torch.ones(1, 3)).dtype == torch.float32


# --- the contract


@pytest.mark.parametrize("players", [1, 2, 3])
@pytest.mark.parametrize("name", ["dpo", "spin", "tpaw"])
def test_the_battery_for_any_number_of_players(name, players):
    part = objective(name)
    batch = {key: x[:, :players] if key.endswith("_BJ") else x for key, x in random_batch(part.requires).items()}
    check_objective(lambda: part, batch=batch)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_battery_for_switches(switches):
    assert isinstance(Pairwise(**switches), Objective)
    check_objective(lambda: Pairwise(**switches))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_each_side_has_its_own_mask(side):
    part = objective("tpaw", supervised_weight=1.0)
    batch = random_batch(part.requires)
    filled = dict(batch)
    filled[f"{side}_logp_BT"] = torch.where(batch[f"{side}_mask_BT"], batch[f"{side}_logp_BT"], math.nan)
    counts = part.denominators_of(batch)
    whole, masked = evaluate(part, batch, counts), evaluate(part, filled, counts)
    for key, value in whole.items():
        torch.testing.assert_close(masked[key], value, rtol=0, atol=0)


def test_a_switch_for_one_call():
    batch = pair(-10.0, -12.0, *TEAM)
    assert run(objective("spin"), batch, target_multiplier=6.0, player_gamma=0.5)[0] == run(objective("tpaw"), batch)[0]
    with pytest.raises(TutelageError, match="Did you mean 'player_gamma'"):
        run(objective("tpaw"), batch, player_gama=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be finite and positive"),
        ({"beta": math.nan}, "beta must be finite"),
        ({"target_multiplier": 0.0}, "1 switches it off"),
        ({"player_gamma": -0.5}, "player_gamma must be finite and not negative"),
        ({"supervised_weight": math.inf}, "supervised_weight must be finite"),
        ({"label_smoothing": 0.5}, r"\[0, 0.5\)"),
        ({"supervised_aggregation": "tokenmean"}, "Did you mean 'token_mean'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(TutelageError, match=message):
        Pairwise(**settings)


def test_reference_columns_of_another_shape():
    part = objective("dpo")
    batch = random_batch(part.requires)
    counts = part.denominators_of(batch)
    with pytest.raises(TutelageError, match=r"ref_B.unsqueeze\(1\)"):
        part(batch | {"ref_chosen_logp_BJ": batch["ref_chosen_logp_BJ"][:, 0]}, denominators=counts)
    with pytest.raises(TutelageError, match=r"shape \(6, 3\); expected \(7, J\)"):
        part(batch | {"ref_rejected_logp_BJ": batch["ref_rejected_logp_BJ"][:6]}, denominators=counts)
    with pytest.raises(TutelageError, match="3 players and `ref_rejected_logp_BJ` 2"):
        part(batch | {"ref_rejected_logp_BJ": batch["ref_rejected_logp_BJ"][:, :2]}, denominators=counts)


# --- TRL's own loss

ROWS = [
    ("12+3=", "15", "a9"),
    ("ab", "cdefg", "h"),
    ("7:", "7", "0123456"),
    ("x y", "zz top", "zz"),
    ("0", "1", "2"),
    ("99=", "abc", "cba"),
]


@pytest.fixture
def build(tmp_path):
    def make(rows=ROWS, **arguments):
        """A `DPOTrainer` whose reference has other weights than its policy, and one batch of all rows."""
        config = trl.DPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, disable_tqdm=True, **arguments
        )
        data = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
        reference = LlamaForCausalLM.from_pretrained(tiny.saved(tmp_path / "reference", seed=1))
        trainer = trl.DPOTrainer(
            model=tiny.model(seed=0), ref_model=reference, args=config, train_dataset=data, processing_class=tiny.tokenizer()
        )
        return trainer, trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])

    return make


def token_logp(model, inputs):
    """log π of every token but the first, and which of them belong to a reply; rows are all chosen, then all rejected."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    ids = inputs["input_ids"][:, 1:]
    return logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1), inputs["completion_mask"][:, 1:].bool()


def as_batch(trainer, inputs):
    logp, mask = token_logp(trainer.model, inputs)
    with torch.no_grad():
        ref = sequence_logp(*token_logp(trainer.ref_model, inputs)).unsqueeze(1)
    batch = {}
    for name, both in {"{}_logp_BT": logp, "{}_mask_BT": mask, "ref_{}_logp_BJ": ref}.items():
        batch[name.format("chosen")], batch[name.format("rejected")] = both.chunk(2)
    return batch


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def run_ours(trainer, inputs, part, splits=1):
    """Loss and gradients, each part scored by a forward pass of its own."""
    size = len(inputs["input_ids"]) // 2
    counts = part.denominators_of(as_batch(trainer, inputs))
    total = 0.0
    for rows in torch.arange(size).chunk(splits):
        both = torch.cat([rows, rows + size])
        loss, _ = part(as_batch(trainer, {key: x[both] for key, x in inputs.items()}), denominators=counts)
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


def assert_same(theirs, ours):
    assert ours[0] == pytest.approx(float(theirs[0]), abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    assert max(g.abs().max() for g in theirs[1].values()) > 1e-3
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("splits", [1, 2, 6])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_trl_sigmoid(build, beta, splits):
    trainer, inputs = build(beta=beta, loss_type="sigmoid")
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    theirs = (loss.item(), gradients(trainer.model))
    assert_same(theirs, run_ours(trainer, inputs, objective("dpo", beta=beta), splits))
    assert_same(theirs, run_ours(trainer, inputs, objective("tpaw", beta=beta, target_multiplier=1.0), splits))


def test_trl_sigmoid_ignores_label_smoothing(build):
    """What the docstring of `dpo` says of TRL 1.16; if this fails, TRL has changed and the parity below can be had directly."""
    trainer, inputs = build(loss_type="sigmoid", label_smoothing=0.3)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert_same((loss.item(), gradients(trainer.model)), run_ours(trainer, inputs, objective("dpo")))


def test_trl_with_label_smoothing(build):
    """TRL smooths labels in its `aot` loss, which on a batch of one pair, where sorting does nothing, is DPO's; summed over pairs."""
    trainer, inputs = build(loss_type="aot", label_smoothing=0.3, beta=0.5)
    size = len(ROWS)
    total = 0.0
    for row in range(size):
        both = torch.tensor([row, row + size])
        loss = trainer.compute_loss(trainer.model, {key: x[both] for key, x in inputs.items()}) / size
        loss.backward()
        total += loss.item()
    assert_same((total, gradients(trainer.model)), run_ours(trainer, inputs, objective("dpo", beta=0.5, label_smoothing=0.3)))


def test_trl_with_a_supervised_term(build):
    trainer, inputs = build(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7])
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    part = objective("dpo", supervised_weight=0.7, supervised_aggregation="token_mean")
    assert_same((loss.item(), gradients(trainer.model)), run_ours(trainer, inputs, part, splits=3))


def test_trl_margin_and_drift(build):
    trainer, inputs = build(beta=0.2)
    trainer.compute_loss(trainer.model, inputs)
    _, stats = run(objective("dpo", beta=0.2), as_batch(trainer, inputs))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert stats["margin"] == pytest.approx(logged["rewards/margins"], abs=1e-5)
    assert stats["accuracy"] == pytest.approx(logged["rewards/accuracies"])
    assert stats["target_drift"] * 0.2 == pytest.approx(logged["rewards/chosen"], abs=1e-5)
    assert stats["rejected_drift"] * 0.2 == pytest.approx(logged["rewards/rejected"], abs=1e-5)
