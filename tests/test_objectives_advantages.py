"""Advantages against hand-computed numbers, and their invariants."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tutelage.errors import TutelageError  # noqa: E402
from tutelage.objectives import PolicyGradient, group_advantages, keep_groups, objective, overlong_penalty, token_returns, whiten  # noqa: E402

pytestmark = pytest.mark.lm
GROUP = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
SIGNS = torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
LENGTHS = torch.tensor([2, 4, 1, 3])
MASK = torch.arange(4) < LENGTHS.unsqueeze(1)


def masks(*lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize(
    ("kind", "eps", "size"),
    [
        ("group_std", 1e-4, 0.865876),  # TRL
        ("group_std", 1e-6, 0.866024),  # verl
        ("group_std", 1e-9, 0.866025),  # OpenRLHF
        ("group_std", 0.0, math.sqrt(0.75)),
        ("group_mean", 0.0, 0.5),
        ("leave_one_out", 0.0, 0.666667),
        ("batch_std", 1e-4, 0.865876),  # one group: the batch is the group
    ],
)
def test_published_conventions(kind, eps, size):
    advantage_NG = group_advantages(GROUP, kind=kind, eps=eps).advantage_NG
    torch.testing.assert_close(advantage_NG, size * SIGNS, rtol=0, atol=1e-6)


def test_population_deviation_would_give_one():
    torch.testing.assert_close(group_advantages(GROUP, ddof=0).advantage_NG, SIGNS)


@pytest.mark.parametrize(
    ("reward", "lengths", "convention", "expected"),
    [
        ([1, 0, 0, 1], (2, 4, 1, 3), {}, [0.948683, -0.948683, -0.948683, 0.948683]),  # verl
        ([1, 0, 0, 1], (2, 4, 1, 3), {"ddof": 0, "eps": 0.0, "floor": 1e-8}, [1, -1, -1, 1]),  # OpenRLHF
        ([1, 0], (1, 3), {}, [1.5, -0.5]),
        ([1, 0], (1, 3), {"ddof": 0, "eps": 0.0, "floor": 1e-8}, [1.732051, -0.577350]),
    ],
)
def test_reinforce_pp_whitening(reward, lengths, convention, expected):
    mask_BT = masks(*lengths)
    white_BT = whiten(token_returns(torch.tensor(reward, dtype=torch.float64), mask_BT), mask_BT, **convention)
    expected_BT = torch.tensor(expected, dtype=torch.float64).unsqueeze(1) * mask_BT
    torch.testing.assert_close(white_BT, expected_BT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["verl:reinforce_pp", "reinforce_pp", "openrlhf:reinforce"])
def test_reinforce_pp_presets_follow_their_library(name):
    part = objective(name, kl_coef=0.0)
    size = 1.0 if name.startswith("openrlhf") else 0.948683
    advantage_BT = part.advantages(GROUP, {"mask_BT": MASK})
    torch.testing.assert_close(advantage_BT, size * SIGNS.view(4, 1) * MASK, rtol=0, atol=1e-6)


def test_reinforce_pp_baseline_takes_the_group_mean_first():
    reward_NG = torch.tensor([[1.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    part = PolicyGradient(advantage="group_mean_whiten", whiten_ddof=0, whiten_eps=0.0)
    advantage_BT = part.advantages(reward_NG, {"mask_BT": masks(1, 1, 1, 1)})
    torch.testing.assert_close(advantage_BT.flatten(), torch.tensor([1, -1, 0, 0], dtype=torch.float64) * math.sqrt(2))


def test_rloo_takes_the_penalty_into_the_baseline_and_openrlhf_does_not():
    mask_BT = masks(2, 2)
    batch = {
        "mask_BT": mask_BT,
        "old_logp_BT": torch.tensor([[0.05, 0.15], [0.3, 0.1]], dtype=torch.float64),  # Σ k1 = .2, .4
        "ref_logp_BT": torch.zeros(2, 2, dtype=torch.float64),
    }
    reward_NG = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    trl_B = objective("trl:rloo", kl_coef=0.5).advantages(reward_NG, batch)
    torch.testing.assert_close(trl_B, torch.tensor([1.1, -1.1], dtype=torch.float64))
    leave_one_out_B = group_advantages(reward_NG, kind="leave_one_out").advantage_NG.flatten()
    return_BT = token_returns(leave_one_out_B, mask_BT, kl_BT=batch["old_logp_BT"], kl_coef=0.5)
    torch.testing.assert_close(return_BT[:, 0], torch.tensor([0.9, -1.2], dtype=torch.float64))


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 1e-3, 7.7])
@pytest.mark.parametrize("kind", ["group_std", "group_mean", "batch_std", "leave_one_out"])
def test_a_dead_group_is_exactly_zero(kind, value):
    reward_NG = torch.full((1, 8), value, dtype=torch.float32)
    result = group_advantages(reward_NG, kind=kind, eps=1e-9)
    assert (result.advantage_NG == 0).all()
    assert result.dead_N.item()


@pytest.mark.parametrize(("eps", "size"), [(1e-9, 0.83), (1e-8, 0.41), (1e-6, 0.007), (1e-4, 7e-5)])
def test_without_the_guard_the_float_residue_would_train(eps, size):
    reward_NG = torch.full((1, 8), 0.1, dtype=torch.float32)
    naive_NG = (reward_NG - reward_NG.mean(1, keepdim=True)) / (reward_NG.std(1, keepdim=True) + eps)
    assert naive_NG.abs().max().item() == pytest.approx(size, rel=0.1)
    assert (group_advantages(reward_NG, eps=eps).advantage_NG == 0).all()


def test_dead_beside_live_groups():
    reward_NG = torch.tensor([[0.1] * 4, [1.0, 0.0, 0.0, 1.0]])
    result = group_advantages(reward_NG, eps=1e-9)
    assert (result.advantage_NG[0] == 0).all()
    assert result.dead_N.tolist() == [True, False]
    torch.testing.assert_close(result.advantage_NG[1], 0.866025 * SIGNS[0].float())


def test_unscorable_rewards_are_left_out():
    reward_NG = torch.tensor([[1.0, 0.0, math.nan, math.nan], [math.nan, 0.3, math.nan, math.nan], [math.nan] * 4])
    result = group_advantages(reward_NG)
    expected = torch.tensor([[0.5, -0.5, 0, 0], [0.0] * 4, [0.0] * 4]) / math.sqrt(0.5)
    torch.testing.assert_close(result.advantage_NG, expected)
    assert result.dead_N.tolist() == [False, True, True]
    assert result.mean_N[0] == 0.5
    assert result.std_N[1:].isnan().all()
    loo_NG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, math.nan]]), kind="leave_one_out").advantage_NG
    torch.testing.assert_close(loo_NG, torch.tensor([[1.0, -0.5, -0.5, 0.0]]))


def test_unscorable_sequences_stay_out_of_whitening():
    part = PolicyGradient(advantage="whiten", whiten_ddof=0, whiten_eps=0.0)
    reward_NG = torch.tensor([[1.0, 0.0, math.nan]], dtype=torch.float64)
    advantage_BT = part.advantages(reward_NG, {"mask_BT": masks(2, 2, 2)})
    torch.testing.assert_close(advantage_BT, torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64))


def test_batch_scale_is_that_of_all_raw_rewards():
    reward_NG = torch.tensor([[1.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.0, 5.0, 5.0], dtype=torch.float64).std()
    advantage_NG = group_advantages(reward_NG, kind="batch_std").advantage_NG
    torch.testing.assert_close(advantage_NG, torch.tensor([[0.5, -0.5], [0.0, 0.0]], dtype=torch.float64) / scale)


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(-100, 100),
    st.sampled_from(["group_std", "group_mean", "batch_std", "leave_one_out"]),
)
@settings(max_examples=60, deadline=None)
def test_invariants(rewards, shift, kind):
    reward_NG = torch.tensor(rewards, dtype=torch.float64)
    advantage_NG = group_advantages(reward_NG, kind=kind, eps=1e-6).advantage_NG
    torch.testing.assert_close(advantage_NG.sum(dim=1), torch.zeros(len(rewards), dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(group_advantages(reward_NG + shift, kind=kind, eps=1e-6).advantage_NG, advantage_NG, rtol=0, atol=1e-9)
    mean_NG = group_advantages(reward_NG, kind="group_mean").advantage_NG
    torch.testing.assert_close(group_advantages(reward_NG, kind="leave_one_out").advantage_NG, 4 / 3 * mean_NG)


@pytest.mark.parametrize("correct", range(1, 8))
def test_binary_identity(correct):
    """mean |A| = 2 sqrt(p (1 − p)) with the population deviation, 2 p (1 − p) without any."""
    reward_NG = (torch.arange(8) < correct).double().unsqueeze(0)
    p = correct / 8
    z_NG = group_advantages(reward_NG, ddof=0).advantage_NG
    assert z_NG.abs().mean().item() == pytest.approx(2 * math.sqrt(p * (1 - p)))
    assert z_NG.max().item() == pytest.approx(math.sqrt((1 - p) / p))
    assert group_advantages(reward_NG).advantage_NG.max().item() == pytest.approx(math.sqrt((1 - p) / p) * math.sqrt(7 / 8))
    assert group_advantages(reward_NG, kind="group_mean").advantage_NG.abs().mean().item() == pytest.approx(2 * p * (1 - p))


def test_advantage_clip_precedes_whitening():
    part = PolicyGradient(advantage="group_mean", advantage_clip=0.25)
    torch.testing.assert_close(part.advantages(GROUP), 0.25 * SIGNS.flatten())


def test_returns_discount_by_token_and_skip_masked_holes():
    mask_BT = torch.tensor([[True, False, True, True, False]])
    reward_B = torch.tensor([8.0])
    torch.testing.assert_close(token_returns(reward_B, mask_BT), torch.tensor([[8.0, 0, 8.0, 8.0, 0]]))
    torch.testing.assert_close(token_returns(reward_B, mask_BT, gamma=0.5), torch.tensor([[2.0, 0, 4.0, 8.0, 0]]))
    kl_BT = torch.tensor([[1.0, 99.0, 2.0, 3.0, 99.0]])
    expected_BT = torch.tensor([[7.4, 0, 7.5, 7.7, 0]])
    torch.testing.assert_close(token_returns(reward_B, mask_BT, kl_BT=kl_BT, kl_coef=0.1), expected_BT)
    nearly = token_returns(reward_B, mask_BT, kl_BT=kl_BT, kl_coef=0.1, gamma=1 - 1e-7)
    torch.testing.assert_close(nearly, expected_BT, rtol=1e-5, atol=1e-5)


def test_return_of_a_fully_masked_sequence_is_zero():
    mask_BT = torch.zeros(1, 3, dtype=torch.bool)
    assert (token_returns(torch.tensor([1.0]), mask_BT) == 0).all()
    assert (whiten(torch.ones(1, 3), mask_BT) == 0).all()


def test_whitening_equal_values_gives_exactly_zero():
    assert (whiten(torch.full((2, 4), 0.1), torch.ones(2, 4)) == 0).all()


@pytest.mark.parametrize(("length", "paper", "verl"), [(16384, 0, 0), (18432, -0.5, -0.5), (20480, -1, -1), (20481, -1, -1.000244)])
def test_overlong_penalty(length, paper, verl):
    length_B = torch.tensor([length])
    assert overlong_penalty(length_B).item() == pytest.approx(paper)
    assert overlong_penalty(length_B, clamp=False).item() == pytest.approx(verl, abs=1e-6)
    assert overlong_penalty(length_B, factor=2.0).item() == pytest.approx(2 * paper)


def test_groups_are_kept_by_integers():
    solved_NG = (torch.arange(5) < torch.arange(6).unsqueeze(1)).float()  # 0 to 5 of 5
    assert keep_groups(solved_NG).tolist() == [False, True, True, True, True, False]
    assert keep_groups(solved_NG, above=0.6).tolist() == [False, False, False, False, True, False]
    assert keep_groups(solved_NG, above=0.6, inclusive=True).tolist() == [False, False, False, True, True, True]
    assert keep_groups(solved_NG, above=0.2, below=0.8).tolist() == [False, False, True, True, False, False]
    assert keep_groups(solved_NG.bool()).tolist() == keep_groups(solved_NG).tolist()


@given(st.integers(1, 64), st.data())
@settings(max_examples=80, deadline=None)
def test_a_pass_rate_equal_to_its_bound_is_not_above_it(attempts, data):
    correct = data.draw(st.integers(0, attempts))
    solved_NG = (torch.arange(attempts) < correct).float().unsqueeze(0)
    assert not keep_groups(solved_NG, above=correct / attempts, below=2.0).item()
    assert keep_groups(solved_NG, above=correct / attempts, below=2.0, inclusive=True).item()


def test_unscorable_attempts_do_not_count_in_the_filter():
    solved_NG = torch.tensor([[1.0, math.nan, 1.0], [1.0, math.nan, 0.0], [math.nan] * 3])
    assert keep_groups(solved_NG).tolist() == [False, True, False]
    assert objective("dapo").keep(solved_NG).tolist() == [False, True, False]
    assert objective("grpo").keep(solved_NG).all()
    assert PolicyGradient(keep_above=0.0).keep(solved_NG).tolist() == [True, True, False]


def test_errors_say_what_came():
    with pytest.raises(TutelageError, match=r"\(tasks, attempts\).*\(4,\)"):
        group_advantages(torch.zeros(4))
    with pytest.raises(TutelageError, match="task 0, attempt 1 is infinite"):
        group_advantages(torch.tensor([[0.0, math.inf]]))
    with pytest.raises(TutelageError, match="Did you mean 'group_std'"):
        group_advantages(GROUP, kind="groupstd")
    with pytest.raises(TutelageError, match="other than 0, 1 and NaN"):
        keep_groups(torch.tensor([[0.5, 1.0]]))
    with pytest.raises(TutelageError, match="old_logp_BT, ref_logp_BT"):
        objective("rloo").advantages(GROUP, {"mask_BT": MASK})
    with pytest.raises(TutelageError, match="'given'"):
        PolicyGradient(advantage="given").advantages(GROUP)
