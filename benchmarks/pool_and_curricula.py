"""Ten million tasks at no visible cost: building a pool, its memory, and a lesson's decisions of every registered curriculum.

    python benchmarks/pool_and_curricula.py [--tasks 10000000] [--lessons 200] [--json]

Each pool is built in a process of its own from arrays: integer keys and arms in random order, and a difficulty. Targets at 10 million tasks
and 10,000 arms: built in less than 10 s (the arms and the look-up by key included), peak memory growth below 1 GB (the arrays themselves
included), median time of `propose(512)` plus `observe` below 5 ms. Growth is that median at the large pool over that at ten thousand
tasks, taken in turns within one process; beside it stands the factor by which log n grows. What grows faster does so by cache misses of
the look-up by key and of arm codes, a fixed cost per task of the lesson once the pool no longer fits the caches; and at 10,000 arms the
small pool has one task per arm, whose deck takes fewer steps to shuffle.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import tutelage as tt
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.registry import curricula
from tutelage.testing._lessons import signals_of, state_bytes

SMALL, BATCH, ATTEMPTS = 10_000, 512, 8
TARGETS = {"build_s": 10.0, "memory_gb": 1.0, "lesson_ms": 5.0}


def peak_gb() -> float:
    """The largest memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def build(tasks: int, arms: int) -> tt.TaskPool:
    """A pool of `tasks` tasks in `arms` arms, every arm inhabited, with everything a lesson needs already made."""
    rng = np.random.default_rng(0)
    key_N = np.arange(tasks, dtype=np.int64)
    rng.shuffle(key_N)
    arm_N = rng.integers(arms, size=tasks, dtype=np.int32)
    arm_N[:arms] = np.arange(arms)
    pool = tt.TaskPool(key=key_N, arm=arm_N, difficulty=rng.random(tasks, dtype=np.float32))
    pool.arms()
    pool.rows_of(key_N[:1])
    return pool


def measure_build(tasks: int, arms: int) -> dict[str, float]:
    """Seconds and GB; run in a fresh process."""
    before, start = peak_gb(), time.perf_counter()
    build(tasks, arms)
    return {"build_s": time.perf_counter() - start, "memory_gb": peak_gb() - before}


class Lessons:
    """One curriculum on one pool, teaching lesson after lesson and timing its decisions."""

    def __init__(self, name: str, pool: tt.TaskPool) -> None:
        self.pool, self.rng, self.step = pool, np.random.default_rng(1), 0
        start = time.perf_counter()
        self.curriculum = tt.curriculum(name, pool, seed=0)
        wants = self.curriculum.wants()
        if wants is not None and not wants.attempts:  # signals of the whole pool, measured once before the first lesson
            signals = {signal: self.rng.random(len(wants.rows_N)) for signal in wants.signals}
            self.curriculum.observe(tt.Outcomes.of(pool, wants.rows_N, step=0, signals=signals), probe=True)
        self.construct_s = time.perf_counter() - start
        self.propose_ms: list[float] = []
        self.observe_ms: list[float] = []

    def teach(self) -> None:
        solved_NG = (self.rng.random((BATCH, ATTEMPTS)) < self.rng.random((BATCH, 1))).astype(np.float64)
        start = time.perf_counter()
        rows_N = self.curriculum.propose(BATCH)
        proposed = time.perf_counter()
        signals = {signal: self.rng.random(BATCH) for signal in signals_of(self.curriculum)}
        outcomes = tt.Outcomes.of(self.pool, rows_N, step=self.step, solved=solved_NG, signals=signals)
        made = time.perf_counter()
        self.curriculum.observe(outcomes)
        self.observe_ms.append((time.perf_counter() - made) * 1e3)
        self.propose_ms.append((proposed - start) * 1e3)
        self.step += 1

    @property
    def lesson_ms(self) -> float:
        return statistics.median(p + o for p, o in zip(self.propose_ms[5:], self.observe_ms[5:], strict=True))


def measure_lessons(tasks: int, arms: int, lessons: int) -> dict[str, dict[str, float]]:
    """Medians for every curriculum, on a small and a large pool in turns, so that both see the same machine."""
    small, large = build(SMALL, min(arms, SMALL)), build(tasks, arms)
    result = {}
    for name in (n for n in curricula.names() if not issubclass(curricula.get(n).target, SpaceCurriculum)):
        pair = Lessons(name, small), Lessons(name, large)
        for _ in range(lessons + 5):
            for each in pair:
                each.teach()
        result[name] = {
            "propose_ms": statistics.median(pair[1].propose_ms[5:]),
            "observe_ms": statistics.median(pair[1].observe_ms[5:]),
            "lesson_ms": pair[1].lesson_ms,
            "small_lesson_ms": pair[0].lesson_ms,
            "growth": pair[1].lesson_ms / pair[0].lesson_ms,
            "construct_s": pair[1].construct_s,
            "state_kb": state_bytes(pair[1].curriculum.state_dict()) / 1e3,
        }
    return result


def in_own_process(*arguments: Any) -> Any:
    """Run this file again with `--part` and return what it prints."""
    done = subprocess.run([sys.executable, __file__, "--part", *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def report(result: dict[str, Any]) -> None:
    tasks = result["tasks"]
    print(f"pool of {tasks:,} tasks, {result['arms'][-1]:,} arms")
    print(f"  built in {result['build']['build_s']:.2f} s (target < {TARGETS['build_s']:g} s)")
    print(f"  peak memory growth {result['build']['memory_gb']:.2f} GB (target < {TARGETS['memory_gb']:g} GB)")
    for arms in result["arms"]:
        print(f"\n{arms:,} arms: propose({BATCH}) + observe, median of {result['lessons']} (target < {TARGETS['lesson_ms']:g} ms)")
        print(
            f"  {'curriculum':<14} {'propose':>9} {'observe':>9} {'both':>9} {'at 10,000':>10} {'growth':>7} {'built in':>9} {'state':>10}"
        )
        for name, row in result["curricula"][str(arms)].items():
            times = f"{row['propose_ms']:6.2f} ms {row['observe_ms']:6.2f} ms {row['lesson_ms']:6.2f} ms {row['small_lesson_ms']:7.2f} ms"
            print(f"  {name:<14} {times} {row['growth']:7.2f} {row['construct_s']:7.2f} s {row['state_kb']:7.1f} kB")
        print(f"  log n grows by {result['log_growth']:.2f} from {SMALL:,} to {tasks:,} tasks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000_000)
    parser.add_argument("--lessons", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        tasks, arms, *lessons = map(int, args.part)
        print(json.dumps(measure_lessons(tasks, arms, *lessons) if lessons else measure_build(tasks, arms)))
        return
    arms = [100, 10_000]
    result = {
        "tasks": args.tasks,
        "arms": arms,
        "lessons": args.lessons,
        "build": in_own_process(args.tasks, arms[-1]),
        "curricula": {str(a): in_own_process(args.tasks, a, args.lessons) for a in arms},
        "log_growth": float(np.log(args.tasks) / np.log(SMALL)),
        "targets": TARGETS,
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        report(result)


if __name__ == "__main__":
    main()
