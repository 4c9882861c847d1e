"""SimpleRL-Zoo (arXiv 2503.18892): reinforcement learning from base models, its reward, its data and its monitors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.registry import curricula, replications
from tutelage.study.miniature import _integer, _one_thread, _torch
from tutelage.study.replicate import Arm, Cell, Comparison, Replication
from tutelage.tasks.diagnostics import diagnose, ended_by_token, rambling
from tutelage.tasks.rewards import FormatIndependent, Shaping, correct_only
from tutelage.tasks.verifiers.answers import boxed

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.students.tiny_causal import TinyCausal

END, BOX, FILLER, ONE = 1, 2, 3, 4  # 0 is padding; ONE is the digit 1, up to 9
WORDS = {BOX: r"\boxed{", FILLER: "hm "} | {ONE + i: str(i + 1) for i in range(9)}
LENGTHS = tuple(range(2, 8))
EASY, HARD = (2, 3, 4), (5, 6, 7)
LIMIT = 12
LENGTH_BONUS = 0.05


@dataclass(frozen=True)
class Scale:
    """The size of an experiment; `fall` is the loss of accuracy that counts as a fall."""

    updates: int = 200
    batch: int = 32
    attempts: int = 8
    lr: float = 5e-4
    weak_steps: int = 60
    base_steps: int = 150
    strong_steps: int = 400
    boxed_share: float = 0.15
    per_length: int = 2048
    held_out: int = 24
    evaluate_every: int = 10
    fall: float = 0.05


FULL = Scale()
SMOKE = Scale(updates=2, weak_steps=4, base_steps=6, strong_steps=8, per_length=16, held_out=2, evaluate_every=1)


@dataclass(frozen=True)
class Tasks:
    """Digits to sort: prompts (N, P), gold answers as text, lengths as arms."""

    prompt_NP: Tensor
    gold_N: list[str]
    length_N: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, lengths: Sequence[int], per_length: int) -> Tasks:
        from tutelage.students.tiny_causal import padded

        digits = [rng.integers(1, 10, size=n).tolist() for n in lengths for _ in range(per_length)]
        prompt_NP = padded([[ONE + d - 1 for d in row] + [END] for row in digits], left=True)
        return cls(prompt_NP, ["".join(map(str, sorted(row))) for row in digits], np.array([len(row) for row in digits]))

    def pool(self) -> TaskPool:
        return TaskPool(arm=self.length_N, difficulty=self.length_N)


def rendered(token_BT: NDArray[np.int64]) -> list[str]:
    """Answers as text, up to their end token, which also closes the box: an answer that is cut off inside its box is not formatted."""
    texts = []
    for row in token_BT.tolist():
        ended = END in row
        text = "".join(WORDS.get(token, "") for token in (row[: row.index(END)] if ended else row))
        texts.append(f"{text}}}" if ended and BOX in row else text)
    return texts


def judged(texts: Sequence[str], gold: str) -> list[Kind]:
    """Lenient extraction, as in the release: the last number of the text, in a box or not."""
    last = [(re.findall(r"\d+", text) or [""])[-1] for text in texts]
    return [Kind.CORRECT if number == gold else Kind.WRONG if number else Kind.MALFORMED for number in last]


def length_bug(kind_B: NDArray[np.int8], grade_B: NDArray[np.float64], texts_B: Sequence[str]) -> NDArray[np.float64]:
    """A reward that should be correctness and also pays a little for every symbol said."""
    said_B = np.array([len(text.split("hm")) - 1 + sum(map(str.isdigit, text)) for text in texts_B])
    return correct_only(kind_B, grade_B, texts_B) + LENGTH_BONUS * said_B


@lru_cache(maxsize=4)
def base_model(seed: int, steps: int, size: Scale) -> TinyCausal:
    """The base of a seed: supervised steps on sorted digits after fillers, a share of them in a box."""
    torch = _torch()
    from tutelage.students.tiny_causal import TinyCausal, padded

    data, weights = np.random.SeedSequence(seed).spawn(5)[:2]
    rng = np.random.default_rng(data)
    tasks = Tasks.draw(rng, LENGTHS, size.per_length)
    student = TinyCausal(vocabulary=ONE + 9, context=max(LENGTHS) + 1 + LIMIT, seed=_integer(weights))
    optimizer = torch.optim.Adam(student.parameters(), lr=1.2e-3, fused=True)
    with _one_thread():
        for _ in range(steps):
            rows = rng.integers(len(tasks.gold_N), size=64)
            solutions = [_solution(tasks.gold_N[row], rng, size.boxed_share) for row in rows]
            loss = student.nll(tasks.prompt_NP[torch.from_numpy(rows)], padded(solutions, left=False))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def _solution(gold: str, rng: np.random.Generator, boxed_share: float) -> list[int]:
    box = [BOX] if rng.random() < boxed_share else []
    return [FILLER] * int(rng.choice(3, p=[0.6, 0.25, 0.15])) + box + [ONE + int(digit) - 1 for digit in gold] + [END]


def teach(seed: int, size: Scale, *, steps: int, lengths: Sequence[int], shaping: Shaping, evaluate_every: int) -> dict[str, Any]:
    """Reinforcement from the base of `steps` supervised steps on tasks of these lengths; returns the curve of diagnostics and the cost."""
    torch = _torch()
    from tutelage.objectives import objective
    from tutelage.students.tiny_causal import Answering
    from tutelage.trainers.torch_loop import train

    tasks_child, held_child, rollouts = np.random.SeedSequence(seed).spawn(5)[2:]
    tasks = Tasks.draw(np.random.default_rng(tasks_child), lengths, size.per_length)
    held_out = Tasks.draw(np.random.default_rng(held_child), LENGTHS, size.held_out)
    student, pool = copy.deepcopy(base_model(seed, steps, size)), tasks.pool()
    low, high = _range(shaping)
    dead: list[float] = []

    def verify(rows_N: NDArray[np.int64], token_NGT: Tensor) -> NDArray[np.float64]:
        """Rewards squeezed into [0, 1], which leaves standardised advantages as they are."""
        kinds, rewards = [], []
        for row, token_GT in zip(rows_N, token_NGT.numpy(), strict=True):
            texts = rendered(token_GT)
            kind_G = np.array(judged(texts, tasks.gold_N[row]), dtype=np.int8)
            kinds.append(kind_G)
            rewards.append((shaping(kind_G, (kind_G == Kind.CORRECT).astype(float), texts) - low) / (high - low))
        dead.append(float(diagnose(kind_NG=kinds)["dead_share"]))
        return np.array(rewards)

    with _one_thread():
        run = train(
            Answering(student, tasks.prompt_NP, LIMIT, END),
            curricula.build("uniform", pool, seed=_integer(rollouts)),
            verify,
            objective("grpo", kl_coef=0.0, aggregation="token_mean"),
            torch.optim.Adam(student.parameters(), lr=size.lr, fused=True),
            generator=torch.Generator().manual_seed(_integer(rollouts)),
            updates=size.updates,
            batch=size.batch,
            attempts=size.attempts,
            evaluate=lambda: _measured(student, held_out, seed, size.attempts),
            evaluate_every=evaluate_every,
        )
    return {"curve": {key: [point[key] for point in run.curve] for key in run.curve[0]}, "cost": run.cost(), "dead": float(np.mean(dead))}


def _measured(student: TinyCausal, tasks: Tasks, seed: int, attempts: int) -> dict[str, Any]:
    """Diagnostics of held-out answers, their entropy per token in nats, and the share that is boxed."""
    torch = _torch()
    token_NGT, mask_NGT = student.sample(tasks.prompt_NP, attempts, torch.Generator().manual_seed(seed), tokens=LIMIT, end=END)
    with torch.no_grad():
        entropy = -float(student.logp(tasks.prompt_NP, token_NGT).sum() / mask_NGT.sum())
    texts_NG = [rendered(token_GT) for token_GT in token_NGT.numpy()]
    length_B, ended_B = ended_by_token(token_NGT.flatten(0, 1).numpy(), {END})
    found = diagnose(
        kind_NG=[judged(texts, gold) for texts, gold in zip(texts_NG, tasks.gold_N, strict=True)],
        length_NG=length_B.reshape(-1, attempts),
        ended_NG=ended_B.reshape(-1, attempts),
        texts_NG=texts_NG,
        count=lambda text: {"boxed": boxed(text)},
    )
    keys = ("accuracy", "clip_ratio", "mean_length", "stopped_length", "distinct_answers", "dead_share")
    return {key: found[key] for key in keys} | {"boxed": found["behaviours"]["boxed"], "entropy": entropy}


def _range(shaping: Shaping) -> tuple[float, float]:
    if isinstance(shaping, FormatIndependent):
        return shaping.wrong_unformatted, shaping.correct
    return 0.0, 1.0 + (LENGTH_BONUS * LIMIT if shaping is length_bug else 0.0)
