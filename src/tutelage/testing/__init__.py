"""Batteries that anybody can run on their own parts: what the library promises of a part, as checks.

    from tutelage.testing import check_curriculum

    def test_mine():
        check_curriculum(lambda pool, seed: MyCurriculum(pool, seed=seed))

Everything here is imported on first use, so that checking a curriculum needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "CheckResult": "curricula",
    "OverSpaces": "curricula",
    "check_space_curriculum": "curricula",
    "check_curriculum": "curricula",
    "curriculum_checks": "curricula",
    "parametrize_with_checks": "curricula",
    "check_objective": "objectives",
    "AuditRates": "audits",
    "check_audit": "audits",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
