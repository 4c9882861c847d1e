"""Worked solutions: how an expert would solve a task, step by step, ending in the answer.

`worked_solution(family, entry)` writes them for the families of the built-in task set and for number_sorting, from reasoning-gym's own
records; `from_answers` finds them in answer columns that hold the working too (GSM8K, MATH). A teacher shows them to a student that fails
(`tutelage.teachers.egsr`), or they are imitated. They are short, in plain characters, and their last line is
`<answer>…</answer>`, which the verifier `reasoning_gym` reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

Steps = Iterator[str]
_ANNOTATION = re.compile(r"<<[^<>]*>>")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SHARE = 0.95
"""An answer column holds workings where at least this share of its rows does."""


def worked_solution(family: str, entry: Mapping[str, Any]) -> str | None:
    """The worked solution of a reasoning-gym task from its record; None for other families, and where the steps miss the gold answer."""
    if family not in SOLVERS:
        return None
    steps = list(SOLVERS[family](entry["metadata"]))
    if steps.pop() != str(entry["answer"]):
        return None
    return "\n".join([*steps, f"<answer>{entry['answer']}</answer>"])


def from_answers(answers: Sequence[Any]) -> list[str | None] | None:
    """The workings that an answer column holds: what stands before GSM8K's `#### 42` (without its calculator's `<<…>>`), or a text around
    MATH's `\\boxed{42}`. None where fewer than 95 % of the rows have one; rows without get None."""
    found = [_working(answer) for answer in answers]
    return found if sum(text is not None for text in found) >= SHARE * len(found) else None


def _working(answer: Any) -> str | None:
    if not isinstance(answer, str):
        return None
    text, mark, _ = answer.rpartition("####")
    if mark:
        return _ANNOTATION.sub("", text).strip() or None
    before, mark, _ = answer.partition("\\boxed{")
    return answer.strip() if mark and len(before.split()) > 2 else None


# Each solver yields its steps and last the answer.


def chain_sum(task: Mapping[str, Any]) -> Steps:
    """27 + 17 - 9: 27 + 17 = 44, 44 - 9 = 35."""
    first, *rest = task["expression"].split(" ")
    total = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = total - int(number) if sign == "-" else total + int(number)
        yield f"{total} {sign} {number} = {result}"
        total = result
    yield str(total)


def products(task: Mapping[str, Any]) -> Steps:
    """68 * 95: 68 * 90 = 6120, 68 * 5 = 340, 6120 + 340 = 6460."""
    first, *rest = (int(number) for number in task["expression"].split(" * "))
    for number in rest:
        parts = [int(digit) * 10**place for place, digit in zip(range(len(str(number)))[::-1], str(number), strict=True) if digit != "0"]
        for part in parts:
            yield f"{first} * {part} = {first * part}"
        if len(parts) > 1:
            yield f"{' + '.join(str(first * part) for part in parts)} = {first * number}"
        first *= number
    yield str(first)


def _euclid(a: int, b: int) -> Steps:
    """Steps of Euclid's algorithm; nothing where one number divides the other at once is still one step."""
    a, b = max(a, b), min(a, b)
    while b:
        yield f"{a} = {a // b} * {b} + {a % b}"
        a, b = b, a % b


def gcd(task: Mapping[str, Any]) -> Steps:
    """Euclid's algorithm, number after number."""
    first, *rest = task["numbers"]
    for number in rest:
        yield from _euclid(first, number)
        first = math.gcd(first, number)
    yield str(first)


def lcm(task: Mapping[str, Any]) -> Steps:
    """The product by the greatest common divisor, number after number."""
    first, *rest = task["numbers"]
    for number in rest:
        yield from _euclid(first, number)
        divisor, result = math.gcd(first, number), math.lcm(first, number)
        yield f"{first} * {number} / {divisor} = {first} * {number // divisor} = {result}"
        first = result
    yield str(first)


def count_bits(task: Mapping[str, Any]) -> Steps:
    """The binary digits in groups of four, and the ones of each."""
    binary = f"{task['number']:b}"
    groups = [binary[max(end - 4, 0) : end] for end in range(len(binary), 0, -4)][::-1]
    yield f"{task['number']} = {' '.join(groups)}"
    ones = [group.count("1") for group in groups]
    if len(ones) > 1:
        yield f"{' + '.join(map(str, ones))} = {sum(ones)}"
    yield str(sum(ones))


def letter_counting(task: Mapping[str, Any]) -> Steps:
    """The words that have the letter, and how often."""
    letter = task["target_letter"]
    counts = [(word, word.lower().count(letter.lower())) for word in task["span"]]
    counts = [(word, count) for word, count in counts if count]
    if counts:
        yield ", ".join(f"{word} {count}" for word, count in counts)
    if len(counts) > 1:
        yield f"{' + '.join(str(count) for _, count in counts)} = {sum(count for _, count in counts)}"
    yield str(sum(count for _, count in counts))


def spell_backward(task: Mapping[str, Any]) -> Steps:
    """The letters, then the letters from the last to the first."""
    word = task["word"]
    yield f"{' '.join(word)} -> {' '.join(reversed(word))}"
    yield word[::-1]


def base_conversion(task: Mapping[str, Any]) -> Steps:
    """To decimal digit by digit, and from decimal by repeated division; the remainders from the last to the first are the digits."""
    value, source, target = task["decimal_value"], task["source_base"], task["target_base"]
    if source != 10 and value:
        first, *rest = (DIGITS.index(digit) for digit in task["source_repr"].lower())
        for digit in rest:
            yield f"{first} * {source} + {digit} = {first * source + digit}"
            first = first * source + digit
    digits = "" if value else "0"
    while value and target != 10:
        yield f"{value} = {value // target} * {target} + {value % target}"
        digits = DIGITS[value % target] + digits
        value //= target
    yield digits or str(value)


def number_sorting(task: Mapping[str, Any]) -> Steps:
    """Selection: the next number, again and again; equal ones together."""
    numbers = sorted(task["original_numbers"], key=float, reverse=task["direction"] == "descending")
    for _, equal in groupby(numbers):
        same = list(equal)
        yield f"next {same[0]}" + (f", {len(same)} times" if len(same) > 1 else "")
    yield str(numbers)


SOLVERS: dict[str, Callable[[Mapping[str, Any]], Steps]] = {
    solver.__name__: solver
    for solver in (base_conversion, chain_sum, count_bits, gcd, lcm, letter_counting, number_sorting, products, spell_backward)
}
"""Family -> its solver."""
