"""One cell of a comparison: one arm trained on one seed, to a budget, measured on held-out tasks on a schedule."""

from __future__ import annotations

import gc
import inspect
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.registry import curricula
from tutelage.study import engines
from tutelage.study.config import Arm, BudgetKind, Reward, Run
from tutelage.study.evaluate import HeldOut, Measured, evaluate, held_out
from tutelage.study.schema import without_nan
from tutelage.tasks.monitors import monitor
from tutelage.tasks.rewards import FormatIndependent, Shaping, SpanGate, VerifierReward, correct_only

HEAT_COLUMNS = 60
"""Lessons are binned into at most so many columns of the record of what was taught."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to run a cell: the run, the arm, the seed, the row it belongs to and the budget it gets."""

    row: str
    arm: Arm
    seed: int
    budget: tuple[BudgetKind, float]

    @property
    def name(self) -> str:
        return f"{self.row}--{self.seed}"

    @property
    def file_name(self) -> str:
        return safe_name(self.name)


def safe_name(text: str) -> str:
    """`text` as part of a path on any system."""
    return "".join(c if c.isalnum() or c in "._+@=-" else "_" for c in text)


class Bench:
    """What all cells of one run share within a process: tasks, held-out prompts, the starting accuracy."""

    def __init__(self, run: Run) -> None:
        from tutelage.tasks.loaders import load_tasks

        self.run = run
        columns: dict[str, Any] = {str(name): column for name, column in run.columns.items()}
        self.tasks = load_tasks(run.tasks, verifier=run.verifier, tasks_per_arm=run.tasks_per_arm, **columns)
        self._datasets: dict[str, Any] = {}
        self._start: Measured | None = None

    @property
    def arm_names(self) -> list[str]:
        return list(self.tasks.train.arms().names)

    @property
    def hardest(self) -> list[bool]:
        """The arms of the highest prior difficulty; all arms where the pool has none."""
        pool = self.tasks.heldout
        if pool.difficulty_N is None:
            return [True] * len(pool.arms())
        mean_A = np.bincount(pool.arms().arm_N, pool.difficulty_N) / pool.arms().size_A
        return [bool(v) for v in mean_A >= mean_A.max() - 1e-6]

    def held_out(self, tokenizer: Any, config: Any) -> HeldOut:
        length = getattr(config, "max_completion_length", None) or 64
        return held_out(self.tasks.heldout, self.tasks.verifier, tokenizer, self.run, length)

    def start(self, model: Any, tokenizer: Any, tasks: HeldOut) -> Measured:
        """Accuracy and diagnostics before training: the same for all cells, measured once per process."""
        if self._start is None:
            self._start = evaluate(model, tokenizer, tasks)
        return self._start

    def dataset(self, engine: str, tokenizer: Any) -> Any:
        """The training tasks as the engine wants them, "grpo" or "sft"; row i of the pool is row i of the data set."""
        if engine not in self._datasets:
            from tutelage.tasks.tables import to_dataset, with_answers

            dataset = to_dataset(self.tasks.train, tokenizer if self.run.chat else None, template=self.run.template)
            self._datasets[engine] = with_answers(dataset, self.run.imitate) if engine == "sft" else dataset
        return self._datasets[engine]


def build_trainer(bench: Bench, job: Job, model: Any, tokenizer: Any, config: Any, *, lesson_callbacks: tuple = ()) -> Any:
    """TRL's trainer with this arm's curriculum, reward, teacher and objective."""
    import trl

    from tutelage.registry import objectives, teachers
    from tutelage.trainers.trl import with_curriculum

    run, arm, engine = bench.run, job.arm, engines.engine_of(bench.run, job.arm)
    part = curricula.get(arm.curriculum)
    parameters = dict(arm.parameters)
    if "steps" in inspect.signature(part.target).parameters:
        parameters.setdefault("steps", run.steps)
    if "draws" in inspect.signature(part.target).parameters:
        parameters.setdefault("draws", engines.draws_of(run, arm, job.budget))
    shared = {
        "model": model,
        "args": config,
        "train_dataset": bench.dataset(engine, tokenizer),
        "processing_class": tokenizer,
        "curriculum": part.target(bench.tasks.train, seed=job.seed, **part.check(parameters)),
        "peft_config": lora_config(run),
        "lesson_callbacks": lesson_callbacks,
    }
    if arm.objective:
        shared["objective"] = objectives.build(arm.objective, **arm.objective_parameters)
    if arm.teacher:
        shared["teacher"] = teachers.build(arm.teacher, **arm.teacher_parameters)
    if engine == "sft":
        return with_curriculum(trl.SFTTrainer)(**shared)
    if arm.objective and any(column.startswith("demonstrations/") for column in shared["objective"].requires):
        shared["demonstrations"] = bench.dataset("sft", tokenizer)
    reward = VerifierReward(bench.tasks.verifier, format_reward=run.format_reward, shaping=_shaping(run.reward))
    return with_curriculum(trl.GRPOTrainer)(reward_funcs=reward, refill_cap=arm.refill_cap, on_short=arm.on_short, **shared)


