"""What reading angle concentrations costs beside a bare forward pass over the same tokens.

    python benchmarks/angle_concentration.py [--pairs 9] [--prompts 256] [--json]

On the built-in student and on a random Llama of 4 layers and width 512, chat prompts of 16 to 80 characters (tokens, for both models use
the built-in tokenizer). Reading: templates, tokens, batches of like length, states and sums. The bare pass: the same padded batches, ready
made, through the same model, logits of one position. Both in turns, first one then the other, by processor time; the figure is the median
over pairs of (tokens a second reading) / (tokens a second bare). Target: at least 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from tutelage.students import builtin_path
from tutelage.students.prompts import PromptTokens
from tutelage.students.reading import concentrations, like_lengths

TARGET, BATCH_TOKENS = 0.9, 8192


def models() -> dict[str, Any]:
    builtin = AutoModelForCausalLM.from_pretrained(builtin_path(), dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=builtin.config.vocab_size,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=256,
    )
    return {"builtin": builtin, "llama-4x512": LlamaForCausalLM(config).eval()}


def prompts(size: int) -> list[Any]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij 0123456789"))
    return [[{"role": "user", "content": "".join(rng.choice(letters, size=rng.integers(16, 81)))}] for _ in range(size)]


def bare_pass(model: Any, tokenizer: Any, chats: list[Any]) -> tuple[Callable[[], None], int]:
    """A function that runs the model over the prompts' batches, and how many tokens they are without padding."""
    ids = [tokens.id_T for tokens in PromptTokens(tokenizer)(chats)]
    length_N = np.array([len(one) for one in ids])
    batches = []
    for rows_b in like_lengths(length_N, BATCH_TOKENS):
        token_BT = torch.zeros(len(rows_b), int(length_N[rows_b].max()), dtype=torch.int64)
        mask_BT = torch.zeros_like(token_BT)
        for b, row in enumerate(rows_b):
            token_BT[b, : length_N[row]] = torch.from_numpy(ids[row])
            mask_BT[b, : length_N[row]] = 1
        batches.append({"input_ids": token_BT, "attention_mask": mask_BT})

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False, logits_to_keep=1)

    return run, int(length_N.sum())


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process, one thread: what else the machine does counts less."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(model: Any, tokenizer: Any, chats: list[Any], pairs: int) -> dict[str, float]:
    bare, tokens = bare_pass(model, tokenizer, chats)

    def read() -> None:
        concentrations(model, tokenizer, chats, batch_tokens=BATCH_TOKENS, progress=False)

    for work in (bare, read):
        work()
    times = [(seconds(bare), seconds(read)) for _ in range(pairs)]
    ratios = [bare_s / read_s for bare_s, read_s in times]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "tokens": tokens,
        "reading_tokens_per_s": tokens / statistics.median(read_s for _, read_s in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(builtin_path())
    chats = prompts(args.prompts)
    result = {name: measure(model, tokenizer, chats, args.pairs) for name, model in models().items()}
    if args.json:
        print(json.dumps({"target": TARGET, "models": result}, indent=1))
        return
    print(f"reading against a bare forward pass, {args.pairs} pairs (target: a ratio of at least {TARGET})")
    for name, row in result.items():
        spread = f"{row['lowest']:.3f} to {row['highest']:.3f}"
        print(f"  {name:<12} {row['ratio']:.3f} ({spread}), {row['tokens']:,} tokens, {row['reading_tokens_per_s']:,.0f} tokens/s")


if __name__ == "__main__":
    main()
