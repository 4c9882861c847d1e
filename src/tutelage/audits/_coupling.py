"""Coupling of reward and behaviour within groups: how strong (kappa, Delta), how sure (bootstrap over prompts), and whether by chance.

The test conditions on what each group shows: n attempts, of which some are paid (a reward above the middle of the group's range) and some
show the behaviour. If neither knows of the other, the number that do both is hypergeometric, independently group by group, so the sum over
a cluster has a known distribution, whatever the prompts' difficulty and however often the behaviour shows. Clusters may therefore be chosen
by looking at the behaviour's rate, and the level still holds. Against thresholds (Delta above `least_delta`, or mean kappa above
`least_kappa`) prompts are the units of a t test. A cluster's p is the larger of the two: something is coupled, and by enough to matter.

Departure from the sheet (arXiv 2604.09748): Delta is the mean over prompts of the difference within groups, not pooled over a cluster,
where prompts that are easy and show the behaviour more often would look coupled; its test is joined with the exact one, because a t test
on two prompts with equal kappa has no spread and always rejects.

Array suffixes: `B` attempts, `N` groups, `P` prompts, `C` prompts of a cluster, `K` clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, ndtr, stdtrit

from tutelage.audits._watched import Bools, Floats, Ints, Watched
from tutelage.errors import TutelageError
from tutelage.rates import exceeds_p

EXACT_GROUPS = 400
"""Up to so many groups the null distribution is convolved; beyond, it is normal for all purposes."""
DRAWS = 999
BOOTSTRAPPED = 1000
"""From so many prompts on the bootstrap interval of a mean is its t interval."""


@dataclass(frozen=True)
class Groups:
    """Groups of a log. prompt_N; count_N: attempts with a reward; shown_N, paid_N, both_N: how many show the behaviour, are paid above the
    middle of the group's range, or both; kappa_N: correlation of reward and behaviour, NaN where either is constant; delta_N: mean reward
    with minus without the behaviour, as a share of the log's range of rewards, NaN where the behaviour is constant; with_N and
    without_N: the share of attempts with, and without the behaviour that are paid above the middle of the log's range, NaN for none."""

    prompt_N: Ints
    count_N: Floats
    shown_N: Floats
    paid_N: Floats
    both_N: Floats
    kappa_N: Floats
    delta_N: Floats
    with_N: Floats
    without_N: Floats


def groups_of(log: Watched) -> Groups:
    """The groups of a log, by array operations alone."""
    rows = np.flatnonzero(~np.isnan(log.reward_B))
    if not len(rows):
        raise TutelageError(f"{log.path} has no reward in any of its {len(log):,} rows; nothing can be said of what it pays for.")
    code_R = np.unique(log.group_B[rows], return_inverse=True)[1]
    reward_R, shows_R = log.reward_B[rows], log.shows_B[rows].astype(np.float64)
    count_N = _sums(code_R, np.ones(len(rows)))
    shown_N = _sums(code_R, shows_R)
    low_N, high_N = np.full(len(count_N), np.inf), np.full(len(count_N), -np.inf)
    np.minimum.at(low_N, code_R, reward_R)
    np.maximum.at(high_N, code_R, reward_R)
    pays_N = high_N - low_N > 1e-6 * max(1.0, float(np.abs(reward_R).max()))
    paid_R = (pays_N[code_R] & (reward_R > ((low_N + high_N) / 2)[code_R])).astype(np.float64)
    prompt_N = np.zeros(len(count_N), dtype=np.int64)
    prompt_N[code_R] = log.prompt_B[rows]
    paid_N, both_N = _sums(code_R, paid_R), _sums(code_R, paid_R * shows_R)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled_R = (reward_R - (_sums(code_R, reward_R) / count_N)[code_R]) / (_range(reward_R) or 1.0)
        centred_R = shows_R - (shown_N / count_N)[code_R]
        cross_N = _sums(code_R, scaled_R * centred_R)
        spread_N = _sums(code_R, scaled_R**2) * _sums(code_R, centred_R**2)
        mixed_N = (shown_N > 0) & (shown_N < count_N)
        kappa_N = np.where(mixed_N & pays_N, cross_N / np.sqrt(spread_N), np.nan).clip(-1, 1)
        delta_N = np.where(mixed_N, cross_N * count_N / (shown_N * (count_N - shown_N)), np.nan)
        good_R = (reward_R > _middle(reward_R)).astype(np.float64)
        with_N = np.where(shown_N > 0, _sums(code_R, good_R * shows_R) / shown_N, np.nan)
        without_N = np.where(shown_N < count_N, _sums(code_R, good_R * (1 - shows_R)) / (count_N - shown_N), np.nan)
    return Groups(prompt_N, count_N, shown_N, paid_N, both_N, kappa_N, delta_N, with_N, without_N)


