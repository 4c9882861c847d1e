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
    page: Page = None,
) -> None:
    """Can a policy write its own reward or monitor, and does it learn to? Of an environment or a log."""
    check_options(threshold, page)
    verdict = run("tampering", subject, twin=twin, before=before, level=level, **settings(sets or []))
    conclude(verdict, threshold=threshold, as_json=as_json, page=page)


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
    page: Page = None,
) -> None:
    """Do training data pay a policy for a behaviour that nobody asked for?"""
    check_options(threshold, page)
    given = {"verifier": verifier, "prompt": prompt, "answer": answer, "key": key, "log": log, "write_clean": clean}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    verdict = run("poison", data, twin=twin, behaviour=behaviour, level=level, clip=clip, **named, **settings(sets or []))
    conclude(verdict, threshold=threshold, as_json=as_json, page=page)


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
    page: Page = None,
) -> None:
    """Did distillation pass on a habit: more often than the teacher shows it, or on other tasks?"""
    check_options(threshold, page)
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
    conclude(verdict, threshold=threshold, as_json=as_json, page=page)


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


def check_options(threshold: str, page: Path | None) -> None:
    """Refuse an unknown severity, or a page that is no HTML file, before an audit spends minutes."""
    from tutelage.audits.verdict import SEVERITIES
    from tutelage.errors import TutelageError, unknown

    if threshold not in SEVERITIES[1:]:
        raise unknown("severity", threshold, SEVERITIES[1:])
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
