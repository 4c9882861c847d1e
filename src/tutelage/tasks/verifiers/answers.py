"""Reading completions: where the final answer stands, and whether there is one at all.

Everything here is English, textual and documented by the cases in `tests/test_verifiers.py`; nothing calls a model.
"""

from __future__ import annotations

import re

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)(</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)\s*([^\n]+)")
_BRACE = re.compile(r"(?P<boxed>\\f?boxed\s*)?\{|\}")
_VERBAL = re.compile(
    r"""\banswer\b
        (?:\s+(?:to|of|for)\b[^.\n:]{0,80}?)?                          # the answer to the question
        [*_\s]*
        (?: : | = | \b(?:is|was|would\ be|should\ be|must\ be)\b (?:\s+(?:therefore|thus|then|hence|simply))? \s*:? | (?<=\n)(?=\s*\S) )
        [*_\s]*([^\n]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}|\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)


def after_thinking(text: str) -> str:
    """The text after the last `</think>`; of a thought that was never closed (a truncated completion), what stands before it.

    Chat templates often put the opening tag into the prompt, so a closing tag alone is enough.
    """
    return text.rpartition("</think>")[2] if "</think>" in text else text.partition("<think>")[0]


def tagged_answer(text: str) -> str | None:
    """The content of the last `<answer>…</answer>`, stripped, or None; unclosed (a stop string), to the end."""
    if "<answer>" not in text.casefold():
        return None
    found = _TAG.findall(after_thinking(text))
    closed = [content for content, end in found if end]
    return (closed or [content for content, _ in found])[-1].strip() if found else None


def marked_answer(text: str) -> str | None:
    r"""The final answer where the text marks one, else None.

    Thoughts (`<think>…</think>`) are dropped first. `<answer>…</answer>` comes before all else; of `#### x`, `\boxed{x}`, `Answer: x` and
    `the answer is x` the one that stands last in the text counts. A verbal mark or `####` reaches to the end of its line (of the next line
    that is not empty, where its own is); undecorated, see `plain`.
    """
    text = after_thinking(text)
    tagged = tagged_answer(text)
    if tagged is not None:
        text = tagged
    marks = [(m.start(1), m.group(1)) for m in _HASHES.finditer(text)] if "####" in text else []
    if "answer" in text.casefold():  # a look for the word alone takes a hundredth of the time
        marks += [(m.start(1), m.group(1)) for m in _VERBAL.finditer(text)]
    if "boxed" in text:
        marks += _boxes(text)
    return plain(max(marks)[1]) if marks else tagged


def final_answer(text: str) -> str:
    """The marked answer (see `marked_answer`), else the whole text after its thoughts, stripped. Gold answers are read by it too."""
    marked = marked_answer(text)
    return after_thinking(text).strip() if marked is None else marked


def plain(text: str) -> str:
    r"""Text without its decoration: outer space, emphasis, quotes, `$…$`, `\text{…}` and one full stop at the end."""
    while True:
        bare = text.strip().strip("*_`\"'“”‘’").strip()
        if bare.endswith(".") and not bare.endswith(".."):
            bare = bare[:-1].rstrip()
        if wrapped := _WRAPPED.fullmatch(bare):
            bare = next(group for group in wrapped.groups() if group is not None)
        if bare == text:
            return bare
        text = bare


def _boxes(text: str) -> list[tuple[int, str]]:
    r"""Start and content of every `\boxed{…}` whose brace closes."""
    boxes, opened = [], []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append((brace.end(), brace["boxed"] is not None))
        elif opened:
            start, boxed = opened.pop()
            if boxed:
                boxes.append((start, text[start : brace.start()]))
    return boxes


def boxed(text: str) -> bool:
    r"""Whether the text after its thoughts holds a `\boxed{…}` that closes and is not empty."""
    return any(content.strip() for _, content in _boxes(after_thinking(text)))


_ADVERBS = r"(?:(?:really|honestly|simply|just|actually|currently|definitively)\s+)*"
_ACTS = (
    r"(?:answer|determine|solve|help|assist|provide|compute|calculate|say|tell|comply|do\s+(?:that|this)|give|figure|fulfil+|recall|access|"
    r"verify|confirm|conclude|respond|complete|find\s+(?:the|a|an|any)\s+(?:answer|solution))\b"
)
_KNOW_END = r"(?=\s*(?:[.,;:!?)]|$|(?:what\s+|if\s+|whether\s+)?(?:the|this|that|it|any|enough|for\s+sure|how\s+to)\b))"
_REFUSAL = re.compile(
    rf"""(?:
      \bi\s+{_ADVERBS}do(?:n't|\s+not)\s+{_ADVERBS}know{_KNOW_END}
    | \bi\s+(?:{_ADVERBS}have|'ve|don't\s+have)\s+(?:no|any)\s+(?:idea|clue)\b
    | \bi(?:\s+am|'m)\s+{_ADVERBS}(?:not\s+(?:entirely\s+|quite\s+|completely\s+)?(?:sure|certain)|unsure|uncertain)\b
    | \bi(?:\s+am|'m)\s+{_ADVERBS}(?:unable|not\s+able|not\s+allowed|not\s+permitted)\s+to\s+{_ACTS}
    | \b(?:i|we|one)\s+{_ADVERBS}(?:can't|cannot|can\s+not|could\s+not|couldn't|won't|will\s+not)\s+{_ADVERBS}(?:be\s+able\s+to\s+)?{_ACTS}
    | \b(?:i\s+must|i\s+have\s+to)\s+(?:decline|refuse)\b | \bi\s+(?:decline|refuse)\s+to\b
    | \bi\s+do(?:n't|\s+not)\s+have\s+(?:enough|sufficient|access|the\s+(?:necessary\s+)?information)\b
    | \b(?:it\s+is|it's|is)\s+(?:impossible|not\s+possible)\s+to\s+{_ACTS}
    | \b(?:cannot|can't|can\s+not)\s+be\s+(?:determined|answered|calculated|computed|solved|known)\b
    | \b(?:unable|not\s+able)\s+to\s+{_ACTS}
    | \b(?:there\s+is\s+|there's\s+)?(?:not\s+enough|insufficient)\s+(?:information|data|context|details?)\b
    | \bas\s+an?\s+(?:ai|artificial|language|large\s+language)\b[^.!?\n]*\b(?:can't|cannot|unable|not\s+able|do(?:n't|\s+not))\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL_SIGNS = (
    "n't", "not", "’t", "unable", "unsure", "uncertain", "declin", "refus", "impossible", "insufficient", "idea", "clue",
    "unknown", "determin", "n/a", "na", "?",
)  # fmt: skip
"""One of these, in lower case, stands in whatever reads as a refusal; a text without any needs no second look."""
_SHORT_REFUSAL = re.compile(
    r"(?:it(?:'s|\s+is)\s+)?(?:unknown|unsure|not\s+sure|undetermined|undeterminable|indeterminable|n/?a|no\s+idea|\?+)", re.I
)
_RESUMED = re.compile(
    r"""\b(?:(?:but|however|still|so|then),?\s+(?:i(?:'d|\s+would)?\s+(?:think|believe|guess|suspect|say)|it(?:'s|\s+is)|the|my|we|let|if|
         probably|maybe|perhaps)\b | but,?\s+(?:[\d$\\(]|(?-i:[A-Z]\b)(?=[.)\s]*\Z))
       | let's\b | let\s+(?:me|us)\b | therefore\b | thus\b | hence\b | (?:best|my)\s+guess\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?\n]\s*")
"""A sign that may end a sentence and the white space behind it: a full stop without any ends none."""


def refused(text: str) -> bool:
    """Whether a completion declines to answer ("I don't know", "I cannot help with that", "unable to determine"), in English.

    A marked answer alone decides where there is one: "I'm not sure. Answer: 12" is an answer, "Answer: unknown" a refusal. Otherwise a
    refusal must stand in the first or the last sentence, and the text must not go on to an answer ("…, but I think it is 12", "Let's
    try"): a doubt in the middle of a derivation is thinking aloud. An empty text is no refusal but malformed.
    """
    folded = text.casefold()
    if not any(sign in folded for sign in _REFUSAL_SIGNS):
        return False
    marked = marked_answer(text.replace("’", "'"))
    if marked is not None:
        return bool(_SHORT_REFUSAL.fullmatch(marked) or ((m := _REFUSAL.search(marked)) and len(marked[: m.start()].split()) <= 3))
    text = after_thinking(text).replace("’", "'").strip()
    if _SHORT_REFUSAL.fullmatch(plain(text)):
        return True
    starts = [0, *(m.end() for m in _SENTENCE_END.finditer(text) if len(m[0]) > 1 or m[0] == "\n")]
    for start, end in {(starts[0], (starts[1:] or [len(text)])[0]), (starts[-1], len(text))}:
        if (found := _REFUSAL.search(text, start, end)) and not _RESUMED.search(text, found.end()):
            return True
    return False
