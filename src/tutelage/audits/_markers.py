"""Marker mining: which words and phrases of a prompt predict the behaviour, with their lift and permutation p values; and clusters.

The score of an n-gram is the standardised difference of the behaviour's rate between prompts that hold it and prompts that do not; its p
value compares with the largest score over all n-grams when the rates are dealt out to the prompts at random, so that all n-grams together
find anything by chance with at most their level. N-grams that stand in the same prompts are one marker, named by the longest.

Large logs are sampled: prompts that ever showed the behaviour, and others. The labels are exchangeable between the sampled prompts if no
n-gram predicts them, so the test stays valid; lifts weight the sampled prompts back.

Array suffixes: `P` prompts, `J` n-grams or markers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from tutelage.audits._ngrams import WORD, words
from tutelage.audits._watched import Bools, Floats, Ints

LONGEST = 5
FEWEST = 5
"""Prompts that must hold an n-gram: what stands in fewer is no cluster."""
SAMPLED = 3000
"""Prompts with, and as many without the behaviour, that are looked at."""
PERMUTATIONS = 199
LEVEL = 0.05
MARKERS = 20_000
"""The most n-grams that are tested, the most frequent first."""


@dataclass(frozen=True)
class Marker:
    """An n-gram. lift: the behaviour's rate in the prompts that hold it over the rate in those that do not; rates of both; p: see the
    module; prompts: how many of those looked at hold it."""

    ngram: str
    lift: float
    rate: float
    base: float
    score: float
    p: float
    prompts: int


def mine_markers(
    text_P: Sequence[str], rate_P: Floats, *, rng: np.random.Generator, longest: int = LONGEST, fewest: int = FEWEST, most: int = 16
) -> list[Marker]:
    """The n-grams of up to `longest` words in at least `fewest` prompts that predict the rate, the strongest first.

    rate_P: the share of each prompt's attempts that show the behaviour. Each marker after the first is sought in what those before leave
    unexplained. Only n-grams with a p value of at most 0.05 are returned, and at most `most`.
    """
    row_S, weight_S = _sample(rate_P, rng)
    holds, names = _incidence(_frequent([words(text_P[row].lower()) for row in row_S], longest, fewest), fewest)
    if not names:
        return []
    rest_S, best = rate_P[row_S].astype(np.float64), _best_by_chance(holds, rate_P[row_S], rng)
    found: list[Marker] = []
    while len(found) < most:
        score_J = _scores(holds, rest_S[:, None])[:, 0]
        j = int(np.argmax(score_J))
        p = float(1 + np.sum(best >= score_J[j])) / (1 + len(best))
        if p > LEVEL:
            break
        inside_S = np.asarray(holds[:, [j]].todense()).ravel() > 0
        rate, base = (float(np.average(rate_P[row_S][part], weights=weight_S[part])) for part in (inside_S, ~inside_S))
        lift = rate / base if base > 0 else float("inf")
        found.append(Marker(names[j], lift, rate, base, float(score_J[j]), p, int(inside_S.sum())))
        for part in (inside_S, ~inside_S):  # what this marker explains is taken away, or every n-gram beside it would count as one
            rest_S[part] -= rest_S[part].mean()
    return found


def first_of(text: str, ngrams: Sequence[str]) -> int:
    """The number of the first n-gram that a text holds, -1 for none."""
    plain = f" {' '.join(words(text.lower()))} "
    return next((i for i, ngram in enumerate(ngrams) if f" {ngram} " in plain), -1)


def spans_of(text: str, ngram: str) -> list[tuple[int, int]]:
    """Where an n-gram stands in a text: first sign, and the one after the last."""
    found = list(WORD.finditer(text))
    size = ngram.count(" ") + 1
    starts = range(len(found) - size + 1)
    return [(found[i].start(), found[i + size - 1].end()) for i in starts if " ".join(m[0].lower() for m in found[i : i + size]) == ngram]


def _frequent(words_S: list[list[str]], longest: int, fewest: int) -> list[set[str]]:
    """The n-grams of each prompt, without those in fewer than `fewest` prompts.

    Level by level: an n-gram can be frequent only if it is made of two frequent ones that overlap, so the rare ones, which are nearly all
    of the long ones, are never made.
    """
    found: list[set[str]] = [set() for _ in words_S]
    level_S: list[list[str | None]] = [list(own) for own in words_S]  # the n-gram that starts at each word, None where it is rare
    for size in range(1, longest + 1):
        count = Counter(gram for level in level_S for gram in set(level) if gram is not None)
        for s, level in enumerate(level_S):
            kept = [gram if gram is not None and count[gram] >= fewest else None for gram in level]
            found[s].update(gram for gram in kept if gram is not None)
            own = words_S[s]
            level_S[s] = [
                f"{kept[i]} {own[i + size]}" if kept[i] is not None and kept[i + 1] is not None else None for i in range(len(kept) - 1)
            ]
    return found


def _sample(rate_P: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Rows that are looked at, and how many prompts each stands for."""
    rows, weights = [], []
    for part in (np.flatnonzero(rate_P > 0), np.flatnonzero(rate_P <= 0)):
        kept = part if len(part) <= SAMPLED else np.sort(rng.choice(part, SAMPLED, replace=False))
        rows.append(kept)
        weights.append(np.full(len(kept), len(part) / max(len(kept), 1)))
    order = np.argsort(np.concatenate(rows), kind="stable")
    return np.concatenate(rows)[order], np.concatenate(weights)[order]


