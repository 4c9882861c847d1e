"""The figures of a benchmark: a profile plot (radar), learning curves in every profile, and what each teacher proposed when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.study.acl.verdicts import knows
from tutelage.study.canvas import HUES, Anchor, Area, Canvas, Dot, Line, Point, Text
from tutelage.study.figures import Frame, Style, curves_panel, shaded, ticks
from tutelage.study.plates import curve_numbers
from tutelage.study.series import MeanCurve
from tutelage.study.stats import bootstrap_band

DASHES: Mapping[int, tuple[float, ...]] = {0: (), 1: (6.0, 4.0), 2: (2.0, 3.0)}


def styles(result: dict[str, Any]) -> dict[str, Style]:
    """The style of each row: one hue per teacher, grey for random tasks; dashed where an expert tells more."""
    rows, baseline = result["rows"], result["baseline"]
    teachers = sorted({row["teacher"] for row in rows if row["name"] != baseline})
    hues = {teacher: f"series-{i}" if i < HUES else "ink" for i, teacher in enumerate(teachers)}
    found = {}
    for index, row in enumerate(rows):
        mine = sorted((r for r in rows if r["teacher"] == row["teacher"]), key=lambda r: len(r["told"]))
        colour = "baseline" if row["name"] == baseline else hues[row["teacher"]]
        found[row["name"]] = Style(index, colour, DASHES.get(mine.index(row), (2.0, 3.0)))
    return found


def radar(rows: Sequence[dict[str, Any]], profiles: Sequence[str], look: Mapping[str, Style]) -> Canvas:
    """Final shares on one axis per profile, a polygon per row; the outermost ring is the first round number above the best of them."""
    canvas, centre, radius = Canvas(520, 420), (260.0, 212.0), 160.0
    best = max(row["profiles"][profile]["mean"] for row in rows for profile in profiles)
    rings = ticks(0.0, min(1.0, max(best, 0.05) * 1.05), 4)[1:]
    rings = [*rings, min(1.0, rings[-1] + rings[0])] if rings[-1] < best else rings

    def place(axis: int, share: float) -> Point:
        angle = 2 * math.pi * axis / len(profiles) - math.pi / 2
        return centre[0] + radius * share / rings[-1] * math.cos(angle), centre[1] + radius * share / rings[-1] * math.sin(angle)

    around = [*range(len(profiles)), 0]
    for ring in rings:
        canvas.add(Line(points=[place(axis, ring) for axis in around], colour="grid" if ring < rings[-1] else "axis"))
    for axis, profile in enumerate(profiles):
        canvas.add(Line(points=[centre, place(axis, rings[-1])], colour="grid"))
        x, y = place(axis, rings[-1] * 1.09)
        anchor: Anchor = "middle" if abs(x - centre[0]) < 8 else "start" if x > centre[0] else "end"
        canvas.add(Text(x=x, y=y + 4, text=profile, anchor=anchor, colour="muted"))
    for row in reversed(rows):
        style, share = look[row["name"]], [row["profiles"][profile]["mean"] for profile in profiles]
        points = [place(axis, share[axis]) for axis in around]
        if style.colour == "baseline":
            canvas.add(Area(points=points[:-1], colour=style.colour, opacity=0.18, row=style.row))
        canvas.add(Line(points=points, colour=style.colour, width=2, dash=style.dash, row=style.row))
        for axis, point in enumerate(points[:-1]):
            tip = f"{row['teacher']} ({knows(row)}), {profiles[axis]}: {100 * share[axis]:.1f} %"
            canvas.add(Dot(x=point[0], y=point[1], radius=2.8, colour=style.colour, row=style.row, tip=tip))
    for ring in rings:
        canvas.add(Text(x=centre[0] + 4, y=place(0, ring)[1] + 11, text=f"{100 * ring:g} %", size=11, colour="muted"))
    return canvas


def mean_curves(result: dict[str, Any], profile: str, rng: np.random.Generator) -> dict[str, MeanCurve]:
    """For each row the mean over seeds of the mastered share, with a bootstrap band where there are several."""
    curves = {}
    for row in result["rows"]:
        cells = [c["curve"] for c in result["cells"] if c["row"] == row["name"] and c["profile"] == profile]
        length = min(len(c["mastered"]) for c in cells)
        x_X = np.mean([c["episodes"][:length] for c in cells], axis=0)
        y_SX = np.array([c["mastered"][:length] for c in cells], dtype=np.float64)
        low_X, high_X = bootstrap_band(y_SX, 0.95, rng) if len(cells) > 1 else (None, None)
        curves[row["name"]] = MeanCurve(x_X, y_SX.mean(axis=0), low_X, high_X)
    return curves


def curve_panels(result: dict[str, Any], look: Mapping[str, Style]) -> tuple[dict[str, Canvas], dict[str, Any]]:
    """Learning curves, a panel per profile, and their numbers for the page's script."""
    rng, panels, numbers = np.random.default_rng(0), {}, {}
    for profile in result["profiles"]:
        curves = mean_curves(result, profile, rng)
        top = max(float(np.nanmax(curve.mean_X if curve.high_X is None else curve.high_X)) for curve in curves.values())
        y_range = (0.0, max(1.05 * top, 0.05))
        panels[profile] = curves_panel(curves, dict(look), axis=profile, unit=(1.0, result["unit"]), target=None, y_range=y_range)
        numbers[profile] = [curve_numbers(curve, look[row], 1.0) for row, curve in curves.items()]
    return panels, numbers


def proposals(result: dict[str, Any], row: str, profile: str) -> Canvas | None:
    """What a row proposed when, all seeds together: one map per parameter, its range upwards, training from left to right."""
    logs = [c["proposed"] for c in result["cells"] if c["row"] == row and c["profile"] == profile]
    if not logs:
        return None
    count_DCB = np.sum([log["count"] for log in logs], axis=0).astype(np.float64)
    bins, height = count_DCB.shape[2], 8.0
    canvas = Canvas(264, len(count_DCB) * (bins * height + 26) + 18)
    for d, count_CB in enumerate(count_DCB):
        top = 16 + d * (bins * height + 26)
        low, high = logs[0]["range"][d]
        share_BC = (count_CB / np.maximum(count_CB.sum(axis=1, keepdims=True), 1)).T[::-1]  # the top line is the range's upper end
        tops = [top + line * height for line in range(bins)]
        frame = Frame(44, top, 258, top + bins * height, 0, count_CB.shape[0], 0, bins)
        canvas.add(*shaded(share_BC, [[line] for line in range(bins)], tops, frame, height, max(0.4, 2 / bins)))
        corners = [(frame.left, top), (frame.right, top), (frame.right, frame.bottom), (frame.left, frame.bottom), (frame.left, top)]
        canvas.add(Line(points=corners, colour="grid"), Text(x=44, y=top - 4, text=logs[0]["names"][d], size=11, colour="muted"))
        for value, y in ((high, top + 9), (low, frame.bottom)):
            canvas.add(Text(x=40, y=y, text=f"{value:g}", size=11, anchor="end", colour="muted"))
    canvas.add(Text(x=258, y=canvas.height - 6, text=f"{logs[0]['until'][-1]:,} episodes", size=11, anchor="end", colour="muted"))
    return canvas
