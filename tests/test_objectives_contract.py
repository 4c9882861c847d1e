"""The battery over every registered objective, over composed ones, and over broken ones that it must catch."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tutelage.errors import TutelageError  # noqa: E402
from tutelage.objectives import (  # noqa: E402
    PRESETS,
    Objective,
    PolicyGradient,
    Sum,
    TokenAverage,
    check_batch,
    denominators_of,
    objective,
    requires,
)
from tutelage.objectives.unlearning import Forget  # noqa: E402
from tutelage.registry import objectives  # noqa: E402
from tutelage.testing.objectives import check_objective, evaluate, random_batch  # noqa: E402

pytestmark = pytest.mark.lm
POLICY_ONLY = {"kl_coef": 0.0}
SUMS = {"sasr": {"weights": {"imitate": 0.0}}}


def stops_gradients(part):
    if isinstance(part, Forget):
        return part.kind in ("wga", "satimp")
    return isinstance(part, PolicyGradient) and (part.surrogate == "cispo" or part.kl_straight_through)


@pytest.mark.parametrize("name", objectives.names())
def test_every_registered_objective(name):
    policy_only = SUMS.get(name, POLICY_ONLY)
    check_objective(lambda: objective(name), policy_only=policy_only, finite_differences=not stops_gradients(objective(name)))


@pytest.mark.parametrize(
    "switches",
    [
        {"kl": "k1", "kl_coef": 0.3},
        {"kl": "k2", "kl_coef": 0.3, "aggregation": "token_mean"},
        {"kl": "k3", "kl_coef": 0.3, "kl_importance": True, "aggregation": "seq_mean_token_sum"},
        {"kl": "k1", "kl_coef": 0.3, "kl_straight_through": True},
        {"kl": "k3", "kl_coef": 0.3, "kl_inner_clamp": 20.0, "kl_clamp": 10.0, "kl_straight_through": True},
        {"aggregation": "group_token_mean", "dual_clip": 1.5},
        {"ratio": "seq_sum", "aggregation": "token_sum_norm", "advantage": "given"},
        {"ratio": "seq_mean_token", "surrogate": "cispo", "clip_low": None},
        {"clip_low": None, "clip_high": None},
        {"drop_empty": True, "aggregation": "seq_mean_token_sum_norm", "max_length": 5},
    ],
    ids=str,
)
def test_switches(switches):
    part = PolicyGradient(**switches)
    check_objective(lambda: part, policy_only=POLICY_ONLY, finite_differences=not stops_gradients(part))


def three_parts():
    return Sum(
        {
            "policy": (objective("dapo", kl_coef=0.1), 1.0),
            "entropy": (objective("entropy"), 0.01),
            "imitate": (objective("nll", mask="expert_mask_BT"), 0.3),
        }
    )


def test_sums():
    check_objective(three_parts, policy_only={"policy": POLICY_ONLY, "weights": {"entropy": 0.0, "imitate": 0.0}})
    nested = Sum({"all": (three_parts(), 0.5), "more": (TokenAverage(key="extra_BT", aggregation="group_token_mean"), 2.0)})
    check_objective(
        lambda: nested, policy_only={"all": {"policy": POLICY_ONLY, "weights": {"entropy": 0.0, "imitate": 0.0}}, "weights": {"more": 0.0}}
    )


@given(
    seed=st.integers(0, 10_000),
    owner_B=st.lists(st.integers(0, 4), min_size=7, max_size=7),
    name=st.sampled_from(["grpo", "dapo", "dr_grpo", "gspo", "gspo_token", "rloo", "cispo", "verl:grpo", "openrlhf:reinforce"]),
)
@settings(max_examples=60, deadline=None)
def test_any_partition_leaves_loss_stats_and_gradients(seed, owner_B, name):
    part = objective(name)
    batch = random_batch(part.requires, rows=7, seed=seed)
    counts = part.denominators_of(batch, max_length=9)
    owner = torch.tensor(owner_B)
    parts = [(owner == rank).nonzero().flatten() for rank in sorted(set(owner_B))]
    split, whole = evaluate(part, batch, counts, parts), evaluate(part, batch, counts)
    assert split.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-9, atol=1e-11)


def test_processes_sum_their_counts():
    part = objective("grpo", aggregation="group_token_mean")
    batch = random_batch(part.requires, rows=6)
    ranks = [{key: x[rows] for key, x in batch.items()} for rows in (slice(0, 3), slice(3, 6))]
    whole = part.denominators_of(batch)
    assert set(whole) == {"sequences", "nonempty", "tokens", "groups"}
    for key, count in whole.items():
        assert sum(part.denominators_of(rank)[key] for rank in ranks) == count


def test_counts_of_one_micro_batch_are_what_the_contract_warns_of():
    """Counting per micro-batch and averaging (TRL's bnpo) depends on the split; counting once does not."""
    part = objective("trl:bnpo")
    batch = random_batch(part.requires)
    halves = [{key: x[rows] for key, x in batch.items()} for rows in (slice(0, 3), slice(3, 7))]
    local = sum(part(half, denominators=part.denominators_of(half))[0] for half in halves) / 2
    whole = part(batch, denominators=part.denominators_of(batch))[0]
    assert (local - whole).abs() > 1e-3


class Broken:
    """The mean log-likelihood, right but for one fault."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.requires = frozenset({"logp_BT", "mask_BT", "advantage_B"} | ({"entropy_BT"} if fault == "declares" else set()))

    def denominators_of(self, batch, *, max_length=None):
        return denominators_of(batch, max_length=max_length)

    def __call__(self, batch, *, denominators):
        if self.fault != "no check":
            check_batch(self.requires - {"entropy_BT"}, batch)
        mask_BT = batch["mask_BT"].bool()
        logp_BT = (
            batch["logp_BT"] if self.fault == "half" else batch["logp_BT"].to(torch.promote_types(batch["logp_BT"].dtype, torch.float32))
        )
        logp_BT = logp_BT * mask_BT if self.fault == "nan" else torch.where(mask_BT, logp_BT, 0.0)
        tokens = {"local": mask_BT.sum().clamp(min=1), "width": torch.tensor(mask_BT.numel())}.get(self.fault, denominators["tokens"])
        advantage_B = batch["advantage_B"].to(logp_BT) + (1.0 if self.fault == "bias" else 0.0)
        if self.fault != "flows":
            advantage_B = advantage_B.detach()
        if self.fault == "draws":
            torch.rand(1)
        loss = -(advantage_B.unsqueeze(1) * logp_BT).sum() / tokens
        if self.fault == "mutates":
            batch["advantage_B"].add_(1.0)
        if self.fault == "slope":
            loss = loss + (logp_BT - logp_BT.detach()).sum() / tokens
        if self.fault == "backward":
            loss = loss.detach() + 1.01 * (loss - loss.detach())
        stats = {"mean": loss if self.fault == "attached" else loss.detach()}
        if self.fault == "stat":
            stats["mean"] = stats["mean"] * 0 + mask_BT.any(1).float().mean()
        return loss, stats


def test_the_right_one_passes():
    check_objective(Broken)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("local", "changes loss"),
        ("width", "changes loss"),
        ("nan", "NaN at masked positions"),
        ("no check", "not KeyError"),
        ("declares", "declared in `requires`"),
        ("bias", "zero advantage leaves"),
        ("flows", "a gradient flows into advantage_B"),
        ("draws", "global random generator"),
        ("mutates", "changes its batch"),
        ("attached", "stats must be detached"),
        ("stat", "changes stats/mean"),
        ("half", "single precision"),
        ("backward", "Jacobian mismatch"),
        ("slope", "zero advantage leaves"),
    ],
)
def test_the_battery_catches(fault, message):
    from torch.autograd.gradcheck import GradcheckError

    with pytest.raises((AssertionError, GradcheckError), match=message):
        check_objective(lambda: Broken(fault))


def test_a_plain_function_is_an_objective():
    @requires("logp_BT", "mask_BT")
    def likelihood(batch, *, denominators):
        check_batch(likelihood.requires, batch)
        x_BT = batch["logp_BT"].to(torch.promote_types(batch["logp_BT"].dtype, torch.float32))
        return -torch.where(batch["mask_BT"], x_BT, 0.0).sum() / denominators["tokens"], {}

    assert isinstance(likelihood, Objective)
    check_objective(lambda: likelihood)
    check_objective(lambda: Sum({"likelihood": (likelihood, 0.5), "again": (objective("nll"), 1.0)}))


def test_each_part_of_a_sum_has_its_own_counts():
    parts = three_parts()
    batch = random_batch(parts.requires)
    counts = parts.denominators_of(batch)
    assert counts["imitate/tokens"] == batch["expert_mask_BT"].sum() != counts["policy/tokens"] == batch["mask_BT"].sum()
    loss, stats = parts(batch, denominators=counts)
    policy = objective("dapo", kl_coef=0.1)
    alone, _ = policy(batch, denominators=policy.denominators_of(batch))
    nll = -batch["logp_BT"][batch["expert_mask_BT"]].mean()
    entropy = batch["entropy_BT"][batch["mask_BT"]].mean()
    torch.testing.assert_close(loss, alone - 0.01 * entropy + 0.3 * nll)
    torch.testing.assert_close(stats["imitate/loss"], nll)
    torch.testing.assert_close(stats["entropy/mean"], entropy)
    reweighted, _ = parts(batch, denominators=counts, weights={"imitate": 0.0, "entropy": 0.0})
    torch.testing.assert_close(reweighted, alone)


def test_errors_of_a_sum():
    parts = three_parts()
    batch = random_batch(parts.requires)
    counts = parts.denominators_of(batch)
    with pytest.raises(TutelageError, match="No denominator of the part 'policy'"):
        parts(batch, denominators=denominators_of(batch))
    with pytest.raises(TutelageError, match="Did you mean 'entropy'"):
        parts(batch, denominators=counts, weights={"entrpy": 0.0})
    with pytest.raises(TutelageError, match="Did you mean 'policy'"):
        parts(batch, denominators=counts, polic={"kl_coef": 0.0})
    with pytest.raises(TutelageError, match="Sum got no objectives"):
        Sum({})
    with pytest.raises(TutelageError, match="cannot name a part"):
        Sum({"a/b": (objective("nll"), 1.0)})
    with pytest.raises(TutelageError, match="Did you mean 'scale'"):
        objective("entropy")(batch, denominators=denominators_of(batch), scael=2.0)


def test_presets_are_dictionaries_behind_a_signature():
    for name, preset in PRESETS.items():
        part = objectives.get(name)
        assert objective(name) == PolicyGradient(**preset.switches)
        assert part.summary == preset.summary
        assert part.file.endswith("presets.py")
        for switch, value in preset.switches.items():
            assert part.parameters[switch].default == value
    assert objective("dapo", clip_high="0.3") == PolicyGradient(clip_high=0.3, aggregation="token_mean", keep_above=0.0, keep_below=1.0)
    with pytest.raises(TutelageError, match="Did you mean 'dapo'"):
        objective("dappo")
    with pytest.raises(TutelageError, match="Did you mean 'clip_high'"):
        objective("dapo", clip_hihg=0.3)
    with pytest.raises(TutelageError, match="clip_high='wide'"):
        objective("dapo", clip_high="wide")
    with pytest.raises(TutelageError, match="ratio='sentence'"):
        objective("dapo", ratio="sentence")


def test_random_batch_refuses_to_guess():
    with pytest.raises(TutelageError, match="'image'"):
        random_batch({"image"})


def test_without_torch_the_error_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import tutelage.objectives"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "pip install 'tutelage[lm]'" in result.stderr.splitlines()[-1]


def test_importing_the_library_does_not_import_torch():
    code = "import sys, tutelage, tutelage.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