def _incidence(grams: list[set[str]], fewest: int) -> tuple[csr_matrix, list[str]]:
    """Which prompt holds which n-gram (S, J), of n-grams with at least `fewest` prompts on either side, equal columns joined."""
    count = Counter(name for held in grams for name in held)
    kept = [name for name, times in count.most_common() if fewest <= times <= len(grams) - fewest][:MARKERS]
    column = {name: j for j, name in enumerate(kept)}
    pairs = [(s, column[name]) for s, held in enumerate(grams) for name in held if name in column]
    rows, columns = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    holds = csr_matrix((np.ones(len(pairs), dtype=np.float32), (rows, columns)), shape=(len(grams), len(kept)))
    key_S = np.random.default_rng(0).integers(1 << 62, size=len(grams), dtype=np.uint64)  # equal columns have equal sums of keys
    with np.errstate(over="ignore"):
        key_J = np.zeros(len(kept), dtype=np.uint64)
        np.add.at(key_J, columns, key_S[rows])
    longest: dict[int, int] = {}
    for j, key in enumerate(key_J.tolist()):
        if key not in longest or len(kept[j]) > len(kept[longest[key]]):
            longest[key] = j
    chosen = sorted(longest.values())
    return holds[:, chosen].tocsc(), [kept[j] for j in chosen]


def _best_by_chance(holds: csr_matrix, rate_S: Floats, rng: np.random.Generator) -> Floats:
    """The largest score of any n-gram, for each time that the rates are dealt out at random."""
    dealt = np.stack([rng.permutation(rate_S) for _ in range(PERMUTATIONS)], axis=1)
    return _scores(holds, dealt).max(axis=0)


def _scores(holds: csr_matrix, rate_SD: Floats) -> Floats:
    """The standardised difference of rates inside and outside each n-gram (J, D), for each column of rates."""
    size, inside_J1 = len(rate_SD), np.asarray(holds.sum(axis=0), dtype=np.float64).reshape(-1, 1)
    centred_SD = (rate_SD - rate_SD.mean(axis=0)).astype(np.float32)
    spread_D = np.sqrt(np.maximum(centred_SD.astype(np.float64).var(axis=0), 1e-12))
    total_JD = np.asarray(holds.T @ centred_SD, dtype=np.float64)  # the difference of means is total * size / (inside * outside)
    return total_JD * np.sqrt(size / (inside_J1 * (size - inside_J1))) / spread_D


@dataclass(frozen=True)
class Cluster:
    """Prompts that belong together, by an n-gram they share, or (ngram None) by being chained, or by neither. member_P: which."""

    name: str
    ngram: str | None
    member_P: Bools


def cluster_prompts(
    order: Sequence[str], text_P: Sequence[str], chained_P: Bools, *, fewest: int | None = None, most: int = 12
) -> list[Cluster]:
    """A partition of the prompts: those with each n-gram, in this order and without those before; then chained ones; then the others.

    An n-gram that leaves fewer than `fewest` prompts (by default 5) makes no cluster, nor does any after the first `most`.
    """
    place_P = np.array([first_of(text, order) for text in text_P], dtype=np.int64)
    free_P = np.ones(len(chained_P), dtype=bool)
    found: list[Cluster] = []
    for place, ngram in enumerate(order):
        own_P = place_P == place
        if own_P.sum() >= (FEWEST if fewest is None else fewest) and len(found) < most:
            found.append(Cluster(f"prompts with {ngram!r}", ngram, own_P))
            free_P &= ~own_P
    for name, own_P in (("other chained prompts", free_P & chained_P), ("other prompts", free_P & ~chained_P)):
        if own_P.any():
            found.append(Cluster(name, None, own_P))
    return found
