"""A student without a network over a continuous space: a grid of cells, each unlocked by mastering a neighbour nearer to the start.

    cell of a point = floor(cells * p), p the point as a share of each side; competence c starts at 0
    an episode in an unlocked cell adds 1 to its competence, up to 4/3 of `visits`; the return is c / (4/3 visits), locked or not
    unlocked: the start cell, and a cell that has a neighbour with c >= visits: one to which going 0 or 1 towards the start in every
    coordinate leads (not 0 in all)
    mastered: c > visits

Source: the toy environment of Portelas et al. (CoRL 2019, arXiv 1910.07224), where the start is the origin and 75 visits of at most 100
are needed, with cells that nobody can learn, irrelevant parameters, other starts and faster or slower students. Thousands of episodes take
a second.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
Neighbours = Literal["towards", "adjacent"]


class GriddedStudent:
    """Competence per cell of an n-dimensional grid over `space`, which has `irrelevant` further parameters that change nothing.

    cells: per side. dimensions: that matter. unlearnable: share of the first parameter's range, from the top, whose cells stay at 0 for
    ever, in [0, 1), rounded to whole cells. start: the cell that is open from the beginning, a number below `cells` per dimension; None,
    the origin. visits: competence that unlocks neighbours, at least 1. neighbours: "towards", as above; "adjacent", the cells that differ
    by 1 in one coordinate, in any direction.
    """

    def __init__(
        self,
        *,
        cells: int = 10,
        dimensions: int = 2,
        irrelevant: int = 0,
        unlearnable: float = 0.0,
        start: tuple[int, ...] | None = None,
        visits: int = 75,
        neighbours: Neighbours = "towards",
    ) -> None:
        if cells < 2 or dimensions < 1 or irrelevant < 0 or visits < 1 or not 0 <= unlearnable < 1:
            raise TutelageError(
                "A gridded student needs cells >= 2, dimensions >= 1, irrelevant >= 0, visits >= 1 and unlearnable in [0, 1); got "
                f"cells={cells}, dimensions={dimensions}, irrelevant={irrelevant}, visits={visits}, unlearnable={unlearnable}."
            )
        if neighbours not in get_args(Neighbours):
            raise unknown("neighbours of a gridded student", neighbours, get_args(Neighbours))
        start = (0,) * dimensions if start is None else tuple(int(place) for place in start)
        if len(start) != dimensions or not all(0 <= place < cells for place in start):
            raise TutelageError(f"A gridded student's start needs {dimensions} cell numbers from 0 to {cells - 1}; got {start}.")
        self.cells, self.dimensions, self.visits = cells, dimensions, visits
        self.most = visits * 4 / 3
        width = dimensions + irrelevant
        self.space = TaskSpace(np.zeros(width), np.ones(width))
        self.shape = (cells,) * dimensions
        self.start = int(np.ravel_multi_index(start, self.shape))
        self.competence_C = np.zeros(cells**dimensions, dtype=np.int64)
        place_CD = np.array(list(np.ndindex(*self.shape)))
        self.learnable_C = place_CD[:, 0] < max(1, round(cells * (1 - unlearnable)))
        self._before_CS = self._unlocking(place_CD, np.array(start), neighbours)

    def _unlocking(self, place_CD: NDArray[np.int64], start_D: NDArray[np.int64], neighbours: Neighbours) -> NDArray[np.int64]:
        """For each cell the numbers of the cells that unlock it; a step out of the grid leads to the cell itself, which unlocks nothing."""
        if neighbours == "adjacent":
            steps = [sign * unit_D for unit_D in np.eye(self.dimensions, dtype=np.int64) for sign in (-1, 1)]
            before = [np.clip(place_CD + step_D, 0, self.cells - 1) for step_D in steps]
        else:
            sign_CD = np.sign(start_D - place_CD)
            before = [place_CD + sign_CD * step for step in itertools.product((0, 1), repeat=self.dimensions) if any(step)]
        return np.stack([np.ravel_multi_index(tuple(b.T), self.shape) for b in before], axis=1)

    def cell_of(self, points_ND: Float) -> NDArray[np.int64]:
        """Cell numbers of points, shape (N,)."""
        place_ND = np.minimum((points_ND[:, : self.dimensions] * self.cells).astype(np.int64), self.cells - 1)
        return np.asarray(np.ravel_multi_index(tuple(place_ND.T), self.shape), dtype=np.int64)

    def attempt(self, points_ND: Float) -> Float:
        """One episode per point, in order; returns in [0, 1], shape (N,)."""
        reward_N = np.empty(len(points_ND))
        for row, cell in enumerate(self.cell_of(points_ND)):
            unlocked = cell == self.start or (self.competence_C[self._before_CS[cell]] >= self.visits).any()
            if unlocked and self.learnable_C[cell]:
                self.competence_C[cell] = min(self.competence_C[cell] + 1, math.ceil(self.most))
            reward_N[row] = min(self.competence_C[cell] / self.most, 1.0)
        return reward_N

    def score(self, points_ND: Float) -> Float:
        """The returns of points as they stand, without learning; shape (N,)."""
        return np.minimum(self.competence_C[self.cell_of(points_ND)] / self.most, 1.0)

    def reset(self) -> None:
        """Forget everything."""
        self.competence_C[:] = 0

    @property
    def mastered(self) -> float:
        """The share of learnable cells whose competence lies above `visits`."""
        return float((self.competence_C[self.learnable_C] > self.visits).mean())
