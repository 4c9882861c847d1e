"""The report's panel on the answers themselves: length, truncation, format, diversity and pass@k beside accuracy; warnings of rambling.

Drawn from the diagnostics that each evaluation recorded (`tutelage.tasks.diagnostics`); a league without any has no panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from tutelage.study import series, words
from tutelage.study.canvas import Canvas, Dot, Line, Text
from tutelage.study.figures import Frame, Style, compact, ticks
from tutelage.study.schema import League, Row, display_name, progress_axis, progress_word
from tutelage.tasks.diagnostics import rambling

Form = Callable[[float | None], str]


def share(value: float | None) -> str:
    """A share as a percentage: 12 %."""
    return words.MISSING if value is None else f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """A mean length or count: 7.3, 412."""
    return words.MISSING if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


PANELS: tuple[tuple[str, str, Form], ...] = (
    ("mean_length", "Mean length, tokens", number),
    ("stopped_length", "Length of those that ended", number),
    ("clip_ratio", "Cut off at the limit", share),
    ("format_rate", "Well formed", share),
    ("dead_share", "Groups all alike", share),
    ("distinct_answers", "Different answers to a task", number),
)
MORE: tuple[tuple[str, str], ...] = (("behaviours.", "Shows "), ("pass_at_k.", "pass@"))


def warnings(league: League) -> list[str]:
    """A sentence for each row whose answers got longer and were cut off more often, in the league's order."""
    found = []
    for row in league["rows"]:
        before, after = (series.mean_diagnostics(league, row["name"], position) for position in (0, -1))
        if warning := rambling(before, after):
            found.append(f"{display_name(row)}: {warning}")
    return found


def panels(league: League, rows: Sequence[Row], look: dict[str, Style]) -> list[tuple[str, Canvas]]:
    """A small panel for each diagnostic that was measured, and one of pass@k after training; titles first."""
    drawn = []
    for metric, title, form in PANELS:
        curves = {row["name"]: series.mean_curve(league, row["name"], progress_axis(league), None, metric) for row in rows}
        lines = {name: list(zip(curve.x_X, curve.mean_X, strict=True)) for name, curve in curves.items() if curve is not None}
        if lines:
            end = max(x for line in lines.values() for x, _ in line)
            drawn.append((title, _panel(lines, look, form, ("0", f"{words.count(end)} {progress_word(league)}"))))
    lines = {row["name"]: _pass_at_k(series.mean_diagnostics(league, row["name"], -1)) for row in rows}
    if lines := {name: points for name, points in lines.items() if len(points) > 1}:
        largest = max(round(2**x) for points in lines.values() for x, _ in points)
        drawn.append(("pass@k after training", _panel(lines, look, share, ("k = 1", f"k = {largest}"))))
    return drawn


def _pass_at_k(found: dict[str, float]) -> list[tuple[float, float]]:
    points = {int(name.partition(".")[2]): value for name, value in found.items() if name.startswith("pass_at_k.")}
    return [(math.log2(k), points[k]) for k in sorted(points) if math.isfinite(points[k])]


def _panel(lines: dict[str, list[tuple[float, float]]], look: dict[str, Style], form: Form, ends: tuple[str, str]) -> Canvas:
    """One line a row; shares run from 0 to 1 at most, the rest from 0 to a little above the largest. ends: what the x axis says."""
    canvas = Canvas(264, 150)
    points = [point for line in lines.values() for point in line]
    high = max(max(y for _, y in points) * 1.06, 0.05)
    frame = Frame(42, 8, 258, 124, 0.0, max(x for x, _ in points) or 1.0, 0.0, min(high, 1.0) if form is share else high)
    for value in ticks(0.0, frame.y_high, 3):
        canvas.add(Line(points=[(frame.left, frame.y(value)), (frame.right, frame.y(value))], colour="grid" if value else "axis"))
        label = f"{100 * value:.3g}%" if form is share else compact(value)
        canvas.add(Text(x=frame.left - 6, y=frame.y(value) + 4, text=label, size=11, anchor="end", colour="muted"))
    canvas.add(Text(x=frame.left, y=frame.bottom + 17, text=ends[0], size=11, colour="muted"))
    canvas.add(Text(x=frame.right, y=frame.bottom + 17, text=ends[1], size=11, anchor="end", colour="muted"))
    for row, line in sorted(lines.items(), key=lambda item: look[item[0]].row, reverse=True):  # the best on top
        style, placed = look[row], [(frame.x(x), frame.y(y)) for x, y in line]
        if len(placed) > 1:
            canvas.add(Line(points=placed, colour=style.colour, width=1.75, dash=style.dash, row=style.row))
        canvas.add(Dot(x=placed[-1][0], y=placed[-1][1], radius=2.4, colour=style.colour, row=style.row))
    return canvas


def columns(found: Collection[str]) -> list[tuple[str, str, Form]]:
    """Name, heading and form of every diagnostic whose flat name is among `found`, in the order they are shown."""
    known = [column for column in PANELS if column[0] in found]
    for prefix, heading in MORE:
        known += [(name, heading + name.removeprefix(prefix).replace("_", " "), share) for name in found if name.startswith(prefix)]
    return known
