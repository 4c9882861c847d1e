"""Rollout logs out of what engines dump: TRL's tables of completions, verl's rollout files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.errors import Tally, TutelageError, Warned, missing_extra, unknown
from tutelage.files import atomic_dir, atomic_open
from tutelage.rollouts.columns import TERM, as_text, prompt_key
from tutelage.rollouts.reader import json_lines, log_files
from tutelage.rollouts.writer import PART, write_all, write_part

TRL_COLUMNS = ("step", "prompt", "completion", "advantage", "images")
VERL_COLUMNS = ("input", "output", "gts", "score", "step")
ENGINES = {"trl": (".parquet", ".jsonl"), "verl": (".jsonl",)}
"""What the engines dump, by the suffix of its files."""
PART_ROWS = 16_384


def from_trl(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, solved: str | None, rewards: Mapping[str, float] | None = None
) -> int:
    """A rollout log of TRL's tables of completions (`log_completions=True` of GRPO: `<output_dir>/completions/*.parquet`), or of the same
    tables as JSON Lines.

    TRL writes a table with every log, and in it the last generation batch only: with `logging_steps` above the steps per generation the log
    is a sample of the run. A batch that TRL wrote twice is taken once. Prompts are told apart by their text.

    Args:
        path: a table or the folder of them.
        out: the log to write: a .jsonl file, which is replaced once all of it is written, or a new folder of Parquet parts (.parquet).
        solved: the column of the verifier's judgement, in [0, 1]; None where there is none.
        rewards: the weight of each reward function, as in `reward_weights`; by default 1 for every column of numbers that TRL does not
            write by itself.

    Returns:
        How many rows the log has.
    """
    return _told(convert_log(path, out, engine="trl", solved=solved, rewards=rewards))


def _trl_rows(files: list[Path], solved: str | None, rewards: Mapping[str, float] | None, tally: Tally) -> Iterator[dict[str, Any]]:
    before: dict[str, list[Any]] = {}
    for file in files:
        columns = _columns(file, tally)
        _need(columns, ("step", "prompt", "completion"), file, "TRL's table of completions")
        weights = {name: 1.0 for name in columns if name not in TRL_COLUMNS and _numeric(columns[name])} if rewards is None else rewards
        for name in [*weights, *([] if solved is None else [solved])]:
            if name not in columns:
                raise unknown(f"column of {file}:", name, columns)
        content = {name: values for name, values in columns.items() if name != "step"}
        if content == before:
            continue
        before = content
        for b, step in enumerate(columns["step"]):
            terms = {name: columns[name][b] for name in weights}
            known = {name: value for name, value in terms.items() if value is not None and not math.isnan(value)}
            prompt = as_text(columns["prompt"][b]) or ""
            yield {
                "step": step,
                "prompt_id": prompt_key(prompt),
                "completion": as_text(columns["completion"][b]) or "",
                "reward": sum(weights[name] * value for name, value in known.items()) if known else None,
                "solved": None if solved is None else columns[solved][b],
                "prompt": prompt,
                **{TERM + name: value for name, value in terms.items()},
            }


def from_verl(path: str | os.PathLike[str], out: str | os.PathLike[str], *, solved: str | None = "acc") -> int:
    """A rollout log of verl's rollout dump (`trainer.rollout_data_dir`: a file `<step>.jsonl` per step).

    `score` becomes the reward, other columns of numbers its terms. Prompts are told apart by their text (`input`).

    Args:
        path: a file of the dump or its folder.
        out: the log to write: a .jsonl file, which is replaced once all of it is written, or a new folder of Parquet parts (.parquet).
        solved: the column of the verifier's judgement, in [0, 1] ("acc" is what verl's own rule-based rewards call it; "score" where the
            score itself is the judgement); None where there is none.

    Returns:
        How many rows the log has.
    """
    return _told(convert_log(path, out, engine="verl", solved=solved))


def _verl_rows(files: list[Path], solved: str | None, tally: Tally) -> Iterator[dict[str, Any]]:
    for file in files:
        for number, _, row in json_lines(file, tally):
            where = f"{file}, line {number}"
            _need(row, ("input", "output", "score", "step"), where, "verl's rollout dump")
            if solved is not None and solved not in row:
                raise unknown(f"column of {where}:", solved, row)
            terms = {k: v for k, v in row.items() if k not in VERL_COLUMNS and isinstance(v, int | float)}
            prompt = as_text(row["input"]) or ""
            yield {
                "step": row["step"],
                "prompt_id": prompt_key(prompt),
                "completion": row["output"],
                "reward": row["score"],
                "solved": None if solved is None else _judgement(row[solved]),
                "prompt": prompt,
                **{TERM + name: value for name, value in terms.items()},
            }


def _judgement(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def convert_log(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    engine: str | None = None,
    solved: str | None = None,
    rewards: Mapping[str, float] | None = None,
) -> Converted:
    """A rollout log of an engine's dump, as `from_trl` and `from_verl` make it; which engine's it is shows in its columns.

    Args:
        engine: "trl" or "verl"; by default as `detect` finds.
        solved, rewards: as there; rewards for TRL's alone.

    Raises:
        TutelageError: a dump of neither, one that lacks a column, or nothing in it; `out` is then as it was.
    """
    engine = detect(path) if engine is None else engine
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    tally = Tally()
    files = [file for file in _dumped(Path(path), engine) if file.resolve() != Path(out).resolve()]
    if engine == "trl":
        rows = _trl_rows(files, solved, rewards, tally)
    elif rewards is None:
        rows = _verl_rows(files, solved, tally)
    else:
        raise TutelageError("Weights are for TRL's tables; in a dump of verl the reward is the column `score`.")
    return Converted(_write(rows, path, Path(out)), engine, tally.warnings)


@dataclass(frozen=True)
class Converted:
    """How many rows were written, whose dump it was, and what was wrong with it."""

    rows: int
    engine: str
    warnings: tuple[Warned, ...]


def detect(path: str | os.PathLike[str]) -> str:
    """Whose dump this is, "trl" or "verl", by the columns of its first file."""
    names = first_columns(path)
    if {"input", "output", "score"} <= set(names):
        return "verl"
    if {"step", "prompt", "completion"} <= set(names) and "prompt_id" not in names:
        return "trl"
    cause = "It is a rollout log already." if "prompt_id" in names else "Say whose it is with engine= (on the command line --from)."
    raise TutelageError(
        f"{path} is a dump of neither TRL (columns step, prompt, completion, one per reward) nor verl (input, output, score, step); it has "
        f"{', '.join(names) or 'no columns'}. {cause}"
    )


def first_columns(path: str | os.PathLike[str]) -> list[str]:
    """The columns of a dump's first file, or of its first line."""
    file = _dumped(Path(path), "trl")[0]
    if file.suffix.lower() == ".parquet":
        return list(_parquet(file))
    return next((list(row) for _, _, row in json_lines(file, Tally())), [])


