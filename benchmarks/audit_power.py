"""How often `audit rewards` cries wolf on clean logs, and from which strength on it finds each planted fault.

    python benchmarks/audit_power.py [--logs 40] [--clean 200] [--out results/audits/rewards.json] [--page FILE.html]
        [--seconds S] [--smoke]
    python benchmarks/audit_power.py --of results/audits/rewards.json --page FILE.html

Logs are simulated (`tutelage.testing.rollout_logs`): 36 steps of 12 prompts, 4 attempts at each, from a pool of 100. Clean ones are of
four kinds in turn, and the rate of any finding is measured at four levels; the audit promises that it is at most the level. Each fault is
planted at six strengths (`FAULTS` says what they mean), and found if the rule of its name flags it at the level 0.05, with Holm's
correction over all rules. What else is flagged is counted too. Every rate has its exact (Clopper-Pearson) 95 % interval.

Expected: no level exceeded beyond its interval; power 1 at full strength, and no more than the level at strength 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tutelage.audits import Check, Curve, Effect, Verdict
from tutelage.audits._attempts import Gathering
from tutelage.audits.page import write_page
from tutelage.audits.rewards import judge, rule_table
from tutelage.errors import Tally
from tutelage.files import atomic_write
from tutelage.rates import clopper_pearson
from tutelage.rollouts.columns import make_chunk
from tutelage.study.provenance import machine, versions
from tutelage.testing.rollout_logs import FAULTS, KINDS, log_rows

LEVELS = (0.01, 0.05, 0.1, 0.2)
LEVEL = 0.05
STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
SIZE = {"steps": 36, "tasks": 12, "attempts": 4, "pool": 100}


def p_values(seed: int, **log: Any) -> dict[str, float]:
    """The corrected p value of each rule that could be tested. The log goes to the rules without a file."""
    rows = log_rows(seed=seed, **SIZE, **log)
    gathering = Gathering()
    gathering.add(make_chunk({name: [row[name] for row in rows] for name in rows[0]}, range(len(rows)), "simulated", "row", Tally()))
    verdict = judge(gathering.attempts(Path("simulated"), ()), None, rule_table(), level=LEVEL, command="simulated", evidence=False)
    return {check.name: check.p_holm for check in verdict.checks if check.p_holm is not None}


def rate(hits: int, trials: int) -> dict[str, float]:
    low, high = clopper_pearson(hits, trials)
    return {"hits": hits, "trials": trials, "rate": hits / trials, "low": low, "high": high}


def false_positives(logs: int) -> dict[str, Any]:
    """The rate of any finding on clean logs, by level, as a whole and by rule."""
    found = [p_values(seed) for seed in range(logs)]
    by_level = {f"{level:g}": rate(sum(min(p.values()) <= level for p in found), logs) for level in LEVELS}
    by_rule = Counter(name for p in found for name, value in p.items() if value <= LEVEL)
    return {"kinds": list(KINDS), "by_level": by_level, "by_rule": dict(by_rule)}


def power(fault: str, logs: int) -> dict[str, Any]:
    """How often a fault's own rule finds it, by strength, and which other rules flag it at full strength."""
    points, others = [], Counter[str]()
    for place, strength in enumerate(STRENGTHS):
        found = [p_values(10_000 * (place + 1) + seed, fault=fault, strength=strength) for seed in range(logs)]
        points.append({"strength": strength, **rate(sum(p.get(fault, 1.0) <= LEVEL for p in found), logs)})
        if strength == 1.0:
            others.update(name for p in found for name, value in p.items() if name != fault and value <= LEVEL)
    return {"means": FAULTS[fault], "points": points, "also_found": dict(others)}


