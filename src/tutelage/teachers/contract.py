"""What trainers ask of a teacher: nothing but the methods of what it can do, and, of one that scores, what its signal is made of.

teacher.facts                                            what every signal of this teacher has in common
teacher.score(ids_BL, attention_BL=..., places_BT=...)   a `Signal`: its next-token distributions at the places asked for
teacher.demonstrate(tasks, rng)                          `Demonstrations`: answers of its own, to imitate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tutelage.teachers.signal import Signal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one must know of a teacher before the first step: it is compared with the student and the objective.

    Args:
        tokenizer, chat_template: hashes, of `tutelage.teachers.signal`.
        vocabulary: entries its softmax runs over: those of the tokenizer, without padding of the embeddings.
        top_k: entries per position, None for dense.
        temperature: of the softmax that the log-probabilities are taken from.
        missing_mass: what is assumed of entries outside the top k; None for dense.
        recorded: it knows only the texts that were recorded, and cannot score new ones; then it also has `check_texts`.
    """

    tokenizer: str
    chat_template: str
    vocabulary: int
    top_k: int | None = None
    temperature: float = 1.0
    missing_mass: str | None = None
    recorded: bool = False

    def signal(self, logp: Tensor, top_ids: Tensor | None = None) -> Signal:
        """The signal of these log-probabilities: dense (B, T, V), or of the entries `top_ids` (B, T, K)."""
        common: dict[str, Any] = {"vocabulary": self.vocabulary, "tokenizer": self.tokenizer, "temperature": self.temperature}
        if top_ids is None:
            return Signal(logp_BTV=logp, **common)
        return Signal(top_ids_BTK=top_ids, top_logp_BTK=logp, missing_mass=self.missing_mass, **common)


@runtime_checkable
class Scorer(Protocol):
    """A teacher that scores text."""

    @property
    def facts(self) -> Facts: ...

    def score(self, ids_BL: Tensor, *, attention_BL: Tensor | None = None, places_BT: Tensor | None = None) -> Signal:
        """The distributions of the token after each place.

        Args:
            ids_BL: token ids (B, L), padded on any side.
            attention_BL: 1 for tokens, 0 for padding (B, L); without it all are tokens.
            places_BT: positions in 0..L-1 (B, T), −1 where nothing is asked; without it every token's. Place p gives the distribution of
                the token at p + 1.

        Returns:
            A signal of shape (B, T), NaN where nothing was asked, on the device of `ids_BL`, without gradient.
        """


@dataclass(frozen=True)
class Demonstrations:
    """Answers that a teacher wrote, one row each: prompts (text or chat messages), completions (text), keys of the tasks.

    sampled: how many were written in all; cut: left out because they had not ended at the limit; wrong: left out by the verifier.
    """

    prompts: Sequence[Any]
    completions: Sequence[str]
    keys: Sequence[Any]
    sampled: int
    cut: int
    wrong: int

    def __len__(self) -> int:
        return len(self.completions)

    def rows(self) -> list[dict[str, Any]]:
        """Prompt, completion and key: TRL's prompt/completion format, both as chat messages where the prompt is."""
        return [
            {"prompt": p, "completion": c if isinstance(p, str) else [{"role": "assistant", "content": c}], "key": k}
            for p, c, k in zip(self.prompts, self.completions, self.keys, strict=True)
        ]

    def to_dataset(self) -> Any:
        """The rows as a `datasets.Dataset`."""
        from datasets import Dataset

        return Dataset.from_list(self.rows())


class Demonstrator(Protocol):
    """A teacher that answers tasks itself."""

    def demonstrate(self, tasks: Any, rng: np.random.Generator) -> Demonstrations:
        """Answers to `tasks`, a data set with a column `prompt`; all randomness comes from `rng`."""
