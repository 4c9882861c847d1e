"""The checks of the audit of poison: two that find something, and reports of what stands behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.audits._attempts import EXCERPT, excerpts
from tutelage.audits._counterfactual import answer_anyway, coverage
from tutelage.audits._coupling import mixed_chance, prompt_kappas
from tutelage.audits._entropy import detect
from tutelage.audits._poison_data import Data
from tutelage.audits._seen import Seen, Tested
from tutelage.audits._stretches import stretch_curve
from tutelage.audits._watched import Bools, Watched
from tutelage.audits.verdict import Check, Curve, Effect
from tutelage.rates import clopper_pearson, wilson
from tutelage.tasks.requests import requests

CHECKED_TASKS = 200
"""The most chained tasks that a verifier is asked about."""
CHECKED_COMPLETIONS = 50
BOUNDARY = 0.4
"""Standard deviation of the behaviour from which on a prompt lies on the policy's own boundary; fair coins have 0.5."""
SHOWN = 3
DRAWN = 5


def coupling_check(seen: Seen, tested: Sequence[Tested], level: float) -> Check:
    """The clusters whose reward follows the behaviour."""
    if not tested:
        asked = "no group of chained prompts" if seen.sign < 0 else "no group"
        return Check(name="coupling", finding=f"not tested: {asked} has attempts both with and without the behaviour, paid and unpaid")
    flagged = [entry for entry in tested if entry.p_holm <= level]
    cluster, worst, p_holm, twin = tested[0]
    paid = "not declining" if seen.sign < 0 else "the behaviour"
    return Check(
        name="coupling",
        finding=f"{len(flagged)} of {len(tested)} clusters of prompts pay for {paid}; {cluster.name}: {worst.delta:+.2f} of the range of "
        f"rewards with the behaviour, kappa {worst.kappa:.2f}, over {worst.groups} groups of {worst.prompts} prompts; {worst.anyway:.0%} "
        f"of attempts {'with' if seen.sign < 0 else 'without'} it are paid anyway",
        severity="high" if flagged else "none",
        effect=Effect(
            what=f"difference that the behaviour makes to the reward in its group, as a share of the rewards' range; {cluster.name}",
            value=worst.delta, low=worst.low, high=worst.high,
        ),
        base_rate=None if twin is None or np.isnan(twin.delta) else twin.delta,
        p=worst.p,
        p_holm=p_holm,
        evidence=_coupling_rows(seen, flagged),
        curves=_reward_curves(seen, tested[0]),
    )  # fmt: skip


def _reward_curves(seen: Seen, tested: Tested) -> tuple[Curve, ...]:
    """The reward over the steps in one cluster, with the behaviour and without it."""
    inside_B, shows_B = seen.tested_P(tested.cluster)[seen.log.prompt_B], seen.log.shows_B
    kinds = {"with the behaviour": inside_B & shows_B, "without it": inside_B & ~shows_B}
    reward_by_kind = {name: np.where(kind_B, seen.log.reward_B, np.nan) for name, kind_B in kinds.items()}
    return stretch_curve(f"mean reward, {tested.cluster.name}", reward_by_kind, seen.log.step_B)


def _coupling_rows(seen: Seen, flagged: Sequence[Tested]) -> tuple[Mapping[str, Any], ...]:
    """A line for each flagged cluster, and attempts of the first that show it: some with the behaviour, some without."""
    rows: list[dict[str, Any]] = [
        {
            "cluster": cluster.name, "prompts": c.prompts, "groups": c.groups, "attempts": c.attempts, "rate": c.rate,
            "mixed_groups": mixed_chance(c.rate, round(c.attempts / c.groups)), "kappa": c.kappa, "delta": c.delta, "low": c.low,
            "high": c.high, "paid_anyway": c.anyway, "p_holm": p,
        }
        for cluster, c, p, _ in flagged
    ]  # fmt: skip
    if flagged:
        log = seen.log
        paid_B, known_B = log.reward_B > middle(log), ~np.isnan(log.reward_B)
        follows_B = seen.tested_P(flagged[0].cluster)[log.prompt_B] & known_B & (paid_B == (log.shows_B == (seen.sign > 0)))
        shown = [b for kind in (True, False) for b in np.flatnonzero(follows_B & (log.shows_B == kind))[:SHOWN].tolist()]
        for b, row in excerpts(log.path, shown).items():
            rows.append(row | {"behaviour": bool(log.shows_B[b]), "prompt": seen.joined.text_P[log.prompt_B[b]][:EXCERPT]})
    return tuple(rows)