def as_verdict(record: dict[str, Any]) -> Verdict:
    """The record as a verdict, so that it has a page: a check per fault with its curve, and one of the false positives."""
    clean = record["false_positives"]["by_level"]
    levels = tuple(float(level) for level in clean)
    rates = tuple(one["rate"] for one in clean.values())
    bounds = {end: tuple(one[end] for one in clean.values()) for end in ("low", "high")}
    panel = "false-positive rate on clean logs"
    curves = (
        Curve(panel=panel, name="measured", x_name="promised level", x=levels, y=rates, **bounds),
        Curve(panel=panel, name="promised", x_name="promised level", x=levels, y=levels),
    )
    broken = any(one["low"] > float(level) for level, one in clean.items())
    at = clean[f"{LEVEL:g}"]
    said = f"{at['hits']} of {at['trials']} clean logs flagged at the level {LEVEL:g}"
    checks = [Check(name="clean", finding=said, severity="high" if broken else "none", effect=_effect(at, said), curves=curves)]
    for fault, one in record["power"].items():
        points = one["points"]
        x, y, low, high = (tuple(point[key] for point in points) for key in ("strength", "rate", "low", "high"))
        curve = Curve(panel=f"power: {fault}", name=fault, x_name="strength", x=x, y=y, low=low, high=high)
        finding = f"found in {points[-1]['hits']} of {points[-1]['trials']} logs at full strength; strength: {one['means']}"
        checks.append(Check(name=fault, finding=finding, effect=_effect(points[-1], "power at full strength"), curves=(curve,)))
    warned = {"subject": "simulated rollout logs", "command": record["command"], "false_positive_rate": LEVEL}
    return Verdict(audit="rewards, measured", checks=tuple(checks), **warned)


def _effect(one: dict[str, Any], what: str) -> Effect:
    return Effect(what=what, value=one["rate"], low=one["low"], high=one["high"], hits=one["hits"], trials=one["trials"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=40, help="logs of each fault and strength")
    parser.add_argument("--clean", type=int, default=200, help="clean logs")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--out", type=Path, help="write the record here (.json)")
    parser.add_argument("--page", type=Path, help="write the curves here (.html)")
    parser.add_argument("--of", type=Path, metavar="RECORD", help="measure nothing; draw the page of this record")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after the part in which this time is up")
    parser.add_argument("--smoke", action="store_true", help="two logs of each kind")
    given = parser.parse_args()
    if given.of:
        write_page(as_verdict(json.loads(given.of.read_text(encoding="utf-8"))), given.page or given.of.with_suffix(".html"))
        return
    logs, clean = (2, 4) if given.smoke else (given.logs, given.clean)
    record = measured(given.faults, logs, clean, given.out, given.seconds)
    if record is None:
        print("time is up; the same command goes on from here")
        return
    if given.out:
        atomic_write(given.out, json.dumps(record | {"versions": versions(("numpy", "scipy")), "machine": machine()}, indent=1) + "\n")
        partial_of(given.out).unlink(missing_ok=True)
    if given.page:
        write_page(as_verdict(record), given.page)


def measured(faults: list[str], logs: int, clean: int, out: Path | None, seconds: float) -> dict[str, Any] | None:
    """The whole record, or None when the time is up. What is done is kept beside `out`, and a later call goes on from there."""
    command = shlex.join(["python", "benchmarks/audit_power.py", *sys.argv[1:]])
    record: dict[str, Any] = {"audit": "rewards", "command": command, "log": SIZE, "level": LEVEL, "logs": logs, "clean": clean}
    partial, end = None if out is None else partial_of(out), time.monotonic() + seconds
    done: dict[str, Any] = {"of": record, "false_positives": None, "power": {}}
    if partial is not None and partial.exists():
        before = json.loads(partial.read_text(encoding="utf-8"))
        done = before if before["of"] | {"command": command} == record else done
    for fault in ["clean", *faults]:
        if fault in done["power"] or (fault == "clean" and done["false_positives"]):
            continue
        if time.monotonic() > end:
            return None
        if fault == "clean":
            done["false_positives"] = false_positives(clean)
            for level, one in done["false_positives"]["by_level"].items():
                print(f"clean logs flagged at {level:>4}: {one['rate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]", flush=True)
        else:
            done["power"][fault] = power(fault, logs)
            points = done["power"][fault]["points"]
            print(f"{fault:>10}  " + "  ".join(f"{point['strength']:g}: {point['rate']:.2f}" for point in points), flush=True)
        if partial is not None:
            atomic_write(partial, json.dumps(done))
    return record | {"false_positives": done["false_positives"], "power": {fault: done["power"][fault] for fault in faults}}


def partial_of(out: Path) -> Path:
    return out.with_suffix(".partial.json")


if __name__ == "__main__":
    main()
