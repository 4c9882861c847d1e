"""What GRPO measures of hidden states: of prompts when a curriculum wants to know, of rollouts when it needs to. One forward pass each.

Of prompts: `angle_concentration`, `off_diagonal_concentration` (see `tutelage.students.angles`) and `prompt_length` in tokens. Of rollouts:
the two concentrations over prompt and completion as one segment, under the weights that generated them, averaged over a task's attempts.
Every process makes the same number of passes over an equal share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.models import evaluating
from tutelage.students import angles
from tutelage.students.angles import QUESTION, find_site
from tutelage.students.prompts import PromptTokens
from tutelage.students.reading import bar, read_states
from tutelage.trainers._batches import PICTURES, Rollouts

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons

OF_PROMPTS = frozenset({*angles.SIGNALS, "prompt_length"})
OF_LESSONS = frozenset(f"signals/{name}" for name in angles.SIGNALS)
_BLOCK = 256  # batches between two gatherings


def of_prompts(trainer: GRPOLessons, rows_N: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Signals of the prompts of these rows, (N,) each, on every process."""
    encode = PromptTokens(trainer.text_tokenizer, trainer.template)
    share = trainer.args.per_device_train_batch_size
    block = _BLOCK * share * trainer.accelerator.num_processes
    shown = trainer.accelerator.is_main_process and not trainer.args.disable_tqdm
    parts = []
    with _clocked(trainer), evaluating(trainer.model), bar(len(rows_N), shown) as advance:
        for start in range(0, len(rows_N), block):
            rows_M = rows_N[start : start + block]
            padded_M = np.concatenate([rows_M, np.repeat(rows_M[-1:], -len(rows_M) % (share * trainer.accelerator.num_processes))])
            mine = trainer.rows(padded_M[trainer.local(len(padded_M))])
            tokens = encode([row["prompt"] for row in mine])
            table = _angles(trainer, [t.id_T for t in tokens], [t.segment_T for t in tokens])
            table["prompt_length"] = np.array([len(t.id_T) for t in tokens], dtype=np.float64)
            parts.append(_gathered(trainer, {name: table[name] for name in names})[: len(rows_M)])
            advance(len(rows_M))
    return dict(zip(names, np.concatenate(parts).T, strict=True))


def of_rollouts(trainer: GRPOLessons, rollouts: Rollouts, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Signals of the prompts and completions of one lesson, the mean of each task's attempts, (N,) each, on every process."""
    batch = rollouts.batch
    pictures = [key for key in PICTURES if key in batch]
    if pictures:
        raise TutelageError(
            f"The curriculum {trainer.curriculum.name!r} needs the angles of token states, and this batch has images "
            f"({', '.join(pictures)}), which a pass over the tokens alone would leave out. Use it with text."
        )
    ids = []
    for b, length in enumerate(rollouts.length_b):
        prompt = batch["prompt_ids"][b][batch["prompt_mask"][b].bool()]
        ids.append(torch.cat([prompt, batch["completion_ids"][b][:length]]).cpu().numpy())
    with _clocked(trainer), evaluating(trainer.model):
        table = _angles(trainer, ids, [np.full(len(one), QUESTION) for one in ids])
    whole_BK = _gathered(trainer, {name: table[name] for name in names})
    shape = rollouts.columns["reward"].shape
    return {name: whole_BK[:, k].reshape(shape).mean(axis=1) for k, name in enumerate(names)}


def check_model(trainer: GRPOLessons) -> None:
    """Raise before training if a curriculum needs hidden states that the model does not have."""
    if lesson_names(trainer.curriculum):
        find_site(trainer.model)


def lesson_names(curriculum: Any) -> tuple[str, ...]:
    """The signals of rollouts that a curriculum declares."""
    return tuple(sorted(column.removeprefix("signals/") for column in curriculum.needs & OF_LESSONS))


def _angles(trainer: GRPOLessons, ids: Sequence[NDArray[Any]], segments: Sequence[NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Both concentrations of this process's sequences, in batches of like length and of one device's size."""
    share, site = trainer.args.per_device_train_batch_size, find_site(trainer.model)
    order = np.argsort([-len(one) for one in ids], kind="stable")
    found = {name: np.empty(len(ids)) for name in angles.SIGNALS}
    for start in range(0, len(ids), share):
        rows_b = order[start : start + share]
        with trainer.accelerator.autocast():
            sums = read_states(trainer.model, site, [ids[row] for row in rows_b], [segments[row] for row in rows_b])
        for name, value_B in sums.signals().items():
            found[name][rows_b] = value_B.double().cpu().numpy()
    return found


def _gathered(trainer: GRPOLessons, table: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The columns of all processes, (B, K), in the order of processes."""
    mine_BK = torch.from_numpy(np.stack(list(table.values()), axis=1).astype(np.float32)).to(trainer.accelerator.device)
    return trainer.accelerator.gather(mine_BK).double().cpu().numpy()


@contextmanager
def _clocked(trainer: GRPOLessons) -> Iterator[None]:
    """Counts the time inside as the curriculum's."""
    began = time.perf_counter()
    try:
        yield
    finally:
        trainer.curriculum_seconds += time.perf_counter() - began
