"""A small least-squares GAN over points in (-1, 1)^D, whose chance is all from a numpy generator.

    L_D = mean (2 y - 1 - D(x))^2,   y = 1 for the points to imitate, 0 for the others and for what the generator makes
    L_G = mean (D(G(z)) - 1)^2,      z ~ N(0, I) in R^D

Source: Mao et al. (arXiv 1611.04076) with the labels of Held et al. (GoalGAN, arXiv 1705.06366).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float64]

_BATCH, _DECAY, _EPSILON = 64, 0.99, 1e-8


def discriminator_loss(score_B: Tensor, label_B: Tensor) -> Tensor:
    """The mean of (2 y - 1 - D)^2, labels y in {0, 1}."""
    return ((2 * label_B - 1 - score_B) ** 2).mean()


def generator_loss(score_B: Tensor) -> Tensor:
    """The mean of (D - 1)^2 over what the generator made."""
    return ((score_B - 1) ** 2).mean()


class LSGAN:
    """Generator D -> hidden relu -> tanh; discriminator D -> hidden leaky relu (0.1) -> linear. RMSProp for both, float32, on the CPU.

    generator, discriminator: hidden widths. Weights start Glorot-uniform from `rng`, biases at 0.
    """

    def __init__(
        self, dimensions: int, rng: np.random.Generator, *, generator: list[int], discriminator: list[int], learning_rate: float
    ) -> None:
        try:
            import torch
        except ImportError:
            raise missing_extra("torch", "lm") from None
        self._torch: Any = torch
        self.dimensions, self.learning_rate = dimensions, learning_rate
        widths = [[dimensions, *generator, dimensions], [dimensions, *discriminator, 1]]
        start: list[NDArray[np.float32]] = []
        for width in widths:
            for fan_in, fan_out in itertools.pairwise(width):
                bound = np.sqrt(6 / (fan_in + fan_out))
                start += [rng.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32), np.zeros(fan_out, dtype=np.float32)]
        self._split = 2 * (len(widths[0]) - 1)  # tensors of the generator come first
        self.arrays = start + [np.zeros_like(array) for array in start]

    @property
    def arrays(self) -> list[NDArray[np.float32]]:
        """Weights and biases of both, then RMSProp's mean squares of their gradients."""
        return [tensor.detach().numpy().copy() for tensor in (*self._weights, *self._squares)]

    @arrays.setter
    def arrays(self, arrays: list[NDArray[np.float32]]) -> None:
        tensors = [self._torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays]
        half = len(tensors) // 2
        self._weights = [tensor.requires_grad_() for tensor in tensors[:half]]
        self._squares = tensors[half:]

    def generator(self, z_BD: Tensor) -> Tensor:
        """Points in (-1, 1)^D from noise."""
        return self._torch.tanh(self._forward(z_BD, self._weights[: self._split], self._torch.relu))

    def discriminator(self, x_BD: Tensor) -> Tensor:
        """Scores, shape (B,)."""
        leaky = self._torch.nn.functional.leaky_relu
        return self._forward(x_BD, self._weights[self._split :], lambda h: leaky(h, 0.1))[:, 0]

    def _forward(self, x_BD: Tensor, weights: list[Any], activation: Any) -> Any:
        h, linear = x_BD, self._torch.nn.functional.linear
        for layer in range(0, len(weights), 2):
            h = linear(h, weights[layer], weights[layer + 1])
            h = activation(h) if layer < len(weights) - 2 else h
        return h

    def _noise(self, n: int, rng: np.random.Generator) -> Tensor:
        return self._torch.from_numpy(rng.standard_normal((n, self.dimensions)).astype(np.float32))

    def sample(self, n: int, rng: np.random.Generator) -> Float:
        """n generated points in [-1, 1]^D, float64."""
        with self._torch.no_grad():
            return np.asarray(self.generator(self._noise(n, rng)).numpy(), dtype=np.float64)

    def train(self, x_ND: Float, label_N: NDArray[np.bool_], iterations: int, rng: np.random.Generator) -> tuple[float, float]:
        """Alternate one step of each network, on 64 of the labelled points and 64 generated ones; the last losses of both."""
        torch = self._torch
        all_ND = torch.from_numpy(x_ND.astype(np.float32))
        y_N = torch.from_numpy(label_N.astype(np.float32))
        losses = (0.0, 0.0)
        for _ in range(iterations):
            rows_B = torch.from_numpy(rng.integers(len(x_ND), size=_BATCH))
            with torch.no_grad():
                made_BD = self.generator(self._noise(_BATCH, rng))
            score_B = self.discriminator(torch.cat([all_ND[rows_B], made_BD]))
            loss_d = discriminator_loss(score_B, torch.cat([y_N[rows_B], torch.zeros(_BATCH)]))
            self._step(loss_d, slice(self._split, None))
            loss_g = generator_loss(self.discriminator(self.generator(self._noise(_BATCH, rng))))
            self._step(loss_g, slice(None, self._split))
            losses = float(loss_d.detach()), float(loss_g.detach())
        return losses

    def _step(self, loss: Tensor, part: slice) -> None:
        """RMSProp as torch.optim's."""
        torch, weights, squares = self._torch, self._weights[part], self._squares[part]
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, square, gradient in zip(weights, squares, gradients, strict=True):
                square.mul_(_DECAY).addcmul_(gradient, gradient, value=1 - _DECAY)
                weight.sub_(self.learning_rate * gradient / (square.sqrt() + _EPSILON))
