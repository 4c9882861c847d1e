"""A student without a network over a continuous space: a grid of cells, each unlocked by mastering a neighbour nearer to the origin.

    cell of a point = floor(cells * p), p the point as a share of each side; competence c in 0..100, 0 at first
    an episode in an unlocked cell adds 1 to its competence; the return is c / 100, locked or not
    unlocked: the origin, and a cell from which subtracting 0 or 1 in every coordinate (not all 0) leads to a cell with c >= 75

Source: the toy environment of Portelas et al. (CoRL 2019, arXiv 1910.07224), with cells that nobody can learn, and irrelevant parameters.
Thousands of episodes take a second.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]

UNLOCKS, MASTERED, MOST = 75, 75, 100


class GriddedStudent:
    """Competence per cell of an n-dimensional grid over `space`, which has `irrelevant` further parameters that change nothing.

    cells: per side. dimensions: that matter. unlearnable: share of the first parameter's range, from the top, whose cells stay at 0 for
    ever, in [0, 1), rounded to whole cells.
    """

    def __init__(self, *, cells: int = 10, dimensions: int = 2, irrelevant: int = 0, unlearnable: float = 0.0) -> None:
        if cells < 2 or dimensions < 1 or irrelevant < 0 or not 0 <= unlearnable < 1:
            raise TutelageError(
                "A gridded student needs cells >= 2, dimensions >= 1, irrelevant >= 0 and unlearnable in [0, 1); got "
                f"cells={cells}, dimensions={dimensions}, irrelevant={irrelevant}, unlearnable={unlearnable}."
            )
        self.cells, self.dimensions = cells, dimensions
        width = dimensions + irrelevant
        self.space = TaskSpace(np.zeros(width), np.ones(width))
        self.shape = (cells,) * dimensions
        self.competence_C = np.zeros(cells**dimensions, dtype=np.int64)
        place_CD = np.array(list(np.ndindex(*self.shape)))
        self.learnable_C = place_CD[:, 0] < max(1, round(cells * (1 - unlearnable)))
        steps = [step for step in itertools.product((0, 1), repeat=dimensions) if any(step)]
        before = [np.ravel_multi_index(tuple(np.maximum(place_CD - step, 0).T), self.shape) for step in steps]
        self._before_CS = np.stack(before, axis=1)  # the cells that unlock each cell

    def cell_of(self, points_ND: Float) -> NDArray[np.int64]:
        """Cell numbers of points, shape (N,)."""
        place_ND = np.minimum((points_ND[:, : self.dimensions] * self.cells).astype(np.int64), self.cells - 1)
        return np.asarray(np.ravel_multi_index(tuple(place_ND.T), self.shape), dtype=np.int64)

    def attempt(self, points_ND: Float) -> Float:
        """One episode per point, in order; returns in [0, 1], shape (N,)."""
        reward_N = np.empty(len(points_ND))
        for row, cell in enumerate(self.cell_of(points_ND)):
            unlocked = cell == 0 or (self.competence_C[self._before_CS[cell]] >= UNLOCKS).any()
            if unlocked and self.learnable_C[cell]:
                self.competence_C[cell] = min(self.competence_C[cell] + 1, MOST)
            reward_N[row] = self.competence_C[cell] / MOST
        return reward_N

    @property
    def mastered(self) -> float:
        """The share of learnable cells whose competence lies above 75."""
        return float((self.competence_C[self.learnable_C] > MASTERED).mean())
