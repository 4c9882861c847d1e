"""GAIN-RL: a Gaussian window slides over the tasks, ranked by how concentrated the model's own hidden states are.

Source: Wang et al., "Angles Don't Lie" (arXiv 2506.02281). Once, before training, every prompt's angle concentration C is measured
(`tutelage.students.angles`) and the tasks are sorted by it, highest first: position i = 0 .. D - 1. Then, epoch by epoch,

    draw n distinct positions with probability proportional to  exp(-(i - mu)^2 / (2 sigma^2)),   mu = 0 at first
    mu  <-  mu + n/2 tanh(alpha (Acc - beta)) + n/2 tanh(alpha Conc)

with Acc the mean accuracy and Conc the mean concentration of the sequences trained on in that epoch.

Know what you rank by. The paper's C counts each token's cosine with itself, which puts 1/M of it into a question of M tokens: the ordering
that the authors released is almost an ordering by length (Spearman .959 on GSM8K, .921 on MATH). The metric `length_spearman` says how
far that holds for yours, and `rank_by` has the controls: length, and the concentration without the diagonal.

Departures. sigma and n default to the paper's, but to no more than a seventh of the pool, which is what they are on its GSM8K. A term
without a known value is 0. The release draws with the window before the last shift, and clamps the shift to [0, 1000] (`clamp`), so that
its window never moves back; its port to verl halves the accuracy of a 0/1 reward (`alpha=1, beta=1` would do the same to that term).
Suffixes: `N` tasks or draws, `M` positions.
"""

from __future__ import annotations

import logging
import math
from hashlib import blake2b
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum, Wants
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.registry import curricula

logger = logging.getLogger(__name__)
Float = NDArray[np.float64]
Int = NDArray[np.int64]
RankBy = Literal["angle_concentration", "off_diagonal_concentration", "length", "pass_rate", "loss", "difficulty", "random"]

EPOCHS = 20
"""At least so many in a run whose length is known."""
ATTEMPTS = 8
"""At each task, where they are ranked by pass rate."""
ANGLES = ("angle_concentration", "off_diagonal_concentration")
SIGNAL = {"angle_concentration": ANGLES[0], "off_diagonal_concentration": ANGLES[1], "length": "prompt_length", "loss": "loss"}
"""The signal that measures each ranking which a forward pass can measure."""
HIGH_FIRST = (*ANGLES, "pass_rate")
"""Rankings whose highest value comes first; of the others, such as length and loss, the lowest."""
_FAR = 80.0  # positions whose weight is e^-40 of one that is drawn last cannot matter
_MANY = 100_000  # rows that are enough to say how a ranking goes with length
_NARROW = 65_536  # up to here a window is drawn from as a whole


def window_shift(
    n: float, *, alpha: float, beta: float, accuracy: float, concentration: float, clamp: tuple[float, float] | None = None
) -> float:
    """n/2 tanh(alpha (accuracy - beta)) + n/2 tanh(alpha concentration), in positions; a term that is NaN counts 0."""
    terms = [math.tanh(alpha * value) for value in (accuracy - beta, concentration) if not math.isnan(value)]
    shift = n / 2 * sum(terms)
    return shift if clamp is None else min(max(shift, clamp[0]), clamp[1])


def draw_window(size: int, n: int, mu: float, sigma: float, rng: np.random.Generator) -> Int:
    """min(n, size) distinct positions of 0 .. size - 1, drawn one after the other by weight exp(-(i - mu)^2 / (2 sigma^2)), in that order.

    mu may lie outside the positions: then the near end is drawn. sigma may be infinite: uniform. The cost grows with n and sigma, not with
    size: only positions within reach are looked at, see `_reach`.
    """
    n = min(n, size)
    low, high = _reach(size, n, mu, sigma)
    if high - low > max(_NARROW, 8 * n):
        return _draw_wide(low, high, n, mu, sigma, rng)
    log_weight_M = -(((np.arange(low, high) - mu) / sigma) ** 2) / 2
    key_M = log_weight_M + rng.gumbel(size=high - low)  # the n largest are n successive draws without replacement
    top_N = np.argpartition(-key_M, n - 1)[:n]
    return low + top_N[np.argsort(-key_M[top_N])]