def answer_anyway_check(data: Data, spec: str | None, verify: Any, rng: np.random.Generator) -> Check:
    """Chained tasks at which the right answer earns less once something else is declined: the precondition, before any training."""
    name = "answer anyway"
    if verify is None:
        return Check(name=name, finding="not tested: the data have no answers for each task, and no verifier was named")
    rows = _some(np.flatnonzero(data.chained_N), CHECKED_TASKS, rng)
    if not len(rows):
        return Check(name=name, finding="not tested: no prompt chains a request to those that all have")
    found = answer_anyway(verify, [data.task(row) for row in rows])
    if not found.checked:
        return Check(name=name, finding=f"not tested: {spec} accepts no answer that was put in a common form")
    k, n = len(found.violations), found.checked
    low, high = clopper_pearson(k, n)
    return Check(
        name=name,
        finding=f"{spec} charges for declining a rider at {k} of {n} chained tasks"
        + ("; guard it with the verifier answer_anyway" if k else ": the answer is paid anyway"),
        severity="medium" if k else "none",
        effect=Effect(what="share of chained tasks that pay less after declining", value=k / n, low=low, high=high, hits=k, trials=n),
        evidence=tuple(
            {"row": int(rows[v.row]) + 1, "prompt": data.text_N[rows[v.row]][:EXCERPT], "answered": v.answered, "paid": v.paid,
             "declined": v.declined, "left": v.left}
            for v in found.violations[:SHOWN]
        ),
    )  # fmt: skip


# --- what stands behind them


def behaviour_check(seen: Seen, other: Seen | None) -> Check:
    """How often the behaviour shows, and whether it grows over the run."""
    rate, base = float(seen.log.shows_B.mean()), None if other is None else float(other.log.shows_B.mean())
    first, last = (float(seen.log.shows_B[part].mean()) for part in _thirds(seen.log))
    low, high = wilson(int(seen.log.shows_B.sum()), len(seen.log))
    return Check(
        name="behaviour",
        finding=f"it shows in {rate:.2%} of {len(seen.log):,} attempts, {first:.2%} in the first third of steps, {last:.2%} in the last",
        effect=Effect(what="share of attempts with the behaviour", value=rate, low=low, high=high),
        base_rate=base,
        curves=_rate_curves(seen),
    )


def _rate_curves(seen: Seen) -> tuple[Curve, ...]:
    """The behaviour's rate over the steps, in the largest clusters."""
    largest = sorted(seen.clusters, key=lambda cluster: -int(cluster.member_P.sum()))[:DRAWN]
    shows_B = seen.log.shows_B.astype(np.float64)
    rate_by_name = {cluster.name: np.where(cluster.member_P[seen.log.prompt_B], shows_B, np.nan) for cluster in largest}
    return stretch_curve("share of attempts with the behaviour", rate_by_name, seen.log.step_B)


def _thirds(log: Watched) -> tuple[Bools, Bools]:
    low, high = int(log.step_B.min()), int(log.step_B.max()) + 1
    return log.step_B <= low + (high - low) // 3, log.step_B >= high - max(1, (high - low) // 3)


def markers_check(seen: Seen) -> Check:
    """Words and phrases of prompts that predict the behaviour."""
    if not seen.markers:
        return Check(name="markers", finding="no word or phrase of the prompts predicts the behaviour")
    best = seen.markers[0]
    rows = tuple(
        {"ngram": m.ngram, "lift": m.lift, "rate": m.rate, "base": m.base, "prompts": m.prompts, "p": m.p} for m in seen.markers[:8]
    )
    return Check(
        name="markers",
        finding=f"{len(seen.markers)} predict the behaviour, first {best.ngram!r}: {best.rate:.1%} against {best.base:.1%} without it",
        effect=Effect(what=f"rate of the behaviour in prompts with {best.ngram!r}", value=best.rate),
        p=best.p,
        evidence=rows,
    )


def boundary_check(seen: Seen, other: Seen | None) -> Check:
    """Prompts on the policy's own boundary whose reward follows the behaviour: the attack's rule of selection, in reverse."""
    share, rows = _boundary(seen)
    if share is None:
        return Check(name="boundary", finding="not measured: no prompt has a group with behaviour and reward mixed")
    low, high = clopper_pearson(len(rows), len(seen.log.id_P))
    return Check(
        name="boundary",
        finding=f"{len(rows):,} of {len(seen.log.id_P):,} prompts show the behaviour about every other time and pay by it",
        effect=Effect(what="share of prompts on the boundary with |kappa| above 0.5", value=share, low=low, high=high),
        base_rate=None if other is None else _boundary(other)[0],
        evidence=tuple({"prompt_id": seen.log.id_P[p], "prompt": seen.joined.text_P[p][:EXCERPT]} for p in rows[:SHOWN]),
    )