def _shaping(reward: Reward) -> Shaping | None:
    if reward.mode == "format_independent":
        names = ("correct", "correct_unformatted", "wrong", "wrong_unformatted")
        return FormatIndependent(**dict(zip(names, reward.values, strict=True)), formatted=reward.formatted)
    if reward.mode == "span_gate":
        assert reward.behaviour is not None
        return SpanGate(monitor(reward.behaviour))
    return correct_only if reward.mode == "correct_only" else None


def lora_config(run: Run) -> Any:
    """`peft.LoraConfig` of a run; None for full training."""
    if run.lora is None:
        return None
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **run.lora})
    except TypeError as error:
        raise TutelageError(f"peft.LoraConfig refuses the settings under `lora`: {error}.") from None


class Observer:
    """Watches one training run: stops it at its budget, evaluates on schedule, and keeps the curves. Seconds exclude evaluation."""

    def __init__(self, job: Job, arms: int, points: int, tell: Callable[[dict[str, Any]], None], measure: Callable[[], Measured]) -> None:
        self.job, self.tell, self.measure = job, tell, measure
        self.arms = arms
        self.marks = [job.budget[1] * (i + 1) / points for i in range(points)]
        self.curve: dict[str, list[Any]] = {k: [] for k in ("step", "rollouts", "tokens", "seconds", "accuracy", "by_arm", "diagnostics")}
        self.train: dict[str, list[Any]] = {k: [] for k in ("step", "reward", "solved", "length")}
        self.taught_step: list[int] = []  # the end of each optimiser step that taught something
        self.taught_LA: list[np.ndarray] = []
        self.evaluation_seconds = 0.0
        self.before = 0.0  # seconds of earlier, interrupted attempts at this cell
        self.started = time.perf_counter()
        self.trainer: Any = None

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started - self.evaluation_seconds

    def used(self) -> float:
        """How much of the budget's kind has been used."""
        return self.seconds if self.job.budget[0] == "seconds" else float(getattr(self.trainer.ledger, self.job.budget[0]))

    def lesson(self, lesson: Any) -> None:
        """Keep what a lesson showed, and the arms it taught: of the groups admitted, or of all where none was and the batch is padded."""
        outcomes, admitted_N = lesson.outcomes, lesson.admitted_N
        taught_N = outcomes.arm_N[admitted_N] if admitted_N.any() else outcomes.arm_N
        count_A = np.bincount(taught_N, minlength=self.arms).astype(np.float64)
        if self.taught_step and self.taught_step[-1] == lesson.step + 1:  # a further round of the same batch
            self.taught_LA[-1] += count_A
        else:
            self.taught_step.append(int(lesson.step) + 1)
            self.taught_LA.append(count_A)
        self.train["step"].append(int(lesson.step) + 1)
        for key, value in (("reward", outcomes.reward_NG), ("solved", outcomes.solved_NG), ("length", outcomes.length_NG)):
            known = value is not None and not np.isnan(value).all()
            self.train[key].append(float(np.nanmean(value)) if known else math.nan)

    def measured(self, found: Measured, step: int) -> None:
        ledger = self.trainer.ledger
        self.curve["step"].append(step)
        self.curve["rollouts"].append(ledger.rollouts)
        self.curve["tokens"].append(ledger.tokens)
        self.curve["seconds"].append(round(self.seconds, 3))
        self.curve["accuracy"].append(float(np.mean(found.by_arm)))
        self.curve["by_arm"].append([round(v, 6) for v in found.by_arm])
        self.curve["diagnostics"].append(found.diagnostics)

    def step_end(self, step: int) -> bool:
        """After an optimiser step: evaluate where a mark is passed; True when the budget is used up."""
        used = self.used()
        if self.marks and used >= self.marks[0] - 1e-9:
            self.marks = [m for m in self.marks if m > used + 1e-9]
            began = time.perf_counter()
            found = self.measure()
            self.evaluation_seconds += time.perf_counter() - began
            self.measured(found, step)
        last = self.train["reward"][-1] if self.train["reward"] else math.nan
        self.tell({"step": step, "share": min(used / self.job.budget[1], 1.0), "reward": last, "accuracy": self.curve["accuracy"][-1]})
        return used >= self.job.budget[1] - 1e-9

    def state(self) -> dict[str, Any]:
        return {
            "curve": self.curve, "train": self.train, "taught": [v.tolist() for v in self.taught_LA], "taught_step": self.taught_step,
            "evaluation_seconds": self.evaluation_seconds, "seconds": self.seconds, "marks": self.marks,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.curve, self.train, self.marks = state["curve"], state["train"], state["marks"]
        self.taught_LA, self.taught_step = [np.asarray(v) for v in state["taught"]], state["taught_step"]
        self.evaluation_seconds = state["evaluation_seconds"]
        self.before = state["seconds"] + self.evaluation_seconds


def _callback(observer: Observer) -> Any:
    """The engine's callback that drives an observer, and keeps its state beside each checkpoint."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if observer.step_end(state.global_step):
                control.should_training_stop = True
            if control.should_save:
                path = Path(args.output_dir) / f"observer-{state.global_step}.json"
                atomic_write(path, json.dumps(without_nan(observer.state())))
            return control

    return Watch()


def run_cell(bench: Bench, job: Job, folder: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train one cell and return its record; `tell` hears of every step. A run with checkpoints in `folder` goes on from the newest."""
    if engines.engine_of(bench.run, job.arm) == "self_play":
        from tutelage.study.rounds import run_rounds

        return run_rounds(bench, job, folder, tell)
    trainer, observer = train_cell(bench, job, folder, tell)
    record = record_of(bench, job, trainer, observer)
    del trainer, observer
    gc.collect()
    if not any(folder.iterdir()):
        folder.rmdir()
    return record


def record_of(bench: Bench, job: Job, trainer: Any, observer: Observer) -> dict[str, Any]:
    """What is kept of a trained cell: curves, what was taught, and totals."""
    totals = {
        **asdict(trainer.ledger), "seconds": round(observer.seconds, 3), "evaluation_seconds": round(observer.evaluation_seconds, 3),
        "curriculum_seconds": round(getattr(trainer, "curriculum_seconds", math.nan), 4), "budget": list(job.budget),
    }  # fmt: skip
    return without_nan({
        "row": job.row, "seed": job.seed, "tasks": {"arm_names": bench.arm_names, "hardest": bench.hardest},
        "curve": observer.curve, "taught": _binned(observer.taught_LA, observer.taught_step), "train": observer.train, "totals": totals,
    })  # fmt: skip


def train_cell(bench: Bench, job: Job, folder: Path, tell: Callable[[dict[str, Any]], None]) -> tuple[Any, Observer]:
    """The trained trainer and what was observed."""
    from transformers import PrinterCallback

    model, tokenizer = engines.load_model(bench.run)
    kind, amount = job.budget
    _, rollouts_per_step = engines.plain_step(bench.run, job.arm)
    enough = {"updates": amount, "rollouts": amount / rollouts_per_step}.get(kind, 1e6)
    folder.mkdir(parents=True, exist_ok=True)
    config = engines.make_config(bench.run, job.arm, seed=bench.run.seed + job.seed, max_steps=math.ceil(enough), output_dir=folder)
    tasks = bench.held_out(tokenizer, config)
    start = bench.start(model, tokenizer, tasks)

    def measure() -> Measured:
        return evaluate(trainer.model, tokenizer, tasks)

    observer = Observer(job, len(bench.arm_names), bench.run.evaluation.points, tell, measure)
    trainer = build_trainer(bench, job, model, tokenizer, config, lesson_callbacks=(observer.lesson,))
    trainer.add_callback(_callback(observer))
    trainer.remove_callback(PrinterCallback)
    observer.trainer = trainer
    resume = _resumable(folder)
    if resume is not None:
        observer.restore(json.loads((folder / f"observer-{resume.name.split('-')[-1]}.json").read_text()))
    else:
        observer.measured(start, 0)
    observer.started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer, observer


def _resumable(folder: Path) -> Path | None:
    """The newest complete checkpoint whose observations stand beside it."""
    if not any(folder.glob("checkpoint-*")):
        return None
    from tutelage.trainers.trl import complete_checkpoints

    found = [c for c in complete_checkpoints(folder) if (folder / f"observer-{c.name.split('-')[-1]}.json").exists()]
    return found[-1] if found else None


def _binned(taught_LA: list[np.ndarray], steps: list[int]) -> dict[str, Any]:
    """Shares of the arms among the tasks taught, in at most `HEAT_COLUMNS` bins of lessons."""
    bins = np.array_split(np.arange(len(taught_LA)), min(HEAT_COLUMNS, max(len(taught_LA), 1)))
    bins = [b for b in bins if len(b)]
    counts = [np.sum([taught_LA[i] for i in b], axis=0) for b in bins]
    return {
        "step": [int(steps[b[-1]]) for b in bins],
        "share": [[round(float(v), 5) for v in c / max(c.sum(), 1)] for c in counts],
    }
