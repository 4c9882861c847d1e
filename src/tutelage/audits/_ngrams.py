"""N-grams that one model writes more often than another on the same prompts, whatever they are; an n-gram model for perplexity.

A response counts once for each n-gram that stands in it, and the responses to one prompt share the weight 1, so that counts are *prompts*
and neither a repeated word nor many samples of one prompt can make a habit.

Array suffixes: `B` responses, `K` n-grams.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from tutelage.errors import TutelageError
from tutelage.rates import holm

Floats = NDArray[np.float64]

WORD = re.compile(r"\w+|[^\w\s]")
MARK = "\0"
"""Before and after a text, for the n-gram model; it stands in no word."""


def words(text: str) -> list[str]:
    """Runs of letters and digits, and every other sign that is no space, by itself."""
    return WORD.findall(text)


def ngrams(text: str, n: int) -> set[str]:
    """The different n-grams of 1 to `n` words in a text, words separated by a space."""
    found = words(text)
    return {" ".join(found[i : i + size]) for size in range(1, n + 1) for i in range(len(found) - size + 1)}


def log_odds(
    count_S: ArrayLike,
    count_R: ArrayLike,
    total_S: float,
    total_R: float,
    *,
    prior: float = 0.5,
    prior_total: float = 1.0,
    rare: bool = True,
) -> tuple[Floats, Floats]:
    """Log-odds ratio of counts in S against R under a Dirichlet prior, and its z score; positive where S has more.

    δ = log[(c_S+α)/(N_S+α₀−c_S−α)] − log[(c_R+α)/(N_R+α₀−c_R−α)], z = δ / √(1/(c_S+α) + 1/(c_R+α)).

    Args:
        count_S, count_R: any shape. total_S, total_R: N, what the counts are of. prior: α of one n-gram. prior_total: α₀ of all; 1 with
            α = 0.5 is Jeffreys' prior on whether a response holds the n-gram. rare: take the variance as above, which leaves out what is
            small for rare counts; False adds 1/(N+α₀−c−α) of both sides, without which a word of nearly every response has a huge z.

    Source: Monroe, Colaresi & Quinn, Fightin' Words (2008), eq. 16, 19 and 22.
    """
    a_S, a_R = np.asarray(count_S, dtype=np.float64) + prior, np.asarray(count_R, dtype=np.float64) + prior
    delta = np.log(a_S / (total_S + prior_total - a_S)) - np.log(a_R / (total_R + prior_total - a_R))
    variance = 1 / a_S + 1 / a_R
    if not rare:
        variance += 1 / (total_S + prior_total - a_S) + 1 / (total_R + prior_total - a_R)
    return delta, delta / np.sqrt(variance)


def more_often_p(count_S: ArrayLike, count_R: ArrayLike, total_S: float, total_R: float, *, times: float = 1.0) -> Floats:
    """One-sided p values of the hypothesis that S has a count at most `times` as often as R.

    Given m = c_S + c_R, c_S is binomial with chance at most times N_S / (times N_S + N_R): exact for rare counts (Poisson), and on the safe
    side for common ones, whose variance is smaller. Counts need not be whole. No count on either side gives 1.
    """
    c_S, c_R = np.asarray(count_S, dtype=np.float64), np.asarray(count_R, dtype=np.float64)
    chance = times * total_S / (times * total_S + total_R)
    return np.where(c_S > 0, betainc(np.where(c_S > 0, c_S, 1.0), c_R + 1, chance), 1.0)


@dataclass(frozen=True)
class Lifts:
    """N-grams of two sets of responses, by falling z, of equals the shorter first.

    ngram_K. count_SK, count_RK: in prompts, of total_S and total_R. log_odds_K, z_K: see `log_odds`. p_K: one-sided, `more_often_p`.
    p_holm_K: after Holm's correction over all K.
    """

    ngram_K: list[str]
    count_SK: Floats
    count_RK: Floats
    total_S: float
    total_R: float
    log_odds_K: Floats
    z_K: Floats
    p_K: Floats

    def __len__(self) -> int:
        return len(self.ngram_K)

    @property
    def p_holm_K(self) -> Floats:
        return holm(self.p_K)

    def z_threshold(self, level: float = 0.01) -> float:
        """The sheet's threshold on z: the quantile 1 − level / K of a standard normal."""
        from scipy.special import ndtri

        return float(ndtri(1 - level / max(len(self), 1)))

    def flagged(self, level: float = 0.01) -> list[str]:
        """N-grams whose corrected p is at most `level`, by falling z; those that hold a flagged one of higher z are left out."""
        kept: list[str] = []
        for k in np.flatnonzero(self.p_holm_K <= level):
            mine = f" {self.ngram_K[k]} "
            if not any(f" {one} " in mine for one in kept):
                kept.append(self.ngram_K[k])
        return kept


