"""`tutelage audit`: one command per audit. Exit status 0: nothing found; 1: a finding; 2: the subject cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="What can go wrong with a pipeline, a reward, a detector, a checkpoint.")


@app.callback()
def audit() -> None:
    """What can go wrong with a pipeline, a reward, a detector, a checkpoint."""


@app.command()
def rewards(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A rollout log: JSON Lines or Parquet, or a folder of them.")],
    twin: Annotated[Path | None, typer.Option("--twin", metavar="CLEAN", help="The log of a clean run on the same tasks.")] = None,
    level: Annotated[float, typer.Option("--level", help="The chance of any finding on a clean log, at most.")] = 0.05,
    threshold: Annotated[str, typer.Option("--threshold", help="The least severity that is exit status 1: low, medium or high.")] = "low",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=SHARE", help="What a rule may see: misranked, shaped, dead, canned, duplicate, garbled."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout and nothing else there.")] = False,
) -> None:
    """Does the reward of a rollout log still pay for the outcome, or for length, form and noise?"""
    import numpy as np
    from rich.console import Console

    from tutelage.audits.verdict import SEVERITIES, render
    from tutelage.errors import unknown
    from tutelage.registry import audits

    if threshold not in SEVERITIES[1:]:
        raise unknown("severity", threshold, SEVERITIES[1:])
    part = audits.get("rewards")
    verdict = part.target(log, twin=twin, rng=np.random.default_rng(0), level=level, **part.check(_settings(sets or [])))
    if as_json:
        print(verdict.to_json())
    else:
        render(verdict, Console(width=None if Console().is_terminal else 100))
    if SEVERITIES.index(verdict.severity) >= SEVERITIES.index(threshold):
        raise typer.Exit(1)


def _settings(sets: list[str]) -> dict[str, Any]:
    from tutelage.errors import TutelageError

    found = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or name in ("level", "twin", "rng"):
            raise TutelageError(f"--set {text}: expected NAME=SHARE, such as --set dead=0.7. The level and the twin have options.")
        found[name] = value
    return found
