"""What replications found, to be read: one result in the terminal, and the atlas of all of them in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.study import words
from tutelage.study.table import VERDICT_STYLES

BEGIN, END = "<!-- atlas:begin -->", "<!-- atlas:end -->"

Result = dict[str, Any]


def render(result: Result, console: Console) -> None:
    """Print a replication's result: the claim and its verdict, the arms with their costs, and every comparison as a sentence."""
    claim = result["comparisons"][0]
    console.print(f"\n[bold]{result['replication']}[/] ({result['paper']}): {result['claim']}", highlight=False)
    console.print(f"[dim]{result['metric']['about']}; {result['budget']}[/]\n", highlight=False)
    console.print(_arms(result), "")
    comparisons = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("comparison", "difference", "p (Holm)", "verdict"):
        comparisons.add_column(heading, overflow="fold")
    for c in result["comparisons"]:
        verdict = f"[{VERDICT_STYLES.get(c['verdict'], '')}]{c['verdict']}[/]"
        comparisons.add_row(c["name"], _effect(c), f"{c['p_holm']:.3g}", verdict)
    console.print(comparisons)
    style = VERDICT_STYLES.get(result["verdict"], "")
    console.print(f"\nThe claim: [{style}]{result['verdict']}[/] ({claim['method']}: {claim['sentence']})\n", highlight=False)


def _arms(result: Result) -> Table:
    """Means over seeds; a measure that no arm has gets no column."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="dim")
    table.add_column("arm", no_wrap=True)
    columns = [*_measures(result), "rollouts", "training_tokens", "seconds"]
    shown = [key for key in columns if any(key in arm["mean"] for arm in result["arms"].values())]
    for key in ["seeds", *shown]:
        table.add_column(key.replace("_", " "), justify="right", min_width=max(map(len, key.split("_"))))
    for name, arm in result["arms"].items():
        mean = arm["mean"]
        table.add_row(name, str(arm["seeds"]), *(_number(key, mean.get(key)) for key in shown))
    return table


def _measures(result: Result) -> list[str]:
    """The scores of all arms, the primary metric first."""
    scores = {key: None for cell in result["cells"] for key in cell["score"]}
    return list({result["metric"]["name"]: None} | scores)


def _number(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key in ("rollouts", "training_tokens"):
        return f"{value / 1000:.0f}k"
    return f"{value:.1f}" if key == "seconds" else words.score(value)


def _effect(comparison: dict[str, Any]) -> str:
    return f"{words.signed(comparison['mean'])} {words.interval([comparison['low'], comparison['high']])}".rstrip()


def atlas(results_dir: Path) -> str:
    """The table of all full replications in a directory, as Markdown: one line for each claim, from its result file.

    The effect is the mean paired difference of the primary metric with its 95 % t interval; minutes are the work of one process.

    Raises:
        TutelageError: there is no such directory, or a `.json` file in it cannot be read as JSON.
    """
    if not Path(results_dir).is_dir():
        raise TutelageError(
            f"There is no directory {results_dir}. Results are written there by `tutelage replicate`; name it with --results."
        )
    lines = ["| method | claim | against | effect | p (Holm) | verdict | seeds | minutes |", "|---|---|---|---|---|---|---|---|"]
    for path in sorted(Path(results_dir).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TutelageError(f"{path} is not a result: {error}. Results are written by `tutelage replicate`; run it again.") from None
        if isinstance(result, dict) and result.get("full") and "replication" in result:
            lines.append(_line(result))
    return "\n".join(lines) + "\n"


def _line(result: Result) -> str:
    claim = result["comparisons"][0]
    cells = [
        f"{result['replication']} ({result['paper']})",
        result["claim"],
        claim["name"].split(" against ", 1)[1],
        _effect(claim),
        f"{claim['p_holm']:.3g}",
        f"**{claim['verdict']}**",
        str(claim["n"]),
        f"{result['minutes']:.1f}",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_atlas(readme: Path, table: str) -> None:
    """Replace what stands between the atlas marks of a Markdown file by `table`; a file without both marks, in order, raises."""
    try:
        text = Path(readme).read_text(encoding="utf-8")
    except OSError as error:
        raise TutelageError(f"Cannot read {readme}: {error.strerror}.") from None
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        raise TutelageError(f"{readme} has no place for the atlas. Put the lines {BEGIN} and {END} where the table shall stand.")
    atomic_write(readme, f"{text[: begin + len(BEGIN)]}\n{table}{text[end:]}")
