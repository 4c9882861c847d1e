"""Seconds per pair of a TPAW training step against plain `trl.DPOTrainer` with precomputed references.

    python benchmarks/tpaw_throughput.py [--turns 5] [--steps 20] [--json]

Both train the built-in student on the same pairs with the same settings, one thread, in one process, in turn (TRL, ours, TRL, ours, ...).
TPAW has three players, whose log-probabilities are columns of the data set; TRL has one reference, which it computes before training.
Target: the median of the paired ratios ours / TRL at most 1.1. The players' passes, which are made once and kept, are timed apart and
printed as seconds per pair and player beside a training step's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from typing import Any

import datasets
import numpy as np
import torch
import trl

from tutelage.objectives import objective
from tutelage.study import engines
from tutelage.study.cell import Bench
from tutelage.study.config import make_run
from tutelage.study.workers import quiet
from tutelage.teachers.replies import Replies, encode_reply, score_replies
from tutelage.trainers.dpo import with_objective

BATCH, PLAYERS = 16, 3


def made_pairs(bench: Bench, tokenizer: Any, size: int) -> list[dict[str, Any]]:
    """Demonstrations of the built-in tasks over those of the next task."""
    rows = bench.dataset("sft", tokenizer).select(range(size + 1)).to_list()
    pairs = [{"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]} for a, b in itertools.pairwise(rows)]
    return [pair for pair in pairs if pair["chosen"] != pair["rejected"]]


def scored(model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """The pairs with reference columns, each player a copy of the model, and the seconds per pair and player that they took."""
    sides = {}
    began = time.process_time()
    for side in ("chosen", "rejected"):
        ids = [encode_reply(tokenizer, pair["prompt"], pair[side]) for pair in pairs]
        replies = Replies([p for p, _ in ids], [r for _, r in ids])
        sides[f"ref_{side}_logp"] = np.stack([score_replies(model, replies, pad=tokenizer.pad_token_id) for _ in range(PLAYERS)], axis=1)
    seconds = (time.process_time() - began) / len(pairs) / PLAYERS
    return [{**pair, **{name: score[i].tolist() for name, score in sides.items()}} for i, pair in enumerate(pairs)], seconds


def measure(bench: Bench, pairs: list[dict[str, Any]], steps: int, *, ours: bool) -> dict[str, float]:
    """Seconds per pair of `steps` steps after a first one, which warms caches."""
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.at: list[tuple[float, float]] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.at.append((time.perf_counter(), time.process_time()))

    model, tokenizer = engines.load_model(bench.run)
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(
            output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=BATCH, save_strategy="no", report_to="none", bf16=False,
            disable_tqdm=True, gradient_checkpointing=False, use_cpu=True, precompute_ref_log_probs=True, logging_steps=1,
        )  # fmt: skip
        kind, extra = (with_objective(trl.DPOTrainer), {"objective": objective("tpaw")}) if ours else (trl.DPOTrainer, {})
        data = datasets.Dataset.from_list(pairs)
        trainer = kind(model=model, args=config, train_dataset=data, processing_class=tokenizer, **extra)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    wall, cpu = ((last - first) / steps / BATCH for first, last in zip(clock.at[0], clock.at[-1], strict=True))
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    quiet()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    bench = Bench(make_run(None, {}, []))
    model, tokenizer = engines.load_model(bench.run)
    pairs = made_pairs(bench, tokenizer, BATCH * (args.steps + 1))
    with_players, pass_seconds = scored(model, tokenizer, pairs)
    measure(bench, pairs, 2, ours=False)  # warm-up of both paths
    measure(bench, with_players, 2, ours=True)
    turns = []
    for _ in range(args.turns):
        turns.append((measure(bench, pairs, args.steps, ours=False), measure(bench, with_players, args.steps, ours=True)))
    ratios = {key: [ours[key] / theirs[key] for theirs, ours in turns] for key in ("wall", "cpu")}
    result = {
        "ratio_median": statistics.median(ratios["wall"]), "ratios": ratios["wall"],
        "cpu_ratio_median": statistics.median(ratios["cpu"]), "cpu_ratios": ratios["cpu"],
        "trl_seconds_per_pair": statistics.median(theirs["cpu"] for theirs, _ in turns),
        "seconds_per_pair": statistics.median(ours["cpu"] for _, ours in turns), "pass_seconds_per_pair_and_player": pass_seconds,
    }  # fmt: skip
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for what, key in (("seconds per pair, TPAW / TRL", "ratio"), ("the same in processor time", "cpu_ratio")):
        listed = ", ".join(f"{r:.3f}" for r in result[f"{key}s"])
        print(f"{what}: median {result[f'{key}_median']:.3f} of {listed} (target <= 1.1)")
    own = result["seconds_per_pair"]
    print(f"a training step takes {1e3 * own:.2f} ms per pair; a player's pass, made once and kept, {pass_seconds / own:.2f} of that")


if __name__ == "__main__":
    main()
