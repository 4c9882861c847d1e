"""From final scores to the table: means with intervals, and every row judged against random tasks in every profile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.study import words
from tutelage.study.acl.profiles import LEVELS
from tutelage.study.stats import difference, judge, t_interval

Float = NDArray[np.float64]


def table(final: Mapping[tuple[str, str], Float], facts: Mapping[str, dict[str, Any]], baseline: str) -> dict[str, Any]:
    """Rows of the table, best mean first, and the family of comparisons.

    final: for each row and profile the final shares of mastered tasks, seed by seed, shape (S,). facts: what each row is. Every row but the
    baseline is compared with it in every profile by the exact paired sign-flip test, with Holm's correction over all of them. The mean over
    profiles is shown with its interval and not judged.
    """
    profiles = list(dict.fromkeys(profile for _, profile in final))
    asked = {(row, p): difference(final[row, p], final[baseline, p]) for row in facts if row != baseline for p in profiles}
    judged = judge({_key(*at): values for at, values in asked.items()}, baseline=baseline, rng=np.random.default_rng(0)) if asked else {}
    rows = []
    for row, what in facts.items():
        by_profile = {}
        for profile in profiles:
            found: dict[str, Any] = {**interval(final[row, profile]), "verdict": "baseline"}
            if row != baseline:
                told = asdict(judged[_key(row, profile)])
                found |= {"difference": told["mean"], "difference_interval": [told["low"], told["high"]]}
                found |= {key: told[key] for key in ("p", "p_holm", "verdict", "sentence")}
            by_profile[profile] = found
        overall_S = np.mean([final[row, profile] for profile in profiles], axis=0)
        rows.append({"name": row, **what, "overall": interval(overall_S), "profiles": by_profile})
    rows.sort(key=lambda row: -row["overall"]["mean"])
    return {"rows": rows, "comparisons": len(asked)}


def interval(value_S: Float) -> dict[str, Any]:
    """Mean over seeds and its 95 % t interval (NaN at one seed), not beyond [0, 1]."""
    mean, low, high = t_interval(value_S)
    return {"mean": mean, "interval": [_within(low), _within(high)], "seeds": len(value_S)}


def _within(bound: float) -> float:
    return bound if math.isnan(bound) else min(max(bound, 0.0), 1.0)


def _key(row: str, profile: str) -> str:
    return f"{row} : {profile}"


def headline(result: dict[str, Any]) -> str:
    """What the benchmark found, in one or two sentences; no winner that no verdict names."""
    seeds, profiles = len(result["seeds"]), len(result["profiles"])
    opening = f"Over {seeds} seed{'s' * (seeds > 1)}"
    rows = [row for row in result["rows"] if row["name"] != result["baseline"]]
    verdicts = [found["verdict"] for row in rows for found in row["profiles"].values()]
    if verdicts and set(verdicts) == {"too few seeds"}:
        return f"{opening}, nothing can be said yet: too few seeds for a verdict."
    better = [label(row) for row in rows if _times(row, "holds") == profiles]
    some = sum(0 < _times(row, "holds") < profiles for row in rows)
    worse = sum(_times(row, "reversed") > 0 for row in rows)
    if not better and not some and not worse:
        return f"{opening}, no difference from random tasks is shown for any teacher in any profile."
    parts = [
        f"more is mastered than with random tasks in every profile by {words.listing(better)}" if better else "",
        f"{some} {'further ' if better else ''}teacher{'s' * (some > 1)} beat{'s' * (some == 1)} random tasks in some profiles"
        if some
        else "",
        f"{worse} teach{'es' if worse == 1 else ''} worse in some" if worse else "",
    ]
    return f"{opening}, {'; '.join(filter(None, parts))}."


def _times(row: dict[str, Any], verdict: str) -> int:
    return sum(found["verdict"] == verdict for found in row["profiles"].values())


def label(row: dict[str, Any]) -> str:
    """A row in words: the teacher, and what it is told where its other rows are told something else."""
    return f"{row['teacher']} ({knows(row)})" if row["told"] else str(row["teacher"])


def knows(row: dict[str, Any]) -> str:
    """The expert knowledge of a row: "any" level, or the levels."""
    return "any" if len(row["levels"]) == len(LEVELS) else ", ".join(row["levels"])
