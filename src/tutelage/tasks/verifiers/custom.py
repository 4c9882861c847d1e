"""Verifiers of the user's own, and the one door to all: `resolve`."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors import TutelageError, unknown
from tutelage.registry import verifiers
from tutelage.tasks.verifiers.base import Judgement, Verifier, as_judgement


def resolve(spec: str, /, **config: Any) -> Verifier:
    """The verifier that a registered name or `module:function` stands for, built with `config`.

    A user's function takes `(completion: str, task: Mapping)` and returns a `Judgement`, a bool or a number in [0, 1]; `config` is passed
    on as keyword arguments. Its module may lie in the current directory, which goes to the front of `sys.path` as under `python -m`.
    """
    if ":" not in spec:
        try:
            return verifiers.build(spec, **config)
        except TutelageError as error:
            if spec in verifiers.names():
                raise
            raise TutelageError(f"{error} A verifier of your own is given as module:function.") from None
    function = load_function(spec)
    _check_call(spec, function, config)
    return functools.partial(_custom, functools.partial(function, **config) if config else function)


def _custom(function: Callable[..., Any], completion: str, task: Mapping[str, Any]) -> Judgement:
    return as_judgement(function(completion, task), completion)


def load_function(spec: str) -> Callable[..., Any]:
    """Import `module:function`; what is missing raises `TutelageError`."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise TutelageError(f"{spec!r} is not of the form module:function, for instance my_rewards:grade for grade() in my_rewards.py.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its directory
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise TutelageError(
                f"Importing {module_name!r} for {spec!r} failed: it needs the module {error.name!r}, which is not installed."
            ) from error
        raise TutelageError(
            f"There is no module {module_name!r} for {spec!r} in {here} or among the installed packages. "
            "Run the command from the directory that holds it, and leave out '.py'."
        ) from None
    except Exception as error:
        raise TutelageError(f"Importing {module_name!r} for {spec!r} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise unknown(f"function of module {module_name!r}:", name, [n for n, v in vars(module).items() if callable(v) and n[0] != "_"])
    function = getattr(module, name)
    if not callable(function):
        raise TutelageError(f"{spec!r} is a {type(function).__name__}, not a function (completion, task) -> Judgement, bool or number.")
    return function


def _check_call(spec: str, function: Callable[..., Any], config: Mapping[str, Any]) -> None:
    """Say before a run, not in it, that a function cannot be called as verifiers are."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some built-in functions have none
        return
    try:
        signature.bind("completion", {}, **config)
    except TypeError as error:
        given = ", ".join(["completion", "task", *(f"{key}={value!r}" for key, value in config.items())])
        raise TutelageError(f"{spec!r} has the signature {signature} and cannot be called with ({given}): {error}.") from None
