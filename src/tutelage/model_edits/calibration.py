"""Text that an edit of a loaded model reads: prompts with answers from a file, as batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.model_edits.statistics import IGNORED
from tutelage.tasks.loaders import load_columns
from tutelage.tasks.tables import columns_of, renamed


@dataclass(frozen=True)
class Example:
    """A prompt with its answer. ids: of the whole text. start: where the answer begins. prompt, answer: as they stood in the file."""

    ids: tuple[int, ...]
    start: int
    prompt: Any
    answer: str


def read_examples(path: str | Path, tokenizer: Any, *, max_length: int = 1024) -> list[Example]:
    """The examples of a JSONL or Parquet file or a data set directory: columns prompt and answer (by their usual names), or text alone.

    Prompts go through the tokenizer's chat template where it has one; the end token closes every answer. What is longer than `max_length`
    tokens is cut at its end, and an answer of which nothing would be left raises.
    """
    columns = renamed(columns_of(load_columns(path), str(path)), prompt=None, answer=None, source=str(path))
    if "prompt" in columns and "answer" in columns:
        pairs = list(zip(columns["prompt"], columns["answer"], strict=True))
    elif "text" in columns:
        pairs = [("", text) for text in columns["text"]]
    else:
        raise TutelageError(
            f"{path} has the columns {', '.join(map(repr, columns))}; expected a prompt and an answer (also called question, "
            "problem, input, instruction; solution, target, output, response), or text."
        )
    examples = []
    for row, (prompt, answer) in enumerate(pairs, 1):
        if answer is None or not str(answer).strip():
            raise TutelageError(f"The answer in row {row} of {path} (counted from 1) is {answer!r}; fill it or drop the row.")
        examples.append(encode(tokenizer, prompt, str(answer), max_length))
        if examples[-1].start >= len(examples[-1].ids):
            raise TutelageError(f"Row {row} of {path}: nothing of the answer is left within {max_length} tokens. Raise max_length.")
    return examples


def encode(tokenizer: Any, prompt: Any, answer: str, max_length: int) -> Example:
    """One example as token ids."""
    ids = prompt_ids(tokenizer, prompt)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    whole = [*ids, *tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
    return Example(tuple(whole[:max_length]), len(ids), prompt, answer)


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """A prompt's token ids, ready to be answered; none for an empty prompt."""
    chat = bool(getattr(tokenizer, "chat_template", None))  # a template brings its own special tokens
    return list(tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=not chat)["input_ids"]) if prompt else []


def prompt_text(tokenizer: Any, prompt: Any) -> str:
    """A prompt as text, ready to be answered: through the chat template where there is one, else ending in a new line."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return str(prompt) if str(prompt).endswith("\n") else f"{prompt}\n"


def split(examples: Sequence[Example], share: float, seed: int, *, what: str) -> tuple[list[Example], list[Example]]:
    """Most to read or train on, a share (at least one) to measure on; the same for the same seed. what: their name, for the error."""
    if len(examples) < 2:
        raise TutelageError(f"There are {len(examples)} {what} examples; at least two are needed, one to read and one to measure on.")
    order = np.random.default_rng(seed).permutation(len(examples))
    aside = max(1, round(share * len(examples)))
    return [examples[i] for i in sorted(order[aside:])], [examples[i] for i in sorted(order[:aside])]


def batches(examples: Sequence[Example], *, size: int = 8, pad_id: int = 0, device: Any = None) -> Iterator[dict[str, Tensor]]:
    """Right-padded batches in the examples' order: `input_ids`, `attention_mask`, `labels` (−100 outside the answer), (B, T) each."""
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        width = max(len(example.ids) for example in part)
        ids_BT = torch.full((len(part), width), pad_id)
        label_BT, mask_BT = torch.full_like(ids_BT, IGNORED), torch.zeros_like(ids_BT)
        for row, example in enumerate(part):
            tokens = torch.tensor(example.ids)
            ids_BT[row, : len(tokens)], mask_BT[row, : len(tokens)] = tokens, 1
            label_BT[row, example.start : len(tokens)] = tokens[example.start :]
        yield {name: value.to(device) for name, value in (("input_ids", ids_BT), ("attention_mask", mask_BT), ("labels", label_BT))}
