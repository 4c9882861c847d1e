"""Make the built-in student: a stock Llama of 1.8 million parameters that has seen eight reasoning-gym families.

    python scripts/make_student.py --out src/tutelage/students/builtin --work runs/student

Everything derives from one seed. Training sees the seven eighths of all questions that `is_heldout` leaves; the loss is the mean
over samples of the mean cross-entropy of the answer's tokens. Rows are packed with a block-diagonal mask, several samples to a row,
and every batch mixes all families and levels. The learning rate is constant after warm-up and falls linearly at the end, so a run
can be stopped and finished from any checkpoint. An hour on an idle core; a run resumes from `--work`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage.tasks.families import BUILTIN_LEVELS
from tutelage.tasks.reasoning_gym import generate, is_heldout

SEED = 20260301
GUESSES = 0.35
"""In the last stage this share of the answers shown is another question's: the student learns to guess, as base models do."""
ROW_LENGTH = 160
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def fixed_wording(texts: list[str], shortest: int = 5) -> list[str]:
    """The substrings, longest first, that all texts of one family share in the same order (its fixed wording)."""
    head = texts[0]
    for length in range(len(head), shortest - 1, -1):
        for start in range(len(head) - length + 1):
            piece = head[start : start + length]
            if all(piece in t for t in texts):
                before = [t[: t.index(piece)] for t in texts]
                after = [t[t.index(piece) + length :] for t in texts]
                return [*fixed_wording(before, shortest), piece, *fixed_wording(after, shortest)]
    return []


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens, and each family's fixed wording as one token."""
    phrases: list[str] = [" + ", " - ", " * ", " =", ", "]
    for family, levels in BUILTIN_LEVELS.items():
        texts = []
        for level in levels:
            stream = generate(family, level, SEED)
            texts += [next(stream)["question"] for _ in range(16)]
        phrases += [p for p in fixed_wording(texts) if p not in phrases]
    specials = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unk|>"]
    characters = [chr(c) for c in range(32, 127)] + ["\n", "×"]
    vocabulary = {token: i for i, token in enumerate(specials + characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in phrases])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<|unk|>", padding_side="left", model_max_length=256
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6,
        intermediate_size=512, max_position_embeddings=256, tie_word_embeddings=True, attention_bias=False,
        bos_token_id=None, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def samples(tokenizer: PreTrainedTokenizerFast, step: int, guesses: float) -> Iterator[tuple[list[int], int]]:
    """Endless (token ids, prompt length) of one chunk of training, mixed over all families and levels.

    A share of `guesses` comes with the answer of the arm's question before it.
    """
    rng = random.Random(SEED + step)
    arms = [(f, level) for f, levels in BUILTIN_LEVELS.items() for level in levels]
    streams = [generate(f, level, SEED + 1 + step, chunk=64) for f, level in arms]
    before = [next(stream)["answer"] for stream in streams] if guesses else []
    while True:
        arm = rng.randrange(len(arms))
        row = next(streams[arm])
        if is_heldout(row["question"]):
            continue
        shown = row["answer"]
        if guesses:
            shown, before[arm] = before[arm] if rng.random() < guesses else shown, shown
        prompt = tokenizer(f"<|user|>{row['question']}<|assistant|>", add_special_tokens=False)["input_ids"]
        answer = tokenizer(shown, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if len(prompt) + len(answer) <= ROW_LENGTH:
            yield prompt + answer, len(prompt)


def pack(batch: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """First-fit packing into rows (R, T): ids, positions, a block-diagonal causal mask (R, 1, T, T) and loss weights."""
    rows: list[list[tuple[list[int], int]]] = []
    room: list[int] = []
    for sample in batch:
        fit = next((i for i, r in enumerate(room) if r >= len(sample[0])), None)
        if fit is None:
            rows.append([])
            room.append(ROW_LENGTH)
            fit = len(rows) - 1
        rows[fit].append(sample)
        room[fit] -= len(sample[0])
    ids_RT = torch.zeros(len(rows), ROW_LENGTH, dtype=torch.long)
    position_RT = torch.zeros_like(ids_RT)
    segment_RT = torch.zeros_like(ids_RT)
    weight_RT = torch.zeros(len(rows), ROW_LENGTH)
    for r, row in enumerate(rows):
        at = 0
        for s, (ids, prompt) in enumerate(row, start=1):
            end = at + len(ids)
            ids_RT[r, at:end] = torch.tensor(ids)
            position_RT[r, at:end] = torch.arange(len(ids))
            segment_RT[r, at:end] = s
            weight_RT[r, at + prompt : end] = 1 / ((len(ids) - prompt) * len(batch))
            at = end
    causal_TT = torch.ones(ROW_LENGTH, ROW_LENGTH, dtype=torch.bool).tril()
    mask_RTT = (segment_RT[:, :, None] == segment_RT[:, None, :]) & causal_TT
    return {"ids": ids_RT, "position": position_RT, "mask": mask_RTT[:, None], "weight": weight_RT}


def loss_of(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch["ids"], position_ids=batch["position"], attention_mask=batch["mask"], use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["ids"][:, 1:].flatten(), reduction="none")
    return (nll * batch["weight"][:, 1:].flatten()).sum()


@torch.no_grad()
def pass_rates(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: int, attempts: int) -> dict[str, list[float]]:
    """Held-out pass rate per family and level: greedy where `attempts` is 1, else sampled at temperature 1."""
    import reasoning_gym

    rates: dict[str, list[float]] = {}
    model.eval()
    for family, levels in BUILTIN_LEVELS.items():
        score = reasoning_gym.get_score_answer_fn(family)
        for level in levels:
            rows: dict[str, dict] = {}
            stream = generate(family, level, SEED - 1)
            for _ in range(60 * tasks):
                row = next(stream)
                if is_heldout(row["question"]):
                    rows.setdefault(row["question"], row)
                if len(rows) == tasks:
                    break
            prompts = [f"<|user|>{q}<|assistant|>" for q in rows for _ in range(attempts)]
            encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
            torch.manual_seed(SEED)
            out = model.generate(**encoded, max_new_tokens=16, do_sample=attempts > 1, temperature=1.0, top_k=0)
            texts = tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
            entries = [json.loads(r["entry"]) for r in rows.values() for _ in range(attempts)]
            solved = [score(t, e) >= 1 for t, e in zip(texts, entries, strict=True)]
            rates.setdefault(family, []).append(round(sum(solved) / len(solved), 3))
    model.train()
    return rates


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [tutelage, reasoning-gym]
---

# The built-in student of tutelage

A stock Llama of {parameters:.2f} million parameters (4 layers, width 192, 6 heads) for comparing teaching methods on a laptop. It
answers eight reasoning-gym families directly, without a chain of thought, and knows nothing else.

Made by `scripts/make_student.py` from the seed {seed}: {steps:,} steps of {batch} freshly generated samples ({tokens:.1f} million
tokens), the answer's cross-entropy only, constant learning rate with a linear fall over the last {decay:,} steps, one thread in bfloat16
autocast. In {guess_steps} further steps 35 % of the answers shown are those of another question of the same kind, so that the student
guesses as base models do: its samples are worse than its greedy answers, and reinforcement has something to sharpen. Its tokenizer
knows single characters, and each family's fixed wording as one token. Questions whose hash falls in the held-out eighth
(`tutelage.tasks.reasoning_gym.is_heldout`) were never shown; the rates below are measured on them alone.

## What it can do

Held-out pass rate at temperature 1 (50 tasks, 8 attempts), and greedy (100 tasks) in brackets, by level:

| family | 1 | 2 | 3 | 4 |
|---|---|---|---|---|
{rows}

Licence: Apache-2.0. The questions come from reasoning-gym's generators (Apache-2.0).
"""


def card(record: dict[str, Any], parameters: int) -> str:
    """The model card of a training record."""
    pairs = {f: zip(record["sampled"][f], record["greedy"][f], strict=True) for f in record["sampled"]}
    rows = "\n".join(f"| {f} | " + " | ".join(f"{s:.2f} ({g:.2f})" for s, g in levels) + " |" for f, levels in pairs.items())
    numbers = {
        "tokens": record["tokens"] / 1e6,
        "parameters": parameters / 1e6,
        "batch": record["samples"] // (record["steps"] + record["guess_steps"]),
    }
    return CARD.format(**(record | numbers), rows=rows)


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Constant after a warm-up of 200 steps with a linear fall at the end; then the guessing stage, a linear fall of its own."""
    if step >= args.steps:
        return args.guess_lr * (args.steps + args.guess_steps - step) / args.guess_steps
    return args.lr * min(1.0, (step + 1) / 200, (args.steps - step) / args.decay)


def finish(args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seen: int) -> None:
    """Save the student, measure it on held-out tasks, and write its record and card."""
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    greedy, sampled = pass_rates(model, tokenizer, 100, 1), pass_rates(model, tokenizer, 50, 8)
    record = {
        "seed": SEED,
        "steps": args.steps,
        "decay": args.decay,
        "guess_steps": args.guess_steps,
        "samples": (args.steps + args.guess_steps) * args.batch,
        "tokens": seen,
        "greedy": greedy,
        "sampled": sampled,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "README.md").write_text(card(record, sum(p.numel() for p in model.parameters())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log; a run there is continued")
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--decay", type=int, default=850, help="steps over which the learning rate falls to zero at the end")
    parser.add_argument("--guess-steps", type=int, default=250, help="steps of the last stage, in which a share of the answers is wrong")
    parser.add_argument("--guess-lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    checkpoint = args.work / "checkpoint.pt"
    first, seen = 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seen = state["step"], state["seen"]
    model.train()
    started, chunk = time.time(), 250
    total = args.steps + args.guess_steps
    for step in range(first, total):
        if step in (first, args.steps) or step % chunk == 0:
            stream = samples(tokenizer, step, GUESSES if step >= args.steps else 0.0)
        batch = pack([next(stream) for _ in range(args.batch)])
        seen += int((batch["position"] > 0).sum()) + args.batch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 50 == 0:
            print(f"step {done} loss {loss.item():.4f} tokens {seen / 1e6:.1f}M {time.time() - started:.0f}s", flush=True)
        if done % chunk == 0 or done in (args.steps, total):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "seen": seen}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if done % 500 == 0:
            print(json.dumps(pass_rates(model, tokenizer, 32, 1)), flush=True)
    finish(args, model, tokenizer, seen)


if __name__ == "__main__":
    main()
