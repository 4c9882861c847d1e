"""Logits where they are asked for and nowhere else, of any stock causal language model.

The output embeddings are the widest layer by far: for 150,000 entries one position takes 0.6 MB in single precision. So the hidden states
are picked out before they reach it, by a hook on that layer, and everything else of the model's own forward pass stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError

LOGITS_AT_ONCE = 2**26
"""Entries of the logits that a teacher holds at once, 256 MB in single precision, beside a few temporaries of that size."""


def logits_at(model: Any, inputs: dict[str, Any], rows: Tensor, places: Tensor) -> Tensor:
    """The model's logits at positions (rows, places) of its input, two index tensors of one shape (X, Y): (X, Y, V).

    model: any module around a causal language model, DDP and adapters included; gradients flow.
    """
    head, seen = output_layer(model), []

    def pick(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(arguments[0].shape[1])
        return (arguments[0][rows, places], *arguments[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    width = seen[0] if seen else logits.shape[1]
    if width != inputs["input_ids"].shape[1]:
        raise TutelageError(
            f"The model has {width} positions for {inputs['input_ids'].shape[1]} tokens. Likely cause: prompt tuning, whose virtual tokens "
            "shift all others. Distil a model without it, or with LoRA."
        )
    return logits if seen else logits[rows, places]  # a model may multiply by the output weights without calling the layer


def output_layer(model: Any) -> nn.Module:
    """The module whose output are the logits, through any wrapper."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_output_embeddings()


@torch.no_grad()
def logits_in_parts(model: Any, inputs: dict[str, Any], rows_N: Tensor, places_N: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """The logits at N positions, at most `size` of them at a time: (slice of N, (n, V)).

    The hidden states are kept from the first part on; where the model does nothing after its output layer (some scale or cap the logits)
    the other parts need that layer alone, else the whole model again.
    """
    head, kept = output_layer(model), {}

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        kept["hidden"] = arguments[0]

    def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        kept["output"] = output

    handles = [head.register_forward_pre_hook(keep), head.register_forward_hook(watch)]
    first = slice(0, size)
    try:
        logits_NV = logits_at(model, inputs, rows_N[None, first], places_N[None, first])[0]
    finally:
        for handle in handles:
            handle.remove()
    plain = "output" in kept and torch.equal(kept["output"][0], logits_NV)
    yield first, logits_NV
    for start in range(size, len(rows_N), size):
        part = slice(start, start + size)
        if plain:
            yield part, head(kept["hidden"][rows_N[part], places_N[part]])
        else:
            yield part, logits_at(model, inputs, rows_N[None, part], places_N[None, part])[0]


def without_padding(ids_BL: Tensor, attention_BL: Tensor, places_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same rows with all padding behind: ids, lengths (B,), and places. Then positions do not depend on where the padding was."""
    ids = ids_BL.gather(1, (~attention_BL).long().argsort(dim=1, stable=True))
    asked = places_BT >= 0
    at = places_BT.clamp(min=0)
    if (asked & ~attention_BL.gather(1, at)).any():
        raise TutelageError("A place lies on padding: a teacher is asked for the token after a token. Give −1 where nothing is asked.")
    places = torch.where(asked, (attention_BL.cumsum(1) - 1).gather(1, at), -1)
    return ids, attention_BL.sum(1), places


def row_chunks(length_B: Tensor, tokens: int) -> Iterator[slice]:
    """Consecutive rows whose padded block holds at most `tokens` tokens; a longer row comes alone."""
    start, widest = 0, 0
    for b, length in enumerate(length_B.tolist()):
        widest = max(widest, length)
        if b > start and widest * (b + 1 - start) > tokens:
            yield slice(start, b)
            start, widest = b, length
    yield slice(start, len(length_B))


@torch.no_grad()
def next_token_logp(
    model: Any,
    ids_BL: Tensor,
    attention_BL: Tensor,
    places_BT: Tensor,
    *,
    vocabulary: int,
    temperature: float,
    top_k: int | None,
    tokens: int,
) -> tuple[Tensor | None, Tensor]:
    """Log-probabilities at places: (None, (B, T, V)), or the top k as (ids, log-probabilities), (B, T, K); float32, NaN where not asked.

    vocabulary: the softmax runs over the first so many entries. tokens: how many go through the model at once.
    """
    ids_BL, length_B, places_BT = without_padding(ids_BL, attention_BL.bool(), places_BT)
    width = vocabulary if top_k is None else top_k
    logp = torch.full((*places_BT.shape, width), torch.nan, device=ids_BL.device)
    top_ids = None if top_k is None else torch.zeros((*places_BT.shape, width), dtype=torch.int64, device=ids_BL.device)
    for rows in row_chunks(length_B, tokens):
        length_b = length_B[rows]
        longest = max(int(length_b.max()), 1)
        mask_bL = torch.arange(longest, device=ids_BL.device) < length_b.unsqueeze(1)
        inputs = {"input_ids": ids_BL[rows, :longest], "attention_mask": mask_bL.long()}
        row_N, column_N = (places_BT[rows] >= 0).nonzero(as_tuple=True)
        if not len(row_N):
            continue
        at = places_BT[rows][row_N, column_N]
        for part, logits in logits_in_parts(model, inputs, row_N, at, max(LOGITS_AT_ONCE // vocabulary, 1)):
            logits = logits[:, :vocabulary].float() / temperature
            where = (row_N[part] + rows.start, column_N[part])
            if top_ids is None:
                logp[where] = logits.log_softmax(-1)
            else:
                value, index = logits.topk(width, dim=-1)
                logp[where], top_ids[where] = value - logits.logsumexp(-1, keepdim=True), index
    return top_ids, logp


@contextmanager
def seeded(model: Any, seed: int) -> Iterator[None]:
    """Torch's generators from `seed`, and afterwards as they were; `generate` draws from no other."""
    with torch.random.fork_rng(devices=[model.device.index or 0] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
