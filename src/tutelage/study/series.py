"""What the report's figures show, as arrays: mean curves with bands, what was taught when, accuracy before and after.

Array suffixes: `S` seeds, `X` points of a curve, `A` task arms, `C` columns of a heat map, `L` entries of a
log, `E` the edges between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.study.schema import Cell, League, Number
from tutelage.study.schema import Taught as TaughtLog
from tutelage.study.stats import bootstrap_band

Floats = NDArray[np.float64]
XAxis = Literal["step", "rollouts", "tokens", "seconds"]
MOST_POINTS = 160
MOST_CELLS = 30_000


@dataclass(frozen=True)
class MeanCurve:
    """The mean over seeds of a learning curve, with a band where there are at least two seeds."""

    x_X: Floats
    mean_X: Floats
    low_X: Floats | None
    high_X: Floats | None


@dataclass(frozen=True)
class Taught:
    """The mean share of each arm in each stretch of training; `step_C` are the stretches' middles."""

    step_C: Floats
    share_AC: Floats


def cells_of(league: League, row: str) -> list[Cell]:
    """The runs of a row, in the order of the league."""
    return [cell for cell in league["cells"] if cell["row"] == row]


def mean_without_nan(values: Any, axis: int) -> Floats:
    """The mean along an axis over what is not NaN; NaN, without a warning, where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(np.asarray(values, dtype=np.float64), axis=axis)


def mean_curve(league: League, row: str, axis: XAxis, rng: np.random.Generator | None, metric: str = "accuracy") -> MeanCurve | None:
    """Mean of a metric over seeds against `axis`, or None if the row has no measured point; with `rng`, a 95 % bootstrap band.

    metric: "accuracy", or a name as in `diagnostics_of`.

    Seeds reach their evaluations at different rollouts and seconds: each is interpolated linearly onto common points, from the last
    seed's start to the first seed's end, so that no seed is extended.
    """
    runs = [_measured(cell, axis, metric) for cell in cells_of(league, row)]
    runs = [(x_X, y_X) for x_X, y_X in runs if len(x_X)]
    if not runs:
        return None
    x_X = _common_points([x_X for x_X, _ in runs])
    y_SX = np.stack([np.interp(x_X, run_X, y_X) for run_X, y_X in runs])
    mean_X = y_SX.mean(axis=0)
    if len(runs) < 2 or rng is None:
        return MeanCurve(x_X, mean_X, None, None)
    return MeanCurve(x_X, mean_X, *bootstrap_band(y_SX, 0.95, rng))


def flat(found: Mapping[str, Any]) -> dict[str, Number]:
    """Diagnostics by flat names such as "clip_ratio" and "pass_at_k.4"."""
    pairs = ((name, value.items() if isinstance(value, dict) else [(None, value)]) for name, value in found.items())
    return {name if key is None else f"{name}.{key}": number for name, items in pairs for key, number in items}


def diagnostics_of(cell: Cell) -> list[dict[str, Number]]:
    """A run's diagnostics at each evaluation, `flat`; empty where it has none."""
    return [flat(found) for found in cell["curve"].get("diagnostics", [])]


def mean_diagnostics(league: League, row: str | None, position: Literal[0, -1]) -> dict[str, float]:
    """Means over seeds of the diagnostics at the first (0) or last (-1) evaluation of a row (None: of all rows); NaN where unmeasured."""
    cells = league["cells"] if row is None else cells_of(league, row)
    found = [points[position] for cell in cells if (points := diagnostics_of(cell))]
    names = dict.fromkeys(name for point in found for name in point)
    return {name: float(mean_without_nan([point.get(name) for point in found], axis=0)) for name in names}


def _measured(cell: Cell, axis: XAxis, metric: str) -> tuple[Floats, Floats]:
    values = cell["curve"]["accuracy"] if metric == "accuracy" else [point.get(metric) for point in diagnostics_of(cell)]
    x_X, y_X = np.array(cell["curve"][axis], dtype=np.float64)[: len(values)], np.array(values, dtype=np.float64)
    measured_X = np.isfinite(x_X) & np.isfinite(y_X)
    return x_X[measured_X], y_X[measured_X]


