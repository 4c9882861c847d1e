"""What teachers over continuous spaces cost per episode, and what a gridded student masters with each.

    python benchmarks/space_teachers.py [--episodes 20000] [--batch 8] [--seeds 1] [--json]

Each teacher has its defaults (ADR, Oracle and Self-Paced what an expert of the toy would tell them, AGAIN no tests) on the 10 x 10 grid of
`tutelage.students.gridded`. The cost is that of `propose` and `observe` alone, fits included, divided by the episodes; the target is 2 ms
(10 ms for GoalGAN, which trains networks).
The state's size is that at the end. For orientation, 20,000 episodes of the published toy master about 4 % of the cells with Random, 33 %
with ALP-GMM and 47 % with RIAC.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tutelage as tt
from tutelage.students.gridded import GriddedStudent
from tutelage.testing._lessons import state_bytes

TARGET_MS = 2.0
NEURAL_MS = 10.0
TEACHERS: dict[str, dict[str, Any]] = {
    "random": {},
    "riac": {},
    "alp-gmm": {},
    "covar-gmm": {},
    "again": {"test_every": 10**9},
    "oracle": {"threshold": 0.6, "step": (0.1, 0.1)},
    "self-paced": {"initial_mean": (0.05, 0.05)},
    "goal-gan": {"success": 0.5},
    "adr": {"low": 0.1, "high": 0.5, "initial": (0.0, 0.0)},
}


def measure(name: str, episodes: int, batch: int, seed: int) -> dict[str, float]:
    """Milliseconds per episode, the share of cells mastered, and the state's size in kB."""
    student = GriddedStudent()
    curriculum = tt.curriculum(name, student.space, seed=seed, **TEACHERS[name])
    spent = 0.0
    for _ in range(episodes // batch):
        start = time.perf_counter()
        points_ND = curriculum.propose(batch)
        spent += time.perf_counter() - start
        reward_N = student.attempt(points_ND)
        start = time.perf_counter()
        curriculum.observe(tt.Outcomes.of(student.space, points_ND, reward=reward_N))
        spent += time.perf_counter() - start
    return {
        "ms_per_episode": 1000 * spent / (episodes // batch * batch),
        "mastered": student.mastered,
        "state_kb": state_bytes(curriculum.state_dict()) / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {}
    for name in TEACHERS:
        runs = [measure(name, args.episodes, args.batch, seed) for seed in range(args.seeds)]
        rows[name] = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
        if not args.json:
            target = NEURAL_MS if name == "goal-gan" else TARGET_MS
            row, verdict = rows[name], "ok" if rows[name]["ms_per_episode"] <= target else f"ABOVE {target} ms"
            print(
                f"{name:10} {row['ms_per_episode']:7.3f} ms/episode  {row['mastered']:6.1%} mastered  {row['state_kb']:8.0f} kB  {verdict}",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
