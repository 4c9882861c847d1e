"""What there is to learn: `TaskPool`, a columnar table of tasks with stable keys, arms and a prior difficulty.

Ten million tasks cost a few hundred megabytes: keys, arm codes and difficulties are flat arrays, further columns stay in whatever they came
in (memory-mapped arrays, a `datasets.Dataset` column, lists) and are only indexed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError, unknown


@dataclass(frozen=True)
class Arms:
    """A partition of a pool: code of each row, names, and the rows of each arm as slices of one array.

    arm_N: int32 codes. names: one per arm. order_N: row numbers sorted by arm. start_A: where each arm begins in `order_N`. size_A: tasks
    of each arm.
    """

    arm_N: NDArray[np.int32]
    names: tuple[str, ...]
    order_N: NDArray[Any]
    start_A: NDArray[np.int64]
    size_A: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, arm_M: NDArray[Any], index_M: NDArray[Any]) -> NDArray[np.int64]:
        """Row numbers of the `index_M`-th tasks of the arms `arm_M`."""
        return self.order_N[self.start_A[arm_M] + index_M].astype(np.int64)


def _make_arms(arm_N: NDArray[np.int32], names: Sequence[str]) -> Arms:
    size_A = np.bincount(arm_N, minlength=len(names)).astype(np.int64)
    empty = [name for name, size in zip(names, size_A, strict=True) if size == 0]
    if empty:
        raise TutelageError(f"Arms without tasks: {', '.join(empty[:5])}. Every arm needs at least one task; drop the name or add tasks.")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise TutelageError(
            f"Two arms are called {twice!r}. Names must tell arms apart; rename the labels (a product joins them with '/')."
        )
    row_type = np.int32 if len(arm_N) < 2**31 else np.int64
    order_N = np.argsort(arm_N, kind="stable").astype(row_type)
    start_A = np.concatenate([[0], np.cumsum(size_A)[:-1]])
    return Arms(arm_N, tuple(names), order_N, start_A, size_A)


def _encode(values: ArrayLike) -> tuple[NDArray[np.int32], list[str]]:
    """Codes and names of a column of labels; integers keep numerical order, strings sort alphabetically."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise TutelageError(f"An arm column must be one-dimensional; got shape {array.shape}.")
    if array.dtype.kind in "iu" and len(array) and array.min() >= 0 and array.max() < max(4 * len(array), 1024):
        seen = np.flatnonzero(np.bincount(array.astype(np.int64)))  # far cheaper than sorting for dense codes
        code = np.zeros(int(array.max()) + 1, dtype=np.int32)
        code[seen] = np.arange(len(seen), dtype=np.int32)
        return code[array], [str(v) for v in seen]
    if array.dtype == object:
        array = array.astype(str)
    labels, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int32), [str(v) for v in labels]


def _bytes(array: NDArray[Any]) -> memoryview:
    """The array's bytes, without a copy where it lies in one piece."""
    return np.ascontiguousarray(array).view(np.uint8).data


def _codes(arm_columns: Mapping[str, ArrayLike], names: int) -> NDArray[np.int32]:
    """The one column of codes into a list of `names` names."""
    array = np.asarray(next(iter(arm_columns.values())))
    if len(arm_columns) > 1 or array.dtype.kind not in "iu" or array.ndim != 1:
        raise TutelageError(
            f"arm_names names the codes of one integer column; got {len(arm_columns)} of type {array.dtype}. Drop arm_names."
        )
    if array.size and not 0 <= array.min() <= array.max() < names:
        raise TutelageError(f"Arm codes run from {array.min()} to {array.max()}, but arm_names has {names} names, numbered from 0.")
    return array.astype(np.int32)


