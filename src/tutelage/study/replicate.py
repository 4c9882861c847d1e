"""Replications: a published claim as a falsifiable experiment, method against baseline on the same seeds.

A replication is a function registered under the paper's slug; the first line of its docstring is the claim, and it returns a
`Replication`: arms, the comparisons between them and the primary metric, all fixed in the file before the first full run. `run` computes
one *cell* for each arm and seed, judges all comparisons together (`stats.judge`: exact paired sign-flip test, two-sided 0.05, Holm over
all comparisons of the command) and writes `<out>/<slug>.json`. The first comparison is the claim; its verdict is the replication's.

Each finished cell is appended to `<out>/<slug>.partial.jsonl`, so an interrupted replication continues where it stopped. Cells made by
other code or other versions are not continued. The partial file goes when the result is written.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import tutelage
from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.registry import replications
from tutelage.study import stats
from tutelage.study.atlas import atlas, render, write_atlas
from tutelage.study.provenance import machine, versions
from tutelage.study.schema import without_nan

__all__ = ["Arm", "Cell", "Comparison", "Replication", "atlas", "render", "run", "write_atlas"]

SCHEMA = 1
SMOKE_SEEDS = 2
AXES = ("rollouts", "training_tokens", "seconds", "step")

Cell = dict[str, Any]
Progress = Callable[[str], None]
Axis = Literal["rollouts", "training_tokens"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One condition: `run(seed, smoke)` computes its cell on one seed.

    about: the arm in one line. settings: in full, for the record. seeds: how many, if not as many as the replication's.
    A cell holds `score`, a dict of numbers, and optionally `curve`, a dict of lists over evaluations with those of the axes `step`,
    `rollouts`, `training_tokens`, `seconds` that there are and the primary metric, `taught` and `cost`. Plain JSON values only.
    """

    run: Callable[[int, bool], Cell]
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms at the end of their runs, or (`equal`) where the dearer one has spent what the cheaper one spent in all.

    metric: if not the replication's primary metric. note: ends the name, where two comparisons of the same arms must be told apart.
    """

    method: str
    baseline: str
    equal: Axis | None = None
    metric: str | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """For example "odf against uniform at equal rollouts"."""
        at = f" at equal {self.equal.replace('_', ' ')}" if self.equal else ""
        return f"{self.method} against {self.baseline}{at}{self.note and ', ' + self.note}"


@dataclass(frozen=True, kw_only=True)
class Replication:
    """A claim made testable.

    paper: where the claim stands. metric: the primary metric, a key of `score`, higher is better. metric_about, budget: what it is, and
    what every arm is given, in words. comparisons: the first is the claim. seeds: 0 to seeds - 1, for every arm without its own number.
    settings: what all arms share, at full scale, for the record.
    """

    paper: str
    metric: str
    metric_about: str
    budget: str
    arms: Mapping[str, Arm]
    comparisons: tuple[Comparison, ...]
    seeds: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [comparison.name for comparison in self.comparisons]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TutelageError(f"Two comparisons are called {twice[0]!r}; give one of them a note that says what differs.")


def run(
    slug: str,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    smoke: bool = False,
    out: Path,
    progress: Progress | None = None,
    command: str,
) -> dict[str, Any]:
    """Run the replication `slug`, write its result and return it.

    Args:
        seeds: use the seeds 0 to seeds - 1 for every arm, instead of the numbers fixed in the file.
        jobs: processes; each computes with one thread, and the result does not depend on their number.
        smoke: only show that everything runs: two seeds, a few steps, no verdict but "too few seeds".
        out: directory of the result. Only a run with the fixed seeds is called `<slug>.json`; others carry `.smoke` or `.<n>-seeds`.
        progress: called with a line of text after each cell.
        command: the command line that started this, for the record.

    Raises:
        TutelageError: an unknown slug, `seeds` or `jobs` below 1, or a score that is not finite.
    """
    part = replications.get(slug)
    if jobs < 1 or (seeds is not None and seeds < 1):
        raise TutelageError(f"replicate needs at least one job and one seed; got jobs={jobs}, seeds={seeds}.")
    plan: Replication = part.target()
    count = {name: seeds or (SMOKE_SEEDS if smoke else arm.seeds or plan.seeds) for name, arm in plan.arms.items()}
    full = not smoke and seeds is None
    stem = slug if full else f"{slug}.smoke" if smoke else f"{slug}.{seeds}-seeds"
    partial = out / f"{stem}.partial.jsonl"
    made_by = {"versions": versions(("numpy", "scipy", "torch")), "code": _code(Path(part.file))}
    cells = _cells(slug, _in_order(count), jobs, smoke, partial, made_by, progress)
    result = {
        "schema": SCHEMA,
        "replication": slug,
        "claim": part.summary,
        "paper": plan.paper,
        "full": full,
        "smoke": smoke,
        "command": command,
        "metric": {"name": plan.metric, "about": plan.metric_about},
        "budget": plan.budget,
        "settings": dict(plan.settings),
        **_findings(plan, cells, count),
        "minutes": round(sum(cell["wall_seconds"] for cell in cells.values()) / 60, 2),
        "jobs": jobs,
        **made_by,
        "machine": machine(),
        "cells": [{"arm": arm, "seed": seed, **cells[arm, seed]} for arm, seed in _in_order(count)],
    }
    result = without_nan(result)
    _write(out / f"{stem}.json", result)
    partial.unlink(missing_ok=True)
    return result


def _in_order(count: Mapping[str, int]) -> list[tuple[str, int]]:
    """All (arm, seed), seed by seed, so that what the arms of a seed share is made once."""
    return [(arm, seed) for seed in range(max(count.values())) for arm, seeds in count.items() if seed < seeds]


# Cells -----------------------------------------------------------------------------------------------------------------------------------


def _cells(
    slug: str, wanted: list[tuple[str, int]], jobs: int, smoke: bool, partial: Path, made_by: dict[str, Any], progress: Progress | None
) -> dict[tuple[str, int], Cell]:
    """The wanted cells: those of an earlier, interrupted run, and the rest computed now, each saved as it comes."""
    identity = {"replication": slug, "smoke": smoke, **made_by}
    cells = _load(partial, identity)
    todo = [key for key in wanted if key not in cells]
    done = len(wanted) - len(todo)
    if progress and partial.exists():
        progress(f"Continuing: {done} of {len(wanted)} cells are there." if done else "Cells made by other code are dropped.")
    lines = [{"arm": arm, "seed": seed, "cell": cell} for (arm, seed), cell in cells.items()]
    atomic_write(partial, "".join(json.dumps(line) + "\n" for line in [identity, *lines]))
    with contextlib.closing(_compute(slug, todo, jobs, smoke)) as computed:
        for (arm, seed), cell in computed:
            cells[arm, seed] = cell
            _append(partial, {"arm": arm, "seed": seed, "cell": cell})
            done += 1
            if progress:
                progress(f"{done}/{len(wanted)}  {arm}, seed {seed}")
    return {key: cells[key] for key in wanted}


def _append(partial: Path, line: dict[str, Any]) -> None:
    try:
        with partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise TutelageError(
            f"Cannot write {partial}: {error.strerror}. Earlier cells are kept: mend it and run the command again."
        ) from error


def _load(partial: Path, identity: dict[str, Any]) -> dict[tuple[str, int], Cell]:
    """The cells of an interrupted run of the same code, up to a line that the interruption cut short."""
    if not partial.exists():
        return {}
    records = []
    for line in partial.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if not records or records[0] != identity:
        return {}
    return {(record["arm"], record["seed"]): record["cell"] for record in records[1:]}


def _compute(slug: str, todo: list[tuple[str, int]], jobs: int, smoke: bool) -> Generator[tuple[tuple[str, int], Cell], None, None]:
    """Cells as they are finished."""
    if jobs == 1 or len(todo) < 2:
        for key in todo:
            yield key, _cell(slug, *key, smoke)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=get_context("spawn")) as workers:
        running = {workers.submit(_cell, slug, *key, smoke): key for key in todo}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            workers.shutdown(wait=False, cancel_futures=True)


def _cell(slug: str, arm: str, seed: int, smoke: bool) -> Cell:
    """One cell, numbers rounded to 7 decimals: the verdict is reached on what is stored."""
    start = time.perf_counter()
    plan: Replication = replications.get(slug).target()
    cell = plan.arms[arm].run(seed, smoke)
    return _rounded({**cell, "wall_seconds": time.perf_counter() - start})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 7) if isinstance(value, float) else value


# Findings --------------------------------------------------------------------------------------------------------------------------------


def _findings(plan: Replication, cells: Mapping[tuple[str, int], Cell], count: Mapping[str, int]) -> dict[str, Any]:
    """Verdict, comparisons and the arms' means."""
    ends = {axis: _common_end(cells.values(), axis, plan.metric) for axis in AXES}
    difference_by_name = {c.name: _difference(c, c.metric or plan.metric, cells, count) for c in plan.comparisons}
    judged = stats.judge(difference_by_name, baseline="{baseline}", rng=np.random.default_rng(0))
    comparisons = []
    for c in plan.comparisons:
        found = asdict(judged[c.name])
        found["sentence"] = found["sentence"].replace("{baseline}", c.name.split(" against ", 1)[1])
        comparisons.append({"name": c.name, **asdict(c), **found, "difference_S": difference_by_name[c.name].tolist()})
    arms = {}
    for name, arm in plan.arms.items():
        own = [cells[name, seed] for seed in range(count[name])]
        arms[name] = {"about": arm.about, "settings": dict(arm.settings), "seeds": count[name], "mean": _means(own, plan.metric, ends)}
    return {"verdict": comparisons[0]["verdict"], "comparisons": comparisons, "arms": arms, "areas_until": ends}


