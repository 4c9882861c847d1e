"""One cell of self-play: rounds against a team of past checkpoints, and the supervised control that is trained beside it.

Both are measured after every round on the same held-out tasks as any other arm; the control's record comes with the cell's, as "control".
Rollouts are the opponents' samples, one per demonstration and round.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.study import engines
from tutelage.study.cell import Bench, Job, lora_config
from tutelage.study.evaluate import HeldOut, evaluate
from tutelage.study.schema import without_nan

ARMS = ("self_play", "control")
MEASURED = "measured.json"


def run_rounds(bench: Bench, job: Job, folder: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train one cell by self-play and return its record; what an interrupted process left in `folder` is taken up, and then removed."""
    record, _, _ = train_rounds(bench, job, folder, tell)
    shutil.rmtree(folder)
    return record


def train_rounds(bench: Bench, job: Job, folder: Path, tell: Callable[[dict[str, Any]], None]) -> tuple[dict[str, Any], Any, Any]:
    """The record of a cell, the trained model and its tokenizer.

    Raises:
        TutelageError: a budget in other units than updates, or one that the rounds do not divide.
    """
    from tutelage.registry import objectives
    from tutelage.trainers.self_play import TEAMS, self_play

    run, arm = bench.run, job.arm
    steps = _steps(job)
    model, tokenizer = engines.load_model(run)
    if (lora := lora_config(run)) is not None:
        import peft

        model = peft.get_peft_model(model, lora)
    tasks = bench.held_out(tokenizer, None)
    watch = _Watch(job, tasks, steps, folder, tell)
    watch.begin(bench.start(model, tokenizer, tasks))
    settings = {k: v for k, v in engines.settings_of(run, arm).items() if k not in ("max_length", "bf16", "use_cpu")}
    supervised = engines.BUILTIN_SETTINGS["sft"] if run.model == "builtin" else {}
    team, opponents = TEAMS[str(arm.objective)]
    played = self_play(
        model,
        tokenizer,
        bench.dataset("sft", tokenizer),
        objectives.build(str(arm.objective), **arm.objective_parameters),
        out=folder,
        rounds=arm.rounds,
        steps=steps,
        team=team,
        opponents=opponents,
        seed=run.seed + job.seed,
        max_new_tokens=tasks.max_new_tokens,
        settings=settings,
        control_settings={k: v for k, v in supervised.items() if k == "learning_rate"},
        after_round=(watch.after_round,),
    )
    records = {name: watch.record(name, bench, played.rounds) for name in ARMS}
    return {**records["self_play"], "warnings": played.warnings, "control": records["control"]}, model, tokenizer


def _steps(job: Job) -> int:
    kind, amount = job.budget
    if kind != "updates":
        raise TutelageError(f"Self-play is budgeted in updates, not {kind}: give --budget 120updates, or --steps 120.")
    if amount % job.arm.rounds:
        raise TutelageError(
            f"{amount:g} updates do not fall into {job.arm.rounds} equal rounds of self-play; give a multiple, or another number of rounds."
        )
    return int(amount) // job.arm.rounds


class _Watch:
    """Measures the arms after every round, and keeps what it measured beside the run's own files: a resumed run measures nothing twice."""

    def __init__(self, job: Job, tasks: HeldOut, steps: int, folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        self.job, self.tasks, self.steps, self.folder, self.tell = job, tasks, steps, folder, tell
        self.path = folder / MEASURED
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.started, self.evaluating = time.perf_counter(), 0.0

    def begin(self, start: Any) -> None:
        for arm in ARMS:
            self.found[f"{arm} 0"] = {"by_arm": start.by_arm, "diagnostics": start.diagnostics, "seconds": 0.0}

    def after_round(self, moment: Any) -> dict[str, float]:
        from tutelage.files import atomic_write

        key = f"{moment.arm} {moment.round}"
        if key not in self.found:
            began = time.perf_counter()
            measured = evaluate(moment.model, moment.tokenizer, self.tasks)
            self.evaluating += time.perf_counter() - began
            seconds = time.perf_counter() - self.started - self.evaluating
            self.found[key] = {"by_arm": measured.by_arm, "diagnostics": measured.diagnostics, "seconds": seconds}
            atomic_write(self.path, json.dumps(without_nan(self.found)))
        accuracy = _mean(self.found[key]["by_arm"])
        share = (moment.round + (moment.arm == "control")) / (self.job.arm.rounds + 1)
        self.tell({"step": moment.round * self.steps, "share": min(share, 1.0), "reward": math.nan, "accuracy": accuracy})
        return {"accuracy": accuracy}

    def record(self, arm: str, bench: Bench, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        """What is kept of one of the two arms. Its seconds are those of the whole cell up to its measurement."""
        found = [self.found[f"{arm} {t}"] for t in range(len(rounds))]
        ledgers = [report[arm]["ledger"] for report in rounds]
        curve = {
            "step": [t * self.steps for t in range(len(rounds))],
            "rollouts": [ledger["rollouts"] for ledger in ledgers],
            "tokens": [ledger["tokens"] for ledger in ledgers],
            "seconds": [round(f["seconds"], 3) for f in found],
            "accuracy": [_mean(f["by_arm"]) for f in found],
            "by_arm": [[round(v, 6) for v in f["by_arm"]] for f in found],
            "diagnostics": [f["diagnostics"] for f in found],
        }
        totals = {**ledgers[-1], "seconds": curve["seconds"][-1], "evaluation_seconds": round(self.evaluating, 3),
                  "curriculum_seconds": math.nan, "budget": list(self.job.budget)}  # fmt: skip
        return without_nan({
            "row": self.job.row, "seed": self.job.seed, "tasks": {"arm_names": bench.arm_names, "hardest": bench.hardest},
            "curve": curve, "taught": {"step": [], "share": []}, "train": {"step": [], "reward": [], "solved": [], "length": []},
            "drift": [report[arm]["target_drift"] for report in rounds], "totals": totals,
        })  # fmt: skip


def _mean(values: list[float]) -> float:
    return float(sum(values) / max(len(values), 1))
