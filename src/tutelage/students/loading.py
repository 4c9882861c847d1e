"""Loading a causal language model and its tokenizer by directory or name, with errors that say what is wrong with the directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, missing_extra
from tutelage.students import builtin_path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "vocab.txt")


def load_model(name: str | Path, *, dtype: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of "builtin", a directory as `save_pretrained` writes it, or a name on the hub.

    dtype: as transformers names it ("float32", "bfloat16", "auto"); without it float32 on a CPU, the checkpoint's own type elsewhere. A
    tokenizer without a padding token pads with its end token. A directory without model or tokenizer raises `TutelageError`.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "transformers", "lm") from None
    path = str(builtin_path()) if name == "builtin" else str(name)
    if name != "builtin" and Path(path).is_dir():
        _check_model_directory(Path(path))
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        default = "auto" if torch.cuda.is_available() else torch.float32
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or default)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TutelageError(
            f"Cannot load the model {path!r}: {reason} Give a directory as save_pretrained writes it, or a name on the "
            "Hugging Face hub that this machine can reach."
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _check_model_directory(path: Path) -> None:
    present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    if not (path / "config.json").exists():
        raise TutelageError(f"{path} is not a model directory: it has no config.json (it holds {present}).")
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise TutelageError(
            f"The model directory {path} has no tokenizer (it holds {present}). Save the tokenizer beside the model: "
            f"tokenizer.save_pretrained({str(path)!r})."
        )
