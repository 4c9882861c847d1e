"""The report's figures as drawings: learning curves, what was taught when, accuracy by arm, differences with their intervals.

Every panel is a `Canvas` of its own, which the page places as it likes; `save_figures` composes them into files. Array suffixes: `A` task
arms, `C` columns of a heat map, `X` points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tutelage.study import words
from tutelage.study.canvas import HUES, Anchor, Area, Canvas, Cells, Dot, Line, Point, Rectangle, Text, shortened
from tutelage.study.schema import League, Row, display_name
from tutelage.study.series import Floats, MeanCurve, Taught, level

SHADES = 14
MOST_LINES = 100
ARMS_PER_PANEL = 25


@dataclass(frozen=True)
class Style:
    """How a row of the league looks in every figure: its number in rank order, its colour role and its dash."""

    row: int
    colour: str
    dash: tuple[float, ...]


def styles(league: League, rows: Sequence[Row]) -> dict[str, Style]:
    """The style of each row by name: one hue per label in the league's order, grey for the baseline's; controls are dashed."""
    baseline = {row["label"] for row in league["rows"] if row["kind"] == "baseline"}
    labels = list(dict.fromkeys(row["label"] for row in league["rows"] if row["label"] not in baseline))
    dashes = {"control": (6.0, 4.0), "equal-updates": (2.0, 3.0)}
    return {
        row["name"]: Style(
            index,
            "baseline" if row["label"] in baseline else f"series-{labels.index(row['label']) % HUES}",
            dashes.get(row["kind"], ()),
        )
        for index, row in enumerate(rows)
    }


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers (steps of 1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def compact(value: float) -> str:
    """A tick label: 0.25, 400, 12k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def score_range(curves: Sequence[MeanCurve], target: float | None) -> tuple[float, float]:
    """The accuracies a learning-curve panel must show, with a little room."""
    values = np.concatenate([part for curve in curves for part in (curve.mean_X, curve.low_X, curve.high_X) if part is not None])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if target is not None and low - 0.2 <= target <= high + 0.2:
        low, high = min(low, target), max(high, target)
    room = max(0.06 * (high - low), 0.005)
    return low - room if low < 0 or low > room else min(low, 0.0), high + room


@dataclass(frozen=True)
class Frame:
    """A plotting rectangle and its scales, from data to pixels."""

    left: float
    top: float
    right: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        width = (self.x_high - self.x_low) or 1.0
        return self.left + (value - self.x_low) / width * (self.right - self.left)

    def y(self, value: float) -> float:
        height = (self.y_high - self.y_low) or 1.0
        return self.bottom - (value - self.y_low) / height * (self.bottom - self.top)

    def attributes(self) -> dict[str, str]:
        """The scales for the page's script."""
        numbers = (self.left, self.top, self.right, self.bottom, self.x_low, self.x_high, self.y_low, self.y_high)
        return {"data-frame": " ".join(f"{number:.6g}" for number in numbers)}


def curves_panel(
    curves: dict[str, MeanCurve],
    look: dict[str, Style],
    *,
    axis: str,
    unit: tuple[float, str],
    target: float | None,
    y_range: tuple[float, float],
) -> Canvas:
    """Mean learning curves with their bands; x is divided by `unit[0]` and named `unit[1]`."""
    scale, name = unit
    canvas = Canvas(520, 330)
    end = max(float(curve.x_X[-1]) for curve in curves.values()) / scale
    frame = Frame(46, 14, 506, 286, 0.0, end or 1.0, *y_range)
    canvas.attributes = {**frame.attributes(), "data-curves": axis, "data-unit": name}
    for value in ticks(*y_range, 6):
        canvas.add(Line(points=[(frame.left, frame.y(value)), (frame.right, frame.y(value))], colour="grid"))
        canvas.add(Text(x=frame.left - 8, y=frame.y(value) + 4, text=f"{value:g}", anchor="end", colour="muted"))
    canvas.add(Line(points=[(frame.left, frame.bottom), (frame.right, frame.bottom)], colour="axis"))
    for value in ticks(0.0, frame.x_high, 5):
        canvas.add(Line(points=[(frame.x(value), frame.bottom), (frame.x(value), frame.bottom + 4)], colour="axis"))
        canvas.add(Text(x=frame.x(value), y=frame.bottom + 19, text=compact(value), anchor="middle", colour="muted"))
    canvas.add(Text(x=frame.right, y=frame.bottom + 38, text=name, anchor="end", colour="muted"))
    if target is not None and y_range[0] < target < y_range[1]:
        canvas.add(Line(points=[(frame.left, frame.y(target)), (frame.right, frame.y(target))], colour="axis", dash=(2, 3)))
        near = any(abs(float(curve.mean_X[-1]) - target) < 0.1 * (y_range[1] - y_range[0]) for curve in curves.values())
        x = frame.left + 60 if near else frame.right
        canvas.add(Text(x=x, y=frame.y(target) - 5, text=f"target {target:g}", size=11, anchor="end", colour="muted"))
    for row, curve in curves.items():
        _add_band(canvas, frame, curve, look[row], scale)
    for row, curve in sorted(curves.items(), key=lambda item: look[item[0]].row, reverse=True):  # the best on top
        _add_curve(canvas, frame, curve, look[row], scale)
    return canvas


