"""The report of a comparison: one HTML file that opens offline, under 2 MB, with its figures beside it as SVG and PNG.

The page loads nothing: styles, script, drawings and numbers are in it, and its content security policy forbids the rest. Every number of
its tables carries the exact value of the league as `data-value`.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.study import pieces, words
from tutelage.study.canvas import DARK, FONT, LIGHT
from tutelage.study.plates import Plates, draw, save_figures
from tutelage.study.schema import League, check_league

MOST_BYTES = 2_000_000
PAGE_LIGHT = {
    "page": "#fdfdfb",
    "paper": "#fdfdfb",
    "sunk": "#f5f5f1",
    "wash": "#e9edf2",
    "holds": "#dff1ea",
    "holds-ink": "#00563f",
    "reversed": "#fbe6d8",
    "reversed-ink": "#8f3a00",
    "plain": "#ecedef",
    "plain-ink": "#434a54",
    "few": "#f8ecd0",
    "few-ink": "#6a4a00",
}
PAGE_DARK = {
    "page": "#14171c",
    "paper": "#14171c",
    "sunk": "#1b1f26",
    "wash": "#262c35",
    "holds": "#12372d",
    "holds-ink": "#7fe0bf",
    "reversed": "#43260f",
    "reversed-ink": "#ffb489",
    "plain": "#2a2f37",
    "plain-ink": "#c4cad3",
    "few": "#3b2f10",
    "few-ink": "#f2cf7c",
}


def write_report(league: dict[str, Any] | League, out: Path) -> Path:
    """Write `out`/report.html and the figures in `out`/figures (SVG, and PNG where matplotlib is installed).

    The page holds the league's rows, curves and configuration as JSON, and what the figures show; single lessons of single runs are in
    the league itself, which the caller keeps as `out`/league.json.

    Args:
        league: as `tutelage.study.schema.League`; NaN is read as null.
        out: a folder, made where it does not exist. Existing files are replaced whole or not at all.

    Returns:
        The path of report.html.

    Raises:
        TutelageError: the league is not of the expected form, or the files cannot be written.
    """
    checked = check_league(league)
    plates = draw(checked)
    page = report_html(checked, plates)
    save_figures(checked, plates, out / "figures")
    path = out / "report.html"
    atomic_write(path, page)
    return path


def report_html(league: League, plates: Plates) -> str:
    """The page as text, under 2 MB: from a very large league the parts that only the script reads are left out first, then drawings."""
    for detail in range(4):
        page = _page(league, plates, detail)
        if len(page.encode()) < MOST_BYTES:
            return page
    raise TutelageError(
        f"The report of {len(league['rows'])} rows and {len(league['arm_names'])} arms would exceed {MOST_BYTES // 10**6} MB even without "
        "its drawings. Compare fewer methods at a time, or give the configuration without embedded data."
    )


def _page(league: League, plates: Plates, detail: int) -> str:
    """The page; `detail` 0 is everything, 1 leaves out each run's curve from the JSON, 2 the tooltips' data, 3 the panels by arm."""
    numbers = plates.numbers if detail < 2 else {**plates.numbers, "curves": {}, "heat": {}}
    sections = [
        ("League table", "league-table", pieces.league_section(league, plates)),
        ("Learning curves", "curves", pieces.curves_section(league, plates)),
        ("What was taught", "taught", pieces.heat_section(league, plates)),
        ("By arm", "arms", pieces.arms_section(league, plates, drawn=detail < 3)),
        ("Answers", "answers", pieces.answers_section(league, plates, drawn=detail < 3)),
        ("Cost", "cost", pieces.cost_section(league, plates)),
        ("Setup", "setup", _setup_section(league)),
    ]
    return page_html(
        title=league["title"],
        kicker=_kicker(league),
        headline=words.headline(league),
        deck=_deck(league),
        findings=_findings(plates),
        sections=sections,
        footer=_footer(league),
        data=_summary(league, with_curves=detail < 1),
        numbers=numbers,
    )


def page_html(
    *,
    title: str,
    kicker: str,
    headline: str,
    deck: str,
    findings: str,
    sections: Sequence[tuple[str, str, str]],
    footer: str,
    data: Any,
    numbers: dict[str, Any],
) -> str:
    """A page in the report's look, which loads nothing.

    title, headline: as plain text; kicker, deck, findings, footer: as HTML. sections: name, anchor and HTML body of each; those without a
    body are left out. data: what the page holds as JSON for other programs. numbers: what the script shows of curves and maps, see
    `Plates.numbers`.
    """
    script = _resource("report.js")
    present = [(name, anchor, body) for name, anchor, body in sections if body]
    return Template(_resource("report.html")).substitute(
        title=pieces.text(title),
        style=_style(),
        kicker=kicker,
        headline=pieces.text(headline),
        deck=deck,
        findings=findings,
        nav="<nav>" + "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor, _ in present) + "</nav>",
        sections="\n".join(f'<section id="{anchor}" aria-labelledby="{anchor}-h">\n{body}\n</section>' for _, anchor, body in present),
        footer=footer,
        league=embedded(data),
        figures=embedded(numbers),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _resource(name: str) -> str:
    return (files("tutelage.study") / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """JSON that is safe inside a <script> element: nothing in it can end the element or start another."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _summary(league: League, *, with_curves: bool) -> dict[str, Any]:
    """The league without what only league.json holds: single lessons, accuracy by arm and diagnostics at every evaluation."""
    cells = []
    for cell in league["cells"]:
        kept: dict[str, Any] = {"row": cell["row"], "seed": cell["seed"], "totals": cell["totals"]}
        if with_curves:
            kept["curve"] = {key: values for key, values in cell["curve"].items() if key not in ("by_arm", "diagnostics")}
        cells.append(kept)
    return {**league, "cells": cells}


