"""Responses of a subject that is a file of them, or a model that is asked here: every model the same prompts with the same decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits._responses import ALL, Responses, load, of_columns
from tutelage.errors import TutelageError
from tutelage.files import atomic_open
from tutelage.tasks.readers import load_columns


@dataclass(frozen=True)
class Asking:
    """How models are asked. prompts: a file with `prompt` and if known `task`. attempts: samples of each prompt. temperature: 0 is greedy.
    keep: a folder for the responses, so that another audit need not ask again."""

    prompts: str | None
    attempts: int
    temperature: float
    max_new_tokens: int
    keep: str | None = None

    def responses(self, source: str | Path, role: str, rng: np.random.Generator) -> Responses:
        """The responses in a file, or those of the model in a directory (without a file or folder of that name: on the hub)."""
        path = Path(source)
        is_model = (path / "config.json").exists() or (self.prompts is not None and not path.exists() and not path.suffix)
        if not is_model:
            return load(path)
        if self.prompts is None:
            raise TutelageError(
                f"{source} is a model: it has to be asked. Give --prompts FILE, a row per prompt with `prompt` and if known `task`."
            )
        columns = self._asked(str(source), int(rng.integers(2**62)))
        if self.keep is not None:
            self._save(Path(self.keep) / f"{role}.jsonl", columns)
        return of_columns(str(source), columns)

    def _asked(self, model: str, seed: int) -> dict[str, list[Any]]:
        from tutelage.teachers.asking import ask

        table = load_columns(str(self.prompts))
        names = list(table) if isinstance(table, Mapping) else table.column_names
        if "prompt" not in names:
            raise TutelageError(f"{self.prompts} has no column 'prompt'; it has {', '.join(map(repr, names))}. Rename the column.")
        prompts = list(table["prompt"])
        tasks = list(table["task"]) if "task" in names else [ALL] * len(prompts)
        answers_NG = ask(
            model, prompts, attempts=self.attempts, temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=seed
        )
        rows = [(n, g) for n, group in enumerate(answers_NG) for g in range(len(group))]
        return {
            "prompt": [prompts[n] for n, _ in rows],
            "completion": [answers_NG[n][g] for n, g in rows],
            "task": [tasks[n] for n, _ in rows],
            "sample": [g for _, g in rows],
            "temperature": [self.temperature] * len(rows),
            "max_new_tokens": [self.max_new_tokens] * len(rows),
        }

    @staticmethod
    def _save(path: Path, columns: dict[str, list[Any]]) -> None:
        with atomic_open(path) as file:
            for row in zip(*columns.values(), strict=True):
                file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False).encode() + b"\n")
