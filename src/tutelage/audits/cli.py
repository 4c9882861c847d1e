"""`tutelage audit`: one command per audit. Exit status 0: nothing found; 1: a finding; 2: the subject cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tutelage.audits.verdict import Verdict

app = typer.Typer(no_args_is_help=True, help="What can go wrong with a pipeline, a reward, a detector, a checkpoint.")

Level = Annotated[float, typer.Option("--level", help="The chance of any finding on a clean subject, at most.")]
Threshold = Annotated[str, typer.Option("--threshold", help="The least severity that is exit status 1: low, medium or high.")]
Json = Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout and nothing else there.")]
Page = Annotated[Path | None, typer.Option("--page", metavar="FILE.html", help="Write the verdict as a page with evidence and curves.")]


@app.callback()
def audit() -> None:
    """What can go wrong with a pipeline, a reward, a detector, a checkpoint."""


@app.command()
def rewards(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A rollout log: JSON Lines or Parquet, or a folder of them.")],
    twin: Annotated[Path | None, typer.Option("--twin", metavar="CLEAN", help="The log of a clean run on the same tasks.")] = None,
    level: Level = 0.05,
    threshold: Threshold = "low",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=SHARE", help="What a rule on a share may see, such as dead=0.7; `tutelage show rewards` lists them."
        ),
    ] = None,
    as_json: Json = False,
    page: Page = None,
) -> None:
    """Does the reward of a rollout log still pay for the outcome, or for length, form and noise?"""
    check_options(threshold, page)
    verdict = run("rewards", log, twin=twin, level=level, **settings(sets or []))
    conclude(verdict, threshold=threshold, as_json=as_json, page=page)


@app.command()
def teacher(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Distances on held-out prompts: step, prompt_id, proxy, golden (JSONL).")],
    twin: Annotated[Path | None, typer.Option("--twin", metavar="FRESH", help="The log of a run on fresh answers.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The fixed answers that were trained on (JSONL), for their diversity.")
    ] = None,
    repeats: Annotated[float, typer.Option("--repeats", help="Answers per distinct prompt from which data count as narrow.")] = 2.0,
    level: Level = 0.05,
    threshold: Threshold = "low",
    as_json: Json = False,
    page: Page = None,
) -> None:
    """Does a distilled student come closer to its teacher while it moves away from the truth?"""
    check_options(threshold, page)
    verdict = run("teacher", log, twin=twin, level=level, data=data, repeats=repeats)
    conclude(verdict, threshold=threshold, as_json=as_json, page=page)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="TRL's completions (a table or their folder), or verl's rollout dump.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="LOG", help="The rollout log: .jsonl, or .parquet (a folder of parts).")],
    engine: Annotated[str | None, typer.Option("--from", metavar="trl|verl", help="Whose it is; by default its columns say.")] = None,
    solved: Annotated[
        str | None, typer.Option("--solved", metavar="COLUMN", help="The verifier's judgement, in [0, 1]; by default verl's acc.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME=WEIGHT", help="Of a reward column of TRL's; by default 1 for each.")
    ] = None,
) -> None:
    """Make a rollout log of what TRL or verl dumped, for the audits."""
    from tutelage.rollouts.convert import convert_log, detect, first_columns

    engine = detect(source) if engine is None else engine
    if solved is None and engine == "verl" and "acc" in first_columns(source):
        solved = "acc"
    rewards = {name: number(value, f"--weight {name}") for name, value in pairs(weights or [], "--weight").items()} if weights else None
    made = convert_log(source, out, engine=engine, solved=solved, rewards=rewards)
    for warned in made.warnings:
        typer.echo(f"warning: {warned}", err=True)
    if solved is None:
        known = ", ".join(first_columns(source))
        typer.echo(f"warning: no judgement was named (--solved): rules that need outcomes will not run. Columns: {known}.", err=True)
    typer.echo(f"{out}: {made.rows:,} attempts, from {made.engine}")


def run(name: str, subject: Any, *, twin: Any = None, seed: int = 0, **given: Any) -> Verdict:
    """The registered audit on a subject, its settings checked against its signature."""
    import numpy as np

    from tutelage.registry import audits

    part = audits.get(name)
    return part.target(subject, twin=twin, rng=np.random.default_rng(seed), **part.check(given))


def conclude(verdict: Verdict, *, threshold: str, as_json: bool, page: Path | None = None) -> None:
    """Write the page if there is to be one, print the verdict; exit status 1 when its severity reaches the threshold."""
    from rich.console import Console

    from tutelage.audits.verdict import SEVERITIES, render

    if page is not None:
        from tutelage.audits.page import write_page

        write_page(verdict, page)
    if as_json:
        print(verdict.to_json())
    else:
        render(verdict, Console(width=None if Console().is_terminal else 100))
    if SEVERITIES.index(verdict.severity) >= SEVERITIES.index(threshold):
        raise typer.Exit(1)


def check_threshold(threshold: str) -> None:
    """Refuse an unknown severity before an audit spends minutes."""
    from tutelage.audits.verdict import SEVERITIES
    from tutelage.errors import unknown

    if threshold not in SEVERITIES[1:]:
        raise unknown("severity", threshold, SEVERITIES[1:])


def check_options(threshold: str, page: Path | None) -> None:
    """Refuse an unknown severity, or a page that is no HTML file, before an audit spends minutes."""
    from tutelage.errors import TutelageError

    check_threshold(threshold)
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise TutelageError(f"--page {page}: the page is an HTML file; give it the suffix .html.")


def settings(sets: list[str]) -> dict[str, Any]:
    """`--set NAME=VALUE` options as a mapping."""
    from tutelage.errors import TutelageError

    found = pairs(sets, "--set")
    for name in found:
        if name in ("level", "twin", "rng"):
            raise TutelageError(f"--set {name}=...: the level and the twin have options of their own.")
    return found


def pairs(given: list[str], option: str) -> dict[str, str]:
    """Options of the form NAME=VALUE as a mapping."""
    from tutelage.errors import TutelageError

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError(f"{option} {text}: expected NAME=VALUE, such as {option} dead=0.7.")
        found[name] = value
    return found


def number(text: str, where: str) -> float:
    """A number that was typed."""
    from tutelage.errors import TutelageError

    try:
        return float(text)
    except ValueError:
        raise TutelageError(f"{where} is {text!r}; expected a number.") from None
