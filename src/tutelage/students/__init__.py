"""Students: the built-in small language model, and small architectures that papers introduce."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import TutelageError


def builtin_path() -> Path:
    """The directory of the built-in student: a stock Llama of 1.8 M parameters with tokenizer, chat template and card."""
    path = Path(__file__).parent / "builtin"
    if not (path / "model.safetensors").exists():
        raise TutelageError(f"The built-in student is missing from {path}. Reinstall tutelage, or make it with scripts/make_student.py.")
    return path
