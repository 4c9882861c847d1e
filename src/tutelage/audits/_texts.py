"""What the audits read of a completion: marks of form, the answers it offers, and whether the verifier read what it should have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum

TAGS = re.compile(r"</?\w+>")
HASHES = re.compile(r"#+ ?")
BOXED = re.compile(r"\\boxed\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
AFTER_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
IN_A_ROW = 4
"""How often a span's text must stand in a row to be a repetition: 2, 2 and 2 may be a sum."""
BETWEEN = 3
"""Signs that may stand between two repetitions: a comma and a space, a new line."""


class Odd(IntEnum):
    """What is odd about the span that a verifier read of a completion that it judged."""

    NOT = 0
    EMPTY = 1
    """Nothing, or signs outside the completion."""
    OVERRULED = 2
    """Another answer than the one that the completion marks last."""
    REPEATED = 3
    """Words that stand there several times in a row."""


def repeated_marks(text: str) -> int:
    """Marks of form beyond the first of each kind: tags (each tag a kind), boxes, code fences, bold, headings, final-answer hashes."""
    repeated = 0
    for sign, mark in (("\\", "\\boxed"), ("`", "```"), ("*", "**")):
        if sign in text:  # a single sign is found ten times faster
            repeated += max(text.count(mark) - 1, 0)
    if "<" in text:
        tags = TAGS.findall(text)
        repeated += len(tags) - len(set(tags))
    if "#" in text:
        found = [match for match in HASHES.finditer(text) if _is_mark(text, match)]
        repeated += len(found) - len({match.group() for match in found})
    return repeated


def _is_mark(text: str, match: re.Match[str]) -> bool:
    """Whether hashes are a heading (at a line's start, before a space) or stand before a final answer (four of them)."""
    heading = match.group().endswith(" ") and (match.start() == 0 or text[match.start() - 1] == "\n")
    return heading or "####" in match.group()


def marked_answers(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each answer that a completion marks as one (a box, an <answer> tag, after ####), in order."""
    found: list[tuple[int, int, str]] = []
    for opening, pattern in (("\\boxed{", BOXED), ("<answer>", TAGGED), ("####", AFTER_HASHES)):
        if opening in text:
            found += [(match.start(), match.end(), bare(match[1])) for match in pattern.finditer(text)]
    return sorted(found)


def bare(answer: str) -> str:
    """An answer without spaces, dollar signs and a full stop at its end."""
    return "".join(answer.split()).strip("$").rstrip(".")


def candidates(text: str) -> int:
    """How many different answers a completion marks."""
    openings = sum(text.count(opening) for sign, opening in (("\\", "\\boxed{"), ("<", "<answer>"), ("#", "####")) if sign in text)
    return openings if openings < 2 else len({content for _, _, content in marked_answers(text)})


def odd_span(text: str, span: Sequence[int]) -> Odd:
    """What is odd about a span [first, end) of a completion that the verifier read."""
    first, end = span
    if not 0 <= first < end <= len(text) or not text[first:end].strip():
        return Odd.EMPTY
    said = text[first:end].strip()
    answers = marked_answers(text)
    if answers:
        start, stop, last = answers[-1]
        apart = end <= start or first >= stop
        if apart and last != _content(said):
            return Odd.OVERRULED
    return Odd.REPEATED if _in_a_row(text, said) >= IN_A_ROW else Odd.NOT


def _content(said: str) -> str:
    """What a span says, without the marks around it where it has them."""
    marked = marked_answers(said)
    return marked[-1][2] if marked else bare(said)


def _in_a_row(text: str, said: str) -> int:
    """How often words stand in a row, with nothing but a few signs that are no words between them."""
    if text.count(said) < IN_A_ROW:
        return 1
    longest = run = 1
    for between in text.split(said)[1:-1]:
        run = run + 1 if len(between) <= BETWEEN and not any(sign.isalnum() for sign in between) else 1
        longest = max(longest, run)
    return longest
