"""Absolute learning progress of single episodes: how far a return lies from that of the nearest earlier task."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Float = NDArray[np.float64]

_BLOCK = 512


class AbsoluteLearningProgress:
    """|r - r'| against the Euclidean nearest task of the whole history, raw coordinates; 0 while fewer than `least` pairs are stored.

    dimensions: D. least: pairs that must be stored before progress is measured (6). most: latest pairs that are kept, rounded up to whole
    blocks of 512, of which one more may be under way; None, all. Source: Portelas et al., CoRL 2019 (arXiv 1910.07224), section 4; there
    the store keeps every pair, and a new pair does not replace its neighbour. Of neighbours at the same distance the latest counts among
    recent pairs (the source leaves it open). Whole blocks lie in a k-d tree, the rest is searched directly: a pair costs O(log n), and
    the tree depends on the pairs alone, so that a resumed store answers alike.
    """

    def __init__(self, dimensions: int, *, least: int = 6, most: int | None = None) -> None:
        self.least = least
        self._most = None if most is None else -(-most // _BLOCK) * _BLOCK
        self._task_MD = np.zeros((_BLOCK, dimensions))
        self._reward_M = np.zeros(_BLOCK)
        self._size = 0
        self._tree: cKDTree | None = None

    def observe(self, task_D: Float, reward: float) -> float:
        """The absolute learning progress of a pair, which is then stored."""
        progress = abs(reward - self._nearest(task_D)) if self._size >= self.least else 0.0
        if self._size == len(self._reward_M):
            self._task_MD = np.concatenate([self._task_MD, np.zeros_like(self._task_MD)])
            self._reward_M = np.concatenate([self._reward_M, np.zeros_like(self._reward_M)])
        self._task_MD[self._size], self._reward_M[self._size] = task_D, reward
        self._size += 1
        if self._size % _BLOCK == 0:
            if self._most is None or self._size <= self._most:
                self._plant()
            else:
                self.pairs = self.pairs[-self._most :]
        return float(progress)

    def _nearest(self, task_D: Float) -> float:
        """The return of the nearest stored task."""
        planted = 0 if self._tree is None else self._tree.n
        best, place = np.inf, 0
        if self._tree is not None:
            best, place = self._tree.query(task_D)
        if planted < self._size:
            distance_M = np.sqrt(((self._task_MD[planted : self._size] - task_D) ** 2).sum(axis=1))
            latest = len(distance_M) - 1 - int(np.argmin(distance_M[::-1]))
            if distance_M[latest] <= best:
                place = planted + latest
        return float(self._reward_M[place])

    def _plant(self) -> None:
        planted = self._size - self._size % _BLOCK
        self._tree = cKDTree(self._task_MD[:planted].copy()) if planted else None

    @property
    def pairs(self) -> Float:
        """All pairs, oldest first: task and return, shape (M, D + 1)."""
        return np.column_stack([self._task_MD[: self._size], self._reward_M[: self._size]])

    @pairs.setter
    def pairs(self, pair_MQ: Float) -> None:
        self._size = len(pair_MQ)
        room = -(-max(1, self._size) // _BLOCK) * _BLOCK
        self._task_MD, self._reward_M = np.zeros((room, pair_MQ.shape[1] - 1)), np.zeros(room)
        self._task_MD[: self._size], self._reward_M[: self._size] = pair_MQ[:, :-1], pair_MQ[:, -1]
        self._plant()
