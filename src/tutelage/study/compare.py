"""`tutelage compare`: arms x seeds, each from the same start to the same budget, judged against uniform sampling.

Cells are kept one file each and never run twice. An arm that filters, or measures tasks beside its lessons, is told about three times: at
equal rollouts (the budget), at equal updates, and beside uniform sampling that is given the rollouts it used: in many settings the plain
sampler with the filter's rollouts wins, and nobody should learn that after the fact. An arm of self-play stands beside supervised training
on the same demonstrations for as many steps.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.machine import default_jobs
from tutelage.registry import curricula, teachers
from tutelage.study import engines, league
from tutelage.study.cell import Job, safe_name
from tutelage.study.config import Arm, BudgetKind, Run, parse_arm
from tutelage.study.provenance import machine, versions
from tutelage.study.schema import Cell, League, RowKind, progress_axis_of, without_nan
from tutelage.study.stats import seeds_needed
from tutelage.study.store import digest, finished_cell, occupy
from tutelage.study.workers import run_all

DEFAULT_ARMS = ("uniform", "sec:tau=0.2", "dump")
"""Uniform sampling and the two published bandits. SEC with the temperature that its paper uses for arms of a product (family x level)."""


@dataclass
class Plan:
    """One row of the table to be: an arm, a budget, or a row whose rollouts become its budget."""

    name: str
    arm: Arm
    kind: RowKind
    note: str = ""
    budget: tuple[BudgetKind, float] | None = None
    after: str | None = None  # the row whose rollouts, seed by seed, are this row's budget
    beside: str | None = None  # the row whose cells bring this row's with them


@dataclass
class Comparison:
    """A resolved comparison: what will run, where, and what is known already."""

    run: Run
    plans: list[Plan]
    seeds: list[int]
    budget: tuple[BudgetKind, float]
    out: Path
    records: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    started: set[tuple[str, int]] = field(default_factory=set)

    @property
    def cells(self) -> int:
        return len(self.plans) * len(self.seeds)

    # What `workers.Schedule` asks for

    def next_job(self) -> Job | None:
        for seed in self.seeds:
            for plan in self.plans:
                key = (plan.name, seed)
                if key in self.records or key in self.started or plan.beside:
                    continue
                budget = self._budget(plan, seed)
                if budget is not None:
                    self.started.add(key)
                    return Job(plan.name, plan.arm, seed, budget)
        return None

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        control = record.pop("control", None)
        for plan in self.plans:
            if plan.beside == job.row:
                self._keep(replace(job, row=plan.name), control)
        self._keep(job, record)

    def _keep(self, job: Job, record: dict[str, Any]) -> None:
        record = {**record, "row": job.row, "identity": self._identity(job)}
        atomic_write(self.out / "cells" / f"{job.file_name}.json", json.dumps(record))
        self.records[(job.row, job.seed)] = record
        self.started.discard((job.row, job.seed))

    def _budget(self, plan: Plan, seed: int) -> tuple[BudgetKind, float] | None:
        if plan.after is None:
            return plan.budget
        before = self.records.get((plan.after, seed))
        return None if before is None else ("rollouts", float(before["totals"]["rollouts"]))

    def _identity(self, job: Job) -> str:
        return digest({"run": shared(self.run), "arm": job.arm.model_dump(mode="json"), "seed": job.seed, "budget": list(job.budget)})

    def load_finished(self) -> int:
        """Read the cells that an earlier command finished; a cell of another configuration is an error."""
        waiting = True
        while waiting:  # rows that depend on others become known one after the other
            waiting = False
            for plan in self.plans:
                for seed in self.seeds:
                    waiting |= self._load(plan, seed)
        return len(self.records)

    def _load(self, plan: Plan, seed: int) -> bool:
        budget = self._budget(plan, seed)
        if (plan.name, seed) in self.records or budget is None:
            return False
        job = Job(plan.name, plan.arm, seed, budget)
        path = self.out / "cells" / f"{job.file_name}.json"
        record = finished_cell(path, self._identity(job), plan.name)
        if record is None:
            return False
        self.records[(plan.name, seed)] = record
        return True


def plan(run: Run, *, out: Path | None = None) -> Comparison:
    """Resolve a run into rows, seeds and a budget; checks every name and setting, trains nothing."""
    arms = list(run.arms) or [parse_arm(text) for text in DEFAULT_ARMS]
    if all(arm.name != run.baseline for arm in arms):
        arms.insert(0, parse_arm(run.baseline))
    engines.check_settings(run, arms)
    base = next(arm for arm in arms if arm.name == run.baseline)
    _, per_step = engines.plain_step(run, base)
    budget = engines.budget_of(run, per_step, supervised=any(engines.supervised(run, arm) for arm in arms))
    engines.check_budget(run, arms, budget)
    plans = [row for arm in sorted(arms, key=lambda a: a.name != run.baseline) for row in _rows(arm, run, base, budget, per_step)]
    comparisons = sum(p.kind != "baseline" for p in plans) + sum(p.kind == "control" for p in plans)
    count = run.seeds if run.seeds is not None else seeds_needed(max(comparisons, 1))
    run = run.model_copy(update={"arms": arms})
    return Comparison(run, plans, list(range(count)), budget, out or default_out(run))


def _rows(arm: Arm, run: Run, base: Arm, budget: tuple[BudgetKind, float], per_step: int) -> list[Plan]:
    if arm.name == run.baseline:
        return [Plan(arm.name, arm, "baseline", budget=budget)]
    main = Plan(arm.name, arm, "method", budget=budget)
    if engines.engine_of(run, arm) == "self_play":
        note = f"supervised, as long as {arm.name}"
        return [main, Plan(f"sft@{arm.name}", arm, "control", note=note, budget=budget, beside=arm.name)]
    if not _spends_more(arm):
        return [main]
    control_name = f"{base.name}@{arm.name}"
    if budget[0] == "updates":
        return [main, Plan(control_name, base, "control", note=f"given {arm.name}'s rollouts", after=arm.name)]
    steps = budget[1] / per_step if budget[0] == "rollouts" else run.steps
    equal = Plan(f"{arm.name}@updates", arm, "equal-updates", note="at equal updates", budget=("updates", float(round(steps))))
    return [main, equal, Plan(control_name, base, "control", note=f"given {arm.name}'s rollouts", after=equal.name)]


def _spends_more(arm: Arm) -> bool:
    """Whether an update can take more rollouts than the plain one: groups are rejected, tasks measured beside the lessons, or helped."""
    from tutelage.curricula._base import Curriculum

    if arm.teacher is not None and hasattr(teachers.get(arm.teacher).target, "intervene"):
        return True

    target = curricula.get(arm.curriculum).target
    if not (isinstance(target, type) and issubclass(target, Curriculum)):
        return False
    return target.admit is not Curriculum.admit or target.probes_per_draw(**arm.parameters) > 0


def shared(run: Run) -> dict[str, Any]:
    """What makes two comparisons the same for their cells: all but arms, seeds, target and the words around them."""
    values = run.model_dump(mode="json", exclude={"arms", "seeds", "target", "baseline", "budget"})
    return values | {"model_files": _fingerprint(run.model), "task_files": [_fingerprint(t) for t in run.tasks]}


def _fingerprint(name: str) -> str:
    """A cheap identity of a file or directory: names, sizes and times; empty for hub names and built-ins."""
    path = Path(name)
    if not path.exists():
        return ""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return digest([(p.name, p.stat().st_size, int(p.stat().st_mtime)) for p in files])


def default_out(run: Run) -> Path:
    """runs/<model>-<tasks>-<hash>: the same command comes back to the same directory."""
    label = "-".join(safe_name(Path(name).stem) for name in (run.model, run.tasks[0]))
    return Path("runs") / f"{label}-{digest(shared(run))[:6]}"


def resolved(comparison: Comparison) -> dict[str, Any]:
    """The configuration as it is written to OUT/config.json and printed by --dry-run."""
    run = comparison.run
    return {
        **run.model_dump(mode="json"),
        "budget": {"kind": comparison.budget[0], "amount": comparison.budget[1]},
        "seeds": len(comparison.seeds),
        "rows": [{"name": p.name, "kind": p.kind, "note": p.note, "settings": engines.settings_of(run, p.arm)} for p in comparison.plans],
        "cells": comparison.cells,
        "out": str(comparison.out),
    }


def claim(comparison: Comparison) -> None:
    """Make OUT this comparison's: refuse a directory of another configuration or of something else; write config.json."""
    occupy(comparison.out, shared(comparison.run), resolved(comparison))


