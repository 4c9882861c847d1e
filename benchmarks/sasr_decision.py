"""What SASR's decision costs beside the training step that it decides on.

    python benchmarks/sasr_decision.py [--steps 40] [--json]

Trains the built-in student on the TRL trainer with `objective("sasr")`. The decision is everything that a fixed sum would not do: the
controller with its coin, its answer on every rank, the choice of the parts, and reading the engine's gradient norm. Drawing and collating
demonstrations is not part of it: any supervised step has that. Prints the decision's share of the steps' time; the target is 3 %.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "1")

import torch
import trl
from datasets import Dataset

from tutelage.objectives import objective
from tutelage.students import builtin_path
from tutelage.trainers import _mix
from tutelage.trainers.trl import with_curriculum

TARGET = 0.03


class Clock:
    """Adds up the seconds spent in functions of the mix."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapped


def measure(steps: int) -> dict[str, float]:
    """Seconds of all steps, of the decisions among them, and their ratio."""
    torch.set_num_threads(1)
    clock, prompts = Clock(), [f"{n} + 5 = " for n in range(64)]
    data = Dataset.from_dict({"prompt": prompts, "completion": [str(n + 5) for n in range(64)]})
    _mix.Mix.decided = clock.timed(_mix.Mix.decided)  # type: ignore[method-assign]
    _mix.Mix.clipped = clock.timed(_mix.Mix.clipped)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as run:
        config = trl.GRPOConfig(
            run, max_steps=steps, per_device_train_batch_size=64, num_generations=8, max_completion_length=12, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = with_curriculum(trl.GRPOTrainer)(
            str(builtin_path()), lambda completions, **columns: [float("5" in text) for text in completions], args=config,
            train_dataset=data.select_columns("prompt"), demonstrations=data, objective=objective("sasr", warmup_steps=4),
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - began
    return {"steps": steps, "seconds": whole, "decision_seconds": clock.seconds, "ratio": clock.seconds / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.steps)
    if args.json:
        print(json.dumps(found))
    else:
        verdict = "ok" if found["ratio"] < TARGET else f"ABOVE {TARGET:.0%}"
        print(f"decision {found['ratio']:.3%} of a step ({1e6 * found['decision_seconds'] / args.steps:.0f} us each)  {verdict}")


if __name__ == "__main__":
    main()
