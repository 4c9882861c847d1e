"""A language model of a few thousand parameters, its tokenizer and its tasks, built in code: the student of the trainer tests."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # TRL asks the hub for nothing when it is set
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, SFTConfig

import tutelage as tt

torch.set_num_threads(1)
warnings.filterwarnings("ignore")

CHAT = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}{% if m['role'] == 'assistant' %}{{ '$' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of a small alphabet; `$` ends, `_` pads."""
    characters = ["_", "$", "?", *"abcdefghijklmnopqrstuvwxyz0123456789:=+ "]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="_", eos_token="$", unk_token="?", padding_side="left")
    fast.chat_template = CHAT
    return fast


def model(seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=43, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0, attention_dropout=dropout,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def saved(path: Path | str, seed: int = 0) -> str:
    """The model in a directory: a reference model is loaded from where the policy came from."""
    model(seed).save_pretrained(path)
    return str(path)


def tasks(size: int = 24, arms: int = 3, chat: bool = False) -> tuple[Dataset, tt.TaskPool]:
    """Prompts `00=`, `01=`, ... with their number and arm, and the pool over them."""
    prompts: list[Any] = [f"{i:02d}=" for i in range(size)]
    if chat:
        prompts = [[{"role": "user", "content": p}] for p in prompts]
    arm = [i % arms for i in range(size)]
    return Dataset.from_dict({"prompt": prompts, "number": list(range(size)), "level": arm}), tt.TaskPool(arm=arm)


def texts(completions: list[Any]) -> list[str]:
    return [c if isinstance(c, str) else c[0]["content"] for c in completions]


def digits(completions: list[Any], **columns: Any) -> list[float]:
    """Share of the completion's characters that are digits: depends on the model, and can be learned."""
    return [sum(c.isdigit() for c in t) / max(len(t), 1) for t in texts(completions)]


def has_a(completions: list[Any], **columns: Any) -> list[float]:
    """1 where the completion holds an `a`."""
    return [float("a" in t) for t in texts(completions)]


def grpo_config(path: Path | str, **options: Any) -> GRPOConfig:
    """Settings of a run that takes about a second."""
    defaults: dict[str, Any] = {
        "output_dir": str(path), "max_steps": 4, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6,
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip
    return GRPOConfig(**defaults | options)


def sft_config(path: Path | str, **options: Any) -> SFTConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(path), "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip
    return SFTConfig(**defaults | options)


def weights(net: torch.nn.Module) -> np.ndarray:
    """All parameters as one vector of bits."""
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()]).view(np.uint32)
