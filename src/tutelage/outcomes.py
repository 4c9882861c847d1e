"""The record that everything shares: what one lesson showed, as columns, one row per task.

Suffixes are shapes: `N` tasks, `G` attempts per task. Only `key_N` and `step` are required; every other column may be absent. Statistics
of a lesson (pass rate, mean absolute advantage, dead groups, length) are derived views, never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace, is_space, keys_of

if TYPE_CHECKING:
    from tutelage.pools import TaskPool

Float = NDArray[np.float64]


class Kind(IntEnum):
    """How a verifier judged one attempt; the codes of `kind_NG`."""

    WRONG = 0
    CORRECT = 1
    REFUSED = 2
    MALFORMED = 3


def group_advantage(reward_NG: ArrayLike) -> Float:
    """(r - mean) / std of each group, shape (N, G), with the unbiased standard deviation and no epsilon.

    Exactly 0 in groups whose scorable rewards are all equal (a float residue of equal rewards must not train), for groups with fewer than
    two scorable rewards, and at NaN (unscorable) entries. Source: GRPO (arXiv 2402.03300), without the epsilon that engines add.
    """
    reward_NG = np.asarray(reward_NG, dtype=np.float64)
    if np.isinf(reward_NG).any():
        raise TutelageError("An infinite reward has no advantage. Rewards must be finite, or NaN where an attempt could not be scored.")
    known_NG = ~np.isnan(reward_NG)
    count_N1 = known_NG.sum(axis=1, keepdims=True)
    filled_NG = np.where(known_NG, reward_NG, 0.0)
    mean_N1 = filled_NG.sum(axis=1, keepdims=True) / np.maximum(count_N1, 1)
    centred_NG = np.where(known_NG, reward_NG - mean_N1, 0.0)
    std_N1 = np.sqrt((centred_NG**2).sum(axis=1, keepdims=True) / np.maximum(count_N1 - 1, 1))
    high_N1 = np.where(known_NG, reward_NG, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    low_N1 = np.where(known_NG, reward_NG, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    alive_N1 = (count_N1 > 1) & (high_N1 > low_N1) & (std_N1 > 0)
    return np.where(alive_N1, centred_NG / np.where(alive_N1, std_N1, 1.0), 0.0)


def _mean_known(value_NG: Float) -> Float:
    """Row means over the entries that are not NaN; NaN for a row without any."""
    known_NG = ~np.isnan(value_NG)
    count_N = known_NG.sum(axis=1)
    total_N = np.where(known_NG, value_NG, 0.0).sum(axis=1)
    return np.where(count_N > 0, total_N / np.maximum(count_N, 1), np.nan)


def _check_finite(reward_NG: Float) -> None:
    """Refuse a return that is NaN or infinite: over a space there is no other sample of the same task to fall back on."""
    wrong_N = ~np.isfinite(reward_NG).all(axis=tuple(range(1, reward_NG.ndim)))
    if wrong_N.any():
        row = int(np.flatnonzero(wrong_N)[0])
        raise TutelageError(
            f"reward (or solved, where no reward is given) of row {row} is {reward_NG[row].tolist()}; the returns of a TaskSpace's points "
            "must be finite. Leave an episode that could not be scored out of the lesson, its point and its return alike."
        )


@dataclass(frozen=True)
class Outcomes:
    """What one lesson showed, one row per task.

    key_N: the tasks' keys in their pool (int64, or 32-digit hex strings). step: the trainer's optimiser step, from 0.
    arm_N: arm codes. solved_NG: the verifier's judgement before any shaping, in [0, 1], NaN where unscorable. kind_NG: `Kind` codes.
    reward_NG: what was optimised. advantage_NG: the engine's own, or derived. length_NG: completion tokens.
    signals: further arrays whose first axis is N (loss, entropy, teacher agreement ...).
    point_ND: for tasks of a `TaskSpace`, their parameters, float64; the keys are then hashes of the points (see `tutelage.spaces.keys_of`).
    """

    key_N: NDArray[Any]
    step: int
    arm_N: NDArray[np.int64] | None = None
    solved_NG: Float | None = None
    kind_NG: NDArray[np.int8] | None = None
    reward_NG: Float | None = None
    advantage_NG: Float | None = None
    length_NG: Float | None = None
    signals: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    point_ND: Float | None = None

    def __post_init__(self) -> None:
        n = len(self.key_N)
        if self.arm_N is not None and self.arm_N.shape != (n,):
            raise TutelageError(f"Outcomes.arm_N has shape {self.arm_N.shape}; expected ({n},), one arm per task.")
        if self.point_ND is not None and (self.point_ND.ndim != 2 or len(self.point_ND) != n):
            raise TutelageError(f"Outcomes.point_ND has shape {self.point_ND.shape}; expected ({n}, D), one point per task.")
        groups = {name: v for name, v in self.columns().items() if name.endswith("_NG")}
        for name, value in groups.items():
            if value.ndim != 2 or len(value) != n:
                raise TutelageError(
                    f"Outcomes.{name} has shape {value.shape}; expected ({n}, G): one row per task, one column per attempt."
                )
        if len({v.shape[1] for v in groups.values()}) > 1:
            shapes = ", ".join(f"{k} {v.shape}" for k, v in groups.items())
            raise TutelageError(f"Outcomes columns disagree on the number of attempts per task: {shapes}.")
        for name, value in self.signals.items():
            if len(value) != n:
                raise TutelageError(f"Signal {name!r} has {len(value)} rows; expected {n}, one per task.")
        if self.solved_NG is not None and self.solved_NG.size:
            low, high = np.nanmin(self.solved_NG, initial=0.0), np.nanmax(self.solved_NG, initial=1.0)
            if low < 0 or high > 1:
                raise TutelageError(
                    f"Outcomes.solved_NG must lie in [0, 1] (NaN where unscorable); got values from {low:g} to {high:g}. "
                    "Pass the verifier's judgement as `solved` and the shaped reward as `reward`."
                )

    @classmethod
    def of(
        cls,
        pool: TaskPool | TaskSpace,
        rows_N: ArrayLike,
        *,
        step: int | None = None,
        solved: ArrayLike | None = None,
        kind: ArrayLike | None = None,
        reward: ArrayLike | None = None,
        advantage: ArrayLike | None = None,
        length: ArrayLike | None = None,
        signals: Mapping[str, ArrayLike] | None = None,
    ) -> Outcomes:
        """Outcomes of rows of a pool. Advantages are derived from `reward` (else from `solved`) where absent, see `group_advantage`.

        A reward column that is absent equals `solved`: nothing was shaped. Given a `TaskSpace` (or a Gymnasium `Box`), the rows are points
        (N, D); `step` may then be left out (0), a column may be (N,) for one attempt per task, and rewards must be finite.
        """
        if is_space(pool):
            columns = {"solved": solved, "kind": kind, "reward": reward, "advantage": advantage, "length": length}
            return cls._of_points(TaskSpace.of(pool), rows_N, step or 0, columns, signals or {})
        assert not isinstance(pool, TaskSpace)
        if step is None:
            raise TutelageError("Outcomes.of needs step=, the trainer's optimiser step, for the tasks of a pool.")
        rows_N = np.asarray(rows_N, dtype=np.int64)
        if rows_N.size and not 0 <= rows_N.min() <= rows_N.max() < len(pool):
            raise TutelageError(
                f"Rows {rows_N.min()} to {rows_N.max()} do not all lie in this pool of {len(pool)} tasks, numbered from 0. "
                "Outcomes.of takes row numbers, as `propose` returns them, not keys."
            )
        as_float = {
            name: None if value is None else np.asarray(value, dtype=np.float64)
            for name, value in (("solved", solved), ("reward", reward), ("advantage", advantage), ("length", length))
        }
        if as_float["reward"] is None:
            as_float["reward"] = as_float["solved"]
        if as_float["advantage"] is None and as_float["reward"] is not None and as_float["reward"].ndim == 2:
            as_float["advantage"] = group_advantage(as_float["reward"])
        return cls(
            key_N=pool.key_N[rows_N],
            step=int(step),
            arm_N=pool.arms().arm_N[rows_N].astype(np.int64),
            solved_NG=as_float["solved"],
            kind_NG=None if kind is None else np.asarray(kind, dtype=np.int8),
            reward_NG=as_float["reward"],
            advantage_NG=as_float["advantage"],
            length_NG=as_float["length"],
            signals={k: np.asarray(v) for k, v in (signals or {}).items()},
        )

    @classmethod
    def _of_points(
        cls, space: TaskSpace, points_ND: ArrayLike, step: int, columns: dict[str, ArrayLike | None], signals: Mapping[str, ArrayLike]
    ) -> Outcomes:
        """Outcomes of points of a space."""
        point_ND = space.check(points_ND)
        given = {name: np.asarray(value, dtype=np.float64) for name, value in columns.items() if value is not None}
        given = {name: value[:, None] if value.ndim == 1 else value for name, value in given.items()}
        if "solved" in given:
            given.setdefault("reward", given["solved"])
        if "reward" in given:
            _check_finite(given["reward"])
        if "reward" in given and given["reward"].ndim == 2:
            given.setdefault("advantage", group_advantage(given["reward"]))
        kind = given.get("kind")
        return cls(
            key_N=keys_of(point_ND),
            step=int(step),
            solved_NG=given.get("solved"),
            kind_NG=None if kind is None else kind.astype(np.int8),
            reward_NG=given.get("reward"),
            advantage_NG=given.get("advantage"),
            length_NG=given.get("length"),
            signals={k: np.asarray(v) for k, v in signals.items()},
            point_ND=point_ND,
        )

    def __len__(self) -> int:
        return len(self.key_N)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that are present, by field name (signals apart)."""
        names = [f.name for f in fields(self) if f.name not in ("step", "signals")]
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def take(self, index: NDArray[Any]) -> Outcomes:
        """The rows that an index or a boolean mask selects."""
        chosen = {n: v[index] for n, v in self.columns().items()}
        return replace(self, **chosen, signals={k: v[index] for k, v in self.signals.items()})

    def _need(self, name: str) -> NDArray[Any]:
        value = getattr(self, name)
        if value is None:
            present = ", ".join([*self.columns(), *self.signals])
            raise TutelageError(
                f"This lesson's outcomes have no column {name}; they have: {present}. Pass {name.split('_')[0]}= to Outcomes.of."
            )
        return value

    @property
    def pass_rate_N(self) -> Float:
        """Mean of `solved` over the scorable attempts; NaN for a task without any."""
        return _mean_known(self._need("solved_NG"))

    @property
    def mean_abs_advantage_N(self) -> Float:
        """Mean of |A| over the scorable attempts of each task (the learning signal of SEC and DUMP); NaN for a task without any."""
        size_NG = np.abs(self._need("advantage_NG"))
        return _mean_known(size_NG if self.reward_NG is None else np.where(np.isnan(self.reward_NG), np.nan, size_NG))

    @property
    def dead_N(self) -> NDArray[np.bool_]:
        """Groups that carry no gradient: every advantage is exactly 0 (or NaN, which is left out of a loss)."""
        return (np.nan_to_num(self._need("advantage_NG")) == 0).all(axis=1)

    @property
    def mean_length_N(self) -> Float:
        """Mean completion length in tokens."""
        return _mean_known(self._need("length_NG"))
