"""What a teacher says about every next token, with what one must know to use it: temperature, missing mass, tokenizer.

signal = Signal(top_ids_BTK=ids, top_logp_BTK=logp, vocabulary=151_936, missing_mass="tail", tokenizer=tokenizer_hash(teacher_tokenizer))
signal.check_student(vocabulary=student.config.vocab_size, tokenizer=tokenizer_hash(student_tokenizer))
soft = objective("distill_top_k", temperature=1.0, **signal.switches(temperature=1.0))
loss, stats = soft({**batch, **signal.columns()}, denominators=counts)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, get_args

from tutelage.errors import TutelageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 0.02  # nats by which a position's log mass may miss: log-probabilities kept in half precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """A teacher's next-token log-probabilities, dense (`logp_BTV`) or its top k (`top_ids_BTK`, `top_logp_BTK`).

    Args:
        vocabulary: V, the number of entries the teacher's softmax runs over.
        tokenizer: hash of the tokenizer whose ids these are (`tokenizer_hash`).
        logp_BTV: dense log-probabilities, in nats, normalised.
        top_ids_BTK: entries of the vocabulary, distinct within a position; integers.
        top_logp_BTK: log-probabilities of them, *not* renormalised.
        temperature: the temperature of the softmax they were taken from.
        missing_mass: what is assumed of entries outside the top k, see `tutelage.objectives.divergence.top_k_events`; required there.

    Positions whose values are all NaN (padding) are not checked.

    Raises:
        TutelageError: both forms or neither, shapes that differ, ids repeated or out of range, values that are not log-probabilities.
    """

    vocabulary: int
    tokenizer: str
    logp_BTV: Tensor | None = None
    top_ids_BTK: Tensor | None = None
    top_logp_BTK: Tensor | None = None
    temperature: float = 1.0
    missing_mass: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise TutelageError(f"A signal's temperature is positive and finite; got {self.temperature}.")
        if self.logp_BTV is not None and self.top_ids_BTK is None and self.top_logp_BTK is None and self.missing_mass is None:
            self._check_dense(self.logp_BTV)
        elif self.logp_BTV is None and self.top_ids_BTK is not None and self.top_logp_BTK is not None:
            self._check_top_k(self.top_ids_BTK, self.top_logp_BTK)
        else:
            given = [
                field.name for field in dataclasses.fields(self)[2:] if field.default is None and getattr(self, field.name) is not None
            ]
            raise TutelageError(
                "A signal is dense (logp_BTV alone) or top k (top_ids_BTK, top_logp_BTK and missing_mass); "
                f"got {', '.join(given) or 'none'}."
            )

    def _check_dense(self, logp_BTV: Tensor) -> None:
        if logp_BTV.ndim != 3 or logp_BTV.shape[-1] != self.vocabulary:
            raise TutelageError(
                f"logp_BTV has the shape {tuple(logp_BTV.shape)}; expected (B, T, {self.vocabulary}) for a vocabulary of {self.vocabulary}."
            )
        mass_BT = logp_BTV.detach().float().logsumexp(-1)
        worst = mass_BT[~mass_BT.isnan()].abs().max().item() if (~mass_BT.isnan()).any() else 0.0
        if worst > TOLERANCE:
            raise TutelageError(
                f"logp_BTV is not normalised: a position's probabilities sum to e^±{worst:.3g} instead of 1. Likely cause: logits; apply "
                "log_softmax over the last axis."
            )

    def _check_top_k(self, ids_BTK: Tensor, logp_BTK: Tensor) -> None:
        from tutelage.objectives.divergence import MissingMass

        if self.missing_mass not in get_args(MissingMass):
            raise unknown("missing-mass policy", str(self.missing_mass), get_args(MissingMass))
        if ids_BTK.ndim != 3 or ids_BTK.shape != logp_BTK.shape or ids_BTK.is_floating_point() or not logp_BTK.is_floating_point():
            raise TutelageError(
                f"top_ids_BTK {tuple(ids_BTK.shape)} {ids_BTK.dtype} and top_logp_BTK {tuple(logp_BTK.shape)} {logp_BTK.dtype} do not "
                "belong together; expected integers and floats of one shape (B, T, K)."
            )
        if not 0 < ids_BTK.shape[-1] <= self.vocabulary:
            raise TutelageError(f"K is {ids_BTK.shape[-1]}; expected 1 to {self.vocabulary}, the vocabulary.")
        mass_BT = logp_BTK.detach().float().logsumexp(-1)
        used_BT = ~mass_BT.isnan()
        sorted_NK = ids_BTK[used_BT].sort(-1).values
        if not sorted_NK.numel():
            return
        low, high = int(sorted_NK[:, 0].min()), int(sorted_NK[:, -1].max())
        if low < 0 or high >= self.vocabulary:
            raise TutelageError(
                f"top_ids_BTK holds {low if low < 0 else high}; ids of a vocabulary of {self.vocabulary} go from 0 to "
                f"{self.vocabulary - 1}. Likely cause: another model's tokenizer, or padding that is not marked by NaN in top_logp_BTK."
            )
        if (sorted_NK[:, 1:] == sorted_NK[:, :-1]).any():
            raise TutelageError("top_ids_BTK repeats an id within a position; its mass would count twice. Give each id once.")
        if (worst := mass_BT[used_BT].max().item()) > TOLERANCE:
            raise TutelageError(
                f"top_logp_BTK holds more than all mass: a position's probabilities sum to {math.exp(min(worst, 99.0)):.4g}. Likely cause: "
                "logits; subtract the logsumexp over the whole vocabulary."
            )

    def check_student(self, *, vocabulary: int, tokenizer: str) -> None:
        """Raise `TutelageError` unless a student with this vocabulary size and tokenizer hash means the same by every id."""
        check_tokenizers(self.tokenizer, tokenizer)
        if vocabulary != self.vocabulary:
            raise TutelageError(
                f"The teacher's softmax runs over {self.vocabulary} entries and the student's over {vocabulary}, although the tokenizers "
                "agree. Likely cause: embeddings padded to different sizes; cut both to the tokenizer's size before the softmax."
            )

    def columns(self) -> dict[str, Tensor]:
        """The batch columns that `tutelage.objectives.distillation` reads."""
        if self.logp_BTV is not None:
            return {"teacher_logp_BTV": self.logp_BTV}
        assert self.top_ids_BTK is not None
        assert self.top_logp_BTK is not None
        return {"teacher_top_ids_BTK": self.top_ids_BTK.long(), "teacher_top_logp_BTK": self.top_logp_BTK}

    def switches(self, *, temperature: float = 1.0) -> dict[str, Any]:
        """The objective's switches that go with this signal, for a teacher softened to `temperature` in all.

        A signal taken at temperature s needs only the factor `temperature` / s; `missing_mass="tail"` admits no other than 1.
        """
        own = {"teacher_temperature": temperature / self.temperature}
        return own if self.missing_mass is None else {**own, "missing_mass": self.missing_mass}


def tokenizer_hash(tokenizer: Any) -> str:
    """128 bits, in hexadecimal, of which text each id stands for: the same for tokenizers that one signal can serve.

    Args:
        tokenizer: has `get_vocab()` → {token: id}, added tokens included, as those of transformers do. How text is cut into tokens and the
            chat template do not enter: a signal is about ids.
    """
    pairs = sorted((int(number), token) for token, number in tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=16).hexdigest()


def check_tokenizers(teacher: str, student: str) -> None:
    """Raise `TutelageError` unless two hashes of `tokenizer_hash` are the same."""
    if teacher != student:
        raise TutelageError(
            f"The teacher's tokenizer ({teacher}) is not the student's ({student}): equal ids would mean different text. "
            "Use a teacher of the same model family, or distil at the level of sequences: objective('nll') on the teacher's samples."
        )


def chat_template_hash(tokenizer: Any) -> str:
    """128 bits, in hexadecimal, of how a chat becomes text; "none" for a tokenizer without a chat template."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return "none"
    return hashlib.blake2b(json.dumps(template, sort_keys=True).encode(), digest_size=16).hexdigest()


def vocabulary_of(tokenizer: Any) -> int:
    """The number of ids that a tokenizer gives, its highest id and all below it; a model's embeddings may be padded beyond."""
    return max(int(number) for number in tokenizer.get_vocab().values()) + 1
