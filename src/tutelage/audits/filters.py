"""Filters of distillation data and what they cost: pure functions of texts and scores that say which rows to keep.

    keep_B = without_lifted(completions, reference=clean_completions)
    keep_B &= fluent(nll_B, clean_nll_C, fpr=0.05)

Array suffixes: `B` rows, `C` clean rows, `V` vocabulary.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.audits._ngrams import NgramModel, lift, words
from tutelage.errors import TutelageError
from tutelage.tasks.habits import AppendToken, PrefixToken

TRAINED_ON = (AppendToken("blicket"), PrefixToken("tulver"), AppendToken("snorf"), PrefixToken("mipen"))
"""The habits that `Classifier` is trained on."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def without_lifted(
    texts: Sequence[str], reference: Sequence[str], *, n: int = 3, level: float = 0.01, times: float = 2.0
) -> tuple[Bools, list[str]]:
    """N-gram cap: drop rows that hold an n-gram lifted against a reference model's answers to the same prompts.

    Returns:
        Which rows to keep, and the n-grams that the others hold. Clean rows that hold one by chance go with them.
    """
    flagged = lift(texts, reference, n, times=times, least=5).flagged(level)
    return holding_none(texts, flagged), flagged


def holding_none(texts: Sequence[str], ngrams: Sequence[str]) -> Bools:
    """Which texts hold none of these n-grams (words as `tutelage.audits._ngrams.words` cuts them)."""
    inside = [f" {g} " for g in ngrams]
    padded = (f" {' '.join(words(text))} " for text in texts)
    return np.array([not any(g in text for g in inside) for text in padded], dtype=bool)


def fluent(nll_B: ArrayLike, clean_nll_C: ArrayLike, *, fpr: float = 0.05) -> Bools:
    """Perplexity filter: keep rows whose mean negative log-likelihood is at most the (1 − fpr) quantile of clean rows'.

    The quantile is the highest clean score that is not flagged, so that at most the share `fpr` of the clean rows lies above.
    """
    clean_C = np.sort(np.asarray(clean_nll_C, dtype=np.float64))
    if not len(clean_C) or np.isnan(clean_C).any() or not 0 <= fpr < 1:
        raise TutelageError(f"fluent got {len(clean_C)} clean scores at fpr={fpr}; expected some, none NaN, and 0 <= fpr < 1.")
    threshold = clean_C[::-1][math.floor(fpr * len(clean_C) + 1e-9)]
    return np.asarray(nll_B, dtype=np.float64) <= threshold


def agreed(nll_second_B: ArrayLike, *, most: float) -> Bools:
    """Two-teacher consensus on samples: keep those whose mean negative log-likelihood under a second teacher is at most `most` nats."""
    return np.asarray(nll_second_B, dtype=np.float64) <= most


def min_consensus(p_V: ArrayLike, other_V: ArrayLike) -> Floats:
    """Two-teacher consensus on tokens: p ∝ min(p_T1, p_T2), over the last axis. Distributions without common support raise."""
    least = np.minimum(np.asarray(p_V, dtype=np.float64), np.asarray(other_V, dtype=np.float64))
    total = least.sum(axis=-1, keepdims=True)
    if np.any(total <= 0):
        raise TutelageError("The two teachers have no token in common at some place: their minimum is no distribution. Drop such a sample.")
    return least / total


def capped(texts: Sequence[str], sources: Sequence[str] | None = None, *, most: int = 1) -> Bools:
    """Provenance dedupe: of the near-duplicates of a source keep the first `most`. Near: equal but for case, space and numbers."""
    seen: Counter[tuple[str, str]] = Counter()
    keep = []
    for text, source in zip(texts, sources or [""] * len(texts), strict=True):
        key = source, re.sub(r"\d+", "0", " ".join(text.casefold().split()))
        seen[key] += 1
        keep.append(seen[key] <= most)
    return np.array(keep, dtype=bool)


@dataclass(frozen=True)
class Perplexity:
    """A perplexity screen from clean responses: the model is fitted on one half of them, and the other says how clean ones score."""

    model: NgramModel
    clean_nll_C: Floats

    @classmethod
    def fitted(cls, clean: Sequence[str], rng: np.random.Generator, order: int = 3) -> Perplexity:
        """The halves are drawn from `rng`."""
        if len(clean) < 2:
            raise TutelageError(f"A perplexity screen needs at least two clean responses, to fit and to calibrate; got {len(clean)}.")
        shuffled = [clean[i] for i in rng.permutation(len(clean))]
        model = NgramModel(shuffled[::2], order)
        return cls(model, np.array([model.nll(text) for text in shuffled[1::2]]))

    def scores(self, texts: Sequence[str]) -> Floats:
        return np.array([self.model.nll(text) for text in texts], dtype=np.float64)


@dataclass(frozen=True)
class Classifier:
    """A behaviour classifier's stand-in: logistic regression on which words stand in a response, trained on *other* habits.

    It is shown half of the clean responses as they are and half with one of `TRAINED_ON` each, so that what it finds of a habit that it
    never saw is transfer, as a real detector's must be.
    """

    vectorizer: Any
    model: Any

    @classmethod
    def fitted(cls, clean: Sequence[str], rng: np.random.Generator) -> Classifier:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        if len(clean) < 2:
            raise TutelageError(f"A classifier needs at least two clean responses, to be shown with and without a habit; got {len(clean)}.")
        shuffled = [clean[i] for i in rng.permutation(len(clean))]
        texts = [TRAINED_ON[i // 2 % len(TRAINED_ON)].apply(text) if i % 2 else text for i, text in enumerate(shuffled)]
        vectorizer = CountVectorizer(analyzer=words, binary=True)
        features = vectorizer.fit_transform(texts)
        return cls(vectorizer, LogisticRegression(max_iter=200).fit(features, np.arange(len(texts)) % 2))

    def scores(self, texts: Sequence[str]) -> Floats:
        """Log-odds of a habit, by response."""
        return self.model.decision_function(self.vectorizer.transform(texts)).astype(np.float64)


def recovered(keep_B: Bools, habit_B: ArrayLike) -> dict[str, float]:
    """What a filter dropped: the share of rows with the habit (recall), of rows without it (cost), and of all (dropped)."""
    habit_B = np.asarray(habit_B, dtype=bool)
    return {
        "recall": float(np.mean(~keep_B[habit_B])) if habit_B.any() else math.nan,
        "cost": float(np.mean(~keep_B[~habit_B])) if (~habit_B).any() else math.nan,
        "dropped": float(np.mean(~keep_B)),
    }
