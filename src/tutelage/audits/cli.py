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
        typer.Option("--set", metavar="NAME=SHARE", help="What a rule may see: misranked, shaped, dead, canned, duplicate, garbled."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Does the reward of a rollout log still pay for the outcome, or for length, form and noise?"""
    check_threshold(threshold)
    verdict = run("rewards", log, twin=twin, level=level, **settings(sets or []))
    conclude(verdict, threshold=threshold, as_json=as_json)


@app.command()
def tampering(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="An environment as module:factory, `ladder` or `ladder/<rung>`, or a rollout log.")
    ],
    twin: Annotated[
        str | None, typer.Option("--twin", metavar="CLEAN", help="A safer version of it, or the log of a policy that saw no ladder.")
    ] = None,
    before: Annotated[Path | None, typer.Option("--before", metavar="LOG", help="The log from before a treatment.")] = None,
    level: Level = 0.05,
    threshold: Threshold = "low",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="tolerance, paid, rungs, held_out (of logs); mitigate, seeds, depth, scripts (of environments).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Can a policy write its own reward or monitor, and does it learn to? Of an environment or a log."""
    check_threshold(threshold)
    verdict = run("tampering", subject, twin=twin, before=before, level=level, **settings(sets or []))
    conclude(verdict, threshold=threshold, as_json=as_json)


def run(name: str, subject: Any, *, twin: Any = None, seed: int = 0, **given: Any) -> Verdict:
    """The registered audit on a subject, its settings checked against its signature."""
    import numpy as np

    from tutelage.registry import audits

    part = audits.get(name)
    return part.target(subject, twin=twin, rng=np.random.default_rng(seed), **part.check(given))


def conclude(verdict: Verdict, *, threshold: str, as_json: bool) -> None:
    """Print the verdict; exit status 1 when its severity reaches the threshold."""
    from rich.console import Console

    from tutelage.audits.verdict import SEVERITIES, render

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


def settings(sets: list[str]) -> dict[str, Any]:
    """`--set NAME=VALUE` options as a mapping."""
    from tutelage.errors import TutelageError

    found = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or name in ("level", "twin", "rng"):
            raise TutelageError(f"--set {text}: expected NAME=VALUE, such as --set dead=0.7. The level and the twin have options.")
        found[name] = value
    return found
