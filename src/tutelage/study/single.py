"""`tutelage train`: one cell at full scale; the result is an ordinary model directory with a card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.files import atomic_write
from tutelage.study import answers, engines, series
from tutelage.study.cell import Bench, Job, record_of, train_cell
from tutelage.study.compare import default_out, shared
from tutelage.study.config import PARTS, Arm, Run, parse_arm
from tutelage.study.provenance import versions
from tutelage.study.rounds import train_rounds
from tutelage.study.store import digest
from tutelage.study.words import duration
from tutelage.tasks.diagnostics import rambling

CARD = """---
library_name: transformers
tags: [tutelage, {engine}, "{title_arm}"]
---

# {title}

Trained from `{model}` on {tasks} with {taught}.

| | before | after |
|---|---|---|
| held-out accuracy | {before:.3f} | {after:.3f} |
{arms}

{answers}

{updates:,} updates, {rollouts:,} rollouts, {tokens:,} generated tokens, {seconds}. Verifier: `{verifier}`.

Made by `{command}` with {versions}.
"""


def plan(run: Run, out: Path | None) -> tuple[Job, Path]:
    """The one cell that a run file describes, and where it goes."""
    if len(run.arms) > 1:
        raise TutelageError(
            f"train runs one arm; this run names {len(run.arms)}: {', '.join(a.name for a in run.arms)}. "
            "Choose one with --arm, or use compare."
        )
    arm = run.arms[0] if run.arms else parse_arm("uniform")
    engines.check_settings(run, [arm])
    _, per_step = engines.plain_step(run, arm)
    budget = engines.budget_of(run, per_step, supervised=engines.supervised(run, arm))
    engines.check_budget(run, [arm], budget)
    job = Job(arm.name, arm, 0, budget)
    return job, out or Path(f"{default_out(run)}-{arm.name.replace(':', '-')}")


def resolved(run: Run, job: Job, folder: Path) -> dict[str, Any]:
    settings = engines.settings_of(run, job.arm)
    return {
        **run.model_dump(mode="json"),
        "arms": [job.arm.model_dump(mode="json")],
        "budget": list(job.budget),
        "settings": settings,
        "out": str(folder),
    }


def train(run: Run, job: Job, folder: Path, *, command: str, console: Any) -> dict[str, Any]:
    """Train, save the model, its tokenizer, `training.json` and the card; returns the record."""
    identity = digest({"run": shared(run), "arm": job.arm.model_dump(mode="json"), "budget": list(job.budget)})
    stored = folder / "run.json"
    if stored.exists() and json.loads(stored.read_text())["identity"] != identity:
        raise TutelageError(
            f"{folder} holds a run of another configuration. Give another --out, or repeat the command "
            "it was made with; nothing was changed."
        )
    if not stored.exists() and folder.exists() and any(folder.iterdir()):
        raise TutelageError(f"{folder} is not empty and holds no run. Give another --out; nothing was changed.")
    if (folder / "training.json").exists():
        console.print(f"{folder} is finished already.", highlight=False)
        return json.loads((folder / "training.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(
        stored, json.dumps({"identity": identity, "resolved": resolved(run, job, folder), "command": command}, indent=1, default=str)
    )
    bench = Bench(run)
    with _bar(console) as tell:
        if engines.engine_of(run, job.arm) == "self_play":
            record, model, tokenizer = train_rounds(bench, job, folder / "rounds", tell)
            model.save_pretrained(folder)
        else:
            trainer, observer = train_cell(bench, job, folder / "checkpoints", tell)
            record, tokenizer = record_of(bench, job, trainer, observer), trainer.processing_class
            trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    atomic_write(folder / "README.md", _card(run, job, record, bench, command))
    atomic_write(folder / "training.json", json.dumps({**record, "versions": versions()}))
    accuracy = record["curve"]["accuracy"]
    console.print(f"held-out accuracy {accuracy[0]:.3f} → {accuracy[-1]:.3f}; the model is in {folder}", highlight=False)
    if warning := rambling(*(record["curve"]["diagnostics"][i] for i in (0, -1))):
        console.print(f"warning: {warning}", highlight=False)
    return record


def _bar(console: Any) -> Any:
    from contextlib import contextmanager

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn("training"), BarColumn(30), TextColumn("{task.fields[words]}"), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("training", total=1.0, words="")
            said = [0.0]

            def tell(info: dict[str, Any]) -> None:
                reward = "" if math.isnan(info["reward"]) else f" · reward {info['reward']:.3f}"
                words = f"step {info['step']}{reward} · held-out {info['accuracy']:.3f}"
                progress.update(task, completed=info["share"], words=words)
                if not console.is_terminal and info["share"] - said[0] >= 0.1:
                    said[0] = info["share"]
                    console.print(f"{info['share']:.0%} {words}", highlight=False)

            yield tell

    return bar()


def _card(run: Run, job: Job, record: dict[str, Any], bench: Bench, command: str) -> str:
    before, after = record["curve"]["by_arm"][0], record["curve"]["by_arm"][-1]
    rows = "\n".join(f"| {name} | {b:.3f} | {a:.3f} |" for name, b, a in zip(bench.arm_names[:40], before, after, strict=False))
    totals = record["totals"]
    return CARD.format(
        engine=engines.engine_of(run, job.arm), title_arm=job.arm.name, title=f"{Path(run.model).name} after {job.arm.name}",
        model=run.model, tasks=", ".join(run.tasks), taught=_taught(job.arm),
        answers=_answers(*(record["curve"]["diagnostics"][i] for i in (0, -1))), before=record["curve"]["accuracy"][0],
        after=record["curve"]["accuracy"][-1], arms=rows, updates=totals["updates"],
        rollouts=totals["rollouts"], tokens=totals["tokens"], seconds=duration(totals["seconds"]), verifier=bench.tasks.verifier_spec,
        command=command, versions=", ".join(f"{k} {v}" for k, v in versions().items()),
    )  # fmt: skip


def _taught(arm: Arm) -> str:
    """What teaches, in words: each part with its hyperparameters."""
    named = [(noun, getattr(arm, noun), getattr(arm, holder)) for noun, _, holder in PARTS if getattr(arm, noun) is not None]
    return ", ".join(
        f"the {noun} **{name}** ({', '.join(f'{k}={v}' for k, v in given.items()) or 'its defaults'})" for noun, name, given in named
    )


def _answers(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The card's lines on the answers themselves."""
    was, now = (series.flat(found) for found in (before, after))
    lines = [f"| {heading} | {form(was.get(name))} | {form(now.get(name))} |" for name, heading, form in answers.columns(now)]
    warning = rambling(before, after)
    return "\n".join(["| the answers | before | after |", "|---|---|---|", *lines, *(["", f"**Warning:** {warning}."] if warning else [])])
