"""What this machine has."""

from __future__ import annotations

import os


def cores() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_jobs() -> int:
    """One worker process per core, at most four: each holds a copy of what it works with."""
    return min(4, cores())
