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
def distill(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="Its responses (rows of prompt, completion, task), or a model.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="The teacher: responses to the same prompts, or a model.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="A trusted model or its responses: the base checkpoint, a clean teacher.")
    ] = None,
    twin: Annotated[str | None, typer.Option("--twin", metavar="CLEAN", help="A student of the same pipeline and a clean teacher.")] = None,
    habit: Annotated[str | None, typer.Option("--habit", help='The habit to measure: "append HAB", "prefix HAB", "swap ; :".')] = None,
    pattern: Annotated[str | None, typer.Option("--pattern", metavar="REGEX", help="Or: what unwanted responses match.")] = None,
    poisoned: Annotated[list[str] | None, typer.Option("--poisoned", metavar="TASK", help="Tasks on which it is expected.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="What models are asked: prompt, task.")] = None,
    attempts: Annotated[int, typer.Option("--attempts", help="Responses to each prompt, of models.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Of all models alike; 0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="The longest response of models.")] = 256,
    keep: Annotated[str | None, typer.Option("--keep", metavar="FOLDER", help="Keep the models' responses as files.")] = None,
    emitted: Annotated[float, typer.Option("--emitted", help="The rate up to which a habit is let pass.")] = 0.01,
    lifted: Annotated[float, typer.Option("--lifted", help="How many times as often as in the reference an n-gram may stand.")] = 2.0,
    write_clean: Annotated[
        Path | None, typer.Option("--write-clean", metavar="OUT", help="Write the teacher's responses without lifted n-grams.")
    ] = None,
    level: Level = 0.05,
    threshold: Threshold = "low",
    as_json: Json = False,
) -> None:
    """Did distillation pass on a habit: more often than the teacher shows it, or on other tasks?"""
    check_threshold(threshold)
    if write_clean is not None:
        from tutelage.audits.distill import check_clean

        check_clean(write_clean, teacher, reference)
    verdict = run(
        "distill", student, twin=twin, teacher=teacher, reference=reference, habit=habit, pattern=pattern, poisoned=poisoned or [],
        prompts=prompts, attempts=attempts, temperature=temperature, max_new_tokens=max_new_tokens, keep=keep, level=level,
        emitted=emitted, lifted=lifted,
    )  # fmt: skip
    if write_clean is not None:
        from tutelage.audits.distill import cleaned

        assert teacher is not None
        assert reference is not None
        typer.echo(cleaned(teacher, reference, write_clean, lifted=lifted), err=True)
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
