"""Monitors of behaviour: does a completion show what nobody asked for? Functions of the text alone.

shows = monitor("HAB")                     the text holds this word or string
shows = monitor("refusal")                 it declines to answer (`tutelage.tasks.verifiers.refused`)
shows = monitor("my_module:my_function")   a function text -> bool, for instance around a moderation model
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tutelage.errors import TutelageError
from tutelage.tasks.verifiers.answers import refused
from tutelage.tasks.verifiers.custom import load_function

REFUSAL = "refusal"

Monitor = Callable[[str], bool]


def monitor(spec: str) -> Monitor:
    """The monitor that `refusal`, `module:function` or a fixed string stands for.

    A spec with a colon between names of Python is a function. One that is missing, or cannot be called with one text, raises
    `TutelageError` before anything is read.
    """
    if not spec.strip():
        raise TutelageError("The behaviour is empty. Name what is unwanted: refusal, module:function, or a string that completions hold.")
    if spec == REFUSAL:
        return refused
    module, colon, name = spec.partition(":")
    if colon and name.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        function = load_function(spec)
        _check_call(spec, function)
        return lambda text: _as_bool(function(text), spec)
    return lambda text: spec in text


def _check_call(spec: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some built-in functions have none
        return
    try:
        signature.bind("completion")
    except TypeError as error:
        raise TutelageError(f"{spec!r} has the signature {signature} and cannot be called with one completion: {error}.") from None


def _as_bool(value: Any, spec: str) -> bool:
    if value is True or value is False or (hasattr(value, "dtype") and value.dtype == bool):
        return bool(value)
    raise TutelageError(f"The behaviour {spec!r} must return True or False; got {value!r} of type {type(value).__name__}.")
