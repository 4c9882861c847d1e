"""A drawing of a few kinds of marks that becomes SVG (for the page, with its colours as CSS variables; or for a file) or PNG.

Coordinates are pixels, y downwards. Colours are named by role, so that a page can be light or dark and a figure stays one drawing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from io import BytesIO
from typing import Any, Literal

from tutelage.errors import missing_extra

Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]
Anchor = Literal["start", "middle", "end"]

# Hues are those of Okabe & Ito, which colour-blind readers can tell apart; in the dark theme the dark ones are lightened.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f26",
    "muted": "#5b6470",
    "grid": "#e6e8ec",
    "axis": "#a8afb9",
    "heat": "#0b5a94",
    "baseline": "#6b7280",
    "series-0": "#0072b2",
    "series-1": "#d55e00",
    "series-2": "#009e73",
    "series-3": "#b6528c",
    "series-4": "#bf7f00",
    "series-5": "#3a97cc",
}
DARK = {
    "paper": "#14171c",
    "ink": "#eceef1",
    "muted": "#a0a8b4",
    "grid": "#2a2f37",
    "axis": "#6b7480",
    "heat": "#7cc4f5",
    "baseline": "#9aa3af",
    "series-0": "#4aa3df",
    "series-1": "#f0783c",
    "series-2": "#2fc497",
    "series-3": "#dc8cb9",
    "series-4": "#f0b429",
    "series-5": "#8fd0f5",
}
HUES = 6
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


def _number(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What all marks share: a colour role, an opacity, and the row of the league they belong to (for highlighting on the page)."""

    colour: str = "ink"
    opacity: float = 1.0
    row: int | None = None

    def _common(self) -> str:
        parts = "" if self.opacity == 1 else f' opacity="{self.opacity:.2g}"'
        return parts if self.row is None else f'{parts} data-row="{self.row}"'


@dataclass(frozen=True, kw_only=True)
class Line(Mark):
    """A line through points; `dash` as in SVG, in pixels."""

    points: Sequence[Point]
    width: float = 1.0
    dash: tuple[float, ...] = ()

    def moved(self, dx: float, dy: float) -> Line:
        return replace(self, points=[(x + dx, y + dy) for x, y in self.points])

    def svg(self, paint: Any) -> str:
        dash = f' stroke-dasharray="{" ".join(map(_number, self.dash))}"' if self.dash else ""
        style = f'fill="none" stroke="{paint(self.colour)}" stroke-width="{self.width:g}" stroke-linejoin="round"{dash}{self._common()}'
        return f'<path d="{_path(self.points)}" {style}/>'

    def draw(self, axes: Any, paint: Any) -> None:
        x, y = zip(*self.points, strict=True)
        dashes: Any = (0, tuple(length * 0.72 / max(self.width * 0.72, 0.1) for length in self.dash)) if self.dash else "-"
        axes.plot(x, y, color=paint(self.colour), linewidth=self.width * 0.72, linestyle=dashes, alpha=self.opacity, dash_capstyle="butt")


@dataclass(frozen=True, kw_only=True)
class Area(Mark):
    """A filled polygon."""

    points: Sequence[Point]

    def moved(self, dx: float, dy: float) -> Area:
        return replace(self, points=[(x + dx, y + dy) for x, y in self.points])

    def svg(self, paint: Any) -> str:
        return f'<path d="{_path(self.points)}Z" fill="{paint(self.colour)}"{self._common()}/>'

    def draw(self, axes: Any, paint: Any) -> None:
        from matplotlib.patches import Polygon

        axes.add_artist(Polygon(self.points, facecolor=paint(self.colour), alpha=self.opacity, linewidth=0))


@dataclass(frozen=True, kw_only=True)
class Cells(Mark):
    """Rectangles (x, y, width, height) of one colour and opacity, as one path."""

    cells: Sequence[Rectangle]

    def moved(self, dx: float, dy: float) -> Cells:
        return replace(self, cells=[(x + dx, y + dy, width, height) for x, y, width, height in self.cells])

    def svg(self, paint: Any) -> str:
        boxes = (f"M{_number(x)} {_number(y)}h{_number(w)}v{_number(h)}h{_number(-w)}z" for x, y, w, h in self.cells)
        return f'<path d="{"".join(boxes)}" fill="{paint(self.colour)}"{self._common()}/>'

    def draw(self, axes: Any, paint: Any) -> None:
        from matplotlib.collections import PolyCollection

        corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in self.cells]
        axes.add_artist(PolyCollection(corners, facecolors=paint(self.colour), alpha=self.opacity, linewidths=0))