def _add_band(canvas: Canvas, frame: Frame, curve: MeanCurve, style: Style, scale: float) -> None:
    if curve.low_X is None or curve.high_X is None or len(curve.x_X) < 2:
        return
    there = [(frame.x(x / scale), frame.y(y)) for x, y in zip(curve.x_X, curve.low_X, strict=True)]
    back = [(frame.x(x / scale), frame.y(y)) for x, y in zip(curve.x_X, curve.high_X, strict=True)]
    canvas.add(Area(points=there + back[::-1], colour=style.colour, opacity=0.13, row=style.row))


def _add_curve(canvas: Canvas, frame: Frame, curve: MeanCurve, style: Style, scale: float) -> None:
    points = [(frame.x(x / scale), frame.y(y)) for x, y in zip(curve.x_X, curve.mean_X, strict=True)]
    if len(points) > 1:
        canvas.add(Line(points=points, colour=style.colour, width=2, dash=style.dash, row=style.row))
    if len(points) <= 30:
        canvas.add(*(Dot(x=x, y=y, radius=2.2, colour=style.colour, row=style.row) for x, y in points))


def heat_scale(maps: Sequence[Taught], arms: int) -> float:
    """The share at full colour, common to all maps: the 99th percentile of what was taught, at least twice an equal share."""
    shares = np.concatenate([taught.share_AC[np.isfinite(taught.share_AC)] for taught in maps])
    return float(max(np.quantile(shares, 0.99), 2 / arms)) if len(shares) else 2 / arms


def heat_lines(arm_names: Sequence[str], groups: dict[str, list[int]] | None) -> list[list[int]]:
    """The arms on each line of a heat map: one arm a line, families together, and neighbours joined beyond 100 arms."""
    order = [arm for arms in groups.values() for arm in arms] if groups else list(range(len(arm_names)))
    return [part.tolist() for part in np.array_split(np.array(order), min(len(order), MOST_LINES))]


def heat_panel(taught: Taught, league: League, groups: dict[str, list[int]] | None, full: float) -> Canvas:
    """What one row taught when: an arm a line, training from left to right, the deeper the colour the larger the share."""
    lines = heat_lines(league["arm_names"], groups)
    height = float(np.clip(240 / len(lines), 3, 16))
    labels = _heat_labels(lines, league["arm_names"], groups, height)
    gap = min(3.0, height / 2) if len(labels) < len(lines) and groups else 0.0
    tops, y = [], 4.0
    for line in range(len(lines)):
        y += gap if line in labels and line else 0
        tops.append(y)
        y += height
    frame = Frame(104, 4, 396, y, 0, taught.share_AC.shape[1], 0, len(lines))
    canvas = Canvas(404, y + 26)
    canvas.attributes = {**frame.attributes(), "data-tops": " ".join(f"{top:.4g}" for top in tops), "data-height": f"{height:.4g}"}
    for line, (label, span) in labels.items():
        middle = tops[line] + span * height / 2
        canvas.add(Text(x=96, y=middle + 4, text=shortened(label, 92, 11), size=11, anchor="end", colour="muted"))
    canvas.add(*shaded(taught.share_AC, lines, tops, frame, height, full))
    _add_steps(canvas, frame, taught.step_C)
    return canvas


def _heat_labels(
    lines: list[list[int]], names: Sequence[str], groups: dict[str, list[int]] | None, height: float
) -> dict[int, tuple[str, int]]:
    """What to write beside a heat map, by line, and how many lines it stands for: families, or as many arms as there is room for."""
    if groups is None or len(lines) < len(names):
        every = max(1, math.ceil(12 / height))
        return {line: (names[lines[line][0]], 1) for line in range(0, len(lines), every)}
    labels, line = {}, 0
    for family, arms in groups.items():
        labels[line] = (family, len(arms))
        line += len(arms)
    return labels


