"""Rollout logs out of what engines dump: TRL's tables of completions, verl's rollout files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.files import atomic_open
from tutelage.rollouts.columns import TERM, as_text, prompt_key
from tutelage.rollouts.reader import log_files
from tutelage.rollouts.writer import write_all

TRL_COLUMNS = ("step", "prompt", "completion", "advantage", "images")
VERL_COLUMNS = ("input", "output", "gts", "score", "step")


def from_trl(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, solved: str | None, rewards: Mapping[str, float] | None = None
) -> int:
    """A rollout log of TRL's tables of completions (`log_completions=True` of GRPO: `<output_dir>/completions/*.parquet`).

    TRL writes a table with every log, and in it the last generation batch only: with `logging_steps` above the steps per generation the log
    is a sample of the run. A batch that TRL wrote twice is taken once. Prompts are told apart by their text.

    Args:
        path: a table or the folder of them.
        out: the log to write (.jsonl); what stood there is replaced once all of it is written.
        solved: the column of the verifier's judgement, in [0, 1]; None where there is none.
        rewards: the weight of each reward function, as in `reward_weights`; by default 1 for every column of numbers that TRL does not
            write by itself.

    Returns:
        How many rows the log has.
    """
    return _write(_trl_rows(log_files(Path(path), (".parquet",)), solved, rewards), path, out)


def _trl_rows(files: list[Path], solved: str | None, rewards: Mapping[str, float] | None) -> Iterator[dict[str, Any]]:
    before: dict[str, list[Any]] = {}
    for file in files:
        columns = _parquet(file)
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
        out: the log to write (.jsonl); what stood there is replaced once all of it is written.
        solved: the column of the verifier's judgement, in [0, 1] ("acc" is what verl's own rule-based rewards call it; "score" where the
            score itself is the judgement); None where there is none.

    Returns:
        How many rows the log has.
    """
    return _write(_verl_rows(log_files(Path(path), (".jsonl",)), solved), path, out)


def _verl_rows(files: list[Path], solved: str | None) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TutelageError(f"{where} is not valid JSON: {error.msg}. Drop the line if the run was killed there.") from None
                _need(row, ("input", "output", "score", "step"), where, "verl's rollout dump")
                if solved is not None and solved not in row:
                    raise unknown(f"column of {where}:", solved, row)
                terms = {k: v for k, v in row.items() if k not in VERL_COLUMNS and isinstance(v, int | float)}
                yield {
                    "step": row["step"],
                    "prompt_id": prompt_key(row["input"]),
                    "completion": row["output"],
                    "reward": row["score"],
                    "solved": None if solved is None else _judgement(row[solved]),
                    "prompt": row["input"],
                    **{TERM + name: value for name, value in terms.items()},
                }


def _judgement(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _write(rows: Iterator[dict[str, Any]], path: Any, out: Any) -> int:
    if Path(out).suffix.lower() != ".jsonl":
        raise TutelageError(f"{out}: a rollout log is written as JSON Lines; give it the suffix .jsonl.")
    with atomic_open(out) as file:
        count = write_all(rows, file)
        if not count:
            raise TutelageError(f"{path} holds no rollouts; nothing was written.")
    return count


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
