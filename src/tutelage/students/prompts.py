"""Prompts as tokens that know what they belong to: the prefix, the question, or neither.

The question is the content of the last user message; the prefix is all that the chat template puts before it (system prompt, worked
examples, markers), and what it puts after it is neither. Both are found by rendering the template, never by a constant. A prompt that is
plain text is a question as a whole, but for special tokens that the tokenizer puts in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

OUTSIDE, PREFIX, QUESTION = 0, 1, 2
"""What a token belongs to: neither (padding, the template's closing tokens), the prefix, the question."""


@dataclass(frozen=True)
class Tokens:
    """One prompt: token ids (T,) and what each belongs to (T,)."""

    id_T: NDArray[np.int64]
    segment_T: NDArray[np.int64]


class PromptTokens:
    """Tokenizes prompts as a chat model is asked them.

    tokenizer: a fast Hugging Face tokenizer. template: further arguments of `apply_chat_template` (tools, chat_template, switches of the
    template). Prompts are texts, or lists of messages whose contents are texts.
    """

    def __init__(self, tokenizer: Any, template: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TutelageError(
                f"{type(tokenizer).__name__} does not say which characters a token covers, so prefix and question cannot be told apart. "
                "Load the fast tokenizer: AutoTokenizer.from_pretrained(...)."
            )
        self.tokenizer, self.template = tokenizer, dict(template or {})
        self._frames: dict[str, tuple[str, str]] = {}

    @property
    def fingerprint(self) -> str:
        """A hash of the tokenizer, its chat template and the template's arguments."""
        parts = [self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template, self.template]
        return hashlib.blake2b(json.dumps(parts, default=str, sort_keys=True).encode(), digest_size=16).hexdigest()

    def __call__(self, prompts: Sequence[Any]) -> list[Tokens]:
        """The prompts' tokens, in order; texts and conversations must not be mixed."""
        if all(isinstance(prompt, str) for prompt in prompts):
            return self._of_texts(list(prompts))
        return self._of_chats(prompts)

    def _of_texts(self, texts: list[str]) -> list[Tokens]:
        coded = self.tokenizer(texts, return_special_tokens_mask=True, return_attention_mask=False)
        tokens = []
        for ids, special in zip(coded["input_ids"], coded["special_tokens_mask"], strict=True):
            special_T = np.asarray(special, dtype=bool)
            inside_T = np.cumsum(~special_T) > 0
            tokens.append(Tokens(np.asarray(ids), np.where(~special_T, QUESTION, np.where(inside_T, OUTSIDE, PREFIX))))
        return tokens

    def _of_chats(self, chats: Sequence[Any]) -> list[Tokens]:
        spans = [self._rendered(chat) for chat in chats]
        coded = self.tokenizer(
            [text for text, _, _ in spans], add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        tokens = []
        for ids, offsets, (_, begin, end) in zip(coded["input_ids"], coded["offset_mapping"], spans, strict=True):
            from_T, to_T = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
            segment_T = np.where(to_T <= begin, PREFIX, np.where(from_T >= end, OUTSIDE, QUESTION))
            tokens.append(Tokens(np.asarray(ids), segment_T))
        return tokens

    def _rendered(self, chat: Any) -> tuple[str, int, int]:
        """The text of a conversation, and where in it the question begins and ends."""
        messages = _messages(chat)
        asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=len(messages) - 1)
        key = json.dumps([asked, [m for i, m in enumerate(messages) if i != asked]], default=str)
        if key not in self._frames:
            others = [self._render([{**m, "content": word} if i == asked else m for i, m in enumerate(messages)]) for word in "AB"]
            before = _shared_start(*others)
            after = _shared_start(*(text[::-1] for text in others))[::-1]
            if len(self._frames) > 4096:
                self._frames.clear()
            self._frames[key] = before, after
        before, after = self._frames[key]
        text = self._render(messages)
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            raise TutelageError(
                f"The chat template does not leave what surrounds a question alone: it gave {text[:80]!r}..., which does not begin with "
                f"{before[-80:]!r} and end with {after[:80]!r}. Pass prompts as texts that are rendered already."
            )
        return text, len(before), len(text) - len(after)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self.template)
        except ValueError as error:
            raise TutelageError(f"The tokenizer cannot render a conversation: {error} Give it a chat template, or pass texts.") from None


def _shared_start(one: str, other: str) -> str:
    return one[: next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))]


def _messages(chat: Any) -> list[dict[str, Any]]:
    if not isinstance(chat, Sequence) or not chat or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in chat):
        shown = repr(chat)[:100]
        raise TutelageError(
            f"A prompt must be a text, or a list of messages whose contents are texts, all prompts alike; got {shown}. Pictures and tool "
            "calls have no place in a measure of the question's tokens."
        )
    return [dict(m) for m in chat]


def prompts_hash(prompts: Sequence[Any]) -> str:
    """A hash of all prompts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(json.dumps(prompt, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()
