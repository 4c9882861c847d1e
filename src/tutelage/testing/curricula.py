"""The battery that every curriculum must pass, the library's own and yours.

    from tutelage.testing import check_curriculum, parametrize_with_checks

    def test_mine():
        check_curriculum(lambda pool, seed: MyCurriculum(pool, seed=seed))

or one test per check, as pytest shows them best:

    @parametrize_with_checks({"mine": lambda pool, seed: MyCurriculum(pool, seed=seed)})
    def test_contract(check):
        check()

A curriculum over a `TaskSpace` has `check_space_curriculum`, whose factory takes a space and a seed (`OverSpaces(factory)` marks one for
`parametrize_with_checks`): the same promises where they apply, and those of points, returns and the ledger of proposals. Spaces have one
to five parameters.

A factory takes a pool and a seed. The pools have integer or string keys, one arm column and a prior difficulty; a simulated student fills
every column of `Outcomes` and, for signals that the curriculum declares, one number per task.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.curricula._base import Curriculum
from tutelage.errors import unknown
from tutelage.spaces import TaskSpace
from tutelage.testing import _lesson_checks, _space_checks, _state_checks
from tutelage.testing._lessons import Factory, OverSpaces

Status = Literal["passed", "failed", "expected failure"]
CHECKS: dict[str, Callable[[Factory], None]] = {
    name: check for module in (_lesson_checks, _state_checks) for name, check in vars(module).items() if name.startswith("check_")
}

SPACE_CHECKS: dict[str, Callable[[Any], None]] = {
    **{name: CHECKS[name] for name in _space_checks.SHARED},
    **{name: check for name, check in vars(_space_checks).items() if name.startswith("check_")},
}


@dataclass(frozen=True)
class CheckResult:
    """How one check went. `error` is what it raised; `reason` why a failure was expected."""

    name: str
    status: Status
    error: Exception | None = None
    reason: str = ""


def curriculum_checks(factory: Factory | OverSpaces) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a curriculum as (name, function without arguments that raises on failure)."""
    for name, check in _checks_for(factory).items():
        yield name, functools.partial(check, factory)


def _checks_for(factory: Factory | OverSpaces) -> dict[str, Callable[[Any], None]]:
    return SPACE_CHECKS if isinstance(factory, OverSpaces) else CHECKS


def check_curriculum(
    factory: Factory | OverSpaces, *, expected_failed_checks: Mapping[str, str] | None = None, on_fail: Literal["raise", "return"] = "raise"
) -> list[CheckResult]:
    """Run every check on a curriculum and return the results.

    factory: builds the curriculum from a pool and a seed; called many times. expected_failed_checks: reasons by name of check, for promises
    that the curriculum breaks by design; one that passes after all counts as failed, so that the list stays true. on_fail: "raise" one
    AssertionError that tells of all failures, or "return" the results only.
    """
    expected = dict(expected_failed_checks or {})
    for name in expected:
        if name not in _checks_for(factory):
            raise unknown("check", name, _checks_for(factory))
    results = [_result(name, check, expected.get(name)) for name, check in curriculum_checks(factory)]
    failed = [result for result in results if result.status == "failed"]
    if failed and on_fail == "raise":
        lines = [f"  {r.name}: {type(r.error).__name__}: {r.error}" for r in failed]
        raise AssertionError("\n".join([f"{len(failed)} of {len(results)} checks failed:", *lines])) from failed[0].error
    return results


def check_space_curriculum(
    factory: Callable[[TaskSpace, int], Curriculum],
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "return"] = "raise",
) -> list[CheckResult]:
    """`check_curriculum` for a curriculum over spaces; the factory builds it from a `TaskSpace` and a seed."""
    return check_curriculum(OverSpaces(factory), expected_failed_checks=expected_failed_checks, on_fail=on_fail)


def _result(name: str, check: Callable[[], None], reason: str | None) -> CheckResult:
    try:
        check()
    except Exception as error:  # whatever a foreign curriculum raises
        return CheckResult(name, "failed" if reason is None else "expected failure", error, reason or "")
    if reason is None:
        return CheckResult(name, "passed")
    return CheckResult(name, "failed", AssertionError(f"expected to fail ({reason}), but passes: strike it from the list"), reason)


def parametrize_with_checks(
    factories: Mapping[str, Factory | OverSpaces], *, expected_failed_checks: Mapping[str, Mapping[str, str]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A pytest decorator that hands every check of every curriculum to a test with the one argument `check`.

    factories: by the name to show. expected_failed_checks: for a name, reasons by check; these become strict xfails.
    """
    import pytest

    expected = expected_failed_checks or {}
    cases = []
    for name, factory in factories.items():
        for check_name, check in curriculum_checks(factory):
            reason = expected.get(name, {}).get(check_name)
            marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True),)
            cases.append(pytest.param(check, id=f"{name}-{check_name}", marks=marks))
    return pytest.mark.parametrize("check", cases)
