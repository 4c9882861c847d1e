"""A conditional RealNVP over the unit cube, in closed form both ways, and Adam over its weights in one flat vector.

    a coupling keeps some coordinates and changes the others:   y = scale * x + t,   scale = 0.01 + softplus_like(s)
    s and t are highway networks of the kept coordinates and the condition f
    a block:  the left half changes the right one;  the right the left one;  the odd coordinates the even ones
    sample:  z ~ N(0, I) -> blocks -> sigmoid;    log p(x) = -|z|^2 / 2 - sum log scale - sum log sigmoid'     (without d/2 log 2 pi)

Source: Dinh, Sohl-Dickstein, Bengio (arXiv 1605.08803) as the setter of Racaniere, Lampinen et al. (arXiv 1909.12892).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float64]

_LEAST_SCALE, _TAIL = 0.01, -30.0
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def torch_or_raise() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "lm") from None
    return torch


def softplus_like(x: Tensor) -> Tensor:
    """x (atan(x) / pi + 1/2) + 1 / pi; below -30, where that loses its digits, its limit 1 / (3 pi x^2)."""
    torch = torch_or_raise()
    far = 1 / (3 * math.pi * x.clamp(max=_TAIL) ** 2)
    return torch.where(x < _TAIL, far, x * (torch.atan(x) / math.pi + 0.5) + 1 / math.pi)


class Weights:
    """Matrices and their biases in one flat float64 vector, with Adam's moments beside it.

    shapes: of a matrix (..., fan_in, n), of its bias (..., 1, n), of the next matrix, and so on. Matrices start as N(0, 1 / fan_in) cut at
    two standard deviations, from `rng`; biases at 0.
    """

    def __init__(self, shapes: list[tuple[int, ...]], rng: np.random.Generator, *, learning_rate: float) -> None:
        self._torch, self.learning_rate = torch_or_raise(), learning_rate
        self._shapes, self._sizes = shapes, [math.prod(shape) for shape in shapes]
        starts = []
        for matrix, bias in zip(shapes[::2], shapes[1::2], strict=True):
            starts += [np.clip(rng.standard_normal(math.prod(matrix)), -2, 2) / math.sqrt(matrix[-2]), np.zeros(math.prod(bias))]
        zeros = np.zeros(sum(self._sizes))
        self.arrays = [np.concatenate(starts), zeros, zeros, np.zeros(1)]

    @property
    def arrays(self) -> list[Float]:
        """The weights, Adam's first and second moments, and the number of its steps, shape (1,)."""
        tensors = (self._flat_P, self._first_P, self._second_P)
        return [*(tensor.detach().numpy().copy() for tensor in tensors), np.array([float(self._steps)])]

    @arrays.setter
    def arrays(self, arrays: list[Float]) -> None:
        flat, self._first_P, self._second_P = (self._torch.from_numpy(np.array(array, dtype=np.float64)) for array in arrays[:3])
        self._flat_P, self._steps = flat.requires_grad_(), int(arrays[3][0])

    def tensors(self) -> list[Tensor]:
        """The weights in their shapes, through which gradients flow."""
        parts = self._torch.split(self._flat_P, self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def step(self, loss: Tensor) -> None:
        """One step of Adam as torch.optim's."""
        torch = self._torch
        (gradient_P,) = torch.autograd.grad(loss, [self._flat_P])
        self._steps += 1
        with torch.no_grad():
            self._first_P.lerp_(gradient_P, 1 - _BETA1)
            self._second_P.mul_(_BETA2).addcmul_(gradient_P, gradient_P, value=1 - _BETA2)
            spread_P = (self._second_P / (1 - _BETA2**self._steps)).sqrt_().add_(_EPSILON)
            self._flat_P.addcdiv_(self._first_P, spread_P, value=-self.learning_rate / (1 - _BETA1**self._steps))


def couplings(dimensions: int, blocks: int) -> list[tuple[list[int], list[int]]]:
    """(kept, changed) coordinates of every coupling; those that would change nothing (in one dimension) are left out."""
    every, half = list(range(dimensions)), dimensions // 2
    block = [(every[:half], every[half:]), (every[half:], every[:half]), (every[1::2], every[::2])]
    return [(kept, changed) for kept, changed in blocks * block if changed]


class RealNVP:
    """The flow: `sample` and `infer` are each other's inverse, tensors float64. hidden: width; layers: gated layers per network."""

    def __init__(self, dimensions: int, rng: np.random.Generator, *, hidden: int, blocks: int, layers: int, learning_rate: float) -> None:
        self._torch, self.dimensions = torch_or_raise(), dimensions
        self._couplings, self._layers = couplings(dimensions, blocks), layers
        shapes: list[tuple[int, ...]] = []
        for kept, changed in self._couplings:  # the networks of s and t, stacked
            widths = [(len(kept) + 1, hidden), *[(hidden, 2 * hidden)] * layers, (hidden, len(changed))]
            shapes += [shape for fan_in, out in widths for shape in ((2, fan_in, out), (2, 1, out))]
        self.weights = Weights(shapes, rng, learning_rate=learning_rate)

    def _networks(self) -> list[tuple[list[int], list[int], list[Tensor]]]:
        tensors, per = self.weights.tensors(), 2 * (self._layers + 2)
        return [(kept, changed, tensors[per * i : per * (i + 1)]) for i, (kept, changed) in enumerate(self._couplings)]

    def _scale_and_shift(self, kept_BK: Tensor, f_B1: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        torch = self._torch
        x_BK = torch.cat([kept_BK, f_B1], dim=1)
        h = torch.tanh(torch.baddbmm(tensors[1], x_BK.expand(2, *x_BK.shape), tensors[0]))
        for layer in range(1, self._layers + 1):
            value, gate = torch.baddbmm(tensors[2 * layer + 1], h, tensors[2 * layer]).chunk(2, dim=-1)
            h = h + (torch.tanh(value) - h) * torch.sigmoid(gate)
        s_BC, t_BC = torch.baddbmm(tensors[-1], h, tensors[-2])
        return _LEAST_SCALE + softplus_like(s_BC), t_BC

    def sample(self, z_BD: Tensor, f_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Points of (0, 1)^D made of noise, and their log-densities, shape (B,)."""
        logp_B = -0.5 * (z_BD**2).sum(dim=1)
        for kept, changed, tensors in self._networks():
            scale_BC, t_BC = self._scale_and_shift(z_BD[:, kept], f_B1, tensors)
            moved_BD = z_BD.clone()
            moved_BD[:, changed] = z_BD[:, changed] * scale_BC + t_BC
            z_BD, logp_B = moved_BD, logp_B - scale_BC.log().sum(dim=1)
        return self._torch.sigmoid(z_BD), logp_B - self._log_slope(z_BD)

    def infer(self, x_BD: Tensor, f_B1: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that `sample` would make these points of (0, 1)^D of, and their log-densities, shape (B,)."""
        z_BD = self._torch.logit(x_BD)
        logp_B = -self._log_slope(z_BD)
        for kept, changed, tensors in reversed(self._networks()):
            scale_BC, t_BC = self._scale_and_shift(z_BD[:, kept], f_B1, tensors)
            moved_BD = z_BD.clone()
            moved_BD[:, changed] = (z_BD[:, changed] - t_BC) / scale_BC
            z_BD, logp_B = moved_BD, logp_B - scale_BC.log().sum(dim=1)
        return z_BD, logp_B - 0.5 * (z_BD**2).sum(dim=1)

    def _log_slope(self, logit_BD: Tensor) -> Tensor:
        log_sigmoid = self._torch.nn.functional.logsigmoid
        return (log_sigmoid(logit_BD) + log_sigmoid(-logit_BD)).sum(dim=1)
