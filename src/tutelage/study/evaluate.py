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
    """Texts, lengths in tokens and ends of `attempts` completions of each prompt, in the prompts' order; batches hold similar lengths."""
    settings, attempts = tasks.settings, tasks.settings.attempts
    sampling = {"do_sample": False} if settings.temperature == 0 else {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
    order = np.argsort([len(p) for p in tasks.prompts_M], kind="stable")
    texts: list[list[str]] = [[] for _ in tasks.prompts_M]
    length_MG, ended_MG = np.zeros((len(order), attempts), dtype=np.int64), np.zeros((len(order), attempts), dtype=bool)
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        encoded = tokenizer(
            [tasks.prompts_M[i] for i in batch for _ in range(attempts)],
            return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not tasks.templated, return_token_type_ids=False,
        ).to(model.device)  # fmt: skip
        out = model.generate(**encoded, **sampling, max_new_tokens=tasks.max_new_tokens, pad_token_id=tokenizer.pad_token_id)
        token_BT = out[:, encoded["input_ids"].shape[1] :]
        length_B, ended_B = ended_by_token(token_BT.cpu().numpy(), _end_ids(model, tokenizer))
        length_MG[batch], ended_MG[batch] = length_B.reshape(-1, attempts), ended_B.reshape(-1, attempts)
        decoded = tokenizer.batch_decode(token_BT, skip_special_tokens=True)
        for i, place in enumerate(batch):
            texts[place] = decoded[i * attempts : (i + 1) * attempts]
    return texts, length_MG, ended_MG


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
