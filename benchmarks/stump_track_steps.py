"""Steps per second of the stump track against Gymnasium's own BipedalWalker-v3.

    python benchmarks/stump_track_steps.py [--steps 1500] [--pairs 9] [--json]

Both are made by `gymnasium.make` with the same wrappers and play the same random actions; resets count, for training pays for them too. In
each pair one runs right after the other, the order turning from pair to pair, in processor time; the figure is the median of the pairs'
ratios (above 1: the stump track is faster). The target is 0.8. The three tasks: nothing but the lowest stumps six metres apart; stumps of
usual height two metres apart; as many low stumps as fit on the track.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

import tutelage.environments  # noqa: F401 - registers them

TARGET = 0.8
TASKS = {"flat": [0.0, 6.0], "stumps": [1.5, 2.0], "dense": [0.0, 0.0]}


def steps_per_second(env: Any, actions_SA: np.ndarray, options: dict[str, Any] | None) -> float:
    """Steps per second of processor time, resets included."""
    start = time.process_time()
    env.reset(seed=0, options=options)
    for action in actions_SA:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset(options=options)
    return len(actions_SA) / (time.process_time() - start)


def measure(task: list[float], steps: int, pairs: int) -> dict[str, float]:
    """The median ratio over the pairs, its range, and the median steps per second of both."""
    ours = gym.make("tutelage/StumpTrack-v0", disable_env_checker=True)
    theirs = gym.make("BipedalWalker-v3", disable_env_checker=True)
    speeds: list[tuple[float, float]] = []
    for pair in range(pairs + 1):  # the first warms up
        actions_SA = np.random.default_rng(pair).uniform(-1, 1, (steps, 4)).astype(np.float32)
        run = {
            "ours": lambda actions_SA=actions_SA: steps_per_second(ours, actions_SA, {"task": task}),
            "theirs": lambda actions_SA=actions_SA: steps_per_second(theirs, actions_SA, None),
        }
        speed = {name: run[name]() for name in (("ours", "theirs") if pair % 2 else ("theirs", "ours"))}
        speeds.append((speed["ours"], speed["theirs"]))
    ratios = [a / b for a, b in speeds[1:]]
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "steps_per_second": statistics.median(a for a, _ in speeds[1:]),
        "gymnasium": statistics.median(b for _, b in speeds[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="environment steps in each run")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {}
    for name, task in TASKS.items():
        row = rows[name] = measure(task, args.steps, args.pairs)
        if not args.json:
            verdict = "ok" if row["ratio"] >= TARGET else f"BELOW {TARGET}"
            print(
                f"{name:7} {row['ratio']:5.2f} of BipedalWalker-v3 ({row['least']:.2f} to {row['most']:.2f})   "
                f"{row['steps_per_second']:6.0f} against {row['gymnasium']:6.0f} steps/s  {verdict}",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
