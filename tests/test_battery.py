"""The battery itself: every registered curriculum passes it, and each broken promise fails its check."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import tutelage as tt
from tutelage import Outcomes, TaskPool, TutelageError, Wants
from tutelage.curricula._draws import Deck, draw_arms, softmax
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.registry import curricula
from tutelage.testing import check_curriculum, curriculum_checks, parametrize_with_checks

Row = np.ndarray


# --- what passes


def named(name: str, **hyperparameters: Any) -> Callable[[TaskPool, int], tt.Curriculum]:
    return lambda pool, seed: tt.curriculum(name, pool, seed=seed, **hyperparameters)


VARIANTS = {
    "sec-textbook": named("sec", decay_unseen=False, policy="greedy", alpha=1.0),
    "sec-unnormalised": named("sec", signal="unnormalised", policy="proportional"),
    "sec-progress": named("sec", signal="progress", tau=0.1),
    "dump-prompts": named("dump", count="prompts", exploration=0.0),
    "dump-short-window": named("dump", window=4),
    "mixture-weighted": lambda pool, seed: tt.curriculum("mixture", pool, seed=seed, weights={pool.arms().names[0]: 1.0}),
    "odf-strict": named("odf", window="strict"),
    "odf-all": named("odf", low=0.0, high=1.0),
    "adcl-predefined": named("adcl", rescore=None, batches=1, attempts=1),
    "adcl-partition": named("adcl", rescore="partition", order="random"),
    "adcl-all-descending": named("adcl", rescore="all", order="descending", batches=100),
    "adcl-prior": named("adcl", initial="prior", draws=40),
    "easy_to_hard-stepped": named("easy_to_hard", steps=3, pacing="step", start=0.01),
}


OVER_POOLS = [name for name in curricula.names() if not issubclass(curricula.get(name).target, SpaceCurriculum)]


@parametrize_with_checks({name: named(name) for name in OVER_POOLS})
def test_registered_curricula(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VARIANTS)
def test_registered_curricula_with_other_hyperparameters(check: Callable[[], None]) -> None:
    check()


class Sound(tt.Curriculum):
    """Prefers arms with a low pass rate: a small curriculum that keeps every promise, and the base of those that break one."""

    name = "sound"
    needs = frozenset({"solved_NG"})
    memory: ClassVar[tuple[str, ...]] = ("value_A",)

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed, config={"rate": 0.5})
        self.value_A = np.zeros(len(self.arms))

    def _propose(self, n: int) -> Row:
        arm_N = draw_arms(softmax(-self.value_A, 0.3), n, self.rng)
        return self.arms.rows(arm_N, self.rng.integers(self.arms.size_A[arm_N]))

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        rate_N = outcomes.pass_rate_N
        known_N = ~np.isnan(rate_N)
        arm_N = self._arm_of(outcomes)[known_N]
        count_A = np.bincount(arm_N, minlength=len(self.value_A))
        mean_A = np.bincount(arm_N, rate_N[known_N], len(self.value_A)) / np.maximum(count_A, 1)
        self.value_A = np.where(count_A > 0, 0.5 * self.value_A + 0.5 * mean_A, self.value_A)

    @property
    def metrics(self) -> dict[str, float]:
        return {"value": float(self.value_A.mean())}


class Measured(Sound):
    """Asks for a signal before every lesson, and proposes where it is largest."""

    name = "measured"
    needs = frozenset({"solved_NG", "signals/loss"})
    memory = ("value_A", "best_R")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.best_R = np.zeros(0, dtype=np.int64)

    def wants(self) -> Wants:
        return Wants((np.arange(5) * 7 + self.lessons) % len(self.pool), attempts=2, signals=("loss",))

    def _propose(self, n: int) -> Row:
        return np.concatenate([super()._propose(n), self.best_R])[-n:]

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        if probe:
            order = np.argsort(outcomes.signals["loss"], kind="stable")
            self.best_R = self.pool.rows_of(outcomes.key_N[order[-2:]])


@pytest.mark.parametrize("sound", [Sound, Measured])
def test_a_sound_curriculum_passes(sound: type[Sound]) -> None:
    results = check_curriculum(lambda pool, seed: sound(pool, seed=seed))
    assert {result.status for result in results} == {"passed"}
    assert len(results) == len(list(curriculum_checks(lambda pool, seed: sound(pool, seed=seed))))


# --- what fails


class Nameless(Sound):
    name = ""


class Misspelt(Sound):
    needs = frozenset({"solved"})

    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        if outcomes.solved_NG is None:
            raise TutelageError("no solved_NG")
        self._observe(outcomes, probe=probe)


class AtMostThePool(Sound):
    def propose(self, n: int) -> Row:
        return super().propose(min(n, len(self.pool)))


class SmallIntegers(Sound):
    def propose(self, n: int) -> Row:
        return super().propose(n).astype(np.int32)


class AnyNumber(Sound):
    def propose(self, n: int) -> Row:
        return super().propose(n) if n > 0 else np.zeros(0, dtype=np.int64)


class ForgetsTheLastRow(Sound):
    def _propose(self, n: int) -> Row:
        return self.rng.integers(len(self.pool) - 1, size=n)


class AsksOnce(Sound):
    """Moves its generator on whenever it is asked what it wants."""

    def wants(self) -> None:
        self.rng.random()


class AsksWithSmallIntegers(Sound):
    def wants(self) -> Wants:
        return Wants(np.array([3], dtype=np.int32))


class KeysAreNumbers(Sound):
    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        assert (outcomes.key_N.astype(int) >= 0).all()


class SortsThePool(Sound):
    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        assert pool.difficulty_N is not None
        pool.difficulty_N.sort()
        super().__init__(pool, seed=seed)


class Fickle(Sound):
    def _propose(self, n: int) -> Row:
        return np.random.default_rng().integers(len(self.pool), size=n)


class Shared(Sound):
    """All instances count in one place."""

    lessons_of_all: ClassVar[list[int]] = [0]

    def _propose(self, n: int) -> Row:
        self.lessons_of_all[0] += 1
        return (super()._propose(n) + self.lessons_of_all[0]) % len(self.pool)


class OneSeed(Sound):
    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.rng = np.random.default_rng(0)


class Global(Sound):
    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        random.random()


class GlobalNumpy(Sound):
    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        np.random.seed(seed)  # noqa: NPY002 - the mistake to be found


class CountsLessons(Sound):
    memory = ("value_A", "seen")
    seen = 0

    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        super().observe(outcomes, probe=probe)
        self.seen += 1


class DividesByFailures(Sound):
    memory = ("value_A", "ratio")
    ratio = 0.0

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        self.ratio = 0.0
        if len(outcomes) > 8 and np.isfinite(outcomes.solved_NG).all():
            with np.errstate(divide="ignore"):
                self.ratio = float(outcomes.solved_NG.sum() / (1 - outcomes.solved_NG).sum())

    @property
    def metrics(self) -> dict[str, float]:
        return {"ratio": float(self.ratio)}


class DividesBySuccesses(DividesByFailures):
    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        Sound._observe(self, outcomes, probe=probe)
        if len(outcomes) > 8 and not np.any(outcomes.solved_NG):
            raise ZeroDivisionError("no successes")


class PoisonedByNaN(Sound):
    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        self.value_A = self.value_A + outcomes.solved_NG.mean()


class OneGroupSize(Sound):
    memory = ("value_A", "attempts")
    attempts = 0

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        assert self.attempts in (0, outcomes.solved_NG.shape[1]), "the group size changed"
        self.attempts = outcomes.solved_NG.shape[1]


class OnceEach(Sound):
    """Deals without replacement, and takes no task twice in a lesson."""

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.deck = Deck(np.array([len(pool)]), seed)

    def _propose(self, n: int) -> Row:
        return self.deck.draw(np.zeros(n, dtype=np.int64))

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        assert len(set(outcomes.key_N)) > len(outcomes) // 2, "a task came twice"


class ByPosition(Sound):
    """Takes the first outcome for its first proposal, and so on."""

    memory = ("value_A", "last_N")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.last_N = np.zeros(0, dtype=np.int64)

    def propose(self, n: int) -> Row:
        self.last_N = super().propose(n)
        return self.last_N.copy()

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        rows_N = np.resize(self.last_N, len(outcomes))
        super()._observe(Outcomes.of(self.pool, rows_N, step=outcomes.step, solved=outcomes.solved_NG), probe=probe)


class Unchecked(Sound):
    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        if len(outcomes):
            outcomes.solved_NG.mean()  # an AttributeError where the column is missing
            self._observe(outcomes, probe=probe)


class LooksAround(Sound):
    """Uses a column that it has not declared."""

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        if outcomes.length_NG is not None:
            self.value_A = self.value_A + outcomes.length_NG.mean() / 100 * np.arange(len(self.value_A))


class WritesToOutcomes(Sound):
    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        outcomes.solved_NG[:, 0] = 0.5


class KeepsTheOutcomes(Sound):
    memory = ("value_A", "last_NG")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.last_NG = np.zeros((0, 0))

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        self.last_NG = outcomes.solved_NG


class AdmitsByChance(Sound):
    def admit(self, outcomes: Outcomes) -> Row:
        return self.rng.random(len(outcomes)) < 0.5


class AdmitsWithNumbers(Sound):
    def admit(self, outcomes: Outcomes) -> Row:
        return np.ones(len(outcomes))


class AdmitsWithoutAsking(Sound):
    def admit(self, outcomes: Outcomes) -> Row:
        return outcomes.solved_NG.max(axis=1, initial=0) >= 0


class UndefinedAtFirst(Sound):
    @property
    def metrics(self) -> dict[str, float]:
        return {"value_per_lesson": self.value_A.mean() / self.lessons if self.lessons else float("nan")}


class CountsInMetrics(Sound):
    @property
    def metrics(self) -> dict[str, float]:
        return {"lessons": self.lessons}


class KeepsASet(Sound):
    memory = ("value_A", "seen")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.seen: set[str] = set()


class GivesItsArrays(Sound):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["memory"]["value_A"] = self.value_A
        return state


class TakesForeignArrays(Sound):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.value_A = state["memory"]["value_A"]


class GivesItsProposals(Sound):
    """Returns the very rows that it decides by next time."""

    memory = ("value_A", "last_N")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.last_N = np.zeros(0, dtype=np.int64)

    def _propose(self, n: int) -> Row:
        self.last_N = (super()._propose(n) + self.last_N[:1].sum()) % len(self.pool)
        return self.last_N


class Forgetful(Sound):
    memory = ()


class AddsWhenLoading(Sound):
    """Loads on top of what it has."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        old_A = self.value_A
        super().load_state_dict(state)
        self.value_A = np.maximum(old_A, self.value_A)


