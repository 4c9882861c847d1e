"""ADCL: teach in batches from easy to hard, and measure each batch anew before it begins.

Source: Zhang et al., "Learning Like Humans" (arXiv 2505.08364), the adaptive difficulty curriculum. A curriculum fixed by the initial
difficulty goes stale: while the student learns, its own ranking of the tasks that are left drifts away from the first one.

    delta(x) = 1 - solved / S                                   from S attempts of the student as it is now
    sort D by delta_0 and cut it into K consecutive batches B_1 .. B_K
    teach B_1 in order; before B_k begins (k > 1) measure delta anew for x in B_k only, sort B_k by it, teach it in that order

Members of a batch never change: the correction is within a batch, and costs one more evaluation of D in all. With S = 8 a pass rate has a
standard error of up to 0.18, so much of an order among tasks of middling difficulty is noise. `nir` measures how far two orders differ;
what two independent measurements of one and the same student differ by is its noise floor.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.curricula._base import Curriculum, Wants
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes, group_advantage
from tutelage.pools import TaskPool
from tutelage.registry import curricula

Initial = Literal["measure", "prior"]
Rescore = Literal["next", "all", "partition"]
Order = Literal["ascending", "descending", "random"]
Ties = Literal["skip", "half"]
Int = NDArray[np.int64]


def nir(predicted_N: ArrayLike, actual_N: ArrayLike, *, ties: Ties = "skip") -> float:
    """Normalised inversion rate of two scores of the same N items: the share of pairs that they order differently.

    0: the same order, 1: the reverse, 1/2: nothing in common. ties: pairs that either score leaves equal are left out ("skip", which gives
    (1 - Goodman and Kruskal's gamma) / 2) or count one half ("half": (1 - Kendall's tau-a) / 2); without ties both are (1 - tau) / 2.
    Items whose score is NaN are left out. NaN where no pair is left to compare. O(N log N).
    """
    if ties not in get_args(Ties):
        raise unknown("ties of nir", ties, get_args(Ties))
    a_N, b_N = np.asarray(predicted_N, dtype=np.float64), np.asarray(actual_N, dtype=np.float64)
    if a_N.ndim != 1 or a_N.shape != b_N.shape:
        raise TutelageError(f"nir compares two scores of the same items; got shapes {a_N.shape} and {b_N.shape}.")
    known_N = ~(np.isnan(a_N) | np.isnan(b_N))
    first_N, second_N = (np.unique(x_N[known_N], return_inverse=True)[1] for x_N in (a_N, b_N))  # ranks from 0
    pairs = len(first_N) * (len(first_N) - 1) // 2
    both_N = first_N * (second_N.max(initial=0) + 1) + second_N
    tied = _equal_pairs(first_N) + _equal_pairs(second_N) - _equal_pairs(both_N)
    inverted = _inversions(second_N[np.argsort(both_N, kind="stable")])
    above, below = (inverted + tied / 2, pairs) if ties == "half" else (inverted, pairs - tied)
    return above / below if below else float("nan")


def _equal_pairs(code_N: Int) -> int:
    size_C = np.unique(code_N, return_counts=True)[1]
    return int((size_C * (size_C - 1) // 2).sum())


def _inversions(rank_N: Int) -> int:
    """How many pairs i < j have rank_N[i] > rank_N[j]; each is counted at the highest bit in which the two differ."""
    count = 0
    for bit in reversed(range(int(rank_N.max(initial=0)).bit_length())):
        group_N, one_N = rank_N >> (bit + 1), rank_N >> bit & 1  # the ranks stand sorted by `group_N`
        before_N = np.cumsum(one_N) - one_N
        start_N = np.searchsorted(group_N, group_N)
        count += int((before_N - before_N[start_N])[one_N == 0].sum())
        rank_N = rank_N[np.argsort(rank_N >> bit, kind="stable")]
    return count


def partition(size: int, batches: int) -> Int:
    """Where the batches of `size` sorted tasks begin and end, shape (K + 1,): sizes differ by at most one, the first ones being larger."""
    count = min(batches, size)
    size_K = size // count + (np.arange(count) < size % count)
    return np.concatenate([[0], np.cumsum(size_K)])


@curricula.register("adcl")
class Adcl(Curriculum):
    """Adaptive difficulty: batches from easy to hard, each measured and sorted anew before it begins (arXiv 2505.08364).

    batches: K (4). attempts: S, of one measurement (8, as many as a training group). initial: "measure" everything before the first
    lesson, or take the pool's "prior" difficulty. rescore: "next", the coming batch; "all", every batch still to come (the same orders up
    to ties, dearer: a diagnosis); "partition", everything still to come, which is sorted as a whole and cut anew; None, nothing: the
    predefined curriculum. order: "ascending", "random" within each batch (a control), "descending" (hard first, a control). draws: how
    many tasks the whole run will show (`compare` and `train` fill it in); where that is less than the pool, D is a uniformly drawn subset
    of this size, so that one pass makes the run and measuring costs no more than it must. A longer run goes over D again, and measures
    every batch again as it comes.

    A batch is measured before the proposal that first reaches into it, taken to be as large as the last one; so a lesson that straddles
    two batches shows the end of one and the newly sorted beginning of the next. A larger proposal takes the beginning in its old order,
    and the rest of the batch is measured before the next. No batch is measured twice for one proposal, however large. A trainer that
    does not answer `wants` gets the tasks in the order known so far. Ties keep the previous order, at first a random one (the paper does
    not say). A task none of whose attempts could be scored goes to the end of what is being sorted.
    """

    name = "adcl"
    needs = frozenset({"solved_NG"})
    memory = ("rows_M", "difficulty_M", "taught", "settled", "reach", "nir", "dead")

    def __init__(
        self,
        pool: TaskPool,
        *,
        seed: int = 0,
        batches: int = 4,
        attempts: int = 8,
        initial: Initial = "measure",
        rescore: Rescore | None = "next",
        order: Order = "ascending",
        draws: int | None = None,
    ) -> None:
        for what, value, known in (("initial", initial, Initial), ("rescore", rescore, Rescore), ("order", order, Order)):
            if value not in get_args(known) and not (what == "rescore" and value is None):
                raise unknown(f"{what} of adcl", str(value), get_args(known))
        if min(batches, attempts, 1 if draws is None else draws) < 1:
            raise TutelageError(f"adcl: batches, attempts and draws must be at least 1; got {batches}, {attempts} and {draws}.")
        config = {"batches": batches, "attempts": attempts, "initial": initial, "rescore": rescore, "order": order, "draws": draws}
        super().__init__(pool, seed=seed, config=config)
        if initial == "prior" and pool.difficulty_N is None:
            raise TutelageError("adcl: initial='prior' needs a pool with difficulties. Give TaskPool(difficulty=...), or measure them.")
        row_type = np.int32 if len(pool) < 2**31 else np.int64
        size = min(len(pool), draws or len(pool))
        self._first_M = self.rng.choice(len(pool), size, replace=False).astype(row_type)  # in random order, too
        self._edge_K = partition(size, batches)
        self.rows_M = np.zeros(0, dtype=row_type)  # D in its present order; empty until something is measured
        self.difficulty_M = np.zeros(0, dtype=np.float32)  # as last measured, in that order; NaN where unknown
        self.taught = 0  # tasks proposed so far
        self.settled = int(initial == "prior")  # batches are counted through all passes; those below need no measuring
        self.reach = 1  # the size of the last proposal
        self.nir = self.dead = float("nan")
        if initial == "prior":
            assert pool.difficulty_N is not None
            self._first_M = self._first_M[self._sorted(pool.difficulty_N[self._first_M], 0)]

    @classmethod
    def probes_per_draw(
        cls, *, batches: int = 4, attempts: int = 8, initial: Initial = "measure", rescore: Rescore | None = "next", **_: object
    ) -> float:
        """For each task of a run of one pass."""
        again = {None: 0.0, "next": (batches - 1) / batches}.get(rescore, (batches - 1) / 2)
        return attempts * ((initial == "measure") + again)

    @property
    def order_M(self) -> NDArray[Any]:
        """Rows of the pool in the order in which this pass teaches them, shape (M,)."""
        return self.rows_M if len(self.rows_M) else self._first_M

    @property
    def batch_rows(self) -> Int:
        """Rows of the batch in hand, that of the last proposal's last task, in the order of teaching."""
        batch = self._batch(max(self.taught - 1, 0)) % (len(self._edge_K) - 1)
        return self.order_M[self._edge_K[batch] : self._edge_K[batch + 1]].astype(np.int64)

    def _batch(self, taught: int) -> int:
        """The batch, counted through all passes, that the task at a position of the run belongs to."""
        passes, place = divmod(taught, len(self._first_M))
        return passes * (len(self._edge_K) - 1) + int(np.searchsorted(self._edge_K, place, side="right")) - 1

    def _due(self) -> tuple[list[tuple[int, int]], int]:
        """What to measure now, as ranges of places each of which is sorted as a whole; and what will be settled then."""
        size, count = len(self._first_M), len(self._edge_K) - 1
        place, here = self.taught % size, self._batch(self.taught)
        last = min(self._batch(self.taught + self.reach - 1), here + count - 1)
        if self.settled == 0:
            return [(place, size)], min(last, (here // count + 1) * count - 1) + 1
        first, rescore = max(self.settled, here), self.config["rescore"]
        if rescore is None or first > last:
            return [], self.settled
        until = last if rescore == "next" else max(last, min((first // count + 1) * count, here + count) - 1)
        ranges: list[tuple[int, int]] = []
        for batch in range(first, until + 1):
            start, stop = self._edge_K[batch % count : batch % count + 2].tolist()
            start = place if batch == here else start  # what has been shown in this pass keeps its place
            if rescore == "partition" and ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        return ranges, last + 1

    def wants(self) -> Wants | None:
        """At first all of D; later the batch that the next proposal is the first to reach into."""
        ranges, _ = self._due()
        rows_N = [self.order_M[start:stop] for start, stop in ranges]
        return Wants(np.concatenate(rows_N).astype(np.int64), attempts=self.config["attempts"]) if ranges else None

    def _propose(self, n: int) -> Int:
        place_N = (self.taught + np.arange(n)) % len(self._first_M)
        self.taught, self.reach = self.taught + n, n
        return self.order_M[place_N].astype(np.int64)

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        if not probe:
            self.dead = float((group_advantage(outcomes.solved_NG) == 0).all(axis=1).mean())  # type: ignore[arg-type]
            return
        ranges, settled = self._due()
        if not ranges:
            return
        place_N = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        difficulty_N = self._measured(self.order_M[place_N], outcomes)
        if not len(self.rows_M):
            self.rows_M, self.difficulty_M = self._first_M.copy(), self._first_difficulty()
        self.nir = nir(self.difficulty_M[place_N], difficulty_N)
        self.difficulty_M[place_N] = difficulty_N
        for start, stop in ranges:
            order_N = start + self._sorted(self.difficulty_M[start:stop], start)
            self.rows_M[start:stop], self.difficulty_M[start:stop] = self.rows_M[order_N], self.difficulty_M[order_N]
        self.settled = settled

    def _first_difficulty(self) -> NDArray[np.float32]:
        """The difficulty by which D was ordered before anything was measured."""
        if self.config["initial"] == "prior" and self.pool.difficulty_N is not None:
            return self.pool.difficulty_N[self._first_M]
        return np.full(len(self._first_M), np.nan, dtype=np.float32)

    def _measured(self, rows_N: NDArray[np.integer], outcomes: Outcomes) -> NDArray[np.float64]:
        """The difficulty of these rows as the outcomes show it; NaN where no attempt could be scored."""
        seen_N = self.pool.rows_of(outcomes.key_N)
        walk_N = np.argsort(seen_N, kind="stable")
        at_N = walk_N[np.minimum(np.searchsorted(seen_N, rows_N, sorter=walk_N), len(seen_N) - 1)]
        missing = int((seen_N[at_N] != rows_N).sum())
        if missing:
            raise TutelageError(
                f"adcl asked for {len(rows_N)} tasks to be measured, and the answer lacks {missing} of them. Answer wants() before the "
                "next proposal, with all of its rows in one observe(..., probe=True)."
            )
        return 1 - outcomes.pass_rate_N[at_N]

    def _sorted(self, difficulty_N: NDArray[np.floating], start: int) -> Int:
        """The order, as indices, in which to teach what stands at the places from `start` on; equals keep theirs, the unknown go last."""
        order_N = np.argsort(-difficulty_N if self.config["order"] == "descending" else difficulty_N, kind="stable")
        if self.config["order"] == "random":
            for part_N in np.split(order_N, self._edge_K[(self._edge_K > start) & (self._edge_K < start + len(order_N))] - start):
                self.rng.shuffle(part_N)
        return order_N

    @property
    def metrics(self) -> dict[str, float]:
        """passes over D begun; batch of the pass, from 1; nir of the difficulties predicted for what was last measured; dead groups of the
        last lesson, as a share."""
        count = len(self._edge_K) - 1
        batch = self._batch(max(self.taught - 1, 0))
        known = {"nir": self.nir, "dead": self.dead}
        return {"passes": float(batch // count + 1), "batch": float(batch % count + 1)} | {
            k: v for k, v in known.items() if not np.isnan(v)
        }