def _dumped(path: Path, engine: str) -> list[Path]:
    """The files of a dump; of a folder, those with the first suffix of the engine's that it holds."""
    if path.is_dir():
        for suffix in ENGINES[engine]:
            if any(file.suffix.lower() == suffix for file in path.iterdir()):
                return log_files(path, (suffix,))
    return log_files(path, ENGINES[engine])


def _told(converted: Converted) -> int:
    """The number of rows; what was wrong becomes Python's warnings."""
    for warned in converted.warnings:
        warnings.warn(str(warned), stacklevel=3)
    return converted.rows


def _write(rows: Iterator[dict[str, Any]], path: Any, out: Path) -> int:
    if out.suffix.lower() == ".parquet":
        with atomic_dir(out) as folder:
            count = 0
            for number, part in enumerate(iter(lambda: list(islice(rows, PART_ROWS)), [])):
                write_part(folder / PART.format(number), part)
                count += len(part)
            _some(count, path)
        return count
    if out.suffix.lower() != ".jsonl":
        raise TutelageError(f"{out}: a rollout log is written as JSON Lines or Parquet; give it the suffix .jsonl or .parquet.")
    with atomic_open(out) as file:
        count = write_all(rows, file)
        _some(count, path)
    return count


def _some(count: int, path: Any) -> None:
    if not count:
        raise TutelageError(f"{path} holds no rollouts; nothing was written.")


def _columns(file: Path, tally: Tally) -> dict[str, list[Any]]:
    """The columns of a table of completions."""
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    rows = [row for _, _, row in json_lines(file, tally)]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _parquet(file: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "lm") from None
    try:
        with file.open("rb") as handle:
            return pyarrow.parquet.read_table(handle).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise TutelageError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}. It may be cut off.") from None


def _need(columns: Mapping[str, Any], names: tuple[str, ...], where: Any, what: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise TutelageError(f"{where} is not {what}: it lacks {', '.join(missing)}; it has {', '.join(columns)}.")


def _numeric(values: list[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