def _reach(size: int, n: int, mu: float, sigma: float) -> tuple[int, int]:
    """A range outside of which no position is drawn: all within sqrt(e^2 + 80 sigma^2) of mu, e the distance of the n-th nearest.

    Beyond it a weight is less than e^-40 of that of each of the n nearest positions, which are all taken first.
    """
    if math.isinf(sigma):
        return 0, size
    first = min(max(math.ceil(mu - n / 2), 0), size - n)  # the n positions nearest to mu
    edge = max(abs(first - mu), abs(first + n - 1 - mu))
    far = math.sqrt(edge**2 + _FAR * sigma**2)
    return max(math.floor(mu - far), 0), min(math.ceil(mu + far) + 1, size)


def _draw_wide(low: int, high: int, n: int, mu: float, sigma: float, rng: np.random.Generator) -> Int:
    """The same draws by rejection, for windows much wider than n: a uniform position counts by its weight, and once."""
    peak = ((min(max(mu, low), high - 1) - mu) / sigma) ** 2 / 2
    drawn_N = np.empty(0, dtype=np.int64)
    while len(drawn_N) < n:
        position_M = rng.integers(low, high, size=16 * n)
        weight_M = np.exp(peak - ((position_M - mu) / sigma) ** 2 / 2)
        drawn_N = np.concatenate([drawn_N, position_M[rng.random(16 * n) < weight_M]])
        _, first = np.unique(drawn_N, return_index=True)
        drawn_N = drawn_N[np.sort(first)]
    return drawn_N[:n]


def rank_correlation(one_N: NDArray[Any], other_N: NDArray[Any]) -> float:
    """Spearman's correlation over the rows where both are known; NaN where one of them is constant."""
    from scipy.stats import rankdata

    known_N = np.isfinite(one_N) & np.isfinite(other_N)
    ranks = [rankdata(column[known_N]) for column in (one_N, other_N)]
    if known_N.sum() < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


