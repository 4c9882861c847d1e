"""`tutelage edit ...`: checkpoints in, checkpoints out. Every command imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True, help="Change a checkpoint's weights: compare, merge, pack, prune, unlearn, add and take off task vectors."
)


@app.callback()
def edit() -> None:
    """Change a checkpoint's weights: compare, merge, pack, prune, unlearn, add and take off task vectors."""
    from tutelage.machine import keep_memory

    keep_memory()


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
OutDir = Annotated[Path, typer.Option("-o", "--out", help="A directory that does not exist yet.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Worker processes, for checkpoints of gigabytes.", show_default="one per core, at most 4")
]
Vectors = Annotated[list[Path], typer.Argument(help="Task vectors, packs, or PEFT adapters.")]


@app.command()
def diff(
    base: Annotated[Path, typer.Argument(help="The checkpoint before.")],
    tuned: Annotated[Path, typer.Argument(help="The checkpoint after, or a pack made from the base.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the task vector to this .safetensors file.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Number format of the vector: float32, bfloat16, float16, float64.")] = "float32",
    jobs: Jobs = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """What changed between two checkpoints, tensor by tensor; with -o, as a task vector that knows its base."""
    from tutelage.edits._dtypes import FLOATS, NAMES, storage
    from tutelage.edits.plan import Plan, peak_memory
    from tutelage.edits.store import WeightStore, compare_shapes
    from tutelage.edits.task_vector import diff as compare
    from tutelage.errors import unknown

    before, after = WeightStore(base), WeightStore(tuned)
    if _is_pack(after):
        _diff_pack(before, tuned, out, as_json)
        return
    if dry_run:
        compare_shapes(before, after)
        if dtype not in NAMES:
            raise unknown("number format", dtype, NAMES)
        floats = [info for name in before.names if (info := before.tensors[name]).dtype in FLOATS]
        most = sum(info.numel for info in floats) * storage(NAMES[dtype]).itemsize if out else 0
        skipped = {name: f"{copy} is stored once" for name, copy in before.tied.items()}
        plan = Plan([i.name for i in floats], 0, before.nbytes + after.nbytes, most, peak_memory(floats, 2, whole=False), skipped)
        print_plan(plan, as_json)
        return
    with _progress("diff", sum(before.tensors[n].nbytes for n in before.names), quiet=as_json) as tell:
        changes = compare(before, after, out, dtype=dtype, workers=_workers(jobs), tell=tell)
    changed = [c for c in changes if c.changed]
    if as_json:
        print_json({"base": str(base), "tuned": str(tuned), "vector": str(out) if out else None, "tensors": [c.as_dict() for c in changes]})
        return
    rows = [[c.name, f"{c.share:.1%}", f"{c.relative:.2e}", f"{c.largest:.2e}"] for c in changed]
    if rows:
        show_table(["tensor", "elements changed", "relative norm", "largest"], rows)
    typer.echo(f"{len(changed)} of {len(changes)} tensors differ" + (f"; {out}, {_size(out.stat().st_size)}" if out else ""))


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="YAML as mergekit's: linear, task_arithmetic, ties, dare_linear, dare_ties.")],
    out: OutDir,
    seed: Annotated[int, typer.Option("--seed", help="Seed of dare's masks.")] = 0,
    jobs: Jobs = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Merge checkpoints by a recipe."""
    from tutelage.edits.merge import Merge
    from tutelage.edits.recipe import read_recipe

    job = Merge(read_recipe(recipe), seed=seed)
    plan = job.plan()
    if dry_run:
        print_plan(plan, as_json)
        return
    with _progress("merge", plan.bytes_out, quiet=as_json) as tell:
        record = job.run(out, workers=_workers(jobs), tell=tell)
    _done(out, record, as_json)


@app.command()
def pack(
    base: Annotated[Path, typer.Argument(help="The checkpoint before.")],
    tuned: Annotated[Path, typer.Argument(help="The checkpoint after.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The pack, a .safetensors file that does not exist yet.")],
    budget: Annotated[
        float | None, typer.Option("--budget", help="The file's share of the difference's bytes.", show_default="0.125 without a recipe")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="YAML: which tensor gets which operator; or graftllm, best.", show_default="graftllm")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Statistics of the layers' inputs (.safetensors), for GPTQ.", show_default="none")
    ] = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Compress what changed between two checkpoints into a SkillPack that apply takes; killed, the same command goes on."""
    from tutelage.edits.packs.build import pack as make
    from tutelage.edits.packs.build import plan_pack
    from tutelage.edits.packs.rules import read_rules
    from tutelage.edits.packs.second_moments import SecondMoments
    from tutelage.edits.store import WeightStore

    before, after = WeightStore(base), WeightStore(tuned)
    rules = read_rules(recipe, budget=0.125 if budget is None and recipe is None else budget)
    statistics = SecondMoments(calibration) if calibration else None
    plan, operators = plan_pack(before, after, rules, statistics)
    if dry_run:
        if as_json:
            print_json(plan.as_dict() | {"operators": operators, "budget": rules.budget, "recipe": rules.as_list()})
        else:
            print_plan(plan, as_json, notes=operators)
        return
    with _progress("pack", plan.bytes_in, quiet=as_json) as tell:
        made = make(before, after, out, rules=rules, calibration=statistics, tell=tell)
    if as_json:
        print_json(made | {"out": str(out)})
        return
    show_table(
        ["tensor", "operator", "bytes", "error"],
        [[t["name"], t["operator"], str(t["bytes"]), f"{t['error']:.2%}"] for t in made["tensors"]],
    )
    for name, why in made["left_out"].items():
        typer.echo(f"left out: {name} ({why})")
    typer.echo(
        f"{out}: {_size(made['file_bytes'])}, {made['share']:.4f} of the difference's {_size(made['delta_bytes'])}; "
        f"relative error {made['error']:.2%}"
    )


