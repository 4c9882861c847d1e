"""A rollout log out of reward functions, for any GRPO trainer of TRL: no curriculum and no private name is needed.

from tutelage.trainers.reward_log import RewardLog

log = RewardLog("rollouts.jsonl", solved="accuracy")
trainer = GRPOTrainer(..., reward_funcs=log.around([accuracy, tidiness]))
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, unknown
from tutelage.rollouts import RolloutWriter
from tutelage.rollouts.columns import TERM, as_text, prompt_key

Reward = Callable[..., list[float | None]]


class RewardLog:
    """Writes every attempt that TRL has scored to a rollout log (`tutelage.rollouts`), once all reward functions have spoken.

    Args:
        path: the log (.jsonl), which is appended to.
        solved: the name of the reward function that is the verifier's judgement, in [0, 1]; None where there is none.
        weights: as in `reward_weights` of TRL's settings; 1 for each by default.

    Prompts are told apart by their text. The attempts of all processes are gathered and rank 0 writes them. TRL scores the attempts of an
    evaluation with the same functions: they are logged too. Functions that are asynchronous, or models, cannot be logged and raise.
    """

    def __init__(self, path: str | os.PathLike[str], *, solved: str | None, weights: Sequence[float] | None = None) -> None:
        self.path = Path(path)
        self._writer = RolloutWriter(path)
        self._solved, self._weights = solved, weights
        self._names: list[str] = []
        self._scores: dict[str, list[float]] = {}
        self._batches = 0

    def around(self, rewards: Reward | Sequence[Reward]) -> list[Reward]:
        """The reward functions, as TRL takes them, logged."""
        given = [rewards] if callable(rewards) else list(rewards)
        for function in given:
            call = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
            if not callable(function) or hasattr(function, "parameters") or inspect.iscoroutinefunction(call):
                raise TutelageError(
                    f"RewardLog takes ordinary reward functions; got {function!r}. Train with `with_curriculum` and RolloutLog."
                )
        self._names = [getattr(function, "__name__", type(function).__name__) for function in given]
        if len(set(self._names)) < len(self._names):
            raise TutelageError(f"The reward functions are named {', '.join(self._names)}; RewardLog tells them apart by name. Rename one.")
        if self._solved is not None and self._solved not in self._names:
            raise unknown("reward function", self._solved, self._names)
        if self._weights is not None and len(self._weights) != len(given):
            raise TutelageError(f"weights has {len(self._weights)} entries for {len(given)} reward functions; expected one for each.")
        return [self._logged(function, name) for function, name in zip(given, self._names, strict=True)]

    def _logged(self, function: Reward, name: str) -> Reward:
        def scored(*args: Any, **columns: Any) -> list[float | None]:
            scores = function(*args, **columns)
            self._scores[name] = [math.nan if score is None else float(score) for score in scores]
            if len(self._scores) == len(self._names):
                self._write(columns)
                self._scores = {}
            return scores

        scored.__name__ = name
        return wraps(function)(scored) if inspect.isroutine(function) else scored

    def _write(self, columns: dict[str, Any]) -> None:
        """Log a batch of attempts: the step is that of the optimiser, the group the prompt within this batch."""
        from accelerate import PartialState

        from tutelage.trainers._sync import gathered

        state, ids = columns.get("trainer_state"), columns.get("completion_ids")
        weights = self._weights or [1.0] * len(self._names)
        rows = []
        for b, prompt in enumerate(columns["prompts"]):
            terms = {name: self._scores[name][b] for name in self._names}
            known = [weight * value for weight, value in zip(weights, terms.values(), strict=True) if not math.isnan(value)]
            text = as_text(prompt) or ""
            key = prompt_key(text)
            rows.append(
                {
                    "step": getattr(state, "global_step", 0),
                    "prompt_id": key,
                    "completion": as_text(columns["completions"][b]) or "",
                    "reward": sum(known) if known else None,
                    "solved": None if self._solved is None else terms[self._solved],
                    "prompt": text,
                    "group": f"{self._batches}/{key}",
                    **({} if ids is None else {"tokens": len(ids[b])}),
                    **{TERM + name: value for name, value in terms.items()},
                }
            )
        self._batches += 1
        rows = gathered(rows)
        if PartialState().is_main_process:
            self._writer.write(*rows)