def stored_run(out: Path | None) -> dict[str, Any]:
    """The run whose comparison stands in `out`, for --resume."""
    if out is None or not (out / "config.json").exists():
        raise TutelageError(f"--resume needs --out with the directory of a comparison; {out or 'none'} holds no config.json.")
    stored = json.loads((out / "config.json").read_text())
    values = {k: v for k, v in stored.items() if k in Run.model_fields}
    values["budget"] = f"{stored['budget']['amount']:g}{stored['budget']['kind']}"
    return values


def run_comparison(
    comparison: Comparison, *, jobs: int | None = None, command: str = "", tell: Callable[[str, Any], None] = lambda kind, payload: None
) -> League:
    """Run what is missing, then write league.json, report.html and the figures to OUT; returns the league."""
    from tutelage.study.report import write_report

    claim(comparison)
    comparison.load_finished()
    missing = comparison.cells - len(comparison.records)
    tell("plan", comparison)
    if missing:
        run_all(comparison.run, comparison, comparison.out / "work", jobs=min(jobs or default_jobs(), missing), tell=tell)
    result = make_league(comparison, command)
    atomic_write(comparison.out / "league.json", json.dumps(without_nan(result)))
    write_report(without_nan(result), comparison.out)
    return result


def make_league(comparison: Comparison, command: str) -> League:
    """The table and everything behind it."""
    run = comparison.run
    records = {p.name: [comparison.records[(p.name, s)] for s in comparison.seeds] for p in comparison.plans}
    by_row = cast("dict[str, list[Cell]]", records)
    base = by_row[run.baseline]
    labels = {p.name: "sft" if p.beside else p.arm.name for p in comparison.plans}
    names = {p.name: f"{labels[p.name]} ({p.note})" if p.note else labels[p.name] for p in comparison.plans}
    pairs = {other: p.name for p in comparison.plans if (other := p.after or p.beside)}
    judged = league.judge_rows(by_row, names, run.baseline, pairs)
    target = run.target or league.choose_target(base)
    axis = progress_axis_of([cell for cells in by_row.values() for cell in cells])
    until = comparison.budget[1] if comparison.budget[0] == axis else float(league.mean_curve(base, axis)[0][-1])
    tasks = records[run.baseline][0]["tasks"]
    rows = [
        league.make_row(
            p.name, labels[p.name], p.note, p.kind, by_row[p.name], base, arm_names=tasks["arm_names"],
            hardest_A=np.array(tasks["hardest"]), axis=axis, until=until, target=target, judgement=judged.get(p.name),
        )
        for p in comparison.plans
    ]  # fmt: skip
    drop = ("identity", "tasks")
    result: dict[str, Any] = {
        "title": _title(run), "command": command, "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "budget": {"kind": comparison.budget[0], "amount": comparison.budget[1], "steps": int(max(c["totals"]["updates"] for c in base))},
        "baseline": run.baseline, "seeds": comparison.seeds, "arm_names": tasks["arm_names"],
        "metric": "held-out accuracy", "target": target,
        "rows": rows, "cells": [{k: v for k, v in c.items() if k not in drop} for cells in records.values() for c in cells],
        "config": resolved(comparison), "versions": versions(), "machine": machine(),
        "notes": [judged[f"{row} : {other}"].sentence for row, other in pairs.items()] + _drifts(records, names),
    }  # fmt: skip
    return cast(League, result)


def _drifts(records: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> list[str]:
    """Of self-play, which its loss does not show: how far the log-probability of what it imitates has moved."""
    notes = []
    for row, cells in records.items():
        if cells and "drift" in cells[0]:
            drift = float(np.mean([cell["drift"][-1] for cell in cells]))
            worry = ", that is, away from what it should imitate" if drift < 0 else ""
            notes.append(f"{names[row]}: the demonstrations' log-probability moved by {drift:+.3g} nats a reply{worry}")
    return notes


def _title(run: Run) -> str:
    model = "the built-in student" if run.model == "builtin" else Path(run.model).name
    tasks = "built-in tasks" if run.tasks in (["builtin"], ["quick"]) else ", ".join(Path(t).name for t in run.tasks)
    return f"Teaching {model} {tasks}"
