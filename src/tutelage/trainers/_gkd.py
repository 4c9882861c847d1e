"""Whose text a step of supervised distillation trains on: the data's, the student's own, or the teacher's (GKD, arXiv 2306.13649, alg. 1).

    gkd = with_curriculum(trl.SFTTrainer)(..., teacher=big, objective=objective("gkd"), data_rule=GKDRule(lmbda=0.5))

No gradient flows through the writing: what was written is data. The paper and TRL's GKDTrainer draw for every batch; here one draw holds
for an optimiser step, on all its micro-batches and processes. It depends on the seed and the step alone: a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models import evaluating
from tutelage.teachers._forward import seeded
from tutelage.teachers.sequences import completion_mask
from tutelage.trainers._batches import Batch, padded

if TYPE_CHECKING:
    from tutelage.trainers.trl import SFTLessons

Source = Literal["student", "teacher", "data"]
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class GKDRule:
    """GKD's data rule; the defaults are those of TRL's GKDConfig.

    Args:
        lmbda: probability that a step trains on the student's own answers to the data's prompts. 0 is supervised distillation, 1 on-policy.
        seq_kd: the other steps train on the teacher's answers instead of the data's.
        temperature: of the writing; 0.9 in TRL, 1 samples from the model itself.
        max_new_tokens: length of an answer.

    Raises:
        TutelageError: a share outside [0, 1], a temperature or length that is not positive.
    """

    lmbda: float = 0.5
    seq_kd: bool = False
    temperature: float = 0.9
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.lmbda <= 1 or self.temperature <= 0 or self.max_new_tokens < 1:
            raise TutelageError(
                f"GKDRule takes lmbda from 0 to 1 and a positive temperature and max_new_tokens; got {self.lmbda}, {self.temperature} and "
                f"{self.max_new_tokens}."
            )


def choose_source(rng: np.random.Generator, lmbda: float, seq_kd: bool) -> Source:
    """The student with probability λ, exactly never at 0 and always at 1; else the teacher with `seq_kd`, else the data."""
    if rng.random() < lmbda:
        return "student"
    return "teacher" if seq_kd else "data"


def drawn(trainer: SFTLessons, batches: list[Batch]) -> list[Batch]:
    """The micro-batches of one step, with answers of the source that is drawn for it."""
    rule, step = trainer.data_rule, trainer.state.global_step
    assert rule is not None
    rng = np.random.default_rng([trainer.args.seed, step])
    source = choose_source(rng, rule.lmbda, rule.seq_kd)
    trainer.record("gkd/student", float(source == "student"))
    if source == "data":
        return batches
    seeds = np.random.default_rng([trainer.args.seed, step, trainer.shares[0]]).integers(2**62, size=len(batches))
    with trainer.generating(source) as model, evaluating(model), torch.no_grad():
        return [_answered(trainer, model, batch, int(seed)) for batch, seed in zip(batches, seeds, strict=True)]


def _answered(trainer: SFTLessons, model: Any, batch: Batch, seed: int) -> Batch:
    """The batch with the model's answers in place of all from the first trained token on; rows without one stay untrained."""
    rule, device = trainer.data_rule, model.device
    assert rule is not None
    trained_BL = batch["labels"] != IGNORED
    first_B = torch.where(trained_BL.any(1), trained_BL.long().argmax(1), batch["attention_mask"].sum(1)).tolist()
    prompts = [ids[: max(first, 1)] for ids, first in zip(batch["input_ids"], first_B, strict=True)]
    ids_BL = padded(prompts, trainer.pad_id, left=True, multiple_of=None).to(device)
    mask_BL = padded([torch.ones_like(ids) for ids in prompts], 0, left=True, multiple_of=None).to(device)
    with seeded(model, seed):
        written_BL = model.generate(
            input_ids=ids_BL, attention_mask=mask_BL, do_sample=True, temperature=rule.temperature, top_k=0, top_p=1.0, use_cache=True,
            max_new_tokens=rule.max_new_tokens, eos_token_id=trainer.end_ids, pad_token_id=trainer.pad_id,
        )  # fmt: skip
    answer_BT = written_BL[:, ids_BL.shape[1] :].to(batch["input_ids"].device)
    count_B = completion_mask(answer_BT, trainer.end_ids).sum(1).tolist()
    live_B = trained_BL.any(1).tolist()
    answers = [ids[:count] if live else ids[:0] for ids, count, live in zip(answer_BT, count_B, live_B, strict=True)]
    return _joined(trainer, prompts, answers)


def _joined(trainer: SFTLessons, prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> Batch:
    """Prompts and answers as the trainer's own collator would have them."""
    pairs = list(zip(prompts, answers, strict=True))
    ids = [torch.cat(pair) for pair in pairs]
    labels = [torch.cat([torch.full_like(prompt, IGNORED), answer]) for prompt, answer in pairs]
    columns = {"input_ids": (ids, trainer.pad_id), "labels": (labels, IGNORED), "attention_mask": ([torch.ones_like(x) for x in ids], 0)}
    multiple = trainer.args.pad_to_multiple_of
    return {name: padded(rows, fill, left=False, multiple_of=multiple) for name, (rows, fill) in columns.items()}


def check(trainer: SFTLessons) -> None:
    """Raise where answers cannot be written, or nothing could be learned from them."""
    rule = trainer.data_rule
    if rule is None:
        return
    facts = getattr(trainer.teacher, "facts", None)
    if facts is None or facts.recorded or trainer.objective is None:
        raise TutelageError(
            "data_rule= lets new text be written, and only a teacher that scores any text says how good it is. Give "
            'teacher=teacher("local", model=...) and an objective that reads it, such as objective("gkd").'
        )
    if rule.seq_kd and not hasattr(trainer.teacher, "model"):
        raise TutelageError(f"seq_kd=True lets the teacher write, and {trainer.teacher!r} has no model that could. Leave it out.")
    needs: frozenset[str] = getattr(trainer.curriculum, "needs", frozenset())
    if signals := sorted(name for name in needs if name.startswith("signals/")):
        raise TutelageError(
            f"The curriculum {trainer.curriculum.name!r} needs {', '.join(signals)} of the data's completions, which data_rule= replaces. "
            "Choose another curriculum, or leave data_rule out."
        )
