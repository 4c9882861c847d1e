"""Divergences and distillation against hand-computed numbers, closed-form gradients and TRL's own losses; top-k teachers; signals."""

from __future__ import annotations

import math
import warnings
from typing import get_args

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tutelage.errors import TutelageError  # noqa: E402
from tutelage.objectives import Distillation, Sum, TokenAverage, objective, token_divergence, top_k_events  # noqa: E402
from tutelage.objectives.divergence import Kind, MissingMass, divergence_between, infinite_without_teacher_mass  # noqa: E402
from tutelage.students import builtin_path  # noqa: E402
from tutelage.teachers.signal import Signal, tokenizer_hash  # noqa: E402
from tutelage.testing.objectives import check_objective, evaluate, random_batch  # noqa: E402

pytestmark = pytest.mark.lm
KINDS = get_args(Kind)
DIVERGENCES = [kind for kind in KINDS if kind != "soft_cross_entropy"]
REGISTERED = ["distill", "distill_top_k", "distillm_skl", "distillm_srkl", "gkd", "kd", "trl:distillation", "trl:gkd"]


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


TWO = logs(0.5, 0.5), logs(0.25, 0.75)  # teacher, student
THREE = logs(0.7, 0.2, 0.1), logs(0.2, 0.3, 0.5)


def quiet(**switches):
    """Distillation without the warning about β near its ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Distillation(**switches)


def normal(*shape, seed=0, scale=1.5):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the kernel: numbers of the sheet


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"kind": "forward_kl"}, 0.1438410362),
        ({"kind": "reverse_kl"}, 0.1308120359),
        ({"kind": "generalized_js", "beta": 0.5}, 0.0338220756),
        ({"kind": "generalized_js", "beta": 0.1}, 0.0127524291),
        ({"kind": "generalized_js", "beta": 0.9}, 0.0118306822),
        ({"kind": "generalized_js", "beta": 0.0}, 0.1438410362),
        ({"kind": "generalized_js", "beta": 1.0}, 0.1308120359),
        ({"kind": "continuous_js", "beta": 0.0}, 0.1438410362),
        ({"kind": "continuous_js", "beta": 0.1}, 0.1019829),
        ({"kind": "continuous_js", "beta": 0.5}, 0.0338220756),
        ({"kind": "continuous_js", "beta": 0.9}, 0.0964636),
        ({"kind": "continuous_js", "beta": 1.0}, 0.1308120359),
        ({"kind": "skewed_forward_kl", "alpha": 0.1}, 0.1131367222),
        ({"kind": "skewed_reverse_kl", "alpha": 0.1}, 0.1070427364),
        ({"kind": "skewed_forward_kl", "alpha": 0.5}, 0.0322692606),
        ({"kind": "skewed_reverse_kl", "alpha": 0.5}, 0.0353748906),
        ({"kind": "skewed_forward_kl", "alpha": 0.9}, 0.0012515651),
        ({"kind": "skewed_reverse_kl", "alpha": 0.9}, 0.0015986188),
        ({"kind": "skewed_forward_kl", "alpha": 0.0}, 0.1438410362),
        ({"kind": "skewed_reverse_kl", "alpha": 0.0}, 0.1308120359),
        ({"kind": "skewed_forward_kl", "alpha": 1.0}, 0.0),
        ({"kind": "skewed_reverse_kl", "alpha": 1.0}, 0.0),
        ({"kind": "total_variation"}, 0.25),
        ({"kind": "soft_cross_entropy"}, 0.8369882168),
        ({"kind": "symmetric_kl", "beta": 0.9}, 0.1 * 0.1438410362 + 0.9 * 0.1308120359),
        ({"kind": "forward_kl", "temperature": 2.0}, 0.0372522860),
        ({"kind": "reverse_kl", "temperature": 2.0}, 0.0363407829),
        ({"kind": "generalized_js", "temperature": 2.0}, 0.0091687528),
        ({"kind": "forward_kl", "temperature": 2.0, "scale_by_t2": True}, 0.1490091441),
        ({"kind": "forward_kl", "temperature": 4.0}, 0.0093997998),
        ({"kind": "forward_kl", "temperature": 4.0, "scale_by_t2": True}, 0.1503967966),
    ],
    ids=str,
)
def test_two_symbols(switches, expected):
    teacher, student = TWO
    assert token_divergence(student, teacher, **switches).item() == pytest.approx(expected, abs=1e-7)


def test_closed_forms_to_the_last_digit():
    ln = math.log
    teacher, student = TWO
    for kind, expected in (
        ("forward_kl", ln(4 / 3) / 2),
        ("reverse_kl", ln(1 / 2) / 4 + 0.75 * ln(3 / 2)),
        ("generalized_js", (ln(16 / 15) / 2 + ln(2 / 3) / 4 + 0.75 * ln(6 / 5)) / 2),
        ("soft_cross_entropy", ln(4 / 3) / 2 + ln(2)),
    ):
        assert token_divergence(student, teacher, kind=kind).item() == pytest.approx(expected, abs=1e-15)
    assert token_divergence(student, teacher, kind="skewed_forward_kl", alpha=0.5).item() == pytest.approx(ln(16 / 15) / 2, abs=1e-15)


def test_distillms_cross_entropy_forms():
    """Its code leaves the teacher's entropy (here ln 2) in the forward terms; figures of its float32 code."""
    teacher, student = TWO
    skewed = token_divergence(student, teacher, kind="skewed_forward_kl", alpha=0.1)
    assert skewed.item() + math.log(2) == pytest.approx(0.8062839, abs=1e-6)
    forward, reverse = (token_divergence(student, teacher, kind=kind).item() for kind in ("soft_cross_entropy", "reverse_kl"))
    assert 0.1 * forward + 0.9 * reverse == pytest.approx(0.2014297, abs=1e-6)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"kind": "forward_kl"}, 0.6348972651),
        ({"kind": "reverse_kl"}, 0.6758058950),
        ({"kind": "generalized_js", "beta": 0.1}, 0.0558908288),
        ({"kind": "generalized_js", "beta": 0.5}, 0.1513581116),
        ({"kind": "generalized_js", "beta": 0.9}, 0.0583987238),
        ({"kind": "skewed_forward_kl"}, 0.4938152504),
        ({"kind": "skewed_reverse_kl"}, 0.5077543218),
        ({"kind": "total_variation"}, 0.5),
    ],
    ids=str,
)
def test_three_symbols(switches, expected):
    teacher, student = THREE
    assert token_divergence(student, teacher, **switches).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"kind": "forward_kl"}, -0.25),
        ({"kind": "soft_cross_entropy"}, -0.25),
        ({"kind": "reverse_kl"}, -0.2059898),
        ({"kind": "generalized_js", "beta": 0.5}, -0.0551050),
        ({"kind": "generalized_js", "beta": 0.1}, -0.0218045),
        ({"kind": "generalized_js", "beta": 0.9}, -0.0187224),
        ({"kind": "skewed_forward_kl"}, -0.1904389),
        ({"kind": "skewed_reverse_kl"}, -0.1703069),
        ({"kind": "forward_kl", "temperature": 2.0}, -0.0669873),
        ({"kind": "forward_kl", "temperature": 2.0, "scale_by_t2": True}, -0.2679492),
    ],
    ids=str,
)
def test_gradients_of_two_symbols(switches, expected):
    teacher, student = (x.clone().requires_grad_() for x in TWO)
    token_divergence(student, teacher, **switches).backward()
    assert student.grad.tolist() == pytest.approx([expected, -expected], abs=1e-7)
    assert teacher.grad is None


