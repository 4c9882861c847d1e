"""How shares become draws: decks, keyed permutations, one rounding rule, proportional choice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tutelage.curricula._draws import Deck, allocate, draw_arms, permuted, proportional, softmax
from tutelage.errors import TutelageError

# --- permutations and decks


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permuted_is_a_bijection(size: int, key: int) -> None:
    image = permuted(np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64))
    assert np.array_equal(np.sort(image), np.arange(size))


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 10_000_000])
def test_permuted_is_a_bijection_on_large_domains(size: int) -> None:
    seen = np.zeros(size, dtype=bool)
    for start in range(0, size, 2**20):
        index = np.arange(start, min(start + 2**20, size))
        seen[permuted(index, np.full(len(index), size), np.full(len(index), 7, dtype=np.uint64))] = True
    assert seen.all()


def test_permuted_stays_in_domains_of_any_size() -> None:
    for size in (2**31 - 1, 2**31 + 1, 2**40 + 3, 2**52 + 1):
        index = np.arange(size - 1000, size)
        image = permuted(index, np.full(1000, size), np.full(1000, 3, dtype=np.uint64))
        assert len(set(image.tolist())) == 1000
        assert image.min() >= 0
        assert image.max() < size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.data(), st.integers(0, 2**70))
def test_decks_deal_every_task_once_per_pass(sizes: list[int], data: st.DataObject, seed: int) -> None:
    """For any sizes, any interleaving of arms and any cut into calls."""
    deck = Deck(np.array(sizes), seed)
    calls = data.draw(st.lists(st.lists(st.integers(0, len(sizes) - 1), max_size=40), min_size=1, max_size=8))
    dealt: list[list[int]] = [[] for _ in sizes]
    for call in calls:
        index_M = deck.draw(np.array(call, dtype=np.int64))
        assert index_M.shape == (len(call),)
        for arm, index in zip(call, index_M.tolist(), strict=True):
            dealt[arm].append(index)
    for size, indices in zip(sizes, dealt, strict=True):
        for start in range(0, len(indices), size):
            one_pass = indices[start : start + size]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(size))
    assert deck.position_A.tolist() == [len(d) for d in dealt]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=60), st.integers(0, 60), st.integers(0, 9))
def test_decks_do_not_care_how_draws_are_batched_and_resume(arms: list[int], cut: int, seed: int) -> None:
    sizes = np.array([3, 7, 11])
    whole = Deck(sizes, seed).draw(np.array(arms))
    first = Deck(sizes, seed)
    head = first.draw(np.array(arms[:cut], dtype=np.int64))
    second = Deck(sizes, seed)
    second.load(first.state())
    first.position_A += 1  # the state is a copy
    tail = second.draw(np.array(arms[cut:], dtype=np.int64))
    assert np.array_equal(np.concatenate([head, tail]), whole)


def test_arms_passes_and_seeds_have_orders_of_their_own() -> None:
    deck = Deck(np.array([50, 50]), 0)
    orders = [deck.draw(np.full(50, arm)).tolist() for _ in range(3) for arm in (0, 1)]
    orders += [Deck(np.array([50]), seed).draw(np.zeros(50, dtype=np.int64)).tolist() for seed in (1, 2, 2**64 + 3)]
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_of_small_arms_are_equally_likely(size: int) -> None:
    decks = 24_000
    dealt = Deck(np.full(decks, size), 1).draw(np.repeat(np.arange(decks), size)).reshape(decks, size)
    orders = {order: i for i, order in enumerate(itertools.permutations(range(size)))}
    counts = np.bincount([orders[tuple(d)] for d in dealt.tolist()], minlength=len(orders))
    assert chisquare(counts).pvalue > 0.001


def test_places_of_larger_arms_are_equally_likely() -> None:
    """Which task comes first, and which follows it."""
    decks, size = 40_000, 20
    dealt = Deck(np.full(decks, size), 2).draw(np.repeat(np.arange(decks), 2)).reshape(decks, 2)
    pairs = np.bincount(dealt[:, 0] * size + dealt[:, 1], minlength=size * size).reshape(size, size)
    assert (np.diag(pairs) == 0).all()
    assert chisquare(pairs.sum(axis=1)).pvalue > 0.001
    assert chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 0.001


# --- allocation


weights = st.lists(st.floats(0, 1) | st.just(0.0) | st.floats(1e-6, 1e-3), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-5)


@settings(max_examples=150, deadline=None)
@given(weights, st.lists(st.integers(0, 40), min_size=1, max_size=80))
def test_allocations_sum_to_n_and_stay_within_one_draw(weight: list[float], calls: list[int]) -> None:
    share_A = proportional(np.array(weight))
    carry_A, total_A, n_total = np.zeros(len(weight)), np.zeros(len(weight)), 0
    for n in calls:
        draws_A, carry_A = allocate(share_A, n, carry_A)
        assert draws_A.sum() == n
        assert draws_A.min() >= 0
        total_A += draws_A
        n_total += n
        assert np.abs(total_A - n_total * share_A).max() < 1 + 1e-9
        assert carry_A == pytest.approx(n_total * share_A - total_A, abs=1e-9)
    assert not total_A[share_A == 0].any()


def test_allocations_where_largest_remainders_fall_behind() -> None:
    """Shares found by search, for which going by largest remainders strays from n * share by 1.2 draws."""
    share_A = proportional(np.array([95, 7, 16, 509, 3, 2, 298]))
    carry_A, total_A = np.zeros(len(share_A)), np.zeros(len(share_A))
    for n in range(1, 3001):
        draws_A, carry_A = allocate(share_A, 1, carry_A)
        total_A += draws_A
        assert np.abs(total_A - n * share_A).max() < 1


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(0, 200))
def test_one_allocation_takes_the_largest_remainders(weight: list[float], n: int) -> None:
    share_A = proportional(np.array(weight))
    draws_A, carry_A = allocate(share_A, n)
    assert draws_A.sum() == n
    assert np.abs(draws_A - n * share_A).max() < 1 + 1e-9
    up, down = draws_A > n * share_A + 1e-9, draws_A < n * share_A - 1e-9
    if up.any() and down.any():
        assert (n * share_A % 1)[up].min() >= (n * share_A % 1)[down].max() - 1e-6
    assert carry_A.sum() == pytest.approx(0, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 9)), min_size=1, max_size=30))
def test_allocations_sum_to_n_under_changing_shares(course: list[tuple[list[float], int]]) -> None:
    carry_A = np.zeros(4)
    for weight, n in course:
        draws_A, carry_A = allocate(proportional(np.array(weight)), n, carry_A)
        assert draws_A.sum() == n
        assert draws_A.min() >= 0


def test_an_arm_that_ran_ahead_waits() -> None:
    draws_A, _ = allocate(np.array([0.0, 1.0]), 1, np.array([2.5, -2.5]))
    assert draws_A.tolist() == [1, 0]


# --- choice


def test_proportional_by_hand() -> None:
    assert proportional(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert proportional(np.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize(("weight", "named"), [([1, -0.5], "-0.5"), ([math.nan, 1], "nan"), ([1, math.inf], "inf")])
def test_proportional_refuses(weight: list[float], named: str) -> None:
    with pytest.raises(TutelageError, match=f"finite and at least 0; got {named}"):
        proportional(np.array(weight))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=10), st.floats(0.01, 10), st.floats(-1e3, 1e3))
def test_softmax_is_a_distribution_and_shift_invariant(value: list[float], temperature: float, shift: float) -> None:
    share_A = softmax(np.array(value), temperature)
    assert share_A.sum() == pytest.approx(1)
    assert (share_A >= 0).all()
    assert softmax(np.array(value) + shift, temperature) == pytest.approx(share_A, abs=1e-6)


def test_draws_follow_the_shares_and_never_hit_an_empty_one() -> None:
    share_A = np.array([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    count_A = np.bincount(draw_arms(share_A, 20_000, np.random.default_rng(0)), minlength=6)
    assert not count_A[share_A == 0].any()
    assert chisquare(count_A[share_A > 0], 20_000 * share_A[share_A > 0]).pvalue > 0.001
