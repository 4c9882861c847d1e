"""Tasks by name or path: the built-in set, reasoning-gym families, JSONL, Parquet and dataset directories, split and with a verifier.

    load_tasks()                                   the built-in set: eight reasoning-gym families in four levels
    load_tasks(["rg:maze", "rg:countdown"])        any of reasoning-gym's families, in its own levels
    load_tasks("gsm8k/test.jsonl")                 files; prompt and answer columns are found by name

`readers.py` reads files, `tables.py` makes pools of tables and data sets of pools; their names can be imported from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.pools import Arms, TaskPool
from tutelage.tasks.readers import load_columns, read_directory, read_jsonl, read_parquet
from tutelage.tasks.tables import ANSWER_NAMES, PROMPT_NAMES, columns_of, pool_of, prompt_key, renamed, to_dataset
from tutelage.tasks.verifiers import Verifier, final_answer, resolve
from tutelage.tasks.verifiers.answers import plain
from tutelage.tasks.verifiers.quantities import read_number

__all__ = ["TaskSet", "load_columns", "load_tasks", "pool_of", "prompt_key", "read_directory", "read_jsonl", "read_parquet", "to_dataset"]

DIFFICULTY_BINS = 4
ROLES = ("prompt", "answer", "solution")
_PLAIN_NUMBER = re.compile(
    r"""[$€£¥₹]? \s* [-+−]? \s* [$€£¥₹]? \s*
        (?: (?: \d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+ | \d+ ) (?:\.\d+)? | \.\d+ | \\[dt]?frac\{\d+\}\{\d+\} )
        (?: /[1-9]\d* | [eE][-+]?\d{1,2} )? \s* \\?%? (?: \s+[^\d\s]+ )?""",
    re.VERBOSE,
)
"""A number and at most one word for its unit."""


@dataclass(frozen=True)
class TaskSet:
    """Tasks to train on, tasks held out from all training, and how completions are judged.

    train, heldout: pools with the same columns and arms and no prompt in common. name: for run names and reports. verifier_spec: what
    `tutelage.tasks.verifiers.resolve` made the verifier of, chosen by `load_tasks` where the caller named none.
    """

    train: TaskPool
    heldout: TaskPool
    verifier: Verifier
    name: str
    verifier_spec: str


def load_tasks(
    spec: str | Path | Sequence[str | Path] | None = None,
    *,
    verifier: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    solution: str | None = None,
    arm: str | Sequence[str] | None = None,
    difficulty: str | None = None,
    key: str | None = None,
    heldout_share: float = 0.125,
    heldout_tasks: int | None = None,
    tasks_per_arm: int = 256,
    seed: int = 0,
) -> TaskSet:
    """Load tasks by name or path.

    spec: None or "builtin" for the built-in set, "quick" for its seven families with short prompts; reasoning-gym families as "rg:gcd" or
    "gcd", one or several (see `make_pool` for levels); or a file or dataset directory, one or several. A bare name that could be
    either is a family; write "./gcd" for the path.

    verifier: a registered verifier or `module:function`. Default: "reasoning_gym" for its families; for files "numeric" where every gold
    answer holds a number and 95 % are no more than one (GSM8K works as it comes), else "exact".

    Of files: prompt, answer, solution, arm, difficulty, key name columns, see `pool_of`. Several files are put one after another, columns
    that a file lacks are null in its rows, and each file is an arm by its stem unless `arm` says otherwise. Without arms, `difficulty` cuts
    the tasks at its quartiles into the arms "difficulty 1" (easiest) to "difficulty 4"; a file without either is one arm.

    heldout_share of a file is held out, by the hash of the prompt alone: neither order nor further rows move a task from one side to the
    other, but in an arm of which the hash holds out none or all (see `split_rows`). heldout_tasks: at most so many per arm; the others of
    the share are left aside, never trained on. Of reasoning-gym families, tasks_per_arm are generated from `seed` for training, and
    heldout_tasks (default: tasks_per_arm times heldout_share) of the eighth that `is_heldout` fixes for ever.
    """
    if not 0 < heldout_share < 1:
        raise TutelageError(
            f"heldout_share={heldout_share} must lie between 0 and 1, for instance 0.125: results are measured on held-out tasks."
        )
    if heldout_tasks is not None and heldout_tasks < 1:
        raise TutelageError(f"heldout_tasks={heldout_tasks} must be at least 1: results are measured on held-out tasks.")
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec or ["builtin"])
    paths = [Path(s) for s in specs if _is_path(s)]
    if paths and len(paths) < len(specs):
        names = ", ".join(str(s) for s in specs if not _is_path(s))
        raise TutelageError(
            f"Files ({paths[0]}, …) and named task sets ({names}) cannot be mixed, for they are judged by different verifiers."
        )
    named = {"prompt": prompt, "answer": answer, "solution": solution, "arm": arm, "difficulty": difficulty, "key": key}
    if paths:
        return _from_files(paths, named, verifier, heldout_share, heldout_tasks)
    if given := [name for name, value in named.items() if value is not None]:
        raise TutelageError(
            f"{', '.join(given)}= name columns of files; {', '.join(map(str, specs))} brings its own columns and arms. Leave them out."
        )
    per_arm = heldout_tasks or max(1, round(tasks_per_arm * heldout_share))
    return _from_reasoning_gym([str(s) for s in specs], verifier or "reasoning_gym", tasks_per_arm, per_arm, seed)


def _is_path(spec: str | Path) -> bool:
    if isinstance(spec, Path):
        return True
    if spec in ("builtin", "quick") or spec.startswith("rg:"):
        return False
    return "/" in spec or "\\" in spec or bool(Path(spec).suffix) or (Path(spec).exists() and not _is_family(spec))


def _is_family(name: str) -> bool:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return False
    return name in DATASETS


def _from_reasoning_gym(specs: list[str], verifier: str, tasks_per_arm: int, heldout_per_arm: int, seed: int) -> TaskSet:
    from tutelage.tasks.families import BUILTIN_LEVELS, QUICK_FAMILIES
    from tutelage.tasks.reasoning_gym import make_pool
    from tutelage.tasks.verifiers.gym import UNSOUND

    judge = resolve(verifier)
    families: list[str] | None = [spec.removeprefix("rg:") for spec in specs]
    name = "+".join(families or [])
    if families in (["builtin"], ["quick"]):
        families = None if families == ["builtin"] else list(QUICK_FAMILIES)
    for family in families or []:
        if family in UNSOUND and verifier == "reasoning_gym":
            raise TutelageError(f"reasoning-gym's scorer of {family!r} calls every non-empty answer correct; leave this family out.")
        if family not in BUILTIN_LEVELS and not _is_family(family):
            raise _unknown_tasks(family)
    train = make_pool(families, tasks_per_arm=tasks_per_arm, seed=seed)
    heldout = make_pool(families, tasks_per_arm=heldout_per_arm, seed=seed, heldout=True)
    return TaskSet(train, heldout, judge, name, verifier)


def _unknown_tasks(name: str) -> TutelageError:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return TutelageError(
            f"There is no file {name!r}, and the package 'reasoning-gym', whose family it may name, is not installed. Check the path, or "
            "install the package with: pip install 'tutelage[lm]'"
        )
    if name in ("builtin", "quick"):
        return TutelageError(f"{name!r} cannot be joined with other families; name its families one by one (tutelage.tasks.families).")
    return TutelageError(
        f"{unknown('task set, reasoning-gym family or file', name, ['builtin', 'quick', *DATASETS])} Files are named by their path."
    )


def _from_files(
    paths: list[Path], named: Mapping[str, Any], verifier: str | None, heldout_share: float, heldout_tasks: int | None
) -> TaskSet:
    """One pool of everything first, so that errors speak of the rows of the file; then the split."""
    table, named, arm = _read(paths, named)
    source = ", ".join(map(str, paths))
    pool = pool_of(table, arm=arm, source=source, **named)
    _need(pool, "prompt", PROMPT_NAMES, source)
    if verifier is None or verifier in ("exact", "numeric", "choice", "math"):
        _need(pool, "answer", ANSWER_NAMES, source)
    verifier = verifier or default_verifier(pool.columns["answer"])
    judge = resolve(verifier)
    if arm is None:
        labels_N = np.full(len(pool), paths[0].stem) if pool.difficulty_N is None else difficulty_bins(pool.difficulty_N)
        arm = {"arm" if pool.difficulty_N is None else "difficulty": labels_N}
    arms = TaskPool(arm=arm).arms() if isinstance(arm, Mapping) else pool.arms()
    hash_N = np.asarray([int(prompt_key(prompt)[:16], 16) / 2**64 for prompt in pool.columns["prompt"]])
    train, heldout = (
        pool_of(_take(table, rows_M), arm=_take(arm, rows_M) if isinstance(arm, Mapping) else arm, source=source, **named)
        for rows_M in split_rows(hash_N, arms, heldout_share, heldout_tasks)
    )
    return TaskSet(train, heldout, judge, "+".join(_stems(paths)), verifier)


def _read(paths: list[Path], named: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """The table of the files, the names of its columns, and its arms (a name, several, labels by name, or None)."""
    options = {name: value for name, value in named.items() if name != "arm"}
    if len(paths) == 1:
        return load_columns(paths[0]), options, named["arm"]
    tables = []
    for path in paths:
        columns = columns_of(load_columns(path), str(path))
        tables.append(renamed(columns, **{role: named[role] for role in ROLES}, source=str(path)))
        if "prompt" not in tables[-1]:
            raise _no_column("prompt", columns, PROMPT_NAMES, str(path))
    sizes = [len(table["prompt"]) for table in tables]
    names = dict.fromkeys(name for table in tables for name in table)
    joined = {
        name: [value for table, size in zip(tables, sizes, strict=True) for value in table.get(name, [None] * size)] for name in names
    }
    stems = {"file": np.repeat(_stems(paths), sizes)}
    return joined, options | dict.fromkeys(ROLES), stems if named["arm"] is None else named["arm"]


def _stems(paths: list[Path]) -> list[str]:
    """File names without suffix; where two are alike, with their directory."""
    stems = [path.stem or path.resolve().name for path in paths]
    return [stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}" for stem, path in zip(stems, paths, strict=True)]


def _take(table: Any, rows_M: NDArray[np.int64]) -> Any:
    """Some rows of a table: of a `datasets.Dataset` by its own indices, of columns as new columns."""
    if not isinstance(table, Mapping):
        return table.select(rows_M)
    return {name: column[rows_M] if isinstance(column, np.ndarray) else [column[row] for row in rows_M] for name, column in table.items()}


def _need(pool: TaskPool, role: str, candidates: Sequence[str], source: str) -> None:
    if role not in pool.columns:
        raise _no_column(role, pool.columns, candidates, source)
    for row, value in enumerate(pool.columns[role]):
        if value is None or not str(value).strip():
            raise TutelageError(f"The {role} in row {row + 1} of {source} (counted from 1) is {value!r}; fill it or drop the row.")


def _no_column(role: str, columns: Mapping[str, Any], candidates: Sequence[str], source: str) -> TutelageError:
    return TutelageError(
        f"{source} has no {role} column; its columns are {', '.join(map(repr, columns))}. Looked for: {', '.join(candidates)}. "
        f"Name yours with {role}=, or rename it in the file."
    )


def default_verifier(answers: Sequence[Any]) -> str:
    """The verifier for gold answers: "numeric" where each holds a number and 95 % are no more than that (with a unit), else "exact"."""
    others = 0
    for gold in map(str, answers):
        if not _PLAIN_NUMBER.fullmatch(gold) and not _PLAIN_NUMBER.fullmatch(plain(final_answer(gold))):
            others += 1
            if others > 0.05 * len(answers) or read_number(gold) is None:
                return "exact"
    return "numeric"


def difficulty_bins(difficulty_N: NDArray[np.float32], *, bins: int = DIFFICULTY_BINS) -> NDArray[Any]:
    """Labels "difficulty 1" (easiest) to at most "difficulty <bins>", cut at the quantiles; equal difficulties share a bin."""
    edges = np.quantile(difficulty_N, np.arange(1, bins) / bins)
    _, rank_N = np.unique(np.searchsorted(edges, difficulty_N, side="left"), return_inverse=True)
    return np.asarray([f"difficulty {rank + 1}" for rank in range(bins)])[rank_N]


def split_rows(
    hash_N: NDArray[np.float64], arms: Arms, share: float, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for training and rows held out: those whose hash, uniform in [0, 1), is below `share`.

    Of an arm with none below, the lowest hash is held out too; of an arm with all below, the highest is not; equal hashes (equal prompts)
    stay together. At most `most` of an arm are held out, the lowest; the rest of the share is in neither part.
    """
    members = [arms.order_N[start : start + size] for start, size in zip(arms.start_A, arms.size_A, strict=True)]
    lowest_A = np.asarray([hash_N[rows_M].min() for rows_M in members])
    highest_A = np.asarray([hash_N[rows_M].max() for rows_M in members])
    held_N = (hash_N < share) | np.isin(hash_N, lowest_A)
    held_N &= ~np.isin(hash_N, highest_A[highest_A < share])
    chosen = []
    for name, rows_M in zip(arms.names, members, strict=True):
        held_M = rows_M[held_N[rows_M]]
        if len(held_M) in (0, len(rows_M)):
            raise TutelageError(
                f"Arm {name!r} has {len(rows_M)} tasks, too few for one to train on and one to hold out (with another prompt). Add tasks, "
                "join the arm with another, or choose another arm= or difficulty= column."
            )
        chosen.append(held_M[np.argsort(hash_N[held_M], kind="stable")][:most])
    return np.flatnonzero(~held_N), np.sort(np.concatenate(chosen)).astype(np.int64)
