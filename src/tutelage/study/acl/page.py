"""The report of a benchmark: one HTML file in the look of the comparison's, with its figures beside it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.study import pieces, words
from tutelage.study.acl import drawings
from tutelage.study.acl.profiles import LEVELS
from tutelage.study.acl.verdicts import headline, knows, label
from tutelage.study.canvas import Canvas
from tutelage.study.figures import Style
from tutelage.study.report import page_html

MOST_BYTES = 2_000_000
FILMS = 1_200_000
TOLD = {
    "none": "the space alone",
    "low": "also the returns at which a task is solved, and at which a student does well or badly",
    "high": "also a Gaussian of easy tasks, and in which direction tasks become harder",
}


def write_page(result: dict[str, Any], out: Path) -> Path:
    """Write OUT/report.html, which opens offline, and OUT/figures (SVG, and PNG where matplotlib is installed)."""
    look = drawings.styles(result)
    radars = {level: _radar(result, level, look) for level in result["levels"]}
    curves, numbers = drawings.curve_panels(result, look)
    for name, canvas in {**{f"profile-{level}": c for level, c in radars.items()}, **{f"curves-{p}": c for p, c in curves.items()}}.items():
        _save(canvas, out / "figures" / name)
    page = _page(result, out, look, radars, curves, numbers, proposals=True)
    if len(page.encode()) > MOST_BYTES:
        page = _page(result, out, look, radars, curves, numbers, proposals=False)
    path = out / "report.html"
    atomic_write(path, page)
    return path


def _save(canvas: Canvas, path: Path) -> None:
    atomic_write(path.with_suffix(".svg"), canvas.file_svg())
    try:
        image = canvas.png()
    except TutelageError:  # matplotlib is an extra; the SVG files are the figures
        return
    atomic_write(path.with_suffix(".png"), image)


def _radar(result: dict[str, Any], level: str, look: Mapping[str, Style]) -> Canvas:
    rows = [row for row in result["rows"] if level in row["levels"]]
    return drawings.radar(rows, list(result["profiles"]), look)


def _page(
    result: dict[str, Any], out: Path, look: Mapping[str, Style], radars: Mapping[str, Canvas], curves: Mapping[str, Canvas],
    numbers: dict[str, Any], *, proposals: bool,
) -> str:  # fmt: skip
    key = [{"name": label(row), "colour": look[row["name"]].colour, "dash": bool(look[row["name"]].dash)} for row in result["rows"]]
    day = datetime.datetime.fromisoformat(result["created"])
    seeds = f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)}"
    deck = (
        f"{result['title']}: teachers of continuous task spaces in {len(result['profiles'])} challenge profiles, by the share of "
        f"{result['metric']} at the end, over {seeds}."
    )
    drawn = "\n".join(pieces.drawing(c, _spoken(result, level), f"Knowledge: {level}", TOLD[level]) for level, c in radars.items())
    panels = [pieces.drawing(c, f"Learning curves, {p}", p, result["profiles"][p]) for p, c in curves.items()]
    return page_html(
        title=result["title"],
        kicker=f"<b>tutelage</b> compare --suite {pieces.text(result['config']['suite'])} &ensp;·&ensp; {day.day} {day:%B %Y}",
        headline=headline(result),
        deck=pieces.text(deck),
        findings="",
        sections=[
            ("Mastered tasks", "mastered", _table(result, look)),
            ("Profiles", "profiles", _figure("profiles", "Profiles", "Random tasks are the grey area.", _legend(result, look), drawn)),
            ("Learning curves", "curves", _figure("curves", "Learning curves", _BANDS, _legend(result, look), "\n".join(panels))),
            ("What was proposed", "proposed", _proposed(result) if proposals else ""),
            ("Students", "students", _films(result, out)),
            ("Setup", "setup", _setup(result)),
        ],
        footer=_FOOTER,
        data={key: value for key, value in result.items() if key != "cells"},
        numbers={"rows": key, "arms": [], "curves": numbers, "heat": {}},
    )


_FOOTER = 'Made by tutelage. All curves are in <a href="benchmark.json">benchmark.json</a>, all proposals in <a href="traces/">traces</a>.'
_BANDS = "The share of test tasks mastered while training: means over seeds, with 95 % bootstrap bands, which are for the eye."


def _spoken(result: dict[str, Any], level: str) -> str:
    rows = [row for row in result["rows"] if level in row["levels"]]
    return "; ".join(f"{row['teacher']} masters {100 * row['overall']['mean']:.0f} % on average" for row in rows)


def _figure(anchor: str, title: str, lead: str, legend: str, panels: str) -> str:
    return f'<h2 id="{anchor}-h">{title}</h2>\n<p class="lead">{pieces.text(lead)}</p>\n{legend}\n<div class="pair">{panels}</div>'


def _legend(result: dict[str, Any], look: Mapping[str, Style]) -> str:
    items = [
        f'<li><button type="button" value="{look[row["name"]].row}" aria-pressed="false">{pieces.swatch(look[row["name"]])}'
        f"<span>{pieces.text(label(row))}</span></button></li>"
        for row in result["rows"]
    ]
    return f'<ul class="legend" aria-label="Key">{"".join(items)}</ul>'


def _table(result: dict[str, Any], look: Mapping[str, Style]) -> str:
    """Rows by teacher and knowledge, columns by profile."""
    columns = [("Teacher", "", ""), ("Knowledge", "The levels at which an expert tells the teacher this much.", "left")]
    columns += [(name, about, "") for name, about in result["profiles"].items()]
    columns += [("Mean", "Over the profiles; not judged.", "")]
    rows = []
    for row in result["rows"]:
        style = look[row["name"]]
        name = f'<div class="name">{pieces.swatch(style)}<div><span class="label">{pieces.text(row["teacher"])}</span></div></div>'
        cells = [f'<th scope="row" role="rowheader">{name}</th>', f'<td role="cell" class="left quiet">{pieces.text(knows(row))}</td>']
        cells += [_cell(f"profiles.{profile}", row["profiles"][profile]) for profile in result["profiles"]]
        cells.append(_cell("overall", row["overall"]))
        kind = "baseline" if row["name"] == result["baseline"] else "method"
        rows.append(f'<tr role="row" class="{kind}" data-name="{pieces.text(row["name"])}">{"".join(cells)}</tr>')
    about = "".join(f"<dt>{level}</dt><dd>{TOLD[level]}</dd>" for level in LEVELS)
    absent = _absent(result)
    return f"""<h2 id="mastered-h">Mastered tasks</h2>