def _difference(c: Comparison, metric: str, cells: Mapping[tuple[str, int], Cell], count: Mapping[str, int]) -> NDArray[np.float64]:
    """Per-seed differences of a metric, method minus baseline."""
    pairs = [(cells[c.method, seed], cells[c.baseline, seed]) for seed in range(min(count[c.method], count[c.baseline]))]
    if c.equal is None:
        score_S2 = np.array([[cell["score"][metric] for cell in pair] for pair in pairs])
    else:
        curves = [[_curve(cell, c.equal, metric) for cell in pair] for pair in pairs]
        score_S2 = np.array([[np.interp(min(a[0][-1], b[0][-1]), *curve) for curve in (a, b)] for a, b in curves])
    return stats.difference(score_S2[:, 0], score_S2[:, 1])


def _curve(cell: Cell, axis: str, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric against an axis; of points at the same x (steps that were skipped cost no tokens) the last."""
    x_X, y_X = (np.array(cell["curve"][key], dtype=np.float64) for key in (axis, metric))
    last_X = np.append(np.diff(x_X) > 0, True)
    return x_X[last_X], y_X[last_X]


def _common_end(cells: Any, axis: str, metric: str) -> float | None:
    """How far along an axis every curve reaches; None where one ends before another begins (a dearer start)."""
    curves = [_curve(cell, axis, metric)[0] for cell in cells if {axis, metric} <= cell.get("curve", {}).keys()]
    end = min((x_X[-1] for x_X in curves), default=None)
    return None if end is None or any(x_X[0] > end for x_X in curves) else float(end)


def _means(cells: list[Cell], metric: str, ends: Mapping[str, float | None]) -> dict[str, float]:
    """Means over seeds of an arm's scores, costs, and areas under the primary metric's curve up to where all arms reach."""
    mean = {key: float(np.mean([cell["score"][key] for cell in cells])) for key in cells[0]["score"]}
    if metric in cells[0].get("curve", {}):
        for axis, end in ((axis, end) for axis, end in ends.items() if end is not None and axis in cells[0]["curve"]):
            mean[f"area_by_{axis}"] = float(np.mean([stats.area_under_curve(*_curve(cell, axis, metric), until=end) for cell in cells]))
    for key in cells[0].get("cost", {}):
        mean[key] = float(np.mean([cell["cost"][key] for cell in cells]))
    return mean


# Files -----------------------------------------------------------------------------------------------------------------------------------


def _code(replication: Path) -> str:
    """A hash of the library's source and of the replication's own file, so that cells of different code never mix."""
    digest, root = blake2b(digest_size=8), Path(tutelage.__file__).parent
    for path in sorted({*root.rglob("*.py"), replication}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, result: dict[str, Any]) -> None:
    """JSON with one cell, comparison or arm a line."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def block(key: str, value: Any) -> str:
        if key in ("cells", "comparisons") and value:
            return "[\n  " + ",\n  ".join(line(item) for item in value) + "\n ]"
        if key == "arms":
            return "{\n  " + ",\n  ".join(f"{line(name)}: {line(item)}" for name, item in value.items()) + "\n }"
        return line(value)

    atomic_write(path, "{\n" + ",\n".join(f" {line(key)}: {block(key, value)}" for key, value in result.items()) + "\n}\n")
