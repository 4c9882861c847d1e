"""The league table in the terminal: the report's numbers within 100 columns, and below them what they mean in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tutelage.study import answers, words
from tutelage.study.schema import League, Row, display_name, progress_word, ranked

WIDTH = 100
NAME_WIDTH = 20
VERDICT_STYLES = {
    "holds": "bold green",
    "reversed": "bold red",
    "not shown": "yellow",
    "too few seeds": "magenta",
    "baseline": "dim",
    "control": "dim",
}


@dataclass(frozen=True)
class _Column:
    """A column of numbers; of those that do not fit, the one with the least `weight` goes first."""

    heading: str
    width: int
    weight: int
    cell: Callable[[Row], str]
    style: str = ""


def render(league: League, console: Console) -> None:
    """Print the league table and its verdict in words to `console`, at most 100 columns wide; the numbers are those of the report.

    On a narrower console the least important columns are left out, and named below the table.
    """
    rows, width = ranked(league), min(WIDTH, console.width)
    columns, left_out = _fitting(_columns(league), width)
    parts: list[RenderableType] = [_title(league), _table(league, rows, columns), *_left_out(left_out), _verdicts(league, rows)]
    console.print(Group(*parts), width=width)


def _columns(league: League) -> list[_Column]:
    columns = [
        _Column("\nfinal", 5, 9, lambda row: words.score(row["final"]), "bold"),
        _Column("worst\narm", 5, 5, lambda row: words.score(row["worst_arm"])),
        _Column("hardest\nlevel", 7, 2, lambda row: words.score(row["hardest"])),
        _Column("\narea", 5, 1, lambda row: words.score(row["area"])),
    ]
    if league["target"] is not None:
        goal = f"to {league['target']:.2f}"
        columns += [
            _Column(f"{progress_word(league)}\n{goal}", 8, 4, lambda row: words.ratio(row["rollouts_to_target_ratio"])),
            _Column(f"time\n{goal}", 7, 3, lambda row: words.ratio(row["seconds_to_target_ratio"])),
        ]
    return columns


def _fitting(columns: list[_Column], width: int) -> tuple[list[_Column], list[_Column]]:
    """The columns that fit beside name, difference and verdict, and those left out."""
    kept, room = list(columns), width - NAME_WIDTH - 15 - 15
    while len(kept) > 1 and sum(column.width + 2 for column in kept) > room:
        kept.remove(min(kept, key=lambda column: column.weight))
    return kept, [column for column in columns if column not in kept]


def _title(league: League) -> Text:
    budget = league["budget"]
    given = f"{words.count(budget['amount'])} {budget['kind']} each · {words.seeds_in_words(league)} · {league['metric']}"
    return Text.assemble("\n", (league["title"], "bold"), "\n", (given, "dim"))


def _table(league: League, rows: list[Row], columns: list[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("\nmethod", overflow="fold", max_width=NAME_WIDTH)
    for column in columns:
        table.add_column(Text(column.heading), justify="right", min_width=column.width, no_wrap=True)
    table.add_column(Text(f"against\n{_cut(league['baseline'], 13)}"), min_width=13, no_wrap=True)
    table.add_column("\nverdict", min_width=13, no_wrap=True)
    for row in rows:
        numbers = [Text(column.cell(row), style=column.style) for column in columns]
        table.add_row(_method(row), *numbers, _difference(row), Text(row["verdict"], style=VERDICT_STYLES.get(row["verdict"], "")))
    return table


def _method(row: Row) -> Text:
    method = Text(_cut(row["label"], 2 * NAME_WIDTH), style="bold" if row["kind"] == "method" else "")
    if row["note"]:
        method.append(f"\n{_cut(row['note'], 2 * NAME_WIDTH)}", style="dim not bold")
    return method


def _difference(row: Row) -> Text:
    if row["difference"] is None:
        return Text()
    return Text.assemble(words.signed(row["difference"]), " ", (words.half_width(row["interval"]), "dim"))


def _left_out(columns: list[_Column]) -> list[Text]:
    if not columns:
        return []
    names = ", ".join(" ".join(column.heading.split()) for column in columns)
    return [Text(f"Left out for the width: {names}.", style="dim")]


def _verdicts(league: League, rows: list[Row]) -> Group:
    headline = Text(f"\n{words.headline(league)}\n", style="bold")
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(max_width=28, overflow="fold")
    lines.add_column()
    for row in words.judged(rows):
        lines.add_row(Text(display_name(row)), Text(words.typeset(row["sentence"]), style="dim"))
    warned = [Padding(Text(words.typeset(warning), style="yellow"), (0, 0, 0, 2)) for warning in answers.warnings(league)]
    notes = [Padding(Text(words.typeset(note), style="dim"), (0, 0, 0, 2)) for note in league.get("notes", [])]
    return Group(headline, *([Padding(lines, (0, 0, 0, 2)), *notes, *warned, ""] if lines.rows else warned))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
