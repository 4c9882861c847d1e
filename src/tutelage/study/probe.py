"""`tutelage probe`: what a model can do on tasks before any training, arm by arm, and which difficulty it can learn from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tutelage.study.config import Run


def command(
    config: Annotated[Path | None, typer.Option("--config", help="A run file, as of train; typed options win.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="builtin, a model directory, or a name on the hub.")] = None,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", help="As in train.", show_default="quick")] = None,
    verifier: Annotated[str | None, typer.Option("--verifier", help="As in train.")] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Answers to each task; as many as a training group has.")] = 8,
    per_arm: Annotated[int, typer.Option("--per-arm", min=1, help="At most so many tasks of each arm.")] = 16,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
) -> None:
    """What a model can do on training tasks as it is: pass rate, pass@k, truncation by arm, and the difficulty to train on.

    A task teaches nothing while all answers of its group are alike, right or wrong: `live` is the share of tasks where they are not.
    """
    from tutelage.study.config import make_run
    from tutelage.study.schema import without_nan
    from tutelage.study.workers import quiet

    quiet()
    run = make_run(config, {"model": model, "tasks": tasks, "verifier": verifier}, sets or [])
    run.evaluation = run.evaluation.model_copy(update={"attempts": attempts, "tasks_per_arm": per_arm})
    found = probe(run)
    if as_json:
        print(json.dumps(without_nan(found), indent=1))
    else:
        _render(found)


def probe(run: Run) -> dict[str, Any]:
    """Measure the run's model on its training tasks, at most `evaluation.tasks_per_arm` of each arm, `evaluation.attempts` answers each.

    Returns:
        `arms`: per arm `name`, `tasks`, `live` and diagnostics; `overall`: diagnostics of all; `pass_rate_by_key`: of every measured task,
        for `tutelage.tasks.difficulty.difficulty_split`; `recommended`: arms of one prior difficulty, by
        `tutelage.tasks.difficulty.recommend_split` (a single arm where the tasks have no prior difficulty).
    """
    from tutelage.study import engines
    from tutelage.study.cell import Bench
    from tutelage.study.config import parse_arm
    from tutelage.study.evaluate import answers, diagnosed, held_out
    from tutelage.tasks.difficulty import live_share

    bench = Bench(run)
    model, tokenizer = engines.load_model(run)
    pool, settings = bench.tasks.train, engines.settings_of(run, parse_arm("uniform"))
    tasks = held_out(pool, bench.tasks.verifier, tokenizer, run, settings.get("max_completion_length", 512))
    found = answers(model, tokenizer, tasks)
    rate_M = (found.kind_MG == 1).mean(axis=1)
    arm_M = pool.arms().arm_N[tasks.rows_M]
    arms = []
    for code, name in enumerate(pool.arms().names):
        here = arm_M == code
        arms.append({"name": name, "tasks": int(here.sum()), "live": live_share(rate_M[here]), **diagnosed(found.of(here))})
    return {
        "model": run.model,
        "tasks": run.tasks,
        "attempts": run.evaluation.attempts,
        "arms": arms,
        "overall": {"live": live_share(rate_M), **diagnosed(found)},
        "recommended": _recommended(pool, tasks.rows_M, rate_M, arms),
        "pass_rate_by_key": dict(zip(map(str, pool.key_N[tasks.rows_M].tolist()), rate_M.tolist(), strict=True)),
    }


def _recommended(pool: Any, rows_M: Any, rate_M: Any, arms: list[dict[str, Any]]) -> list[str]:
    """Arms of equal prior difficulty, from easy to hard, as splits; without one each arm, from the highest pass rate to the lowest."""
    import numpy as np

    from tutelage.tasks.difficulty import recommend_split

    arm_M = pool.arms().arm_N[rows_M]
    if pool.difficulty_N is None:
        hardness_A = -np.array([arm["accuracy"] for arm in arms])
        splits = [[int(code)] for code in np.argsort(hardness_A, kind="stable")]
    else:
        hardness_A = np.round(np.bincount(pool.arms().arm_N, pool.difficulty_N) / pool.arms().size_A, 6)
        splits = [np.flatnonzero(hardness_A == level).tolist() for level in np.unique(hardness_A)]
    chosen = recommend_split({str(i): rate_M[np.isin(arm_M, codes)] for i, codes in enumerate(splits)})
    return [arms[code]["name"] for code in splits[int(chosen)]]


def _render(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tutelage.study.words import score

    largest = str(found["attempts"])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("arm", max_width=40, overflow="fold")
    for heading in ("tasks", "pass rate", f"pass@{largest}", "live", "cut off", "length"):
        table.add_column(heading, justify="right")
    for arm in [*found["arms"], {"name": "all", "tasks": sum(arm["tasks"] for arm in found["arms"]), **found["overall"]}]:
        at_k = arm.get("pass_at_k", {}).get(largest)
        numbers = (arm["accuracy"], at_k, arm["live"], arm["clip_ratio"])
        table.add_row(arm["name"], str(arm["tasks"]), *(score(number) for number in numbers), f"{arm['mean_length']:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"\nMost to learn from: {', '.join(found['recommended'])}", highlight=False)
