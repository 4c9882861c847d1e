"""Live progress that a person can read: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tutelage.study.words import duration


class Meter:
    """How much of all cells is done, and how long the rest will take."""

    def __init__(self, cells: int, done: int) -> None:
        self.cells, self.done, self.at_start = cells, done, done
        self.shares: dict[str, float] = {}
        self.started = time.monotonic()

    @property
    def share(self) -> float:
        return (self.done + sum(self.shares.values())) / max(self.cells, 1)

    @property
    def left(self) -> str:
        gained = self.share - self.at_start / max(self.cells, 1)
        if gained < 0.01:
            return "estimating"
        return f"{duration((1 - self.share) * (time.monotonic() - self.started) / gained)} left"


class Display:
    """Call it with what `run_comparison` tells; use it as a context manager."""

    def __init__(self, console: Console, *, measure: str = "held-out", unit: str = "step", lines: int = 1000) -> None:
        """measure: what a run is scored by. unit: what its steps are. lines: of finished runs, at most about so many are printed."""
        self.console, self.measure, self.unit, self.most_lines = console, measure, unit, lines
        self.meter = Meter(1, 0)
        self.bars: Progress | None = None
        self.lines: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, kind: str, payload: Any) -> None:
        getattr(self, f"_{kind}")(payload)

    def _plan(self, comparison: Any) -> None:
        done = len(comparison.records)
        self.meter = Meter(comparison.cells, done)
        kept = f", {done} of them finished earlier" if done else ""
        rows = ", ".join(p.name for p in comparison.plans)
        self.console.print(
            f"{rows}\n{comparison.cells} runs ({len(comparison.seeds)} seeds each{kept}) → {comparison.out}", highlight=False
        )
        if done < comparison.cells and self.console.is_terminal:
            columns = (TextColumn("{task.description}", justify="left"), BarColumn(24), TextColumn("{task.fields[words]}"))
            self.bars = Progress(*columns, console=self.console, transient=True)
            self.bars.start()
            self.lines["all"] = self.bars.add_task("all runs", total=1.0, words="starting the engine")

    def _step(self, payload: Any) -> None:
        job, info = payload
        self.meter.shares[job.name] = info["share"]
        words = f"{self.unit} {info['step']} · reward {_number(info['reward'])} · {self.measure} {_number(info['accuracy'])}"
        if self.bars is not None:
            if job.name not in self.lines:
                self.lines[job.name] = self.bars.add_task(f"{job.row}, seed {job.seed}", total=1.0, words="")
            self.bars.update(self.lines[job.name], completed=info["share"], words=words)
            self._overall()
        elif self.meter.cells <= self.most_lines and info["share"] - self.said.get(job.name, 0.0) >= 0.5:
            self.said[job.name] = info["share"]
            self.console.print(f"{job.row}, seed {job.seed}: {words}; {self.meter.left}", highlight=False)

    def _done(self, payload: Any) -> None:
        job, record = payload
        self.meter.done += 1
        self.meter.shares.pop(job.name, None)
        accuracy, seconds = record["curve"]["accuracy"][-1], record["totals"]["seconds"]
        if self.bars is not None and job.name in self.lines:
            self.bars.remove_task(self.lines.pop(job.name))
            self._overall()
        if self.meter.done % max(1, self.meter.cells // self.most_lines) and self.meter.done < self.meter.cells:
            return
        self.console.print(
            f"{self.meter.done:>3}/{self.meter.cells}  {job.row}, seed {job.seed}: {self.measure} {_number(accuracy)} "
            f"after {duration(seconds)}; {self.meter.left}",
            highlight=False,
        )

    def _overall(self) -> None:
        assert self.bars is not None
        self.bars.update(self.lines["all"], completed=self.meter.share, words=f"{self.meter.done}/{self.meter.cells} · {self.meter.left}")


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
