"""Reading a log of distances: evaluations by prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits._hacking import Float
from tutelage.errors import Tally, TutelageError, Warned
from tutelage.rollouts.reader import json_lines

NAMES = ("proxy", "golden")


@dataclass(frozen=True)
class Distances:
    """step_S rising; proxy_SN, golden_SN: nats, of S evaluations and N prompts (one where the log does not tell prompts apart)."""

    path: Path
    step_S: Float
    prompts: tuple[str, ...]
    proxy_SN: Float
    golden_SN: Float | None
    warnings: tuple[Warned, ...]


def read_distances(path: Path) -> Distances:
    """A log as `tutelage.trainers.distances` writes it, of any order of rows; a later row of a step and prompt replaces the earlier.

    Counted as warnings: a last line that was cut off, rows with a distance that is no finite number and evaluations that lack a prompt,
    both left out, steps that go back, rows written twice.

    Raises:
        TutelageError: no such file, a row without step or proxy, no complete evaluation.
    """
    if not path.is_file():
        raise TutelageError(f"There is no log of distances at {path}. Write one with tutelage.trainers.distances, or name the file.")
    tally, last = Tally(), -math.inf
    table: dict[float, dict[str, dict[str, float]]] = {}
    for number, _, row in json_lines(path, tally):
        where = f"{path}, line {number}"
        step = _number(row, "step", where)
        if step < last:
            tally.add("steps that are lower than the one before (a run that was resumed repeats some)", where)
        last = step
        values = {name: _number(row, name, where) for name in NAMES if name == "proxy" or row.get(name) is not None}
        if not all(map(math.isfinite, (step, *values.values()))):
            tally.add("rows with a step or distance that is no finite number, left out", where)
            continue
        at = table.setdefault(step, {})
        key = str(row.get("prompt_id", ""))
        if key in at:
            tally.add("rows written twice for a step and prompt; the last one counts", where)
        at[key] = values
    return _as_arrays(path, table, tally)


def _number(row: dict[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if value is None and name in row:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TutelageError(
            f"{where} has {name}={value!r}; expected a number. A row holds step, proxy, and where known golden and prompt_id."
        )
    return float(value)


def _as_arrays(path: Path, table: dict[float, dict[str, dict[str, float]]], tally: Tally) -> Distances:
    if not table:
        raise TutelageError(f"{path} holds no distances: it is empty, or no row is whole. Check how it was written.")
    prompts = tuple(sorted({key for at in table.values() for key in at}))
    golden = any("golden" in values for at in table.values() for values in at.values())
    names = NAMES if golden else NAMES[:1]
    steps = [step for step, at in sorted(table.items()) if len(at) == len(prompts) and all(v.keys() >= set(names) for v in at.values())]
    if len(steps) < len(table):
        tally.add(
            "evaluations that lack a prompt or a distance, left out",
            f"{path}, step {min(table.keys() - set(steps)):g}",
            len(table) - len(steps),
        )
    if not steps:
        raise TutelageError(f"{path}: no evaluation has all of its {len(prompts)} prompts with {' and '.join(names)}.")
    arrays = {name: np.array([[table[step][key][name] for key in prompts] for step in steps]) for name in names}
    return Distances(path, np.array(steps), prompts, arrays["proxy"], arrays.get("golden"), tally.warnings)
