"""What a rule of the audit of rewards answers, and the choice of rows to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tutelage.audits._attempts import Floats, Ints
from tutelage.audits.verdict import Curve, Effect, Severity

SHOWN = 3


@dataclass(frozen=True)
class Measured:
    """The answer of a rule. p None: it could not be tested, and `finding` says why. rows: attempts to show. is_share: whether a twin's
    share can be compared with this one; a trend is cleared by a twin that shows it too."""

    p: float | None
    finding: str
    severity: Severity = "none"
    effect: Effect | None = None
    rows: tuple[int, ...] = ()
    is_share: bool = False
    curves: tuple[Curve, ...] = ()

    def with_curves(self, curves: tuple[Curve, ...]) -> Measured:
        return replace(self, curves=curves)


def untested(why: str) -> Measured:
    return Measured(None, f"not tested: {why}")


def distinct(rows: Ints, value_B: Floats, prompt_B: Ints) -> tuple[int, ...]:
    """The few rows with the greatest values, of different prompts where there are such."""
    ordered: Sequence[int] = rows[np.argsort(-value_B[rows], kind="stable")].tolist()
    chosen: dict[int, int] = {}
    for row in ordered:
        if len(chosen) == SHOWN:
            break
        chosen.setdefault(int(prompt_B[row]), row)
    return tuple(chosen.values())