def _sums(code_R: Ints, value_R: Floats) -> Floats:
    return np.bincount(code_R, weights=value_R).astype(np.float64)


def _range(reward_R: Floats) -> float:
    """r+ minus r-: the range of rewards without the last percent on either side, where that leaves any."""
    low, high = np.quantile(reward_R, [0.01, 0.99])
    return float(high - low) or float(np.ptp(reward_R))


def _middle(reward_R: Floats) -> float:
    return float(reward_R.min() + reward_R.max()) / 2


@dataclass(frozen=True)
class Coupling:
    """One cluster. prompts, groups, attempts: that were visited. rate: of the behaviour. kappa: mean over prompts. delta with low and
    high: the mean over prompts of Delta and its 95 % interval. anyway: how often the answer was paid although the rider was declined, the
    share paid of attempts without the behaviour, or, where declining is the behaviour, with it. p: see the module; None where no group
    has both behaviour and reward mixed. delta_C: each prompt's Delta."""

    prompts: int
    groups: int
    attempts: int
    rate: float
    kappa: float
    delta: float
    low: float
    high: float
    anyway: float
    p: float | None
    delta_C: Floats


def couple(
    groups: Groups, member_P: Bools, *, rng: np.random.Generator, least_delta: float = 0.1, least_kappa: float = 0.3, sign: int = 1
) -> Coupling:
    """Coupling over the groups of some prompts. sign: -1 where what is feared is a lower reward with the behaviour."""
    own_N = member_P[groups.prompt_N]
    if not own_N.any():
        nan = float("nan")
        return Coupling(0, 0, 0, nan, nan, nan, nan, nan, nan, None, np.zeros(0))
    prompt_N = groups.prompt_N[own_N]
    delta_C, kappa_C = (_by_prompt(prompt_N, x[own_N]) for x in (groups.delta_N, groups.kappa_N))
    attempts = groups.count_N[own_N].sum()
    delta = float(delta_C.mean()) if len(delta_C) else float("nan")
    low, high = interval(delta_C, rng)
    anyway_C = _by_prompt(prompt_N, (groups.without_N if sign > 0 else groups.with_N)[own_N])
    p = None
    if len(kappa_C):
        strong = min(exceeds_p(sign * delta_C, least_delta), exceeds_p(sign * kappa_C, least_kappa))
        p = max(together_p(*(x[own_N] for x in (groups.count_N, groups.shown_N, groups.paid_N, groups.both_N)), sign=sign), strong)
    return Coupling(
        prompts=len(np.unique(prompt_N)),
        groups=int(own_N.sum()),
        attempts=int(attempts),
        rate=float(groups.shown_N[own_N].sum() / attempts),
        kappa=float(kappa_C.mean()) if len(kappa_C) else float("nan"),
        delta=delta,
        low=low,
        high=high,
        anyway=float(anyway_C.mean()) if len(anyway_C) else float("nan"),
        p=p,
        delta_C=delta_C,
    )


def mixed_chance(rate: float, attempts: int) -> float:
    """The chance that a group of attempts shows a behaviour of this rate in some and not in all: 1 - p^G - (1 - p)^G.

    Only such groups can teach it, so amplification has a threshold in the rate. 0.1 and 8 attempts give 0.57.
    """
    return 1.0 - rate**attempts - (1.0 - rate) ** attempts