def _common_points(x_by_run: Sequence[Floats]) -> Floats:
    if len({len(x_X) for x_X in x_by_run}) == 1:
        x_X = np.mean(x_by_run, axis=0)
    else:
        x_X = np.unique(np.concatenate(list(x_by_run)))
    low, high = max(x_X[0] for x_X in x_by_run), min(x_X[-1] for x_X in x_by_run)
    x_X = np.unique(np.clip(x_X, low, high)) if low <= high else x_X
    if len(x_X) > MOST_POINTS:
        x_X = x_X[np.unique(np.linspace(0, len(x_X) - 1, MOST_POINTS).round().astype(int))]
    return x_X


def heat_columns(league: League) -> int:
    """How many columns each heat map gets, so that all of them together stay light: at most 100."""
    return int(np.clip(MOST_CELLS // max(1, len(league["arm_names"]) * len(league["rows"])), 12, 100))


def taught(league: League, row: str, columns: int) -> Taught | None:
    """What a row taught when: the mean share over seeds in each of at most `columns` equal stretches of steps; None if nothing was logged.

    An entry of the log stands for the steps since the entry before it, so a stretch gets each entry's share by the steps they have in
    common. A seed that stopped early leaves the later stretches to the others.
    """
    logs = [_cumulated(cell["taught"]) for cell in cells_of(league, row) if cell["taught"]["step"]]
    if not logs:
        return None
    low, high = min(edge_E[0] for edge_E, _ in logs), max(edge_E[-1] for edge_E, _ in logs)
    columns = min(columns, max(len(edge_E) - 1 for edge_E, _ in logs))
    edge_C = np.linspace(low, high, columns + 1)
    share_SCA = np.full((len(logs), columns, len(league["arm_names"])), np.nan)
    for share_CA, (edge_E, total_EA) in zip(share_SCA, logs, strict=True):
        total_CA = np.stack([np.interp(edge_C, edge_E, total_E) for total_E in total_EA.T], axis=1)
        inside_C = np.diff(np.clip(edge_C, edge_E[0], edge_E[-1]))
        seen_C = inside_C > 0
        share_CA[seen_C] = np.diff(total_CA, axis=0)[seen_C] / inside_C[seen_C, None]
    return Taught((edge_C[1:] + edge_C[:-1]) / 2, mean_without_nan(share_SCA, axis=0).T)


def _cumulated(log: TaughtLog) -> tuple[Floats, Floats]:
    """The edges between a log's entries (one more than entries), in steps, and the running sum of share times steps at each edge."""
    step_L, share_LA = np.array(log["step"], dtype=np.float64), np.nan_to_num(np.array(log["share"], dtype=np.float64))
    first = step_L[0] - (np.median(np.diff(step_L)) if len(step_L) > 1 else 1.0)
    edge_E = np.concatenate([[first], step_L])
    total_EA = np.concatenate([np.zeros((1, share_LA.shape[1])), np.cumsum(share_LA * np.diff(edge_E)[:, None], axis=0)])
    return edge_E, total_EA


def accuracy_by_arm(league: League, row: str | None, position: Literal[0, -1]) -> Floats:
    """Mean accuracy of each arm over seeds at the first (0) or last (-1) evaluation of a row (None: of all rows); NaN if unmeasured."""
    cells = league["cells"] if row is None else cells_of(league, row)
    values = [cell["curve"]["by_arm"][position] for cell in cells if cell["curve"]["by_arm"]]
    return mean_without_nan(values, axis=0) if values else np.full(len(league["arm_names"]), np.nan)


def families(arm_names: Sequence[str]) -> dict[str, list[int]] | None:
    """The arms of each family, from names like "family/level"; None where names have no such structure."""
    groups: dict[str, list[int]] = {}
    for arm, name in enumerate(arm_names):
        family, slash, _ = name.rpartition("/")
        if not slash:
            return None
        groups.setdefault(family, []).append(arm)
    return groups if len(groups) < len(arm_names) and max(map(len, groups.values())) <= 12 else None


def level(arm_name: str) -> str:
    """The part of an arm's name that is not its family."""
    return arm_name.rpartition("/")[2]
