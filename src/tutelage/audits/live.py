"""`audit rewards` while the run goes on: three lines in a TRL script.

    from tutelage.audits.live import LiveAudit, RewardLog            # 1

    log = RewardLog("rollouts.jsonl", solved="accuracy")             # 2
    trainer = GRPOTrainer(..., reward_funcs=log.around([accuracy, format]), callbacks=[LiveAudit(log.path)])  # 3

A trainer of this library (`with_curriculum`) writes its log itself: `lesson_callbacks=[RolloutLog(path)], callbacks=[LiveAudit(path)]`.

The log is read as it grows, each row once, and the rules run when it has grown by a quarter since they ran last, so that what a run spends
on them stays in proportion to its rollouts. The k-th look has the level `level * 6 / (pi k)^2`: over all looks of a run these sum to
`level`, the chance of any finding on a clean run, however long it is.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.audits._attempts import Gathering
from tutelage.audits.rewards import command_of, judge, rule_table
from tutelage.audits.verdict import Verdict
from tutelage.rollouts.tail import RolloutTail

if TYPE_CHECKING:
    from tutelage.audits._callback import LiveAudit as LiveAudit
    from tutelage.trainers.reward_log import RewardLog as RewardLog

FIRST_STEPS = 8
"""Steps before the first look: trends need six stretches of steps."""
GROWTH = 1.25


class Watch:
    """Follows a rollout log and judges it again and again. It needs no torch; `LiveAudit` is the callback around it.

    Args:
        path: the log (.jsonl), which need not be there yet.
        level: the chance of any finding over all looks on a clean run, at most.
        given: the shares of the rules, as of `tutelage.audits.rewards.rewards`.
    """

    def __init__(self, path: str | os.PathLike[str], *, level: float = 0.05, **given: float) -> None:
        self.path, self.level, self.given = Path(path), level, given
        self.verdict: Verdict | None = None
        self.looks = 0
        self._rules = rule_table(level=level, **given)
        self._tail, self._gathering = RolloutTail(self.path), Gathering()
        self._steps: set[int] = set()
        self._rows = self._judged = 0

    def read(self) -> int:
        """Read what is new; how many rows that was."""
        before = self._rows
        while (chunk := self._tail.read()) is not None:
            self._gathering.add(chunk)
            self._steps.update(chunk.step_B.tolist())
            self._rows += len(chunk)
        return self._rows - before

    @property
    def due(self) -> bool:
        """Whether the log has grown enough for another look."""
        return len(self._steps) >= FIRST_STEPS and self._rows >= GROWTH * self._judged

    def look(self) -> Verdict | None:
        """Judge all that was read; None where nothing is new. Evidence is looked up in the log for what was not found before."""
        if self._rows == self._judged:
            return None
        self.looks += 1
        self._judged = self._rows
        level = self.level * 6 / (math.pi * self.looks) ** 2
        log = self._gathering.attempts(self.path, self._tail.warnings)
        told = found_names(self.verdict)
        settings = {"level": level} | self.given
        verdict = judge(log, None, self._rules, level=level, command=command_of(self.path, None, settings), evidence=False)
        if found_names(verdict) - told:
            verdict = judge(log, None, self._rules, level=level, command=verdict.command)
        self.verdict = replace(verdict, false_positive_rate=self.level)
        return self.verdict


def found_names(verdict: Verdict | None) -> set[str]:
    """The names of the checks that found something."""
    return set() if verdict is None else {check.name for check in verdict.checks if check.found}


def __getattr__(name: str) -> Any:
    if name == "LiveAudit":
        from tutelage.audits._callback import LiveAudit

        return LiveAudit
    if name == "RewardLog":
        from tutelage.trainers.reward_log import RewardLog

        return RewardLog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
