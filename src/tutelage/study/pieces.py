"""The sections of the report's page: the league table, the figures with their captions, the table of costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from tutelage.study import answers, series, words
from tutelage.study.canvas import Canvas, Line, printable
from tutelage.study.figures import Style
from tutelage.study.plates import Plates
from tutelage.study.schema import League, Number, Row, display_name, progress_word

VERDICTS = {"holds", "reversed", "not shown", "too few seeds", "baseline", "control", "none", "low", "medium", "high"}
RULE = (
    "A verdict comes from the exact paired sign-flip test on the differences seed by seed, two-sided at 0.05, with Holm's correction over "
    "all comparisons. “Not shown” is not “no difference”; with too few seeds no result could pass, and none is called."
)
COSTS = (
    ("rollouts", "Rollouts", words.count, "Completions generated for training, those of rejected groups too."),
    ("rejected_rollouts", "of them\nrejected", words.count, "Completions of groups that the curriculum did not admit to an update."),
    ("updates", "Updates", words.count, "Optimiser steps."),
    ("tokens", "Tokens\ngenerated", words.count, "Tokens of all completions."),
    ("training_tokens", "Tokens\ntrained on", words.count, "Tokens that entered the loss."),
    ("seconds", "Training\ntime", words.duration, "Wall-clock time without evaluation."),
    ("evaluation_seconds", "Evaluation\ntime", words.duration, "Wall-clock time of the held-out evaluations."),
    ("curriculum_seconds", "Time in the\ncurriculum", words.duration, "Of the training time: choosing tasks and learning from outcomes."),
)


def text(value: str) -> str:
    """`value` as HTML text or attribute."""
    return escape(printable(value))


def badge(verdict: str) -> str:
    """A verdict, or an audit's severity, as a word on a coloured ground, with a shape for those who do not see the colour."""
    kind = verdict.replace(" ", "-") if verdict in VERDICTS else "other"
    return f'<span class="badge {kind}">{text(verdict)}</span>'


def value(key: str, exact: Any, shown: str, kind: str = "") -> str:
    """A number as shown, which carries its exact value as JSON."""
    classes = f' class="{kind}"' if kind else ""
    return f'<span{classes} data-key="{key}" data-value="{text(json.dumps(exact))}">{shown}</span>'


def swatch(style: Style) -> str:
    """The line and dot by which a row is known in every figure."""
    canvas = Canvas(26, 12)
    canvas.add(Line(points=[(0, 6), (26, 6)], colour=style.colour, width=2.5, dash=style.dash))
    return canvas.page_svg("").replace('role="img" aria-label=""', 'aria-hidden="true"')


def row_name(row: Row, style: Style) -> str:
    """A row's name cell: swatch, label, note."""
    note = f'<span class="sub">{text(row["note"])}</span>' if row["note"] else ""
    name = f'<div class="name">{swatch(style)}<div><span class="label">{text(row["label"])}</span>{note}</div></div>'
    return f'<th scope="row" role="rowheader">{name}</th>'


def head(columns: Sequence[tuple[str, str, str]]) -> str:
    """A table's head from (heading, explanation, class); line breaks in a heading are kept."""
    cells = []
    for heading, explanation, kind in columns:
        tip = f' data-tip="{text(explanation)}"' if explanation else ""
        classes = f' class="{kind}"' if kind else ""
        shown = text(heading).replace("\n", "<br>") or ("{ends}" if kind == "bar" else "")
        cells.append(f'<th scope="col" role="columnheader"{classes}{tip}>{shown}</th>')
    return f'<thead role="rowgroup"><tr role="row">{"".join(cells)}</tr></thead>'


def table(kind: str, label: str, header: str, rows: Sequence[str]) -> str:
    """A table that scrolls sideways where it does not fit."""
    inside = f'<table class="{kind}" role="table" aria-label="{text(label)}">{header}<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    return f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0">{inside}</div>'


def drawing(canvas: Canvas, spoken: str, title: str = "", note: str = "", key: str = "") -> str:
    """A panel as a figure with its title and, as HTML, its key of colours; `spoken` describes it to screen readers."""
    quiet = f' <span class="quiet">{text(note)}</span>' if note else ""
    caption = f"<figcaption>{text(title)}{quiet}</figcaption>" if title else ""
    return f"<figure>{caption}{key}{canvas.page_svg(spoken)}</figure>"


