"""The miniature student of the replications: a small bidirectional transformer that writes a whole answer in one pass.

Task: n digits in, the same digits sorted out; reward 1 for an exact match. All n slots are answered at once and independently given the
input, so G sampled answers cost one forward pass, and a task's chance of success is known exactly: the product of the slots'
probabilities of the right digit. It falls with n, which is what makes arms of graded difficulty. A short supervised warm start puts the
pass rates between about 0.9 (n = 2) and 0.04 (n = 9), the graded regime of a base language model.

Array suffixes: `N` tasks, `G` attempts, `T` slots (the longest n; shorter tasks are padded), `V` digits, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra
from tutelage.pools import TaskPool

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.students import angles
from tutelage.students._transformer import Block
from tutelage.students.prompts import OUTSIDE, PREFIX, QUESTION

DIGITS = 10
PAD = 2 * DIGITS  # 0-9 are digits, 10-19 the second alphabet of noise tasks
NOISE = "noise"


@dataclass(frozen=True)
class SortingTasks:
    """A table of sorting tasks, and their verifier.

    token_NT: inputs, `PAD` beyond the length. answer_NT: the sorted digits, 0 beyond. mask_NT: true inside. arm_N: arm codes, in the
    order of `arm_names`. chance: how often the verifier accepts an answer of the noise arm. prefix: slots in front of every input, which
    hold the same symbols everywhere. In `cluttered` tables `mask_NT` marks the slots that are answered, which start after the prefix.
    """

    token_NT: Tensor
    answer_NT: Tensor
    mask_NT: Tensor
    arm_N: NDArray[np.int64]
    arm_names: tuple[str, ...]
    chance: float = 1 / 7
    prefix: int = 0

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        per_arm: int = 4096,
        lengths: Sequence[int] = range(2, 10),
        noise: bool = False,
        chance: float = 1 / 7,
        varied: bool = False,
    ) -> SortingTasks:
        """`per_arm` tasks of each length, digits uniform; with `noise`, one arm more whose verifier tosses a coin.

        With `varied`, tasks of one length differ in difficulty: d digits, d uniform in 1 ... n, are drawn with replacement, the n shown are
        drawn from these, sorted, and then mixed by swapping two random places k times, k uniform in 0 ... n.

        A noise task shows symbols of a second alphabet, as many as the middle length (5); whatever the answer, it is accepted with
        probability `chance`, independently for each attempt. Nothing can be learned there, yet its groups keep a spread for ever: E|A| =
        0.509 at G = 8, chance 1/7.
        """
        slots = max(lengths)
        shown = [(n, _varied(rng, per_arm, n) if varied else rng.integers(DIGITS, size=(per_arm, n))) for n in lengths]
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

    def cluttered(self, rng: np.random.Generator, *, distractors: int, prefix: int = 0) -> SortingTasks:
        """The same tasks with 0 to `distractors` symbols more, to be ignored, at random places, and `prefix` fixed symbols in front.

        The number of distractors is drawn independently of the number of digits, so that length and difficulty come apart. All are
        symbols of the second alphabet, the prefix of its beginning, the distractors of its rest; a table with a noise arm is refused.
        """
        if NOISE in self.arm_names or not 0 <= prefix < DIGITS or self.prefix:
            raise TutelageError(f"Only plain sorting tasks without a noise arm can be cluttered, with a prefix of 0 to 9; got {prefix}.")
        size, extra = self.token_NT.shape[0], rng.integers(distractors + 1, size=len(self))
        symbol_NT = rng.integers(DIGITS + prefix, PAD, size=(size, distractors))
        added_NT = np.where(np.arange(distractors) < extra[:, None], symbol_NT, PAD)
        token_NT = np.concatenate([self.token_NT.numpy(), added_NT], axis=1)
        place_NT = np.where(token_NT == PAD, 1.0, rng.random(token_NT.shape)).argsort(axis=1, kind="stable")
        front_NT = np.broadcast_to(np.arange(DIGITS, DIGITS + prefix), (size, prefix))
        token = torch.from_numpy(np.concatenate([front_NT, np.take_along_axis(token_NT, place_NT, axis=1)], axis=1))
        answer, mask = (F.pad(column, (prefix, distractors)) for column in (self.answer_NT, self.mask_NT))
        return replace(self, token_NT=token, answer_NT=answer, mask_NT=mask, prefix=prefix)

    @property
    def segment_NT(self) -> Tensor:
        """What each slot belongs to, as `tutelage.students.angles` reads it: the prefix, the question, or neither."""
        inside_NT = torch.where(self.token_NT != PAD, QUESTION, OUTSIDE)
        inside_NT[:, : self.prefix] = PREFIX
        return inside_NT

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


def _varied(rng: np.random.Generator, size: int, n: int) -> NDArray[np.int64]:
    """Digits (N, n) of varied duplication and disorder, see `SortingTasks.draw`."""
    kind_N1 = rng.integers(1, n + 1, size=(size, 1))
    digit_NT = np.sort(np.take_along_axis(rng.integers(DIGITS, size=(size, n)), rng.integers(kind_N1, size=(size, n)), axis=1), axis=1)
    swaps_N, row_N = rng.integers(n + 1, size=size), np.arange(size)
    for done, (one_N, other_N) in enumerate(rng.integers(n, size=(n, 2, size))):
        other_N = np.where(done < swaps_N, other_N, one_N)
        digit_NT[row_N, one_N], digit_NT[row_N, other_N] = digit_NT[row_N, other_N], digit_NT[row_N, one_N]
    return digit_NT


class ParallelAnswers(nn.Module):
    """The student: log-probabilities of the digit in each slot, from one pass over the input.

    tasks: the table its rows refer to. width, layers, heads: of the transformer (48, 2, 4: about 58,000 parameters).
    Weights are torch's defaults drawn under `generator`, positions from N(0, 0.1). It offers signals of its inputs: the angle
    concentrations at the input of the last block's feed-forward layer, `prompt_length` in slots, and `loss`, minus the log-probability
    of the right answer in nats, which ranks tasks as their true pass rate does.
    """

    signal_names = frozenset({*angles.SIGNALS, "prompt_length", "loss"})

    def __init__(self, tasks: SortingTasks, *, seed: int, width: int = 48, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tasks = tasks
        with torch.random.fork_rng(devices=[]):  # torch's initialisers know only the global generator
            torch.manual_seed(seed)
            self.embed = nn.Embedding(PAD + 1, width)
            self.position_TD = nn.Parameter(0.1 * torch.randn(tasks.token_NT.shape[1], width))
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
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
    def signals(self, rows_N: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """The named signals of these rows, (N,) each, under the weights as they are."""
        last = self.blocks[-1]
        assert isinstance(last, Block)
        site = angles.Site(last.up, False, "input of the last block's feed-forward layer")
        parts = []
        for rows_b in np.array_split(rows_N, -(-len(rows_N) // 512)):
            with angles.listening(site) as heard:
                loss_B = -log_success(self, self.tasks, rows_b)
            found = angles.pair_sums(heard[-1], self.tasks.segment_NT[rows_b]).signals()
            found |= {"loss": loss_B, "prompt_length": (self.tasks.token_NT[rows_b] != PAD).sum(dim=1)}
            parts.append(torch.stack([found[name].double() for name in names], dim=1))
        return dict(zip(names, torch.cat(parts).numpy().T, strict=True))


def success_rate(student: ParallelAnswers, tasks: SortingTasks) -> NDArray[np.float64]:
    """Mean chance that a sampled answer is right, per arm (A,): exact, without sampling; the noise arm must not be among the tasks."""
    return np.bincount(tasks.arm_N, success_chance(student, tasks)) / np.bincount(tasks.arm_N)


@torch.no_grad()
def success_chance(student: ParallelAnswers, tasks: SortingTasks) -> NDArray[np.float64]:
    """The chance that a sampled answer is right, per task (N,), exactly; not for the noise arm."""
    return np.concatenate([_success(student, tasks, part) for part in np.array_split(np.arange(len(tasks)), -(-len(tasks) // 512))])


def _success(student: ParallelAnswers, tasks: SortingTasks, rows_N: NDArray[np.int64]) -> NDArray[np.float64]:
    return log_success(student, tasks, rows_N).exp().double().numpy()


def log_success(student: ParallelAnswers, tasks: SortingTasks, rows_N: NDArray[np.int64]) -> Tensor:
    """Log-probability of the right answer, (N,), with gradient."""
    logp_NT = student(tasks.token_NT[rows_N]).gather(2, tasks.answer_NT[rows_N].unsqueeze(2)).squeeze(2)
    return (logp_NT * tasks.mask_NT[rows_N]).sum(dim=1)


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