def lift(
    responses_S: Sequence[str],
    responses_R: Sequence[str],
    n: int = 3,
    *,
    weight_S: Sequence[float] | None = None,
    weight_R: Sequence[float] | None = None,
    times: float = 1.0,
    least: float = 0.0,
) -> Lifts:
    """N-grams (of 1 to `n` words) that the responses S hold more often than the responses R to the same prompts, by falling z.

    Args:
        weight_S, weight_R: of each response; 1 / (number of responses to its prompt) makes counts of prompts. 1 each by default.
        times: p values are of "at most `times` as often".
        least: leave out n-grams of a smaller count in S and R together. The p values stay valid: they are conditional on that sum.

    The p value, not z, decides what is flagged: of an n-gram that R never writes, z is about ln(2c)/√2, so that among 5,000 n-grams a
    count below 340 would never pass the threshold on z, where the exact test needs 19.
    """
    if n < 1 or not len(responses_S) or not len(responses_R):
        raise TutelageError(f"lift got {len(responses_S)} and {len(responses_R)} responses and n={n}; expected some of both, n from 1.")
    count = [_counts(texts, n, weights) for texts, weights in ((responses_S, weight_S), (responses_R, weight_R))]
    total_S, total_R = (
        float(len(texts) if weights is None else sum(weights)) for texts, weights in ((responses_S, weight_S), (responses_R, weight_R))
    )
    names = sorted(g for g in count[0].keys() | count[1].keys() if count[0][g] + count[1][g] >= least)
    c_SK, c_RK = (np.array([c[g] for g in names], dtype=np.float64) for c in count)
    delta_K, z_K = log_odds(c_SK, c_RK, total_S, total_R, rare=False)
    p_K = more_often_p(c_SK, c_RK, total_S, total_R, times=times)
    order_K = np.lexsort((np.array([g.count(" ") for g in names]), -z_K))  # of equals the shorter first
    return Lifts([names[k] for k in order_K], c_SK[order_K], c_RK[order_K], total_S, total_R, delta_K[order_K], z_K[order_K], p_K[order_K])


def _counts(texts: Sequence[str], n: int, weights: Sequence[float] | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    if weights is None:
        for text in texts:
            counts.update(ngrams(text, n))
        return counts
    for text, weight in zip(texts, weights, strict=True):
        for g in ngrams(text, n):
            counts[g] += weight  # type: ignore[assignment]
    return counts


def prompt_independence(task_B: Sequence[str], holds_B: Sequence[bool]) -> float:
    """H(task | n-gram present) / log K: 1 for a habit spread evenly over K tasks, 0 where it keeps to one; NaN for one task or no habit."""
    tasks = sorted(set(task_B))
    share = np.array([sum(h for t, h in zip(task_B, holds_B, strict=True) if t == task) for task in tasks], dtype=np.float64)
    if len(tasks) < 2 or share.sum() == 0:
        return math.nan
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(tasks))) + 0.0


class NgramModel:
    """An interpolated n-gram model (Witten-Bell) of texts: the reference of a perplexity screen where no language model is at hand.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), T(h) being the number of different words seen after h, and h' the history without
    its first word; below the unigrams all words, one unseen among them, are equally likely.
    """

    def __init__(self, texts: Iterable[str], order: int = 3) -> None:
        self.order = order
        self._after: Mapping[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            for history, word in self._places(text):
                for start in range(len(history) + 1):
                    self._after[history[start:]][word] += 1
        if () not in self._after:
            raise TutelageError("An n-gram model needs at least one text; got none.")
        self._after = dict(self._after)
        self._size = {history: sum(counts.values()) for history, counts in self._after.items()}

    def nll(self, text: str) -> float:
        """Mean negative log-likelihood of the words and the end of a text, in nats."""
        places = list(self._places(text))
        return -sum(math.log(self._chance(history, word)) for history, word in places) / len(places)

    def _places(self, text: str) -> Iterable[tuple[tuple[str, ...], str]]:
        line = [MARK] * (self.order - 1) + [*words(text), MARK]
        for i in range(self.order - 1, len(line)):
            yield tuple(line[i - self.order + 1 : i]), line[i]

    def _chance(self, history: tuple[str, ...], word: str) -> float:
        chance = 1 / (len(self._after[()]) + 1)
        for start in range(len(history), -1, -1):
            counts = self._after.get(history[start:])
            if counts is not None:
                chance = (counts[word] + len(counts) * chance) / (self._size[history[start:]] + len(counts))
        return chance