def sentence(phrase: str) -> str:
    """`phrase` with a capital."""
    return text(phrase[:1].upper() + phrase[1:])


# --- the league table


def league_section(league: League, plates: Plates) -> str:
    """The league table with verdicts and interval bars, and how to read it."""
    columns = _league_columns(league)
    rows = [_league_row(row, plates, league) for row in plates.rows]
    definitions = "".join(f"<dt>{text(' '.join(heading.split()))}</dt><dd>{text(tip)}</dd>" for heading, tip, _ in columns if tip)
    header = head(columns).replace("{ends}", _ends(plates))
    return f"""<h2 id="league-table-h">League table</h2>
<p class="lead">Means over {words.seeds_in_words(league)}, ranked by final {text(league["metric"])}.</p>
{table("league", "League table", header, rows)}
{_notes(league)}<p class="note">{text(RULE)}</p>
<details><summary>What the columns mean</summary><dl class="words">{definitions}</dl></details>"""


def _notes(league: League) -> str:
    """Comparisons beyond those with the baseline."""
    items = "".join(f"<li>{text(words.typeset(note))}</li>" for note in league.get("notes", []))
    return f'<div class="note"><b>Further comparisons</b><ul>{items}</ul></div>\n' if items else ""


def _league_columns(league: League) -> list[tuple[str, str, str]]:
    """Heading, explanation and class of each column."""
    baseline, metric = league["baseline"], league["metric"]
    short = baseline if len(baseline) <= 18 else baseline[:17] + "…"
    return [
        ("Method", "", ""),
        ("Verdict", f"{RULE} The p value is the one after that correction.", "left"),
        (f"Difference\nfrom {short}", f"Final {metric} minus that of {baseline} on the same seeds: mean and 95 % t interval.", ""),
        ("", "", "bar"),
        ("Final", f"Final {metric}: mean over arms and seeds, ± standard deviation over seeds.", ""),
        ("Worst arm", f"The arm with the least final {metric}.", ""),
        ("Hardest\nlevel", f"Final {metric} on the hardest level.", ""),
        ("Area", f"Mean {metric} over the whole run: the area under the learning curve.", ""),
        *((heading, tip, "") for _, heading, tip in _ratios(league)),
    ]


def _ratios(league: League) -> list[tuple[str, str, str]]:
    """Key, heading and explanation of the columns of what it cost to reach the target: none without a target."""
    if league["target"] is None:
        return []
    until = f"until {league['metric']} {league['target']:g}, as a multiple of what {league['baseline']} needed: below 1 is faster."
    unit = progress_word(league).capitalize()
    return [
        ("rollouts_to_target_ratio", f"{unit}\nto {league['target']:g}", f"{unit} {until}"),
        ("seconds_to_target_ratio", f"Time\nto {league['target']:g}", f"Training time {until}"),
    ]


def _ends(plates: Plates) -> str:
    """The scale above the interval bars."""
    if all(row["difference"] is None for row in plates.rows):
        return ""
    low, high = plates.limits
    return f'<div class="ends"><span>{words.signed(low, 2)}</span><span>0</span><span>{words.signed(high, 2)}</span></div>'


