"""Tiny checkpoints for the tests of edits, written with the real packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def save(folder: Path, tensors: dict[str, np.ndarray], **config) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def random(seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "model.embed_tokens.weight": rng.normal(size=(32, 8)).astype(dtype),
        "model.layers.0.mlp.weight": rng.normal(size=(8, 16)).astype(dtype),
        "model.norm.weight": rng.normal(size=8).astype(dtype),
        "model.scalar": np.asarray(rng.normal()).astype(dtype),
        "model.steps": np.arange(4),
    }


def llama(folder: Path, *, seed: int, tied: bool = False) -> Path:
    """A bfloat16 model of a stock configuration, saved by transformers in several shards."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="6KB")
    return folder
