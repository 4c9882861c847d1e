"""The response-side detector: cumulative token entropy over the first tokens, and what it finds at a fixed rate of false alarms.

H_t = sum over s <= t of H(p(. | y_<s)). A log seldom has entropies, but it may have the log-probabilities of what was written: -log p(y_s)
has the entropy as its mean, so the cumulative surprisal is its estimate from one sample. It is published that such a statistic tells
completions of a backdoored model apart (sheet on arXiv 2604.09748); whether it does on this log, and whether a threshold set on some
prompts holds on others, is measured here.

Array suffixes: `B` attempts, `T` tokens, `P` positives, `C` clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tutelage.audits._watched import Bools, Floats, Ints
from tutelage.rates import tpr_at_fpr


def cumulative_entropy(logits_BTV: ArrayLike, first_tokens: int = 32) -> Floats:
    """H_t of each sequence (B,), in nats, exactly, from logits or log-probabilities of whole distributions."""
    logits_BTV = np.asarray(logits_BTV, dtype=np.float64)[:, :first_tokens]
    logp_BTV = logits_BTV - np.logaddexp.reduce(logits_BTV, axis=2, keepdims=True)
    p_BTV = np.exp(logp_BTV)
    return -np.sum(np.where(p_BTV > 0, p_BTV * np.where(p_BTV > 0, logp_BTV, 0.0), 0.0), axis=(1, 2))


@dataclass(frozen=True)
class Detector:
    """auc: area under the ROC curve. higher: whether attempts with the behaviour have the higher statistic. tpr at fpr: the share found.
    transferred: of the prompts that did not set the threshold, the false alarms that it raises. fpr_X, tpr_X: the curve."""

    auc: float
    higher: bool
    fpr: float
    tpr: float
    transferred: float
    fpr_X: tuple[float, ...]
    tpr_X: tuple[float, ...]
    positives: int
    clean: int


def detect(
    statistic_B: Floats, shows_B: Bools, prompt_B: Ints, *, fpr: float = 0.05, points: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5)
) -> Detector | None:
    """How well the statistic tells attempts with the behaviour from others; None unless both sides have at least ten.

    The side on which the behaviour lies is read off the even prompts, like the threshold whose transfer to the odd ones is measured.
    """
    known_B = ~np.isnan(statistic_B)
    statistic_B, shows_B, prompt_B = statistic_B[known_B], shows_B[known_B], prompt_B[known_B]
    if min(int(shows_B.sum()), int((~shows_B).sum())) < 10:
        return None
    even_B = prompt_B % 2 == 0
    sides = statistic_B[shows_B & even_B], statistic_B[~shows_B & even_B]
    higher = _auc(*sides) >= 0.5 if all(map(len, sides)) else True
    score_B = statistic_B if higher else -statistic_B
    positive_P, clean_C = score_B[shows_B], score_B[~shows_B]
    odd_C, even_C = score_B[~shows_B & ~even_B], score_B[~shows_B & even_B]
    transferred = float("nan")
    if len(odd_C) and len(even_C):
        allowed = min(int(fpr * len(even_C) + 1e-9), len(even_C) - 1)
        transferred = float(np.mean(odd_C > np.sort(even_C)[::-1][allowed]))
    return Detector(
        auc=_auc(positive_P, clean_C),
        higher=higher,
        fpr=fpr,
        tpr=tpr_at_fpr(positive_P, clean_C, fpr),
        transferred=transferred,
        fpr_X=tuple(points),
        tpr_X=tuple(tpr_at_fpr(positive_P, clean_C, point) for point in points),
        positives=len(positive_P),
        clean=len(clean_C),
    )


def _auc(positive_P: Floats, clean_C: Floats) -> float:
    """The chance that a positive scores above a clean one, ties counted half."""
    from scipy.stats import rankdata  # a slow import, needed here alone

    rank = rankdata(np.concatenate([positive_P, clean_C]))[: len(positive_P)].sum()
    return float((rank - len(positive_P) * (len(positive_P) + 1) / 2) / (len(positive_P) * len(clean_C)))
