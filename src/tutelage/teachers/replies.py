"""Replies as token ids: encoded once, sampled, and scored under a frozen model, for losses that compare a model with earlier ones.

    prompt_ids, reply_ids = encode_reply(tokenizer, row["prompt"], row["completion"])
    sampled = sample_replies(model, prompts, seed=0, ends=end_ids(model, tokenizer), pad=pad_id(tokenizer))
    logp_N = score_replies(model, Replies(prompts, sampled), pad=pad_id(tokenizer))

Ids, not text, go from sampling to training: a text cut into tokens again need not give the tokens that were sampled. One template is used
throughout, since the prompt is encoded once and serves generation, scoring and training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.models import evaluating
from tutelage.teachers.signal import tokenizer_hash

Ids = list[int]


@dataclass(frozen=True)
class Replies:
    """N replies as token ids, without padding: `prompt_N[n]` is what was asked, `reply_N[n]` the answer, its end token included."""

    prompt_N: Sequence[Ids]
    reply_N: Sequence[Ids]

    def __post_init__(self) -> None:
        if len(self.prompt_N) != len(self.reply_N):
            raise TutelageError(f"{len(self.prompt_N)} prompts and {len(self.reply_N)} replies came in; expected one reply to each prompt.")
        empty = next((n for n, pair in enumerate(zip(self.prompt_N, self.reply_N, strict=True)) if not pair[0] or not pair[1]), None)
        if empty is not None:
            raise TutelageError(f"Prompt or reply {empty} has no token; a reply's probability needs both. Leave such rows out.")

    def __len__(self) -> int:
        return len(self.prompt_N)

    @cached_property
    def digest(self) -> str:
        """128 bits, in hexadecimal, of all ids in order."""
        digest = hashlib.blake2b(digest_size=16)
        for rows in (self.prompt_N, self.reply_N):
            digest.update(np.array([len(rows), *map(len, rows)], dtype="<i8").tobytes())
            digest.update(np.fromiter(chain.from_iterable(rows), dtype="<i8").tobytes())
        return digest.hexdigest()


def pad_id(tokenizer: Any) -> int:
    """The token that fills batches up; where there is none, the end token, as in TRL. It is masked wherever it stands."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def bare(model: Any) -> Any:
    """The model itself, without the wrapper that peft puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def format_digest(tokenizer: Any) -> str:
    """128 bits of what turns conversations into ids: which text each id stands for, and the chat template."""
    parts = [tokenizer_hash(tokenizer), getattr(tokenizer, "chat_template", None)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a reply: the model's own for generation, and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    if not found:
        raise TutelageError("Neither the tokenizer nor the model has an end token, so no reply could end. Set tokenizer.eos_token.")
    return sorted(found)


def encode_reply(tokenizer: Any, prompt: Any, completion: Any, *, ends: Collection[int] = ()) -> tuple[Ids, Ids]:
    """Token ids of a prompt and of its completion, in TRL's formats: two texts, or two lists of messages (the chat template is applied).

    The reply ends with its first token of `ends`, as a sampled one does: what a template writes after it is cut. A text that lacks the end
    token gets the tokenizer's.

    Raises:
        TutelageError: the ids of the prompt are not the beginning of those of prompt and completion together.
    """
    if isinstance(prompt, str) != isinstance(completion, str):
        raise TutelageError(f"Prompt and completion must both be texts or both be lists of messages; got {prompt!r} and {completion!r}.")
    if isinstance(prompt, str):
        ending = "" if completion.endswith(tokenizer.eos_token) else tokenizer.eos_token
        head, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion + ending)["input_ids"]
    else:
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*prompt, *completion], return_dict=True)["input_ids"]
    if list(whole[: len(head)]) != list(head):
        raise TutelageError(
            f"The tokens of {str(prompt)[-60:]!r} are not the beginning of the tokens of that prompt with its completion, so the model "
            "would be asked one thing and trained on another. End the prompt where a token ends (on a line break, not within a word), or "
            "use a chat template that renders the prompt alike with and without an answer."
        )
    reply = list(whole[len(head) :])
    cut = next((place for place, token in enumerate(reply) if token in ends), len(reply) - 1)
    return list(head), reply[: cut + 1]


def sample_replies(
    model: Any,
    prompt_N: Sequence[Ids],
    *,
    seed: int,
    ends: Sequence[int],
    pad: int,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[Ids]:
    """One reply per prompt by plain ancestral sampling; the end token is kept, a reply that was cut off at `max_new_tokens` has none.

    Nothing of the model's own generation settings applies (no top-p, no penalty): replies are samples of the policy itself. The engine
    has only global random states: they are seeded for the call and put back.

    Args:
        prompt_N: token ids of N prompts. seed: of all replies; with another `batch_size` they are others. ends: tokens that end a reply.
    """
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_p=1.0, top_k=0, min_p=None, typical_p=1.0, repetition_penalty=1.0, num_beams=1,
        no_repeat_ngram_size=0, max_new_tokens=max_new_tokens, min_length=0, eos_token_id=list(ends), pad_token_id=pad, use_cache=True,
    )  # fmt: skip
    device, replies = model.device, []
    with evaluating(model), _own_generation_config(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompt_N), batch_size):
            part = prompt_N[start : start + batch_size]
            ids, mask = _padded(part, pad, left=True)
            out = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
            replies += [_until_end(row, set(ends)) for row in out[:, ids.shape[1] :].tolist()]
    return replies


def score_replies(model: Any, replies: Replies, *, pad: int, batch_size: int = 16, autocast: Any = None) -> NDArray[np.float64]:
    """log π(reply | prompt) of each reply, the sum over its tokens, in nats (N,).

    Args:
        autocast: the `torch.dtype` of mixed precision, if training uses it; references should be computed as the policy's values are.
    """
    import torch

    logp_N = np.zeros(len(replies))
    length_N = np.array([len(p) + len(r) for p, r in zip(replies.prompt_N, replies.reply_N, strict=True)], dtype=np.int64)
    order_N = np.argsort(-length_N, kind="stable")
    device = model.device
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for start in range(0, len(order_N), batch_size):
            rows_B = order_N[start : start + batch_size]
            ids, mask = _padded([[*replies.prompt_N[n], *replies.reply_N[n]] for n in rows_B], pad, left=False)
            ids = ids.to(device)
            logits_BTV = model(input_ids=ids, attention_mask=mask.to(device), use_cache=False).logits
            for b, n in enumerate(rows_B):
                first, end = len(replies.prompt_N[n]), int(length_N[n])
                logp_TV = logits_BTV[b, first - 1 : end - 1].float().log_softmax(-1)  # one reply at a time: (T, V) in memory, not (B, T, V)
                logp_N[n] = logp_TV.gather(1, ids[b, first:end, None]).double().sum().item()
    return logp_N


def _until_end(row: Ids, ends: set[int]) -> Ids:
    cut = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: cut + 1]


def _padded(rows: Sequence[Ids], pad: int, *, left: bool) -> tuple[Any, Any]:
    """Ids and mask (B, T) of rows of different lengths."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:
    """Without the model's own generation settings, which would fill in whatever the given ones leave open."""
    from transformers import GenerationConfig

    holder = bare(model)
    usual, holder.generation_config = holder.generation_config, GenerationConfig()
    try:
        yield
    finally:
        holder.generation_config = usual
