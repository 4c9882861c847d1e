"""Rows of a data set as the token ids and labels that TRL's SFTTrainer trains on, and the key by which a row is known again.

A row is known by its tokens and by which of them are trained: not by its place, so that any order, any part of a data set and any
curriculum find their rows, and text that was cut into tokens otherwise is never taken for the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """ids: tokens. places: positions whose next token is trained, ascending; a teacher's distributions are recorded there."""

    ids: NDArray[np.int32]
    places: NDArray[np.int32]

    @property
    def key(self) -> bytes:
        return key_of(self.ids, self.places)


def key_of(ids: NDArray[np.int32], places: NDArray[np.int32]) -> bytes:
    """128 bits of a text and of which of its tokens are trained."""
    digest = hashlib.blake2b(len(ids).to_bytes(8, "little"), digest_size=16)
    digest.update(ids.astype("<i4").tobytes())
    digest.update(places.astype("<i4").tobytes())
    return digest.digest()


def row_of(ids: Any, labels: Any) -> Row:
    """The row of token ids and labels, −100 where a token is not trained, as a trainer's data set holds them."""
    ids_L, labels_L = np.asarray(ids, np.int32), np.asarray(labels, np.int64)
    if ids_L.shape != labels_L.shape or ids_L.ndim != 1:
        raise TutelageError(f"A row has {ids_L.shape} token ids and {labels_L.shape} labels; expected as many of the one as of the other.")
    return Row(ids_L, np.flatnonzero(labels_L[1:] != IGNORED).astype(np.int32))


class Rows:
    """The rows of a data set, tokenised on the way, that have a trained token; can be run through more than once.

    dataset: rows with `input_ids` and, beside it, `labels`, `completion_mask` or neither (all tokens are trained), such as
    `SFTTrainer(...).train_dataset`; or with `prompt` and `completion`, text or chat messages, of which the completion is trained, cut into
    tokens and to `max_length` as TRL 1.16 does.
    """

    def __init__(self, dataset: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int | None) -> None:
        self.dataset, self.tokenizer, self.max_length = dataset, tokenizer, max_length

    def __iter__(self) -> Iterator[Row]:
        for number, example in enumerate(self.dataset):
            row = self._row(number, example)
            if len(row.places):
                yield row

    def _row(self, number: int, example: Mapping[str, Any]) -> Row:
        if "input_ids" in example:
            ids = np.asarray(example["input_ids"], np.int32)
            trained = example.get("completion_mask")
            labels = ids if trained is None else np.where(np.asarray(trained, bool), ids, IGNORED)
            labels = example.get("labels", labels)
        elif "prompt" in example and "completion" in example:
            ids, labels = self._tokenised(example["prompt"], example["completion"])
        else:
            raise TutelageError(
                f"Row {number} has the columns {', '.join(example) or 'none'}; expected prompt and completion, or input_ids with labels."
            )
        return row_of(ids[: self.max_length], labels[: self.max_length])

    def _tokenised(self, prompt: Any, completion: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token or ""
            whole = prompt + (completion if completion.endswith(end) else completion + end)
            before, ids = self.tokenizer(prompt)["input_ids"], self.tokenizer(whole)["input_ids"]
        else:
            template = self.tokenizer.apply_chat_template
            before = template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            ids = template([*prompt, *completion], return_dict=True)["input_ids"]
        common = next((i for i, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), min(len(before), len(ids)))
        ids = np.asarray(ids, np.int32)
        labels = ids.copy()
        labels[:common] = IGNORED  # where the prompt alone and the whole part ways, as TRL has it
        return ids, labels