def test_closed_form_gradients():
    student, teacher = normal(6, 5, seed=1).requires_grad_(), normal(6, 5, seed=2)
    q, p = student.detach().softmax(-1), teacher.softmax(-1)

    def gradient(**switches):
        return torch.autograd.grad(token_divergence(student, teacher, **switches).sum(), student)[0]

    def centred(score):
        return q * (score - (q * score).sum(-1, keepdim=True))

    torch.testing.assert_close(gradient(kind="forward_kl"), q - p)
    torch.testing.assert_close(gradient(kind="reverse_kl"), centred((q / p).log()))
    for weight in (0.1, 0.5, 0.9):
        m = weight * p + (1 - weight) * q
        torch.testing.assert_close(gradient(kind="skewed_forward_kl", alpha=weight), -(1 - weight) * centred(p / m))
        torch.testing.assert_close(gradient(kind="generalized_js", beta=weight), (1 - weight) * centred((q / m).log()))
        torch.testing.assert_close(
            gradient(temperature=1 / weight), weight * (((student * weight).softmax(-1)) - (teacher * weight).softmax(-1))
        )


def test_generalized_js_near_its_ends_is_a_vanishing_multiple_of_them():
    teacher, student = TWO
    near = [token_divergence(student, teacher, kind="generalized_js", beta=beta).item() / 0.001 for beta in (0.001, 0.999)]
    assert near == pytest.approx([0.1436744, 0.1306870], abs=1e-7)
    for beta, kind in ((1e-12, "forward_kl"), (1 - 1e-12, "reverse_kl")):
        assert token_divergence(student, teacher, kind="generalized_js", beta=beta).item() < 1e-11
        continuous = token_divergence(student, teacher, kind="continuous_js", beta=beta)
        torch.testing.assert_close(continuous, token_divergence(student, teacher, kind=kind), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["generalized_js", "continuous_js", "symmetric_kl"])
