"""Held-out evaluation: generate, verify, average by arm. It never looks at the reward, and leaves every generator as it found it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.pools import TaskPool
from tutelage.students.generation import generate_ids
from tutelage.study.config import Evaluation
from tutelage.tasks.verifiers import Verifier, judge_all


@dataclass(frozen=True)
class HeldOut:
    """The tasks that are measured: rows of the held-out pool, at most so many of each arm, as prompts ready for the tokenizer."""

    pool: TaskPool
    rows_M: NDArray[np.int64]
    prompts_M: list[str]
    templated: bool  # a chat template brings its own special tokens
    verifier: Verifier
    settings: Evaluation
    max_new_tokens: int


def held_out(pool: TaskPool, verifier: Verifier, tokenizer: Any, settings: Evaluation, max_new_tokens: int) -> HeldOut:
    """Choose the measured tasks: the first `tasks_per_arm` of each arm in the pool's order, the same for every arm and seed."""
    from tutelage.tasks.loaders import to_dataset

    arms = pool.arms()
    rows_M = np.sort(
        np.concatenate([arms.order_N[s : s + min(n, settings.tasks_per_arm)] for s, n in zip(arms.start_A, arms.size_A, strict=True)])
    )
    prompts = to_dataset(pool, tokenizer)["prompt"]
    chat = bool(getattr(tokenizer, "chat_template", None))
    texts = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) if chat else p
        for p in (prompts[int(r)] for r in rows_M)
    ]
    return HeldOut(pool, rows_M.astype(np.int64), texts, chat, verifier, settings, max_new_tokens)


def evaluate(model: Any, tokenizer: Any, tasks: HeldOut, *, seed: int = 0) -> list[float]:
    """Held-out accuracy of each arm: the share of attempts that the verifier calls correct."""
    from tutelage.outcomes import Kind

    attempts = tasks.settings.attempts
    with _measuring(model, seed):
        completions_MG = _generate(model, tokenizer, tasks)
        kind_MG, _ = judge_all(tasks.verifier, completions_MG, [tasks.pool.row(int(r)) for r in tasks.rows_M])
    arms = tasks.pool.arms()
    arm_M = arms.arm_N[tasks.rows_M]
    solved_A = np.bincount(arm_M, (kind_MG == Kind.CORRECT).sum(axis=1), len(arms))
    return [float(v) for v in solved_A / (np.bincount(arm_M, minlength=len(arms)) * attempts)]


def _generate(model: Any, tokenizer: Any, tasks: HeldOut) -> list[list[str]]:
    """`attempts` completions of each prompt, in the prompts' order; batches hold prompts of similar length."""
    settings = tasks.settings
    answers = generate_ids(
        model, tokenizer, tasks.prompts_M, attempts=settings.attempts, max_new_tokens=tasks.max_new_tokens,
        temperature=settings.temperature, templated=tasks.templated, batch_size=settings.batch_size,
    )  # fmt: skip
    return [tokenizer.batch_decode(group, skip_special_tokens=True) for group in answers]


@contextlib.contextmanager
def _measuring(model: Any, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, a generator of its own; all as before afterwards."""
    import torch

    from tutelage.trainers._rng import preserved

    was_training = model.training
    with preserved(), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
