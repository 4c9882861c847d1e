"""Held-out evaluation: generate, verify, average by arm, diagnose. It never looks at the reward, and leaves every generator as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.students.generation import generate_ids
from tutelage.study.config import Evaluation, Run
from tutelage.tasks.diagnostics import diagnose, ended_by_token
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


class Completions(NamedTuple):
    """What a model answered to M tasks in G attempts each, and what of it the verifier made."""

    texts_MG: list[list[str]]
    length_MG: NDArray[np.int64]
    ended_MG: NDArray[np.bool_]
    kind_MG: NDArray[np.int8]
    grade_MG: NDArray[np.float64]

    def of(self, chosen_M: NDArray[np.bool_]) -> Completions:
        """The answers to some of the tasks."""
        texts = [row for row, chosen in zip(self.texts_MG, chosen_M, strict=True) if chosen]
        return Completions(texts, self.length_MG[chosen_M], self.ended_MG[chosen_M], self.kind_MG[chosen_M], self.grade_MG[chosen_M])


class Measured(NamedTuple):
    """Held-out accuracy of each arm (the share of attempts that the verifier calls correct), and the diagnostics of the same answers."""

    by_arm: list[float]
    diagnostics: dict[str, Any]


def held_out(pool: TaskPool, verifier: Verifier, tokenizer: Any, run: Run, max_new_tokens: int) -> HeldOut:
    """Choose the measured tasks: the first `tasks_per_arm` of each arm in the pool's order, the same for every arm and seed."""
    from tutelage.tasks.loaders import to_dataset

    settings, arms = run.evaluation, pool.arms()
    rows_M = np.sort(
        np.concatenate([arms.order_N[s : s + min(n, settings.tasks_per_arm)] for s, n in zip(arms.start_A, arms.size_A, strict=True)])
    )
    chat = run.chat and bool(getattr(tokenizer, "chat_template", None))
    prompts = to_dataset(pool, tokenizer if chat else None, template=run.template)["prompt"]
    texts = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) if chat else p
        for p in (prompts[int(r)] for r in rows_M)
    ]
    return HeldOut(pool, rows_M.astype(np.int64), texts, chat, verifier, settings, max_new_tokens)


def evaluate(model: Any, tokenizer: Any, tasks: HeldOut, *, seed: int = 0) -> Measured:
    """Generate once and measure everything on it."""
    found = answers(model, tokenizer, tasks, seed=seed)
    arms = tasks.pool.arms()
    arm_M = arms.arm_N[tasks.rows_M]
    solved_A = np.bincount(arm_M, (found.kind_MG == Kind.CORRECT).sum(axis=1), len(arms))
    by_arm = [float(v) for v in solved_A / (np.bincount(arm_M, minlength=len(arms)) * tasks.settings.attempts)]
    return Measured(by_arm, diagnosed(found))


def answers(model: Any, tokenizer: Any, tasks: HeldOut, *, seed: int = 0) -> Completions:
    """The model's judged answers to the measured tasks."""
    with _measuring(model, seed):
        texts_MG, length_MG, ended_MG = _generate(model, tokenizer, tasks)
        kind_MG, grade_MG = judge_all(tasks.verifier, texts_MG, [tasks.pool.row(int(r)) for r in tasks.rows_M])
    return Completions(texts_MG, length_MG, ended_MG, kind_MG, grade_MG)


def diagnosed(found: Completions) -> dict[str, Any]:
    """`tutelage.tasks.diagnostics.diagnose` of judged answers, rounded as records keep it."""
    result = diagnose(
        kind_NG=found.kind_MG, grade_NG=found.grade_MG, length_NG=found.length_MG, ended_NG=found.ended_MG, texts_NG=found.texts_MG
    )
    return {
        name: {key: round(v, 6) for key, v in value.items()} if isinstance(value, dict) else round(value, 6)
        for name, value in result.items()
    }


def _generate(model: Any, tokenizer: Any, tasks: HeldOut) -> tuple[list[list[str]], NDArray[np.int64], NDArray[np.bool_]]:
    """Texts, lengths in tokens and ends of `attempts` completions of each prompt, in the prompts' order."""
    settings = tasks.settings
    groups = generate_ids(
        model, tokenizer, tasks.prompts_M, attempts=settings.attempts, max_new_tokens=tasks.max_new_tokens,
        temperature=settings.temperature, templated=tasks.templated, batch_size=settings.batch_size,
    )  # fmt: skip
    end_ids = _end_ids(model, tokenizer)
    measured = [ended_by_token(np.stack([ids.cpu().numpy() for ids in group]), end_ids) for group in groups]
    texts = [tokenizer.batch_decode(group, skip_special_tokens=True) for group in groups]
    return texts, np.stack([length_G for length_G, _ in measured]), np.stack([ended_G for _, ended_G in measured])


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which `generate` ends an answer."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return set() if ids is None else {int(i) for i in (ids if isinstance(ids, list | tuple) else [ids])}


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
