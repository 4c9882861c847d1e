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
def poison(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A task file: JSON Lines, Parquet or a dataset directory.")],
    log: Annotated[Path | None, typer.Option("--log", metavar="LOG", help="The rollout log of a run on these tasks.")] = None,
    behaviour: Annotated[
        str, typer.Option("--behaviour", help="What is unwanted: refusal, module:function (text -> bool), or a string.")
    ] = "refusal",
    verifier: Annotated[str | None, typer.Option("--verifier", help="The pipeline's verifier; by default chosen as training does.")] = None,
    twin: Annotated[
        Path | None, typer.Option("--twin", metavar="CLEAN", help="The log of a clean run; without --log, clean tasks.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The column of prompts.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The column of answers.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="The column of ids that the log knows prompts by.")] = None,
    clean: Annotated[
        Path | None, typer.Option("--write-clean", metavar="OUT", help="Write the tasks without those behind a finding, and these beside.")
    ] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Cut marked sentences out of prompts instead of dropping the tasks.")] = False,
    level: Level = 0.05,
    threshold: Threshold = "low",
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=NUMBER", help="What does not matter: delta (0.1), kappa (0.3).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Do training data pay a policy for a behaviour that nobody asked for?"""
    check_threshold(threshold)
    given = {"verifier": verifier, "prompt": prompt, "answer": answer, "key": key, "log": log, "write_clean": clean}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    verdict = run("poison", data, twin=twin, behaviour=behaviour, level=level, clip=clip, **named, **settings(sets or []))
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
