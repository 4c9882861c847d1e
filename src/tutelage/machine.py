"""What this machine has."""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def cores() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_jobs() -> int:
    """One worker process per core, at most four: each holds a copy of what it works with."""
    return min(4, cores())


def keep_memory() -> None:
    """Let malloc keep up to 64 MB of what is freed; elsewhere than under glibc this does nothing.

    By default glibc gives the temporaries of every chunk of numbers back to the system, and every page of the next one is a fault: half
    of the time of a calculation that streams. For commands and worker processes, not for a library to do to its caller.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
