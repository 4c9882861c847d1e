"""A teacher in the loss: the student's logits at the trained places alone, and what the teacher says of the same places.

GRPO: the student's own answers, so on-policy distillation, with or without rewards. SFT: the completions of the data. The teacher is asked
anew for every micro-batch, so nothing wide outlives one; a recorded teacher is looked up. Both softmaxes run over the teacher's entries,
those of the tokenizer; embeddings padded beyond are cut off. In supervised training the columns are packed: the trained tokens of each row
stand at its front, so that prompts take no room. Losses and their counts do not see padding, wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.objectives.distillation import TOP_K, Distillation
from tutelage.teachers.contract import Facts
from tutelage.teachers.signal import chat_template_hash, check_tokenizers, tokenizer_hash
from tutelage.trainers._batches import PICTURES, Batch

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons, Lessons, SFTLessons

STUDENT = "logp_BTV"
DENSE = frozenset({"teacher_logp_BTV"})
SPARSE = frozenset(TOP_K)
HINT = (
    'Give the trainer a teacher: teacher=tutelage.teachers.teacher("local", model=...), with top_k=... for the objectives that read its '
    "top k."
)


def offered(trainer: Lessons) -> frozenset[str]:
    """The columns that a trainer can give because of its teacher, which is compared with student and objective first."""
    teacher, objective = trainer.teacher, trainer.objective
    if reads_logits(trainer):
        _check_engine(trainer)
    if teacher is None or not hasattr(teacher, "score"):
        if teacher is not None and not hasattr(teacher, "intervene"):
            raise TutelageError(
                f"teacher={teacher!r} neither scores text nor intervenes, so that a trainer has no use for it. Build one with "
                'tutelage.teachers.teacher("local", model=...); demonstrations are data: train on teacher.demonstrate(...).to_dataset().'
            )
        return frozenset({STUDENT})
    read = frozenset() if objective is None else frozenset(objective.requires) & (DENSE | SPARSE)
    if not read and hasattr(teacher, "intervene"):
        return frozenset({STUDENT})
    if elsewhere := sorted(name for name in getattr(objective, "requires", ()) if "/teacher_" in name):
        raise TutelageError(
            f"The objective reads {', '.join(elsewhere)}: a teacher scores a trainer's own texts, not those of another source. Distil on "
            "demonstrations with trl.SFTTrainer, or on the student's own answers with a part that is not On(...)."
        )
    if not read:
        raise TutelageError(
            f"The teacher {teacher!r} scores text, and nothing reads its scores. Give an objective that does, such as "
            'objective=objective("gkd"), alone or in a Sum beside others; or leave the teacher out.'
        )
    facts: Facts = teacher.facts
    given = SPARSE if facts.top_k else DENSE
    if not read <= given:
        raise TutelageError(_wrong_form(facts))
    _check_student(trainer, facts)
    for part in _distillations(objective):
        _check_switches(part, facts)
    return frozenset({STUDENT}) | given


def reads_logits(trainer: Lessons) -> bool:
    """Whether the objective needs the student's whole distribution."""
    return trainer.objective is not None and STUDENT in trainer.objective.requires


def grpo_columns(trainer: GRPOLessons, model: Any, inputs: Batch, mask_BT: Tensor) -> dict[str, Tensor]:
    """What an objective reads of one micro-batch of the student's own answers, beside TRL's columns."""
    if given := [key for key in PICTURES if key in inputs]:
        raise TutelageError(f"Distillation reads text alone, and this batch has {', '.join(given)}. Train on prompts without images.")
    ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    before = inputs["prompt_ids"].shape[1] - 1  # the place that the first token of the answer is predicted from
    places_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(mask_BT) + before
    logits = trainer.logits_at(model, {"input_ids": ids_BL, "attention_mask": attention_BL}, places_BT)
    logp_BT, entropy_BT = token_statistics(logits, inputs["completion_ids"], trainer.objective.requires, trainer.temperature)
    columns = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
    return columns | _distributions(trainer, logits, ids_BL, attention_BL, torch.where(mask_BT, places_BT, -1))


def sft_outputs(trainer: SFTLessons, model: Any, inputs: Batch) -> SimpleNamespace:
    """As TRL's fused output (`log_probs`, `entropy`, `label_mask`), packed, and `columns`, what an objective reads beside these."""
    if foreign := sorted(set(inputs) - {"input_ids", "attention_mask", "labels", "use_cache"}):
        raise TutelageError(f"Distillation reads one text per row, and this batch has {', '.join(foreign)}: no images, no joined rows.")
    mask_BT, places_BT = packed(inputs["labels"][:, 1:] != -100)
    logits = trainer.logits_at(model, {k: inputs[k] for k in ("input_ids", "attention_mask")}, places_BT)
    ids_BT = inputs["input_ids"][:, 1:].gather(1, places_BT)
    logp_BT, entropy_BT = token_statistics(logits, ids_BT, trainer.objective.requires)
    columns = _distributions(trainer, logits, inputs["input_ids"], inputs["attention_mask"], torch.where(mask_BT, places_BT, -1))
    return SimpleNamespace(log_probs=logp_BT, entropy=entropy_BT, label_mask=mask_BT, columns=columns)


