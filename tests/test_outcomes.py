"""The shared record: advantages, derived views, shapes and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom

import tutelage as tt
from tutelage import Kind, Outcomes, TutelageError, group_advantage

NAN = math.nan


def group(solved: int, size: int = 8) -> np.ndarray:
    return np.array([[1.0] * solved + [0.0] * (size - solved)])


@pytest.fixture
def pool() -> tt.TaskPool:
    return tt.TaskPool(key=[10, 30, 20, 40], arm=["x", "y", "x", "y"], difficulty=[0.0, 1.0, 2.0, 3.0])


# --- advantages


@pytest.mark.parametrize(("solved", "expected"), [(0, 0), (1, 0.618717), (2, 0.810091), (4, 0.935413), (7, 0.618717), (8, 0)])
def test_mean_absolute_advantage_by_number_solved(solved: int, expected: float) -> None:
    """Published figures for eight attempts, which carry an epsilon of 1e-6 beside the standard deviation; here there is none."""
    ours = np.abs(group_advantage(group(solved))).mean()
    p = solved / 8
    std = math.sqrt(p * (1 - p) * 8 / 7)
    assert ours == pytest.approx(2 * p * (1 - p) / std if std else 0, rel=1e-12)
    assert ours * std / (std + 1e-6) == pytest.approx(expected, abs=5.1e-7)


@pytest.mark.parametrize(
    ("size", "p", "expected"),
    [(8, 0.05, 0.219767), (8, 1 / 7, 0.509116), (8, 0.25, 0.710722), (8, 0.5, 0.867904), (16, 0.5, 0.936353), (4, 0.5, 0.699760)],
)
def test_expected_mean_absolute_advantage(size: int, p: float, expected: float) -> None:
    """The expectation over the number solved: dead groups lower it below 2 sqrt(p (1 - p))."""
    by_solved = [np.abs(group_advantage(group(k, size))).mean() for k in range(size + 1)]
    assert binom.pmf(range(size + 1), size, p) @ by_solved == pytest.approx(expected, abs=1e-6)


def test_the_limit_of_large_groups() -> None:
    p = 0.3
    assert np.abs(group_advantage(group(3000, 10_000))).mean() == pytest.approx(2 * math.sqrt(p * (1 - p)), rel=1e-4)


def test_equal_rewards_give_exactly_zero_despite_rounding() -> None:
    assert not group_advantage(np.full((3, 7), 0.1)).any()  # the mean of seven 0.1 is not 0.1 in floats
    assert not group_advantage(np.full((1, 1), 5.0)).any()
    assert group_advantage(np.zeros((0, 4))).shape == (0, 4)
    assert group_advantage(np.zeros((3, 0))).shape == (3, 0)


def test_unscorable_attempts_are_left_out_of_the_group() -> None:
    advantage_NG = group_advantage([[1, 0, NAN, NAN], [NAN, 1, NAN, NAN], [NAN] * 4])
    half = math.sqrt(0.5)
    assert advantage_NG[0].tolist() == pytest.approx([half, -half, 0, 0])
    assert not advantage_NG[1:].any()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays("f8", st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.integers(-5, 5).map(float) | st.just(NAN)),
    st.sampled_from([0.5, 2.0, 10.0]),
    st.integers(-3, 3),
)
def test_advantages_are_standard_scores(reward_NG: np.ndarray, scale: float, shift: int) -> None:
    advantage_NG = group_advantage(reward_NG)
    assert np.allclose(group_advantage(reward_NG * scale + shift), advantage_NG)
    for reward_G, advantage_G in zip(reward_NG, advantage_NG, strict=True):
        known_G = ~np.isnan(reward_G)
        assert not advantage_G[~known_G].any()
        if len(set(reward_G[known_G])) > 1:
            assert advantage_G[known_G].mean() == pytest.approx(0, abs=1e-12)
            assert advantage_G[known_G].std(ddof=1) == pytest.approx(1)
        else:
            assert not advantage_G.any()


# --- building


def test_of_fills_keys_arms_reward_and_advantage(pool: tt.TaskPool) -> None:
    outcomes = Outcomes.of(pool, [2, 1], step=3, solved=[[1, 0], [1, 1]])
    assert outcomes.key_N.tolist() == [20, 30]
    assert outcomes.arm_N is not None
    assert outcomes.arm_N.tolist() == [0, 1]
    assert outcomes.reward_NG is not None
    assert outcomes.reward_NG.tolist() == [[1, 0], [1, 1]]
    assert outcomes.advantage_NG is not None
    assert outcomes.advantage_NG == pytest.approx(np.array([[math.sqrt(0.5), -math.sqrt(0.5)], [0, 0]]))
    assert len(outcomes) == 2
    assert outcomes.step == 3


def test_a_shaped_reward_and_the_engines_advantage_are_kept(pool: tt.TaskPool) -> None:
    outcomes = Outcomes.of(pool, [0], step=0, solved=[[0, 0]], reward=[[0.1, 0.3]], advantage=[[-7, 7]])
    assert outcomes.pass_rate_N.tolist() == [0]
    assert outcomes.mean_abs_advantage_N.tolist() == [7]
    assert not outcomes.dead_N[0]
    derived = Outcomes.of(pool, [0], step=0, solved=[[0, 0]], reward=[[0.1, 0.3]])
    assert derived.mean_abs_advantage_N == pytest.approx([math.sqrt(0.5)])


def test_columns_that_were_not_given_are_absent(pool: tt.TaskPool) -> None:
    outcomes = Outcomes.of(pool, [0, 1], step=0, signals={"loss": [0.5, 0.25]})
    assert list(outcomes.columns()) == ["key_N", "arm_N"]
    assert outcomes.signals["loss"].tolist() == [0.5, 0.25]
    with pytest.raises(TutelageError, match=r"no column solved_NG; they have: key_N, arm_N, loss\. Pass solved="):
        _ = outcomes.pass_rate_N


# --- derived views


def test_derived_views_leave_out_what_could_not_be_scored(pool: tt.TaskPool) -> None:
    solved = [[1, 0, NAN, NAN], [1, 1, 1, 0], [NAN] * 4, [0, 0, 0, NAN]]
    outcomes = Outcomes.of(pool, [0, 1, 2, 3], step=0, solved=solved, length=[[1, 2, 3, 6]] * 4)
    assert outcomes.pass_rate_N.tolist() == pytest.approx([0.5, 0.75, NAN, 0], nan_ok=True)
    assert outcomes.mean_abs_advantage_N.tolist() == pytest.approx([math.sqrt(0.5), 0.75, NAN, 0], nan_ok=True)
    assert outcomes.dead_N.tolist() == [False, False, True, True]
    assert outcomes.mean_length_N.tolist() == [3, 3, 3, 3]


def test_a_group_is_dead_whose_advantages_are_zero_or_missing() -> None:
    outcomes = Outcomes(key_N=np.arange(3), step=0, advantage_NG=np.array([[0, NAN], [0, 1e-300], [NAN, NAN]]))
    assert outcomes.dead_N.tolist() == [True, False, True]


def test_take_by_index_and_by_mask(pool: tt.TaskPool) -> None:
    outcomes = Outcomes.of(
        pool, [0, 1, 2], step=5, solved=[[0], [1], [0.5]], kind=[[0], [1], [2]], signals={"v": np.arange(6).reshape(3, 2)}
    )
    for chosen in (outcomes.take(np.array([2, 0])), outcomes.take(np.array([True, False, True])).take(np.array([1, 0]))):
        assert chosen.key_N.tolist() == [20, 10]
        assert chosen.solved_NG is not None
        assert chosen.solved_NG.tolist() == [[0.5], [0]]
        assert chosen.kind_NG is not None
        assert chosen.kind_NG.tolist() == [[Kind.REFUSED], [Kind.WRONG]]
        assert chosen.signals["v"].tolist() == [[4, 5], [0, 1]]
        assert chosen.step == 5


# --- what it refuses


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"solved": [[1, 0]]}, r"solved_NG has shape \(1, 2\); expected \(2, G\)"),
        ({"solved": [1, 0]}, r"solved_NG has shape \(2,\); expected \(2, G\)"),
        ({"solved": [[1, 0], [0, 1]], "length": [[3], [4]]}, r"disagree on the number of attempts.*solved_NG \(2, 2\).*length_NG \(2, 1\)"),
        ({"solved": [[1, 1.5], [0, 0]]}, r"must lie in \[0, 1\].*got values from 0 to 1.5.*as `reward`"),
        ({"solved": [[-0.1, NAN], [0, 0]]}, r"got values from -0.1 to 1"),
        ({"solved": [[math.inf, 0], [0, 0]]}, r"An infinite reward has no advantage"),
        ({"solved": [[math.inf, 0], [0, 0]], "reward": [[1, 0], [0, 0]]}, r"got values from 0 to inf"),
        ({"signals": {"loss": [1.0]}}, r"Signal 'loss' has 1 rows; expected 2"),
    ],
)
def test_wrong_columns_are_refused(pool: tt.TaskPool, columns: dict, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        Outcomes.of(pool, [0, 1], step=0, **columns)


@pytest.mark.parametrize("rows", [[-1, 0], [0, 4]])
def test_rows_outside_the_pool_are_refused(pool: tt.TaskPool, rows: list[int]) -> None:
    with pytest.raises(TutelageError, match=r"do not all lie in this pool of 4 tasks.*not keys"):
        Outcomes.of(pool, rows, step=0)


def test_a_wrong_number_of_arms_is_refused() -> None:
    with pytest.raises(TutelageError, match=r"arm_N has shape \(3,\); expected \(2,\)"):
        Outcomes(key_N=np.arange(2), step=0, arm_N=np.arange(3))


def test_no_rows_at_all(pool: tt.TaskPool) -> None:
    outcomes = Outcomes.of(pool, [], step=0, solved=np.zeros((0, 4)))
    assert len(outcomes) == 0
    assert outcomes.pass_rate_N.shape == outcomes.mean_abs_advantage_N.shape == outcomes.dead_N.shape == (0,)
