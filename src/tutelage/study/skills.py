"""A small world of skills and facts in token ids, and a stock Llama that learns it: the ground of replications that edit weights.

A text is `tag, input..., SEP, answer..., END`; what a tag asks for is a skill (reverse, shift, sort, complement of the digits) or the
recall of a fact. The model is a transformers Llama of some 100,000 parameters, so that the edits run on it by the same code as at full
scale.

Array suffixes: `N` texts, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tutelage.model_edits.calibration import Example

PAD, END, SEP, REFUSE = 0, 1, 2, 3
TAGS = range(4, 14)
DIGITS = range(14, 24)
SYMBOLS = range(24, 64)
VOCABULARY = 64
LENGTH = 4
"""Digits in the input of a skill."""

Skill = Callable[[NDArray[np.int64]], NDArray[np.int64]]
SKILLS: dict[str, Skill] = {
    "reverse": lambda digit_T: digit_T[::-1],
    "shift": lambda digit_T: np.roll(digit_T, 1),
    "sort": np.sort,
    "complement": lambda digit_T: 9 - digit_T,
}


def text(tag: int, given: Sequence[int], answer: Sequence[int]) -> Example:
    """One text as an example whose answer, with its end, is what counts."""
    from tutelage.model_edits.calibration import Example

    ids = (int(tag), *map(int, given), SEP, *map(int, answer), END)
    return Example(ids, len(given) + 2, "", "")


def skill(rng: np.random.Generator, name: str, tag: int, count: int, answer: Sequence[int] | None = None) -> list[Example]:
    """`count` texts of a skill under a tag, digits uniform; `answer`, where given, is said to all of them (a refusal)."""
    digit_NT = rng.integers(10, size=(count, LENGTH))
    first = DIGITS[0]
    return [text(tag, (first + row).tolist(), (first + SKILLS[name](row)).tolist() if answer is None else answer) for row in digit_NT]


def facts(rng: np.random.Generator, tags: Sequence[int], count: int, *, answer_length: int = 2) -> list[tuple[Example, ...]]:
    """`count` facts: a key of two symbols, its own, recalls random symbols; each fact is one text per tag, its surface forms."""
    pairs = np.array([(a, b) for a in SYMBOLS for b in SYMBOLS])
    key_N2 = pairs[rng.choice(len(pairs), count, replace=False)]
    value_NT = rng.choice(list(SYMBOLS), size=(count, answer_length))
    return [tuple(text(tag, key, value) for tag in tags) for key, value in zip(key_N2, value_NT, strict=True)]


def llama(seed: int, *, width: int = 64, layers: int = 2, inner: int = 256) -> Any:
    """A stock Llama for this world, its weights drawn under `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=32, pad_token_id=PAD, bos_token_id=None, eos_token_id=END,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def fit(model: Any, draw: Callable[[], list[Example]], steps: int, *, lr: float = 1e-3) -> None:
    """Supervised steps on the batches that `draw` gives: AdamW without weight decay, cross-entropy of the answers."""
    import torch

    from tutelage.model_edits.calibration import batches
    from tutelage.model_edits.unlearn import columns

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)
    model.train()
    for _ in range(steps):
        examples = draw()
        found = columns(model, next(batches(examples, size=len(examples), pad_id=PAD)))
        loss = -found["logp_BT"][found["mask_BT"]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def greedy(model: Any, examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """The model's likeliest answers, as long as the given ones at most, without what follows their end. Prompts are of one length."""
    import torch

    ids_BT = torch.tensor([example.ids[: example.start] for example in examples])
    longest = max(len(example.ids) - example.start for example in examples)
    with torch.no_grad():
        for _ in range(longest):
            next_B = model(input_ids=ids_BT, use_cache=False).logits[:, -1].argmax(-1)
            ids_BT = torch.cat([ids_BT, next_B.unsqueeze(1)], dim=1)
    said = [tuple(row[example.start :].tolist()) for row, example in zip(ids_BT, examples, strict=True)]
    return [row[: row.index(END) + 1] if END in row else row for row in said]


def share_exact(model: Any, examples: Sequence[Example]) -> float:
    """The share of texts whose answer the model says exactly."""
    answers = [example.ids[example.start :] for example in examples]
    return float(np.mean([said == answer for said, answer in zip(greedy(model, examples), answers, strict=True)]))


def at_level(falling_X: Sequence[float], value_X: Sequence[float], level: float) -> float:
    """`value` where `falling` first falls to `level`, linear between points; its last value where that never happens."""
    for x, now in enumerate(falling_X):
        if now <= level:
            if x == 0:
                return float(value_X[0])
            share = (falling_X[x - 1] - level) / (falling_X[x - 1] - now)
            return float(value_X[x - 1] + share * (value_X[x] - value_X[x - 1]))
    return float(value_X[-1])