@app.command()
def apply(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the vectors were made from.")],
    vectors: Vectors,
    out: OutDir,
    scale: Annotated[float, typer.Option("--scale", help="Multiplies the sum of the vectors; negative takes a task away.")] = 1.0,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="PATTERN", help="Only tensors like this: '*.mlp.*'.")] = None,
    undo: Annotated[str, typer.Option("--undo", help="base: needs the base again; sidecar: also writes what rebuilds it.")] = "base",
    jobs: Jobs = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Add task vectors, packs or PEFT adapters to their base; `remove` takes them off again, to the bit."""
    from tutelage.edits.apply import SIDECAR, plan_apply
    from tutelage.edits.apply import apply as add
    from tutelage.edits.packs.pack import open_vector
    from tutelage.edits.store import WeightStore

    store, opened = WeightStore(base), [open_vector(path) for path in vectors]
    plan = plan_apply(store, opened, only=only)
    if dry_run:
        print_plan(plan, as_json)
        return
    with _progress("apply", store.nbytes, quiet=as_json) as tell:
        record = add(store, opened, out, scale=scale, only=only, undo=undo, workers=_workers(jobs), tell=tell)
    if undo == "sidecar":
        record["sidecar_bytes"] = (out / SIDECAR).stat().st_size
    _done(out, record, as_json)


@app.command()
def remove(
    edited: Annotated[Path, typer.Argument(help="A checkpoint that apply, prune or unlearn wrote.")],
    out: OutDir,
    vectors: Annotated[list[Path] | None, typer.Argument(help="What apply added.", show_default="nothing")] = None,
    base: Annotated[Path | None, typer.Option("--base", help="Where the base lies now, if it was moved.")] = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Get back the base that a checkpoint was made from, equal in every bit."""
    from tutelage.edits.packs.pack import open_vector
    from tutelage.edits.remove import plan_remove
    from tutelage.edits.remove import remove as take_off
    from tutelage.edits.store import WeightStore

    store, opened = WeightStore(edited), [open_vector(path) for path in vectors or []]
    if dry_run:
        print_plan(plan_remove(store, opened, base=base), as_json)
        return
    with _progress("remove", store.nbytes, quiet=as_json) as tell:
        result = take_off(store, opened, out, base=base, tell=tell)
    if as_json:
        print_json(result | {"out": str(out)})
    else:
        typer.echo(f"{out}: {result['tensors']} tensors, equal to the base in every bit (from the {result['source']}, {result['path']})")


