"""`tutelage edit prune`, `unlearn` and `calibrate`: edits that read text through the model.

Every command imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.edits.cli import DryRun, Json, OutDir, command_line, print_json, print_plan, show_table
from tutelage.errors import TutelageError

ModelDir = Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, or for prune a PEFT adapter.")]
Undo = Annotated[str, typer.Option("--undo", help="base: needs the model again; sidecar: also writes what rebuilds it.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the split and of all drawing.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Texts at once.")]


def prune(
    model: ModelDir,
    out: OutDir,
    calibration: Annotated[Path, typer.Option("--calibration", help="Harmful prompts with answers: JSONL, Parquet or a data set.")],
    amount: Annotated[float, typer.Option("--amount", help="The share of each row that is pruned.")] = 0.05,
    scope: Annotated[str | None, typer.Option("--scope", help="weights, delta or adapter.", show_default="by what is given")] = None,
    base: Annotated[Path | None, typer.Option("--base", help="The model before fine-tuning (scope delta), or an adapter's base.")] = None,
    score: Annotated[str, typer.Option("--score", help="wanda, contrast, saliency, magnitude or random.")] = "wanda",
    benign: Annotated[Path | None, typer.Option("--benign", help="Texts of the model's own task, for the score contrast.")] = None,
    task: Annotated[Path | None, typer.Option("--task", help="Prompts with answers of what must not be lost, to measure on.")] = None,
    judge: Annotated[str | None, typer.Option("--judge", metavar="MODULE:FUNCTION", help="(answer, reference) -> harmful?")] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", metavar="REGEX", help="Linear layers.", show_default="all in blocks")
    ] = None,
    granularity: Annotated[str, typer.Option("--granularity", help="row, tensor or all.")] = "row",
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="A,B,...", help="Amounts to try; the smallest that meets the target is written.")
    ] = None,
    target_harm: Annotated[float, typer.Option("--target-harm", help="Of a sweep: the highest harmful rate.")] = 0.1,
    most_loss: Annotated[float, typer.Option("--most-loss", help="Of a sweep: the most that the task may lose.")] = 0.05,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Of the answers that are judged.")] = 64,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    undo: Undo = "base",
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """One-shot pruning of the weights that harmful text activates most (Antidote), measured before and after."""
    from tutelage.model_edits import prune as edit
    from tutelage.model_edits.antidote import Antidote
    from tutelage.tasks.verifiers.custom import load_function

    where = scope or ("adapter" if (model / "adapter_config.json").exists() else "delta" if base else "weights")
    part = Antidote(amount=amount, scope=where, score=score, granularity=granularity, seed=seed)  # type: ignore[arg-type]
    chosen = tuple(layers) if layers else edit.BLOCKS
    if dry_run:
        print_plan(edit.plan_prune(model, where, base=base, layers=chosen), as_json)
        return
    _check_out(out)
    opened = edit.opened(model, base if where == "adapter" else None)
    texts = edit.read_texts(opened.tokenizer, calibration, benign=benign, task=task, seed=seed)
    options: dict[str, Any] = {"judge": load_function(judge)} if judge else {}
    job = edit.Pruning(opened, texts, part, base=base, layers=chosen, batch_size=batch_size, max_new_tokens=max_new_tokens, **options)
    table = [{"amount": a, **job.try_amount(a)} for a in _numbers(sweep)] if sweep else []
    if table:
        _show_sweep(table, edit.pareto(table), as_json)
        amount = table[edit.choose(table, target_harm=target_harm, most_loss=most_loss)]["amount"]
    record = edit.prune_checkpoint(job, out, amount, undo=undo, command=command_line())
    if as_json:
        print_json(record | {"out": str(out), "sweep": table})
        return
    _show_change(record, out)


def unlearn(
    model: ModelDir,
    out: OutDir,
    forget: Annotated[Path, typer.Option("--forget", help="Prompts with the answers to be forgotten.")],
    retain: Annotated[Path, typer.Option("--retain", help="Prompts with answers to be kept; a fifth is kept aside to measure on.")],
    method: Annotated[str, typer.Option("--method", help="cku, or a forget loss: ascent, npo, simnpo, wga, satimp, erase.")] = "cku",
    retain_loss: Annotated[str, typer.Option("--retain-loss", help="kl, nll or none.")] = "kl",
    gamma: Annotated[float, typer.Option("--gamma", help="Weight of the forget loss.")] = 1.0,
    alpha: Annotated[float, typer.Option("--alpha", help="Weight of the retain loss.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps at most.")] = 100,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of AdamW.")] = 1e-5,
    rate: Annotated[float, typer.Option("--rate", help="Of cku: the share of neurons that is locked.")] = 0.8,
    depth: Annotated[
        str, typer.Option("--depth", metavar="FROM,TO", help="Of cku: which layers train, as shares of their number.")
    ] = "0.25,0.4",
    score: Annotated[str, typer.Option("--score", help="Of cku: snip, wanda, activation or random.")] = "snip",
    stop_nll: Annotated[float | None, typer.Option("--stop-nll", help="Stop when a forget token's mean NLL reaches this, in nats.")] = None,
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="A,B,...", help="Numbers of steps; the first that meets the target is written.")
    ] = None,
    target: Annotated[float, typer.Option("--target", help="Of a sweep: the highest probability of a forget answer's token.")] = 0.1,
    most_loss: Annotated[float, typer.Option("--most-loss", help="Of a sweep: the most that the retain answers' may lose.")] = 0.05,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    undo: Undo = "base",
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a model forget given answers and keep others (CKU, NPO and their family); a killed command goes on when repeated."""
    from tutelage.model_edits import forget as edit

    low, high = [*_numbers(depth), 1.0][:2]
    settings = edit.Settings(
        method=method, retain_loss=retain_loss, gamma=gamma, alpha=alpha, steps=steps, lr=lr, rate=rate, depth=(low, high), score=score,  # type: ignore[arg-type]
        stop_nll=stop_nll, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    _check_out(out)
    job = edit.Job(model, forget, retain, settings)
    if dry_run:
        print_plan(_plan(job), as_json)
        return
    numbers = [int(n) for n in _numbers(sweep)] if sweep else []
    with _steps(max(numbers or [steps]), quiet=as_json) as tell:
        record = edit.forget_checkpoint(
            job, out, sweep=numbers, target=target, most_loss=most_loss, undo=undo, command=command_line(), tell=tell
        )
    if as_json:
        print_json(record | {"out": str(out)})
        return
    _show_change(record, out)


def calibrate(
    model: ModelDir,
    data: Annotated[Path, typer.Argument(help="Texts, or prompts with answers: JSONL, Parquet or a data set.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .safetensors file that does not exist yet.")],
    layers: Annotated[list[str] | None, typer.Option("--layers", metavar="REGEX", help="Linear layers.", show_default="all")] = None,
    per_pass: Annotated[int, typer.Option("--per-pass", help="Layers at a time; fewer take less memory and more passes.")] = 16,
    batch_size: BatchSize = 8,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens at which a text is cut.")] = 2048,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Statistics of what each linear layer is fed on your texts, for `edit pack --calibration`."""
    from tutelage.model_edits.calibration import batches, read_examples
    from tutelage.model_edits.second_moments import plan_second_moments, save_second_moments
    from tutelage.models import load_model

    _check_out(out)
    net, tokenizer = load_model(str(model))
    examples = read_examples(data, tokenizer, max_length=max_length)
    if dry_run:
        plan = plan_second_moments(net, layers=tuple(layers or ("",)), per_pass=per_pass)
        plan |= {"examples": len(examples), "tokens": sum(len(example.ids) for example in examples)}
        if as_json:
            print_json(plan)
        else:
            show_table(["layer", "inputs"], [[name, str(inputs)] for name, inputs in plan.pop("layers").items()])
            typer.echo("\n".join(f"{name.replace('_', ' '):<12} {value:,}" for name, value in plan.items()))
        return
    pad = tokenizer.pad_token_id or 0
    tokens = save_second_moments(
        net,
        lambda: batches(examples, size=batch_size, pad_id=pad, device=net.device),
        out,
        layers=tuple(layers or ("",)),
        per_pass=per_pass,
    )
    if as_json:
        print_json({"out": str(out), "tokens": tokens})
        return
    typer.echo(f"{out}: statistics of {len(tokens)} layers, from {max(tokens.values())} tokens")


def _plan(job: Any) -> Any:
    from tutelage.edits.plan import Plan

    touched, store = list(job.loop.parameters), job.store
    trained = sum(parameter.numel() for parameter in job.loop.parameters.values())
    every = sum(parameter.numel() for parameter in job.model.parameters())
    peak = 4 * (every + 4 * trained)  # the model, and of what trains: gradient, two moments, the values before
    aside = {name: "does not train" for name in store.names if name not in job.loop.parameters} | store.others()[1]
    return Plan(touched, len(store.tensors) - len(touched), store.nbytes, store.nbytes, peak, aside)


def _check_out(out: Path) -> None:
    """Before anything is trained or measured."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise TutelageError(f"Cannot read the numbers {text!r}; write them with commas between, such as 0.01,0.02,0.05.") from None


def _steps(total: int, *, quiet: bool) -> Any:
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        console = Console(stderr=True, quiet=quiet)
        columns = (
            TextColumn("unlearn"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("forget NLL {task.fields[nll]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
            task = progress.add_task("unlearn", total=total, nll=float("nan"))
            yield lambda stats: progress.update(task, advance=1, nll=stats["nll"])

    return bar()


def _show_sweep(table: list[dict[str, float]], best: list[bool], as_json: bool) -> None:
    if not as_json:
        names = [name for name in table[0] if name != "amount"]
        rows = [
            [f"{row['amount']:g}", *(f"{row[name]:.3f}" for name in names), "*" if on else ""] for row, on in zip(table, best, strict=True)
        ]
        show_table(["amount", *names, "Pareto"], rows)


def _show_change(record: dict[str, Any], out: Path) -> None:
    before, after = record["before"], record["after"]
    show_table(["", "before", "after"], [[name, _shown(before.get(name)), _shown(after[name])] for name in after])
    typer.echo(f"{out}: {len(record['touched'])} tensors rewritten; the way back: tutelage edit remove {out} -o DIR")


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"