def _add_steps(canvas: Canvas, frame: Frame, step_C: Floats) -> None:
    """The x axis of a heat map: its first, middle and last step."""
    half = (step_C[1] - step_C[0]) / 2 if len(step_C) > 1 else 0.5
    low, high = step_C[0] - half, step_C[-1] + half
    places: tuple[tuple[float, Anchor], ...] = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    for share, anchor in places:
        x = frame.left + share * (frame.right - frame.left)
        label = f"{'step ' if share == 0 else ''}{low + share * (high - low):.0f}"
        canvas.add(Line(points=[(x, frame.bottom + 2), (x, frame.bottom + 6)], colour="axis"))
        canvas.add(Text(x=x, y=frame.bottom + 19, text=label, size=11, anchor=anchor, colour="muted"))


def shaded(share_AC: Floats, lines: list[list[int]], tops: list[float], frame: Frame, height: float, full: float) -> list[Cells]:
    """The cells of a heat map, one mark for each shade; neighbours of one shade are joined."""
    shade_LC = np.stack([np.nanmean(share_AC[line], axis=0) if len(line) > 1 else share_AC[line[0]] for line in lines]) / full
    shade_LC = np.where(np.isfinite(shade_LC), np.ceil(np.clip(shade_LC, 0, 1) * SHADES), 0).astype(int)
    width = (frame.right - frame.left) / shade_LC.shape[1]
    by_shade: dict[int, list[Rectangle]] = {}
    for top, shade_C in zip(tops, shade_LC, strict=True):
        edges = [0, *(np.flatnonzero(np.diff(shade_C)) + 1).tolist(), len(shade_C)]
        for start, stop in pairwise(edges):
            if shade := int(shade_C[start]):
                by_shade.setdefault(shade, []).append((frame.left + start * width, top, (stop - start) * width, height))
    return [Cells(cells=cells, colour="heat", opacity=round(0.06 + 0.94 * shade / SHADES, 2)) for shade, cells in sorted(by_shade.items())]


def family_panel(arms: Sequence[int], league: League, before_A: Floats, after: dict[str, Floats], look: dict[str, Style]) -> Canvas:
    """One family's levels side by side: a grey tick where accuracy stood before training, a stem to where each row brought it."""
    canvas = Canvas(264, 176)
    frame = Frame(30, 10, 258, 150, 0, len(arms), 0, 1)
    for value in (0, 0.5, 1):
        canvas.add(Line(points=[(frame.left, frame.y(value)), (frame.right, frame.y(value))], colour="grid" if value else "axis"))
        canvas.add(Text(x=frame.left - 6, y=frame.y(value) + 4, text=f"{value:g}", size=11, anchor="end", colour="muted"))
    slot = (frame.right - frame.left) / len(arms)
    step = min(10.0, slot * 0.78 / max(len(after), 1))
    half = max(step * len(after) / 2, 7)
    ticks = [(frame.x(i + 0.5) - half, frame.y(before_A[arm]) - 0.75, 2 * half, 1.5) for i, arm in enumerate(arms) if before_A[arm] >= 0]
    canvas.add(*([Cells(cells=ticks, colour="axis")] if ticks else []))
    for position, arm in enumerate(arms):
        label = shortened(level(league["arm_names"][arm]), slot - 2, 11)
        canvas.add(Text(x=frame.x(position + 0.5), y=frame.bottom + 17, text=label, size=11, anchor="middle", colour="muted"))
    for index, (row, after_A) in enumerate(after.items()):
        shift = (index - (len(after) - 1) / 2) * step
        ends = [(frame.x(i + 0.5) + shift, frame.y(after_A[arm])) for i, arm in enumerate(arms)]
        stems = [
            (x - 0.75, min(y, frame.y(before_A[arm])), 1.5, abs(y - frame.y(before_A[arm]))) for arm, (x, y) in zip(arms, ends, strict=True)
        ]
        _add_lollipops(canvas, league, row, look[row], arms, ends, stems, before_A, after_A)
    return canvas