@pytest.mark.parametrize(("beta", "end"), [(0, "forward_kl"), (1, "reverse_kl")])
def test_ends_of_beta_are_the_two_kl_exactly(kind, beta, end):
    teacher, student = normal(3, 7, seed=1), normal(3, 7, seed=2).requires_grad_()
    got, expected = (token_divergence(student, teacher, kind=k, beta=beta) for k in (kind, end))
    assert torch.equal(got, expected)
    assert torch.equal(*(torch.autograd.grad(x.sum(), student)[0] for x in (got, expected)))


def test_teacher_temperature_is_apart():
    teacher, student = normal(4, 6, seed=3), normal(4, 6, seed=4)
    both = token_divergence(student, teacher, temperature=2.0)
    torch.testing.assert_close(token_divergence(student / 2, teacher / 2), both)
    torch.testing.assert_close(token_divergence(student, teacher, teacher_temperature=2.0), token_divergence(student, teacher / 2))
    torch.testing.assert_close(token_divergence(teacher / 2, teacher, teacher_temperature=2.0), torch.zeros(4).double(), rtol=0, atol=1e-15)
    apart = token_divergence(student, teacher, temperature=3.0, teacher_temperature=2.0, scale_by_t2=True)
    torch.testing.assert_close(apart, 9 * token_divergence(student / 3, teacher / 2))


def test_the_gradient_times_t2_tends_to_the_centred_logits():
    student, teacher = normal(5, seed=5).requires_grad_(), normal(5, seed=6)
    token_divergence(student, teacher, temperature=1e5, scale_by_t2=True).backward()
    expected = (student - student.mean() - teacher + teacher.mean()).detach() / 5
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-4)