class OnePerTask(Sound):
    memory = ("value_A", "seen_N")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.seen_N = np.zeros(len(pool), dtype=bool)


class KeepsAHistory(Sound):
    memory = ("value_A", "history")

    def __init__(self, pool: TaskPool, *, seed: int = 0) -> None:
        super().__init__(pool, seed=seed)
        self.history: list[float] = []

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        super()._observe(outcomes, probe=probe)
        self.history.append(float(outcomes.step))


class LoadsAnything(Sound):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restore(state)


class LoadsThenLooks(Sound):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "memory" in state and len(state["memory"]["value_A"]) == len(self.value_A):
            self.value_A = np.array(state["memory"]["value_A"])
        super().load_state_dict(state)


SAME_TWICE = {"check_deterministic", "check_declared_columns_suffice", "check_keys_not_positions", "check_state_is_a_copy"}
DISK = {"check_resume", "check_string_keys", "check_load_replaces_everything"}
BROKEN: dict[type[Sound], set[str]] = {
    Nameless: {"check_declaration"},
    Misspelt: {"check_declaration", "check_declared_columns_suffice"},
    AtMostThePool: {"check_proposals"},
    SmallIntegers: {"check_proposals"},
    AnyNumber: {"check_proposals"},
    ForgetsTheLastRow: {"check_one_task"},
    AsksOnce: {"check_wants"},
    AsksWithSmallIntegers: {"check_wants", "check_one_task"},
    KeysAreNumbers: {"check_string_keys"},
    SortsThePool: {"check_pool_untouched"},
    Fickle: SAME_TWICE | DISK,
    Shared: SAME_TWICE | DISK,
    OneSeed: {"check_seed_matters"},
    Global: {"check_global_rng"},
    GlobalNumpy: {"check_global_rng"},
    CountsLessons: {"check_empty_outcomes"},
    DividesByFailures: {"check_all_solved"},
    DividesBySuccesses: {"check_all_failed"},
    PoisonedByNaN: {"check_unscorable"},
    OneGroupSize: {"check_group_sizes"},
    OnceEach: {"check_repeated_tasks", "check_proposals", "check_one_task"},
    ByPosition: {"check_keys_not_positions"},
    Unchecked: {"check_missing_columns"},
    AdmitsWithoutAsking: {"check_missing_columns"},
    LooksAround: {"check_declared_columns_suffice"},
    WritesToOutcomes: {"check_outcomes_untouched"},
    KeepsTheOutcomes: {"check_outcomes_untouched"},
    AdmitsByChance: {"check_admit", "check_keys_not_positions"},
    AdmitsWithNumbers: {"check_admit"},
    UndefinedAtFirst: {"check_metrics"},
    CountsInMetrics: {"check_metrics"},
    KeepsASet: {"check_state_is_plain"} | DISK,
    GivesItsArrays: {"check_state_is_a_copy"},
    TakesForeignArrays: {"check_state_is_a_copy"},
    GivesItsProposals: {"check_state_is_a_copy"},
    Forgetful: DISK,
    AddsWhenLoading: {"check_load_replaces_everything"},
    OnePerTask: {"check_state_size"},
    KeepsAHistory: {"check_state_bounded_in_time"},
    LoadsAnything: {"check_foreign_state"},
    LoadsThenLooks: {"check_foreign_state"},
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_promise_fails_its_check(broken: type[Sound]) -> None:
    results = check_curriculum(lambda pool, seed: broken(pool, seed=seed), on_fail="return")
    assert {result.name for result in results if result.status == "failed"} == BROKEN[broken]


def test_every_check_is_known_to_fail() -> None:
    names = {name for name, _ in curriculum_checks(lambda pool, seed: Sound(pool, seed=seed))}
    assert set().union(*BROKEN.values()) == names


# --- the runner


@parametrize_with_checks(
    {"one-seed": lambda pool, seed: OneSeed(pool, seed=seed)},
    expected_failed_checks={"one-seed": {"check_seed_matters": "one order by design"}},
)
def test_expected_failures_become_strict_xfails(check: Callable[[], None]) -> None:
    check()


def test_all_failures_are_told_at_once() -> None:
    class Both(OneSeed, CountsInMetrics):
        """Breaks two promises."""

    with pytest.raises(AssertionError) as raised:
        check_curriculum(lambda pool, seed: Both(pool, seed=seed))
    message = str(raised.value)
    assert "2 of " in message
    assert "check_seed_matters: AssertionError: three seeds gave the same proposals" in message
    assert "check_metrics: AssertionError: the metric 'lessons' is of type int, not float" in message


def test_expected_failures_carry_their_reasons_and_must_fail() -> None:
    def one_seed(pool: TaskPool, seed: int) -> tt.Curriculum:
        return OneSeed(pool, seed=seed)

    results = check_curriculum(one_seed, expected_failed_checks={"check_seed_matters": "one order by design"})
    odd = [result for result in results if result.status != "passed"]
    assert [(r.name, r.status, r.reason) for r in odd] == [("check_seed_matters", "expected failure", "one order by design")]
    with pytest.raises(AssertionError, match=r"check_metrics: .*expected to fail \(for fun\), but passes: strike it from the list"):
        check_curriculum(one_seed, expected_failed_checks={"check_seed_matters": "one order by design", "check_metrics": "for fun"})
    with pytest.raises(TutelageError, match=r"Unknown check 'check_seeds_matter'\. Did you mean 'check_seed_matters'"):
        check_curriculum(one_seed, expected_failed_checks={"check_seeds_matter": "one order by design"})