@dataclass(frozen=True, kw_only=True)
class Dot(Mark):
    """A disc, or with `hollow` a ring; `tip` is what the page shows on hovering."""

    x: float
    y: float
    radius: float = 3.0
    hollow: bool = False
    tip: str = ""

    def moved(self, dx: float, dy: float) -> Dot:
        return replace(self, x=self.x + dx, y=self.y + dy)

    def svg(self, paint: Any) -> str:
        colour = paint(self.colour)
        inside = f'fill="{paint("paper")}" stroke="{colour}" stroke-width="1.5"' if self.hollow else f'fill="{colour}"'
        tip = f' data-tip="{escape(printable(self.tip))}"' if self.tip else ""
        return f'<circle cx="{_number(self.x)}" cy="{_number(self.y)}" r="{self.radius:g}" {inside}{self._common()}{tip}/>'

    def draw(self, axes: Any, paint: Any) -> None:
        from matplotlib.patches import Circle

        inside = paint("paper") if self.hollow else paint(self.colour)
        edge = {"edgecolor": paint(self.colour), "linewidth": 1.1 if self.hollow else 0}
        axes.add_artist(Circle((self.x, self.y), self.radius, facecolor=inside, alpha=self.opacity, zorder=3, **edge))


@dataclass(frozen=True, kw_only=True)
class Text(Mark):
    """One line of text; y is its baseline, `size` its height in pixels."""

    x: float
    y: float
    text: str
    size: float = 12.0
    anchor: Anchor = "start"
    bold: bool = False

    def moved(self, dx: float, dy: float) -> Text:
        return replace(self, x=self.x + dx, y=self.y + dy)

    def svg(self, paint: Any) -> str:
        anchor = "" if self.anchor == "start" else f' text-anchor="{self.anchor}"'
        weight = ' font-weight="600"' if self.bold else ""
        style = f'font-size="{self.size:g}" fill="{paint(self.colour)}"{anchor}{weight}{self._common()}'
        return f'<text x="{_number(self.x)}" y="{_number(self.y)}" {style}>{escape(printable(self.text))}</text>'

    def draw(self, axes: Any, paint: Any) -> None:
        align = {"start": "left", "middle": "center", "end": "right"}[self.anchor]
        weight = "bold" if self.bold else "normal"
        style = {"color": paint(self.colour), "fontsize": self.size * 0.72 * 0.92, "fontweight": weight, "alpha": self.opacity}
        axes.text(self.x, self.y, printable(self.text).replace("$", r"\$"), ha=align, va="baseline", **style)


AnyMark = Line | Area | Cells | Dot | Text


def printable(text: str) -> str:
    """`text` without the control characters that XML forbids."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "\ufffd", text)


def shortened(text: str, width: float, size: float = 12.0) -> str:
    """`text` cut with an ellipsis to about `width` pixels at `size`; letters are taken as 0.55 of their height wide."""
    room = max(1, int(width / (0.55 * size)))
    return text if len(text) <= room else text[: room - 1] + "…"


@dataclass
class Canvas:
    """Marks on a sheet of `width` by `height` pixels; `attributes` are written on the page's <svg> for its script."""

    width: float
    height: float
    marks: list[AnyMark] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)

    def add(self, *marks: AnyMark) -> None:
        self.marks.extend(marks)

    def place(self, other: Canvas, x: float, y: float) -> None:
        """Draw another canvas with its corner at (x, y)."""
        self.marks.extend(mark.moved(x, y) for mark in other.marks)

    def page_svg(self, label: str) -> str:
        """An <svg> element for the page: colours are CSS variables, the size is the page's; `label` describes it to screen readers."""
        attributes = "".join(f' {key}="{escape(printable(value))}"' for key, value in self.attributes.items())
        box = f'viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        return (
            f'<svg {box} role="img" aria-label="{escape(printable(label))}"{attributes}>{self._inside(lambda role: f"var(--{role})")}</svg>'
        )

    def file_svg(self) -> str:
        """A whole SVG document in the light theme."""
        size = f'width="{_number(self.width)}" height="{_number(self.height)}" viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        font = escape(FONT)
        body = self._inside(LIGHT.__getitem__, drop=("data-row", "data-tip"))
        paper = f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{font}">{paper}{body}</svg>\n'

    def _inside(self, paint: Any, drop: Iterable[str] = ()) -> str:
        text = "\n".join(mark.svg(paint) for mark in self.marks)
        for name in drop:
            text = re.sub(rf' {name}="[^"]*"', "", text)
        return text

    def png(self, scale: float = 2.0) -> bytes:
        """A PNG of `scale` times the size, in the light theme.

        Raises:
            TutelageError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise missing_extra("matplotlib", "lm") from None
        figure = Figure(figsize=(self.width / 100, self.height / 100), dpi=100 * scale, facecolor=LIGHT["paper"])
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0), autoscale_on=False)
        axes.axis("off")
        for mark in self.marks:
            mark.draw(axes, LIGHT.__getitem__)
        buffer = BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()