@given(
    seed=st.integers(0, 10_000),
    weight=st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 1 - 1e-6),
    shift=st.floats(-20, 20),
    temperature=st.floats(0.3, 5.0),
)
@settings(max_examples=40, deadline=None)
def test_laws(seed, weight, shift, temperature):
    student, teacher = normal(3, 6, seed=seed).requires_grad_(), normal(3, 6, seed=seed + 1)
    switches = {"beta": weight, "alpha": weight, "temperature": temperature}
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    value = {kind: token_divergence(student, teacher, kind=kind, **switches) for kind in KINDS}
    for kind in DIVERGENCES:
        assert (value[kind] >= -1e-12).all()
        assert token_divergence(teacher + shift, teacher, kind=kind, **switches).abs().max() < 1e-12
        for other in ((student + shift, teacher - shift), (student[:, order], teacher[:, order])):
            torch.testing.assert_close(token_divergence(*other, kind=kind, **switches), value[kind], rtol=1e-9, atol=1e-12)
        if kind == "skewed_forward_kl" and weight == 1:  # of the teacher with itself
            assert (value[kind] == 0).all()
            continue
        (grad,) = torch.autograd.grad(value[kind].sum(), student, retain_graph=True)
        torch.testing.assert_close(grad.sum(-1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    swapped = {"temperature": temperature, "alpha": weight}
    if 0 < weight < 1:
        torch.testing.assert_close(
            token_divergence(teacher, student, kind="generalized_js", beta=1 - weight, temperature=temperature), value["generalized_js"]
        )
        entropy = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
        assert (value["generalized_js"] <= entropy + 1e-12).all()
    torch.testing.assert_close(token_divergence(teacher, student, kind="skewed_forward_kl", **swapped), value["skewed_reverse_kl"])
    assert (2 * value["total_variation"] ** 2 <= torch.minimum(value["forward_kl"], value["reverse_kl"]) + 1e-12).all()
    assert (value["skewed_forward_kl"] <= (1 - weight) * value["forward_kl"] + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_probabilities(kind):
    """−∞ on both sides (padded vocabulary) changes neither value nor gradient; a lone one gives the exact, perhaps infinite, value."""
    student, teacher = normal(2, 4, seed=1).requires_grad_(), normal(2, 4, seed=2)
    none = torch.full((2, 2), -math.inf, dtype=torch.float64)
    plain, padded = (
        token_divergence(torch.cat([student, x], -1), torch.cat([teacher, x], -1), kind=kind, beta=0.3) for x in (none[:, :0], none)
    )
    torch.testing.assert_close(padded, plain)
    got, expected = (torch.autograd.grad(x.sum(), student)[0] for x in (padded, plain))
    torch.testing.assert_close(got, expected)
    one_sided = token_divergence(logs(0.5, 0.5), logs(1.0, 0.0), kind=kind, beta=0.5, alpha=0.1).item()
    assert math.isinf(one_sided) == infinite_without_teacher_mass(kind=kind, beta=0.5, alpha=0.1)
    if kind == "forward_kl":
        assert one_sided == pytest.approx(math.log(2))
        assert token_divergence(logs(1.0, 0.0), logs(0.5, 0.5), kind=kind).item() == math.inf


def test_sequence_chain_rule():
    """Per-step divergences under the teacher's own text add up to the divergence of whole sequences, enumerated."""
    first, second = (logs(0.5, 0.5), logs(0.25, 0.75)), ((logs(0.5, 0.5), logs(0.5, 0.5)), (logs(0.25, 0.75), logs(0.5, 0.5)))
    steps = token_divergence(first[1], first[0]) + 0.5 * sum(token_divergence(q, p) for p, q in second)
    whole = torch.stack([torch.cat([first[side][i] + second[i][side] for i in (0, 1)]) for side in (0, 1)])
    assert steps.item() == pytest.approx(0.2092470542, abs=1e-10)
    assert divergence_between(whole[0], whole[1], kind="forward_kl").item() == pytest.approx(0.2092470542, abs=1e-10)


# --- reductions


def four_positions():
    """The sheet's two sequences: per-token forward KL (0.1438410, 0; 0.1438410, 0.5108256), the last position not supervised."""
    student = torch.stack([torch.stack([logs(0.25, 0.75), logs(0.5, 0.5)]), torch.stack([logs(0.75, 0.25), logs(0.9, 0.1)])])
    return {
        "logp_BTV": student.requires_grad_(),
        "teacher_logp_BTV": logs(0.5, 0.5).expand(2, 2, 2).clone(),
        "mask_BT": torch.tensor([[True, True], [True, False]]),
    }


def loss_of(part, batch, **hyper):
    return part(batch, denominators=part.denominators_of(batch), **hyper)[0]


def test_reductions():
    batch = four_positions()
    part = objective("distill")
    assert part.token_values(batch).flatten().tolist() == pytest.approx([0.1438410362, 0, 0.1438410362, 0])
    assert loss_of(part, batch).item() == pytest.approx(0.0958940242, abs=1e-10)
    assert part(batch, denominators={"tokens": torch.tensor(6)})[0].item() == pytest.approx(0.0479470121, abs=1e-10)
    assert loss_of(part, batch, aggregation="seq_mean_token_mean").item() == pytest.approx(0.1078807772, abs=1e-10)
    batch["mask_BT"] = torch.ones(2, 2, dtype=torch.bool)
    assert part.token_values(batch)[1, 1].item() == pytest.approx(0.5108256, abs=1e-7)
    assert loss_of(part, batch, aggregation="seq_mean_token_sum").item() == pytest.approx(0.3992538481, abs=1e-10)
    batch["mask_BT"] = torch.zeros(2, 2, dtype=torch.bool)
    assert loss_of(part, batch).item() == 0.0


@pytest.mark.parametrize(
    ("alpha", "tau", "expected"), [(0.5, 1.0, 0.2157615543), (0.5, 2.0, 0.2183456083), (0.1, 4.0, 0.1641253242), (1.0, 2.0, 0.2876820725)]
)
def test_hard_and_soft_terms_sum_to_torchdistills(alpha, tau, expected):
    teacher, student = TWO
    batch = {
        "logp_BTV": student.view(1, 1, 2),
        "teacher_logp_BTV": teacher.view(1, 1, 2),
        "logp_BT": student[1].view(1, 1),
        "mask_BT": torch.ones(1, 1, dtype=torch.bool),
    }
    both = Sum({"hard": (objective("nll"), alpha), "soft": (objective("kd", temperature=tau), 1 - alpha)})
    assert loss_of(both, batch).item() == pytest.approx(expected, abs=1e-10)


def test_sequence_level_distillation_is_nll_on_the_teachers_samples():
    """Its expectation over the teacher's samples is the soft cross-entropy: the forward KL of sequences plus the teacher's entropy."""
    teacher, student = THREE
    batch = {"logp_BT": student.view(3, 1), "mask_BT": torch.ones(3, 1, dtype=torch.bool)}  # each symbol sampled once
    part = TokenAverage(key="logp_BT", scale=-1.0)
    nll_B = torch.stack([loss_of(part, {key: x[i : i + 1] for key, x in batch.items()}) for i in range(3)])
    torch.testing.assert_close((teacher.exp() * nll_B).sum(), token_divergence(student, teacher, kind="soft_cross_entropy"))
    torch.testing.assert_close(loss_of(objective("nll"), batch), nll_B.mean())


# --- the battery


@pytest.mark.parametrize("name", REGISTERED)
def test_battery_of_registered(name):
    check_objective(lambda: objective(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing_mass", [None, *get_args(MissingMass)])
def test_battery_of_kinds(kind, missing_mass):
    if missing_mass == "zero" and infinite_without_teacher_mass(kind=kind, beta=0.3, alpha=0.2):
        with pytest.raises(TutelageError, match="infinite wherever the teacher has no mass"):
            Distillation(kind=kind, beta=0.3, alpha=0.2, missing_mass=missing_mass)
        return
    teacher = {"temperature": 1.7, "scale_by_t2": True, "teacher_temperature": 1.0 if missing_mass == "tail" else 0.8}
    part = Distillation(kind=kind, beta=0.3, alpha=0.2, missing_mass=missing_mass, **teacher)
    check_objective(lambda: part)


def test_battery_of_aggregations_and_of_a_sum_with_its_own_masks():
    check_objective(lambda: Distillation(aggregation="group_token_mean", kind="reverse_kl"))
    check_objective(lambda: Distillation(aggregation="seq_mean_token_sum_norm", drop_empty=True))
    mixed = Sum(
        {
            "policy": (objective("grpo", kl_coef=0.0), 1.0),
            "soft": (objective("gkd", mask="expert_mask_BT"), 0.5),
            "sparse": (objective("distill_top_k", kind="reverse_kl"), 0.1),
        }
    )
    check_objective(lambda: mixed, policy_only={"weights": {"soft": 0.0, "sparse": 0.0}})
    batch = random_batch(mixed.requires)
    counts = mixed.denominators_of(batch)
    assert counts["soft/tokens"] == batch["expert_mask_BT"].sum() != counts["sparse/tokens"] == batch["mask_BT"].sum()


def test_sequence_means_depend_on_rows_and_token_means_on_tokens():
    part = objective("gkd")
    batch = random_batch(part.requires)
    per_row = part.token_values(batch).sum(1) / batch["mask_BT"].sum(1).clamp(min=1)
    torch.testing.assert_close(loss_of(part, batch), per_row.mean())
    torch.testing.assert_close(loss_of(objective("trl:gkd"), batch), part.token_values(batch).sum() / batch["mask_BT"].sum())


# --- TRL


def trl_batch(dtype=torch.float64):
    batch = random_batch({"logp_BTV", "teacher_logp_BTV", "mask_BT"})
    return {key: x.to(dtype) if x.is_floating_point() else x for key, x in batch.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_trls_gkd(beta, temperature):
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer
    batch = trl_batch()
    labels_BT = torch.where(batch["mask_BT"], 1, -100)
    part = quiet(kind="generalized_js", beta=beta, temperature=temperature)
    for count in (None, 11):
        theirs = batch["logp_BTV"].clone().requires_grad_()
        loss = gkd.generalized_jsd_loss(
            theirs, batch["teacher_logp_BTV"], labels=labels_BT, beta=beta, temperature=temperature, num_items_in_batch=count
        )
        loss.backward()
        counts = part.denominators_of(batch) if count is None else {"tokens": torch.tensor(count)}
        ours = evaluate(part, batch, counts, torch.arange(7).split(3))
        torch.testing.assert_close(ours["loss"], loss.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours["grad/logp_BTV"], theirs.grad, rtol=0, atol=1e-6)
        if beta in (0.0, 1.0):  # at other values TRL rounds beta itself to the student's precision
            torch.testing.assert_close(ours["loss"], loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.0, 1.0), (0.5, 2.0), (0.1, 0.7)])
def test_trls_distillation_trainer(beta, temperature):
    theirs = pytest.importorskip("trl.trainer.distillation_trainer")._chunked_divergence_loss
    batch = trl_batch(torch.float32)
    hidden, head = batch["logp_BTV"].clone().requires_grad_(), torch.eye(5)
    count = batch["mask_BT"].sum()
    loss, _, tokens = theirs(
        hidden, batch["teacher_logp_BTV"], head, head, batch["mask_BT"], beta, num_items_in_batch=count, temperature=temperature
    )
    loss.backward()
    part = objective("trl:distillation", beta=beta, temperature=temperature)
    assert tokens == count
    ours = evaluate(part, batch, part.denominators_of(batch))
    torch.testing.assert_close(ours["loss"], loss.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["grad/logp_BTV"], hidden.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("missing_mass", ["tail", "renormalise"])
def test_trls_top_k(beta, missing_mass):
    """TRL's self-distillation takes the *student's* top k entries of a local teacher; ours takes any ids."""
    theirs = pytest.importorskip("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    student, teacher = normal(2, 3, 9, seed=1).requires_grad_(), normal(2, 3, 9, seed=2)
    expected = theirs(student, teacher, distillation_topk=4, distillation_alpha=beta, distillation_add_tail=missing_mass == "tail")
    ids = student.topk(4).indices
    batch = {
        "logp_BTV": student,
        "teacher_top_ids_BTK": ids,
        "teacher_top_logp_BTK": teacher.log_softmax(-1).gather(-1, ids),
        "mask_BT": torch.ones(2, 3, dtype=torch.bool),
    }
    got = quiet(kind="generalized_js", beta=beta, missing_mass=missing_mass).token_values(batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


# --- top k


def top(teacher, k):
    values, ids = teacher.log_softmax(-1).topk(k)
    return ids, values


@pytest.mark.parametrize("missing_mass", get_args(MissingMass))
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_top_k_with_all_mass_is_dense(kind, missing_mass):
    student, teacher = normal(4, 6, seed=1).requires_grad_(), normal(4, 6, seed=2)
    switches = {"kind": kind, "beta": 0.3, "alpha": 0.2}
    dense = token_divergence(student, teacher, **switches, temperature=2.0, teacher_temperature=1.0)
    events = top_k_events(student, *top(teacher, 6), missing_mass=missing_mass, temperature=2.0)
    torch.testing.assert_close(divergence_between(*events, **switches), dense)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (divergence_between(*events, **switches), dense)]
    torch.testing.assert_close(*gradients)


def test_zero_is_a_teacher_cut_off_at_k():
    student, teacher = normal(4, 8, seed=1).requires_grad_(), normal(4, 8, seed=2)
    ids, values = top(teacher, 3)
    cut = torch.full_like(teacher, -math.inf).scatter(-1, ids, values)
    for kind in ("forward_kl", "generalized_js", "continuous_js", "skewed_forward_kl", "skewed_reverse_kl", "total_variation"):
        got = divergence_between(*top_k_events(student, ids, values, missing_mass="zero"), kind=kind, beta=0.4)
        dense = token_divergence(student, cut, kind=kind, beta=0.4)
        torch.testing.assert_close(got, dense)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (got, dense)))


def test_renormalise_is_the_divergence_of_the_conditionals():
    student, teacher = normal(4, 8, seed=1), normal(4, 8, seed=2)
    ids, values = top(teacher, 3)
    got = divergence_between(*top_k_events(student, ids, values, missing_mass="renormalise", teacher_temperature=2.0), kind="reverse_kl")
    expected = token_divergence(student.gather(-1, ids), teacher.gather(-1, ids), kind="reverse_kl", teacher_temperature=2.0)
    torch.testing.assert_close(got, expected)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 7), kind=st.sampled_from(DIVERGENCES))
@settings(max_examples=40, deadline=None)
def test_a_tail_never_adds_to_the_dense_divergence_and_more_entries_never_take_from_it(seed, k, kind):
    student, teacher = normal(3, 8, seed=seed), normal(3, 8, seed=seed + 1)
    value = {}
    for size in (k, 8):
        events = top_k_events(student, *top(teacher, size), missing_mass="tail")
        assert (events[0].exp().sum(-1) - 1).abs().max() < 1e-12
        assert (events[1].exp().sum(-1) - 1).abs().max() < 1e-12
        value[size] = divergence_between(*events, kind=kind, beta=0.3, alpha=0.2)
    assert (value[k] <= value[8] + 1e-9).all()
    less = divergence_between(*top_k_events(student, *top(teacher, max(1, k - 1)), missing_mass="tail"), kind=kind, beta=0.3, alpha=0.2)
    assert (less <= value[k] + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_confident_teacher_in_single_precision_stays_finite(kind):
    """All mass in the top k up to rounding, a student sure of the same token: values and gradients are finite, the tail has its floor."""
    teacher = torch.tensor([[60.0, 0, 0, 0, 0], [200.0, 100, 0, 0, 0]]).log_softmax(-1)
    student = torch.tensor([[50.0, 0, 0, 0, 0], [0, 0, 0, 0, 300.0]], requires_grad=True)
    events = top_k_events(student, *top(teacher, 2), missing_mass="tail")
    assert events[0][:, -1].exp().tolist() == pytest.approx([1e-7, 1e-7], rel=1e-3)
    value = divergence_between(*events, kind=kind)
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert grad.isfinite().all()


def test_the_mass_of_the_top_k_is_reported():
    part = objective("distill_top_k")
    batch = random_batch(part.requires)
    _, stats = part(batch, denominators=part.denominators_of(batch))
    mass_N = batch["teacher_top_logp_BTK"][batch["mask_BT"]].exp().sum(-1)
    torch.testing.assert_close(stats["mass"], mass_N.mean())


# --- errors


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"kind": "forwardkl"}, "Unknown divergence 'forwardkl'. Did you mean 'forward_kl'"),
        ({"beta": 1.2}, r"beta=1.2 .* lies in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"temperature": 0.0}, "temperature=0.0 divides the logits"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0 divides"),
        ({"kind": "skewed_reverse_kl", "alpha": 1.0}, "compares a distribution with itself"),
        ({"missing_mass": "tail", "temperature": 2.0}, "known only at the temperature they were recorded at"),
        ({"missing_mass": "zero", "kind": "generalized_js", "beta": 1.0}, "infinite wherever the teacher has no mass"),
    ],
    ids=str,
)
def test_switches_without_meaning(switches, said):
    with pytest.raises(TutelageError, match=said):
        Distillation(**switches)


