"""The command line. Every command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.audits.cli import app as audit
from tutelage.edits.cli import app as edit
from tutelage.edits.cli import command_line
from tutelage.model_edits.cli import calibrate, prune, unlearn
from tutelage.study.probe import command as probe
from tutelage.teachers.cli import teach

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="What should the model learn next, who should teach it, and can the teaching be trusted.",
)  # fmt: skip
edit.command()(prune)
edit.command()(unlearn)
edit.command()(calibrate)
app.add_typer(edit, name="edit")
app.add_typer(audit, name="audit")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML file with any of these settings; typed options win.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a field of the run or an option of the engine, under its own name."),
]
Model = Annotated[str | None, typer.Option("--model", help="builtin, a model directory, or a name on the hub.", show_default="builtin")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks", help="quick, builtin, reasoning-gym families, JSONL or Parquet files, data set directories.", show_default="quick"
    ),
]
VerifierName = Annotated[str | None, typer.Option("--verifier", help="exact, numeric, choice, math, reasoning_gym, or module:function.")]
Engine = Annotated[str | None, typer.Option("--trainer", help="grpo or sft.", show_default="grpo")]
Steps = Annotated[int | None, typer.Option("--steps", help="Plain optimiser steps; they set the budget.", show_default="60")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="N{rollouts|updates|tokens|seconds}", help="What every run gets, such as 3200rollouts.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Output directory.", show_default="runs/...")]


@app.command()
def compare(
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARM]...",
            help="What teaches: a curriculum, teacher or objective, name:key=value,..., joined by +; or YAML files.",
            show_default="uniform sec:tau=0.2 dump",
        ),
    ] = None,
    model: Model = None,
    tasks: Tasks = None,
    verifier: VerifierName = None,
    trainer: Engine = None,
    steps: Steps = None,
    budget: Budget = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds per arm.", show_default="the least that can reach a verdict")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Worker processes.", show_default="one per core, at most 4")] = None,
    config: Config = None,
    sets: Sets = None,
    out: Out = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in --out, with the settings stored there.")] = False,
    suite: Annotated[
        str | None,
        typer.Option("--suite", help="Teachers of task spaces on built-in students instead: acl (toys, minutes), acl-walker (hours)."),
    ] = None,
) -> None:
    """A league table of teaching methods on your own model and tasks.

    Every arm trains from the same weights to the same budget on the same seeds, is measured on held-out tasks, and is judged against
    uniform sampling. Finished runs are kept and never run twice: repeat the command to go on where it stopped.

    With --suite, arms are teachers of continuous task spaces, which are tried in challenge profiles at levels of expert knowledge: the
    table is the share of mastered test tasks. --set knowledge=none,high, --set profiles=base,rugged, and the suite's sizes.
    """
    if suite is not None:
        lone = {"--model": model, "--tasks": tasks, "--verifier": verifier, "--trainer": trainer, "--steps": steps, "--budget": budget}
        _compare_suite(
            suite, arms or [], {**lone, "--config": config, "--resume": resume or None}, sets or [], seeds, out, jobs, as_json, dry_run
        )
        return
    from tutelage.study import compare as study
    from tutelage.study.config import Run, make_run, parse_arm, validate
    from tutelage.study.progress import Display
    from tutelage.study.schema import without_nan
    from tutelage.study.table import render
    from tutelage.study.workers import quiet

    quiet()
    if resume:
        run = validate(Run, study.stored_run(out), f"{out}/config.json")
    else:
        given = {"model": model, "tasks": tasks, "verifier": verifier, "trainer": trainer, "steps": steps, "budget": budget, "seeds": seeds}
        run = make_run(config, given, sets or [])
        run.arms = [parse_arm(text) for text in arms] if arms else run.arms
    comparison = study.plan(run, out=out)
    if dry_run:
        _print_json(study.resolved(comparison))
        return
    console = _console(quiet=as_json)
    with Display(console) as display:
        league = study.run_comparison(comparison, jobs=jobs, command=command_line(), tell=display)
    if as_json:
        _print_json(without_nan(league))
        return
    render(without_nan(league), _console(stdout=True))
    typer.echo(f"\nreport  {comparison.out / 'report.html'}\nnumbers {comparison.out / 'league.json'}")


def _compare_suite(
    suite: str, teachers: list[str], alien: dict[str, Any], sets: list[str], seeds: int | None, out: Path | None, jobs: int | None,
    as_json: bool, dry_run: bool,
) -> None:  # fmt: skip
    """`compare --suite`; `alien` are options that belong to language models."""
    from tutelage.errors import TutelageError
    from tutelage.study.acl import bench
    from tutelage.study.acl.terminal import render
    from tutelage.study.progress import Display

    if given := [name for name, value in alien.items() if value is not None]:
        raise TutelageError(
            f"{', '.join(given)} cannot go with --suite {suite}: its students and tasks are built in. Sizes are set with --set; a "
            "benchmark that was interrupted goes on when its command is repeated."
        )
    benchmark = bench.plan(bench.make_bench(suite, teachers, sets, seeds), out=out)
    if dry_run:
        _print_json(bench.resolved(benchmark))
        return
    with Display(_console(quiet=as_json), measure="mastered", unit=benchmark.suite.unit, lines=40) as display:
        result = bench.run_benchmark(benchmark, jobs=jobs, command=command_line(), tell=display)
    if as_json:
        _print_json(result)
        return
    render(result, _console(stdout=True))
    typer.echo(f"\nreport  {benchmark.out / 'report.html'}\nnumbers {benchmark.out / 'benchmark.json'}")


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="[RUN.YAML]", help="A run file.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="The arm to train, as in compare.", show_default="uniform")] = None,
    model: Model = None,
    tasks: Tasks = None,
    verifier: VerifierName = None,
    trainer: Engine = None,
    steps: Steps = None,
    budget: Budget = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the run.", show_default="0")] = None,
    sets: Sets = None,
    out: Out = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """One run with a curriculum and an objective of choice; saves an ordinary model directory with a card.

    With save_steps set (--set save_steps=50 --set save_strategy=steps), a run that was killed goes on from its newest complete checkpoint.
    """
    from tutelage.study import single
    from tutelage.study.config import make_run, parse_arm
    from tutelage.study.workers import quiet

    quiet()
    given = {"model": model, "tasks": tasks, "verifier": verifier, "trainer": trainer, "steps": steps, "budget": budget, "seed": seed}
    run = make_run(config, given, sets or [])
    if arm is not None:
        run.arms = [parse_arm(arm)]
    job, folder = single.plan(run, out)
    if dry_run:
        _print_json(single.resolved(run, job, folder))
        return
    record = single.train(run, job, folder, command=command_line(), console=_console(quiet=as_json))
    if as_json:
        _print_json(record)


@app.command()
def replicate(
    slug: Annotated[str | None, typer.Argument(help="The paper; `tutelage ls replications` lists them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every replication, one after the other.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Seconds instead of minutes: shows that it runs, proves nothing.")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds per arm.", show_default="the replication's own")] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Worker processes.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Where <slug>.json is written.", show_default="results, or runs/smoke")] = None,
    as_json: Json = False,
) -> None:
    """A published claim as a falsifiable experiment: the method against its baseline and controls."""
    from tutelage.errors import TutelageError
    from tutelage.registry import replications
    from tutelage.study import replicate as study

    if (slug is None) != every:
        raise TutelageError("Name one replication (tutelage ls replications lists them), or give --all.")
    console = _console(quiet=as_json)
    folder = out or Path("runs/smoke" if smoke else "results")
    results = []
    for name in replications.names() if slug is None else [slug]:
        results.append(study.run(name, seeds=seeds, jobs=jobs, smoke=smoke, out=folder, progress=_lines(console), command=command_line()))
        if not as_json:
            study.render(results[-1], _console(stdout=True))
    if as_json:
        _print_json(results if every else results[0])


@app.command()
def atlas(
    results: Annotated[Path, typer.Option("--results", help="The directory of results/<slug>.json files.")] = Path("results"),
    readme: Annotated[Path | None, typer.Option("--write", help="Replace the atlas between its marks in this file.")] = None,
) -> None:
    """The table of all replications, from their result files."""
    from tutelage.study import replicate as study

    table = study.atlas(results)
    if readme is None:
        typer.echo(table)
    else:
        study.write_atlas(readme, table)


@app.command("ls")
def list_parts(
    noun: Annotated[str | None, typer.Argument(help="One noun only, such as curricula.")] = None,
    as_json: Json = False,
) -> None:
    """All parts by noun, one line each."""
    from tutelage import catalogue

    parts = catalogue.parts(noun)
    if as_json:
        _print_json([{"noun": p.noun, "name": p.name, "summary": p.summary, "file": p.file} for p in parts])
    else:
        catalogue.render(parts, _console(stdout=True))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A part; noun/name tells parts of one name apart.")],
    source: Annotated[bool, typer.Option("--source/--no-source", help="Print the source as well.")] = True,
    as_json: Json = False,
) -> None:
    """A part's docstring, parameters with defaults, and source."""
    from tutelage import catalogue

    part = catalogue.find(name)
    if as_json:
        _print_json(catalogue.describe(part))
    else:
        catalogue.show(part, _console(stdout=True), source=source)


@app.command("cp")
def copy_part(
    name: Annotated[str, typer.Argument(help="A part; noun/name tells parts of one name apart.")],
    to: Annotated[Path, typer.Argument(help="A folder or a new file.")] = Path(),
) -> None:
    """Copy a part's file into your project: it runs there, under a name of its own."""
    from tutelage import catalogue

    path, new_name = catalogue.copy(catalogue.find(name), to)
    typer.echo(f"{path}  (registers as {new_name!r}: import it, or name it in the entry-point group of your package)")


app.command("probe")(probe)
app.command()(teach)


def main() -> None:
    """Run the command line; an error of the user's is one paragraph and exit status 2."""
    from tutelage.errors import TutelageError

    try:
        app(standalone_mode=True)
    except TutelageError as error:
        print(f"tutelage: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("tutelage: interrupted; what was finished is kept, and the same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None


def _console(*, quiet: bool = False, stdout: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=not stdout, quiet=quiet, width=None if sys.stdout.isatty() else 100)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _lines(console: Any) -> Any:
    return lambda text: console.print(text, highlight=False)


if __name__ == "__main__":
    main()
