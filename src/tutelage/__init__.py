"""Tutelage: what should the model learn next, who should teach it, and can the teaching be trusted.

import numpy as np, tutelage as tt
pool = tt.TaskPool(arm=arm_N, difficulty=difficulty_N)
cur = tt.curriculum("sec", pool, seed=0)
rows_N = cur.propose(64)
cur.observe(tt.Outcomes.of(pool, rows_N, solved=solved_NG, step=0))
"""

from __future__ import annotations

from typing import Any

from tutelage.curricula._base import Curriculum, Wants, migrate
from tutelage.errors import TutelageError
from tutelage.outcomes import Kind, Outcomes, group_advantage
from tutelage.pools import Arms, TaskPool
from tutelage.spaces import TaskSpace

__version__ = "0.1.0"
__all__ = [
    "Arms",
    "Curriculum",
    "Kind",
    "Outcomes",
    "TaskPool",
    "TaskSpace",
    "TutelageError",
    "Wants",
    "curriculum",
    "group_advantage",
    "migrate",
]


def curriculum(name: str, pool: TaskPool | TaskSpace, *, seed: int = 0, **hyperparameters: Any) -> Curriculum:
    """Build a curriculum by name over a pool, or over a `TaskSpace` or Gymnasium `Box`.

    `tutelage ls` lists the names, `tutelage show NAME` the hyperparameters.
    """
    from tutelage.registry import curricula

    return curricula.build(name, pool, seed=seed, **hyperparameters)
