"""The page of an audit: one HTML file that opens offline, in the look of the comparison's report.

The finding and its severity; every check with its effect, interval and base rate; the rows that carry the evidence; curves where a check
has them; warnings about the subject; the command that makes the verdict again. The verdict itself is in the page as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits.verdict import Check, Curve, Verdict
from tutelage.files import atomic_write
from tutelage.study import figures, pieces, words
from tutelage.study.canvas import HUES, Canvas
from tutelage.study.figures import Style
from tutelage.study.plates import curve_numbers
from tutelage.study.report import page_html
from tutelage.study.series import MeanCurve

LONG = 80
"""Signs from which on a piece of evidence stands in a block of its own."""
MOST = 4000
"""Signs of one piece of evidence on the page; the JSON in it has all of them."""
COLUMNS = (
    ("Check", "", ""),
    ("Severity", "None where nothing was found; the command's exit status is 1 from the threshold on.", "left"),
    ("Effect", "What was measured, with its 95 % interval.", ""),
    ("Clean twin", "The same number on the clean twin: the base rate.", ""),
    ("p", "Of the check's test, after Holm's correction over all checks of the audit.", ""),
    ("What was seen", "", "left"),
)


def write_page(verdict: Verdict, path: Path) -> Path:
    """Write the page of a verdict; an existing file is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, verdict_html(verdict))
    return path


def verdict_html(verdict: Verdict) -> str:
    """The page of a verdict as text."""
    panels, numbers = _panels(verdict.checks)
    return page_html(
        title=f"audit {verdict.audit}: {verdict.subject}",
        kicker=f"<b>tutelage</b> audit {pieces.text(verdict.audit)}",
        headline=words.typeset(verdict.finding[:1].upper() + verdict.finding[1:]),
        deck=_deck(verdict),
        findings=_findings(verdict),
        sections=[
            ("Checks", "checks", _checks(verdict)),
            ("Evidence", "evidence", _evidence(verdict)),
            ("Curves", "curves", _curves(verdict, panels)),
            ("Warnings", "warnings", _warnings(verdict)),
            ("Again", "again", _again(verdict)),
        ],
        footer="Made by tutelage. The whole verdict is in this page as JSON.",
        data=json.loads(verdict.to_json()),
        numbers=numbers,
    )


def _deck(verdict: Verdict) -> str:
    checks = f"{len(verdict.checks)} checks" if len(verdict.checks) > 1 else "One check"
    alarm = f"{100 * verdict.false_positive_rate:.2g} %"
    return pieces.text(f"{checks} of {verdict.subject}. On a clean subject, the chance of any finding is at most {alarm}.")


def _findings(verdict: Verdict) -> str:
    found = [check for check in verdict.checks if check.found]
    said = [f"<li>{pieces.badge(c.severity)}<span><b>{pieces.text(c.name)}</b>: {_said(c.finding)}</span></li>" for c in found]
    return f'<ul class="findings">{"".join(said)}</ul>' if found else ""


def _said(finding: str) -> str:
    return pieces.text(words.typeset(finding))


def _checks(verdict: Verdict) -> str:
    rows = "".join(_check_row(check) for check in verdict.checks)
    return f"""<h2 id="checks-h">Checks</h2>
<p class="lead">One question each. A clean twin gives base rates, and can clear a finding but never make one.</p>
{pieces.table("checks", "Checks", pieces.head(COLUMNS), [rows])}"""


def _check_row(check: Check) -> str:
    effect = check.effect
    bounds = "" if effect is None or effect.low is None or effect.high is None else f"[{_figures(effect.low)}, {_figures(effect.high)}]"
    cells = [
        f'<th scope="row"><span class="label">{pieces.text(check.name)}</span></th>',
        f'<td class="left">{pieces.value("severity", check.severity, pieces.badge(check.severity))}</td>',
        f"<td>{_number('effect', None if effect is None else effect.value, 'strong')}<span class='sub'>{bounds}</span></td>",
        f"<td>{_number('base_rate', check.base_rate)}</td>",
        f"<td>{pieces.value('p_holm', _finite(check.p_holm), words.p_value(_finite(check.p_holm)))}</td>",
        f'<td class="said">{_said(check.finding)}<span class="sub">{pieces.text("" if effect is None else effect.what)}</span></td>',
    ]
    return f'<tr class="{"method" if check.found else "plain"}" data-name="{pieces.text(check.name)}">{"".join(cells)}</tr>'


def _number(key: str, number: float | None, kind: str = "") -> str:
    exact = _finite(number)
    return pieces.value(key, exact, words.MISSING if exact is None else _figures(exact), kind)


def _figures(number: float) -> str:
    """Three figures, with a real minus sign."""
    return f"{number:.3g}".replace("-", words.MINUS)


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)


def _evidence(verdict: Verdict) -> str:
    shown = [check for check in verdict.checks if check.evidence]
    if not shown:
        return ""
    parts = []
    for check in shown:
        parts.append(f"<h3>{pieces.text(check.name)}{pieces.badge(check.severity)}</h3>")
        parts += [_attempt(row) for row in check.evidence]
    return f"""<h2 id="evidence-h">Evidence</h2>
<p class="lead">Rows of the subject that show each finding.</p>
{"".join(parts)}"""


