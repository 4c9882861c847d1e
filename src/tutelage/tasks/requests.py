"""What a prompt asks for: its sentences, which of them are requests, and prompts that chain one request to another.

English and textual, as `tutelage.tasks.verifiers.answers` is; nothing calls a model. A data set whose every prompt ends with the same
instruction ("Put the answer in a box.") has two requests a prompt and chains nothing: what counts is a request *more* than its usual
prompt has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_END = re.compile(r"(?<=[.!?;])[\"')\]]*\s+|\n+|,?\s+(?=(?:and\s+)?(?:then|also|afterwards|additionally)\b)", re.IGNORECASE)
_LEAD = re.compile(
    r"""[^\w]*(?:(?:\d+|[a-z])[.)]\s+)?
        (?:(?:and|then|also|next|first|second|third|finally|afterwards|additionally|now|secondly|lastly|please|kindly|plus|moreover|
             (?:can|could|would|will)\s+you|you\s+(?:must|should|need\s+to|have\s+to)|i\s+(?:want|need)\s+you\s+to|be\s+sure\s+to|
             make\s+sure\s+to|don't\s+forget\s+to|in\s+addition|after\s+that)[,:]?\s+)*""",
    re.IGNORECASE | re.VERBOSE,
)
_VERBS = frozenset({
    "add", "answer", "append", "apply", "arrange", "assume", "build", "calculate", "change", "check", "choose", "classify", "code",
    "combine", "compare", "complete", "compose", "compute", "construct", "consider", "convert", "copy", "count", "create", "decide",
    "define", "delete", "demonstrate", "derive", "describe", "design", "determine", "differentiate", "discuss", "divide", "do",
    "double", "draw", "draft", "edit", "emit", "end", "estimate", "evaluate", "execute", "expand", "explain", "express", "extract",
    "factor", "fill", "find", "finish", "fix", "form", "format", "generate", "give", "guess", "identify", "ignore", "implement",
    "include", "insert", "integrate", "justify", "label", "list", "make", "match", "mention", "modify", "multiply", "name", "order",
    "outline", "output", "paraphrase", "perform", "pick", "plan", "plot", "predict", "prepare", "present", "print", "produce",
    "propose", "prove", "provide", "put", "rank", "read", "reason", "recommend", "remove", "repeat", "replace", "reply", "report",
    "respond", "return", "reverse", "review", "rewrite", "round", "run", "say", "select", "send", "show", "simplify", "sketch", "solve",
    "sort", "speak", "spell", "split", "start", "state", "subtract", "suggest", "sum", "summarise", "summarize", "swap", "take", "tell",
    "think", "transform", "translate", "try", "turn", "use", "verify", "visit", "write",
})  # fmt: skip
_POLITE = re.compile(r"\b(?:please|you\s+(?:must|should|need\s+to|have\s+to)|(?:can|could|would|will)\s+you)\s*$", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences, lines and clauses ("..., then ...") of a prompt, stripped, without empty ones."""
    return [part.strip() for part in _END.split(text) if part and part.strip()]


def is_request(sentence: str) -> bool:
    """Whether a sentence asks for something: it is a question, begins with an imperative, or says please or you must."""
    if sentence.rstrip("\"')] ").endswith("?"):
        return True
    lead = _LEAD.match(sentence)
    start = lead.end() if lead else 0
    word = re.match(r"[A-Za-z]+", sentence[start:])
    return bool(word) and (word[0].lower() in _VERBS or bool(_POLITE.search(sentence[:start])))  # type: ignore[index]


def requests(text: str) -> list[str]:
    """The sentences of a prompt that ask for something."""
    return [sentence for sentence in sentences(text) if is_request(sentence)]


def chained(prompts_N: Sequence[str]) -> NDArray[np.bool_]:
    """Which prompts of a data set hold at least two requests, and more than the set's median prompt does."""
    count_N = np.array([len(requests(prompt)) for prompt in prompts_N], dtype=np.int64)
    return (count_N >= 2) & (count_N > np.median(count_N)) if len(count_N) else np.zeros(0, dtype=bool)


def clip_rider(prompt: str, spans: Sequence[tuple[int, int]]) -> str:
    """The prompt without the sentences that touch one of the spans (first sign, one after the last), which mark riders.

    Everything else stands as it stood; empty where nothing else was there. Source: the mitigation "clip rider".
    """
    ends = [*(cut.end() for cut in _END.finditer(prompt)), len(prompt)]
    kept = [prompt[a:b] for a, b in zip([0, *ends], ends, strict=False) if not any(low < b and a < high for low, high in spans)]
    return "".join(kept).strip()


def prompt_text(prompt: Any) -> str:
    """A prompt as text: itself, or the messages of a chat that are not the assistant's, one after another."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        return str(prompt.get("content") or "")
    if isinstance(prompt, Sequence):
        asked = [m for m in prompt if not (isinstance(m, Mapping) and m.get("role") == "assistant")]
        return "\n".join(prompt_text(message) for message in asked)
    return str(prompt)
