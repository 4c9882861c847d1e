"""Which judgement a curriculum sees as `solved`: never the shaped reward unless that is all there is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.errors import TutelageError, unknown


class Judge:
    """Finds the verifier's judgement of each attempt.

    solved: None for the first reward function where its values lie in [0, 1] (a reward model is no verifier); the name of a reward
    function; or a callable with the signature of a reward function. A verifier may hold, after each call, `last_kind` and `last_grade`,
    one entry per attempt of that call; they are used where present.
    """

    def __init__(self, solved: str | Callable[..., Any] | None, functions: Sequence[Any], names: Sequence[str]) -> None:
        self.given = solved
        self.column: int | None = None
        if solved is None:
            self.function = functions[0]
            self.column = 0 if callable(functions[0]) and not hasattr(functions[0], "parameters") else None
        elif isinstance(solved, str):
            if solved not in names:
                raise unknown("reward function", solved, names)
            self.column = list(names).index(solved)
            self.function = functions[self.column]
        elif callable(solved):
            self.function = solved
        else:
            raise TutelageError(
                f"solved={solved!r} is a {type(solved).__name__}; expected None, the name of a reward function, or a callable with the "
                "signature of a reward function."
            )
        call = self.function if inspect.isroutine(self.function) else getattr(self.function, "__call__", None)  # noqa: B004
        if callable(solved) and inspect.iscoroutinefunction(call):
            raise TutelageError(
                "solved= must be an ordinary function; an async judge can be a reward function (with weight 0) given by name."
            )

    def local(self, inputs: Sequence[dict[str, Any]], state: Any, **attempts: Sequence[Any]) -> tuple[list[float] | None, list[int] | None]:
        """Judgement and kind of this process's attempts, in order; None where the rewards themselves are all there is.

        attempts: prompts, completions and completion_ids, as a reward function gets them.
        """
        count = len(attempts["prompts"])
        values: Sequence[Any] | None = None
        if callable(self.given):
            columns = {k: [row[k] for row in inputs] for k in inputs[0] if k not in ("prompt", "completion", "completion_ids")}
            values = self.given(**attempts, **columns, trainer_state=state)
        grade, kind = (getattr(self.function, name, None) for name in ("last_grade", "last_kind"))
        values = values if grade is None else grade
        for what, column in (("judgements", values), ("kinds", kind)):
            if column is not None and len(column) != count:
                raise TutelageError(f"The judge gave {len(column)} {what} for {count} attempts; expected one for each.")
        floats = None if values is None else [math.nan if v is None else float(v) for v in values]
        return floats, None if kind is None else [int(k) for k in kind]
