"""Answers of a language model to many prompts, in batches of similar length. Whoever calls it decides about modes and random states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts_M: Sequence[str],
    *,
    attempts: int = 1,
    max_new_tokens: int,
    temperature: float,
    templated: bool,
    batch_size: int,
    **sampling: Any,
) -> list[list[Any]]:
    """`attempts` answers to each prompt, in the prompts' order, as token ids without the prompt, padded at the end.

    temperature: 0 is greedy. templated: the prompts hold the special tokens already. batch_size: prompts at once. sampling: further
    settings of `generate`.
    """
    how = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_k": 0, **sampling}
    order = np.argsort([len(p) for p in prompts_M], kind="stable")
    answers: list[list[Any]] = [[] for _ in prompts_M]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        encoded = tokenizer(
            [prompts_M[i] for i in batch for _ in range(attempts)],
            return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not templated, return_token_type_ids=False,
        ).to(model.device)  # fmt: skip
        out = model.generate(**encoded, **how, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
        ids = out[:, encoded["input_ids"].shape[1] :]
        for i, place in enumerate(batch):
            answers[place] = list(ids[i * attempts : (i + 1) * attempts])
    return answers