def prompt_kappas(groups: Groups, prompts: int) -> tuple[Floats, Ints]:
    """Each prompt's mean kappa (P,), NaN without any, and over how many groups (P,)."""
    known_N = ~np.isnan(groups.kappa_N)
    visits_P = np.bincount(groups.prompt_N[known_N], minlength=prompts)
    total_P = np.bincount(groups.prompt_N[known_N], weights=groups.kappa_N[known_N], minlength=prompts)
    return np.where(visits_P > 0, total_P / np.maximum(visits_P, 1), np.nan), visits_P


def interval(value_C: ArrayLike, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of a mean over clusters: percentile bootstrap of the clusters; NaN for none."""
    value_C = np.asarray(value_C, dtype=np.float64)
    if not len(value_C):
        return float("nan"), float("nan")
    if len(value_C) > BOOTSTRAPPED:
        half = float(stdtrit(len(value_C) - 1, 0.975)) * float(value_C.std(ddof=1)) / np.sqrt(len(value_C))
        return float(value_C.mean()) - half, float(value_C.mean()) + half
    means = value_C[rng.integers(len(value_C), size=(DRAWS, len(value_C)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return min(float(low), float(value_C.mean())), max(float(high), float(value_C.mean()))


def together_p(count_N: ArrayLike, shown_N: ArrayLike, paid_N: ArrayLike, both_N: ArrayLike, *, sign: int = 1) -> float:
    """P(as many or more attempts that are paid and show the behaviour), were the two independent within each group.

    sign -1: as many or fewer. Exact up to 400 mixed groups (a convolution of hypergeometric distributions), normal beyond, with a
    correction for continuity.
    """
    n_N, k_N, m_N, x_N = (np.asarray(x, dtype=np.float64) for x in (count_N, shown_N, paid_N, both_N))
    mixed_N = (k_N > 0) & (k_N < n_N) & (m_N > 0) & (m_N < n_N)
    n_N, k_N, m_N, x_N = n_N[mixed_N], k_N[mixed_N], m_N[mixed_N], x_N[mixed_N]
    if not len(n_N):
        return 1.0
    if sign < 0:  # showing it and being paid: few; not showing it and being paid: many
        k_N, x_N = n_N - k_N, m_N - x_N
    if len(n_N) <= EXACT_GROUPS:
        return _exact_tail(n_N, k_N, m_N, float(x_N.sum()))
    mean = (k_N * m_N / n_N).sum()
    variance = (k_N * m_N * (n_N - k_N) * (n_N - m_N) / (n_N**2 * (n_N - 1))).sum()
    return float(ndtr(-(x_N.sum() - mean - 0.5) / np.sqrt(variance)))


def _exact_tail(n_N: Floats, k_N: Floats, m_N: Floats, total: float) -> float:
    least_N, most_N = np.maximum(0, k_N + m_N - n_N), np.minimum(k_N, m_N)
    chance = np.ones(1)
    for n, k, m, least, most in zip(n_N, k_N, m_N, least_N, most_N, strict=True):
        x = np.arange(least, most + 1)
        chance = np.convolve(chance, np.exp(_log_choose(k, x) + _log_choose(n - k, m - x) - _log_choose(n, m)))
    return min(1.0, float(chance[round(total - least_N.sum()) :].sum()))


def _log_choose(n: float, k: Floats | float) -> Floats:
    return gammaln(n + 1) - gammaln(np.asarray(k) + 1) - gammaln(n - np.asarray(k) + 1)


def _by_prompt(prompt_N: Ints, value_N: Floats) -> Floats:
    """The mean of each prompt's groups, of prompts with a value."""
    known_N = ~np.isnan(value_N)
    code_N = np.unique(prompt_N[known_N], return_inverse=True)[1]
    return np.bincount(code_N, weights=value_N[known_N]) / np.bincount(code_N) if len(code_N) else np.zeros(0)
