"""The verifier of mathematical expressions, by the math-verify library."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from tutelage.errors import TutelageError, missing_extra
from tutelage.registry import verifiers
from tutelage.tasks.verifiers.answers import final_answer, marked_answer, plain
from tutelage.tasks.verifiers.base import Judgement, Verifier, gold_of, judge
from tutelage.tasks.verifiers.worker import WORKER, Stalled

_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin\{(?:equation|align)")
_NAMED = re.compile(r"(?<![A-Za-z])(pi|sin|cos|tan|log|ln|exp|infty|theta)(?![A-Za-z])")  # sin(x) would be read as s*i*n*(x)
_PROSE = re.compile(r"(?<![\\A-Za-z{])(?!(?:sin|cos|tan|log|exp|sqrt|pi|infty)\b)[A-Za-z]{3,}\b")


@verifiers.register("math")
def math(*, timeout: float = 5.0, float_rounding: int = 6) -> Verifier:
    r"""The final answer is the gold expression up to mathematical equality, judged by math-verify (LaTeX or plain).

    Both are read by `final_answer`; where they stand without delimiters, as `\frac{1}{2}` or `x^2+1`, they are read as LaTeX. Equal text is
    equal without further ado, and all that a gold answer beyond the library's grammar is compared by. MALFORMED: no expression was found.

    The library runs in a child process (see `worker.py`), so it works in any thread and no expression stalls a run: one that cannot be
    compared within `timeout` seconds is WRONG. That limit is wall-clock time, the one thing here that may differ between machines. Args:
    float_rounding: decimal places to which numbers are compared.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise missing_extra("math-verify", "lm")
    if not timeout > 0:
        raise TutelageError(f"Verifier 'math': timeout={timeout} must be positive, in seconds.")
    return functools.partial(_math, timeout=timeout, float_rounding=float_rounding)


def _math(completion: str, task: Mapping[str, Any], *, timeout: float, float_rounding: int) -> Judgement:
    gold = final_answer(gold_of(task))

    def grade() -> bool | None:
        answer = final_answer(completion)
        if not answer:
            return None
        if _squeezed(answer) == _squeezed(gold):
            return True
        try:
            return _compare(gold, answer, marked_answer(completion) is not None, float_rounding, timeout=timeout)
        except Stalled:
            _check_gold(gold, float_rounding, timeout)
            return False

    return judge(completion, grade, unless=[gold])


def _check_gold(gold: str, float_rounding: int, timeout: float) -> None:
    """A stall is the completion's fault only where the gold answer alone is no trouble."""
    try:
        _compare(gold, "$0$", True, float_rounding, timeout=timeout)
    except Stalled:
        raise TutelageError(
            f"math-verify cannot read the gold answer {gold[:80]!r} within {timeout:g} seconds; simplify it or raise timeout."
        ) from None


def _compare(*args: Any, timeout: float) -> bool | None:
    return WORKER.call(f"{__name__}:compare", *args, timeout=timeout, library="math_verify")


def _squeezed(text: str) -> str:
    return "".join(plain(text).split())


def compare(gold: str, answer: str, marked: bool, float_rounding: int) -> bool | None:
    """Runs in the worker: whether the answer equals the gold expression; None where the answer holds no expression."""
    import math_verify

    parsed = _parse(answer, as_latex=marked or not _PROSE.search(answer))
    if not parsed:
        return None
    # timeouts off: the worker's watchdog bounds the call, in any thread
    return bool(math_verify.verify(_parsed_gold(gold), parsed, float_rounding=float_rounding, timeout_seconds=None))


@functools.lru_cache(maxsize=1024)
def _parsed_gold(gold: str) -> list[Any]:
    return _parse(gold, as_latex=True)


def _parse(text: str, *, as_latex: bool) -> list[Any]:
    """math-verify's candidates for a text. Undelimited expressions are read as LaTeX, prose first as it stands."""
    import math_verify

    text = re.sub(r"\\\$|^\$(?=[^$]*$)", "", text)  # a price, not a delimiter
    if "\\" not in text:
        text = _NAMED.sub(r"\\\1 ", text)
    wrapped = text if _DELIMITER.search(text) else f"${text}$"
    readings = [text, wrapped] if _PROSE.search(text) else [wrapped, text]
    for reading in readings if as_latex else [text]:
        if parsed := math_verify.parse(reading, parsing_timeout=None):
            return parsed
    return []
