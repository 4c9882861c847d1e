"""The rules of the audit of rewards: each one asks one question of a log and answers with a p value, an effect and rows to look at.

Two kinds of test. A *share* (of groups, of attempts) is tested against a threshold by the exact binomial tail; attempts at one prompt
depend on each other, so the counts are shrunk to the number of distinct prompts, the worst case. A *trend* over steps is tested by
Kendall's tau on the means of at most 24 stretches of steps; where two things must hold together, p is the larger of the two
(intersection-union), which keeps the level without a correction. Array suffixes: `B` attempts, `N` groups, `T` stretches of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from tutelage.audits._attempts import Attempts, Bools, Floats, Ints
from tutelage.audits.verdict import Effect, Severity
from tutelage.rates import binomial_p, clopper_pearson

STRETCHES = 24
LEAST_STRETCHES = 6
"""Below, no trend can reach a level that a correction over the rules leaves: 1 / 6! is the least p."""
SHOWN = 3
NOT_RISING = 0.05


@dataclass(frozen=True)
class Measured:
    """The answer of a rule. p None: it could not be tested, and `finding` says why. rows: attempts to show. is_share: whether a twin's
    share can be compared with this one; a trend is cleared by a twin that shows it too."""

    p: float | None
    finding: str
    severity: Severity = "none"
    effect: Effect | None = None
    rows: tuple[int, ...] = ()
    is_share: bool = False


def untested(why: str) -> Measured:
    return Measured(None, f"not tested: {why}")


# --- shares


def dead_groups(log: Attempts, threshold: float) -> Measured:
    """Groups whose rewards are all equal, of all groups with at least two: they cost rollouts and teach nothing."""
    low_N, high_N, count_N, first_N = _range(log.group_B, log.reward_B)
    seen_N = count_N >= 2
    if not seen_N.any():
        return untested("no group has two attempts with a reward")
    dead_N = seen_N & (high_N - low_N <= log.tolerance)
    return _share("groups whose rewards are all equal", dead_N[seen_N], first_N[seen_N], log, threshold, "low")


def shaped_groups(log: Attempts, threshold: float) -> Measured:
    """Groups whose outcomes are all equal, of all groups whose rewards differ: only shaping teaches there.

    A filter that keeps groups by the spread of the shaped reward keeps these, and a normalised advantage blows their noise up to full size.
    """
    low_N, high_N, count_N, first_N = _range(log.group_B, log.reward_B)
    bad_N, good_N, judged_N, _ = _range(log.group_B, log.solved_B)
    live_N = (count_N >= 2) & (judged_N == count_N) & (high_N - low_N > log.tolerance)
    if not live_N.any():
        return untested("no group has rewards that differ and outcomes that are known")
    shaped_N = good_N - bad_N <= 1e-6
    what = "groups that train whose outcomes are all equal, so that shaping alone decides"
    return _share(what, shaped_N[live_N], first_N[live_N], log, threshold, "medium")


def misranked_groups(log: Attempts, threshold: float) -> Measured:
    """Groups with solved and failed attempts in which the best paid attempt is a failed one: what is paid is not the outcome."""
    good_B = log.solved_B > 0.5
    known_B = ~np.isnan(log.solved_B) & ~np.isnan(log.reward_B)
    best_N = _range(log.group_B, np.where(good_B & known_B, log.reward_B, np.nan))[1]
    paid_B = np.where(~good_B & known_B, log.reward_B, np.nan)
    _, worst_N, _, _ = _range(log.group_B, paid_B)
    first_N = _argmax(log.group_B, paid_B)
    mixed_N = ~np.isnan(best_N) & ~np.isnan(worst_N)
    if not mixed_N.any():
        return untested("no group has both a solved and a failed attempt")
    wrong_N = worst_N > best_N + log.tolerance
    what = "mixed groups whose best paid attempt is a failed one"
    return _share(what, wrong_N[mixed_N], first_N[mixed_N], log, threshold, "high")


def canned_replies(log: Attempts, threshold: float) -> Measured:
    """Long completions that were given, word for word, to another prompt as well: an answer that does not read the question."""
    rows_L = np.flatnonzero(log.long_B)
    if not len(rows_L):
        return untested("no completion is long enough to compare")
    text_L = np.unique(log.text_B[rows_L], return_inverse=True)[1]
    low_U, high_U, _, _ = _range(text_L, log.prompt_B[rows_L].astype(np.float64))
    return _share("long completions that another prompt got too", (high_U > low_U)[text_L], rows_L, log, threshold, "medium")


def duplicates(log: Attempts, threshold: float) -> Measured:
    """Long completions that are equal, word for word, to another of their group: exploration has ended."""
    rows_L = np.flatnonzero(log.long_B)
    if not len(rows_L):
        return untested("no completion is long enough to compare")
    pair_L2 = np.stack([log.group_B[rows_L], log.text_B[rows_L]], axis=1)
    _, same_L, count_U = np.unique(pair_L2, axis=0, return_inverse=True, return_counts=True)
    return _share("long completions equal to another of their group", (count_U > 1)[same_L.ravel()], rows_L, log, threshold, "low")


def degenerate(log: Attempts, threshold: float) -> Measured:
    """Completions without words, or of the same few over and over (`tasks.behaviour.garbled`), of the first attempts of each step."""
    rows_L = np.flatnonzero(~np.isnan(log.garbled_B))
    return _share("completions that are garbled", log.garbled_B[rows_L] > 0, rows_L, log, threshold, "medium")


# --- trends


def divergence(log: Attempts) -> Measured:
    """The mean reward rises over the steps while the mean outcome falls: p is the larger of the two one-sided p values.

    A reward that rises over a flat outcome is not found by this rule: that something does not change is nothing a test can show. A
    curriculum that moves on to harder tasks lowers the outcome by itself; compare with a twin under the same curriculum.
    """
    known_B = ~np.isnan(log.solved_B) & ~np.isnan(log.reward_B)
    stretch_B, count = _stretches(log.step_B, known_B)
    if count < LEAST_STRETCHES:
        return untested(f"{count} steps have both rewards and outcomes; a trend needs {LEAST_STRETCHES}")
    reward_T, solved_T = (_means(x, stretch_B, known_B, count) for x in (log.reward_B, log.solved_B))
    p = max(_rises(reward_T), _rises(-solved_T))
    reward, solved = (_change(x_T, f"change of the mean {name}, last third of the steps against the first") for x_T, name in
                      ((reward_T, "reward"), (solved_T, "outcome")))  # fmt: skip
    late_B = known_B & (stretch_B >= count - count // 3) & (log.solved_B <= 0.5)
    rows = _distinct(np.flatnonzero(late_B), log.reward_B, log.prompt_B)
    return Measured(p, f"over the steps the mean reward changes by {reward}, the mean outcome by {solved}", "high", solved, rows)


def paid_length(log: Attempts) -> Measured:
    """Longer completions are paid more at equal outcome, and completions grow, while the outcome does not rise."""
    return _paid(log, log.length_B, "longer completions")


def paid_form(log: Attempts) -> Measured:
    """Completions that repeat more marks of form (tags, boxes, fences, bold, headings) are paid more at equal outcome, and the repetitions
    multiply, while the outcome does not rise. The first mark of each kind does not count: a term that pays once for form is fair."""
    return _paid(log, log.markup_B, "completions that repeat more marks of form")


def _paid(log: Attempts, feature_B: Floats, what: str) -> Measured:
    """The sign test over prompts: does the reward rise with a feature among attempts of one group and one outcome? And the feature's trend.

    A prompt's score is the sum over its groups and outcomes of the products of deviations from the mean; a score of 0 says nothing.
    """
    known_B = ~np.isnan(log.solved_B) & ~np.isnan(log.reward_B) & ~np.isnan(feature_B)
    stretch_B, count = _stretches(log.step_B, known_B)
    if count < LEAST_STRETCHES:
        return untested(f"{count} steps have rewards, outcomes and texts; a trend needs {LEAST_STRETCHES}")
    rows_K = np.flatnonzero(known_B)
    cell_K = np.unique(2 * log.group_B[rows_K] + (log.solved_B[rows_K] > 0.5), return_inverse=True)[1]
    reward_K, feature_K = _centred(log.reward_B[rows_K], cell_K), _centred(feature_B[rows_K], cell_K)
    reward_K[np.abs(reward_K) <= log.tolerance] = 0.0
    score_P = np.bincount(log.prompt_B[rows_K], weights=reward_K * feature_K)
    score_P = score_P[np.abs(score_P) > 1e-9 * np.abs(score_P).max(initial=0.0)]
    if not len(score_P):
        return untested("attempts of one group and one outcome never differ in both reward and this")
    hits, trials = int((score_P > 0).sum()), len(score_P)
    feature_T, solved_T = (_means(x, stretch_B, known_B, count) for x in (feature_B, log.solved_B))
    p = max(binomial_p(hits, trials, 0.5), _rises(feature_T))
    share = f"{what} are paid more at equal outcome at {hits} of {trials} prompts; they change by {_change(feature_T, '')} over the steps"
    low, high = clopper_pearson(hits, trials)
    effect = Effect(what=f"prompts at which {what} are paid more", value=hits / trials, low=low, high=high, hits=hits, trials=trials)
    if _rises(solved_T) <= NOT_RISING:
        return Measured(1.0, f"{share}; the outcome rises with them", "medium", effect)
    late_B = known_B & (stretch_B >= count - count // 3)
    return Measured(p, share, "medium", effect, _distinct(np.flatnonzero(late_B), feature_B, log.prompt_B))


# --- what they share


def _share(what: str, hit_N: Bools, row_N: Ints, log: Attempts, threshold: float, severity: Severity) -> Measured:
    """Test a share against a threshold, with as many trials as there are distinct prompts."""
    share = float(np.mean(hit_N))
    trials = float(len(np.unique(log.prompt_B[row_N])))
    hits = min(share * trials, trials)
    low, high = clopper_pearson(hits, trials)
    said = f"{share:.1%} of {len(hit_N):,}: {what} (threshold {threshold:.0%})"
    rows = _distinct(row_N[hit_N], np.zeros(len(log)), log.prompt_B)
    effect = Effect(what=f"share of {what}", value=share, low=low, high=high, hits=hits, trials=trials)
    return Measured(binomial_p(hits, trials, threshold), said, severity, effect, rows, is_share=True)


def _range(code_B: Ints, value_B: Floats) -> tuple[Floats, Floats, Ints, Ints]:
    """Least and greatest value of each code (NaN where none is known), how many are known, and the first row."""
    size = int(code_B.max(initial=-1)) + 1
    known_B = ~np.isnan(value_B)
    low_N, high_N = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low_N, code_B[known_B], value_B[known_B])
    np.maximum.at(high_N, code_B[known_B], value_B[known_B])
    count_N = np.bincount(code_B[known_B], minlength=size)
    first_N = np.zeros(size, dtype=np.int64)
    first_N[code_B[::-1]] = np.arange(len(code_B))[::-1]
    none_N = count_N == 0
    return np.where(none_N, np.nan, low_N), np.where(none_N, np.nan, high_N), count_N, first_N


def _argmax(code_B: Ints, value_B: Floats) -> Ints:
    """The row with the greatest value of each code; some row where no value is known."""
    order_B = np.argsort(np.where(np.isnan(value_B), -np.inf, value_B), kind="stable")
    row_N = np.zeros(int(code_B.max(initial=-1)) + 1, dtype=np.int64)
    row_N[code_B[order_B]] = order_B
    return row_N


def _centred(value_K: Floats, cell_K: Ints) -> Floats:
    mean_C = np.bincount(cell_K, weights=value_K) / np.bincount(cell_K)
    return value_K - mean_C[cell_K]


def _stretches(step_B: Ints, known_B: Bools) -> tuple[Ints, int]:
    """Which stretch of steps each attempt belongs to (-1 for steps without a known one), and how many stretches there are, at most 24."""
    steps = np.unique(step_B[known_B])
    count = min(STRETCHES, len(steps))
    if not count:
        return np.full(len(step_B), -1), 0
    place_B = np.searchsorted(steps, step_B).clip(max=len(steps) - 1)
    return np.where(steps[place_B] == step_B, place_B * count // len(steps), -1), count


def _means(value_B: Floats, stretch_B: Ints, known_B: Bools, count: int) -> Floats:
    total_T = np.bincount(stretch_B[known_B], weights=value_B[known_B], minlength=count)
    return total_T / np.bincount(stretch_B[known_B], minlength=count)


def _rises(value_T: Floats) -> float:
    """One-sided p value of Kendall's tau for a rise over the stretches; 1 where nothing changes."""
    if np.ptp(value_T) <= 1e-9 * np.abs(value_T).max():
        return 1.0
    from scipy.stats import kendalltau  # a slow import, needed here alone

    return float(kendalltau(np.arange(len(value_T)), value_T, alternative="greater").pvalue)


def _change(value_T: Floats, what: str) -> Effect:
    """The mean of the last third of the stretches minus that of the first, with Welch's 95 % interval."""
    third = len(value_T) // 3
    first, last = value_T[:third], value_T[-third:]
    change, squares = float(last.mean() - first.mean()), np.array([first.var(ddof=1), last.var(ddof=1)]) / third
    if squares.sum() == 0:
        return Effect(what=what, value=change, low=change, high=change)
    freedom = squares.sum() ** 2 / (squares**2 / (third - 1)).sum()
    half = float(stdtrit(freedom, 0.975) * np.sqrt(squares.sum()))
    return Effect(what=what, value=change, low=change - half, high=change + half)


def _distinct(rows: Ints, value_B: Floats, prompt_B: Ints) -> tuple[int, ...]:
    """The few rows with the greatest values, of different prompts where there are such."""
    ordered: Sequence[int] = rows[np.argsort(-value_B[rows], kind="stable")].tolist()
    chosen: dict[int, int] = {}
    for row in ordered:
        if len(chosen) == SHOWN:
            break
        chosen.setdefault(int(prompt_B[row]), row)
    return tuple(chosen.values())
