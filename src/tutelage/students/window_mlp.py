"""A student without attention for imitation: bits in, a few tokens out, and the random function that it learns to imitate.

    task = RandomFunction(seed=0)
    data = task.demonstrations(2500, rng, noise=0.1)
    student = WindowMLP(task, seed=0)
    answer_NT = student.sample(data.bit_NP, generator)
    logp_NT = student.logp(data.bit_NP, answer_NT)

The student is an autoregressive multilayer perceptron over a fixed window: it reads the bits, the answer's earlier tokens and the place
to fill, and gives the distribution of the next token. Some 8,000 parameters; a training step of 64 answers takes about a millisecond.

Array suffixes: `N` prompts, `P` bits of a prompt, `T` answer tokens, `K` tokens to choose from, `F` features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tutelage.errors import missing_extra

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error


class Demonstrations(NamedTuple):
    """bit_NP: prompts, -1 or 1. target_NT: the demonstrated answers. right_NT: the function's own, without noise."""

    bit_NP: Tensor
    target_NT: Tensor
    right_NT: Tensor


class RandomFunction:
    """A function from `bits` bits to `tokens` tokens out of `choices`, drawn once under `seed`.

    Each token is the likeliest under a random network (`hidden` tanh units) of the bits and the tokens before it, so there is one right
    answer to each prompt, and a few thousand demonstrations do not determine it.
    """

    def __init__(self, *, seed: int, bits: int = 14, tokens: int = 4, choices: int = 8, hidden: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.bits, self.tokens, self.choices = bits, tokens, choices
        self._in = [rng.normal(0, 1.5 / np.sqrt(bits + t), (bits + t * choices, hidden)) for t in range(tokens)]
        self._out = [rng.normal(0, 1, (hidden, choices)) for _ in range(tokens)]

    def demonstrations(self, n: int, rng: np.random.Generator, *, noise: float = 0.0) -> Demonstrations:
        """`n` random prompts with answers in which each token, with probability `noise`, is another one than the function's."""
        bit_NP = rng.choice([-1.0, 1.0], (n, self.bits))
        seen, chosen = bit_NP, []
        for into, out in zip(self._in, self._out, strict=True):
            chosen.append((np.tanh(seen @ into) @ out).argmax(axis=1))
            seen = np.concatenate([seen, np.eye(self.choices)[chosen[-1]]], axis=1)
        right_NT = np.stack(chosen, axis=1)
        shift_NT = np.where(rng.random(right_NT.shape) < noise, rng.integers(1, self.choices, right_NT.shape), 0)
        target_NT = (right_NT + shift_NT) % self.choices
        return Demonstrations(torch.from_numpy(bit_NP).float(), torch.from_numpy(target_NT), torch.from_numpy(right_NT))


class WindowMLP(nn.Module):
    """Two hidden layers of `width` units; weights are torch's defaults, drawn under `seed`."""

    _before_TT: Tensor
    _place_TT: Tensor

    def __init__(self, task: RandomFunction, *, seed: int, width: int = 64) -> None:
        super().__init__()
        self.tokens, self.choices = task.tokens, task.choices
        features = task.bits + task.tokens * (task.choices + 1)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers know only the global generator
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, task.choices)
            )
        self.register_buffer("_before_TT", torch.ones(task.tokens, task.tokens).tril(-1))
        self.register_buffer("_place_TT", torch.eye(task.tokens))

    def forward(self, bit_NP: Tensor, answer_NT: Tensor) -> Tensor:
        """Log-probabilities of every token given those before it (N, T, K)."""
        size, tokens = answer_NT.shape
        one_hot_NTK = F.one_hot(answer_NT, self.choices).to(bit_NP)
        before_NTF = (self._before_TT[None, :, :, None] * one_hot_NTK[:, None]).flatten(2)
        place_NTT = self._place_TT.expand(size, tokens, tokens)
        return self.net(torch.cat([bit_NP[:, None].expand(-1, tokens, -1), before_NTF, place_NTT], dim=2)).log_softmax(-1)

    def logp(self, bit_NP: Tensor, answer_NT: Tensor) -> Tensor:
        """Log-probability of each token, in nats, with gradient (N, T)."""
        return self(bit_NP, answer_NT).gather(2, answer_NT.unsqueeze(2)).squeeze(2)

    @torch.no_grad()
    def sample(self, bit_NP: Tensor, generator: torch.Generator | None) -> Tensor:
        """One answer to each prompt (N, T), drawn at temperature 1; without a generator the likeliest tokens."""
        answer_NT = torch.zeros(len(bit_NP), self.tokens, dtype=torch.long)
        for t in range(self.tokens):
            logp_NK = self(bit_NP, answer_NT)[:, t]
            if generator is None:
                answer_NT[:, t] = logp_NK.argmax(dim=1)
            else:
                answer_NT[:, t] = torch.multinomial(logp_NK.exp(), 1, generator=generator).squeeze(1)
        return answer_NT
