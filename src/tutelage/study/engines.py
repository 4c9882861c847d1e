"""How a run becomes an engine's trainer: TRL's GRPO and SFT with a curriculum, and the settings they start from.

The settings of the built-in student were chosen once, for the uniform baseline alone, so that no method is tuned more than it. Other models
start from TRL's own defaults; only the learning-rate schedule (constant after warm-up: a decay would confound comparisons at
different budgets) and what a comparison owns (saving, logging, seeds) differ.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.registry import curricula
from tutelage.study.config import Arm, BudgetKind, Engine, Evaluation, Run, parse_budget

BUILTIN_SETTINGS: dict[Engine, dict[str, Any]] = {
    "grpo": {
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "max_completion_length": 12,
        "gradient_checkpointing": False,
        "learning_rate": 2e-4,
        "warmup_steps": 5,
    },
    "sft": {
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-4,
        "warmup_steps": 5,
        "max_length": 160,
        "gradient_checkpointing": False,
    },
    "self_play": {  # a twentieth of the supervised learning rate, as between TRL's own defaults
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-5,
        "warmup_steps": 5,
        "gradient_checkpointing": False,
    },
}
COMMON_SETTINGS: dict[str, Any] = {
    "lr_scheduler_type": "constant_with_warmup",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


def config_class(engine: Engine) -> Any:
    """TRL's configuration class of an engine; without TRL installed the error names the extra."""
    try:
        import trl
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "trl", "lm") from None
    return {"grpo": trl.GRPOConfig, "sft": trl.SFTConfig, "self_play": trl.DPOConfig}[engine]


def engine_of(run: Run, arm: Arm) -> Engine:
    return arm.trainer or run.trainer


def settings_of(run: Run, arm: Arm) -> dict[str, Any]:
    """The engine's options of one arm: common, then the built-in student's, then those of the run's that it has, then the arm's."""
    engine = engine_of(run, arm)
    builtin = BUILTIN_SETTINGS[engine] if run.model == "builtin" else {}
    shared = {key: value for key, value in run.settings.items() if key in option_names(engine)}
    settings = {**COMMON_SETTINGS, **_device_settings(), **builtin, **shared, **arm.settings}
    if engine == "grpo" and settings.get("num_generations", 8) == 1:
        raise TutelageError(
            "num_generations is 1: a group of one has no spread, so every advantage is 0 and nothing trains. "
            "Use a group of at least 2 (8 is usual)."
        )
    return settings


def _device_settings() -> dict[str, Any]:
    """Full precision on a CPU, where half precision is slow and inexact; TRL's default elsewhere."""
    import torch

    return {} if torch.cuda.is_available() else {"bf16": False, "use_cpu": True, "dataloader_pin_memory": False}


def option_names(engine: Engine) -> frozenset[str]:
    """The options of an engine's configuration class."""
    return frozenset(field.name for field in dataclasses.fields(config_class(engine)))


def check_settings(run: Run, arms: Sequence[Arm]) -> None:
    """Refuse options that no engine of the run has, and of an arm those that its own engine lacks; the nearest of all valid names is told.

    An option that only some of the engines have goes to those.
    """
    used = {engine_of(run, arm) for arm in arms}
    fields = set(Run.model_fields) | {f"evaluation.{n}" for n in Evaluation.model_fields}
    shared = frozenset().union(*(option_names(engine) for engine in used))
    given: list[tuple[dict[str, Any], frozenset[str], set[Engine]]] = [(run.settings, shared, used)]
    given += [(arm.settings, option_names(engine_of(run, arm)), {engine_of(run, arm)}) for arm in arms]
    for settings, names, engines in given:
        for key in settings:
            if key not in names:
                holders = " and ".join(sorted(f"trl.{config_class(engine).__name__}" for engine in engines))
                raise _short(unknown("setting", key, names | fields), holders)


def _short(error: TutelageError, holder: str) -> TutelageError:
    """The list of a hundred and fifty options helps nobody: keep the nearest name and say where the others stand."""
    return TutelageError(f"{str(error).split(' Known:')[0]} Options are the fields of a run file and those of {holder}.")


def budget_of(run: Run, rollouts_per_step: int, *, supervised: bool) -> tuple[BudgetKind, float]:
    """What each run gets: the budget asked for, else the rollouts of the plain steps, or the steps where anything is supervised."""
    if run.budget:
        return parse_budget(run.budget)
    return ("updates", float(run.steps)) if supervised else ("rollouts", float(run.steps * rollouts_per_step))


def plain_step(run: Run, arm: Arm) -> tuple[int, int]:
    """(tasks, rollouts) of one optimiser step without filtering; for SFT and self-play a task is an example and there are no rollouts."""
    settings = settings_of(run, arm)
    config: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(config_class(engine_of(run, arm)))} | settings
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = int(config["per_device_train_batch_size"]) * int(config["gradient_accumulation_steps"]) * world
    if engine_of(run, arm) != "grpo":
        return batch, batch
    group = int(config["num_generations"])
    if batch % group:
        raise TutelageError(
            f"A step of {batch} completions cannot be cut into groups of num_generations={group}; make per_device_train_batch_size x "
            "gradient_accumulation_steps a multiple of it."
        )
    return batch // group, batch


def draws_of(run: Run, arm: Arm, budget: tuple[BudgetKind, float]) -> int:
    """How many tasks a run will show, as near as its budget tells; what the curriculum measures takes its share of the rollouts."""
    tasks, rollouts = plain_step(run, arm)
    kind, amount = budget
    if kind != "rollouts":
        return math.ceil((amount if kind == "updates" else run.steps) * tasks)
    target: Any = curricula.get(arm.curriculum).target
    return max(math.ceil(amount / (rollouts / tasks + target.probes_per_draw(**arm.parameters))), 1)


def supervised(run: Run, arm: Arm) -> bool:
    """Whether an arm takes optimiser steps that cost no rollouts, so that only equal updates are a fair budget."""
    if engine_of(run, arm) != "grpo":
        return True
    if arm.objective is None:
        return False
    from tutelage.registry import objectives

    return any("/" in column for column in objectives.build(arm.objective, **arm.objective_parameters).requires)


def load_model(run: Run) -> tuple[Any, Any]:
    """(model, tokenizer) of a run."""
    from tutelage import models
    from tutelage.students import builtin_path

    return models.load_model(str(builtin_path()) if run.model == "builtin" else run.model)


def make_config(run: Run, arm: Arm, *, seed: int, max_steps: int, output_dir: Path) -> Any:
    """TRL's configuration object for one cell."""
    engine = engine_of(run, arm)
    settings = {**settings_of(run, arm), "seed": seed, "max_steps": max_steps, "output_dir": str(output_dir)}
    try:
        return config_class(engine)(**settings)
    except (TypeError, ValueError) as error:
        raise TutelageError(f"{config_class(engine).__name__} refuses the settings of the arm {arm.name!r}: {error}") from None
