"""A student with a network over a continuous space: a small perceptron that learns to add, the space being how long and how hard the sums.

    length in [0, 1]    1 ... 6 digits, one sixth each; sums of 5 and 6 digits have random answers: nobody can learn them
    carries in [0, 1]   the chance that a pair of digits adds up to 10 or more
    an episode at a point: 32 sums; the return is the share answered exactly right; then one optimiser step on them

The network reads the digits of both numbers, one-hot with blanks, and gives the digits of the answer at once. 27,000 parameters; an episode
takes half a millisecond. Array suffixes: `N` sums, `P` places from the lowest, `F` features, `H` hidden
units, `T` places of the answer, `K` digits and the blank, `O` all outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
LENGTHS, LEARNABLE, BLANK = 6, 4, 10
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def pairs(carry: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """For each place two digits that add up to 10 or more where `carry` is set, to 9 or less elsewhere; one of the 45 or 55 pairs each."""
    first, second = np.divmod(np.arange(100), 10)
    high, low = np.flatnonzero(first + second >= 10), np.flatnonzero(first + second < 10)
    place = np.where(carry, high[rng.integers(len(high), size=carry.shape)], low[rng.integers(len(low), size=carry.shape)])
    return np.stack(np.divmod(place, 10), axis=-1)


def sums(length: int, carries: float, n: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`n` sums of numbers of `length` digits: features (N, F) and the answer's digits (N, T), blank beyond its length."""
    digit_NP2 = np.full((n, LENGTHS, 2), BLANK)
    digit_NP2[:, :length] = pairs(rng.random((n, length)) < carries, rng)
    answer_NT = np.full((n, LENGTHS + 1), BLANK)
    carry_N = np.zeros(n, dtype=np.int64)
    for place in range(length):
        carry_N, answer_NT[:, place] = np.divmod(digit_NP2[:, place].sum(axis=1) + carry_N, 10)
    answer_NT[:, length] = carry_N
    if length > LEARNABLE:
        answer_NT[:, : length + 1] = rng.integers(10, size=(n, length + 1))
    return np.eye(BLANK + 1, dtype=np.float32)[digit_NP2].reshape(n, -1), answer_NT


class AddingStudent:
    """A perceptron with one hidden layer of rectified units, trained by Adam on the cross-entropy of each episode's sums, in numpy.

    seed: of its weights and of all sums. hidden: units. lr: of Adam. batch: sums per episode. held_out: sums per point of the even grid of
    4 x 8 learnable points.
    """

    space = TaskSpace([0.0, 0.0], [1.0, 1.0], names=("length", "carries"))

    def __init__(self, *, seed: int = 0, hidden: int = 128, lr: float = 2e-3, batch: int = 32, held_out: int = 32) -> None:
        weights, held, self.rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
        inputs, outputs = LENGTHS * 2 * (BLANK + 1), (LENGTHS + 1) * (BLANK + 1)
        shapes = ((inputs, hidden), (hidden,), (hidden, outputs), (outputs,))
        bounds = (inputs**-0.5, inputs**-0.5, hidden**-0.5, hidden**-0.5)
        self.weights = [weights.uniform(-bound, bound, shape).astype(np.float32) for bound, shape in zip(bounds, shapes, strict=True)]
        self._moments = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in self.weights]
        self.lr, self.batch, self.steps = lr, batch, 0
        grid = [(length, (i + 0.5) / 8) for length in range(1, LEARNABLE + 1) for i in range(8)]
        parts = [sums(length, carries, held_out, held) for length, carries in grid]
        self.test_NF, self.test_NT = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _forward(self, feature_NF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Hidden units (N, hidden) and logits (N, T, 11)."""
        into_FH, into_H, out_HO, out_O = self.weights
        hidden_NH = np.maximum(feature_NF @ into_FH + into_H, 0)
        return hidden_NH, (hidden_NH @ out_HO + out_O).reshape(len(feature_NF), LENGTHS + 1, BLANK + 1)

    def attempt(self, points_ND: Float) -> Float:
        """One episode per point, in order; returns in [0, 1], shape (N,)."""
        return np.array([self._episode(min(int(length * LENGTHS), LENGTHS - 1) + 1, carries) for length, carries in points_ND])

    def _episode(self, length: int, carries: float) -> float:
        feature_NF, answer_NT = sums(length, carries, self.batch, self.rng)
        hidden_NH, logit_NTK = self._forward(feature_NF)
        right = float((logit_NTK.argmax(axis=2) == answer_NT).all(axis=1).mean())
        self._step(self._gradients(feature_NF, hidden_NH, logit_NTK, answer_NT))
        return right

    def _gradients(
        self, feature_NF: NDArray[np.float32], hidden_NH: NDArray[np.float32], logit_NTK: NDArray[np.float32], answer_NT: NDArray[np.int64]
    ) -> list[NDArray[np.float32]]:
        """Of the mean cross-entropy over sums and places, in the order of `weights`."""
        chance_NTK = np.exp(logit_NTK - logit_NTK.max(axis=2, keepdims=True))
        chance_NTK /= chance_NTK.sum(axis=2, keepdims=True)
        error_NO = (chance_NTK - np.eye(BLANK + 1, dtype=np.float32)[answer_NT]).reshape(len(answer_NT), -1) / np.float32(answer_NT.size)
        error_NH = (error_NO @ self.weights[2].T) * (hidden_NH > 0)
        return [feature_NF.T @ error_NH, error_NH.sum(axis=0), hidden_NH.T @ error_NO, error_NO.sum(axis=0)]

    def _step(self, gradients: list[NDArray[np.float32]]) -> None:
        """One step of Adam."""
        self.steps += 1
        first, second = _BETAS
        rate = np.float32(self.lr * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps))
        for weight, gradient, (mean, square) in zip(self.weights, gradients, self._moments, strict=True):
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            weight -= rate * mean / (np.sqrt(square) + _EPSILON)

    @property
    def accuracy(self) -> float:
        """The share of held-out sums answered exactly right, over the grid of learnable points."""
        return float((self._forward(self.test_NF)[1].argmax(axis=2) == self.test_NT).all(axis=1).mean())
