"""The rules on shares: each one asks one question of a log and answers with a p value, an effect and rows to look at.

A share (of groups, of attempts) is tested against a threshold by the exact binomial tail; attempts at one prompt depend on each other, so
the counts are shrunk to the number of distinct prompts, the worst case. Rules on trends stand in `_trends.py`. Array suffixes: `B`
attempts, `N` groups, `L` attempts that a rule looks at, `T` stretches of steps.
"""

from __future__ import annotations

import numpy as np

from tutelage.audits._attempts import Attempts, Bools, Floats, Ints
from tutelage.audits._measured import Measured, distinct, untested
from tutelage.audits._stretches import late_rows, stretch_curve
from tutelage.audits._texts import Odd
from tutelage.audits.verdict import Effect, Severity
from tutelage.rates import binomial_p, clopper_pearson

SPREAD = np.int64(-7046029254386353131)
"""An odd number that scatters group numbers over 64 bits (2^64 over the golden ratio)."""
MANY = 3
"""Different marked answers from which on a completion offers a choice instead of an answer."""
KL_HIGH = 0.5
"""Nats a token from the reference policy, beyond which a policy has left it: healthy runs stay below 0.1."""
COLLAPSED = 0.2
"""Of the median entropy of the first third of the steps: below, the policy hardly draws any more."""


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
    mixed_L = log.text_B[rows_L] ^ (log.group_B[rows_L] * SPREAD)  # one number for both: sorting pairs takes ten times as long
    _, same_L, count_U = np.unique(mixed_L, return_inverse=True, return_counts=True)
    return _share("long completions equal to another of their group", (count_U > 1)[same_L], rows_L, log, threshold, "low")


def degenerate(log: Attempts, threshold: float) -> Measured:
    """Completions without words, or of the same few over and over (`tasks.behaviour.garbled`), of the first attempts of each step."""
    rows_L = np.flatnonzero(~np.isnan(log.garbled_B))
    return _share("completions that are garbled", log.garbled_B[rows_L] > 0, rows_L, log, threshold, "medium")


def stuffed(log: Attempts, threshold: float) -> Measured:
    """Attempts judged solved that mark at least three different answers: whichever the verifier takes, some will be right."""
    if not log.candidates_B.any():
        return untested("no completion marks an answer (a box, an <answer> tag, ####)")
    rows_L = np.flatnonzero(log.solved_B > 0.5)
    if not len(rows_L):
        return untested("no attempt is known to be solved")
    what = f"solved attempts that mark {MANY} or more different answers"
    return _share(what, log.candidates_B[rows_L] >= MANY, rows_L, log, threshold, "medium")


def odd_spans(log: Attempts, threshold: float) -> Measured:
    """Attempts judged solved whose verifier read nothing, or another answer than the completion marks last, or words that stand several
    times in a row: it was given something to find."""
    rows_L = np.flatnonzero(~np.isnan(log.odd_B) & (log.solved_B > 0.5))
    if not len(rows_L):
        return untested("no solved attempt has a span that the verifier read")
    odd_L = log.odd_B[rows_L]
    counts = {"empty": Odd.EMPTY, "overruled by a later answer": Odd.OVERRULED, "repeated in a row": Odd.REPEATED}
    kinds = ", ".join(f"{int((odd_L == kind).sum()):,} {name}" for name, kind in counts.items())
    return _share(f"solved attempts whose span is odd ({kinds})", odd_L > 0, rows_L, log, threshold, "high")


def far_away(log: Attempts, threshold: float) -> Measured:
    """Late attempts that are more than half a nat a token from the reference policy: the reward is then earned by another model."""
    rows_L = late_rows(log.step_B, ~np.isnan(log.kl_B))
    if rows_L is None:
        return untested("too few steps have a KL divergence; a log has it in the column kl")
    what = f"attempts of the last third of the steps with a KL above {KL_HIGH:g} nats a token"
    return _share(what, log.kl_B[rows_L] > KL_HIGH, rows_L, log, threshold, "medium").with_curves(
        stretch_curve("mean KL, nats a token", {"KL": log.kl_B}, log.step_B)
    )


def collapsed(log: Attempts, threshold: float) -> Measured:
    """Late attempts whose entropy is less than a fifth of the median of the first third of the steps: exploration has ended."""
    known_B = ~np.isnan(log.entropy_B)
    late_L, early_L = late_rows(log.step_B, known_B), late_rows(-log.step_B, known_B)
    if late_L is None or early_L is None:
        return untested("too few steps have an entropy; a log has it in the column entropy, or has logprobs")
    usual = float(np.median(log.entropy_B[early_L]))
    if usual <= 0:
        return untested(f"the median entropy of the first third of the steps is {usual:.3g}; nothing can fall from there")
    what = f"attempts of the last third of the steps with an entropy below {COLLAPSED:.0%} of the first third's median of {usual:.3g} nats"
    return _share(what, log.entropy_B[late_L] < COLLAPSED * usual, late_L, log, threshold, "low").with_curves(
        stretch_curve("mean entropy, nats a token", {"entropy": log.entropy_B}, log.step_B)
    )


# --- what they share


def _share(what: str, hit_N: Bools, row_N: Ints, log: Attempts, threshold: float, severity: Severity) -> Measured:
    """Test a share against a threshold, with as many trials as there are distinct prompts."""
    share = float(np.mean(hit_N))
    trials = float(len(np.unique(log.prompt_B[row_N])))
    hits = min(share * trials, trials)
    low, high = clopper_pearson(hits, trials)
    said = f"{share:.1%} of {len(hit_N):,}: {what} (threshold {threshold:.0%})"
    rows = distinct(row_N[hit_N], np.zeros(len(log)), log.prompt_B)
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
