"""The curricula, case by case: published formulas by hand, the release's updates, and what each refuses."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import tutelage as tt
from tutelage import Outcomes, TaskPool, TutelageError
from tutelage.curricula.dump import DUMP
from tutelage.curricula.mixture import Mixture
from tutelage.curricula.odf import (
    ODF,
    accept_probability,
    expected_rollouts,
    keep_groups,
    kl_init_opt,
    kl_opt_init,
    optimum_pass_rate,
)
from tutelage.curricula.paced import EasyToHard, HardToEasy, pace
from tutelage.curricula.sec import SEC
from tutelage.curricula.uniform import Uniform

NAN = math.nan


def arms_pool(*sizes: int) -> TaskPool:
    """Arms "a", "b", ... of the given sizes, in blocks; difficulty is the row number."""
    arm = np.repeat([chr(97 + i) for i in range(len(sizes))], sizes)
    return TaskPool(arm=arm, difficulty=np.arange(len(arm)), key=np.arange(len(arm)) + 100)


def paid(pool: TaskPool, payments: dict[int, float], step: int = 0) -> Outcomes:
    """Outcomes in which row r has the mean absolute advantage `payments[r]`."""
    advantage = [[-v, v] for v in payments.values()]
    return Outcomes.of(pool, list(payments), step=step, solved=np.zeros((len(payments), 2)), advantage=advantage)


# --- uniform


def test_uniform_deals_every_task_once_per_pass() -> None:
    pool = arms_pool(7, 5)
    uniform = Uniform(pool, seed=1)
    rows = np.concatenate([uniform.propose(n) for n in (5, 5, 2, 12, 1, 11)])
    passes = rows.reshape(3, 12)
    assert (np.sort(passes, axis=1) == np.arange(12)).all()
    assert len({tuple(p) for p in passes}) == 3


# --- mixture


def test_mixture_meets_its_shares() -> None:
    pool = arms_pool(10, 20, 30)
    mixture = Mixture(pool, weights={"a": 1, "b": 3})
    totals = np.zeros(3)
    for lesson in range(1, 101):
        totals += np.bincount(pool.arms().arm_N[mixture.propose(7)], minlength=3)
        assert np.abs(totals - 7 * lesson * np.array([0.25, 0.75, 0])).max() < 1
    assert totals.tolist() == [175, 525, 0]


def test_mixture_without_weights_is_even_over_arms() -> None:
    pool = arms_pool(1, 50)
    mixture = Mixture(pool)
    assert Counter(pool.arms().arm_N[np.concatenate([mixture.propose(5) for _ in range(20)])].tolist()) == {0: 50, 1: 50}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"d": 1}, "Unknown arm 'd'.*Known: a, b"),
        ({"a": 0, "b": 0}, "All weights of the mixture are 0"),
        ({"a": -1, "b": 2}, "Weights must be finite and at least 0; got -1"),
        ({"a": NAN}, "Weights must be finite"),
    ],
)
def test_mixture_refuses(weights: dict[str, float], said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        Mixture(arms_pool(2, 2), weights=weights)


# --- easy to hard


def test_pace_by_hand() -> None:
    """Wu et al., table 1, with 100 tasks, 10 lessons, all available after half of them, a fifth at the start."""
    at = {kind: [pace(kind, 0.5, 0.2, t, 10, 100) for t in (0, 2, 5, 9)] for kind in ("linear", "root", "quadratic", "step")}  # type: ignore[arg-type]
    assert at["linear"] == [20, 52, 100, 100]
    assert at["root"] == [20, 70, 100, 100]
    assert at["quadratic"] == [20, 32, 100, 100]
    assert at["step"] == [20, 20, 100, 100]
    assert pace("exponential", 1, 0, 5, 10, 10_000) == math.floor(10_000 * (math.exp(5) - 1) / (math.exp(10) - 1))
    assert pace("logarithmic", 1, 0, 5, 10, 10_000) == math.floor(10_000 * (1 + 0.1 * math.log(0.5 + math.exp(-10))))


@pytest.mark.parametrize("kind", ["linear", "root", "quadratic", "exponential", "logarithmic", "step"])
def test_pace_never_shrinks_and_ends_full(kind: str) -> None:
    for a, b, size in itertools.product((0, 0.3, 1), (0.01, 0.5, 1), (1, 17, 1000)):
        course = [pace(kind, a, b, t, 50, size) for t in range(60)]  # type: ignore[arg-type]
        assert course == sorted(course)
        assert course[0] >= 1
        assert course[50] == course[-1] == size


def test_easy_to_hard_opens_the_pool_from_the_easy_end() -> None:
    pool = TaskPool(difficulty=np.random.default_rng(0).permutation(100))
    easy, hard = EasyToHard(pool, steps=10), HardToEasy(pool, steps=10)
    assert pool.difficulty_N is not None
    for lesson in range(12):
        available = pace("linear", 0.8, 0.2, lesson, 10, 100)
        easiest, hardest = pool.difficulty_N[easy.propose(16)], pool.difficulty_N[hard.propose(16)]
        assert easiest.max() < available
        assert hardest.min() >= 100 - available
        assert len(set(easiest)) == 16
    assert easy.metrics["available"] == 1


def test_easy_to_hard_repeats_tasks_only_while_too_few_are_available() -> None:
    pool = TaskPool(difficulty=np.arange(100))
    assert set(EasyToHard(pool, start=0.02).propose(50)) == {0, 1}


def test_easy_to_hard_refuses() -> None:
    with pytest.raises(TutelageError, match="orders tasks by difficulty, and this pool has none"):
        EasyToHard(TaskPool(arm=[0, 1]))
    with pytest.raises(TutelageError, match=r"start in \(0, 1\].*got steps=100, start=0"):
        EasyToHard(arms_pool(3), start=0)
    with pytest.raises(TutelageError, match=r"Unknown pacing of hard_to_easy 'liner'. Did you mean 'linear'"):
        HardToEasy(arms_pool(3), pacing="liner")  # type: ignore[arg-type]


# --- SEC


def test_sec_shares_are_a_softmax() -> None:
    for tau, expected in ((1.0, [0.471776, 0.316241, 0.211983]), (0.4, [0.665241, 0.244728, 0.090031])):
        sec = SEC(arms_pool(2, 2, 2), tau=tau)
        sec.value_A[:] = [0.8, 0.4, 0]
        assert sec.share_A == pytest.approx(expected, abs=1e-6)
        sec.value_A += 2000  # no overflow
        assert sec.share_A == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("decay_unseen", "second"), [(True, [0.55, 0.125, 0]), (False, [0.55, 0.25, 0])])
def test_sec_updates_as_released_or_as_in_a_textbook(decay_unseen: bool, second: list[float]) -> None:
    pool = arms_pool(2, 2, 2)
    sec = SEC(pool, decay_unseen=decay_unseen)
    sec.observe(paid(pool, {0: 1.5, 1: 0.5, 2: 0.5}))  # arm a: mean 1; arm b: 0.5; arm c absent
    assert sec.value_A.tolist() == [0.5, 0.25, 0]
    sec.observe(paid(pool, {1: 0.6}))
    assert sec.value_A == pytest.approx(second, abs=1e-15)


def test_sec_starts_uniform_whatever_the_temperature() -> None:
    for tau in (1.0, 0.01):
        assert SEC(arms_pool(1, 50, 3), tau=tau).share_A == pytest.approx([1 / 3] * 3)


def test_sec_draws_follow_the_shares_and_tasks_come_without_replacement() -> None:
    pool = arms_pool(3, 50, 400)
    sec = SEC(pool, seed=5)
    sec.value_A[:] = [0.8, 0.4, 0]
    rows = np.concatenate([sec.propose(50) for _ in range(100)])
    count_A = np.bincount(pool.arms().arm_N[rows])
    assert count_A / len(rows) == pytest.approx(sec.share_A, abs=4 * math.sqrt(0.25 / len(rows)))
    dealt_N = np.bincount(rows, minlength=len(pool))
    for arm in range(3):
        assert np.ptp(dealt_N[pool.arms().arm_N == arm]) <= 1


@pytest.mark.parametrize(("solved", "expected"), [(1, 0.21875), (2, 0.375), (4, 0.5), (0, 0), (8, 0)])
def test_sec_unnormalised_signal(solved: int, expected: float) -> None:
    pool = arms_pool(2)
    sec = SEC(pool, alpha=1, signal="unnormalised")
    sec.observe(Outcomes.of(pool, [0], step=0, solved=[[1] * solved + [0] * (8 - solved)]))
    assert sec.value_A.tolist() == [expected]


@pytest.mark.parametrize("scale", [4.0, 0.1])
def test_sec_and_the_scale_of_rewards(scale: float) -> None:
    """Normalised: the trajectory does not change. Unnormalised: the values are multiplied."""
    pool = arms_pool(20, 20, 20)
    reward = np.random.default_rng(0).integers(0, 3, (10, 16, 4))
    runs = {}
    for signal, factor in itertools.product(("advantage", "unnormalised"), (1.0, scale)):
        sec = SEC(pool, tau=0.3, signal=signal)  # type: ignore[arg-type]
        proposed = []
        for step in range(10):
            proposed.append(sec.propose(16))
            rows = np.random.default_rng(step).integers(60, size=16)
            sec.observe(Outcomes.of(pool, rows, step=step, solved=np.zeros((16, 4)), reward=reward[step] * factor))
        runs[signal, factor] = np.array(proposed), sec.value_A
    assert np.array_equal(runs["advantage", 1.0][0], runs["advantage", scale][0])
    assert runs["advantage", scale][1] == pytest.approx(runs["advantage", 1.0][1])
    assert runs["unnormalised", scale][1] == pytest.approx(scale * runs["unnormalised", 1.0][1])


def test_sec_forgets_geometrically_once_all_is_solved() -> None:
    pool = arms_pool(4, 4)
    sec = SEC(pool, tau=0.1)
    sec.value_A[:] = [0.8, 0.4]
    for step in range(1, 11):
        sec.observe(Outcomes.of(pool, np.arange(8), step=step, solved=np.ones((8, 4))))
        assert sec.value_A == pytest.approx(np.array([0.8, 0.4]) / 2**step)
    assert sec.share_A == pytest.approx([0.5, 0.5], abs=0.01)


def test_sec_in_two_dimensions_builds_nine_arms() -> None:
    domain, level = np.divmod(np.arange(90) % 9, 3)
    pool = TaskPool(arm={"domain": domain, "level": level})
    assert len(SEC(pool, tau=0.2).value_A) == 9
    assert len(SEC(pool, by="level").value_A) == 3
    assert len(SEC(pool, by=("domain",)).value_A) == 3
    sec = SEC(pool, by="level", alpha=1)
    sec.observe(paid(pool, {0: 0.2, 3: 0.4, 6: 0.6, 1: 1.0}))  # rows 0, 3 and 6 share level 0 over three domains
    assert sec.value_A == pytest.approx([0.4, 1.0, 0])


def test_sec_leaves_unscorable_attempts_out() -> None:
    pool = arms_pool(3, 3)
    sec = SEC(pool, alpha=1)
    sec.observe(Outcomes.of(pool, [0, 1, 3], step=0, solved=[[1, 0, NAN, NAN], [1, 1, 1, 1], [NAN] * 4]))
    assert sec.value_A == pytest.approx([math.sqrt(0.5) * 2 / 6, 0])  # two of arm a's six scorable rollouts pay


def test_sec_gates_nothing_and_takes_the_engines_advantage() -> None:
    pool = arms_pool(2)
    sec = SEC(pool, alpha=1)
    assert not sec.filters
    sec.observe(Outcomes.of(pool, [0], step=0, solved=[[1, 0]], advantage=[[3, -1]]))
    assert sec.value_A.tolist() == [2]


def test_sec_progress_pays_the_change_of_an_arms_reward() -> None:
    pool = arms_pool(2, 2)
    sec = SEC(pool, alpha=1, signal="progress", decay_unseen=False)
    for rows, solved, expected in (
        ([0, 2], [[1, 0], [0, 0]], [0, 0]),  # first sight pays nothing
        ([0, 1], [[1, 1], [1, 0]], [0.25, 0]),
        ([2, 3], [[1, 1], [0, 0]], [0.25, 0.5]),
        ([0], [[0, 0]], [0.75, 0.5]),
        ([0], [[NAN, NAN]], [0.75, 0.5]),
    ):
        sec.observe(Outcomes.of(pool, rows, step=0, solved=solved))
        assert sec.value_A == pytest.approx(expected)


def test_secs_other_policies() -> None:
    pool = arms_pool(2, 2, 2, 2)
    sec = SEC(pool, policy="proportional")
    sec.value_A[:] = [0.6, 0.3, 0, 0]
    assert sec.share_A == pytest.approx(np.array([0.6, 0.3, 0.01, 0.01]) / 0.92)
    sec = SEC(pool, policy="greedy")
    sec.value_A[:] = [0.6, 0.6, 0, 0]
    assert sec.share_A == pytest.approx([0.475, 0.475, 0.025, 0.025])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"alpha": 0}, "alpha must lie in"),
        ({"alpha": 1.5}, "alpha must lie in"),
        ({"tau": 0}, "tau above 0; got alpha=0.5, tau=0"),
        ({"tau": NAN}, "tau above 0"),
        ({"policy": "softmx"}, "Unknown policy of sec 'softmx'. Did you mean 'softmax'"),
        ({"signal": "advantages"}, "Did you mean 'advantage'"),
        ({"by": "levle"}, "Unknown arm column 'levle'"),
    ],
)
def test_sec_refuses(parameters: dict, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        SEC(arms_pool(2, 2), **parameters)


# --- DUMP


@pytest.mark.parametrize(
    ("count", "scores", "shares"),
    [
        ([100, 100, 0], [0.824062, 0.524062, 4.156779], [3.4e-15, 1.7e-16, 1]),
        ([1000, 1000, 1000], [0.626481, 0.326481, 1.026481], [0.0179701, 0.000894679, 0.981135]),
    ],
)
def test_dump_upper_confidence_bounds(count: list[int], scores: list[float], shares: list[float]) -> None:
    dump = DUMP(arms_pool(2, 2, 2))
    dump.mean_A[:] = [0.5, 0.2, 0.9]
    dump.count_A[:] = count
    assert dump.score_A == pytest.approx(scores, abs=1e-6)
    assert dump.share_A == pytest.approx(shares, rel=0.02 if count[2] == 0 else 1e-5)


def test_dump_starts_uniform() -> None:
    dump = DUMP(arms_pool(1, 20, 3))
    assert dump.score_A == pytest.approx([math.sqrt(2 * math.log(2))] * 3)
    assert dump.score_A[0] == pytest.approx(1.177410, abs=1e-6)
    assert dump.share_A == pytest.approx([1 / 3] * 3)


def test_dump_window_by_hand() -> None:
    pool = arms_pool(2, 2)
    dump = DUMP(pool, window=3)
    dump.observe(Outcomes.of(pool, [0], step=0, solved=np.zeros((1, 4)), advantage=[[1, -2, 3, -4]]))
    assert dump.mean_A.tolist() == [3, 0]
    assert dump.count_A.tolist() == [4, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(0, 99))
def test_dump_windows_agree_with_queues(window: int, batches: list[list[int]], seed: int) -> None:
    pool = arms_pool(2, 2, 2)
    dump = DUMP(pool, window=window)
    queues = [deque(maxlen=window) for _ in range(3)]
    pushed = [0, 0, 0]
    rng = np.random.default_rng(seed)
    for step, rows in enumerate(batches):
        advantage = rng.integers(-8, 9, (len(rows), 3)).astype(float)
        advantage[rng.random(advantage.shape) < 0.2] = NAN
        dump.observe(Outcomes.of(pool, rows, step=step, solved=np.zeros((len(rows), 3)), advantage=advantage))
        for row, value in ((r, v) for r, values in zip(rows, advantage, strict=True) for v in values if not math.isnan(v)):
            queues[row // 2].append(abs(value))
            pushed[row // 2] += 1
        assert dump.mean_A == pytest.approx([np.mean(q) if q else 0 for q in queues])
        assert dump.count_A.tolist() == pushed


def test_dump_counts_rollouts_or_prompts_and_keeps_absent_arms() -> None:
    pool = arms_pool(3, 3)
    for count, expected in (("rollouts", [8, 2]), ("prompts", [2, 1])):
        dump = DUMP(pool, count=count)  # type: ignore[arg-type]
        solved = [[1, 0, 1, 0], [0, 0, 0, 1], [NAN, NAN, 1, 0], [NAN] * 4]
        dump.observe(Outcomes.of(pool, [0, 1, 3, 4], step=0, solved=solved))
        assert dump.count_A.tolist() == expected
        before = dump.mean_A.copy()
        dump.observe(Outcomes.of(pool, [0], step=1, solved=[[1, 1, 1, 1]]))
        assert dump.mean_A[1] == before[1]
        assert dump.mean_A[0] < before[0]


def test_dump_shares_shift_and_temperature() -> None:
    def shares(mean: list[float], tau: float) -> np.ndarray:
        dump = DUMP(arms_pool(2, 2, 2), tau=tau)
        dump.mean_A[:] = mean
        dump.count_A[:] = [10, 20, 30]
        return dump.share_A

    base = shares([0.5, 0.2, 0.9], 0.1)
    assert base.sum() == pytest.approx(1)
    assert shares([1.5, 1.2, 1.9], 0.1) == pytest.approx(base)
    log_odds, halved = (np.diff(np.log(shares([0.5, 0.2, 0.9], tau))) for tau in (0.1, 0.2))
    assert halved == pytest.approx(log_odds / 2)


def test_dump_draws_with_replacement_from_the_favoured_arm() -> None:
    pool = arms_pool(5, 5)
    dump = DUMP(pool)
    dump.mean_A[:] = [0, 5]
    dump.count_A[:] = 1000
    rows = dump.propose(100)
    assert set(rows) == {5, 6, 7, 8, 9}
    assert max(Counter(rows.tolist()).values()) > 20  # dealt in passes it would be 20 of each


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"window": 0}, "window must be"),
        ({"tau": NAN}, "tau above 0"),
        ({"exploration": -1}, "at least 0"),
        ({"count": "prompt"}, "Did you mean 'prompts'"),
    ],
)
def test_dump_refuses(parameters: dict, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        DUMP(arms_pool(2, 2), **parameters)


# --- ODF: the filter


FOUR = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({"low": 0.3, "high": 0.7}, [False, False, True, False]),
        ({"window": "strict"}, [False, False, True, True]),
        ({"low": 0.25, "high": 0.75}, [False, False, True, True]),  # ends are inclusive
        ({"low": 0.26, "high": 0.75}, [False, False, True, False]),
        ({"window": "skewed_easy", "high": 0.8}, [False, False, True, True]),
        ({"window": "skewed_hard", "low": 0.3}, [False, False, True, False]),
        ({"low": 0, "high": 0.5}, [False, True, True, True]),
        ({"low": 0, "high": 1}, [True, True, True, True]),
    ],
)
def test_odf_admits(parameters: dict, kept: list[bool]) -> None:
    pool = arms_pool(4)
    odf = ODF(pool, **parameters)
    assert odf.filters
    assert odf.admit(Outcomes.of(pool, [0, 1, 2, 3], step=0, solved=FOUR)).tolist() == kept


def test_odf_with_the_widest_window_is_plain_training() -> None:
    """Every group is admitted, unscorable ones too, and proposals are those of `uniform`."""
    pool = arms_pool(30)
    odf, uniform = ODF(pool, seed=3, low=0, high=1), Uniform(pool, seed=3)
    for step in range(5):
        rows = odf.propose(8)
        assert rows.tolist() == uniform.propose(8).tolist()
        outcomes = Outcomes.of(pool, rows, step=step, solved=np.full((8, 4), [1.0, 0.0, NAN, NAN][step % 4]))
        odf.observe(outcomes)
        assert odf.admit(outcomes).all()


def test_odf_looks_at_what_was_solved_never_at_the_shaped_reward() -> None:
    pool = arms_pool(2)
    shaped = Outcomes.of(pool, [0, 1], step=0, solved=[[0, 0, 0, 0], [1, 0, 1, 0]], reward=[[0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]])
    assert ODF(pool).admit(shaped).tolist() == [False, True]


def test_odf_partial_and_unscorable_judgements() -> None:
    pool = arms_pool(3)
    odf = ODF(pool, low=0.3, high=0.7)
    outcomes = Outcomes.of(pool, [0, 1, 2], step=0, solved=[[0.9, 0.9, 0.9, 1], [1, 0, NAN, NAN], [NAN] * 4])
    assert odf.admit(outcomes).tolist() == [False, True, False]  # 1 of 4 solved, 1 of 2 scorable, nothing to go by
    odf.observe(outcomes)
    assert odf.metrics == pytest.approx({"acceptance": 1 / 3, "rejected_easy": 0, "rejected_hard": 2 / 3})


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 128), st.data())
def test_odf_bounds_are_compared_exactly(low: int, high: int, size: int, data: st.DataObject) -> None:
    """As fractions: 0.57 of 100 attempts is 57, whatever the floats say."""
    low, high = sorted((low, high))
    solved = data.draw(st.integers(0, size))
    exact = Fraction(low, 100) <= Fraction(solved, size) <= Fraction(high, 100)
    assert keep_groups(np.array([solved]), np.array([size]), "balanced", low / 100, high / 100).tolist() == [exact]


@pytest.mark.parametrize(("percent", "size"), [(57, 100), (29, 100), (7, 100), (55, 20), (30, 10)])
def test_odf_bounds_survive_rounding(percent: int, size: int) -> None:
    """0.57 * 100 is 56.99999999999999 in floats, and 0.07 * 100 is 7.000000000000001."""
    solved = np.array([percent * size // 100])
    assert keep_groups(solved, np.array([size]), "balanced", percent / 100, percent / 100).tolist() == [True]


def test_odf_set_aside_tasks_come_again() -> None:
    pool = arms_pool(6)
    odf = ODF(pool)
    for step in range(3):
        rows = odf.propose(6)
        assert sorted(rows) == [0, 1, 2, 3, 4, 5]
        odf.observe(Outcomes.of(pool, rows, step=step, solved=np.zeros((6, 4))))
    assert odf.metrics == {"acceptance": 0, "rejected_easy": 0, "rejected_hard": 1}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"low": 0.8, "high": 0.2}, "got low=0.8, high=0.2"), ({"low": NAN}, "thresholds"), ({"window": "strct"}, "Did you mean 'strict'")],
)
def test_odf_refuses(parameters: dict, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        ODF(arms_pool(2), **parameters)


# --- ODF: the formulas


@pytest.mark.parametrize(
    ("group", "window", "low", "high", "expected"),
    [
        (8, "strict", 0, 1, {0.05: 0.336580, 0.1: 0.569533, 0.25: 0.899872, 0.5: 0.992188}),
        (8, "balanced", 0.25, 0.75, {0.05: 0.057245, 0.1: 0.186895, 0.25: 0.632538, 0.5: 0.929688}),
        (16, "balanced", 0.3, 0.7, {0.25: 0.369776, 0.5: 0.923187, 0.1: 0.017004}),
    ],
)
def test_acceptance(group: int, window, low: float, high: float, expected: dict[float, float]) -> None:
    for p, value in expected.items():
        assert accept_probability(p, group, window, low, high) == pytest.approx(value, abs=1e-6)
        assert accept_probability(1 - p, group, window, low, high) == pytest.approx(value, abs=1e-6)


def test_acceptance_is_what_the_filter_does() -> None:
    pool = arms_pool(1)
    solved = np.random.default_rng(0).random((20_000, 8)) < 0.25
    rate = ODF(pool, low=0.25, high=0.75).admit(Outcomes.of(pool, np.zeros(20_000, int), step=0, solved=solved)).mean()
    assert rate == pytest.approx(accept_probability(0.25, 8, "balanced", 0.25, 0.75), abs=0.01)


def test_expected_rollouts() -> None:
    assert expected_rollouts(32, 8, 0.5) == 512
    assert expected_rollouts(32, 8, 1.0) == 256
    assert expected_rollouts(32, 8, 0.0) == math.inf


def test_optimum_and_divergences_by_hand() -> None:
    assert kl_init_opt([0.1, 0.5, 0.9], 1) == pytest.approx([0.058565, 0.120115, 0.034702], abs=1e-6)
    assert kl_init_opt(0.5, 10) == pytest.approx(0.001249, abs=1e-6)
    assert kl_opt_init([0.1, 0.5, 0.9], 1) == pytest.approx([0.073404, 0.110944, 0.026028], abs=1e-6)
    assert optimum_pass_rate(0.5, 1) == pytest.approx(0.731059, abs=1e-6)
    assert optimum_pass_rate(0.5, 1) - 0.5 == pytest.approx(0.231059, abs=1e-6)
    assert 0.25 * -math.expm1(-1) == pytest.approx(0.158030, abs=1e-6)
    assert 0.25 * math.expm1(1) == pytest.approx(0.429570, abs=1e-6)
    assert float(kl_init_opt(0.5, 1)) < 0.125  # the leading term is no lower bound
    assert float(kl_init_opt(0.9, 1)) < 0.045


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.05, 50))
def test_optimum_and_divergences_by_definition(p: float, beta: float) -> None:
    best = float(optimum_pass_rate(p, beta))
    initial, optimum = np.array([1 - p, p]), np.array([1 - p, p]) * np.exp(np.array([-1, 0]) / beta)  # reward 0 and 1, up to a constant
    optimum /= optimum.sum()
    assert best == pytest.approx(optimum[1])
    assert kl_init_opt(p, beta) == pytest.approx(initial @ np.log(initial / optimum), rel=1e-6, abs=1e-9)
    assert kl_opt_init(p, beta) == pytest.approx(optimum @ np.log(optimum / initial), rel=1e-6, abs=1e-9)
    assert p * (1 - p) * -math.expm1(-1 / beta) <= best - p + 1e-12
    assert best - p <= p * (1 - p) * math.expm1(1 / beta) + 1e-12


@pytest.mark.parametrize(("beta", "expected"), [(10, 0.4917), (1, 0.4180), (0.1, 0.1000), (0.01, 0.0100)])
def test_the_most_informative_pass_rate(beta: float, expected: float) -> None:
    found = minimize_scalar(lambda p: -float(kl_init_opt(p, beta)), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(beta - 1 / math.expm1(1 / beta), abs=1e-4)
    assert found == pytest.approx(expected, abs=1e-4)
    gain = minimize_scalar(lambda p: float(p - optimum_pass_rate(p, beta)), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).x
    assert gain == pytest.approx(1 / (1 + math.exp(0.5 / beta)), abs=1e-4)


def test_the_formulas_at_their_ends() -> None:
    assert optimum_pass_rate([0, 1], 0.001).tolist() == [0, 1]  # e^1000 overflows where it is computed
    assert kl_init_opt([0, 1], 0.001).tolist() == [0, 0]
    assert kl_opt_init([0, 1], 0.001) == pytest.approx([0, 0])
    assert float(kl_init_opt(0.01, 0.001)) == pytest.approx(1000 * 0.99 + math.log(0.01))
    for p, beta in ((-0.1, 1), (1.1, 1), (0.5, 0), (0.5, NAN)):
        with pytest.raises(TutelageError, match="beta above 0"):
            optimum_pass_rate(p, beta)


# --- the base


def test_names_are_built_with_checked_parameters() -> None:
    pool = arms_pool(3, 3)
    assert isinstance(tt.curriculum("sec", pool, tau="0.4", seed=3), SEC)
    assert tt.curriculum("sec", pool, tau="0.4").config["tau"] == 0.4
    with pytest.raises(TutelageError, match=r"Unknown curriculum 'sek'. Did you mean 'sec'"):
        tt.curriculum("sek", pool)


def test_a_state_of_something_else_says_what_differs() -> None:
    pool = arms_pool(3, 3)
    sec = SEC(pool, tau=0.4)
    with pytest.raises(TutelageError, match=r"tau: the state has 1.0, this curriculum has 0.4; pool: .*tutelage\.migrate"):
        sec.load_state_dict(SEC(arms_pool(3, 4)).state_dict())
    with pytest.raises(TutelageError, match="curriculum: the state has 'uniform', this curriculum has 'sec'"):
        sec.load_state_dict(Uniform(pool).state_dict())
    state = sec.state_dict()
    del state["memory"]["value_A"]
    with pytest.raises(TutelageError, match="'sec' lacks value_A; nothing was loaded"):
        sec.load_state_dict(state)


def test_migrate_carries_over_by_name() -> None:
    old_pool, new_pool = TaskPool(arm=["a", "b", "c"]), TaskPool(arm=["c", "d", "a", "d"])
    old, new = DUMP(old_pool, window=4), DUMP(new_pool, window=4, tau=0.5)
    old.observe(paid(old_pool, {0: 1.0, 1: 2.0, 2: 3.0}))
    old.propose(2)
    report = tt.migrate(old.state_dict(), old_pool, new)
    assert report == {"carried": ["a", "c"], "fresh": ["d"], "dropped": ["b"]}
    assert new.mean_A.tolist() == [1, 3, 0]
    assert new.count_A.tolist() == [2, 2, 0]
    assert new.lessons == 1
    new.observe(paid(new_pool, {0: 5.0}))  # arm c: the ring goes on where it was
    assert new.mean_A.tolist() == [1, 4, 0]


def test_migrate_refuses_what_does_not_fit() -> None:
    pool = arms_pool(2, 2)
    state = DUMP(pool, window=4).state_dict()
    with pytest.raises(TutelageError, match=r"migrate cannot carry over recent_AK: it holds \(4,\) per arm there and \(5,\) here"):
        tt.migrate(state, pool, DUMP(pool, window=5))
    with pytest.raises(TutelageError, match=r"migrate cannot use this state: expected .*'sec'.*got .*'dump'"):
        tt.migrate(state, pool, SEC(pool))
    with pytest.raises(TutelageError, match="Pass the pool that the state was made with"):
        tt.migrate(state, arms_pool(3, 2), DUMP(pool, window=4))


def test_a_proposal_of_the_wrong_size_is_caught() -> None:
    class Short(tt.Curriculum):
        def _propose(self, n: int) -> np.ndarray:
            return np.zeros(n - 1, dtype=np.int64)

    with pytest.raises(TutelageError, match=r"Short proposed \(3,\) rows where 4 of a pool of 2"):
        Short(arms_pool(2)).propose(4)


def test_columns_of_another_pool_are_refused() -> None:
    pool, other = arms_pool(2, 2), arms_pool(2, 2, 2)
    with pytest.raises(TutelageError, match="Task 105 is not in this pool of 4 tasks"):
        SEC(pool).observe(Outcomes.of(other, [5], step=0, solved=[[1, 0]]))