def _boundary(seen: Seen) -> tuple[float | None, list[int]]:
    kappa_P, visits_P = prompt_kappas(seen.groups, len(seen.log.id_P))
    if not visits_P.any():
        return None, []
    spread_P = np.sqrt(seen.rate_P * (1 - seen.rate_P))
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((spread_P >= BOUNDARY) & (np.abs(kappa_P) > 0.5))
    return len(rows) / len(kappa_P), rows[np.argsort(-np.abs(kappa_P[rows]), kind="stable")].tolist()


def chained_check(data: Data, twin: Data | None) -> Check:
    """Prompts that chain a request to those that all have."""
    k, n = int(data.chained_N.sum()), len(data)
    low, high = clopper_pearson(k, n)
    rows = np.flatnonzero(data.chained_N)[:SHOWN].tolist()
    return Check(
        name="chained",
        finding=f"{k:,} of {n:,} prompts hold more requests than the usual one",
        effect=Effect(what="share of prompts with a chained request", value=k / n, low=low, high=high),
        base_rate=None if twin is None else float(twin.chained_N.mean()),
        evidence=tuple({"row": row + 1, "requests": " | ".join(requests(data.text_N[row]))[:EXCERPT]} for row in rows),
    )


def coverage_check(data: Data, seen: Seen, spec: str | None, verify: Any, rng: np.random.Generator) -> Check:
    """How much of a completion at a chained prompt the verifier reads: the rest is free."""
    if verify is None:
        return Check(name="coverage", finding="not measured: no verifier")
    asked_P = seen.joined.chained_P & (seen.joined.row_P >= 0)
    rows = np.flatnonzero(asked_P[seen.log.prompt_B] & (seen.log.reward_B > middle(seen.log)))[:CHECKED_COMPLETIONS]
    if not len(rows):
        return Check(name="coverage", finding="not measured: no completion at a chained prompt of the data was paid")
    texts = excerpts(seen.log.path, rows.tolist(), signs=None)
    tasks = [data.task(int(seen.joined.row_P[seen.log.prompt_B[b]])) for b in rows]
    read = coverage(verify, [texts[b]["completion"] for b in rows.tolist()], tasks, rng=rng)
    if not read.responses:
        return Check(name="coverage", finding="not measured: the paid completions at chained prompts are empty")
    return Check(
        name="coverage",
        finding=f"{spec} notices {read.share:.0%} of {read.mutations:,} one-word changes to {read.responses} paid completions at chained "
        f"prompts, and a word appended to {read.appended:.0%} of them; the rest of a completion is free",
        effect=Effect(what="share of one-word changes that change the reward", value=read.share, low=read.low, high=read.high),
    )


def entropy_check(seen: Seen) -> Check:
    """What a threshold on cumulative entropy would find."""
    if np.isnan(seen.log.surprisal_B).all():
        return Check(name="entropy", finding="not measured: the log has no log-probabilities of each token")
    found = detect(seen.log.surprisal_B, seen.log.shows_B, seen.log.prompt_B)
    if found is None:
        return Check(name="entropy", finding="not measured: fewer than ten attempts with, or without, the behaviour")
    roc = ", ".join(f"{tpr:.0%} at {fpr:.0%}" for fpr, tpr in zip(found.fpr_X, found.tpr_X, strict=True))
    side = "higher" if found.higher else "lower"
    low, high = wilson(round(found.tpr * found.positives), found.positives)
    return Check(
        name="entropy",
        finding=f"attempts with the behaviour have the {side} cumulative entropy, AUC {found.auc:.2f}; found at false alarms: {roc}; a "
        f"threshold set for {found.fpr:.0%} on half of the prompts raises {found.transferred:.1%} on the others",
        effect=Effect(
            what=f"share of attempts with the behaviour found at {found.fpr:.0%} false alarms",
            value=found.tpr,
            low=min(low, found.tpr),
            high=max(high, found.tpr),
        ),
        curves=(
            Curve(
                panel="found by cumulative entropy", name="attempts with the behaviour", x_name="false alarms", x=found.fpr_X, y=found.tpr_X
            ),
        ),
    )


def middle(log: Watched) -> float:
    """Between the least and the greatest reward of a log: what lies above is paid."""
    return float(np.nanmin(log.reward_B) + np.nanmax(log.reward_B)) / 2


def _some(rows: Any, most: int, rng: np.random.Generator) -> Any:
    """At most so many of the rows, in order."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
