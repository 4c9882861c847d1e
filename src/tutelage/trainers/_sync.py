"""Rank 0 decides, everybody hears of it; everybody reports, rank 0 hears all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from tutelage.errors import TutelageError

T = TypeVar("T")


def decide(choose: Callable[[], T]) -> T:
    """Run `choose` on rank 0 and return its value on every rank. An error of rank 0 is raised on every rank, so that none waits."""
    state = PartialState()
    if state.num_processes == 1:
        return choose()
    message: list[Any] = [None, None]
    error: Exception | None = None
    if state.is_main_process:
        try:
            message[0] = choose()
        except Exception as caught:
            error = caught
            message[1] = f"{type(caught).__name__}: {caught}"
    broadcast_object_list(message, from_process=0)
    if error is not None:
        raise error
    if message[1] is not None:
        raise TutelageError(f"Rank 0 could not decide. {message[1]}")
    return message[0]


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all ranks, one after the other in the order of ranks."""
    return gather_object(values) if PartialState().num_processes > 1 else values


def agree(error: Exception | None) -> None:
    """Raise on every rank if any rank has an error."""
    errors = gathered([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    rank = next((r for r, e in enumerate(errors) if e is not None), None)
    if rank is not None:
        raise TutelageError(f"Rank {rank} failed. {errors[rank]}")


def barrier() -> None:
    """Wait for every rank."""
    PartialState().wait_for_everyone()
