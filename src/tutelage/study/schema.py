"""The record of one comparison, as `league.json` stores it: what the table and the report read.

Every measured number may be null: that is how NaN is stored (`without_nan`), and it means "not measured" or "never reached". A suffix is a
shape: `A` task arms, `X` evaluations of one run, `L` logged steps of one run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from tutelage.errors import TutelageError

Number = float | None
RowKind = Literal["method", "baseline", "control", "equal-updates"]


class Budget(TypedDict):
    """What every run was given: `amount` of `kind`; `steps` is the number of optimiser steps it comes to for the baseline."""

    kind: Literal["rollouts", "updates", "tokens", "seconds"]
    amount: float
    steps: int


class Cost(TypedDict):
    """What a run used. `tokens` were generated, `training_tokens` entered the loss; `seconds` exclude `evaluation_seconds`."""

    rollouts: Number
    updates: Number
    tokens: Number
    training_tokens: Number
    seconds: Number
    evaluation_seconds: Number
    rejected_rollouts: Number
    curriculum_seconds: Number


class Row(TypedDict):
    """One line of the league table; all numbers are means over seeds.

    `name` is unique and is what cells refer to. `label` is what readers see; rows of one method share it (and its colour) and differ in
    `note` ("at equal updates", "given odf's rollouts"). `hardest` is the mean over the hardest arms. The two ratios are the row's cost to
    reach the target over the baseline's, so below 1 is faster; the first counts rollouts, or updates where there are none. Difference,
    its 95 % t interval and the p values compare with the baseline and are null for it.
    """

    name: str
    label: str
    note: str
    kind: RowKind
    seeds: int
    final: Number
    final_sd: Number
    worst_arm: Number
    worst_arm_name: str
    hardest: Number
    area: Number
    rollouts_to_target_ratio: Number
    seconds_to_target_ratio: Number
    difference: Number
    interval: list[Number] | None
    p: Number
    p_holm: Number
    verdict: str
    sentence: str
    cost: Cost


class Diagnostics(TypedDict, total=False):
    """What the answers of one evaluation look like, see `tutelage.tasks.diagnostics.diagnose`; a key that is absent was not measured."""

    accuracy: Number
    format_rate: Number
    clip_ratio: Number
    mean_length: Number
    stopped_length: Number
    dead_share: Number
    distinct_answers: Number
    pass_at_k: dict[str, Number]
    behaviours: dict[str, Number]


class Curve(TypedDict):
    """Evaluations on held-out tasks, each list of length X, the first before any training; `by_arm` is X lists of A accuracies.

    `diagnostics` are of the very answers that `accuracy` is of; leagues made before there were any lack it.
    """

    step: list[int]
    rollouts: list[Number]
    tokens: list[Number]
    seconds: list[Number]
    accuracy: list[Number]
    by_arm: list[list[Number]]
    diagnostics: NotRequired[list[Diagnostics]]


class Taught(TypedDict):
    """The share of each arm among the tasks taught at each logged step: L steps, L lists of A shares."""

    step: list[int]
    share: list[list[Number]]


class Train(TypedDict):
    """What training showed at each logged step, each list of length L."""

    step: list[int]
    reward: list[Number]
    solved: list[Number]
    length: list[Number]


class Cell(TypedDict):
    """One run: a row's method on one seed."""

    row: str
    seed: int
    curve: Curve
    taught: Taught
    train: Train
    totals: dict[str, Any]


class League(TypedDict):
    """The whole comparison.

    `arm_names` are A task arms, "family/level" where there are levels; `machine` is free ("cpus", "gpu", ...); `notes` are sentences of
    comparisons beyond those with the baseline, such as a filter's with its control.
    """

    title: str
    command: str
    created: str
    budget: Budget
    baseline: str
    seeds: list[int]
    arm_names: list[str]
    metric: str
    target: Number
    rows: list[Row]
    cells: list[Cell]
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    notes: NotRequired[list[str]]


def without_nan(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None, through dicts, lists and tuples: what JSON can hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_league(league: Any, source: str = "The league") -> League:
    """`league` as a `League` in which NaN is null, or an error that names the first wrong place; `source` opens the message.

    Raises:
        TutelageError: a key is missing, a value has the wrong type, a cell names no row, or lists that belong together differ in length.
    """
    from pydantic import TypeAdapter, ValidationError

    league = without_nan(league)
    try:
        TypeAdapter(League).validate_python(league)
    except ValidationError as error:
        first, *others = error.errors()
        place = ".".join(map(str, first["loc"])) or "its top"
        raise TutelageError(
            f"{source} does not have the expected form: at {place}, {first['msg'][:1].lower()}{first['msg'][1:]} "
            f"(got {str(first['input'])[:80]!r}{f'; {len(others)} more places' if others else ''}). It was probably written by another "
            "version or by hand; run the comparison again."
        ) from None
    _check_lengths(cast(League, league), source)
    return cast(League, league)


def _check_lengths(league: League, source: str) -> None:
    arms, names = len(league["arm_names"]), [row["name"] for row in league["rows"]]
    problems = [f"the row name {name!r} occurs twice" for name in names if names.count(name) > 1]
    for cell in league["cells"]:
        where = f"the cell of {cell['row']!r}, seed {cell['seed']}"
        if cell["row"] not in names:
            problems.append(f"{where} belongs to no row (rows: {', '.join(names)})")
        parts: dict[str, Any] = {"curve": cell["curve"], "taught": cell["taught"], "train": cell["train"]}
        for part, lists in parts.items():
            lengths = {key: len(values) for key, values in lists.items()}
            if len(set(lengths.values())) > 1:
                problems.append(f"{where} has a {part} whose lists differ in length: {lengths}")
        if any(len(by_arm_A) != arms for by_arm_A in cell["curve"]["by_arm"] + cell["taught"]["share"]):
            problems.append(f"{where} does not have {arms} numbers, one for each arm, at every step")
    if problems:
        raise TutelageError(f"{source} contradicts itself: {problems[0]} ({len(problems)} problem(s)). Run the comparison again.")


def progress_axis(league: League) -> Literal["rollouts", "step"]:
    """What training is counted in: rollouts, or updates where some runs take them without rollouts (supervised steps)."""
    return progress_axis_of(league["cells"])


def progress_axis_of(cells: Sequence[Cell]) -> Literal["rollouts", "step"]:
    """The same of finished runs: rollouts where they grow from each evaluation to the next in all of them."""
    counts = [[n or 0 for n in cell["curve"]["rollouts"]] for cell in cells]
    return "rollouts" if all(a < b for curve in counts for a, b in itertools.pairwise(curve)) else "step"


def progress_word(league: League) -> str:
    """The unit of `progress_axis` in words."""
    return "rollouts" if progress_axis(league) == "rollouts" else "updates"


def ranked(league: League) -> list[Row]:
    """The rows from the best mean final score to the worst; rows without a score come last, ties keep their order."""
    return sorted(league["rows"], key=lambda row: -math.inf if row["final"] is None else row["final"], reverse=True)


def display_name(row: Row) -> str:
    """A row's label with its note, in one line."""
    return f"{row['label']} ({row['note']})" if row["note"] else row["label"]