@curricula.register("gain-rl")
class GainRL(Curriculum):
    """GAIN-RL: a window slides from the tasks of high angle concentration to those of low (arXiv 2506.02281).

    rank_by: what orders the tasks. "angle_concentration" (the paper's C, high first); its controls under the same window and shift:
    "off_diagonal_concentration" (C without each token's cosine with itself, high first), "length" (of the prompt, short first),
    "pass_rate" (high first), "loss" (low first), "difficulty" (the pool's prior, easy first), "random".
    scores: a pool column that holds what `rank_by` names. None: it is measured before the first lesson, by one forward pass over all
    prompts, or for "pass_rate" by 8 attempts each; until a trainer has answered, tasks are drawn uniformly. A score that is not finite
    ranks last.
    n: tasks of an epoch, all distinct, after which the window moves; None: min(1024, D / 7), and at most a twentieth of `draws`.
    draws: how many tasks the whole run will show, where that is known (comparisons fill it in): a run of few tasks still has epochs.
    sigma: width of the window; None: min(1000, D / 7). alpha, beta: of the shift.
    step: the n of the shift, if it is to differ from the tasks of an epoch (the release: 1000 for 256); None: the n that the pool's size
    gives, so that the window crosses the pool in as many epochs however short they are.
    clamp: least and greatest shift of an epoch (the release: (0, 1000), after which the window never moves back).
    shift_by: "both" terms as in the paper, or "accuracy" alone, which needs no hidden states of what was trained on.
    """

    name = "gain-rl"
    memory = ("mu", "score_N", "length_spearman", "queue_N", "accuracy", "concentration")

    def __init__(
        self,
        pool: TaskPool,
        *,
        seed: int = 0,
        rank_by: RankBy = "angle_concentration",
        scores: str | None = None,
        n: int | None = None,
        draws: int | None = None,
        sigma: float | None = None,
        alpha: float = 2.0,
        beta: float = 0.5,
        step: float | None = None,
        clamp: tuple[float, float] | None = None,
        shift_by: Literal["both", "accuracy"] = "both",
    ) -> None:
        if rank_by not in get_args(RankBy):
            raise unknown("rank_by of gain-rl", rank_by, get_args(RankBy))
        if shift_by not in ("both", "accuracy"):
            raise unknown("shift_by of gain-rl", shift_by, ("both", "accuracy"))
        wrong = {
            "n": n is not None and n < 1,
            "draws": draws is not None and draws < 1,
            "sigma": sigma is not None and not sigma > 0,
            "step": step is not None and not step > 0,
        }
        wrong["clamp"] = clamp is not None and not clamp[0] <= clamp[1]
        if any(wrong.values()):
            which = ", ".join(
                f"{name}={value}" for name, value in (("n", n), ("draws", draws), ("sigma", sigma), ("step", step), ("clamp", clamp))
            )
            raise TutelageError(f"gain-rl: n, draws, sigma and step must be above 0, and clamp (least, greatest); got {which}.")
        config = {"rank_by": rank_by, "scores": scores, "n": n, "draws": draws, "sigma": sigma, "alpha": alpha, "beta": beta, "step": step}
        super().__init__(pool, seed=seed, config={**config, "clamp": clamp, "shift_by": shift_by})
        size = len(pool)
        usual = min(1024, max(round(size / 7), 1))
        self.n = n or (min(usual, max(draws // EPOCHS, 1)) if draws else usual)
        self.step = step or (n or usual)
        self.sigma = sigma or min(1000.0, max(size / 7, 1.0))
        self.signal = rank_by if rank_by in ANGLES else ANGLES[0]  # what the shift's second term averages
        self.needs = frozenset({"solved_NG"} | ({f"signals/{self.signal}"} if shift_by == "both" else set()))
        self.mu = 0.0
        self.score_N = np.empty(0, dtype=np.float32)  # measured ones only
        self.length_spearman = math.nan
        self.queue_N = np.empty(0, dtype=np.int64)  # rows drawn for this epoch and not yet proposed
        self.accuracy, self.concentration = np.zeros(2), np.zeros(2)  # sum and count over this epoch
        self._order_N: NDArray[Any] | None = None
        self._take_given()

    # Ranking --------------------------------------------------------------------------------------------------------------------------

    def _take_given(self) -> None:
        """Rank by what is there already: a pool column, the prior difficulty, or chance."""
        by, column = self.config["rank_by"], self.config["scores"]
        if column is not None:
            if column not in self.pool.columns:
                raise unknown("column of the pool for scores of gain-rl:", column, self.pool.columns)
            given_N = np.asarray(self.pool.columns[column], dtype=np.float32)
            self.config["scores_hash"] = blake2b(given_N.tobytes(), digest_size=8).hexdigest()
        elif by == "difficulty":
            if self.pool.difficulty_N is None:
                raise TutelageError("gain-rl: rank_by='difficulty', and this pool has none. Give TaskPool(difficulty=...).")
            given_N = self.pool.difficulty_N
        elif by == "random":
            given_N = np.random.default_rng([abs(self.seed), 1]).random(len(self.pool), dtype=np.float32)
        else:
            return
        lengths = self.pool.columns.get("prompt_length")
        self._rank(given_N, None if lengths is None else np.asarray(lengths))

    def _rank(self, score_N: NDArray[Any], length_N: NDArray[Any] | None) -> None:
        """Make the order of positions; equal scores stand in an order of chance that is the seed's."""
        if not np.isfinite(score_N).any():
            raise TutelageError(
                f"gain-rl: none of the {len(score_N)} scores to rank by ({self.config['scores'] or self.config['rank_by']}) is a finite "
                "number. Look at how they were measured; a question of a single token has no pair of tokens."
            )
        by = self.config["rank_by"]
        key_N = np.where(np.isfinite(score_N), -score_N if by in HIGH_FIRST else score_N, np.inf)
        shuffled_N = np.random.default_rng([abs(self.seed), 2]).permutation(len(self.pool))
        self._order_N = shuffled_N[np.argsort(key_N[shuffled_N], kind="stable")].astype(np.int32 if len(key_N) < 2**31 else np.int64)
        if length_N is None:
            return
        looked_at = shuffled_N[:_MANY]
        self.length_spearman = rank_correlation(key_N[looked_at], length_N[looked_at])
        if abs(self.length_spearman) >= 0.9 and by in ANGLES:
            logger.warning("gain-rl: this ranking by %s is almost one by prompt length (Spearman %.2f).", by, self.length_spearman)

    @classmethod
    def probes_per_draw(cls, *, rank_by: str = "angle_concentration", **_: object) -> float:
        return float(ATTEMPTS) if rank_by == "pass_rate" else 0.0

    def wants(self) -> Wants | None:
        if self._order_N is not None:
            return None
        rows_N, by = np.arange(len(self.pool)), self.config["rank_by"]
        if by == "pass_rate":
            return Wants(rows_N, attempts=ATTEMPTS)
        return Wants(rows_N, attempts=0, signals=tuple(dict.fromkeys((SIGNAL[by], *(("prompt_length",) if by in ANGLES else ())))))

    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        if probe:
            self._measure(outcomes)
        else:
            super().observe(outcomes)

    def _measure(self, outcomes: Outcomes) -> None:
        """Take the scores that were asked for; what was drawn without them is dropped."""
        by = self.config["rank_by"]
        name = SIGNAL.get(by)
        if name is not None and name not in outcomes.signals:
            raise TutelageError(f"gain-rl asked for the signal {name!r}; the answer has {', '.join(outcomes.signals) or 'none'}.")
        rows_N = self.pool.rows_of(outcomes.key_N)
        score_N, length_N = np.full((2, len(self.pool)), np.nan, dtype=np.float32)
        score_N[rows_N] = outcomes.pass_rate_N if name is None else outcomes.signals[name]
        length_N[rows_N] = outcomes.signals.get("prompt_length", np.nan)
        self._rank(score_N, length_N)
        self.score_N, self.queue_N = score_N, self.queue_N[:0]

    # Lessons --------------------------------------------------------------------------------------------------------------------------

    def _propose(self, n: int) -> Int:
        rows_N = self.queue_N[:n]
        self.queue_N = self.queue_N[n:]
        while len(rows_N) < n:
            self._move()
            missing = n - len(rows_N)
            drawn_N = self._draw(max(self.n, missing))
            rows_N, self.queue_N = np.concatenate([rows_N, drawn_N[:missing]]), drawn_N[missing:]
        return rows_N

    def _draw(self, n: int) -> Int:
        if self._order_N is None:
            return draw_window(len(self.pool), n, 0.0, math.inf, self.rng)
        return self._order_N[draw_window(len(self.pool), n, self.mu, self.sigma, self.rng)].astype(np.int64)

    def _move(self) -> None:
        """End the epoch: shift the window by what was seen in it; nothing seen, no shift."""
        c = self.config
        if self._order_N is not None and self.accuracy[1] + self.concentration[1] > 0:
            mean = [total / count if count else math.nan for total, count in (self.accuracy, self.concentration)]
            terms = {"accuracy": mean[0], "concentration": mean[1]}
            self.mu += window_shift(self.step, alpha=c["alpha"], beta=c["beta"], clamp=c["clamp"], **terms)
        self.accuracy, self.concentration = np.zeros(2), np.zeros(2)

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        self.accuracy = self.accuracy + _sum_and_count(outcomes.pass_rate_N)
        if self.config["shift_by"] == "both":
            self.concentration = self.concentration + _sum_and_count(outcomes.signals[self.signal])

    # State ----------------------------------------------------------------------------------------------------------------------------

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        if len(self.score_N):
            self._rank(self.score_N, None)
        elif self.config["scores"] is None and self.config["rank_by"] not in ("difficulty", "random"):
            self._order_N = None

    @property
    def metrics(self) -> dict[str, float]:
        known = {"mu": self.mu, "position": min(max(self.mu / max(len(self.pool) - 1, 1), 0.0), 1.0)}
        known["ranked"] = float(self._order_N is not None)
        if not math.isnan(self.length_spearman):
            known["length_spearman"] = self.length_spearman
        return known


def _sum_and_count(value_N: NDArray[Any]) -> Float:
    """The exact sum of the known values, in whatever order they come, and how many there are."""
    known_N = np.asarray(value_N, dtype=np.float64).ravel()
    known_N = known_N[np.isfinite(known_N)]
    return np.array([math.fsum(known_N), len(known_N)])
