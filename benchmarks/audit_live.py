"""What the live audit takes of a training step.

    python benchmarks/audit_live.py [--steps 60] [--long 2000] [--json]

The built-in student trains by GRPO on the built-in tasks with the settings of `compare` (64 rollouts a step, one thread), writes its log
and is audited as it goes. The share is the time spent in the callback's methods (reading the log's new rows, judging, logging) over the
time of the whole training; target: under 1 %. Writing the log is told apart, for it is no audit. Looks grow rarer as a run goes on, so the
share of a longer run is measured too: the audit follows a log of --long steps of that size without a trainer, and its time a step is set
against that of the trainer's step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tutelage.audits.live import Watch
from tutelage.testing.rollout_logs import write_log

TARGET = 0.01
ROLLOUTS = 64


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, which adds the processor's seconds that it takes to `spent`."""

    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.process_time() - began)

    return clocked


def training(steps: int) -> dict[str, float]:
    """Seconds of the processor a step: all of it, in the audit, and in writing the log."""
    import torch
    from transformers import PrinterCallback

    from tutelage.audits.live import LiveAudit
    from tutelage.study import engines
    from tutelage.study.cell import Bench, Job, build_trainer
    from tutelage.study.config import make_run, parse_arm
    from tutelage.study.workers import quiet
    from tutelage.trainers.rollout_log import RolloutLog

    quiet()
    torch.set_num_threads(1)
    bench = Bench(make_run(None, {}, []))
    model, tokenizer = engines.load_model(bench.run)
    arm = parse_arm("uniform")
    audited: list[float] = []
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "rollouts.jsonl"
        config = engines.make_config(bench.run, arm, seed=0, max_steps=steps, output_dir=Path(folder))
        trainer = build_trainer(bench, Job("uniform", arm, 0, ("updates", float(steps))), model, tokenizer, config)
        audit, writer = LiveAudit(log), RolloutLog(log)
        for name in ("on_step_end", "on_train_end", "on_log"):
            setattr(audit, name, timed(getattr(audit, name), audited))
        write = timed(writer, written)
        write.needs_attempts = True  # type: ignore[attr-defined]
        trainer.lesson_callbacks = (*trainer.lesson_callbacks, write)
        trainer.add_callback(audit)
        trainer.remove_callback(PrinterCallback)
        began = time.process_time()
        trainer.train()
        whole = time.process_time() - began
        looks = audit.watch.looks
    return {"step": whole / steps, "audit": sum(audited) / steps, "log": sum(written) / steps, "looks": looks}


def following(steps: int) -> dict[str, float]:
    """Seconds of the processor a step that the audit of a long run takes, without a trainer."""
    with tempfile.TemporaryDirectory() as folder:
        lines = write_log(Path(folder) / "whole.jsonl", seed=0, steps=steps, tasks=8, attempts=8, pool=500).read_bytes().splitlines(True)
        log = Path(folder) / "log.jsonl"
        watch, spent = Watch(log), 0.0
        with log.open("ab") as file:
            for start in range(0, len(lines), ROLLOUTS):
                file.write(b"".join(lines[start : start + ROLLOUTS]))
                file.flush()
                began = time.process_time()
                watch.read()
                if watch.due:
                    watch.look()
                spent += time.process_time() - began
    return {"audit": spent / steps, "looks": watch.looks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--long", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    short, long = training(given.steps), following(given.long)
    shares = {"short": short["audit"] / short["step"], "long": long["audit"] / short["step"]}
    if given.json:
        print(json.dumps({"training": short, "following": long, "shares": shares, "met": max(shares.values()) < TARGET}))
        return
    print(f"a step takes {1e3 * short['step']:.0f} ms of the processor, writing its log {1e3 * short['log']:.2f} ms")
    for name, steps, one in (("short", given.steps, short), ("long", given.long, long)):
        print(f"{steps:>6} steps: audit {1e3 * one['audit']:.2f} ms a step, {one['looks']:.0f} looks: {shares[name]:.2%} of a step")
    print(f"target of {TARGET:.0%} {'met' if max(shares.values()) < TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
