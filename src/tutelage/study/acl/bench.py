"""`tutelage compare --suite`: teachers x challenge profiles x expert knowledge x seeds, judged against random tasks.

A *row* is a teacher with what an expert tells it; levels at which it is told the same are one row, so nothing is run twice. A *cell* is a
row in one profile on one seed: the same student for every row, hence paired. Finished cells are kept one file each and never run again.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_write
from tutelage.machine import default_jobs
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace
from tutelage.study.acl import profiles
from tutelage.study.acl.profiles import BASELINE, LEVELS, KeepingRoom, Lessons, Level, Room, Suite, Tell
from tutelage.study.acl.traces import proposed, write_trace
from tutelage.study.cell import safe_name
from tutelage.study.config import Strict, parse_part, parse_value, validate
from tutelage.study.provenance import machine, versions
from tutelage.study.schema import without_nan
from tutelage.study.stats import seeds_needed
from tutelage.study.store import digest, finished_cell, occupy
from tutelage.study.workers import Work, run_all

PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "gymnasium", "stable-baselines3")


class Teacher(Strict):
    """A teacher as an arm: a registered curriculum over spaces and hyperparameters, over the suite's and the expert's."""

    name: str
    curriculum: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Bench(Strict):
    """The configuration of a benchmark.

    teachers: none given, those of the source that are registered. knowledge, profiles: which of them; all. seeds: how many, from 0; None,
    the least that can reach a verdict. sizes: of the suite, under its own names.
    """

    suite: str = "acl"
    teachers: list[Teacher] = Field(default_factory=list)
    knowledge: list[Level] = Field(default_factory=lambda: list(LEVELS))
    profiles: list[str] = Field(default_factory=list)
    seeds: int | None = Field(None, ge=1)
    sizes: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table: a teacher, the hyperparameters that an expert sets, and the levels at which that is so."""

    teacher: Teacher
    told: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        return f"{self.teacher.name}@{self.levels[0]}"


@dataclass(frozen=True)
class Job:
    """One cell."""

    line: Row
    profile: str
    seed: int

    @property
    def row(self) -> str:
        """What the display says."""
        return f"{self.line.name}, {self.profile}"

    @property
    def name(self) -> str:
        return f"{self.line.name}--{self.profile}--{self.seed}"

    @property
    def file_name(self) -> str:
        return safe_name(self.name)


@dataclass
class Benchmark:
    """A resolved benchmark: what will run, where, and what is known already. It is the workers' schedule."""

    bench: Bench
    suite: Suite
    sizes: Any
    plans: list[Row]
    seeds: list[int]
    out: Path
    records: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    todo: list[Job] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        """All cells, seed by seed."""
        return [Job(row, profile, seed) for seed in self.seeds for profile in self.bench.profiles for row in self.plans]

    @property
    def cells(self) -> int:
        return len(self.plans) * len(self.bench.profiles) * len(self.seeds)

    def next_job(self) -> Job | None:
        return self.todo.pop(0) if self.todo else None

    def finished(self, job: Job, record: dict[str, Any]) -> None:
        record = {**record, "identity": self.identity(job)}
        atomic_write(self.out / "cells" / f"{job.file_name}.json", json.dumps(without_nan(record)))
        self.records[job.line.name, job.profile, job.seed] = record

    def identity(self, job: Job) -> str:
        told = {"teacher": job.line.teacher.model_dump(mode="json"), "told": job.line.told, "profile": job.profile, "seed": job.seed}
        return digest({**shared(self.bench, self.suite, self.sizes), **told})

    def load_finished(self) -> None:
        """Read the cells that an earlier command finished, and queue the others."""
        self.todo = []
        for job in self.jobs:
            record = finished_cell(self.out / "cells" / f"{job.file_name}.json", self.identity(job), job.line.name)
            if record is None:
                self.todo.append(job)
            else:
                self.records[job.line.name, job.profile, job.seed] = record


def parse_teacher(text: str) -> Teacher:
    """A teacher as typed: a name, or `name:key=value,key=value`; its parameters are checked at once."""
    name, parameters = parse_part(text)
    part = curricula.get(name)
    if not (isinstance(part.target, type) and issubclass(part.target, SpaceCurriculum)):
        raise TutelageError(
            f"{text}: the curriculum {name!r} teaches the tasks of a pool, and the students of a suite learn points of a space. Choose one "
            f"of {', '.join(profiles.registered())} and the like."
        )
    return Teacher(name=text, curriculum=name, parameters=part.check(parameters))


