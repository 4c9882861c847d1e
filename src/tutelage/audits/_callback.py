"""The live audit as a callback of transformers: loaded when somebody trains."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tutelage.audits.live import Watch, found_names
from tutelage.audits.page import write_page
from tutelage.audits.verdict import SEVERITIES, Severity, Verdict
from tutelage.errors import TutelageError, unknown
from tutelage.trainers._sync import decide

logger = logging.getLogger("tutelage.audits.live")


class LiveAudit(TrainerCallback):
    """Runs the rules of `audit rewards` on the rollout log of a run as it grows; see `tutelage.audits.live`.

    A new finding is a warning of the logger `tutelage.audits.live` and an entry of the trainer's log history; every log of the trainer
    carries `audit/findings` and `audit/severity` (0 none to 3 high). Rank 0 reads and judges. A log that cannot be read ends the audit with
    a warning, never the training.

    Args:
        path: the log that the run writes (.jsonl).
        stop_at: the severity ("low", "medium", "high") at which training stops; None never stops it.
        page: an HTML file to write with every new finding and at the end.
        level, shares: as of `tutelage.audits.rewards.rewards`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        stop_at: Severity | None = None,
        page: str | os.PathLike[str] | None = None,
        level: float = 0.05,
        **shares: float,
    ) -> None:
        if stop_at is not None and stop_at not in SEVERITIES[1:]:
            raise unknown("severity", str(stop_at), SEVERITIES[1:])
        self.watch = Watch(path, level=level, **shares)
        self.stop_at = stop_at
        self.page = None if page is None else Path(page)
        self._broken = False

    @property
    def verdict(self) -> Verdict | None:
        """What the latest look said; None before the first."""
        return self.watch.verdict

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not self._broken:
            self._follow(state, last=False)
        if self.stop_at is not None and decide(self._grave):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not self._broken:
            self._follow(state, last=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is not None and self.verdict is not None:
            said = self._numbers(self.verdict)
            logs.update(said)
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1].update(said)

    def _follow(self, state: Any, *, last: bool) -> None:
        try:
            self.watch.read()
            if self.watch.due or last:
                self._judge(state)
            if last and self.page is not None and self.verdict is not None:
                write_page(self.verdict, self.page)
        except TutelageError as error:
            self._broken = True
            logger.warning("The live audit ends here, the training goes on: %s", error)

    def _judge(self, state: Any) -> None:
        told = found_names(self.verdict)
        verdict = self.watch.look()
        if verdict is None:
            return
        new = [check for check in verdict.checks if check.found and check.name not in told]
        for check in new:
            logger.warning("audit rewards at step %d: %s (%s): %s", state.global_step, check.name, check.severity, check.finding)
            state.log_history.append({"step": state.global_step, "audit/finding": check.name, "audit/said": check.finding})
        if new and self.page is not None:
            write_page(verdict, self.page)

    def _grave(self) -> bool:
        verdict, limit = self.verdict, self.stop_at
        return verdict is not None and limit is not None and SEVERITIES.index(verdict.severity) >= SEVERITIES.index(limit)

    @staticmethod
    def _numbers(verdict: Verdict) -> dict[str, float]:
        return {"audit/findings": len(found_names(verdict)), "audit/severity": SEVERITIES.index(verdict.severity)}