def arms_panel(arms: Sequence[int], league: League, before_A: Floats, after: dict[str, Floats], look: dict[str, Style]) -> Canvas:
    """Arms without levels, one below the other: a grey tick before training, a stem to where each row brought it."""
    step = float(np.clip(18 / max(len(after), 1), 3, 6))
    pitch = max(16.0, step * len(after) + 6)
    canvas = Canvas(404, pitch * len(arms) + 34)
    frame = Frame(120, 4, 394, 4 + pitch * len(arms), 0, 1, 0, 1)
    for value in (0, 0.25, 0.5, 0.75, 1):
        canvas.add(Line(points=[(frame.x(value), frame.top), (frame.x(value), frame.bottom)], colour="grid" if value else "axis"))
        canvas.add(Text(x=frame.x(value), y=frame.bottom + 16, text=f"{value:g}", size=11, anchor="middle", colour="muted"))
    middles = [frame.top + (position + 0.5) * pitch for position in range(len(arms))]
    ticks = [
        (frame.x(before_A[arm]) - 0.75, y - pitch / 2 + 2, 1.5, pitch - 4)
        for arm, y in zip(arms, middles, strict=True)
        if before_A[arm] >= 0
    ]
    canvas.add(*([Cells(cells=ticks, colour="axis")] if ticks else []))
    for arm, y in zip(arms, middles, strict=True):
        canvas.add(Text(x=112, y=y + 4, text=shortened(league["arm_names"][arm], 108, 11), size=11, anchor="end", colour="muted"))
    for index, (row, after_A) in enumerate(after.items()):
        shift = (index - (len(after) - 1) / 2) * step
        ends = [(frame.x(after_A[arm]), y + shift) for arm, y in zip(arms, middles, strict=True)]
        stems = [
            (min(x, frame.x(before_A[arm])), y - 0.75, abs(x - frame.x(before_A[arm])), 1.5) for arm, (x, y) in zip(arms, ends, strict=True)
        ]
        _add_lollipops(canvas, league, row, look[row], arms, ends, stems, before_A, after_A)
    return canvas


def _add_lollipops(
    canvas: Canvas,
    league: League,
    row: str,
    style: Style,
    arms: Sequence[int],
    ends: Sequence[Point],
    stems: Sequence[Rectangle],
    before_A: Floats,
    after_A: Floats,
) -> None:
    """One row's stems as one mark, and its dots with what they say on hovering; what was not measured is left out."""
    if measured := [stem for stem in stems if np.all(np.isfinite(stem))]:
        canvas.add(Cells(cells=measured, colour=style.colour, opacity=0.45, row=style.row))
    for arm, (x, y) in zip(arms, ends, strict=True):
        if math.isfinite(after_A[arm]):
            tip = _tip(league, row, arm, before_A[arm], after_A[arm])
            canvas.add(Dot(x=x, y=y, radius=2.8, colour=style.colour, hollow=bool(style.dash), row=style.row, tip=tip))


def _tip(league: League, row: str, arm: int, before: float, after: float) -> str:
    name = next(display_name(item) for item in league["rows"] if item["name"] == row)
    was = "" if not np.isfinite(before) else f"{words.score(float(before))} → "
    return f"{league['arm_names'][arm]}\n{name}: {was}{words.score(float(after))}"


def interval_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """A range around 0 that holds every difference and interval, and does not let one wide interval squeeze the others beyond use."""
    ends = [abs(row["difference"]) for row in rows if row["difference"] is not None]
    ends += [abs(end) for row in rows if row["interval"] for end in row["interval"] if end is not None]
    reach = max(ends, default=0.0) * 1.06 or 0.01
    return -reach, reach


def interval_bar(row: Row, style: Style, limits: tuple[float, float], width: float = 170, height: float = 26) -> Canvas:
    """A row's difference from the baseline as a dot and its interval as a bar; zero is in the middle."""
    canvas = Canvas(width, height)
    frame = Frame(4, 0, width - 4, height, *limits, 0, 1)
    if row["difference"] is None:
        return canvas
    middle = height / 2
    if row["interval"] and row["interval"][0] is not None and row["interval"][1] is not None:
        low, high = frame.x(row["interval"][0]), frame.x(row["interval"][1])
        canvas.add(Line(points=[(low, middle), (high, middle)], colour=style.colour, width=2))
        canvas.add(*(Line(points=[(x, middle - 4), (x, middle + 4)], colour=style.colour, width=2) for x in (low, high)))
    canvas.add(Dot(x=frame.x(row["difference"]), y=middle, radius=4.5, colour=style.colour, hollow=bool(style.dash)))
    return canvas
