"""From finished cells to the league table: means, paired differences, verdicts and costs. Pure; `compare` does the running."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np

from tutelage.study.schema import Cell, Row, RowKind
from tutelage.study.stats import Judgement, area_under_curve, difference, judge, x_to_reach

COSTS = ("rollouts", "updates", "tokens", "training_tokens", "seconds", "evaluation_seconds", "rejected_rollouts", "curriculum_seconds")


def final(cell: Cell) -> float:
    """Held-out accuracy at the end of a run (the primary metric)."""
    return float(cell["curve"]["accuracy"][-1] or 0.0)


def mean_curve(cells: Sequence[Cell], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, accuracy) averaged over seeds, evaluation by evaluation, as far as all seeds go."""
    length = min(len(c["curve"]["accuracy"]) for c in cells)
    curves: list[dict[str, Any]] = [{**c["curve"]} for c in cells]
    x, y = (np.asarray([c[key][:length] for c in curves]).mean(axis=0) for key in (axis, "accuracy"))
    return x, y


def choose_target(baseline: Sequence[Cell]) -> float | None:
    """The accuracy whose cost is compared: nine tenths of the baseline's mean gain; None where the baseline gained nothing."""
    _, y = mean_curve(baseline, "step")
    return round(float(y[0] + 0.9 * (y[-1] - y[0])), 4) if y[-1] > y[0] else None


def judge_rows(
    cells: Mapping[str, Sequence[Cell]], names: Mapping[str, str], baseline: str, pairs: Mapping[str, str]
) -> dict[str, Judgement]:
    """Verdicts on final accuracy, Holm over all comparisons of the command.

    Every row is compared with the baseline, and each row of `pairs` with a second opponent too (a filter at equal updates with uniform
    sampling that got its rollouts), told under the key "row : opponent". `names` are for the sentences.
    """
    asked = {row: (row, baseline) for row in cells if row != baseline} | {f"{r} : {o}": (r, o) for r, o in pairs.items()}
    differences = {}
    for key, (row, other) in asked.items():
        here, there = ({c["seed"]: final(c) for c in cells[r]} for r in (row, other))
        seeds = sorted(here.keys() & there.keys())
        differences[key] = difference(np.array([here[s] for s in seeds]), np.array([there[s] for s in seeds]))
    judged = judge(differences, baseline=baseline) if differences else {}
    for row, other in pairs.items():
        key = f"{row} : {other}"
        sentence = f"{names[row]}: {judged[key].sentence.replace(baseline, names[other], 1)}"
        judged[key] = replace(judged[key], sentence=sentence)
    return judged


def make_row(
    name: str, label: str, note: str, kind: RowKind, cells: Sequence[Cell], baseline: Sequence[Cell], *,
    arm_names: Sequence[str], hardest_A: np.ndarray, axis: str, until: float, target: float | None, judgement: Judgement | None,
) -> Row:  # fmt: skip
    """One line of the table from a row's cells."""
    last_SA = np.array([c["curve"]["by_arm"][-1] for c in cells], dtype=float)
    mean_A = last_SA.mean(axis=0)
    finals = [final(c) for c in cells]
    told: dict[str, Any] = {"difference": None, "interval": None, "p": None, "p_holm": None, "verdict": "baseline", "sentence": ""}
    if judgement is not None:
        j = asdict(judgement)
        told = {
            "difference": j["mean"], "interval": [j["low"], j["high"]], "p": j["p"], "p_holm": j["p_holm"],
            "verdict": "control" if kind == "control" else j["verdict"], "sentence": j["sentence"],
        }  # fmt: skip
    row: dict[str, Any] = {
        "name": name, "label": label, "note": note, "kind": kind, "seeds": len(cells),
        "final": float(np.mean(finals)), "final_sd": float(np.std(finals, ddof=1)) if len(finals) > 1 else math.nan,
        "worst_arm": float(mean_A.min()), "worst_arm_name": arm_names[int(mean_A.argmin())], "hardest": float(mean_A[hardest_A].mean()),
        "area": _area(cells, axis, until),
        "rollouts_to_target_ratio": _ratio(cells, baseline, axis, target),
        "seconds_to_target_ratio": _ratio(cells, baseline, "seconds", target),
        **told, "cost": {k: _mean_cost(cells, k) for k in COSTS},
    }  # fmt: skip
    return cast(Row, row)


def _area(cells: Sequence[Cell], axis: str, until: float) -> float:
    x, y = mean_curve(cells, axis)
    return area_under_curve(x, y, until=min(until, x[-1])) if len(x) > 1 and x[-1] > x[0] else math.nan


def _ratio(cells: Sequence[Cell], baseline: Sequence[Cell], axis: str, target: float | None) -> float:
    """The cost to reach the target over the baseline's, both on mean curves; NaN where either never reaches it."""
    if target is None:
        return math.nan
    mine, theirs = (x_to_reach(*mean_curve(c, axis), target) for c in (cells, baseline))
    return mine / theirs if theirs > 0 else math.nan


def _mean_cost(cells: Sequence[Cell], key: str) -> Any:
    values = [c["totals"].get(key) for c in cells]
    known = [float(v) for v in values if v is not None]
    return float(np.mean(known)) if known else math.nan