def make_bench(suite: str, teachers: list[str], sets: list[str], seeds: int | None) -> Bench:
    """The benchmark that the command line describes. `sets`: "key=value", a field of `Bench` or of the suite's sizes."""
    values: dict[str, Any] = {"suite": suite, "teachers": [parse_teacher(text) for text in teachers], "seeds": seeds}
    sizes: dict[str, Any] = {}
    for pair in sets:
        key, equals, text = pair.partition("=")
        if not equals:
            raise TutelageError(f"Cannot read --set {pair!r}; write --set key=value.")
        if key in ("knowledge", "profiles"):
            values[key] = [part.strip() for part in text.strip("[] ").split(",")]
        else:
            sizes[key] = parse_value(text)
    return validate(Bench, {**values, "sizes": sizes}, "The command line")


def plan(bench: Bench, *, out: Path | None = None) -> Benchmark:
    """Resolve a benchmark into rows, profiles and seeds; checks every name and setting, trains nothing."""
    suite = profiles.suite(bench.suite)
    sizes = validate(suite.sizes, bench.sizes, f"--set of the suite {bench.suite!r}")
    chosen = bench.profiles or list(suite.profiles)
    for profile in chosen:
        if profile not in suite.profiles:
            raise unknown(f"profile of the suite {bench.suite!r}", profile, suite.profiles)
    teachers = list(bench.teachers) or [parse_teacher(name) for name in profiles.registered()]
    if all(teacher.name != BASELINE for teacher in teachers):
        teachers.insert(0, parse_teacher(BASELINE))
    names = [teacher.name for teacher in teachers]
    if len(set(names)) < len(names):
        raise TutelageError(f"A teacher is named twice among {', '.join(names)}; leave one out, or give it other settings.")
    teachers.sort(key=lambda teacher: teacher.name != BASELINE)
    rows = [row for teacher in teachers for row in rows_of(teacher, bench.knowledge)]
    count = bench.seeds or seeds_needed(max(1, (len(rows) - 1) * len(chosen)))
    bench = bench.model_copy(update={"teachers": teachers, "profiles": chosen, "sizes": sizes.model_dump(mode="json")})
    default = Path("runs") / f"{bench.suite}-{digest(shared(bench, suite, sizes))[:6]}"
    return Benchmark(bench, suite, sizes, rows, list(range(count)), out or default)


def rows_of(teacher: Teacher, levels: list[Level]) -> list[Row]:
    """A teacher's rows: one for each different thing that it is told at these levels."""
    by_told: dict[tuple[str, ...], list[Level]] = {}
    for level in LEVELS:
        told = profiles.facts(teacher.curriculum, level)
        if level in levels and told is not None:
            by_told.setdefault(told, []).append(level)
    return [Row(teacher, told, tuple(at)) for told, at in by_told.items()]


def shared(bench: Bench, suite: Suite, sizes: Any) -> dict[str, Any]:
    """What makes two benchmarks the same for their cells."""
    return {"suite": bench.suite, "sizes": sizes.model_dump(mode="json"), "tuned": {k: dict(v) for k, v in suite.tuned.items()}}


def resolved(benchmark: Benchmark) -> dict[str, Any]:
    """The configuration as it is written to OUT/config.json and printed by --dry-run."""
    rows = [
        {
            "name": row.name, "levels": list(row.levels), "told": list(row.told),
            "settings": {**benchmark.suite.tuned.get(row.teacher.curriculum, {}), **row.teacher.parameters},
        }
        for row in benchmark.plans
    ]  # fmt: skip
    return {
        **benchmark.bench.model_dump(mode="json"), "seeds": len(benchmark.seeds), "rows": rows, "cells": benchmark.cells,
        "out": str(benchmark.out),
    }  # fmt: skip


def learn(suite: Suite, row: Row, profile: str, seed: int, sizes: Any, tell: Tell) -> tuple[Room, Lessons]:
    """One cell: the student of the seed under the row's teacher. Returns the student's room and what was seen."""
    room = suite.room(profile, seed, sizes)
    parameters = {**suite.tuned.get(row.teacher.curriculum, {}), **row.teacher.parameters}
    teacher = profiles.build_teacher(row.teacher.curriculum, row.told, room.space, room.expert, seed=seed, parameters=parameters)
    return room, room.run(teacher, tell)


