"""Demonstrations beside the rollouts: tokenised once, drawn without replacement, spread over micro-batches and processes.

Each row is a prompt and a completion, as text or chat, or `messages` whose last one is the completion. Both are tokenised as
`trl.SFTTrainer` does: with the chat template, or with the end token added to a text; the tokens of the completion are trained. The order
is a keyed permutation of the rows, a new one for every pass, that depends on the seed and on how many were drawn; every process draws
the same rows and takes its share. A micro-batch that gets fewer rows than others is filled with masked copies, which count nowhere.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.curricula._draws import Deck
from tutelage.errors import TutelageError
from tutelage.trainers._batches import Batch, padded

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons

logger = logging.getLogger(__name__)
IGNORED = -100
Tokenise = Callable[..., list[int]]


class Example(NamedTuple):
    """A tokenised demonstration; labels are `IGNORED` where a token is not trained."""

    ids: list[int]
    labels: list[int]


class Window(NamedTuple):
    """The demonstrations of one optimiser step: all of them, and this process's micro-batches."""

    rows_N: NDArray[np.int64]
    batches: list[Batch]


@dataclass
class Source:
    """A source of demonstrations with its place in the order.

    name: as the objective calls it. per_step: demonstrations of one optimiser step, over all processes. pad_id: of the tokenizer.
    """

    name: str
    examples: Sequence[Example]
    per_step: int
    seed: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.per_step < 1:
            raise TutelageError(
                f"{self.name}_per_step is the number of {self.name} in one optimiser step, at least 1; got {self.per_step!r}."
            )
        self.deck = Deck(np.array([len(self.examples)]), self.seed)

    def draw(self, micro_batches: int, rank: int, world: int) -> Window:
        """The next `per_step` rows; the rows of one micro-batch lie in the order of processes."""
        rows_N = self.deck.draw(np.zeros(self.per_step, dtype=np.int64))
        share = -(-len(rows_N) // (micro_batches * world))
        inert_N = np.full(micro_batches * world * share - len(rows_N), -1)
        spread = np.concatenate([rows_N, inert_N]).reshape(micro_batches, world, share)[:, rank]
        return Window(rows_N, [self.collate(rows_b, filler=int(rows_N[0])) for rows_b in spread])

    def collate(self, rows_b: NDArray[np.int64], *, filler: int) -> Batch:
        """Rows as one right-padded batch, for -1 a masked copy of `filler`."""
        examples = [
            self.examples[r] if r >= 0 else Example(self.examples[filler].ids, [IGNORED] * len(self.examples[filler].ids)) for r in rows_b
        ]
        ids = [torch.tensor(e.ids) for e in examples]
        return {
            "input_ids": padded(ids, self.pad_id, left=False, multiple_of=None),
            "attention_mask": padded([torch.ones_like(x) for x in ids], 0, left=False, multiple_of=None),
            "labels": padded([torch.tensor(e.labels) for e in examples], IGNORED, left=False, multiple_of=None),
        }

    def mask(self, rows_N: NDArray[np.int64]) -> Tensor:
        """Which tokens of the rows are trained, as the model predicts them (N, T - 1)."""
        labels = [torch.tensor(self.examples[row].labels) for row in rows_N]
        return padded(labels, IGNORED, left=False, multiple_of=None)[:, 1:] != IGNORED

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.identity, "seed": self.seed, **self.deck.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (state["rows"], state["seed"]) != (self.identity, self.seed):
            raise TutelageError(
                f"The checkpoint was made with other {self.name} or another order of them: {state['rows']}, seed {state['seed']}; here it "
                f"is {self.identity}, seed {self.seed}. Give the same data set and seed, or start anew."
            )
        self.deck.load(dict(state))

    @functools.cached_property
    def identity(self) -> str:
        """What the rows are, in words and a hash."""
        digest = hashlib.blake2b(digest_size=8)
        for example in self.examples:
            digest.update(np.array([len(example.ids), *example.ids, *example.labels], dtype=np.int64).tobytes())
        return f"{len(self.examples)} rows with the hash {digest.hexdigest()}"


def scored(trainer: GRPOLessons, model: Any, inputs: Batch) -> Any:
    """The forward pass over demonstrations, at temperature 1 as in supervised training: `log_probs`, `entropy`, `label_mask`, (B, T - 1).

    TRL's fused head has the temperature of the rollouts built in; where that is another, the logits of the trained tokens are computed.
    """
    if trainer.temperature == 1:
        return trainer.scored(model, inputs)
    label_BT = inputs["labels"][:, 1:]
    mask_BT = label_BT != IGNORED
    logits_BTV = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    logp_MV = logits_BTV[:, :-1][mask_BT].float().log_softmax(-1)
    columns = {"log_probs": logp_MV.gather(1, label_BT[mask_BT].unsqueeze(1))[:, 0], "entropy": -(logp_MV.exp() * logp_MV).sum(1)}
    spread = {name: value.new_zeros(mask_BT.shape).masked_scatter(mask_BT, value) for name, value in columns.items()}
    return SimpleNamespace(**spread, label_mask=mask_BT)


def tokeniser(trainer: GRPOLessons) -> Tokenise:
    """`f(text_or_messages, reply_follows=...)`, the token ids with the template, tools and options that rollouts get."""
    tokenizer = trainer.text_tokenizer
    options = {"tools": trainer.tools or None, "chat_template": trainer.chat_template, **trainer.chat_template_kwargs}

    def tokenise(text: Any, *, reply_follows: bool) -> list[int]:
        if isinstance(text, str):
            return tokenizer(text=text)["input_ids"]
        return tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, add_generation_prompt=reply_follows, **options)[
            "input_ids"
        ]

    return tokenise


