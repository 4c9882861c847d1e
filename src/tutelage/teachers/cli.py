"""`tutelage teach`: what a model says, kept for others to learn from. Everything that is needed is imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

PRECISIONS = ("float16", "float32")


def teach(
    model: Annotated[str, typer.Argument(help="The teacher: builtin, a model directory, or a name on the hub.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder for the record; with --demonstrate a .jsonl file.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", help="As in compare: quick, builtin, reasoning-gym families, JSONL or Parquet files.", show_default="quick"
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Entries kept of every distribution.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the softmax; with --demonstrate of sampling, 0 is greedy.")] = 1.0,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of a row, as max_length of the training to come.")] = 1024,
    precision: Annotated[str, typer.Option("--precision", help="Of the log-probabilities on disk: float16 or float32.")] = "float16",
    dtype: Annotated[str | None, typer.Option("--dtype", help="The model's number format.", show_default="float32 on a CPU")] = None,
    demonstrate: Annotated[bool, typer.Option("--demonstrate", help="Let the teacher answer the tasks, and keep right answers.")] = False,
    attempts: Annotated[
        int, typer.Option("--attempts", help="Tries per task, of which the first right one is kept, with --demonstrate.")
    ] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of an answer, with --demonstrate.")] = 256,
    verifier: Annotated[str | None, typer.Option("--verifier", help="Which answers are right, with --demonstrate.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling, with --demonstrate.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and stop.")] = False,
) -> None:
    """Record what a teacher says of the training tasks' answers, or let it answer them itself.

    The record is what teacher("cached", path=DIR) reads; a command that was stopped goes on where it was. With --demonstrate the teacher's
    own answers are written, one JSON object per line, ready for --tasks and for supervised training. Held-out tasks are left out.
    """
    from tutelage.errors import unknown
    from tutelage.tasks.loaders import load_tasks, to_dataset

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    chosen = load_tasks(tasks or ["quick"], verifier=verifier)
    if demonstrate:
        _demonstrate(model, dtype, chosen, out, attempts, max_new_tokens, temperature, seed, as_json, dry_run)
        return
    from tutelage.tasks.tables import with_answers
    from tutelage.teachers import recording
    from tutelage.teachers._rows import Rows
    from tutelage.teachers.local import LocalTeacher

    teacher = LocalTeacher(model=model, dtype=dtype, top_k=top_k, temperature=temperature)
    dataset = with_answers(to_dataset(chosen.train, teacher.tokenizer))
    settings: dict[str, Any] = {"precision": precision, "tokens_per_shard": recording.POSITIONS_PER_SHARD}
    planned = recording.plan(teacher, Rows(dataset, teacher.tokenizer, max_length), **settings)
    facts = {"rows": planned["data"]["rows"], "positions": planned["data"]["positions"], "bytes": recording.size_of(planned)}
    if not dry_run:
        with _progress("teach", facts["positions"], quiet=as_json) as tell:
            recording.record(teacher, dataset, out, max_length=max_length, tell=tell, **settings)
    _report({"out": str(out), **facts, "teacher": planned["teacher"], "written": not dry_run}, as_json)


def _demonstrate(
    model: str,
    dtype: str | None,
    tasks: Any,
    out: Path,
    attempts: int,
    length: int,
    temperature: float,
    seed: int,
    as_json: bool,
    dry: bool,
) -> None:
    import numpy as np

    from tutelage.errors import TutelageError
    from tutelage.files import atomic_write
    from tutelage.tasks.loaders import to_dataset
    from tutelage.teachers.local import LocalTeacher

    if out.suffix != ".jsonl":
        raise TutelageError(f"Demonstrations are written to one file, one JSON object per line; give -o a name such as {out}.jsonl.")
    if out.exists():
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")
    if dry:
        _report({"out": str(out), "tasks": len(tasks.train), "answers": len(tasks.train) * attempts, "written": False}, as_json)
        return
    teacher = LocalTeacher(model=model, dtype=dtype)
    told = teacher.demonstrate(
        to_dataset(tasks.train, teacher.tokenizer), np.random.default_rng(seed), attempts=attempts, max_new_tokens=length,
        temperature=temperature, verifier=tasks.verifier,
    )  # fmt: skip
    prompts = [p if isinstance(p, str) else p[0]["content"] if len(p) == 1 else p for p in told.prompts]
    lines = {k: {"key": k, "prompt": p, "answer": a} for k, p, a in reversed(list(zip(told.keys, prompts, told.completions, strict=True)))}
    lines = {key: lines[key] for key in told.keys}  # the first answer of each task, in the tasks' order
    atomic_write(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()))
    counts = {"answers": told.sampled, "kept": len(lines), "cut": told.cut, "wrong": told.wrong}
    _report({"out": str(out), **counts, "written": True}, as_json)


@contextmanager
def _progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    numbers = ", ".join(f"{value:,} {name}" for name, value in facts.items() if isinstance(value, int) and not isinstance(value, bool))
    typer.echo(f"{facts['out']}: {numbers}" + ("" if facts["written"] else " (nothing written)"))
