"""The battery over every registered curriculum of spaces, with small settings too, and checks that fail where a promise is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tutelage as tt
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.registry import curricula
from tutelage.testing import OverSpaces, check_space_curriculum, parametrize_with_checks

EVERY = [name for name in curricula.names() if issubclass(curricula.get(name).target, SpaceCurriculum)]  # type: ignore[arg-type]
NAMES = [name for name in EVERY if ".neural." not in curricula.get(name).target.__module__]  # those have tests of their own


def named(name: str, **hyperparameters: Any) -> OverSpaces:
    return OverSpaces(lambda space, seed: tt.curriculum(name, space, seed=seed, **hyperparameters))


def downhill(space: tt.TaskSpace, seed: int) -> tt.Curriculum:
    """Oracle for spaces of any size, from their upper corner."""
    step = tuple(-0.1 * tt.TaskSpace.of(space).range_D)
    return tt.curriculum("oracle", space, seed=seed, step=step, every=5, threshold=0.3, width=0.25)


SMALL: dict[str, Any] = {"fit_every": 20, "max_components": 3}
VARIANTS = {
    "alp-gmm-small": named("alp-gmm", **SMALL, criterion="aicc", reward_range=(0.0, 1.1)),
    "alp-gmm-never-random": named("alp-gmm", **SMALL, criterion="bic", random_share=0.0),
    "alp-gmm-forgets": named("alp-gmm", **SMALL, history=1),
    "again-released": named("again", **SMALL, test_every=25, tests=5, live=False),
    "covar-gmm-small": named("covar-gmm", **SMALL),
    "covar-gmm-absolute": named("covar-gmm", **SMALL, absolute=True, reward_range=(0.0, 1.0)),
    "riac-small": named("riac", window=12, score="population"),
    "riac-released": named("riac", window=12, score="alp_gap", leaves_only=True, mutation_share=0.5),
    "adr-small": named("adr", low=0.3, high=0.6, queue=2, step=0.05, boundary_share=0.9),
    "oracle-small": OverSpaces(downhill),
    "self-paced-small": named("self-paced", update_every=7, update_offset=7, max_kl=0.3, zeta=0.5, reward_range=(0.0, 1.1)),
    "self-paced-asks": named("self-paced", update_every=9, update_offset=9, values="query", performance="return", std_floor=0.02),
    "again-alone": named("again", **SMALL, test_every=25, tests=5, reward_range=(0.0, 1.1)),
    "adr-relative": named("adr", low=0.3, high=0.6, queue=3, relative_step=True, reward_range=(0.0, 1.0)),
}


def test_what_is_registered() -> None:
    assert NAMES == ["adr", "again", "alp-gmm", "covar-gmm", "oracle", "random", "riac", "self-paced"]


BY_DESIGN = {"adr": {"check_seed_matters": "it starts as one point, and the battery's returns never reach its default of 180"}}


@parametrize_with_checks({name: named(name) for name in NAMES}, expected_failed_checks=BY_DESIGN)
def test_registered(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VARIANTS)
def test_with_other_hyperparameters(check: Callable[[], None]) -> None:
    check()


# --- the battery finds what is broken


class Drifting(SpaceCurriculum):
    """Draws around the last good point: sound, and the base of those that break a promise."""

    name = "drifting"
    memory = ("best_D", "best")

    def __init__(self, space: tt.TaskSpace, *, seed: int = 0) -> None:
        super().__init__(space, seed=seed)
        self.best_D, self.best = (self.space.low_D + self.space.high_D) / 2, -1.0

    def _propose(self, n: int) -> np.ndarray:
        return self.space.clip(self.best_D + 0.1 * self.space.range_D * self.rng.normal(size=(n, self.space.dimensions)))

    def _learn(self, points_ND: np.ndarray, reward_N: np.ndarray) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            if reward > self.best:
                self.best_D, self.best = point_D.copy(), float(reward)


class Forgets(Drifting):
    memory = ("best",)


class Leaves(Drifting):
    def propose(self, n: int) -> np.ndarray:
        return super().propose(n) + 2 * self.space.range_D


class KnowsNoReturns(Drifting):
    def _returns(self, outcomes: tt.Outcomes) -> np.ndarray:
        return np.nan_to_num(outcomes.reward_NG.mean(axis=1))


class LastWins(Drifting):
    """Remembers the last row of a lesson as it came."""

    def observe(self, outcomes: tt.Outcomes, *, probe: bool = False) -> None:
        super().observe(outcomes, probe=probe)
        if len(outcomes):
            self.best_D = outcomes.point_ND[-1].copy()


class TakesAnything(Drifting):
    """Learns from points that it never proposed."""

    def observe(self, outcomes: tt.Outcomes, *, probe: bool = False) -> None:
        self._check_columns(outcomes)
        if len(outcomes):
            self._learn(outcomes.point_ND, self._returns(outcomes))


class LogsNothing(Drifting):
    """Proposes past its log."""

    def propose(self, n: int) -> np.ndarray:
        log, self.log = self.log, None
        points_ND = super().propose(n)
        self.log = log
        return points_ND


def test_a_sound_one_passes() -> None:
    results = check_space_curriculum(lambda space, seed: Drifting(space, seed=seed))
    assert {r.status for r in results} == {"passed"}
    assert len(results) >= 26


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Forgets, "check_resume"),
        (Leaves, "check_points"),
        (KnowsNoReturns, "check_returns_are_finite"),
        (LastWins, "check_order_of_rows"),
        (TakesAnything, "check_never_proposed"),
        (LogsNothing, "check_trace"),
    ],
)
def test_a_broken_promise_fails_its_check(broken: type[Drifting], check: str) -> None:
    results = check_space_curriculum(lambda space, seed: broken(space, seed=seed), on_fail="return")
    assert check in [r.name for r in results if r.status == "failed"]


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(tt.TutelageError, match="Unknown check 'check_points_'"):
        check_space_curriculum(Drifting, expected_failed_checks={"check_points_": "no"})
