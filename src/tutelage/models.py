"""Opening a causal language model and its tokenizer: a model directory as `save_pretrained` writes it, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError, missing_extra

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "vocab.txt")


def load_model(path: str, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) in float32 on a CPU, in the checkpoint's own type elsewhere; a tokenizer without padding pads with its end token.

    options: for `AutoModelForCausalLM.from_pretrained`, such as `dtype`.

    Raises:
        TutelageError: a directory that holds no model or no tokenizer, or a name that cannot be reached.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "transformers", "lm") from None
    if Path(path).is_dir():
        check_model_directory(Path(path))
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, **{"dtype": "auto" if torch.cuda.is_available() else torch.float32, **options})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TutelageError(
            f"Cannot load the model {path!r}: {reason} Give a directory as save_pretrained writes it, or a name on the "
            "Hugging Face hub that this machine can reach."
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def check_model_directory(path: Path) -> None:
    """Raise unless the directory holds a configuration and a tokenizer."""
    present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    if not (path / "config.json").exists():
        raise TutelageError(f"{path} is not a model directory: it has no config.json (it holds {present}).")
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise TutelageError(
            f"The model directory {path} has no tokenizer (it holds {present}). Save the tokenizer beside the model: "
            f"tokenizer.save_pretrained({str(path)!r})."
        )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