def packed(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The true places of each row moved to its front, in order: (mask, places), (B, longest), at least one wide."""
    length_B = mask_BT.sum(1)
    width = max(int(length_B.max()), 1)
    places_BT = (~mask_BT).long().argsort(dim=1, stable=True)[:, :width]
    return torch.arange(width, device=mask_BT.device) < length_B.unsqueeze(1), places_BT


def token_statistics(logits_BTV: Tensor, ids_BT: Tensor, required: frozenset[str], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each token (B, T); a gradient, and the memory for it, only where the objective reads them."""
    rows: list[tuple[Tensor, Tensor]] = []
    for logits_TV, ids_T in zip(logits_BTV, ids_BT, strict=True):  # row by row, as temporaries are as wide as the vocabulary
        logits_TV = logits_TV.float() / temperature
        whole_T = logits_TV.logsumexp(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "logp_BT" in required):
            logp_T = logits_TV.gather(-1, ids_T.unsqueeze(-1)).squeeze(-1) - whole_T
        with torch.set_grad_enabled(torch.is_grad_enabled() and "entropy_BT" in required):
            entropy_T = whole_T - (logits_TV.softmax(-1) * logits_TV).sum(-1)
        rows.append((logp_T, entropy_T))
    logp, entropy = zip(*rows, strict=True)
    return torch.stack(logp), torch.stack(entropy)


def _distributions(trainer: Lessons, logits: Tensor, ids_BL: Tensor, attention_BL: Tensor, places_BT: Tensor) -> dict[str, Tensor]:
    """The student's logits and the teacher's columns over the same entries of the vocabulary."""
    if not trainer.objective.requires & (DENSE | SPARSE):
        return {STUDENT: logits}
    signal = trainer.teacher.score(ids_BL, attention_BL=attention_BL, places_BT=places_BT)
    return {STUDENT: logits[..., : signal.vocabulary], **signal.columns()}


def _distillations(objective: Any) -> Iterator[Distillation]:
    """The distillation losses within an objective, at any depth of a sum."""
    if isinstance(objective, Distillation):
        yield objective
    parts = getattr(objective, "parts", {})
    for part in parts.values() if isinstance(parts, Mapping) else ():
        yield from _distillations(part[0])


def _wrong_form(facts: Facts) -> str:
    if facts.top_k is None:
        return (
            "The objective reads a teacher's top k, and this teacher gives whole distributions. Build it with top_k=..., or take a dense "
            'objective: "gkd", "kd", "distill".'
        )
    return (
        f"The objective reads a teacher's whole distribution, and this teacher gives its top {facts.top_k}. Take an objective of a top k, "
        f'such as objective("distill_top_k", kind="generalized_js", missing_mass="{facts.missing_mass}")'
        + ("." if facts.recorded else ", or build the teacher with top_k=None.")
    )


def _check_engine(trainer: Lessons) -> None:
    """Raise where a setting of the engine cannot go with the student's whole distribution."""
    given = [name for name in ("packing", "padding_free", "cast_lm_head_to_fp32") if getattr(trainer.args, name, False)]
    if given:
        raise TutelageError(
            f"{', '.join(given)} cannot go with an objective that compares whole distributions: it needs one text per row and the model's "
            "own output layer. Leave the setting at its default."
        )


def _check_student(trainer: Lessons, facts: Facts) -> None:
    """Raise unless teacher and student mean the same by every id, and read chats alike."""
    if facts.recorded and not trainer.fixed_texts:
        raise TutelageError(
            "A recorded teacher knows only the texts that were recorded, and GRPO trains on new ones that the student writes. Use "
            'teacher("local", model=...) here, or the recorded one with trl.SFTTrainer on the very data it was recorded on.'
        )
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    check_tokenizers(facts.tokenizer, tokenizer_hash(tokenizer))
    if (own := chat_template_hash(tokenizer)) != facts.chat_template:
        raise TutelageError(
            f"The teacher's chat template ({facts.chat_template}) is not the student's ({own}): the teacher would score chats in a form it "
            "was not trained on. Take teacher and student of one kind (both base, both chat). If the student's form is what you want, give "
            "the teacher that template before it is built: tokenizer.chat_template = student_tokenizer.chat_template."
        )
    student = trainer.accelerator.unwrap_model(trainer.model)
    if getattr(trainer.teacher, "model", None) is student:
        raise TutelageError(
            "The teacher is the very model that is trained, so that they never differ. Give it a copy: copy.deepcopy(model)."
        )
    wide = student.config.get_text_config().vocab_size
    if wide < facts.vocabulary:
        raise TutelageError(
            f"The teacher's softmax runs over {facts.vocabulary} entries and the student's over {wide}, although the tokenizers agree. "
            "Likely cause: tokens added to the tokenizer without student.resize_token_embeddings(len(tokenizer))."
        )
    if facts.recorded:
        _check_texts(trainer)


def _check_texts(trainer: Lessons) -> None:
    """Look a thousand rows of the training set up in a teacher's record, where the set lies open; every batch is looked up again."""
    dataset = trainer.train_dataset
    if not {"input_ids", "labels"} <= set(getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "select"):
        return
    number_M = np.unique(np.linspace(0, len(dataset) - 1, 1000).astype(np.int64))
    chosen = dataset.select(number_M)
    trainer.teacher.check_texts(zip(number_M.tolist(), chosen["input_ids"], chosen["labels"], strict=True))


def _check_switches(part: Distillation, facts: Facts) -> None:
    """Raise where the objective would read the signal as something else than it is."""
    if facts.top_k and part.missing_mass != facts.missing_mass:
        raise TutelageError(
            f"The objective assumes missing_mass={part.missing_mass!r} outside the top {facts.top_k}, the teacher "
            f"{facts.missing_mass!r}. Say the same to both."
        )
    if facts.temperature != 1 and part.teacher_temperature is None:
        raise TutelageError(
            f"The teacher's log-probabilities are at temperature {facts.temperature:g} already, and the objective would soften them by "
            f"{part.temperature:g} more. Say what you mean: teacher_temperature={part.temperature / facts.temperature:g} for "
            f"{part.temperature:g} in all, 1.0 to leave them; or a teacher at temperature=1.0."
        )
