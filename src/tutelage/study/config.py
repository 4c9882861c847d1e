"""The configuration of a run and of a comparison: one schema for the command line, YAML files and Python.

Unknown keys fail and name the nearest valid one. `settings` are the engine's own, under the engine's names (`GRPOConfig`, `SFTConfig`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.registry import Registry, curricula, objectives, teachers

Engine = Literal["grpo", "sft", "self_play"]
BudgetKind = Literal["rollouts", "updates", "tokens", "seconds"]
_BUDGET = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(rollouts|updates|tokens|seconds)\s*$")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


M = TypeVar("M", bound=Strict)


class Evaluation(Strict):
    """How held-out tasks are measured, always apart from the reward.

    points: evaluations over the budget, the first (before training) not counted. tasks_per_arm: at most so many held-out tasks of each
    arm. attempts: completions per task. temperature: 1 measures the policy that is trained, 0 its greedy answers. batch_size: prompts
    generated at once.
    """

    points: int = Field(4, ge=1)
    tasks_per_arm: int = Field(24, ge=1)
    attempts: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    batch_size: int = Field(256, ge=1)


class Reward(Strict):
    """What is optimised. Curricula and evaluation see the verifier's judgement, whatever stands here.

    mode: "grade" is the verifier's grade, with partial grades where it gives any; "correct_only" is 1 or 0; "format_independent" pays and
    punishes the format beside the answer (`tutelage.tasks.rewards.FormatIndependent`); "span_gate" is the grade, and nothing for a
    completion with an unwanted `behaviour` (`tutelage.tasks.monitors`). The other fields belong to the format. formatted: "boxed" (a
    closed \\boxed) or "marked" (any mark that verifiers read an answer by). values: the rewards of correct and formatted, correct, wrong
    but formatted, wrong.
    """

    mode: Literal["grade", "correct_only", "format_independent", "span_gate"] = "grade"
    behaviour: str | None = None
    formatted: Literal["boxed", "marked"] = "boxed"
    values: tuple[float, float, float, float] = (1.0, 0.5, -0.5, -1.0)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


class Arm(Strict):
    """One arm of a comparison: a named way to train.

    curriculum and parameters: a registered curriculum and its hyperparameters. teacher: a registered teacher, with its parameters.
    objective: a registered objective that replaces the trainer's loss, with its hyperparameters. settings: the engine's options, over the
    run's. refill_cap, on_short: how many generation batches a filtering curriculum may draw per training batch, and what happens when it
    falls short (pad, partial, raise). rounds: of self-play.
    """

    name: str
    trainer: Engine | None = None
    curriculum: str = "uniform"
    parameters: dict[str, Any] = {}
    teacher: str | None = None
    teacher_parameters: dict[str, Any] = {}
    objective: str | None = None
    objective_parameters: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    refill_cap: int = Field(4, ge=1)
    on_short: Literal["pad", "partial", "raise"] = "pad"
    rounds: int = Field(3, ge=1)


class Run(Strict):
    """What all arms of a comparison share; `train` reads the same schema with one arm.

    model: "builtin", a model directory or a hub name. tasks: "quick", "builtin", reasoning-gym families, files or directories.
    steps: plain steps, which set the budget unless `budget` ("3000rollouts", "100updates", "20000tokens", "600seconds") does.
    seeds: how many, from 0; None is the least number that can reach a verdict. target: the accuracy whose cost is compared; None is
    chosen from the baseline's curve.
    template: a text with `{prompt}` in it, put around every prompt. chat: use the tokenizer's chat template where it has one; off for
    base models that do not follow instructions. imitate: what supervised training, demonstrations and self-play imitate, the tasks'
    "answer" or their worked "solution". lora: `peft.LoraConfig` options, or None for full training. reward: a mode of `Reward`, or its
    fields. format_reward: the least reward of a wrong but well-formed completion, with the mode "grade".
    """

    model: str = "builtin"
    tasks: list[str] = ["quick"]
    verifier: str | None = None
    columns: dict[Literal["prompt", "answer", "solution", "arm", "difficulty", "key"], str] = {}
    tasks_per_arm: int = Field(256, ge=1)
    trainer: Engine = "grpo"
    arms: list[Arm] = []
    baseline: str = "uniform"
    steps: int = Field(60, ge=1)
    budget: str | None = None
    seeds: int | None = Field(None, ge=1)
    seed: int = 0
    target: float | None = Field(None, gt=0, le=1)
    evaluation: Evaluation = Evaluation()
    settings: dict[str, Any] = {}
    lora: dict[str, Any] | None = None
    template: str | None = None
    chat: bool = True
    imitate: Literal["answer", "solution"] = "answer"
    reward: Reward = Reward()
    format_reward: float = Field(0.0, ge=0, lt=1)


def parse_budget(text: str) -> tuple[BudgetKind, float]:
    """ "3000rollouts" as ("rollouts", 3000.0)."""
    found = _BUDGET.match(text)
    if not found or float(found[1]) <= 0:
        raise TutelageError(
            f"Cannot read the budget {text!r}; write a positive number and its unit, such as 3000rollouts, 100updates or 600seconds."
        )
    return found[2], float(found[1].replace("_", ""))  # type: ignore[return-value]


def parse_value(text: str) -> Any:
    """A value typed on the command line, read as YAML: 1e-4 is a number, true a boolean, [a, b] a list."""
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TutelageError(f"Cannot read the value {text!r}: {error}.") from None


PARTS: tuple[tuple[str, Registry, str], ...] = (
    ("curriculum", curricula, "parameters"), ("teacher", teachers, "teacher_parameters"), ("objective", objectives, "objective_parameters"),
)  # fmt: skip
"""What an arm is made of: the field of `Arm`, where its parts are registered, and the field of its hyperparameters."""


def parse_arm(text: str) -> Arm:
    """An arm as typed: parts joined by "+", each a name or `name:key=value,key=value`; or a YAML file with the fields of `Arm`.

    "sec:tau=0.2", "adcl+egsr", "gkd+local:model=big/": a curriculum, a teacher and an objective, at most one of each.
    """
    if text.endswith((".yaml", ".yml")):
        return as_arm(read_yaml(Path(text)), Path(text).stem, text)
    values: dict[str, Any] = {}
    for piece in _JOINT.split(text):
        (noun, _, holder), name, rest = _part(piece)
        if noun in values:
            raise TutelageError(f"The arm {text!r} names two of one kind: {values[noun]!r} and {name!r} are each a {noun}. Keep one.")
        values |= {noun: name, holder: dict(_pair(pair, text) for pair in filter(None, rest.split(",")))}
    return as_arm(values, text, text)


def parse_part(text: str) -> tuple[str, dict[str, Any]]:
    """ "riac:window=150" as ("riac", {"window": 150}); a value in brackets may hold commas."""
    name, _, rest = text.partition(":")
    return name, dict(_pair(pair, text) for pair in filter(None, re.split(r",(?![^\[]*\])", rest)))


_JOINT = re.compile(r"\+(?=[A-Za-z])")


def _pair(pair: str, text: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise TutelageError(f"Cannot read {pair!r} in the arm {text!r}; write name:key=value,key=value, such as sec:tau=0.2.")
    return key.strip(), parse_value(value)


def _part(piece: str) -> tuple[tuple[str, Registry, str], str, str]:
    """What "name:settings" names (a name may hold a colon, such as trl:gkd), that name, and the settings."""
    name, _, rest = piece.partition(":")
    longer, _, less = rest.partition(":")
    for noun in PARTS:  # in this order: the objectives, which need torch, are loaded only for what is nothing else
        known = noun[1].names()
        for candidate, settings in ((name, rest), (f"{name}:{longer}", less)):
            if candidate in known:
                return noun, candidate, settings
    raise unknown("curriculum, teacher or objective", name, [n for _, registry, _ in PARTS for n in registry.names()])


def as_arm(value: dict[str, Any] | str, default_name: str, source: str) -> Arm:
    """An `Arm` from what a YAML file holds: a name, or a mapping with the fields of `Arm`; its parts are checked at once."""
    if isinstance(value, str):
        return parse_arm(value)
    arm = validate(Arm, {"name": default_name, **value}, source)
    target = curricula.get(arm.curriculum).target
    if isinstance(target, type) and issubclass(target, SpaceCurriculum):
        raise TutelageError(
            f"{source}: the curriculum {arm.curriculum!r} teaches in a continuous space of tasks, and a language model's tasks are a pool. "
            "Choose one of uniform, mixture, sec, dump, odf and the like (tutelage ls curricula)."
        )
    for noun, registry, holder in PARTS:
        name, parameters = getattr(arm, noun), getattr(arm, holder)
        if name is not None:
            setattr(arm, holder, registry.get(name).check(parameters))
        elif parameters:
            raise TutelageError(f"{source}: {holder} are given, but no {noun}. Name one, or drop them.")
    if arm.objective is not None and arm.trainer is None and _is_pairwise(arm.objective):
        arm.trainer = "self_play"
    return arm


def _is_pairwise(name: str) -> bool:
    """Whether an objective compares replies in pairs: those that self-play makes."""
    from tutelage.objectives import Pairwise

    return isinstance(objectives.build(name), Pairwise)


def validate(model: type[M], values: dict[str, Any], source: str) -> M:
    """`values` as a configuration, or an error that names the key, what it held and the nearest valid key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(p) for p in first["loc"]]
        if first["type"] == "extra_forbidden":
            nested: dict[str, type[Strict]] = {"evaluation": Evaluation, "reward": Reward}
            holder = nested.get(place[0], model) if len(place) > 1 else model
            raise TutelageError(f"{source}: {unknown('key', place[-1], holder.model_fields)}") from None
        got = f" (got {first['input']!r})" if first["type"] != "missing" else ""
        raise TutelageError(f"{source}: {'.'.join(place)}: {first['msg']}{got}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; a missing or malformed file is an error with its line."""
    if not path.is_file():
        raise TutelageError(f"There is no file {path}. Check the path; it is read relative to {Path.cwd()}.")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TutelageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(value, dict):
        raise TutelageError(f"{path} must hold a mapping of settings; it holds {type(value).__name__}.")
    return value


def make_run(file: Path | None, given: dict[str, Any], sets: list[str]) -> Run:
    """The run that a YAML file, typed options (`given`, None where not typed) and `--set key=value` describe, in that order."""
    values = read_yaml(file) if file else {}
    source = str(file) if file else "The command line"
    values |= {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("tasks"), str):
        values["tasks"] = [values["tasks"]]
    arms = values.pop("arms", [])
    run = validate(Run, values, source)
    for pair in sets:
        run = _set(run, pair)
    _check_together(run, source)
    run.arms = [arm if isinstance(arm, Arm) else as_arm(arm, f"arm {i}", source) for i, arm in enumerate(arms, 1)]
    names = [arm.name for arm in run.arms]
    for name in names:
        if names.count(name) > 1:
            raise TutelageError(f"{source}: the arm {name!r} is named twice; give each arm a name of its own.")
    return run


def _check_together(run: Run, source: str) -> None:
    if run.format_reward and run.reward.mode != "grade":
        raise TutelageError(
            f"{source}: format_reward={run.format_reward:g} and reward={run.reward.mode} both say what a wrong but well-formed completion "
            "earns. Drop one of the two."
        )
    if (run.reward.mode == "span_gate") != (run.reward.behaviour is not None):
        raise TutelageError(
            f"{source}: reward.mode={run.reward.mode} with reward.behaviour={run.reward.behaviour}; the mode span_gate needs a behaviour, "
            "and no other mode has one. Set both: reward: {mode: span_gate, behaviour: refusal}, or a string that completions hold."
        )
    if run.template is not None and "{prompt}" not in run.template:
        raise TutelageError(f"{source}: the template {run.template[:60]!r} has no place for the task; write {{prompt}} where it goes.")


def _set(run: Run, pair: str) -> Run:
    """Apply one `--set key=value`: a field of `Run`, `evaluation.<field>`, or an option of the engine."""
    key, equals, text = pair.partition("=")
    if not equals:
        raise TutelageError(f"Cannot read --set {pair!r}; write --set key=value.")
    value = parse_value(text)
    values = run.model_dump(exclude={"arms"})
    head, _, tail = key.partition(".")
    if tail and head in ("evaluation", "settings", "lora", "columns", "reward"):
        values[head] = {**(values[head] or {}), tail: value}
    elif key in Run.model_fields and key != "arms":
        values[key] = [value] if key == "tasks" and isinstance(value, str) else value
    else:
        values["settings"] = {**values["settings"], key: value}
    return validate(Run, values, f"--set {pair}")
