"""Rollouts per second of `compare`'s own trainer against plain TRL, and the curriculum's share of a step.

    python benchmarks/compare_throughput.py [--pairs 5] [--steps 20] [--json]

Both train the built-in student on the built-in tasks with the settings of `compare`, one thread, in one process, in turn (plain, ours,
plain, ours, ...). Evaluation is excluded. Target: the median of the paired ratios ours / plain at least 0.97 for `uniform`. The share of a
step is what `propose`, `observe`, `admit` and the gathering around them take, timed inside the run; target: under 2 % for every curriculum.
For a filtering curriculum the rollouts are counted too: those thrown away are in the ratio's denominator of time and in its count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import trl

from tutelage.study import engines
from tutelage.study.cell import Bench, Job, build_trainer
from tutelage.study.config import make_run, parse_arm
from tutelage.study.workers import quiet
from tutelage.tasks.rewards import VerifierReward


def measure(bench: Bench, arm: str | None, steps: int) -> dict[str, float]:
    """Train for `steps` updates: plain TRL where `arm` is None. Seconds start after the first step, which warms caches."""
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.at: list[float] = []
            self.cpu: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.at.append(time.perf_counter())
            self.cpu.append(time.process_time())

    model, tokenizer = engines.load_model(bench.run)
    chosen = parse_arm(arm or "uniform")
    with tempfile.TemporaryDirectory() as folder:
        config = engines.make_config(bench.run, chosen, seed=0, max_steps=steps + 1, output_dir=Path(folder))
        if arm is None:
            reward = VerifierReward(bench.tasks.verifier)
            data = bench.dataset("grpo", tokenizer)
            trainer: Any = trl.GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer)
        else:
            trainer = build_trainer(bench, Job(arm, chosen, 0, ("updates", steps + 1.0)), model, tokenizer, config)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = clock.at[-1] - clock.at[0]
    per_step = config.per_device_train_batch_size
    rollouts = trainer.ledger.rollouts * steps / (steps + 1) if arm else per_step * steps
    share = getattr(trainer, "curriculum_seconds", 0.0) / (seconds * (steps + 1) / steps)
    cpu = clock.cpu[-1] - clock.cpu[0]
    return {
        "rollouts_per_second": rollouts / seconds,
        "rollouts_per_cpu_second": rollouts / cpu,
        "seconds_per_step": seconds / steps,
        "curriculum_share": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    bench = Bench(make_run(None, {}, []))
    measure(bench, "uniform", 3)  # warm-up of both paths
    measure(bench, None, 3)
    pairs = [(measure(bench, None, args.steps), measure(bench, "uniform", args.steps)) for _ in range(args.pairs)]
    ratios = [ours["rollouts_per_second"] / plain["rollouts_per_second"] for plain, ours in pairs]
    cpu_ratios = [ours["rollouts_per_cpu_second"] / plain["rollouts_per_cpu_second"] for plain, ours in pairs]
    shares = {"uniform": statistics.median(ours["curriculum_share"] for _, ours in pairs)}
    steps: dict[str, float] = {}
    for arm in ("mixture", "easy_to_hard", "hard_to_easy", "sec:tau=0.2", "dump", "odf"):
        found = measure(bench, arm, args.steps)
        shares[arm], steps[arm] = found["curriculum_share"], found["rollouts_per_second"]
    result = {
        "ratio_median": statistics.median(ratios), "ratios": ratios,
        "cpu_ratio_median": statistics.median(cpu_ratios), "cpu_ratios": cpu_ratios,
        "plain_rollouts_per_second": statistics.median(p["rollouts_per_second"] for p, _ in pairs),
        "curriculum_share": shares, "rollouts_per_second": steps,
    }  # fmt: skip
    if args.json:
        print(json.dumps(result, indent=1))
        return
    listed = ", ".join(f"{r:.3f}" for r in ratios)
    print(f"rollouts per second, compare / plain TRL: median {result['ratio_median']:.3f} of {listed} (target >= 0.97)")
    listed = ", ".join(f"{r:.3f}" for r in cpu_ratios)
    print(f"the same per second of processor time: median {result['cpu_ratio_median']:.3f} of {listed}")
    for arm, share in shares.items():
        print(f"curriculum's share of a step, {arm:<14} {share:.2%} (target < 2 %)")


if __name__ == "__main__":
    main()
