"""The curriculum contract: `wants`, `propose`, `observe`, `admit`, `state_dict` / `load_state_dict`, `metrics`.

A lesson runs: `wants()` (optional: measure these first, answered by `observe(..., probe=True)`) -> `propose(n)` -> rollouts ->
`observe` of all groups -> `admit` decides which of them train. A subclass writes `_propose` and `_observe` and lists the arrays that
make up its memory; checks, randomness, state and migration live here.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._draws import Deck
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.pools import Arms, TaskPool
from tutelage.spaces import is_space

SCHEMA = 1


@dataclass(frozen=True)
class Wants:
    """A request to measure rows now, before the next proposal: which rows, how many attempts each (0: signals only), and which signals.

    rows_N: rows of the pool, int64 (N,); of a curriculum over a `TaskSpace`, points, float64 (N, D).
    """

    rows_N: NDArray[Any]
    attempts: int = 1
    signals: tuple[str, ...] = ()


class Curriculum:
    """Base of all curricula.

    pool: the tasks. seed: of the curriculum's own generator. config: the hyperparameters, as they stand in the state's identity.
    Class attributes: `needs`, the columns of `Outcomes` that `observe` must find (fields by name, signals as "signals/<name>");
    `memory`, the attributes that make up the learned state; `by_arm`, those of them whose first axis is arms and that `migrate` carries
    over.
    """

    name: ClassVar[str] = ""
    needs: frozenset[str] = frozenset()  # an instance may set its own
    memory: ClassVar[tuple[str, ...]] = ()
    by_arm: ClassVar[tuple[str, ...]] = ()

    def __init__(self, pool: TaskPool, *, seed: int = 0, config: dict[str, Any] | None = None) -> None:
        if is_space(pool):
            raise TutelageError(
                f"The curriculum {self.name or type(self).__name__!r} teaches the tasks of a TaskPool; it got a continuous space "
                f"({type(pool).__name__}). Build a TaskPool, or choose a curriculum over spaces, such as 'random' or 'alp-gmm'."
            )
        self.pool = pool
        self._begin(seed, config)

    def _begin(self, seed: int, config: dict[str, Any] | None) -> None:
        """Seed, configuration and generator; common to curricula over pools and over spaces."""
        self.seed = int(seed)
        self.config = dict(config or {})
        label = int.from_bytes(blake2b(type(self).__name__.encode(), digest_size=4).digest(), "big")
        self.rng = np.random.default_rng([abs(self.seed), label])
        self.lessons = 0
        self.deck: Deck | None = None

    # The contract ---------------------------------------------------------------------------------------------------------------------

    def wants(self) -> Wants | None:
        """What to measure before the next proposal; None (the default) for nothing."""
        return None

    @classmethod
    def probes_per_draw(cls, **parameters: Any) -> float:
        """Attempts that `wants` costs for each task taught, as near as the hyperparameters tell; comparisons budget with it."""
        return 0.0

    def propose(self, n: int) -> NDArray[Any]:
        """Exactly `n` rows of the pool, int64."""
        if n < 1:
            raise TutelageError(f"propose(n) needs n of at least 1; got {n}.")
        rows_N = np.asarray(self._propose(int(n)), dtype=np.int64)
        if rows_N.shape != (n,) or (n and (rows_N.min() < 0 or rows_N.max() >= len(self.pool))):
            raise TutelageError(
                f"{type(self).__name__} proposed {rows_N.shape} rows where {n} of a pool of {len(self.pool)} were asked for."
            )
        self.lessons += 1
        return rows_N

    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        """Learn from a lesson: all groups, those to be rejected too. `probe` marks the answer to `wants`."""
        self._check_columns(outcomes)
        if len(outcomes):
            self._observe(outcomes, probe=probe)

    def _check_columns(self, outcomes: Outcomes) -> None:
        """Refuse outcomes without a column that the curriculum declares."""
        for column in sorted(self.needs):
            missing = column[8:] not in outcomes.signals if column.startswith("signals/") else getattr(outcomes, column) is None
            if missing:
                raise TutelageError(
                    f"The curriculum {self.name!r} needs the column {column}, which this lesson does not have. "
                    f"Present: {', '.join([*outcomes.columns(), *(f'signals/{s}' for s in outcomes.signals)])}."
                )

    def admit(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Which groups may train, shape (N,); pure. Default: all."""
        return np.ones(len(outcomes), dtype=bool)

    @property
    def filters(self) -> bool:
        """Whether `admit` can reject groups, so that a trainer prepares to refill."""
        return type(self).admit is not Curriculum.admit

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers worth logging, without a prefix."""
        return {}

    @property
    def arms(self) -> Arms:
        """The partition of the pool that this curriculum reasons about: by the columns of its hyperparameter `by`, where it has one."""
        return self.pool.arms(self.config.get("by"))

    # State ----------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to decide as an unbroken one: plain JSON values and numpy arrays."""
        memory = {name: copy.deepcopy(getattr(self, name)) for name in self.memory}
        return {**self._identity(), "lessons": self.lessons, "rng": self.rng.bit_generator.state, "memory": memory | self._deck_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s state; a state of another curriculum, configuration or pool raises and names the difference."""
        mine = self._identity()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            raise TutelageError(_difference(mine, theirs))
        missing = [key for key in ("lessons", "rng", "memory") if key not in state]
        missing += [name for name in (*self.memory, *self._deck_state()) if name not in state.get("memory", {})]
        if missing:
            raise TutelageError(
                f"This state of the curriculum {self.name!r} lacks {', '.join(missing)}; nothing was loaded. Was it cut short?"
            )
        self._restore(state)

    def _identity(self) -> dict[str, Any]:
        config = json.loads(json.dumps({**self.config, "seed": self.seed}, default=str))
        return {"schema": SCHEMA, "curriculum": self.name or type(self).__name__, "config": config, **self._tasks()}

    def _tasks(self) -> dict[str, str]:
        """What the curriculum teaches, for the state's identity."""
        return {"pool": self.pool.fingerprint}

    def _restore(self, state: dict[str, Any]) -> None:
        memory = state["memory"]
        restored = {name: _like(getattr(self, name), memory[name]) for name in self.memory}
        self.rng.bit_generator.state = state["rng"]
        self.lessons = int(state["lessons"])
        if self.deck is not None:
            self.deck.load(memory)
        for name, value in restored.items():
            setattr(self, name, value)

    def _deck_state(self) -> dict[str, Any]:
        return {} if self.deck is None else self.deck.state()

    # For subclasses -------------------------------------------------------------------------------------------------------------------

    def _propose(self, n: int) -> NDArray[Any]:
        raise TutelageError(f"{type(self).__name__} must define _propose(n).")

    def _observe(self, outcomes: Outcomes, *, probe: bool) -> None:
        """Nothing to learn, by default."""

    def _deal(self, arm_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the next unused tasks of these arms."""
        if self.deck is None:
            raise TutelageError(f"{type(self).__name__} has no deck to deal from.")
        return self.arms.rows(arm_N, self.deck.draw(arm_N))

    def _arm_of(self, outcomes: Outcomes) -> NDArray[np.int64]:
        """Arm codes of the outcomes' tasks in this curriculum's own partition."""
        return self.arms.arm_N[self.pool.rows_of(outcomes.key_N)].astype(np.int64)


def _like(old: Any, value: Any) -> Any:
    """A copy of `value` with the type (for arrays the dtype) of `old`."""
    if isinstance(old, np.ndarray):
        return np.array(value, dtype=old.dtype)
    value = copy.deepcopy(value)
    return value if old is None or value is None else type(old)(value)


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    lines = []
    for key, value in mine.items():
        other = theirs[key]
        if key == "config" and isinstance(other, dict):
            for name in sorted(value.keys() | other.keys()):
                if value.get(name) != other.get(name):
                    lines.append(f"{name}: the state has {other.get(name)!r}, this curriculum has {value.get(name)!r}")
        elif other != value:
            lines.append(f"{key}: the state has {other!r}, this curriculum has {value!r}")
    return (
        "This curriculum state belongs to something else, and is not loaded. "
        + "; ".join(lines)
        + ". Resume with the configuration and pool "
        "it was made with, or carry it over with tutelage.migrate(state, old_pool, new_curriculum)."
    )


def migrate(state: dict[str, Any], old_pool: TaskPool, curriculum: Curriculum) -> dict[str, Any]:
    """Load into `curriculum` what a state of another pool knows, matched by arm name; returns a report.

    The report holds `carried` and `fresh` (arms of the new pool with and without memory) and `dropped` (arms of the old one that no longer
    exist). Decks start anew, for their order belongs to a pool. The state must be one of the same curriculum over `old_pool`; its other
    hyperparameters may differ, unless they decide the shape of the memory.
    """
    if "pool" not in state or "pool" not in curriculum._tasks():
        raise TutelageError("migrate matches memory by the names of arms; a curriculum over a TaskSpace has none, and starts anew.")
    mine, theirs = curriculum._identity(), {"curriculum": state["curriculum"], "pool": state["pool"]}
    expected = {"curriculum": mine["curriculum"], "pool": old_pool.fingerprint}
    if theirs != expected:
        raise TutelageError(
            f"migrate cannot use this state: expected {expected}, got {theirs}. Pass the pool that the state was made with."
        )
    for attribute in curriculum.by_arm:
        new, was = getattr(curriculum, attribute).shape[1:], np.shape(state["memory"][attribute])[1:]
        if new != was:
            raise TutelageError(
                f"migrate cannot carry over {attribute}: it holds {was} per arm there and {new} here. Use the same settings."
            )
    by = state["config"].get("by")
    old = {name: a for a, name in enumerate(old_pool.arms(by).names)}
    names = curriculum.arms.names
    pairs = [(a, old[name]) for a, name in enumerate(names) if name in old]
    for attribute in curriculum.by_arm:
        value = getattr(curriculum, attribute)
        for new_arm, old_arm in pairs:
            value[new_arm] = np.asarray(state["memory"][attribute])[old_arm]
    curriculum.lessons = int(state["lessons"])
    return {
        "carried": [names[a] for a, _ in pairs],
        "fresh": [n for n in names if n not in old],
        "dropped": [n for n in old if n not in set(names)],
    }
