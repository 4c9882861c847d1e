"""How shares become draws: softmax and proportional choice, one rounding rule, and decks that deal without replacement.

A deck deals every task of an arm once before any comes again. Its order is a keyed permutation computed on the fly (a Feistel network with
cycle walking), so the state is one position per arm and ten million tasks cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

_ROUNDS = 10  # fewer leave visible favourites among the orders of arms with three to five tasks
_MULTIPLY = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = 0x9E3779B97F4A7C15


def softmax(value_A: Float, temperature: float) -> Float:
    """exp(v / temperature), normalised, with the maximum subtracted first."""
    scaled_A = np.asarray(value_A, dtype=np.float64) / temperature
    weight_A = np.exp(scaled_A - scaled_A.max())
    return weight_A / weight_A.sum()


def proportional(weight_A: Float) -> Float:
    """Weights normalised to shares; uniform where all are zero, a negative or non-finite weight refused."""
    weight_A = np.asarray(weight_A, dtype=np.float64)
    if (weight_A < 0).any() or not np.isfinite(weight_A).all():
        raise TutelageError(f"Weights must be finite and at least 0; got {weight_A[(weight_A < 0) | ~np.isfinite(weight_A)][0]}.")
    total = weight_A.sum()
    return weight_A / total if total > 0 else np.full(len(weight_A), 1 / len(weight_A))


def entropy(share_A: Float) -> float:
    """The entropy of shares, in nats: ln A where all are equal, 0 where one has all."""
    return float(-(share_A * np.log(np.maximum(share_A, 1e-300))).sum())


def draw_arms(share_A: Float, n: int, rng: np.random.Generator) -> Int:
    """n independent draws of an arm."""
    edge_A = np.cumsum(share_A)
    return np.minimum(np.searchsorted(edge_A, rng.random(n) * edge_A[-1], side="right"), len(share_A) - 1).astype(np.int64)


def allocate(share_A: Float, n: int, carry_A: Float | None = None) -> tuple[Int, Float]:
    """Allocation of n draws to shares: (draws per arm, what is still owed to each arm).

    Without `carry_A`: largest remainders. With it (zeros at first, then what the call before returned): every arm gets the whole draws it
    is owed, and the rest go to the arms whose next draw falls due first. For constant shares the totals then stay within one draw of
    n * share for ever, whatever the sizes of the calls. (Going by largest remainders does not: with 7 arms it can stray 1.2 draws.) The
    rule is earliest-deadline scheduling of unit jobs, the k-th draw of an arm being released once its share of the total exceeds k - 1
    and due once it reaches k (Tijdeman 1980, "The chairman assignment problem").
    """
    share_A = np.asarray(share_A, dtype=np.float64)
    owed_A = share_A * n + (0.0 if carry_A is None else carry_A)
    draws_A = np.maximum(np.floor(owed_A + 1e-9), 0).astype(np.int64)
    left_A = owed_A - draws_A
    rest = n - int(draws_A.sum())
    if rest > 0:
        never_A = np.full(len(share_A), np.inf)
        due_A = -left_A if carry_A is None else np.divide(1 - left_A, share_A, out=never_A, where=(left_A > 1e-9) & (share_A > 1e-300))
        draws_A[np.argsort(due_A, kind="stable")[:rest]] += 1
    while rest < 0:  # shares have changed, and several arms were owed a whole draw at once
        over = np.flatnonzero(draws_A > 0)
        least = over[np.argsort(left_A[over], kind="stable")[:-rest]]
        draws_A[least] -= 1
        rest += len(least)
    return draws_A, owed_A - draws_A


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijective hash of 64-bit words."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLY[0]
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLY[1]
    return value ^ (value >> np.uint64(31))


def permuted(index_M: Int, size_M: Int, key_M: NDArray[np.uint64]) -> Int:
    """The image of `index_M` in [0, size_M) under the permutation that `key_M` names; vectorised over all three."""
    size_M = np.asarray(size_M, dtype=np.int64)
    bits_M = np.frexp(np.maximum(size_M - 1, 1).astype(np.float64))[1]  # exact, where a rounded logarithm can fall one short
    half_M = ((bits_M + 1) // 2).astype(np.uint64)
    low_M = (np.uint64(1) << half_M) - np.uint64(1)
    value_M = np.asarray(index_M).astype(np.uint64)
    todo = np.arange(len(value_M))
    while len(todo):
        half, low, key, value = half_M[todo], low_M[todo], key_M[todo], value_M[todo]
        left, right = value >> half, value & low
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(key + right + np.uint64((i * _GOLDEN) % 2**64)) & low)
        value_M[todo] = (left << half) | right
        todo = todo[value_M[todo] >= size_M[todo].astype(np.uint64)]  # outside the domain: walk on along the cycle
    return value_M.astype(np.int64)


class Deck:
    """Deals the tasks of each arm without replacement; an exhausted arm is reshuffled on its own.

    size_A: tasks per arm. The state is `position_A`, how many tasks of each arm have been dealt. A departure from samplers that refill
    all arms when any runs short (SEC's release): here every task of an arm comes exactly once per pass, whatever the other arms do.
    """

    def __init__(self, size_A: Int, seed: int) -> None:
        self.size_A = np.asarray(size_A, dtype=np.int64)
        self.seed = seed
        self.position_A = np.zeros(len(self.size_A), dtype=np.int64)

    def draw(self, arm_M: Int) -> Int:
        """For each requested arm the index, within that arm, of its next task; shape (M,)."""
        order = np.argsort(arm_M, kind="stable")
        ordered = arm_M[order]
        rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, side="left")
        place = self.position_A[ordered] + rank
        size = self.size_A[ordered]
        with np.errstate(over="ignore"):
            words = np.uint64(self.seed % 2**64) ^ _mix(ordered.astype(np.uint64) + np.uint64(_GOLDEN))
            key = _mix(_mix(words) + (place // size).astype(np.uint64) * np.uint64(_GOLDEN))
            index = permuted(place % size, size, key)
        np.add.at(self.position_A, arm_M, 1)
        out = np.empty(len(arm_M), dtype=np.int64)
        out[order] = index
        return out

    def state(self) -> dict[str, Any]:
        return {"deck_position": self.position_A.copy()}

    def load(self, state: dict[str, Any]) -> None:
        self.position_A = np.asarray(state["deck_position"], dtype=np.int64).copy()
