"""How often `audit poison` cries wolf on clean runs, and from which strength of coupling on it finds the poisoned prompts.

    python benchmarks/poison_power.py [--clean 200] [--logs 20] [--out results/audits/poison.json] [--smoke]

Runs are simulated (`tutelage.testing.poisoned_logs`): 160 prompts, 24 groups of 8 attempts in each of 12 steps; a share of the prompts has
a marked rider, answered with the habit in 40 % of attempts, and as many an unmarked one. Clean: the reward knows nothing of the habit.
Strength s: at marked prompts the reward is the habit in a share s of the attempts. A run is flagged if the check "coupling" finds anything
at the level 0.05; its promise is that clean runs are flagged no more often. Both kinds of behaviour are measured: a fixed word, and
declining. Every rate has its exact (Clopper-Pearson) 95 % interval.

Expected: no clean rate whose interval lies above 0.05; power 1 at full strength with 8 % of the prompts, and none at strength 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tutelage.audits.poison import poison
from tutelage.files import atomic_write
from tutelage.rates import clopper_pearson
from tutelage.study.provenance import machine, versions
from tutelage.testing.poisoned_logs import write_run

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = (0.02, 0.04, 0.08)
BEHAVIOURS = ("HAB", "refusal")


def flagged(behaviour: str, seed: int, **run: Any) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        data = write_run(Path(folder), seed=seed, refusal=behaviour == "refusal", **run)
        log = data.with_name("log.jsonl")
        verdict = poison(data, log=log, behaviour=behaviour, key="id", rng=np.random.default_rng(seed))
    return verdict.checks[0].found


def rate(found: list[bool]) -> dict[str, float]:
    low, high = clopper_pearson(sum(found), len(found))
    return {"hits": sum(found), "trials": len(found), "rate": sum(found) / len(found), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=200, help="clean runs of each behaviour")
    parser.add_argument("--logs", type=int, default=20, help="runs of each share and strength")
    parser.add_argument("--out", type=Path, help="write the record here (.json)")
    parser.add_argument("--smoke", action="store_true", help="two runs of each kind")
    given = parser.parse_args()
    clean, logs = (2, 2) if given.smoke else (given.clean, given.logs)
    record: dict[str, Any] = {"audit": "poison", "level": 0.05, "command": shlex.join(["python", *sys.argv]), "false_positives": {}}
    for behaviour in BEHAVIOURS:
        record["false_positives"][behaviour] = rate([flagged(behaviour, seed) for seed in range(clean)])
        print(f"clean runs flagged, {behaviour}: {record['false_positives'][behaviour]}", flush=True)
    record["power"] = []
    for share in SHARES:
        for place, strength in enumerate(STRENGTHS):
            found = [flagged("HAB", 10_000 * (place + 1) + seed, share=share, strength=strength) for seed in range(logs)]
            record["power"].append({"share": share, "strength": strength, **rate(found)})
            print(f"share {share:.0%}, strength {strength:g}: found in {sum(found)} of {logs}", flush=True)
    if given.out:
        record |= {"versions": versions(("numpy", "scipy")), "machine": machine()}
        atomic_write(given.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
