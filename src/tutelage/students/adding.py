"""A student with a network over a continuous space: a small perceptron that learns to add, the space being how long and how hard the sums.

    length in [0, 1]    1 ... 6 digits, one sixth each; sums of 5 and 6 digits have random answers: nobody can learn them
    carries in [0, 1]   the chance that a pair of digits adds up to 10 or more
    an episode at a point: 32 sums; the return is the share answered exactly right; then one optimiser step on them

The network reads the digits of both numbers, one-hot with blanks, and gives the digits of the answer at once. 27,000 parameters; an episode
takes about a millisecond. Array suffixes: `N` sums, `P` places from the lowest, `F` features, `T` places of the answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import missing_extra
from tutelage.spaces import TaskSpace

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "rl") from error

Float = NDArray[np.float64]
LENGTHS, LEARNABLE, BLANK = 6, 4, 10


def pairs(carry: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """For each place two digits that add up to 10 or more where `carry` is set, to 9 or less elsewhere; one of the 45 or 55 pairs each."""
    first, second = np.divmod(np.arange(100), 10)
    high, low = np.flatnonzero(first + second >= 10), np.flatnonzero(first + second < 10)
    place = np.where(carry, high[rng.integers(len(high), size=carry.shape)], low[rng.integers(len(low), size=carry.shape)])
    return np.stack(np.divmod(place, 10), axis=-1)


def sums(length: int, carries: float, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
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
    feature_NF = np.eye(BLANK + 1, dtype=np.float32)[digit_NP2].reshape(n, -1)
    return torch.from_numpy(feature_NF), torch.from_numpy(answer_NT)


class AddingStudent:
    """A perceptron with one hidden layer, trained by Adam on the sums of each episode.

    seed: of its weights and of all sums. batch: sums per episode. held_out: sums per cell of the 8 x 8 grid of learnable points.
    """

    space = TaskSpace([0.0, 0.0], [1.0, 1.0], names=("length", "carries"))

    def __init__(self, *, seed: int = 0, hidden: int = 128, lr: float = 2e-3, batch: int = 32, held_out: int = 16) -> None:
        weights, held, self.rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
        sizes = (LENGTHS * 2 * (BLANK + 1), hidden, (LENGTHS + 1) * (BLANK + 1))
        self.network = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))
        with torch.no_grad():
            for parameter in self.network.parameters():
                bound = sizes[0] ** -0.5
                parameter.copy_(torch.from_numpy(weights.uniform(-bound, bound, tuple(parameter.shape))))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, fused=True)
        self.batch = batch
        grid = [(length, (i + 0.5) / 8) for length in range(1, LEARNABLE + 1) for i in range(8)]
        parts = [sums(length, carries, held_out, held) for length, carries in grid]
        self.test_NF, self.test_NT = (torch.cat([part[i] for part in parts]) for i in (0, 1))

    def logits(self, feature_NF: Tensor) -> Tensor:
        """(N, T, 11)."""
        logit: Tensor = self.network(feature_NF).unflatten(1, (LENGTHS + 1, BLANK + 1))
        return logit

    def attempt(self, points_ND: Float) -> Float:
        """One episode per point, in order; returns in [0, 1], shape (N,)."""
        return np.array([self._episode(min(int(length * LENGTHS), LENGTHS - 1) + 1, carries) for length, carries in points_ND])

    def _episode(self, length: int, carries: float) -> float:
        feature_NF, answer_NT = sums(length, carries, self.batch, self.rng)
        logit_NTK = self.logits(feature_NF)
        self.optimizer.zero_grad()
        F.cross_entropy(logit_NTK.flatten(0, 1), answer_NT.flatten()).backward()
        self.optimizer.step()
        return (logit_NTK.argmax(2) == answer_NT).all(dim=1).double().mean().item()

    @property
    def accuracy(self) -> float:
        """The share of held-out sums answered exactly right, over an even grid of the learnable points."""
        with torch.no_grad():
            return (self.logits(self.test_NF).argmax(2) == self.test_NT).all(dim=1).double().mean().item()