def _style() -> str:
    def variables(*themes: dict[str, str]) -> str:
        merged = {name: value for theme in themes for name, value in theme.items()}
        return " ".join(f"--{name}: {value};" for name, value in merged.items())

    light, dark = variables(LIGHT, PAGE_LIGHT), variables(DARK, PAGE_DARK)
    schemes = f":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return schemes + Template(_resource("report.css")).substitute(font=FONT, print=light)


def _kicker(league: League) -> str:
    try:
        day = datetime.datetime.fromisoformat(league["created"])
        created = f"{day.day} {day:%B %Y}"
    except ValueError:
        created = league["created"]
    return f"<b>tutelage</b> compare &ensp;·&ensp; {pieces.text(created)}"


def _deck(league: League) -> str:
    budget, arms = league["budget"], len(league["arm_names"])
    title = league["title"].rstrip(".")
    given = f"{words.count(budget['amount'])} {budget['kind']}"
    scored = "the task" if arms == 1 else f"{arms} task arms"
    runs = f"Each method was given {given} on each of {words.seeds_in_words(league)}"
    return pieces.text(f"{title}. {runs} and scored by {league['metric']} on {scored}.")


def _findings(plates: Plates) -> str:
    """The sentences of the methods; those of controls stand in the table's verdicts."""
    items = []
    for row in words.judged(plates.rows):
        if row["kind"] == "method":
            said = f"<b>{pieces.text(row['label'])}</b>{pieces.text(words.finding(row))}"
            items.append(f"<li>{pieces.badge(row['verdict'])}<span>{said}</span></li>")
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _setup_section(league: League) -> str:
    config = yaml.safe_dump(league["config"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return f"""<h2 id="setup-h">Setup</h2>
<p class="lead">The command that made this report, with everything it resolved to.</p>
<pre class="command">{pieces.text(league["command"])}</pre>
<details><summary>Resolved configuration</summary><pre>{pieces.text(config)}</pre></details>
<details><summary>Versions and machine</summary>{_pairs({**league["versions"], **league["machine"]})}</details>"""


def _pairs(values: dict[str, Any]) -> str:
    shown = {key: "none" if value is None else str(value) for key, value in values.items()}
    items = "".join(f"<dt>{pieces.text(key)}</dt><dd>{pieces.text(value)}</dd>" for key, value in shown.items())
    return f'<dl class="words">{items}</dl>'


def _footer(league: League) -> str:
    version = league["versions"].get("tutelage", "")
    return (
        f'Made by tutelage {pieces.text(version)}. Every lesson of every run is in <a href="league.json">league.json</a>; '
        'the figures are files in <a href="figures/">figures</a>.'
    )
