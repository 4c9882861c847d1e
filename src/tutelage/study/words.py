"""Numbers and verdicts in words: what the terminal table and the report share, so that both say the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tutelage.study.schema import League, Number, Row

MISSING = "–"
MINUS = "−"


def score(value: Number, digits: int = 3) -> str:
    """An accuracy or another score: 0.523."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: Number, digits: int = 3) -> str:
    """A difference with its sign, zero without one: +0.031, −0.012, 0.000."""
    if value is None:
        return MISSING
    text = f"{value:+z.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def interval(bounds: Sequence[Number] | None, digits: int = 3) -> str:
    """An interval: [0.012, 0.050], or nothing where there is none."""
    if bounds is None or None in bounds:
        return ""
    return "[" + ", ".join(f"{bound:z.{digits}f}".replace("-", MINUS) for bound in bounds) + "]"


def half_width(bounds: Sequence[Number] | None, digits: int = 3) -> str:
    """Half the width of a t interval, which is symmetric: ±0.019, or nothing where there is none."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return ""
    return f"±{(bounds[1] - bounds[0]) / 2:.{digits}f}"


def ratio(value: Number) -> str:
    """A multiple of the baseline's cost: 0.71×."""
    return MISSING if value is None else f"{value:.2f}×"


def p_value(value: Number) -> str:
    """A p value to two significant digits."""
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def count(value: Number) -> str:
    """A count in full up to a million, then with a unit: 12,288 and 1.26 M."""
    if value is None:
        return MISSING
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: Number) -> str:
    """A time at a human scale: 0.42 s, 95 s, 12.5 min, 3.2 h; 0.4 ms."""
    if seconds is None:
        return MISSING
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    if 0 < seconds < 0.01:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.2g} s"


def listing(names: Sequence[str]) -> str:
    """Names as prose: "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seeds_in_words(league: League) -> str:
    """ "1 seed" or "6 seeds"."""
    seeds = len(league["seeds"])
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def headline(league: League) -> str:
    """What the comparison found about its methods, in one or two plain sentences; it never names a winner that no verdict names."""
    by_verdict: dict[str, list[Row]] = {}
    for row in league["rows"]:
        if row["kind"] == "method":
            by_verdict.setdefault(row["verdict"], []).append(row)
    opening, baseline = f"Over {seeds_in_words(league)}", league["baseline"]

    def clause(verdict: str, how: str) -> str:
        rows = by_verdict.get(verdict, [])
        return f"{listing([row['label'] for row in rows])} {'teaches' if len(rows) == 1 else 'teach'} {how}" if rows else ""

    better, worse, silent = clause("holds", "better"), clause("reversed", "worse"), by_verdict.get("not shown", [])
    if better or worse:
        rest = f" For {listing([row['label'] for row in silent])}, no difference is shown." if silent else ""
        return f"{opening}, {' and '.join(filter(None, (better, worse)))} than {baseline}.{rest}"
    if silent:
        return f"{opening}, no difference from {baseline} is shown for {listing([row['label'] for row in silent])}."
    if by_verdict.get("too few seeds"):
        return f"{opening}, nothing can be said yet: too few seeds for a verdict."
    best = max((row["final"] for row in league["rows"] if row["final"] is not None), default=None)
    return f"{opening}, {league['metric']} reached {score(best)}; there is nothing to compare."


def judged(rows: Sequence[Row]) -> list[Row]:
    """The rows that were compared with the baseline, and so have a sentence."""
    return [row for row in rows if row["sentence"] and row["kind"] != "baseline"]


def finding(row: Row) -> str:
    """A judged row's sentence, to be put after its name: "teaches better than …", or with a colon ": too few seeds …"."""
    return f"{' ' if row['verdict'] in ('holds', 'reversed') else ': '}{typeset(row['sentence'])}"


def typeset(sentence: str) -> str:
    """A sentence with real minus signs before its numbers."""
    return re.sub(r"(?<![\w.)])-(?=\.?\d)", MINUS, sentence)
