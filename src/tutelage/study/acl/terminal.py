"""The table of a benchmark in the terminal: the share of test tasks mastered per teacher and profile, within 100 columns."""

from __future__ import annotations

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.study.acl.verdicts import headline, knows

WIDTH = 100
MARKS = {"holds": ("▲", "bold green"), "reversed": ("▼", "bold red"), "too few seeds": ("?", "magenta")}


def render(result: dict[str, Any], console: Console) -> None:
    """Print the table and what it means."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("teacher", overflow="fold", max_width=20)
    table.add_column("knowledge", overflow="fold", max_width=9)
    for profile in result["profiles"]:
        table.add_column(profile, justify="right", overflow="fold")
    table.add_column("mean", justify="right")
    for row in result["rows"]:
        base = row["name"] == result["baseline"]
        cells = [_cell(row["profiles"][profile]) for profile in result["profiles"]]
        table.add_row(Text(row["teacher"], style="" if base else "bold"), Text(knows(row), style="dim"), *cells, _cell(row["overall"]))
    seeds = len(result["seeds"])
    given = f"% of {result['metric']} at the end, ± half the 95 % t interval · {seeds} seed{'s' * (seeds > 1)}"
    console.print(Text.assemble("\n", (result["title"], "bold"), "\n", (given, "dim")))
    console.print(table, width=min(WIDTH, console.width))
    rule = (
        f"▲ ▼ more or fewer than with random tasks: exact paired sign-flip test, two-sided 0.05, Holm over {result['comparisons']} "
        "comparisons; no mark: not shown. Knowledge: the expert's levels at which a teacher is told the same."
    )
    rule += " ?: too few seeds for a verdict." if any(_verdicts(result)) else ""
    console.print(Text("\n" + textwrap.fill(rule, min(WIDTH, console.width)), style="dim"))
    console.print(Text("\n" + textwrap.fill(headline(result), min(WIDTH, console.width)), style="bold"))


def _verdicts(result: dict[str, Any]) -> list[bool]:
    return [found["verdict"] == "too few seeds" for row in result["rows"] for found in row["profiles"].values()]


def _cell(found: dict[str, Any]) -> Text:
    low, high = found["interval"]
    half = "" if low is None or high is None else f"±{50 * (high - low):.0f}"
    mark, style = MARKS.get(found.get("verdict", ""), (" ", ""))
    return Text.assemble((f"{100 * found['mean']:.0f}", "bold"), (half, "dim"), (mark, style))
