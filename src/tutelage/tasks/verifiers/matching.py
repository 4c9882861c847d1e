"""Verifiers that compare text: the whole answer, or one of the options of a multiple-choice question."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import TutelageError
from tutelage.registry import verifiers
from tutelage.tasks.verifiers.answers import after_thinking, final_answer, marked_answer, plain
from tutelage.tasks.verifiers.base import Judgement, Verifier, gold_of, judge

_SENTENCE = re.compile(r"[.!?](?=\s)")


@verifiers.register("exact")
def exact(*, case_sensitive: bool = False) -> Verifier:
    """The final answer equals the gold answer as text, after white space, decoration and one final full stop are normalised.

    Both are read by `final_answer`. Of an answer given in a sentence ("The answer is Paris. It lies on the Seine.") the first sentence
    counts too. An unmarked completion must equal the gold answer as a whole. MALFORMED: nothing was said.
    """
    return functools.partial(_exact, case_sensitive=case_sensitive)


def _exact(completion: str, task: Mapping[str, Any], *, case_sensitive: bool) -> Judgement:
    gold = gold_of(task)

    def grade() -> bool | None:
        answer = final_answer(completion)
        candidates = {answer} if marked_answer(completion) is None else {answer, _SENTENCE.split(answer)[0]}
        return _normal(final_answer(gold), case_sensitive) in {_normal(text, case_sensitive) for text in candidates} if answer else None

    return judge(completion, grade, unless=[gold])


def _normal(text: str, case_sensitive: bool = False) -> str:
    text = " ".join(plain(text).split())
    return text if case_sensitive else text.casefold()


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LISTED = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_LEADING = re.compile(r"\W*(?P<named>(?:option|choice|letter|answer)\W+)?(?P<letter>[A-Z])(?!\w)(?P<rest>.*)", re.DOTALL | re.IGNORECASE)
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|is|and|or)\b)[a-z]|['’]")  # what follows in "A dog", "I think", "I'm"
_LINE = re.compile(r"^[ \t]*\(?([A-Z])[).](?=\s|$)", re.MULTILINE)
_POINTED = re.compile(
    rf"""{_LINE.pattern} | \(([A-Z])\) | \*\*\(?([A-Z])\)?[.):]?\*\* | \b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\b
      | \b(?:is|be|but|[Ii]t's|[Cc]hoose|[Pp]ick|[Ss]elect|[Ss]o)\s+\(?([A-Z])(?=[.,;:!)]|[ \t]*$)""",
    re.MULTILINE | re.VERBOSE,
)
_SEVERAL = re.compile(r"\W*\(?([A-Z])\)?\s*(?:,|/|&|\band\b|\bor\b)\s*(?:\band\b|\bor\b)?\s*\(?([A-Z])\)?(?!\w)")


@verifiers.register("choice")
def choice(*, options: int = 10) -> Verifier:
    """Multiple choice: the letter chosen, or the option whose text was given, equals the gold one.

    Options are read from the column `choices` or `options` (a list of texts, a mapping from letter to text, or the mapping
    `{"label": [...], "text": [...]}`), else from lines such as "(B) text" of the question; without any only letters count. The gold answer
    is a letter ("B", "(B)"), an option's text, or an integer index from 0.

    Read in this order: the marked answer, else the whole text, as a letter or an option's text; then the last letter pointed at in the
    text ("(B)", "**B**", "option B", "so B."); then the one option whose text occurs. Several letters at once ("A or B") are MALFORMED,
    as is the absence of all. Args: options: how many letters count where the task lists no options.
    """
    if not 2 <= options <= len(_LETTERS):
        raise TutelageError(f"Verifier 'choice': options={options} must lie between 2 and {len(_LETTERS)}, the letters there are.")
    return functools.partial(_choice, options=options)


def _choice(completion: str, task: Mapping[str, Any], *, options: int) -> Judgement:
    listed = _options_of(task)
    letters = "".join(listed) or _LETTERS[:options]
    gold = _gold_letter(task.get("answer"), listed, letters)

    def grade() -> bool | None:
        letter = _chosen(completion, listed, letters)
        return None if letter is None else letter == gold

    return judge(completion, grade, unless=listed.values())


def _options_of(task: Mapping[str, Any]) -> dict[str, str]:
    """Letter → option text; empty where the task lists none."""
    raw = task.get("choices") if task.get("choices") is not None else task.get("options")
    if isinstance(raw, Mapping) and set(raw) == {"label", "text"}:
        return {str(label): str(text) for label, text in zip(raw["label"], raw["text"], strict=True)}
    if isinstance(raw, Mapping):
        return {str(label): str(text) for label, text in raw.items()}
    if raw is not None and not isinstance(raw, str):
        if len(raw) > len(_LETTERS):
            raise TutelageError(f"A task may list up to {len(_LETTERS)} options; this one lists {len(raw)}.")
        return {letter: _LISTED.sub(r"\2", str(text)) for letter, text in zip(_LETTERS, raw, strict=False)}
    question = task.get("question") or task.get("prompt") or ""
    if isinstance(question, Sequence) and not isinstance(question, str):
        question = "\n".join(str(message.get("content", "")) for message in question if isinstance(message, Mapping))
    return dict(_LISTED.findall(str(question)))


def _gold_letter(answer: Any, listed: Mapping[str, str], letters: str) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters) and str(answer) not in listed:
        return letters[answer]
    gold = final_answer(gold_of({"answer": answer}))
    letter = _by_text(gold, listed) or _as_letter(gold, letters)
    if letter is None:
        known = ", ".join(f"{key}: {text}" for key, text in listed.items()) or ", ".join(letters)
        raise TutelageError(
            f"The gold answer {answer!r} is none of the options: {known}. "
            "Give a letter, an option's text, or its index from 0 as an integer."
        )
    return letter


def _chosen(completion: str, listed: Mapping[str, str], letters: str) -> str | None:
    marked, text = marked_answer(completion), after_thinking(completion)
    span = text.strip() if marked is None else marked
    if (several := _SEVERAL.match(span)) and several[1] != several[2] and set(several.groups()) <= set(letters):
        return None
    if letter := _by_text(span, listed):
        return letter
    weighs_options = marked is None and len(set(_LINE.findall(text))) > 1  # "A. is too short. / B. too long. / So C."
    if not weighs_options and (letter := _as_letter(span, letters)):
        return letter
    for match in reversed(list(_POINTED.finditer(text))):
        if (letter := next(group for group in match.groups() if group)) in letters:
            return letter
    said = [key for key, option in listed.items() if re.search(rf"(?<!\w){re.escape(_normal(option))}(?!\w)", _normal(span))]
    return said[0] if len(said) == 1 else None


def _by_text(span: str, listed: Mapping[str, str]) -> str | None:
    """The option of which the span is the text, or the label where labels are not letters ("1", "2")."""
    said = _normal(span)
    labels = [key for key in listed if _normal(key) == said]
    texts = [key for key, option in listed.items() if _normal(option) == said]
    return next(iter(labels + texts), None)  # a label wins: "A" names option A even where another option reads "a"


def _as_letter(span: str, letters: str) -> str | None:
    """The letter a span consists of or begins with: "b", "(B)", "B) Paris", "b) Paris", "option B"; not the article of "A dog"."""
    found = _LEADING.match(span)
    if not found or found["letter"].upper() not in letters:
        return None
    more = re.search(r"\w", found["rest"])
    if more and found["letter"].islower() and not found["rest"].startswith(")"):
        return None
    if more and not found["named"] and _ARTICLE.match(found["rest"]) and found["letter"] in "AIai":
        return None
    return found["letter"].upper()