class TaskPool:
    """A table of tasks.

    arm: one label per task (integers or strings), or several columns as a mapping `{name: labels}`, whose product makes the arms.
    difficulty: a prior difficulty per task, larger is harder (float). key: a stable, unique identity per task (integers or strings; default
    the row number). columns: further columns by name (prompt, answer, ...). difficulty and columns may be absent. arm_names: names of the
    arms where `arm` is one column of integer codes into them.
    """

    def __init__(
        self,
        *,
        arm: ArrayLike | Mapping[str, ArrayLike] | None = None,
        difficulty: ArrayLike | None = None,
        key: ArrayLike | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        arm_names: Sequence[str] | None = None,
    ) -> None:
        self.columns: dict[str, Sequence[Any]] = dict(columns or {})
        size = self._size(arm, difficulty, key)
        self.key_N = self._keys(key, size)
        arm_columns = arm if isinstance(arm, Mapping) else {"arm": np.zeros(size, np.int32) if arm is None else arm}
        if not arm_columns:
            raise TutelageError("arm={} names no column. Leave `arm` out for a pool of one arm, or give at least one column.")
        if arm_names is None:
            self._codes = {name: _encode(values) for name, values in arm_columns.items()}
        else:
            self._codes = {"arm": (_codes(arm_columns, len(arm_names)), [str(n) for n in arm_names])}
        self.difficulty_N = None if difficulty is None else np.asarray(difficulty, dtype=np.float32)
        self._check_lengths(size)
        self._arms: dict[tuple[str, ...], Arms] = {}

    @staticmethod
    def from_dataset(dataset: Any, **columns: Any) -> TaskPool:
        """A pool over a `datasets.Dataset` (rows stay there). See `tutelage.tasks.loaders.pool_of`."""
        from tutelage.tasks.loaders import pool_of

        return pool_of(dataset, **columns)

    @staticmethod
    def from_jsonl(path: Any, **columns: Any) -> TaskPool:
        """A pool from a JSONL file. See `tutelage.tasks.loaders.read_jsonl`."""
        from tutelage.tasks.loaders import pool_of, read_jsonl

        return pool_of(read_jsonl(path), source=str(path), **columns)

    @staticmethod
    def from_reasoning_gym(families: Any = None, **options: Any) -> TaskPool:
        """A pool of reasoning-gym families in levels. See `tutelage.tasks.reasoning_gym.make_pool`."""
        from tutelage.tasks.reasoning_gym import make_pool

        return make_pool(families, **options)

    def _size(self, arm: Any, difficulty: Any, key: Any) -> int:
        given = [key, difficulty, *(arm.values() if isinstance(arm, Mapping) else [arm]), *self.columns.values()]
        size = next((len(v) for v in given if v is not None), 0)
        if size == 0:
            raise TutelageError(
                "The task pool is empty. A pool needs at least one task; check the file, the filter or the split it came from."
            )
        return size

    @staticmethod
    def _keys(key: ArrayLike | None, size: int) -> NDArray[Any]:
        if key is None:
            return np.arange(size, dtype=np.int64)
        keys = np.asarray(key)
        if keys.ndim != 1:
            raise TutelageError(f"Task keys must be one-dimensional, one per task; got shape {keys.shape}.")
        if keys.dtype.kind in "iu":
            if keys.dtype == np.uint64 and keys.max() > np.iinfo(np.int64).max:
                raise TutelageError(f"Task key {keys.max()} does not fit 64 bits with a sign. Pass such keys as strings.")
            keys = keys.astype(np.int64, copy=False)
        elif keys.dtype.kind in "OU":
            keys = keys.astype(str)
        else:
            raise TutelageError(f"Task keys must be integers or strings; got {keys.dtype}.")
        ordered = keys if (keys[1:] > keys[:-1]).all() else np.sort(keys)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            rows = np.flatnonzero(keys == twice[0])[:2]
            raise TutelageError(
                f"Duplicate task keys: {twice[0].item()!r} stands in rows {rows[0]} and {rows[1]} ({len(twice)} duplicates in all). "
                "Keys must be unique, for a curriculum's memory is kept by key; drop the duplicates or choose another key column."
            )
        return keys

    def _check_lengths(self, size: int) -> None:
        lengths = {"key": len(self.key_N), **{f"arm {n!r}": len(c) for n, (c, _) in self._codes.items()}}
        lengths |= {f"column {n!r}": len(v) for n, v in self.columns.items()}
        if self.difficulty_N is not None:
            lengths["difficulty"] = len(self.difficulty_N)
            if self.difficulty_N.ndim != 1:
                raise TutelageError(f"Difficulty must be one-dimensional, one number per task; got shape {self.difficulty_N.shape}.")
            if not np.isfinite(self.difficulty_N).all():
                row = int(np.flatnonzero(~np.isfinite(self.difficulty_N))[0])
                raise TutelageError(f"Difficulty of row {row} is {self.difficulty_N[row]}; expected a finite number.")
        wrong = {n: v for n, v in lengths.items() if v != size}
        if wrong:
            raise TutelageError(f"Columns of a pool must be equally long: expected {size} rows, got {wrong}.")

    def __len__(self) -> int:
        return len(self.key_N)

    @property
    def arm_columns(self) -> tuple[str, ...]:
        """Names of the columns whose product makes the arms."""
        return tuple(self._codes)

    def arms(self, by: Sequence[str] | str | None = None) -> Arms:
        """The pool cut into arms by the product of the columns `by` (default: all arm columns). Only combinations that occur are arms."""
        names = self.arm_columns if by is None else ((by,) if isinstance(by, str) else tuple(by))
        for name in names:
            if name not in self._codes:
                raise unknown("arm column", name, self._codes)
        if names not in self._arms:
            self._arms[names] = self._product(names)
        return self._arms[names]

    def _product(self, names: tuple[str, ...]) -> Arms:
        code_N, labels = self._codes[names[0]]
        for name in names[1:]:
            more_N, more = self._codes[name]
            joint_N = code_N.astype(np.int64) * len(more) + more_N
            present, code_N = np.unique(joint_N, return_inverse=True)
            code_N = code_N.astype(np.int32)
            labels = [f"{labels[p // len(more)]}/{more[p % len(more)]}" for p in present]
        return _make_arms(code_N, labels)

    def rows_of(self, key_N: ArrayLike) -> NDArray[np.int64]:
        """Row numbers of keys, shape (N,); a key that is not in the pool raises."""
        wanted_N = np.asarray(key_N)
        sorted_keys, rows = self._lookup
        if self._gapless and wanted_N.dtype.kind == "i":
            place_N = wanted_N - sorted_keys[0]  # the table is a ruler: no search
            missing_N = (place_N < 0) | (place_N >= len(self))
            place_N = np.where(missing_N, 0, place_N)
        else:
            walk_N = np.argsort(wanted_N)  # in order the table is read from front to back, with far fewer cache misses
            place_N = np.empty(len(wanted_N), dtype=np.int64)
            place_N[walk_N] = np.minimum(np.searchsorted(sorted_keys, wanted_N[walk_N]), len(self) - 1)
            missing_N = sorted_keys[place_N] != wanted_N
        if missing_N.any():
            raise TutelageError(
                f"Task {wanted_N[missing_N][:1].tolist()[0]!r} is not in this pool of {len(self)} tasks; "
                "outcomes must come from the same pool."
            )
        return place_N if rows is None else rows[place_N]

    @cached_property
    def _gapless(self) -> bool:
        """Whether the keys are consecutive integers, in whatever order."""
        sorted_keys, _ = self._lookup
        return sorted_keys.dtype.kind == "i" and int(sorted_keys[-1]) - int(sorted_keys[0]) == len(self) - 1

    @cached_property
    def _lookup(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        if (self.key_N[1:] > self.key_N[:-1]).all():
            return self.key_N, None
        order = np.argsort(self.key_N, kind="stable")
        return self.key_N[order], order

    @cached_property
    def fingerprint(self) -> str:
        """A hash of keys, arms and difficulties: two pools with the same fingerprint mean the same tasks to a curriculum."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(_bytes(self.key_N) if self.key_N.dtype.kind == "i" else "\n".join(self.key_N).encode())
        for name, (code_N, labels) in self._codes.items():
            digest.update(json.dumps([name, labels]).encode())
            digest.update(_bytes(code_N))
        if self.difficulty_N is not None:
            digest.update(_bytes(self.difficulty_N))
        return digest.hexdigest()

    def row(self, row: int) -> dict[str, Any]:
        """One task as a mapping: its key and all further columns."""
        return {"key": self.key_N[row].item(), **{name: column[row] for name, column in self.columns.items()}}

    def __repr__(self) -> str:
        return f"TaskPool({len(self):,} tasks, {len(self.arms()):,} arms, columns {list(self.columns)})"
