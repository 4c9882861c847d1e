"""All figures of one league, drawn once: the page takes them panel by panel, `save_figures` composes them into SVG and PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.study import answers, figures, series, words
from tutelage.study.canvas import Canvas, Dot, Line, Text, shortened
from tutelage.study.figures import Style
from tutelage.study.schema import League, Row, display_name, progress_axis, progress_word, ranked

GAP = 28.0
MARGIN = 24.0


@dataclass(frozen=True)
class Plates:
    """The panels of a league, and the numbers behind them for the page's script.

    Attributes:
        rows: the league's rows in rank order, and `look` their style by name.
        curves: by x axis ("rollouts" or "step", "seconds"); empty where nothing was measured.
        heat: one panel for each row that logged what it taught; `full` is the share at full colour.
        arms: panels of accuracy before and after, each with its title (a family, or nothing).
        bars: for each row its difference and interval, within `limits`.
        numbers: JSON-ready data of curves and heat maps.
        answers: panels of diagnostics, each with its title; none where nothing was diagnosed.
    """

    rows: list[Row]
    look: dict[str, Style]
    curves: dict[str, Canvas]
    heat: list[tuple[Row, Canvas]]
    full: float
    arms: list[tuple[str, Canvas]]
    bars: dict[str, Canvas]
    limits: tuple[float, float]
    numbers: dict[str, Any]
    answers: list[tuple[str, Canvas]] = field(default_factory=list)


def draw(league: League) -> Plates:
    """Draw every figure that the league has data for; bands are resampled from a fixed seed, so the same league draws the same."""
    rows = ranked(league)
    look = figures.styles(league, rows)
    curves, curve_numbers = _curves(league, rows, look)
    heat, full, heat_numbers = _heat(league, rows)
    limits = figures.interval_limits(rows)
    bars = {row["name"]: figures.interval_bar(row, look[row["name"]], limits) for row in rows}
    key = [{"name": display_name(row), "colour": look[row["name"]].colour, "dash": bool(look[row["name"]].dash)} for row in rows]
    numbers = {"rows": key, "arms": league["arm_names"], "curves": curve_numbers, "heat": heat_numbers}
    return Plates(rows, look, curves, heat, full, _arms(league, rows, look), bars, limits, numbers, answers.panels(league, rows, look))


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which to show times up to `seconds`: its length in seconds, and its name."""
    return (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _curves(league: League, rows: Sequence[Row], look: dict[str, Style]) -> tuple[dict[str, Canvas], dict[str, Any]]:
    by_axis: dict[series.XAxis, dict[str, series.MeanCurve]] = {}
    axes: tuple[series.XAxis, ...] = (progress_axis(league), "seconds")
    for axis in axes:
        rng = np.random.default_rng(0)
        drawn = {row["name"]: series.mean_curve(league, row["name"], axis, rng) for row in rows}
        by_axis[axis] = {name: curve for name, curve in drawn.items() if curve is not None}
    everything = [curve for curves in by_axis.values() for curve in curves.values()]
    if not everything:
        return {}, {}
    y_range = figures.score_range(everything, league["target"])
    panels: dict[str, Canvas] = {}
    numbers: dict[str, Any] = {}
    for axis, curves in by_axis.items():
        if not curves:
            continue
        scale, name = 1.0, progress_word(league)
        if axis == "seconds":
            scale, name = time_unit(max(float(curve.x_X[-1]) for curve in curves.values()))
        unit = (scale, name if axis != "seconds" else f"{name} of training")
        panels[axis] = figures.curves_panel(curves, look, axis=axis, unit=unit, target=league["target"], y_range=y_range)
        numbers[axis] = [curve_numbers(curve, look[row], scale) for row, curve in curves.items()]
    return panels, numbers


def curve_numbers(curve: series.MeanCurve, style: Style, scale: float = 1.0) -> dict[str, Any]:
    """A curve for the page's script, which shows it under the pointer; x in units of `scale`."""
    return {
        "row": style.row,
        "x": [float(f"{x / scale:.5g}") for x in curve.x_X],
        "y": [round(float(y), 4) for y in curve.mean_X],
        "low": None if curve.low_X is None else [round(float(y), 4) for y in curve.low_X],
        "high": None if curve.high_X is None else [round(float(y), 4) for y in curve.high_X],
    }


def _heat(league: League, rows: Sequence[Row]) -> tuple[list[tuple[Row, Canvas]], float, dict[str, Any]]:
    """The heat maps; none for a single arm, of which every map would be full."""
    columns = series.heat_columns(league)
    maps = {row["name"]: series.taught(league, row["name"], columns) for row in rows} if len(league["arm_names"]) > 1 else {}
    logged = {name: taught for name, taught in maps.items() if taught is not None}
    if not logged:
        return [], math.nan, {}
    groups = series.families(league["arm_names"])
    full = figures.heat_scale(list(logged.values()), len(league["arm_names"]))
    panels: list[tuple[Row, Canvas]] = []
    numbers: list[dict[str, Any]] = []
    lines = figures.heat_lines(league["arm_names"], groups)
    for row in rows:
        if taught := logged.get(row["name"]):
            panel = figures.heat_panel(taught, league, groups, full)
            panel.attributes["data-heat"] = str(len(panels))
            panels.append((row, panel))
            share_LC = [[_share(value) for value in series.mean_without_nan(taught.share_AC[line], axis=0)] for line in lines]
            numbers.append({"step": [round(float(step), 1) for step in taught.step_C], "share": share_LC})
    return panels, full, {"lines": lines, "maps": numbers}


def _share(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _arms(league: League, rows: Sequence[Row], look: dict[str, Style]) -> list[tuple[str, Canvas]]:
    before_A = series.accuracy_by_arm(league, None, 0)
    after = {row["name"]: series.accuracy_by_arm(league, row["name"], -1) for row in rows}
    after = {name: after_A for name, after_A in after.items() if np.isfinite(after_A).any()}
    if not after:
        return []
    groups = series.families(league["arm_names"])
    if groups is not None:
        return [(family, figures.family_panel(arms, league, before_A, after, look)) for family, arms in groups.items()]
    parts = math.ceil(len(league["arm_names"]) / figures.ARMS_PER_PANEL)
    chunks = np.array_split(np.arange(len(league["arm_names"])), parts)
    return [("", figures.arms_panel(chunk.tolist(), league, before_A, after, look)) for chunk in chunks]


def compose(title: str, panels: Sequence[tuple[str, Canvas]], columns: int, legend: Sequence[tuple[str, Style]] = ()) -> Canvas:
    """One sheet: the title, a legend, and the panels with their titles in rows of `columns`."""
    columns = min(columns, len(panels))
    width = max(panel.width for _, panel in panels)
    sheet = Canvas(2 * MARGIN + columns * width + (columns - 1) * GAP, 0)
    sheet.add(Text(x=MARGIN, y=MARGIN + 14, text=shortened(title, sheet.width - 2 * MARGIN, 16), size=16, bold=True))
    y = _add_legend(sheet, legend, MARGIN + 40) if legend else MARGIN + 34
    for start in range(0, len(panels), columns):
        shelf = panels[start : start + columns]
        titled = 22.0 if any(name for name, _ in shelf) else 0.0
        for place, (name, panel) in enumerate(shelf):
            x = MARGIN + place * (width + GAP)
            if name:
                sheet.add(Text(x=x, y=y + 12, text=shortened(name, panel.width, 13), size=13, bold=True))
            sheet.place(panel, x, y + titled)
        y += titled + max(panel.height for _, panel in shelf) + GAP
    sheet.height = y - GAP + MARGIN
    return sheet


def _add_legend(sheet: Canvas, legend: Sequence[tuple[str, Style]], y: float) -> float:
    x, room = MARGIN, sheet.width - 2 * MARGIN
    for name, style in legend:
        label = shortened(name, room - 40)
        width = 40 + 6.8 * len(label)
        if x > MARGIN and x + width > sheet.width - MARGIN:
            x, y = MARGIN, y + 20
        sheet.add(Line(points=[(x, y - 4), (x + 22, y - 4)], colour=style.colour, width=2, dash=style.dash))
        sheet.add(Text(x=x + 28, y=y, text=label, colour="muted"))
        x += width + 12
    return y + 18


def _differences(plates: Plates, league: League) -> Canvas | None:
    """The forest plot: every compared row's difference with its interval."""
    rows = [row for row in plates.rows if row["difference"] is not None]
    if not rows:
        return None
    sheet = Canvas(720, 24 + 34 * len(rows) + 34)
    frame = figures.Frame(224, 0, 576, 0, *plates.limits, 0, 1)
    for value in figures.ticks(*plates.limits, 5):
        sheet.add(Line(points=[(frame.x(value), 4), (frame.x(value), 14 + 34 * len(rows))], colour="grid" if value else "axis"))
        label = words.signed(value, 3).rstrip("0").rstrip(".") or "0"
        sheet.add(Text(x=frame.x(value), y=34 + 34 * len(rows), text=label, size=11, anchor="middle", colour="muted"))
    for index, row in enumerate(rows):
        y = 8 + 34 * index
        sheet.add(Text(x=0, y=y + 17, text=shortened(display_name(row), 214), size=12))
        sheet.place(figures.interval_bar(row, plates.look[row["name"]], plates.limits, 360), 220, y)
        sheet.add(Text(x=592, y=y + 17, text=shortened(row["verdict"], 128), size=12, colour="muted"))
    return sheet


def sheets(league: League, plates: Plates) -> dict[str, Canvas]:
    """The figures as whole sheets, by the name of their file."""
    legend = [(display_name(row), plates.look[row["name"]]) for row in plates.rows]
    metric, found = league["metric"], {}
    if (differences := _differences(plates, league)) is not None:
        found["differences"] = compose(f"Difference from {league['baseline']} in {metric}", [("", differences)], 1)
    if plates.curves:
        names = {"rollouts": "against rollouts", "step": "against updates", "seconds": "against time"}
        panels = [(names[axis], panel) for axis, panel in plates.curves.items()]
        found["learning_curves"] = compose(f"{metric[:1].upper()}{metric[1:]} while training", panels, 2, legend)
    if plates.heat:
        panels = [(display_name(row), panel) for row, panel in plates.heat]
        found["taught"] = compose("What each curriculum taught when", panels, 3)
        _add_scale(found["taught"], plates.full)
    if plates.arms:
        columns = 4 if plates.arms[0][0] else 2
        found["by_arm"] = compose(f"{metric[:1].upper()}{metric[1:]} of each arm, before and after", plates.arms, columns, legend)
    if plates.answers:
        found["answers"] = compose("What the answers look like while training", plates.answers, 4, legend)
    return found


def _add_scale(sheet: Canvas, full: float) -> None:
    """A small colour scale for the heat maps, below them."""
    x, y = MARGIN, sheet.height + 2
    for shade in range(1, 11):
        sheet.add(Dot(x=x + shade * 13, y=y, radius=5, colour="heat", opacity=0.06 + 0.094 * shade))
    sheet.add(Text(x=x + 156, y=y + 4, text=f"share of the tasks taught, up to {full:.1%}", size=11, colour="muted"))
    sheet.height += 28


def save_figures(league: League, plates: Plates, folder: Path) -> list[Path]:
    """Write every figure into `folder` as SVG, and as PNG where matplotlib is installed; return what was written."""
    written = []
    for name, sheet in sheets(league, plates).items():
        written.append(folder / f"{name}.svg")
        atomic_write(written[-1], sheet.file_svg())
        try:
            image = sheet.png()
        except TutelageError:  # matplotlib belongs to the extra `lm`; the SVG files are the figures
            continue
        written.append(folder / f"{name}.png")
        atomic_write(written[-1], image)
    return written