def tokenised(dataset: Any, tokenise: Tokenise, eos: str | None, name: str) -> list[Example]:
    """The rows of a data set as examples.

    tokenise: as `tokeniser` makes it. eos: what ends a text.

    Raises:
        TutelageError: no rows, columns that are neither of the two kinds, or a row without anything to train on; it names the row.
    """
    columns = set(getattr(dataset, "column_names", None) or ())
    if not len(dataset) or not (columns >= {"prompt", "completion"} or "messages" in columns):
        raise TutelageError(
            f"{name}= takes a datasets.Dataset with rows and the columns 'prompt' and 'completion' (text or chat), or 'messages'; got "
            f"{len(dataset)} rows with the column(s) {', '.join(sorted(columns)) or 'none'}."
        )
    examples, parted = [], 0
    for number, row in enumerate(dataset):
        prompt, completion = (row["prompt"], row["completion"]) if "prompt" in columns else (row["messages"][:-1], row["messages"][-1:])
        if type(prompt) is not type(completion) or not prompt or not completion:
            raise TutelageError(
                f"Row {number} of {name}: prompt and completion must both be text or both be lists of messages, and not be empty; got "
                f"{prompt!r} and {completion!r}."
            )
        if isinstance(completion, str) and eos and not completion.endswith(eos):
            completion += eos
        prompt_ids, ids = tokenise(prompt, reply_follows=True), tokenise(prompt + completion, reply_follows=False)
        start = next((t for t, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), min(len(prompt_ids), len(ids)))
        parted += start < len(prompt_ids)
        if max(start, 1) >= len(ids):
            raise TutelageError(f"Row {number} of {name} has no token to train on: its completion {completion!r} adds none to the prompt.")
        examples.append(Example(ids, [IGNORED] * start + ids[start:]))
    if parted:
        logger.warning(
            "In %d of %d %s the prompt's tokens are not the beginning of those of prompt and completion: the template renders the prompt "
            "alone differently, or tokens merge across the border. There the completion starts where the two part.",
            parted, len(examples), name,
        )  # fmt: skip
    return examples