def record_of(space: TaskSpace, lessons: Lessons) -> dict[str, Any]:
    """What is kept of a cell: the curve, what was proposed when and what came back, and costs."""
    mastered = [round(float(share), 6) for share in lessons.mastered]
    return {
        "curve": {"episodes": lessons.episodes, "mastered": mastered},
        "proposed": proposed(space, lessons.point_ED, lessons.return_E),
        "totals": {key: round(float(value), 4) for key, value in lessons.totals.items()},
    }


def begin(benchmark: tuple[Bench, Any], out: Path, threads: int) -> Work:
    """A worker's work on cells. Traces go to out/traces, what a room keeps of its student to out/students."""
    bench, sizes = benchmark
    suite = profiles.suite(bench.suite)

    def work(job: Job, tell: Tell) -> dict[str, Any]:
        room, lessons = learn(suite, job.line, job.profile, job.seed, sizes, tell)
        write_trace(out / "traces" / f"{job.file_name}.npz", room.space, lessons)
        record = {"row": job.line.name, "profile": job.profile, "seed": job.seed, **record_of(room.space, lessons)}
        if isinstance(room, KeepingRoom):
            record["kept"] = [path.relative_to(out).as_posix() for path in room.keep(out / "students" / job.file_name)]
        return record

    return work


def run_benchmark(
    benchmark: Benchmark, *, jobs: int | None = None, command: str = "", tell: Callable[[str, Any], None] = lambda kind, payload: None
) -> dict[str, Any]:
    """Run what is missing, then write benchmark.json, report.html and figures to OUT; returns the result."""
    from tutelage.study.acl.page import write_page

    bench = benchmark.bench
    occupy(benchmark.out, shared(bench, benchmark.suite, benchmark.sizes), resolved(benchmark))
    benchmark.load_finished()
    tell("plan", benchmark)
    run_cells(benchmark, min(jobs or default_jobs(), max(len(benchmark.todo), 1)), tell)
    result = make_result(benchmark, command)
    atomic_write(benchmark.out / "benchmark.json", json.dumps(result))
    write_page(result, benchmark.out)
    return result


def run_cells(benchmark: Benchmark, jobs: int, tell: Callable[[str, Any], None]) -> None:
    """Run what is queued: in `jobs` worker processes, or here if that is one."""
    shown: Callable[[str, Any], None] = lambda kind, payload: tell(kind, _told(kind, payload))  # noqa: E731
    what = (benchmark.bench, benchmark.sizes)
    if jobs > 1:
        run_all(what, benchmark, benchmark.out, jobs=jobs, tell=shown, begin=begin)
        return
    work = begin(what, benchmark.out, 1)
    while (job := benchmark.next_job()) is not None:
        record = work(job, lambda info, job=job: shown("step", (job, info)))  # type: ignore[misc]
        benchmark.finished(job, record)
        shown("done", (job, record))


def _told(kind: str, payload: Any) -> Any:
    """A finished cell as the display of comparisons reads it."""
    job, record = payload
    return payload if kind == "step" else (job, {**record, "curve": {"accuracy": record["curve"]["mastered"]}})


def make_result(benchmark: Benchmark, command: str) -> dict[str, Any]:
    """The table and everything behind it, without NaN."""
    from tutelage.study.acl.verdicts import table

    bench, suite = benchmark.bench, benchmark.suite
    cells = [benchmark.records[job.line.name, job.profile, job.seed] for job in benchmark.jobs]
    final = {
        (row.name, profile): np.array([benchmark.records[row.name, profile, s]["curve"]["mastered"][-1] for s in benchmark.seeds])
        for row in benchmark.plans
        for profile in bench.profiles
    }
    facts = {row.name: {"teacher": row.teacher.name, "levels": list(row.levels), "told": list(row.told)} for row in benchmark.plans}
    result: dict[str, Any] = {
        "title": suite.title, "command": command, "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "metric": "mastered test tasks", "unit": suite.unit, "baseline": benchmark.plans[0].name,
        "levels": [level for level in LEVELS if level in bench.knowledge],
        "profiles": {name: suite.profiles[name] for name in bench.profiles}, "seeds": benchmark.seeds,
        **table(final, facts, benchmark.plans[0].name),
        "cells": [{key: value for key, value in cell.items() if key != "identity"} for cell in cells],
        "config": resolved(benchmark), "versions": versions(PACKAGES), "machine": machine(),
    }  # fmt: skip
    return without_nan(result)
