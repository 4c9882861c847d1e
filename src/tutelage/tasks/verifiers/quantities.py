"""The verifier of numbers: exact rational arithmetic over what people and models write."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from tutelage.errors import TutelageError
from tutelage.registry import verifiers
from tutelage.tasks.verifiers.answers import after_thinking, final_answer, marked_answer
from tutelage.tasks.verifiers.base import Judgement, Verifier, gold_of, judge

_GROUP = r"(?:,(?:\\!)?|\{,\}|\\,|[\u00a0\u2009\u202f])"  # 1,234  1{,}234  1\,234  and the non-breaking and thin spaces
_DIGITS = rf"(?:(?:\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}])[-+−])? (?:\\?[$€£¥₹][ ]?(?P<inner>[-+−])?)?
    (?: (?:(?P<whole>\d+)[ ]*)? \\[dtc]?frac\s*\{{?\s*(?P<top>-?\d+)\s*\}}?\s*\{{?\s*(?P<bottom>\d+)\s*\}}?      # 2\frac{{1}}{{2}}
      | (?:(?P<mixed>\d+)[ ]?)? (?P<vulgar>[¼½¾⅐-⅞])                                                             # 2½
      | (?P<units>\d+)[ ](?P<over>\d+)/(?P<under>\d+)(?![\d/])                                                   # 2 1/2
      | (?P<digits>{_DIGITS}) (?: [eE](?P<exponent>[-+−]?\d+)(?!\w)
          | \s*(?:×|x|\*|·|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*[{{(]?(?P<power>[-+−]?\d+)[}})]? )?              # 3e8  3 \times 10^8
        (?: \s*/\s*\\?[$€£¥₹]? (?P<divisor>{_DIGITS})(?![\d/]) )? )                                              # 3/4
    (?P<percent>\s*\\?%|\s*per\s?cent\b)? (?:\s*(?P<scale>thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LONGEST = 400
"""Digits, and the size of an exponent, beyond which a number is not read: a model can write 1e999999999 and stall a run."""


class Quantity(NamedTuple):
    """A number as written, and the factor its unit stands for: 50 % is (50, 1/100), 2 million is (2, 10^6)."""

    value: Fraction
    factor: Fraction


@verifiers.register("numeric")
def numeric(*, rel_tol: float = 0.0, abs_tol: float = 0.0) -> Verifier:
    r"""The final answer is the gold number: |answer - gold| <= max(rel_tol * |gold|, abs_tol), so by default 1/2 = 0.5 and 0.33 != 1/3.

    Both are read by `final_answer`, so GSM8K's rows work as they come ("… #### 42"). In a marked answer the first number counts, after the
    last equals sign if there is one; without a mark, the last number of the text. Understood: signs, thousands separators (comma, thin or
    non-breaking space), currency, fractions (3/4, 2 1/2, ½, \frac{3}{4}), scientific notation (3e8, 3 \times 10^8), percent, thousand to
    trillion. Not understood: decimal commas, numbers in words, arithmetic. Where one side alone carries a percent sign or a scale, either
    reading fits: 50 % answers both 50 and 0.5, 2 million both 2 and 2000000. MALFORMED: no number. Arithmetic is exact; an answer computed
    in floating point (0.30000000000000004) needs a tolerance such as rel_tol=1e-9.
    """
    if not (0 <= rel_tol < float("inf") and 0 <= abs_tol < float("inf")):
        raise TutelageError(f"Verifier 'numeric': tolerances must be finite and not negative; got rel_tol={rel_tol}, abs_tol={abs_tol}.")
    return functools.partial(_numeric, rel_tol=rel_tol, abs_tol=abs_tol)


def _numeric(completion: str, task: Mapping[str, Any], *, rel_tol: float, abs_tol: float) -> Judgement:
    text = gold_of(task)
    gold = read_number(text)
    if gold is None:
        raise TutelageError(f"The gold answer {final_answer(text)[:80]!r} holds no number; use the verifier 'exact' or 'math'.")

    def grade() -> bool | None:
        answer = read_number(completion)
        return None if answer is None else _close(answer, gold, Fraction(rel_tol), Fraction(abs_tol))

    return judge(completion, grade)


def read_number(text: str) -> Quantity | None:
    """The number that `numeric` reads out of a text, or None."""
    marked = marked_answer(text)
    if marked is None:
        found = list(_NUMBER.finditer(after_thinking(text)))
        return _quantity(found[-1]) if found else None
    first = _NUMBER.search(marked.rpartition("=")[2]) or _NUMBER.search(marked)
    return _quantity(first) if first else None


def _close(answer: Quantity, gold: Quantity, rel_tol: Fraction, abs_tol: Fraction) -> bool:
    def near(a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= max(rel_tol * abs(b), abs_tol)

    if answer.factor == gold.factor:
        return near(answer.value, gold.value)
    readings = {answer.value, answer.value * answer.factor}
    return any(near(a, b) for a in readings for b in {gold.value, gold.value * gold.factor})


def _quantity(match: re.Match[str]) -> Quantity | None:
    part = match.groupdict()
    if len(match[0]) > _LONGEST:
        return None
    if part["digits"]:
        exponent = int((part["exponent"] or part["power"] or "0").replace("−", "-"))
        divisor = Fraction(_bare(part["divisor"] or "1"))
        if abs(exponent) > _LONGEST or not divisor:
            return None
        value = Fraction(_bare(part["digits"])) * Fraction(10) ** exponent / divisor
    elif part["vulgar"]:
        value = int(part["mixed"] or 0) + Fraction(unicodedata.numeric(part["vulgar"])).limit_denominator(10)
    else:
        top, bottom = (part["over"], part["under"]) if part["units"] else (part["top"], part["bottom"])
        if not int(bottom):
            return None
        value = int(part["units"] or part["whole"] or 0) + Fraction(int(top), int(bottom))
    negative = (part["sign"] or part["inner"] or "+") in "-−"
    factor = Fraction(_SCALES.get((part["scale"] or "").lower(), 1)) / (100 if part["percent"] else 1)
    return Quantity(-value if negative else value, factor)


def _bare(digits: str) -> str:
    return re.sub(_GROUP, "", digits)
