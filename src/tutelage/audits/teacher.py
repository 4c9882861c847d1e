"""Teacher hacking: does a student that is distilled come closer to its teacher while it moves away from the truth?

    tutelage audit teacher distances.jsonl --twin online.jsonl

The subject is a log of distances on held-out prompts, one row per evaluation and prompt: `step`, `proxy` (to the teacher, nats per answer),
and where there is a stronger model or the truth itself, `golden`; `prompt_id` tells prompts apart. `tutelage.trainers.distances` writes one
from any Hugging Face trainer. A twin is the log of a run whose data are fresh (answers sampled anew, from the teacher or the student).

Checks. *hacking*: proxy falls while golden rises. *overfitting*: both rise. *power law*: without any golden distance, the proxy leaves the
straight line of its first evaluations in log-log axes. *diversity*, with `data`: distinct prompts among the fixed answers. The turn is
sought on one half of the prompts and tested on the other: the least of a noisy curve always lies below its end.

Source: "On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671); the tests are this library's.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits._distances import Distances, read_distances
from tutelage.audits._hacking import KINDS, Float, departure_p, hacking_report, law, moving_mean, power_law
from tutelage.audits.verdict import Check, Curve, Effect, Severity, Verdict
from tutelage.errors import TutelageError, Warned
from tutelage.rates import exceeds_p, holm
from tutelage.registry import audits
from tutelage.study.stats import t_interval

SMOOTH = 3
SHOWN = 3


@audits.register("teacher")
def teacher(
    subject: str | Path,
    *,
    twin: str | Path | None = None,
    rng: np.random.Generator,
    level: float = 0.05,
    data: str | Path | None = None,
    repeats: float = 2.0,
) -> Verdict:
    """Does a distilled student come closer to its teacher while it moves away from the truth?

    Args:
        subject: a log of distances, see the module.
        twin: the log of a run on fresh answers.
        rng: which prompts the turn is sought on.
        level: the chance of any finding on a healthy run, at most.
        data: the fixed answers of the training data, JSON Lines with a column `prompt` (or `prompt_id`).
        repeats: answers per distinct prompt from which data count as narrow.

    Raises:
        TutelageError: a log that cannot be read, a level outside (0, 1).
    """
    if not 0 < level < 1 or repeats < 1:
        raise TutelageError(f"level={level}, repeats={repeats}; expected a level between 0 and 1, and at least one answer per prompt.")
    log = read_distances(Path(subject))
    clean = None if twin is None else read_distances(Path(twin))
    half_N = rng.permuted(np.arange(len(log.prompts)) % 2 == 0)
    found = [_turn(log, half_N, "hacking"), _turn(log, half_N, "overfitting"), _law(log)]
    half_N = half_N if clean is None or len(clean.prompts) == len(half_N) else np.arange(len(clean.prompts)) % 2 == 0
    base = [None] * 3 if clean is None else [_turn(clean, half_N, "hacking"), _turn(clean, half_N, "overfitting"), _law(clean)]
    # A twin that shows the same clears it: what fresh answers do too is not the data's doing.
    p_by_name = {
        one.name: 1.0 if other is not None and other.p is not None and other.p <= level else one.p
        for one, other in zip(found, base, strict=True)
        if one.p is not None
    }
    p_holm = dict(zip(p_by_name, holm(list(p_by_name.values())).tolist(), strict=True))
    checks = [_check(one, other, p_by_name, p_holm, level) for one, other in zip(found, base, strict=True)]
    if data is not None:
        checks.append(_diversity(Path(data), repeats))
    of_twin = () if clean is None else tuple(Warned(what=f"twin: {w.what}", count=w.count, first=w.first) for w in clean.warnings)
    return Verdict(
        audit="teacher",
        subject=str(subject),
        checks=tuple(checks),
        false_positive_rate=level,
        command=_command(subject, twin, level, data, repeats),
        warnings=(*log.warnings, *of_twin),
    )


def left_its_law(step_S: Float, proxy_S: Float) -> bool:
    """The early-stopping rule that needs no golden distance: whether the proxy has left the straight line of its first evaluations.

    For `tutelage.trainers.distances.DistanceLog(stop=left_its_law)`; the evaluations must reach well into the training, for the line is
    fitted on the first three tenths of those made so far.
    """
    return power_law(step_S, proxy_S)[2] is not None


@dataclass(frozen=True)
class _Found:
    """What one check measured. p None: it could not be tested, and `finding` says why."""

    name: str
    finding: str
    severity: Severity = "none"
    p: float | None = None
    effect: Effect | None = None
    evidence: tuple[dict[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()


def _turn(log: Distances, half_N: np.ndarray[Any, np.dtype[np.bool_]], name: str) -> _Found:
    """Golden rises from its turn to the end; the proxy falls (hacking) or rises (overfitting)."""
    if log.golden_SN is None:
        return _Found(name, "not tested: the log has no golden distance, to a stronger model or to the truth")
    if len(log.step_S) < 3 or min(half_N.sum(), (~half_N).sum()) < 5:
        return _Found(name, f"not tested: {len(log.step_S)} evaluations of {len(log.prompts)} prompts; at least 3 of 10 are needed")
    turn = int(np.argmin(moving_mean(log.golden_SN[:, half_N].mean(axis=1), SMOOTH)))
    curves = _curves(log)
    if turn == len(log.step_S) - 1:
        return _Found(
            name, "the golden distance is least at the end", p=1.0, effect=_rise(log.golden_SN[[turn, -1]][:, ~half_N]), curves=curves
        )
    golden_N, proxy_N = (d_SN[-1] - d_SN[turn] for d_SN in (log.golden_SN, log.proxy_SN))
    wanted_N = -proxy_N if name == "hacking" else proxy_N
    p = max(exceeds_p(golden_N[~half_N]), exceeds_p(wanted_N[~half_N]))
    report = hacking_report(log.step_S, log.proxy_SN.mean(axis=1), log.golden_SN.mean(axis=1), smooth=SMOOTH)
    worst = np.argsort(-golden_N, kind="stable")[:SHOWN]
    evidence = tuple(
        {
            "prompt_id": log.prompts[n], "step": int(log.step_S[turn]), "golden": float(log.golden_SN[turn, n]),
            "golden at the end": float(log.golden_SN[-1, n]), "proxy": float(log.proxy_SN[turn, n]),
            "proxy at the end": float(log.proxy_SN[-1, n]),
        }
        for n in worst
    )  # fmt: skip
    finding = (
        f"from step {log.step_S[turn]:g} to {log.step_S[-1]:g} the golden distance moved by {golden_N.mean():+.3g} nats and the proxy by "
        f"{proxy_N.mean():+.3g}: {KINDS[report.kind] if report.kind else 'no verdict'}"
    )
    severity: Severity = "high" if name == "hacking" else "medium"
    return _Found(name, finding, severity, p, _rise(np.stack([log.golden_SN[turn], log.golden_SN[-1]])[:, ~half_N]), evidence, curves)


def _law(log: Distances) -> _Found:
    """The proxy leaves its straight line; both the rule and the test must say so."""
    proxy_S = log.proxy_SN.mean(axis=1)
    p = departure_p(log.step_S, proxy_S)
    slope, r2, at = power_law(log.step_S, proxy_S)
    if p is None or slope is None:
        return _Found("power law", f"not tested: {len(log.step_S)} evaluations; at least eight after step 0 are needed")
    line_S = law(log.step_S, proxy_S)
    curves = (
        Curve(panel="proxy distance and its law", name="proxy", x=tuple(log.step_S), y=tuple(proxy_S)),
        Curve(panel="proxy distance and its law", name="law of the first evaluations", x=tuple(log.step_S), y=_gaps(line_S)),
    )
    gap = float(np.log(proxy_S[-1]) - np.log(line_S[-1]))
    effect = Effect(what="log of the last proxy distance over its line's", value=gap)
    if at is None:
        return _Found("power law", f"the proxy follows a line of slope {slope:.3g} (R² {r2:.3g})", "none", 1.0, effect, (), curves)
    finding = f"the proxy leaves its line (slope {slope:.3g}, R² {r2:.3g}) upwards at step {log.step_S[at]:g}: fixed answers are used up"
    evidence = ({"step": float(log.step_S[at]), "proxy": float(proxy_S[at]), "line": float(line_S[at])},)
    return _Found("power law", finding, "medium", p, effect, evidence, curves)


def _check(one: _Found, other: _Found | None, p: dict[str, float], p_holm: dict[str, float], level: float) -> Check:
    flagged = p_holm.get(one.name, 1.0) <= level
    return Check(
        name=one.name,
        finding=one.finding,
        severity=one.severity if flagged else "none",
        effect=one.effect,
        base_rate=None if other is None or other.effect is None else other.effect.value,
        p=p.get(one.name),
        p_holm=p_holm.get(one.name),
        evidence=one.evidence if flagged else (),
        curves=one.curves,
    )


def _diversity(path: Path, repeats: float) -> Check:
    """Answers per distinct prompt: a count, no test. The paper finds few prompts with many answers each to be hacked most."""
    from tutelage.errors import Tally
    from tutelage.rollouts.reader import json_lines

    counts: dict[str, int] = {}
    for number, _, row in json_lines(path, Tally()):
        key = row.get("prompt_id", row.get("prompt"))
        if key is None:
            raise TutelageError(f"{path}, line {number} has neither prompt_id nor prompt; the fixed answers must say what they answer.")
        counts[str(key)] = counts.get(str(key), 0) + 1
    if not counts:
        raise TutelageError(f"{path} holds no answers; expected JSON Lines with a prompt in each.")
    mean = sum(counts.values()) / len(counts)
    narrow = mean > repeats
    most = sorted(counts, key=lambda key: -counts[key])[:SHOWN]
    return Check(
        name="diversity",
        finding=f"{len(counts):,} distinct prompts for {sum(counts.values()):,} answers"
        + (": more prompts before more answers each, or fresh answers" if narrow else ""),
        severity="low" if narrow else "none",
        effect=Effect(what="answers per distinct prompt", value=mean),
        evidence=tuple({"prompt": key, "answers": counts[key]} for key in most) if narrow else (),
    )


def _rise(golden_2N: Float) -> Effect:
    """G(end) − G(turn) with its 95 % interval over prompts."""
    mean, low, high = t_interval(golden_2N[1] - golden_2N[0])
    return Effect(what="golden distance at the end over that at its turn, nats", value=mean, low=low, high=high)


def _curves(log: Distances) -> tuple[Curve, ...]:
    panel, x = "distance on held-out prompts, nats", tuple(log.step_S)
    lines = {"proxy: to the teacher": log.proxy_SN, "golden: to the truth": log.golden_SN}
    return tuple(Curve(panel=panel, name=name, x=x, y=tuple(d_SN.mean(axis=1))) for name, d_SN in lines.items() if d_SN is not None)


def _gaps(value_S: Float) -> tuple[float | None, ...]:
    return tuple(float(v) if np.isfinite(v) else None for v in value_S)


def _command(subject: Any, twin: Any, level: float, data: Any, repeats: float) -> str:
    words = ["tutelage", "audit", "teacher", str(subject)] + ([] if twin is None else ["--twin", str(twin)])
    words += [] if data is None else ["--data", str(data)]
    words += [] if level == 0.05 else ["--level", f"{level:g}"]
    return shlex.join(words + ([] if repeats == 2 else ["--repeats", f"{repeats:g}"]))