<p class="lead">Per cent of {pieces.text(result["metric"])} at the end: means and 95 % t intervals over seeds, best mean first.</p>
{pieces.table("numbers", "Mastered tasks", pieces.head(columns), rows)}
{absent}<p class="note">{pieces.text(pieces.RULE)} Holm's correction is over {result["comparisons"]} comparisons with random tasks.</p>
<details><summary>What an expert tells at each level</summary><dl class="words">{about}</dl></details>"""


def _absent(result: dict[str, Any]) -> str:
    """Teachers that could not run at some level."""
    ran: dict[str, set[str]] = {}
    for row in result["rows"]:
        ran.setdefault(row["teacher"], set()).update(row["levels"])
    missing = [f"{teacher} at {level}" for teacher, levels in ran.items() for level in result["levels"] if level not in levels]
    return f'<p class="note">Not applicable, for lack of knowledge: {pieces.text(words.listing(missing))}.</p>\n' if missing else ""


def _cell(key: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    bounds = "" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f}"
    verdict = found.get("verdict", "baseline")
    badge = pieces.badge(verdict) if verdict in ("holds", "reversed") else ""
    shown = pieces.value(f"{key}.mean", found["mean"], f"{100 * found['mean']:.1f}", "strong")
    p = "" if verdict in ("baseline", "too few seeds") else f"p = {words.p_value(found['p_holm'])}".replace("= <", "< ")
    around = pieces.value(f"{key}.interval", found["interval"], bounds, "sub")
    return f'<td role="cell">{shown}{around}<span class="sub">{p}</span>{badge}</td>'


def _proposed(result: dict[str, Any]) -> str:
    """For each profile, what every row proposed when."""
    parts = []
    for i, (profile, about) in enumerate(result["profiles"].items()):
        panels = [
            pieces.drawing(canvas, f"What {label(row)} proposed when, {profile}", row["teacher"], knows(row))
            for row in result["rows"]
            if (canvas := drawings.proposals(result, row["name"], profile)) is not None
        ]
        opened = " open" if i == 0 else ""
        summary = f"{pieces.text(profile)}: {pieces.text(about)}"
        parts.append(f'<details{opened}><summary>{summary}</summary><div class="families">{"".join(panels)}</div></details>')
    return f"""<h2 id="proposed-h">What was proposed when</h2>
<p class="lead">All seeds together; one map per parameter, its range upwards, training from left to right; deeper is more.</p>
{"".join(parts)}"""


def _films(result: dict[str, Any], out: Path) -> str:
    """Films that students left behind, of the first seed in the first profile, as many as there is room for."""
    first, room, shown = next(iter(result["profiles"])), FILMS, []
    cells = {c["row"]: c for c in result["cells"] if c["profile"] == first and c["seed"] == result["seeds"][0]}
    for row in result["rows"]:
        for name in cells[row["name"]].get("kept", []):
            path = out / name
            if path.suffix != ".gif" or not path.exists() or path.stat().st_size > room:
                continue
            room -= path.stat().st_size
            data, said = base64.b64encode(path.read_bytes()).decode(), f"{label(row)}, {path.stem.replace('_', ' ')}"
            shown.append(
                f"<figure><figcaption>{pieces.text(said)}</figcaption>"
                f'<img src="data:image/gif;base64,{data}" alt="{pieces.text(said)}" style="width:100%"></figure>'
            )
    if not shown:
        return ""
    lead = f"The student of the first seed in the profile {first!r}, after its last lesson."
    return f'<h2 id="students-h">Students</h2>\n<p class="lead">{pieces.text(lead)}</p>\n<div class="families">{"".join(shown)}</div>'


def _setup(result: dict[str, Any]) -> str:
    config = yaml.safe_dump(result["config"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    made = "".join(
        f"<dt>{pieces.text(key)}</dt><dd>{pieces.text(str(value))}</dd>"
        for key, value in {**result["versions"], **result["machine"]}.items()
    )
    return f"""<h2 id="setup-h">Setup</h2>
<p class="lead">The command that made this report, with everything it resolved to.</p>
<pre class="command">{pieces.text(result["command"])}</pre>
<details><summary>Resolved configuration</summary><pre>{pieces.text(config)}</pre></details>
<details><summary>Versions and machine</summary><dl class="words">{made}</dl></details>"""