def _attempt(row: Mapping[str, Any]) -> str:
    """A row one can read: short values on one line, long texts in blocks below it."""
    short, long = [], []
    for name, value in row.items():
        said = value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)
        if len(said) > LONG or "\n" in said or name == "completion":
            cut = said if len(said) <= MOST else said[:MOST] + "…"
            long.append(f"<p>{pieces.text(str(name))}</p><pre>{pieces.text(cut)}</pre>")
        else:
            short.append(f"{pieces.text(str(name))} <b>{pieces.text(said)}</b>")
    return f'<div class="attempt"><p>{" &ensp;·&ensp; ".join(short)}</p>{"".join(long)}</div>'


# --- curves


@dataclass(frozen=True)
class Drawn:
    """A panel of a check: its title, its drawing, and the lines in it by name."""

    title: str
    canvas: Canvas
    lines: dict[str, Style]


def _panels(checks: Sequence[Check]) -> tuple[dict[str, list[Drawn]], dict[str, Any]]:
    """The panels of each check, and the numbers behind them for the page's script."""
    look: dict[str, tuple[Style, bool]] = {}
    panels: dict[str, list[Drawn]] = {}
    numbers: dict[str, Any] = {}
    for check in checks:
        for title in dict.fromkeys(curve.panel for curve in check.curves):
            lines = {curve.name: _mean_curve(curve) for curve in check.curves if curve.panel == title}
            lines = {name: curve for name, curve in lines.items() if len(curve.x_X)}
            for name in lines:  # a line that is alone needs no colour of its own
                place = 0 if len(lines) == 1 else sum(named for _, named in look.values())
                style = Style(len(look), f"series-{place % HUES}", () if place < HUES else (6.0, 4.0))
                look.setdefault(name, (style, len(lines) > 1))
            if lines:
                key = f"panel {len(numbers)}"
                x_name = next(curve.x_name for curve in check.curves if curve.panel == title)
                y_range = figures.score_range(list(lines.values()), None)
                styles = {name: look[name][0] for name in lines}
                canvas = figures.curves_panel(lines, styles, axis=key, unit=(1.0, x_name), target=None, y_range=y_range)
                panels.setdefault(check.name, []).append(Drawn(title, canvas, styles))
                numbers[key] = [curve_numbers(curve, styles[name]) for name, curve in lines.items()]
    rows = [{"name": name, "colour": style.colour, "dash": bool(style.dash)} for name, (style, _) in look.items()]
    return panels, {"rows": rows, "arms": [], "curves": numbers, "heat": {}}


def _mean_curve(curve: Curve) -> MeanCurve:
    """The points of a curve that are known."""
    parts = [np.array(part, dtype=np.float64) for part in (curve.x, curve.y, curve.low, curve.high) if part is not None]
    known_X = np.isfinite(np.array(parts)).all(axis=0)
    x_X, y_X, *band = (part[known_X] for part in parts)
    return MeanCurve(x_X, y_X, *(band if band else (None, None)))


def _curves(verdict: Verdict, panels: dict[str, list[Drawn]]) -> str:
    if not panels:
        return ""
    figures_of = [(check, part) for check in verdict.checks for part in panels.get(check.name, ())]
    shown = [pieces.drawing(part.canvas, f"{part.title}, as {c.name} saw it", c.name, part.title, _key(part)) for c, part in figures_of]
    return f"""<h2 id="curves-h">Curves</h2>
<p class="lead">What the checks saw along the way; point at a panel for its numbers.</p>
<div class="arms">{"".join(shown)}</div>"""


def _key(drawn: Drawn) -> str:
    """The key of colours, where a panel has several lines."""
    if len(drawn.lines) == 1:
        return ""
    items = [
        f'<li><span class="key">{pieces.swatch(style)}<span>{pieces.text(name)}</span></span></li>' for name, style in drawn.lines.items()
    ]
    return f'<ul class="legend" aria-label="Key">{"".join(items)}</ul>'


# --- the rest


def _warnings(verdict: Verdict) -> str:
    if not verdict.warnings:
        return ""
    rows = [
        f'<tr><td class="said">{pieces.text(w.what)}</td><td>{w.count:,}</td><td class="said">{pieces.text(w.first)}</td></tr>'
        for w in verdict.warnings
    ]
    header = pieces.head([("Warning", "", "left"), ("How often", "", ""), ("First", "", "left")])
    return f"""<h2 id="warnings-h">Warnings</h2>
<p class="lead">What was wrong with the data and was counted, not passed over.</p>
{pieces.table("checks", "Warnings", header, rows)}"""


def _again(verdict: Verdict) -> str:
    return f"""<h2 id="again-h">Again</h2>
<p class="lead">The command that makes this verdict.</p>
<pre class="command">{pieces.text(verdict.command)}</pre>"""
