"""What a language model answers to prompts: plain sampling, nothing dropped, global random states left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.errors import TutelageError, missing_extra


def ask(
    model: str,
    prompts: Sequence[Any],
    *,
    attempts: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[str]]:
    """`attempts` answers of a model to each of N prompts, special tokens left out: (N, `attempts`).

    Args:
        model: a directory, or a name on the hub. prompts: texts, or lists of chat messages, to which the chat template is applied.
        temperature: 0 is greedy. Top-p, top-k and penalties are off, also where the model's own generation settings ask for them.
        batch_size: prompts at once.

    Raises:
        TutelageError: no prompts, texts mixed with conversations, fewer than one attempt or token, a negative temperature.
    """
    if not prompts or attempts < 1 or max_new_tokens < 1 or temperature < 0:
        raise TutelageError(
            f"ask got {len(prompts)} prompts, attempts={attempts}, max_new_tokens={max_new_tokens}, temperature={temperature}; expected at "
            "least one of each, and a temperature from 0."
        )
    chat = not isinstance(prompts[0], str)
    if any(isinstance(prompt, str) == chat for prompt in prompts):
        raise TutelageError("Some prompts are texts and some are lists of messages; write all of them alike.")
    try:
        import torch
        from transformers import GenerationConfig

        from tutelage.models import evaluating, load_model
        from tutelage.students.generation import generate_ids
        from tutelage.teachers._forward import seeded
        from tutelage.teachers.replies import end_ids
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "lm") from None
    net, tokenizer = load_model(model)
    net.generation_config = GenerationConfig(eos_token_id=end_ids(net, tokenizer))
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) if chat else p for p in prompts]
    with evaluating(net), torch.no_grad(), seeded(net, seed):
        groups = generate_ids(
            net, tokenizer, texts, attempts=attempts, max_new_tokens=max_new_tokens, temperature=temperature, templated=chat,
            batch_size=batch_size,
        )  # fmt: skip
    return [tokenizer.batch_decode(group, skip_special_tokens=True) for group in groups]