@app.command()
def verify(path: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, or a pack.")], as_json: Json = False) -> None:
    """Is a checkpoint or a pack whole: files, index, finite numbers, and the bits that an edit recorded. Exit status 2 if not."""
    from tutelage.edits.store import WeightStore
    from tutelage.edits.verify import verify as check
    from tutelage.edits.verify import verify_pack

    store = WeightStore(path)
    with _progress("verify", store.nbytes, quiet=as_json) as tell:
        if _is_pack(store):
            from tutelage.edits.packs.pack import SkillPack

            result = verify_pack(SkillPack(path), tell=tell)
        else:
            result = check(store, tell=tell)
    if as_json:
        print_json(result)
    else:
        for problem in result["problems"]:
            typer.echo(problem)
        state = f"{len(result['problems'])} problems" if result["problems"] else "whole"
        recorded = ", as its edit recorded" if result["recorded"] and not result["problems"] else ""
        typer.echo(f"{path}: {state}{recorded} ({result['tensors']} tensors, {_size(result['bytes'])})")
    if result["problems"]:
        raise typer.Exit(2)


def _workers(jobs: int | None) -> int:
    from tutelage.errors import TutelageError
    from tutelage.machine import default_jobs

    if jobs is not None and jobs < 1:
        raise TutelageError(f"--jobs {jobs}: expected at least one worker process.")
    return default_jobs() if jobs is None else jobs


@contextmanager
def _progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _done(out: Path, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record | {"out": str(out)})
        return
    sidecar = f"; undo.zip, {_size(record['sidecar_bytes'])}" if "sidecar_bytes" in record else ""
    typer.echo(f"{out}: {len(record['tensors'])} tensors{sidecar}")


def _is_pack(store: Any) -> bool:
    from tutelage.edits.packs.pack import FORMAT

    return any(header.metadata.get("format") == FORMAT for header in store.headers.values())


def _diff_pack(base: Any, path: Path, out: Path | None, as_json: bool) -> None:
    """What a pack changes in its base."""
    from tutelage.edits.packs.pack import SkillPack
    from tutelage.errors import TutelageError

    if out is not None:
        raise TutelageError(f"{path} is a pack already; -o writes a task vector of two checkpoints. Unpack it first, with: edit apply")
    pack = SkillPack(path)
    pack.check_base(base)
    tensors = [
        {"name": n, "operator": pack.manifest[n]["operator"], "bytes": pack.stored.tensors[n].nbytes, "error": pack.error(n)}
        for n in pack.names
    ]
    if as_json:
        print_json({"base": str(base.path), "pack": str(path), "recipe": pack.recipe, "sizes": pack.sizes, "tensors": tensors})
        return
    show_table(
        ["tensor", "operator", "bytes", "error"], [[t["name"], t["operator"], str(t["bytes"]), f"{t['error']:.2%}"] for t in tensors]
    )
    typer.echo(f"{len(tensors)} of {len(base.names)} tensors change; {path}, {_size(pack.file_bytes)}")


def print_plan(plan: Any, as_json: bool, notes: dict[str, str] | None = None) -> None:
    if as_json:
        print_json(plan.as_dict())
        return
    typer.echo(f"tensors calculated  {len(plan.touched)}")
    for name in plan.touched:
        typer.echo(f"  {name}" + (f"  {notes[name]}" if notes else ""))
    typer.echo(f"tensors copied      {plan.copied}\nbytes read          {_size(plan.bytes_in)}")
    typer.echo(f"bytes written       {_size(plan.bytes_out)}")
    typer.echo(f"peak memory, about  {_size(plan.peak_memory)}")
    for name, why in plan.skipped.items():
        typer.echo(f"skipped             {name}: {why}")


def show_table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        typer.echo("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]))


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def command_line() -> str:
    """The command as it was typed, for records."""
    return " ".join(["tutelage", *sys.argv[1:]])


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
