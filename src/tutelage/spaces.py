"""What there is to learn when tasks are made to order: `TaskSpace`, a box of continuous parameters.

    space = TaskSpace([0.0, 0.0], [3.0, 6.0], names=["stump_height", "spacing"])

A point is a row of float64 parameters, one per dimension, and is its own identity: a curriculum knows its points again by their bytes, so
hand back the very rows it proposed and cast only at the environment's door. A Gymnasium `Box` of one axis stands for a space wherever one
is expected. `Scaled` and `ShuffledBox` are views of a space: what a curriculum sees of it. Suffixes: `N` points, `D` parameters,
`C` slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import MissingExtraError, TutelageError

Float = NDArray[np.float64]


class TaskSpace:
    """The box [low, high] of D task parameters.

    low_D, high_D: finite bounds, each low below its high. names: of the parameters, for messages and reports (default x0, x1, ...).
    Raises `TutelageError` for a side that is empty, reversed or not finite, and names it.
    """

    def __init__(self, low_D: ArrayLike, high_D: ArrayLike, *, names: Sequence[str] | None = None) -> None:
        self.low_D, self.high_D = _bounds("low_D", low_D), _bounds("high_D", high_D)
        if self.low_D.shape != self.high_D.shape:
            raise TutelageError(f"TaskSpace: low_D has {len(self.low_D)} parameters and high_D has {len(self.high_D)}; give one of each.")
        self.names = tuple(f"x{d}" for d in range(self.dimensions)) if names is None else tuple(str(n) for n in names)
        if len(self.names) != self.dimensions or len(set(self.names)) < len(self.names):
            raise TutelageError(f"TaskSpace: expected {self.dimensions} different names, one per parameter; got {list(self.names)}.")
        for name, low, high in zip(self.names, self.low_D, self.high_D, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite([low, high, high - low]).all()
            if not finite:
                raise TutelageError(
                    f"TaskSpace: the side {name!r} runs from low_D {low} to high_D {high}; both bounds must be finite, for points are "
                    "drawn uniformly between them. Bound the parameter, or rescale it."
                )
            if low >= high:
                raise TutelageError(
                    f"TaskSpace: the side {name!r} runs from low_D {low} to high_D {high} and is empty; low_D must lie below high_D. "
                    "Leave a parameter that does not vary out of the space."
                )
        self.low_D.flags.writeable = self.high_D.flags.writeable = False

    @classmethod
    def of(cls, space: Any) -> TaskSpace:
        """`space` itself, or the space of a Gymnasium `Box`; anything else raises `TutelageError`."""
        if isinstance(space, cls):
            return space
        if not is_space(space):
            raise TutelageError(
                f"Expected a TaskSpace or a Gymnasium Box; got a {type(space).__name__}. A curriculum over continuous parameters needs "
                "tutelage.TaskSpace(low_D, high_D); for a TaskPool choose a curriculum over pools, such as 'uniform' or 'sec'."
            )
        return cls.from_box(space)

    @classmethod
    def from_box(cls, box: Any, *, names: Sequence[str] | None = None) -> TaskSpace:
        """The space of a Gymnasium `Box` (any object with arrays `low` and `high` of one axis)."""
        return cls(box.low, box.high, names=names)

    def to_box(self) -> Any:
        """A Gymnasium `Box` with these bounds, in float64 so that points keep every bit. Needs gymnasium."""
        try:
            from gymnasium.spaces import Box
        except ImportError:
            raise MissingExtraError("to_box() needs gymnasium, which is not installed. Install it with: pip install gymnasium") from None
        return Box(self.low_D, self.high_D, dtype=np.float64)

    @property
    def dimensions(self) -> int:
        """How many parameters a point has."""
        return len(self.low_D)

    @property
    def range_D(self) -> Float:
        """The length of each side."""
        return self.high_D - self.low_D

    @property
    def fingerprint(self) -> str:
        """A hash of the bounds: spaces with the same fingerprint hold the same points (names do not count)."""
        return hashlib.blake2b(self.low_D.tobytes() + self.high_D.tobytes(), digest_size=16).hexdigest()

    def sample(self, n: int, rng: np.random.Generator) -> Float:
        """n points drawn uniformly, shape (n, D)."""
        return self.clip(self.low_D + rng.random((n, self.dimensions)) * self.range_D)

    def clip(self, points_ND: Float) -> Float:
        """The nearest points of the box."""
        return np.clip(points_ND, self.low_D, self.high_D)

    def contains(self, points_ND: Float) -> NDArray[np.bool_]:
        """Which points lie in the box, its faces included, shape (N,)."""
        return np.asarray(((points_ND >= self.low_D) & (points_ND <= self.high_D)).all(axis=-1))

    def check(self, points_ND: ArrayLike, *, field: str = "points_ND") -> Float:
        """`points_ND` as float64 (N, D); a wrong shape, a NaN or a point outside the box raises `TutelageError` and names the parameter."""
        array_ND = np.asarray(points_ND, dtype=np.float64) + 0.0  # -0.0 and 0.0 are one point
        if array_ND.ndim != 2 or array_ND.shape[1] != self.dimensions:
            raise TutelageError(
                f"{field} has shape {np.shape(points_ND)}; expected (N, {self.dimensions}): one row per point, with the parameters "
                f"{', '.join(self.names)}."
            )
        outside_ND = ~((array_ND >= self.low_D) & (array_ND <= self.high_D))  # NaN counts as outside
        if outside_ND.any():
            row, d = (int(i) for i in np.argwhere(outside_ND)[0])
            raise TutelageError(
                f"{field} row {row}: {self.names[d]} is {array_ND[row, d]}, outside [{self.low_D[d]}, {self.high_D[d]}]. Points are in the "
                "units of the space; a point that was cast to float32 may also step over a bound, so keep the float64 rows of `propose`."
            )
        return array_ND

    def __repr__(self) -> str:
        sides = ", ".join(f"{n} [{low:g}, {high:g}]" for n, low, high in zip(self.names, self.low_D, self.high_D, strict=True))
        return f"TaskSpace({sides})"


class Scaled:
    """A view of a space through another box: `box` is what a curriculum sees, stretched side by side onto `inner`.

    For teachers that measure distances in the parameters' units, such as ALP-GMM: give them the unit cube. A view has `space`, the
    curriculum's; `forward`, its points (N, D) as those of `inner`; and `inverse`.
    """

    def __init__(self, inner: TaskSpace, box: TaskSpace | None = None) -> None:
        self.inner = TaskSpace.of(inner)
        d = self.inner.dimensions
        self.space = TaskSpace(np.zeros(d), np.ones(d), names=self.inner.names) if box is None else TaskSpace.of(box)
        if self.space.dimensions != d:
            raise TutelageError(f"Scaled: the box has {self.space.dimensions} parameters and the space has {d}; give one side for each.")

    def forward(self, points_ND: Float) -> Float:
        return _stretch(points_ND, self.space, self.inner)

    def inverse(self, points_ND: Float) -> Float:
        return _stretch(points_ND, self.inner, self.space)


class ShuffledBox:
    """A view in which each side of a space is cut into equal slices that change places: difficulty becomes rugged.

    cuts: slices per side. seed: of the permutations, one per side, drawn independently. A point on the border of two slices belongs to the
    lower one. Points keep 2^-40 of a slice away from its ends, so that rounding never moves one into the next; `inverse` undoes `forward`
    but for that. Source: the rugged-difficulty test of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815).
    """

    def __init__(self, inner: TaskSpace, *, cuts: int = 4, seed: int = 0) -> None:
        self.space = self.inner = TaskSpace.of(inner)
        if cuts < 1:
            raise TutelageError(f"ShuffledBox: cuts must be at least 1; got {cuts}.")
        self.cuts = cuts
        rng = np.random.default_rng(seed)
        self.slice_DC = np.stack([rng.permutation(cuts) for _ in range(self.space.dimensions)])

    def forward(self, points_ND: Float) -> Float:
        return self._moved(points_ND, self.slice_DC)

    def inverse(self, points_ND: Float) -> Float:
        return self._moved(points_ND, np.argsort(self.slice_DC, axis=1))

    def _moved(self, points_ND: Float, to_DC: NDArray[np.int64]) -> Float:
        share_ND = (points_ND - self.space.low_D) / self.space.range_D * self.cuts
        slice_ND = np.clip(np.ceil(share_ND) - 1, 0, self.cuts - 1).astype(np.int64)
        inside_ND = np.clip(share_ND - slice_ND, _INSET, 1 - _INSET)
        moved_ND = to_DC[np.arange(self.space.dimensions), slice_ND] + inside_ND
        return self.space.clip(self.space.low_D + moved_ND / self.cuts * self.space.range_D)


_INSET = 2.0**-40


def _stretch(points_ND: Float, come: TaskSpace, go: TaskSpace) -> Float:
    return go.clip(go.low_D + (points_ND - come.low_D) / come.range_D * go.range_D)


def is_space(value: Any) -> bool:
    """Whether `value` is a `TaskSpace` or looks like a Gymnasium `Box`."""
    return isinstance(value, TaskSpace) or (hasattr(value, "low") and hasattr(value, "high"))


def keys_of(points_ND: Float) -> NDArray[np.str_]:
    """The key of each point, a 128-bit hash of its float64 values as 32 hexadecimal digits, shape (N,)."""
    return np.array([hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in points_ND], dtype="<U32")


def _bounds(field: str, value: ArrayLike) -> Float:
    try:
        array_D = np.array(value, dtype=np.float64) + 0.0
    except (TypeError, ValueError) as error:
        raise TutelageError(f"TaskSpace: {field} must hold numbers, one per parameter; got {value!r} ({error}).") from None
    if array_D.ndim != 1 or not len(array_D):
        raise TutelageError(f"TaskSpace: {field} has shape {array_D.shape}; expected (D,) with at least one parameter.")
    return array_D
