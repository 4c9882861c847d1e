"""The one exception of the library, and the words that name a likely intention.

Every error that a user can cause is a `TutelageError`: what came, what was expected, the likely cause and the fix, in one paragraph. The
command line prints it without a traceback and exits with status 2. What is wrong with data but not fatal is counted, never passed over: a
`Tally` holds what was met, how often and where first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class TutelageError(ValueError):
    """Bad input, bad configuration or a broken promise between parts; the message says how to mend it."""


class MissingExtraError(TutelageError):
    """An optional package is not installed; the message says which extra brings it."""


def unknown(what: str, name: str, options: Iterable[str]) -> TutelageError:
    """The error for a name that is not among `options`: it names the nearest one and lists the others."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return TutelageError(f"Unknown {what} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an optional dependency that is not installed."""
    return MissingExtraError(
        f"This needs the package {package!r}, which is not installed. Install it with: pip install 'tutelage[{extra}]'"
    )


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something about data that a reader must know: what, how often, and where first (a file with its line or row, counted from 1)."""

    what: str
    count: int
    first: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.count:,}{f' (first: {self.first})' if self.first else ''}"


class Tally:
    """Counts warnings by what they say, in the order in which they first came."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, first: str = "", count: int = 1) -> None:
        before, where = self._found.get(what, (0, first))
        self._found[what] = (before + count, where)

    @property
    def warnings(self) -> tuple[Warned, ...]:
        return tuple(Warned(what=what, count=count, first=first) for what, (count, first) in self._found.items())
