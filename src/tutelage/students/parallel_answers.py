"""The miniature student of the replications: a small bidirectional transformer that writes a whole answer in one pass.

Task: n digits in, the same digits sorted out; reward 1 for an exact match. All n slots are answered at once and independently given the
input, so G sampled answers cost one forward pass, and a task's chance of success is known exactly: the product of the slots'
probabilities of the right digit. It falls with n, which is what makes arms of graded difficulty. A short supervised warm start puts the
pass rates between about 0.9 (n = 2) and 0.04 (n = 9), the graded regime of a base language model.

Array suffixes: `N` tasks, `G` attempts, `T` slots (the longest n; shorter tasks are padded), `V` digits, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import missing_extra
from tutelage.pools import TaskPool

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

DIGITS = 10
PAD = 2 * DIGITS  # 0-9 are digits, 10-19 the second alphabet of noise tasks
NOISE = "noise"


@dataclass(frozen=True)
class SortingTasks:
    """A table of sorting tasks, and their verifier.

    token_NT: inputs, `PAD` beyond the length. answer_NT: the sorted digits, 0 beyond. mask_NT: true inside. arm_N: arm codes, in the
    order of `arm_names`. chance: how often the verifier accepts an answer of the noise arm.
    """

    token_NT: Tensor
    answer_NT: Tensor
    mask_NT: Tensor
    arm_N: NDArray[np.int64]
    arm_names: tuple[str, ...]
    chance: float = 1 / 7

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        per_arm: int = 4096,
        lengths: Sequence[int] = range(2, 10),
        noise: bool = False,
        chance: float = 1 / 7,
    ) -> SortingTasks:
        """`per_arm` tasks of each length, digits uniform; with `noise`, one arm more whose verifier tosses a coin.

        A noise task shows symbols of a second alphabet, as many as the middle length (5); whatever the answer, it is accepted with
        probability `chance`, independently for each attempt. Nothing can be learned there, yet its groups keep a spread for ever: E|A| =
        0.509 at G = 8, chance 1/7.
        """
        slots = max(lengths)
        shown = [(n, rng.integers(DIGITS, size=(per_arm, n))) for n in lengths]
        if noise:
            middle = (min(lengths) + max(lengths)) // 2
            shown.append((middle, rng.integers(DIGITS, size=(per_arm, middle))))
        token_NT = np.full((len(shown) * per_arm, slots), PAD)
        answer_NT = np.zeros_like(token_NT)
        for a, (n, digit_NT) in enumerate(shown):
            rows = slice(a * per_arm, (a + 1) * per_arm)
            token_NT[rows, :n] = digit_NT + (DIGITS if a == len(lengths) else 0)
            answer_NT[rows, :n] = np.sort(digit_NT, axis=1)
        names = (*(str(n) for n in lengths), *([NOISE] if noise else []))
        token = torch.from_numpy(token_NT)
        return cls(token, torch.from_numpy(answer_NT), token != PAD, np.repeat(np.arange(len(names)), per_arm), names, chance)

    def __len__(self) -> int:
        return len(self.arm_N)

    def pool(self) -> TaskPool:
        """The tasks as a pool: arms by length, prior difficulty the length."""
        return TaskPool(arm=self.arm_N, arm_names=self.arm_names, difficulty=self.mask_NT.sum(dim=1).numpy())

    def verify(self, rows_N: NDArray[np.int64], token_NGT: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
        """1 where all slots of an answer are right, else 0, shape (N, G); `rng` tosses the noise arm's coins."""
        right_NGT = (token_NGT == self.answer_NT[rows_N].unsqueeze(1)) | ~self.mask_NT[rows_N].unsqueeze(1)
        solved_NG = right_NGT.all(dim=2).numpy()
        if NOISE in self.arm_names:
            noisy_N = self.arm_N[rows_N] == len(self.arm_names) - 1
            solved_NG[noisy_N] = rng.random((int(noisy_N.sum()), solved_NG.shape[1])) < self.chance
        return solved_NG.astype(np.float64)


