"""What graded completions look like beside their accuracy: lengths, truncation, format, diversity, pass@k and reasoning behaviours.

    found = diagnose(kind_NG=kind_NG, length_NG=length_NG, ended_NG=ended_NG, texts_NG=texts_NG)
    found["clip_ratio"], found["stopped_length"], found["pass_at_k"]["4"]
    rambling(found_before, found_after)                   # "" or a warning

Source: SimpleRL-Zoo (arXiv 2503.18892), whose point is that longer answers are no proof of reasoning: a rising mean length together with a
rising clip ratio is rambling. An answer counts as clipped by its *finish reason*, never by comparing its length with the limit, for an
answer that ends exactly at the limit has ended.

Everything is a pure function of the completions. Array suffixes: `N` tasks, `G` attempts, `B` completions, `T` tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Kind, group_advantage
from tutelage.tasks.verifiers.answers import final_answer

BEHAVIOURS: dict[str, str] = {
    "verification": r"""
        \blet(?:'s|\s+us|\s+me)\s+(?:quickly\s+|just\s+)?(?:check|verify|double[-\s]?check|confirm|test)\b
      | \b(?:to|we|i|should|must)\s+(?:can\s+|will\s+|now\s+)?(?:verify|double[-\s]?check|confirm)\b
      | \bverif(?:ying|ication)\b | \bdouble[-\s]?check(?:ing)?\b
      | \b(?:plug(?:ging)?|substitut(?:e|ing))\s+(?:\S+\s+){0,4}?back\b
      | \bchecking\s+(?:this|that|our|my|the\s+(?:answer|result|solution))\b
      | \bsatisf(?:y|ies)\s+(?:all\s+)?(?:the|both|our)\s+(?:given\s+)?(?:condition|equation|constraint|requirement)s?\b""",
    "backtracking": r"""
        \bwait\b(?=\s*[,.!…—-]) | \bhold\s+on\b | \bon\s+second\s+thought\b | \bscratch\s+that\b
      | \b(?:that|this|it)(?:'s|\s+(?:is|was|seems|looks))\s+(?:wrong|incorrect|not\s+(?:right|correct|possible)|an?\s+(?:mistake|error))\b
      | \b(?:i|we)(?:'ve|\s+have)?\s+(?:made|did)\s+(?:a|an|some)\s+(?:mistake|error)s?\b
      | \blet(?:'s|\s+us|\s+me)\s+(?:try\s+(?:again|another|a\s+different)|go\s+back|start\s+(?:over|again)
                                      |re-?(?:consider|think|do|examine|evaluate|calculate|compute))\b
      | \b(?:this|that)\s+(?:does(?:n't|\s+not)\s+work|leads\s+to\s+a\s+contradiction)\b""",
    "subgoal_setting": r"""
        ^[^\w\n]{0,8}(?:step\s+\d+|first(?:ly)?|second(?:ly)?|next|then)\b(?=\s*[:,.])
      | \b(?:the|our|my|a)\s+(?:first|next|second|third|last|final)\s+(?:step|goal|task)\b
      | \bbreak(?:ing)?\s+(?:this|it|the\s+problem)\s+(?:down|into|up)\b
      | \b(?:we|i|let(?:'s|\s+us|\s+me))\s+(?:need\s+to\s+|must\s+|will\s+|should\s+)?(?:first|start\s+by|begin\s+by)\b""",
    "enumeration": r"""
        ^[^\w\n]{0,8}case\s+(?:\d+|[ivx]+|[a-d])\b
      | \b(?:list|enumerat|try|test|consider|check)(?:e|ing)?\s+(?:out\s+)?(?:all|each|every)\b
      | \bone\s+by\s+one\b | \bby\s+(?:exhaustion|cases|trial\s+and\s+error|brute\s+force)\b
      | \bthe\s+possible\s+(?:case|value|option|outcome|combination|pair)s\s+(?:are|is|include)\b""",
}
"""Keyword patterns of reasoning behaviours in English: verbose regular expressions, read without regard to case, `^` at each line.

The four behaviours are those that SimpleRL-Zoo has a judge model count. Keywords see the wording, not the reasoning: they miss a silent
check and count an idle "let me verify". Compare like with like (the same model before and after), and use a judge for absolute numbers.
"""

_FINISH = {"stop": True, "eos": True, "eos_token": True, "stop_sequence": True, "end_turn": True, "tool_calls": True, "tool_use": True}
_FINISH |= {"length": False, "max_tokens": False, "max_length": False}
_NO_ENDS: Collection[int] = ()


def behaviours(text: str, patterns: Mapping[str, str] = BEHAVIOURS) -> dict[str, int]:
    """How often each behaviour shows in a text, by name; occurrences do not overlap."""
    text = text.replace("’", "'")
    return {name: sum(1 for _ in _compiled(pattern).finditer(text)) for name, pattern in patterns.items()}


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE | re.VERBOSE)  # re keeps compiled patterns itself


def ended_by_reason(reasons_B: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each completion ended by itself, from a server's finish reasons ("stop", "length", ...); a reason unknown here raises."""
    for reason in reasons_B:
        if reason not in _FINISH:
            raise unknown("finish reason", str(reason), _FINISH)
    return np.array([_FINISH[reason] for reason in reasons_B], dtype=bool)


def ended_by_token(token_BT: ArrayLike, end_ids: Collection[int] = _NO_ENDS) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Length and end of generated token rows (B, T): the first end token counts and closes the answer; without one the row was clipped.

    Returns length_B (end token included) and ended_B. What follows an end token is padding, whatever it holds.
    """
    token_BT = np.asarray(token_BT)
    end_BT = np.isin(token_BT, list(end_ids))
    ended_B: NDArray[np.bool_] = np.asarray(end_BT.any(axis=1))
    width = token_BT.shape[1]
    return np.where(ended_B, end_BT.argmax(axis=1) + 1 if width else 0, width).astype(np.int64), ended_B


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate, from `n` attempts of which `c` are correct, of the chance that at least one of `k` is: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., Evaluating Large Language Models Trained on Code (2021), equation 1. Computed in integers, hence without overflow.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise TutelageError(
            f"pass_at_k got n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n. Sample at least k attempts per task."
        )
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def pass_at(correct_NG: ArrayLike, ks: Sequence[int] | None = None) -> dict[str, float]:
    """Mean unbiased pass@k over tasks, by k as text (JSON keys are text); ks: the powers of two up to G, and G, where not given."""
    correct_NG = np.asarray(correct_NG, dtype=bool)
    attempts = correct_NG.shape[1]
    if ks is None:
        ks = sorted({2**i for i in range(attempts.bit_length()) if 2**i <= attempts} | {attempts})
    count_of, tasks_of = np.unique(correct_NG.sum(axis=1), return_counts=True)  # few distinct counts, many tasks
    return {
        str(k): float(np.average([pass_at_k(attempts, int(c), k) for c in count_of], weights=tasks_of)) if len(correct_NG) else math.nan
        for k in ks
    }


def diagnose(
    *,
    kind_NG: ArrayLike,
    grade_NG: ArrayLike | None = None,
    length_NG: ArrayLike | None = None,
    ended_NG: ArrayLike | None = None,
    texts_NG: Sequence[Sequence[str]] | None = None,
    ks: Sequence[int] | None = None,
    count: Callable[[str], Mapping[str, float]] = behaviours,
) -> dict[str, Any]:
    """Diagnostics of G graded completions of each of N tasks, as plain JSON values; what its columns do not tell is left out.

    Args:
        kind_NG: `Kind` codes. grade_NG: the verifier's grades, else correctness, for dead groups.
        length_NG: tokens. ended_NG: whether each completion ended by itself (`ended_by_reason`, `ended_by_token`).
        ks: for pass@k, see `pass_at`.
        count: `text -> {behaviour: how often}`; `behaviours` by keywords, or a judge model's counts.

    Returns:
        `accuracy` and `format_rate` (not malformed), shares of completions; `mean_length`; `clip_ratio`, the share that did not end;
        `stopped_length`, the mean length of those that did (NaN for none); `behaviours`, the share of completions that show each at least
        once. With at least two attempts also `pass_at_k`; `dead_share`, the share of groups whose grades are all equal and carry no
        gradient; `distinct_answers`, the mean number of different final answers to a task.
    """
    kind_NG = np.asarray(kind_NG)
    correct_NG = kind_NG == Kind.CORRECT
    found: dict[str, Any] = {"accuracy": _mean(correct_NG), "format_rate": _mean(kind_NG != Kind.MALFORMED)}
    columns = {"grade": grade_NG, "length": length_NG, "ended": ended_NG}
    for name, column in columns.items():
        if column is not None and np.shape(column) != kind_NG.shape:
            raise TutelageError(
                f"diagnose got {name}_NG of shape {np.shape(column)} and kind_NG of shape {kind_NG.shape}; expected the same."
            )
    if ended_NG is not None:
        found["clip_ratio"] = _mean(~np.asarray(ended_NG, dtype=bool))
    if length_NG is not None:
        found["mean_length"] = _mean(np.asarray(length_NG))
        if ended_NG is not None:
            found["stopped_length"] = _mean(np.asarray(length_NG)[np.asarray(ended_NG, dtype=bool)])
    if kind_NG.shape[1] > 1:
        found["pass_at_k"] = pass_at(correct_NG, ks)
        found["dead_share"] = _mean((group_advantage(correct_NG if grade_NG is None else grade_NG) == 0).all(axis=1))
    if texts_NG is not None:
        found |= _of_texts(texts_NG, count)
    return found


def _of_texts(texts_NG: Sequence[Sequence[str]], count: Callable[[str], Mapping[str, float]]) -> dict[str, Any]:
    counts = [count(text) for row in texts_NG for text in row]
    found: dict[str, Any] = {
        "behaviours": {name: _mean(np.array([one.get(name, 0) > 0 for one in counts])) for name in (counts or [{}])[0]}
    }
    if texts_NG and len(texts_NG[0]) > 1:
        found["distinct_answers"] = _mean(
            np.array([len({" ".join(final_answer(text).casefold().split()) for text in row}) for row in texts_NG])
        )
    return found


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def rambling(before: Mapping[str, Any], after: Mapping[str, Any], *, length_rise: float = 0.1, clip_rise: float = 0.05) -> str:
    """A warning where answers got longer and more of them were cut off, else "".

    before, after: of `diagnose`, both with `mean_length` and `clip_ratio`. length_rise: the least relative rise of the mean length;
    clip_rise: the least absolute rise of the clip ratio. Both are this library's choice, above the noise of a hundred completions or so.
    """
    was, now = (_number(one, "mean_length") for one in (before, after))
    clipped, clips = (_number(one, "clip_ratio") for one in (before, after))
    if not (now >= was * (1 + length_rise) and now > was and clips >= clipped + clip_rise):  # NaN compares false
        return ""
    return (
        f"rambling, not reasoning: mean length rose from {was:.3g} to {now:.3g} tokens while the share of answers cut off at the limit "
        f"rose from {clipped:.0%} to {clips:.0%}"
    )


def _number(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    return math.nan if value is None else float(value)
