"""Ground and ceiling from a compositional pattern-producing network with fixed random weights.

    h1 = tanh([x / 199, v] W1)   h2 = softplus(h1 W2)   h3 = tanh(h2 W3)   h4 = softplus(h3 W4)   (ground, ceiling) = h4 W5 / 10

x is the place along the track, v the three inputs that a task sets; 64 units a layer, no biases, weights from a normal distribution of
standard deviation 2 truncated at two of them. Source: the Parkour of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815). Its
weights are not shipped here; these come from `SEED`, the first of which, over a 3 x 3 x 3 grid of the benchmark's medium inputs, the
median ground has at most five steps above a metre and at most a tenth of the ceilings come within two metres of the ground: terrains of the
same kind, but not the same.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

PLACES, INPUTS, WIDTH, OUTPUTS, SCALE = 200, 3, 64, 2, 10.0
SEED = 10


@lru_cache(maxsize=8)
def weights(seed: int = SEED) -> tuple[Float, ...]:
    """The five weight matrices of a seed."""
    rng = np.random.default_rng(seed)
    sizes = [1 + INPUTS, WIDTH, WIDTH, WIDTH, WIDTH, OUTPUTS]
    return tuple(_truncated_normal(rng, shape) for shape in itertools.pairwise(sizes))


def terrain(inputs_3: Float, seed: int = SEED) -> tuple[Float, Float]:
    """Heights of ground and ceiling in metres at 200 places, each from an arbitrary origin."""
    x_X = np.arange(PLACES) / (PLACES - 1)
    w1, w2, w3, w4, w5 = weights(seed)
    h_XH = np.tanh(np.column_stack([x_X, np.tile(inputs_3, (PLACES, 1))]) @ w1)
    h_XH = np.tanh(np.logaddexp(0.0, h_XH @ w2) @ w3)
    out_X2 = np.logaddexp(0.0, h_XH @ w4) @ w5 / SCALE
    return out_X2[:, 0], out_X2[:, 1]


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
    draws = rng.standard_normal(shape)
    while (outside := np.abs(draws) > 2).any():
        draws[outside] = rng.standard_normal(int(outside.sum()))
    return 2.0 * draws