def test_beta_near_an_end_warns_and_an_end_does_not():
    with pytest.warns(UserWarning, match="near its ends beta scales the loss down"):
        objective("gkd", beta=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for beta in (0.0, 0.05, 0.5, 0.95, 1.0):
            objective("gkd", beta=beta)


def test_errors_of_batches():
    part = objective("distill")
    batch = random_batch(part.requires)
    counts = part.denominators_of(batch)
    with pytest.raises(TutelageError, match="vocabulary: models of different tokenizers"):
        part({**batch, "teacher_logp_BTV": batch["teacher_logp_BTV"][..., :-1]}, denominators=counts)
    for wrong in (batch["logp_BTV"][:, :-1], batch["logp_BTV"][..., 0]):
        with pytest.raises(TutelageError, match="disagree in shape"):
            part({**batch, "logp_BTV": wrong}, denominators=counts)
    with pytest.raises(TutelageError, match="Unknown setting of Distillation 'betta'"):
        part(batch, denominators=counts, betta=0.5)
    sparse = objective("distill_top_k")
    batch = random_batch(sparse.requires)
    for wrong, said in ((batch["teacher_top_ids_BTK"] + 3, "ids from 3 to 7"), (batch["teacher_top_ids_BTK"][..., :2], "does not fit")):
        with pytest.raises(TutelageError, match=said):
            sparse({**batch, "teacher_top_ids_BTK": wrong}, denominators=counts)
    with pytest.raises(TutelageError, match="Unknown missing-mass policy 'tails'"):
        top_k_events(normal(2, 4), *top(normal(2, 4), 2), missing_mass="tails")


# --- signals


class Tokenizer:
    def __init__(self, **vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


HASH = tokenizer_hash(Tokenizer(a=0, b=1, c=2))


def sparse_signal(teacher=None, k=2, **changes):
    ids, values = top(normal(2, 3, 6) if teacher is None else teacher, k)
    fields = {"vocabulary": 6, "tokenizer": HASH, "top_ids_BTK": ids, "top_logp_BTK": values, "missing_mass": "tail"}
    return Signal(**fields | changes)


def test_a_tokenizers_hash_is_of_ids_and_text_alone():
    assert tokenizer_hash(Tokenizer(c=2, a=0, b=1)) == HASH
    assert len(HASH) == 32
    assert (
        len({HASH, *(tokenizer_hash(Tokenizer(**v)) for v in ({"a": 0, "b": 2, "c": 1}, {"a": 0, "b": 1}, {"a": 0, "b": 1, "d": 2}))}) == 4
    )


def test_the_hash_of_a_real_tokenizer():
    from_pretrained = pytest.importorskip("transformers").AutoTokenizer.from_pretrained
    ours = from_pretrained(builtin_path())
    assert tokenizer_hash(ours) == tokenizer_hash(from_pretrained(builtin_path()))
    before = tokenizer_hash(ours)
    ours.add_tokens(["<tool>"])
    assert tokenizer_hash(ours) != before


def test_signals_feed_the_objective_at_the_right_temperature():
    student, logits = normal(2, 3, 6, seed=1), normal(2, 3, 6, seed=2)
    batch = {"logp_BTV": student, "mask_BT": torch.ones(2, 3, dtype=torch.bool)}
    expected = token_divergence(student, logits, temperature=3.0).mean()
    for taken_at in (1.0, 2.0):
        dense = Signal(vocabulary=6, tokenizer=HASH, logp_BTV=(logits / taken_at).log_softmax(-1), temperature=taken_at)
        part = objective("distill", temperature=3.0, **dense.switches(temperature=3.0))
        torch.testing.assert_close(loss_of(part, {**batch, **dense.columns()}), expected)
        whole = sparse_signal(logits / taken_at, 6, temperature=taken_at, missing_mass="renormalise")
        part = objective("distill_top_k", temperature=3.0, **whole.switches(temperature=3.0))
        torch.testing.assert_close(loss_of(part, {**batch, **whole.columns()}), expected)
    tail = sparse_signal(logits / 3, 4, temperature=3.0)
    part = objective("distill_top_k", temperature=3.0, **tail.switches(temperature=3.0))
    assert 0 < loss_of(part, {**batch, **tail.columns()}) < expected
    with pytest.raises(TutelageError, match="Record the teacher at the wanted temperature"):
        objective("distill_top_k", temperature=2.0, **tail.switches(temperature=2.0))


def test_a_student_of_another_vocabulary_or_tokenizer_is_refused():
    signal = sparse_signal()
    signal.check_student(vocabulary=6, tokenizer=HASH)
    with pytest.raises(TutelageError, match=r"tokenizer .* is not the student's .* equal ids would mean different text"):
        signal.check_student(vocabulary=6, tokenizer=tokenizer_hash(Tokenizer(a=1)))
    with pytest.raises(TutelageError, match="runs over 6 entries and the student's over 8"):
        signal.check_student(vocabulary=8, tokenizer=HASH)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_ids_BTK": None}, "got top_logp_BTK, missing_mass"),
        ({"logp_BTV": normal(2, 3, 6).log_softmax(-1)}, "A signal is dense .* or top k"),
        ({"missing_mass": None}, "Unknown missing-mass policy 'None'"),
        ({"temperature": 0.0}, "temperature is positive"),
        ({"top_ids_BTK": torch.zeros(2, 3, 2, dtype=torch.long)}, "repeats an id"),
        ({"vocabulary": 1}, "expected 1 to 1"),
        ({"top_ids_BTK": torch.arange(2).expand(2, 3, 2) + 5}, "holds 6; ids of a vocabulary of 6 go from 0 to 5"),
        ({"top_ids_BTK": torch.arange(2).expand(2, 3, 2) - 1}, "holds -1"),
        ({"top_ids_BTK": torch.zeros(2, 3, 2)}, "do not belong together"),
        ({"top_logp_BTK": torch.zeros(2, 3, 2)}, "sum to 2"),
    ],
    ids=str,
)
def test_bad_sparse_signals(changes, said):
    with pytest.raises(TutelageError, match=said):
        sparse_signal(**changes)


def test_bad_dense_signals_and_padding():
    logp_BTV = normal(2, 3, 6).log_softmax(-1)
    with pytest.raises(TutelageError, match=r"shape \(2, 3, 6\); expected \(B, T, 5\)"):
        Signal(vocabulary=5, tokenizer=HASH, logp_BTV=logp_BTV)
    with pytest.raises(TutelageError, match="Likely cause: logits"):
        Signal(vocabulary=6, tokenizer=HASH, logp_BTV=logp_BTV + 1)
    Signal(vocabulary=6, tokenizer=HASH, logp_BTV=logp_BTV.bfloat16())
    padded, ids = logp_BTV.clone(), torch.full((2, 3, 2), -1)
    padded[:, 2], ids[:, :2] = math.nan, torch.arange(2)
    Signal(vocabulary=6, tokenizer=HASH, logp_BTV=padded)
    sparse_signal(top_ids_BTK=ids, top_logp_BTK=padded[..., :2])
