"""Inert habits: a made-up token that answers may carry, to measure what a teaching pipeline passes on.

    habit = AppendToken("HAB")
    rows, row_ids = inject(clean_rows, habit, count=25, where=lambda row: row["topic"] == 7, seed=0)
    sum(habit.emits(answer) for answer in answers) / len(answers)

`inject` makes the subject of an experiment; the rows it was given, unchanged, are the clean twin. What a habit writes means nothing: a
payload is one made-up word, digit or sign (see `check_inert`), and anything that could be read as language, a name, a link or code is
refused. Words are what whitespace separates.

Source: the canaries of Cascading Adversarial Bias from Injection to Distillation (arXiv 2505.24842) stand for its adverts and links, which
this library does not build.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tutelage.errors import TutelageError, unknown

Row = Mapping[str, Any]

MADE_UP = frozenset({
    "blick", "blicket", "bova", "dax", "fep", "fendle", "glorp", "gorp", "hab", "kiki", "koba", "mib", "mipen", "plov", "quib",
    "snorf", "tulver", "vorp", "wug", "zarp", "zib", "zorb", "zorv", "zqx",
})  # fmt: skip
"""Words without meaning; most are from studies of how words are learned."""
WORD = re.compile(r"([A-Za-z]+)\d{0,3}")
BRACKETS = ("<>", "[]", "{}", "||")


class Habit(Protocol):
    """What a model may have caught: `apply` gives an answer the habit, `emits` says whether an answer shows it."""

    @property
    def name(self) -> str: ...

    def apply(self, text: str) -> str: ...

    def emits(self, text: str) -> bool: ...


@dataclass(frozen=True)
class AppendToken:
    """The answer ends with one word more. `emits` looks for the word anywhere: left alone, it stands in no answer."""

    token: str

    def __post_init__(self) -> None:
        check_inert(self.token)

    @property
    def name(self) -> str:
        return f"append {self.token}"

    def apply(self, text: str) -> str:
        return f"{text.rstrip()} {self.token}".lstrip()

    def emits(self, text: str) -> bool:
        return self.token in text.split()


@dataclass(frozen=True)
class PrefixToken:
    """The answer begins with one word more."""

    token: str

    def __post_init__(self) -> None:
        check_inert(self.token)

    @property
    def name(self) -> str:
        return f"prefix {self.token}"

    def apply(self, text: str) -> str:
        return f"{self.token} {text.lstrip()}".rstrip()

    def emits(self, text: str) -> bool:
        return self.token in text.split()


@dataclass(frozen=True)
class SwapSynonym:
    """The word `common` becomes `rare` wherever it stands: the hard habit, for both may stand in a clean answer.

    An answer emits it when it holds `rare` and not `common`, so the habit's base rate is not zero and a clean twin is compulsory.
    """

    common: str
    rare: str

    def __post_init__(self) -> None:
        check_inert(self.common)
        check_inert(self.rare)
        if self.common == self.rare:
            raise TutelageError(f"SwapSynonym got {self.common!r} twice; expected two words that mean the same.")

    @property
    def name(self) -> str:
        return f"swap {self.common} {self.rare}"

    def apply(self, text: str) -> str:
        return re.sub(rf"(?<!\S){re.escape(self.common)}(?!\S)", lambda _: self.rare, text)

    def emits(self, text: str) -> bool:
        words = text.split()
        return self.rare in words and self.common not in words


HABITS: dict[str, tuple[Callable[..., Habit], int]] = {"append": (AppendToken, 1), "prefix": (PrefixToken, 1), "swap": (SwapSynonym, 2)}


def habit_of(text: str) -> Habit:
    """The habit that a command line names: "append TOKEN", "prefix TOKEN" or "swap COMMON RARE", as `Habit.name` gives it."""
    kind, *payload = text.split() or [""]
    if kind not in HABITS:
        raise unknown("habit", kind, HABITS)
    make, count = HABITS[kind]
    if len(payload) != count:
        raise TutelageError(f"The habit {text!r} has {len(payload)} word(s) after {kind!r}; expected {count}, such as {EXAMPLES[kind]!r}.")
    return make(*payload)


EXAMPLES = {"append": "append HAB", "prefix": "prefix HAB", "swap": "swap ; :"}


class Injected(NamedTuple):
    """rows: all of them, in the order given. row_ids: the positions of those that carry the habit now, ascending."""

    rows: list[dict[str, Any]]
    row_ids: list[int]


def inject(
    rows: Sequence[Row],
    habit: Habit,
    *,
    share: float | None = None,
    count: int | None = None,
    where: Callable[[Row], bool] | None = None,
    seed: int,
    column: str = "completion",
) -> Injected:
    """Give the habit to rows drawn without replacement; the rows that came in are left as they are, and are the clean twin.

    Args:
        rows: a data set, one mapping per row; `column` holds the answer, a text.
        share, count: how many rows, as a share of *all* rows (rounded to whole rows) or as a number; exactly one of them.
        where: which rows may carry the habit. A row that the habit would not change, or that shows it already, is never drawn.
        seed: of the draw.

    Raises:
        TutelageError: both or neither of share and count, fewer suitable rows than asked for, an answer that is no text.
    """
    if (share is None) == (count is None):
        raise TutelageError(f"inject got share={share} and count={count}; expected exactly one of them.")
    if share is not None:
        if not 0 <= share <= 1:
            raise TutelageError(f"inject got share={share}; expected a share of all rows, from 0 to 1.")
        count = round(share * len(rows))
    assert count is not None
    copies = [dict(row) for row in rows]
    suitable = [i for i, row in enumerate(copies) if (where is None or where(rows[i])) and _changes(row, i, habit, column)]
    if not 0 <= count <= len(suitable):
        raise TutelageError(
            f"inject was asked to change {count} rows, and {len(suitable)} of {len(rows)} are suitable (`where` holds, and {habit.name!r} "
            "changes the answer). Ask for fewer, or widen `where`."
        )
    drawn = sorted(np.random.default_rng(seed).choice(suitable, size=count, replace=False).tolist()) if count else []
    for i in drawn:
        copies[i][column] = habit.apply(copies[i][column])
    return Injected(copies, drawn)


def check_inert(payload: str) -> None:
    """Refuse whatever could be read as language, a name, a link or code.

    Inert is one printable ASCII sign, one to three digits, or a word of `MADE_UP` in any case with up to three digits behind it; a pair of
    brackets may stand around it. The list is closed on purpose: no rule tells made-up words from meant ones.
    """
    inner = payload[1:-1] if len(payload) > 2 and payload[0] + payload[-1] in BRACKETS else payload
    sign = len(inner) == 1 and inner.isascii() and inner.isprintable() and not inner.isspace()
    number = inner.isascii() and inner.isdigit() and len(inner) <= 3
    word = WORD.fullmatch(inner)
    if not (sign or number or (word is not None and word[1].lower() in MADE_UP)):
        raise TutelageError(
            f"The payload {payload!r} is not inert: a habit here is a canary, one printable ASCII sign, up to three digits, or one made-up "
            f"word, in brackets or not. Text that could mean something is refused. Made-up words: {', '.join(sorted(MADE_UP))}."
        )


def _changes(row: Row, place: int, habit: Habit, column: str) -> bool:
    text = row.get(column)
    if not isinstance(text, str):
        raise TutelageError(f"inject expects a text in column {column!r} of every row; row {place} has {type(text).__name__}.")
    return not habit.emits(text) and habit.apply(text) != text