class _Block(nn.Module):
    """Pre-norm attention over all positions, then a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_NTD: Tensor, mask_N11T: Tensor) -> Tensor:
        n, slots, width = x_NTD.shape
        query, key, value = self.qkv(self.norm1(x_NTD)).view(n, slots, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_N11T)
        x_NTD = x_NTD + self.out(mixed.transpose(1, 2).reshape(n, slots, width))
        return x_NTD + self.down(F.gelu(self.up(self.norm2(x_NTD))))


class ParallelAnswers(nn.Module):
    """The student: log-probabilities of the digit in each slot, from one pass over the input.

    tasks: the table its rows refer to. width, layers, heads: of the transformer (48, 2, 4: about 58,000 parameters).
    Weights are torch's defaults drawn under `generator`, positions from N(0, 0.1).
    """

    def __init__(self, tasks: SortingTasks, *, seed: int, width: int = 48, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tasks = tasks
        with torch.random.fork_rng(devices=[]):  # torch's initialisers know only the global generator
            torch.manual_seed(seed)
            self.embed = nn.Embedding(PAD + 1, width)
            self.position_TD = nn.Parameter(0.1 * torch.randn(tasks.token_NT.shape[1], width))
            self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, DIGITS)

    def forward(self, token_NT: Tensor) -> Tensor:
        """Log-probabilities (N, T, V)."""
        mask_N11T = (token_NT != PAD)[:, None, None, :]
        x_NTD = self.embed(token_NT) + self.position_TD
        for block in self.blocks:
            x_NTD = block(x_NTD, mask_N11T)
        return F.log_softmax(self.head(self.norm(x_NTD)), dim=-1)

    @torch.no_grad()
    def sample(self, rows_N: NDArray[np.int64], attempts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`attempts` answers to each task, drawn slot by slot, and which slots count: two tensors (N, G, T)."""
        edge_NTV = self(self.tasks.token_NT[rows_N]).exp().cumsum(dim=-1)
        point_NGT1 = torch.rand(len(rows_N), attempts, edge_NTV.shape[1], 1, generator=generator)
        token_NGT = (point_NGT1 > edge_NTV.unsqueeze(1)).sum(dim=-1).clamp(max=DIGITS - 1)
        return token_NGT, self.tasks.mask_NT[rows_N].unsqueeze(1).expand_as(token_NGT)

    def logp(self, rows_N: NDArray[np.int64], token_NGT: Tensor) -> Tensor:
        """Log-probability of each slot of the answers, in nats, with gradient (N, G, T)."""
        logp_NTV = self(self.tasks.token_NT[rows_N])
        return logp_NTV.transpose(1, 2).gather(1, token_NGT)  # over V: index (N, G, T) picks from (N, V, T)


@torch.no_grad()
def success_rate(student: ParallelAnswers, tasks: SortingTasks) -> NDArray[np.float64]:
    """Mean chance that a sampled answer is right, per arm (A,): exact, without sampling; the noise arm must not be among the tasks."""
    chance_N = np.concatenate([_success(student, tasks, part) for part in np.array_split(np.arange(len(tasks)), -(-len(tasks) // 512))])
    return np.bincount(tasks.arm_N, chance_N) / np.bincount(tasks.arm_N)


def _success(student: ParallelAnswers, tasks: SortingTasks, rows_N: NDArray[np.int64]) -> NDArray[np.float64]:
    logp_NT = student(tasks.token_NT[rows_N]).gather(2, tasks.answer_NT[rows_N].unsqueeze(2)).squeeze(2)
    return (logp_NT * tasks.mask_NT[rows_N]).sum(dim=1).exp().double().numpy()


def warm_start(
    student: ParallelAnswers, tasks: SortingTasks, *, rng: np.random.Generator, steps: int = 150, batch: int = 64, lr: float = 1.2e-3
) -> None:
    """Supervised steps on uniformly drawn tasks: cross-entropy per slot, Adam.

    Batch and learning rate are not in any source; they were set so that the pass rates span about 0.9 to 0.04, before any curriculum ran.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    for _ in range(steps):
        rows_N = rng.integers(len(tasks), size=batch)
        mask_NT = tasks.mask_NT[rows_N]
        logp_NTV = student(tasks.token_NT[rows_N])
        loss = F.nll_loss(logp_NTV[mask_NT], tasks.answer_NT[rows_N][mask_NT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
