"""The verifier of reasoning-gym tasks: that library's own scorers, guarded where they would run or believe anything.

What to know of the scores (reasoning-gym 0.1.25, read from its source and measured):
- Most families pay partial grades. Many pay a little for being well-formed or just for trying: 0.01 (advanced_geometry, codeio,
  color_cube_rotation, countdown, emoji_mystery, fraction_simplification, graph_color, group_anagrams, gsm_symbolic, jugs, power_function,
  prime_factorization, puzzle24, rubiks_cube, rush_hour, tsumego) or 0.05 (arc_agi, boxnet, knight_swap, palindrome_generation,
  propositional_logic, rearc, sentence_reordering, tower_of_hanoi). The default scorer pays len(gold) / len(answer) wherever the gold text
  occurs inside the answer (gcd, letter_counting, maze, aiw, ...), so a list of guesses earns a little. Gate and measure on CORRECT, not
  on a grade above 0.
- boxnet, graph_color, propositional_logic, rubiks_cube and rush_hour come without a gold answer (`answer` is "None"): any valid one counts.
- puzzle24 accepts any four numbers in its range that make 24, not only those asked for.
- game_of_life_halting calls every non-empty answer correct; tasks of it raise `TutelageError`.
- Nine scorers hand the answer to Python's `eval` or to sympy's parser, which evaluates too. Their answers are first checked to contain no
  call but of elementary functions (else MALFORMED, unscored), and are scored in a child process with a timeout (see `worker.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.registry import verifiers
from tutelage.tasks.verifiers.answers import after_thinking, tagged_answer
from tutelage.tasks.verifiers.base import Judgement, Verifier, judge
from tutelage.tasks.verifiers.worker import WORKER, Stalled, WorkerError

EVALUATED_LITERALS = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
EVALUATED_MATHS = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"})
UNSOUND = frozenset({"game_of_life_halting"})
_MATHS = frozenset(
    {"sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "asin", "acos", "atan", "exp", "log", "ln", "sqrt", "Abs", "abs"}
)
_CALL = re.compile(r"(\w+|[\])}\"'])\s*\(")


@verifiers.register("reasoning_gym")
def reasoning_gym(*, timeout: float = 10.0) -> Verifier:
    """The score of reasoning-gym's own scorer for the task's family; 1 is CORRECT, all less is WRONG with that grade (see the module).

    The task's column `entry` holds the library's record (JSON or a mapping), whose metadata.source_dataset names the family, else the
    column `family`. Scored is the content of the last `<answer>…</answer>` where there is one, else the whole text after its thoughts.
    MALFORMED: empty, or such that the scorer fails on it. Args: timeout: seconds for the families whose scorer evaluates the answer; an
    answer that takes longer is WRONG.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise missing_extra("reasoning-gym", "lm")
    if not timeout > 0:
        raise TutelageError(f"Verifier 'reasoning_gym': timeout={timeout} must be positive, in seconds.")
    return functools.partial(_reasoning_gym, timeout=timeout)


def _reasoning_gym(completion: str, task: Mapping[str, Any], *, timeout: float) -> Judgement:
    entry = _entry_of(task)
    family = _family_of(task, entry)
    tagged = tagged_answer(completion)
    answer = after_thinking(completion).strip() if tagged is None else tagged
    return judge(completion, lambda: _grade(family, answer, entry, timeout) if answer else None, unless=[str(entry.get("answer"))])


def _grade(family: str, answer: str, entry: dict[str, Any], timeout: float) -> float | None:
    """The scorer's grade, or None where it fails on this answer although it can score the entry's own."""
    if not harmless(answer, family):
        return None
    evaluated = family in EVALUATED_LITERALS | EVALUATED_MATHS
    try:
        if evaluated:
            return float(WORKER.call(f"{__name__}:score", family, answer, entry, timeout=timeout, library="reasoning_gym"))
        return float(score(family, answer, entry))
    except Stalled:
        return 0.0
    except WorkerError:
        return None
    except Exception:
        score(family, str(entry["answer"]), entry)  # raises where the entry, not the answer, is at fault
        return None


def harmless(answer: str, family: str) -> bool:
    """Whether the family's scorer may see the answer: always, but where it evaluates; there only without calls, comments and dunders."""
    if family not in EVALUATED_LITERALS | EVALUATED_MATHS:
        return True
    if "__" in answer or any(mark in answer for mark in "#\\`"):
        return False
    if family in EVALUATED_LITERALS:
        return not _CALL.search(answer)
    # sympy evaluates strings that reach its functions, so quotes are as good as calls
    called = {match[1] for match in _CALL.finditer(answer)}
    return not any(quote in answer for quote in "\"'") and all(name in _MATHS or name.isdecimal() for name in called)


def score(family: str, answer: str, entry: dict[str, Any]) -> float:
    """The library's score of an answer; runs here or in the worker."""
    if family in ("arc_agi", "rearc"):  # their scorers compare with tuples, which JSON turned into lists
        metadata = {**entry["metadata"], "output": tuple(map(tuple, entry["metadata"]["output"]))}
        entry = {**entry, "metadata": metadata}
    grade = float(_scorer(family)(answer=answer, entry=entry))
    # Every family pays an exact answer exactly 1. spell_backward adds up a share for each right letter of an answer that runs on too long,
    # and means 0.8 for all of them; but its sum can land a rounding error beside 1.
    return 0.8 if grade != 1 and abs(grade - 1) < 1e-9 else grade


@functools.cache
def _scorer(family: str) -> Callable[..., float]:
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if family not in DATASETS:
        raise unknown("reasoning-gym family", family, DATASETS)
    if family in UNSOUND:
        raise TutelageError(f"reasoning-gym's scorer of {family!r} calls every non-empty answer correct; leave this family out.")
    return get_score_answer_fn(family)


def _entry_of(task: Mapping[str, Any]) -> dict[str, Any]:
    raw = task.get("entry")
    try:
        entry = json.loads(raw) if isinstance(raw, str) else dict(raw or {})
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise TutelageError(
            f"Column 'entry' must hold a reasoning-gym record as JSON or a mapping; got {str(raw)[:80]!r} ({error})."
        ) from None
    if not isinstance(entry, dict) or "metadata" not in entry:
        raise TutelageError(
            f"The verifier 'reasoning_gym' needs the column 'entry' with the library's record (question, answer, metadata); got "
            f"{str(raw)[:80]!r} and the columns {', '.join(map(str, task))}. Draw tasks from tutelage.tasks.reasoning_gym, or use 'exact'."
        )
    return entry


def _family_of(task: Mapping[str, Any], entry: dict[str, Any]) -> str:
    family = entry["metadata"].get("source_dataset") or task.get("family")
    if not family:
        raise TutelageError("The entry's metadata has no source_dataset and the task no column 'family': the family's scorer is unknown.")
    _scorer(str(family))
    return str(family)