def _league_row(row: Row, plates: Plates, league: League) -> str:
    bounds = words.interval(row["interval"])
    compared = row["difference"] is not None
    bar = plates.bars[row["name"]].page_svg(f"{words.signed(row['difference'])} {bounds}") if compared else ""
    sd = value("final_sd", row["final_sd"], "" if row["final_sd"] is None else f"±{row['final_sd']:.3f}", "sub")
    cells = [
        row_name(row, plates.look[row["name"]]),
        f'<td role="cell" class="left verdict">{value("verdict", row["verdict"], badge(row["verdict"]))}{_p(row)}</td>',
        f'<td role="cell" class="effect" data-label="difference">{_big("difference", row["difference"], words.signed) if compared else ""}'
        f"{value('interval', row['interval'], bounds, 'sub')}</td>",
        f'<td role="cell" class="bar">{bar}</td>',
        f'<td role="cell" data-label="final">{_big("final", row["final"], words.score)}{sd}</td>',
        f'<td role="cell" data-label="worst arm">{value("worst_arm", row["worst_arm"], words.score(row["worst_arm"]))}{_worst(row)}</td>',
        f'<td role="cell" data-label="hardest level">{value("hardest", row["hardest"], words.score(row["hardest"]))}</td>',
        f'<td role="cell" data-label="area">{value("area", row["area"], words.score(row["area"]))}</td>',
    ]
    for key, heading, _ in _ratios(league):
        ratio = row[key]  # type: ignore[literal-required]
        cells.append(f'<td role="cell" data-label="{heading.lower()}">{value(key, ratio, words.ratio(ratio))}</td>')
    return f'<tr role="row" class="{row["kind"]}" data-name="{text(row["name"])}">{"".join(cells)}</tr>'


def _big(key: str, number: Number, form: Callable[[Number], str]) -> str:
    return value(key, number, form(number), "strong")


def _p(row: Row) -> str:
    return (
        value("p_holm", row["p_holm"], f"p = {words.p_value(row['p_holm'])}".replace("= <", "< "), "sub")
        if row["p_holm"] is not None
        else ""
    )


def _worst(row: Row) -> str:
    return f'<span class="sub long">{text(row["worst_arm_name"])}</span>' if row["worst_arm"] is not None else ""


# --- figures


def legend(plates: Plates, *, extra: str = "") -> str:
    """The key of colours; each entry lights up its row in every figure."""
    items = []
    for index, row in enumerate(plates.rows):
        inside = f"{swatch(plates.look[row['name']])}<span>{text(display_name(row))}</span>"
        items.append(f'<li><button type="button" value="{index}" aria-pressed="false">{inside}</button></li>')
    return f'<ul class="legend" aria-label="Key">{"".join(items)}{extra}</ul>'


def curves_section(league: League, plates: Plates) -> str:
    """Learning curves against rollouts (updates, where there are none) and against time."""
    if not plates.curves:
        return ""
    titles = {"rollouts": "Against rollouts", "step": "Against updates", "seconds": "Against time"}
    ends = "; ".join(f"{display_name(row)} ends at {words.score(row['final'])}" for row in plates.rows)
    panels = [drawing(panel, f"Learning curves {titles[axis].lower()}: {ends}", titles[axis]) for axis, panel in plates.curves.items()]
    bands = ", with 95 % bootstrap bands; bands are for the eye, the verdicts do not use them" if len(league["seeds"]) > 1 else ""
    return f"""<h2 id="curves-h">Learning curves</h2>
<p class="lead">{sentence(league["metric"])} while training: means over {words.seeds_in_words(league)}{bands}.</p>
{legend(plates)}
<div class="pair">{"".join(panels)}</div>"""


def heat_section(league: League, plates: Plates) -> str:
    """For each row that logged it, what was taught when."""
    if not plates.heat:
        return ""
    panels = [drawing(panel, f"What {display_name(row)} taught when", row["label"], row["note"]) for row, panel in plates.heat]
    equal = 1 / len(league["arm_names"])
    mark = f'<span class="equal" style="left:{100 * min(equal / plates.full, 1):.1f}%"></span>'
    levels = " Within a family, levels follow each other downwards." if series.families(league["arm_names"]) else ""
    return f"""<h2 id="taught-h">What was taught when</h2>
<p class="lead">Each line is an arm of tasks, and training runs from left to right: the deeper the colour, the larger its share.{levels}</p>
<p class="scale"><span>0 %</span><span class="ramp">{mark}</span>
<span>{100 * plates.full:.0f} % of the tasks or more; the mark is an equal share, {100 * equal:.1f} %</span></p>
<div class="heat">{"".join(panels)}</div>"""


