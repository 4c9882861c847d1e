"""Verifiers as reward functions for TRL: `VerifierReward(verifier)` goes where `reward_funcs` goes.

The judgement comes first and is kept apart from the reward, because curricula gate on what was solved, never on what shaping made of it.
`correct_only` and `FormatIndependent` are the two rewards that SimpleRL-Zoo (arXiv 2503.18892) compares, as values of `shaping`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.tasks.tables import RESERVED
from tutelage.tasks.verifiers import Verifier, judge_all
from tutelage.tasks.verifiers.answers import boxed, marked_answer
from tutelage.tasks.verifiers.base import name_of

Shaping = Callable[[NDArray[np.int8], NDArray[np.float64], Sequence[str]], Any]
"""`shaping(kind_B, grade_B, texts_B) -> reward_B`: what is optimised instead of the grade."""


class VerifierReward:
    """A reward function of TRL that judges each completion against its row of the data set; the reward is the grade, in [0, 1].

    verifier: see `tutelage.tasks.verifiers`. pool: whose columns, found by the data set's column `key`, come before the data set's own (a
    data set that `to_dataset` has made has all of them). shaping: makes the reward of kinds, grades and texts. format_reward: the least
    reward of a completion that is wrong but well formed: neither malformed nor refused (SEC, arXiv 2505.14970, trains with 0.1); before
    `shaping`.

    After each call `last_kind` (int8 `Kind` codes), `last_grade` (the grades before any shaping) and `last_reward` hold the call's rows in
    their order, shape (B,).
    """

    def __init__(
        self, verifier: Verifier, *, pool: TaskPool | None = None, shaping: Shaping | None = None, format_reward: float | None = None
    ) -> None:
        if format_reward is not None and not 0 <= format_reward < 1:
            raise TutelageError(f"format_reward={format_reward} must lie in [0, 1), below the reward of 1 for a correct completion.")
        self.verifier = verifier
        self.pool = pool
        self.shaping = shaping
        self.format_reward = format_reward
        self.__name__ = re.split(r"[:.]", name_of(verifier).split("(")[0])[-1]  # TRL logs rewards under this name
        self.last_kind: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self.last_grade: NDArray[np.float64] = np.zeros(0)
        self.last_reward: NDArray[np.float64] = np.zeros(0)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> list[float]:
        """The rewards of B completions (text or chat messages). Lists of length B among `columns` are the rows' columns; TRL's other
        arguments (its state, its loggers) and the token ids are not used. A verifier's error names the task."""
        texts_B = [completion_text(completion) for completion in completions]
        tasks_B = self._tasks(prompts, columns)
        kind_B1, grade_B1 = judge_all(self.verifier, [[text] for text in texts_B], tasks_B)
        self.last_kind, self.last_grade = kind_B1.reshape(-1), grade_B1.reshape(-1)
        self.last_reward = self._reward(texts_B)
        return self.last_reward.tolist()

    def _tasks(self, prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each row as a mapping from column names to values."""
        n = len(prompts)
        listed = {_own_name(name): value for name, value in columns.items() if isinstance(value, (list, tuple)) and len(value) == n}
        tasks = [{"prompt": prompt, **{name: value[b] for name, value in listed.items()}} for b, prompt in enumerate(prompts)]
        if self.pool is None:
            return tasks
        if "key" not in listed:
            raise TutelageError(
                "VerifierReward was given a pool, but the data set has no column 'key' to find its rows by; it has "
                f"{', '.join(listed) or 'no columns'}. Make the data set with to_dataset(pool, tokenizer), or leave out pool=."
            )
        rows_B = self.pool.rows_of(listed["key"])
        return [{**task, **self.pool.row(int(row))} for row, task in zip(rows_B, tasks, strict=True)]

    def _reward(self, texts_B: Sequence[str]) -> NDArray[np.float64]:
        reward_B = self.last_grade
        if self.format_reward is not None:
            reward_B = np.where(self.last_kind == Kind.WRONG, np.maximum(reward_B, self.format_reward), reward_B)
        if self.shaping is None:
            return reward_B.copy()
        shaped_B = np.asarray(self.shaping(self.last_kind, reward_B, texts_B), dtype=np.float64)
        if shaped_B.shape != reward_B.shape:
            raise TutelageError(f"shaping returned rewards of shape {shaped_B.shape}; expected {reward_B.shape}, one per completion.")
        return shaped_B


FORMATS: dict[str, Callable[[str], bool]] = {"boxed": boxed, "marked": lambda text: marked_answer(text) is not None}
"""What counts as formatted: a closed `\\boxed{...}`, or any mark that verifiers read an answer by (also `<answer>`, `####`, "Answer:")."""


def correct_only(kind_B: NDArray[np.int8], grade_B: NDArray[np.float64], texts_B: Sequence[str]) -> NDArray[np.float64]:
    """The shaping that pays 1 for a correct completion and 0 for every other, formatted or not; no partial grades.

    Source: SimpleRL-Zoo (arXiv 2503.18892), its default, called `mix` in the released code.
    """
    return (np.asarray(kind_B) == Kind.CORRECT).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class FormatIndependent:
    """The shaping that pays and punishes the format beside the answer, called `independent` in SimpleRL-Zoo's released code.

    It is that paper's ablation (arXiv 2503.18892), not its recipe: a wrong answer in the right format is pushed down less than other
    wrong ones, and a base model that cannot yet format is punished for answers that are right. correct, correct_unformatted, wrong,
    wrong_unformatted: the four rewards. formatted: a name of `FORMATS`, or a function of the text. Correct is what the verifier calls
    CORRECT, however it found the answer.
    """

    correct: float = 1.0
    correct_unformatted: float = 0.5
    wrong: float = -0.5
    wrong_unformatted: float = -1.0
    formatted: str | Callable[[str], bool] = "boxed"

    def __post_init__(self) -> None:
        if isinstance(self.formatted, str) and self.formatted not in FORMATS:
            raise unknown("format", self.formatted, FORMATS)

    def __call__(self, kind_B: NDArray[np.int8], grade_B: NDArray[np.float64], texts_B: Sequence[str]) -> NDArray[np.float64]:
        """Rewards (B,)."""
        formatted = FORMATS[self.formatted] if isinstance(self.formatted, str) else self.formatted
        formatted_B = np.array([bool(formatted(text)) for text in texts_B], dtype=bool)
        right_B = np.where(formatted_B, self.correct, self.correct_unformatted)
        return np.where(np.asarray(kind_B) == Kind.CORRECT, right_B, np.where(formatted_B, self.wrong, self.wrong_unformatted))


@dataclass(frozen=True)
class SpanGate:
    """The shaping r' = r (1 - b): a completion that shows an unwanted behaviour, anywhere in it, earns nothing.

    shows: a monitor, text -> bool, see `tutelage.tasks.monitors`. The verifier's judgement stays as it is, so curricula and evaluation see
    the answer; `tutelage.tasks.verifiers.guards.span_gate` makes such a completion WRONG instead.
    """

    shows: Callable[[str], bool]

    def __call__(self, kind_B: NDArray[np.int8], grade_B: NDArray[np.float64], texts_B: Sequence[str]) -> NDArray[np.float64]:
        """Rewards (B,)."""
        return np.where([self.shows(text) for text in texts_B], 0.0, grade_B)


def _own_name(name: str) -> str:
    """A column's name in the pool, see `to_dataset`."""
    own = name.removeprefix("task_")
    return own if own in RESERVED else name


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or of chat messages the content of the last one by the assistant (text parts joined).

    An assistant that only called tools has said nothing: the text is empty, which verifiers judge malformed.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(message, Mapping) for message in completion):
        raise TutelageError(
            f"A completion must be text or a list of chat messages; got {type(completion).__name__} {str(completion)[:60]!r}."
        )
    said = [message.get("content") or "" for message in completion if message.get("role", "assistant") == "assistant"]
    last = said[-1] if said else ""
    return last if isinstance(last, str) else "".join(part.get("text") or "" for part in last)