def arms_section(league: League, plates: Plates, *, drawn: bool = True) -> str:
    """Accuracy of each arm before and after, drawn and as numbers."""
    if not plates.arms:
        return ""
    by_family = bool(plates.arms[0][0])
    kind, what = ("families", "each family of tasks, level by level") if by_family else ("arms", "each arm of tasks")
    figure = ""
    if drawn:
        panels = [drawing(panel, f"Accuracy before and after by arm {title}", title) for title, panel in plates.arms]
        before = f'<li><span class="key">{swatch(Style(-1, "axis", ()))} before training</span></li>'
        figure = f'{legend(plates, extra=before)}\n<div class="{kind}">{"".join(panels)}</div>'
    return f"""<h2 id="arms-h">Before and after, by arm</h2>
<p class="lead">{sentence(league["metric"])} on {what}: from the grey mark before training to the dot after it.</p>
{figure}
<details><summary>The same as numbers</summary>{_arms_table(league, plates)}</details>"""


def _arms_table(league: League, plates: Plates) -> str:
    before_A = series.accuracy_by_arm(league, None, 0)
    after = [(row, series.accuracy_by_arm(league, row["name"], -1)) for row in plates.rows]
    header = head([("Arm", "", ""), ("before", "", ""), *((display_name(row), "", "") for row, _ in after)])
    rows = []
    for arm, name in enumerate(league["arm_names"]):
        accuracies = [before_A[arm], *(after_A[arm] for _, after_A in after)]
        cells = "".join(f"<td>{words.score(None if math.isnan(accuracy) else accuracy)}</td>" for accuracy in accuracies)
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return table("numbers", "Accuracy by arm", header, rows)


def answers_section(league: League, plates: Plates, *, drawn: bool = True) -> str:
    """Diagnostics of the measured answers, drawn and as numbers, and warnings of rambling."""
    if not plates.answers:
        return ""
    panels = [drawing(panel, f"{title} while training", title) for title, panel in plates.answers]
    figure = f'{legend(plates)}\n<div class="families">{"".join(panels)}</div>' if drawn else ""
    warned = "".join(f"<li>{text(words.typeset(warning))}</li>" for warning in answers.warnings(league))
    return f"""<h2 id="answers-h">The answers themselves</h2>
<p class="lead">The same measured answers, looked at beside whether they are right: means over {words.seeds_in_words(league)}.</p>
{f'<div class="note"><b>Warnings</b><ul>{warned}</ul></div>' if warned else ""}{figure}
<details><summary>The same as numbers, and reasoning behaviours by keyword</summary>{_answers_table(league, plates)}</details>"""


def _answers_table(league: League, plates: Plates) -> str:
    before = series.mean_diagnostics(league, None, 0)
    found = [("before training", before), *((display_name(row), series.mean_diagnostics(league, row["name"], -1)) for row in plates.rows)]
    shown = answers.columns({name: value for _, one in found for name, value in one.items()})
    rows = []
    for name, one in found:
        values = [(one.get(key, math.nan), form) for key, _, form in shown]
        cells = "".join(f"<td>{form(None if math.isnan(amount) else amount)}</td>" for amount, form in values)
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return table("numbers", "Diagnostics", head([("Row", "", ""), *((heading, "", "") for _, heading, _ in shown)]), rows)


# --- cost


def cost_section(league: League, plates: Plates) -> str:
    """What each row cost, as means over seeds."""
    header = head([("Method", "", ""), *((heading, tip, "") for _, heading, _, tip in COSTS)])
    costs: list[dict[str, Any]] = [dict(row["cost"]) for row in plates.rows]
    most = {key: max((cost[key] or 0 for cost in costs), default=0) for key, *_ in COSTS}
    rows = []
    for row, cost in zip(plates.rows, costs, strict=True):
        cells = []
        for key, _, form, _ in COSTS:
            amount = cost[key]
            part = 76 * (amount or 0) / most[key] if most[key] else 0
            shown = f'<span class="amount" style="--part:{part:.0f}px">{form(amount)}</span>'
            cells.append(f'<td role="cell">{value(f"cost.{key}", amount, shown)}</td>')
        name = row_name(row, plates.look[row["name"]])
        rows.append(f'<tr role="row" class="{row["kind"]}" data-name="{text(row["name"])}">{name}{"".join(cells)}</tr>')
    return f"""<h2 id="cost-h">Cost</h2>
<p class="lead">What one run of each row used; means over {words.seeds_in_words(league)}.</p>
{table("cost", "Cost", header, rows)}"""
