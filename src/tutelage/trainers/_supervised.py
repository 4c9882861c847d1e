"""A lesson in supervised fine-tuning: the micro-batches of one optimiser step, and what its own forward pass shows of each example.

Signals per example: `loss`, the mean negative log-likelihood of its trained tokens, and `entropy`, their mean entropy, both in nats.
They are of the model that the step then changes, and cost no second forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.trainers._batches import Batch
from tutelage.trainers._lesson import ask, learn, tell_probe, wanted

if TYPE_CHECKING:
    from tutelage.trainers.trl import SFTLessons

SIGNALS = frozenset({"loss", "entropy"})


def next_window(trainer: SFTLessons, count: int) -> list[Batch]:
    """This process's `count` micro-batches of freshly proposed rows; the rows of one micro-batch lie in the order of processes."""
    answer_wants(trainer)
    share = trainer.args.per_device_train_batch_size
    rank, world = trainer.shares
    trainer.rows_N = ask(trainer, lambda: trainer.curriculum.propose(count * world * share))
    trainer.pending = []
    return [trainer.data_collator(trainer.rows(rows_b)) for rows_b in trainer.rows_N.reshape(count, world, share)[:, rank]]


def overheard(trainer: SFTLessons, outputs: Any) -> None:
    """Keep what one micro-batch showed; after the last of the step, show the whole lesson to the curriculum."""
    trainer.pending.append(example_signals(outputs))
    world, share = trainer.accelerator.num_processes, trainer.args.per_device_train_batch_size
    if len(trainer.pending) * world * share < len(trainer.rows_N):
        return
    table_JB = torch.stack(trainer.pending)
    table = trainer.accelerator.gather(table_JB.flatten(0, 1)).unflatten(0, (world, len(table_JB), -1)).transpose(0, 1)
    loss_N, entropy_N, length_N = table.flatten(0, 2).double().cpu().numpy().T
    trainer.pending = []
    ledger, tokens = trainer.ledger, int(length_N.sum())
    ledger.lessons, ledger.tokens, ledger.training_tokens = ledger.lessons + 1, ledger.tokens + tokens, ledger.training_tokens + tokens
    learn(trainer, trainer.rows_N, fields_of(loss_N, entropy_N, length_N))
    if trainer.accelerator.is_main_process:
        for name, value in trainer.curriculum.metrics.items():
            trainer.record(f"curriculum/{name}", value)


def fields_of(loss_N: NDArray[Any], entropy_N: NDArray[Any], length_N: NDArray[Any]) -> dict[str, Any]:
    return {"length": length_N[:, None], "signals": {"loss": loss_N, "entropy": entropy_N}}


def example_signals(outputs: Any) -> Tensor:
    """Loss, entropy and trained tokens of each example, (B, 3); NaN where no token is trained."""
    mask_BT = outputs.label_mask
    length_B = mask_BT.sum(1)
    tokens = (-outputs.log_probs.detach(), outputs.entropy.detach())
    means = [(torch.where(mask_BT, value_BT, 0.0).sum(1) / length_B).float() for value_BT in tokens]
    return torch.stack([*means, length_B.float()], dim=1)


def answer_wants(trainer: SFTLessons) -> None:
    """Measure the rows that the curriculum wants to know about, in evaluation mode, without gradient."""
    wants = wanted(trainer)
    if wants is None:
        return
    if not set(wants.signals) <= SIGNALS:
        raise TutelageError(
            f"The curriculum {trainer.curriculum.name!r} wants the signals {', '.join(wants.signals)}; supervised training measures "
            f"{' and '.join(sorted(SIGNALS))}."
        )
    rank, world = trainer.shares
    share = trainer.args.per_device_train_batch_size
    rows_N = np.asarray(wants.rows_N, dtype=np.int64)
    rows_M = np.concatenate([rows_N, np.repeat(rows_N[-1:], -len(rows_N) % (world * share))])
    trainer.model.eval()
    with torch.no_grad():
        parts = [measure(trainer, rows_b) for rows_b in rows_M.reshape(-1, world, share)[:, rank]]
    trainer.model.train()
    table = torch.cat([trainer.accelerator.gather(part) for part in parts])[: len(rows_N)]
    loss_N, entropy_N, length_N = table.double().cpu().numpy().T
    trainer.ledger.rollouts += len(rows_N)
    trainer.ledger.probe_rollouts += len(rows_N)
    trainer.ledger.tokens += int(length_N.sum())
    tell_probe(trainer, wants, fields_of(loss_N, entropy_N, length_N))


def measure(trainer: SFTLessons, rows_b: NDArray[np.int64]) -> Tensor:
    inputs = trainer.on_device(trainer.data_collator(trainer.rows(rows_b)))
    return example_signals(trainer.scored(trainer.model_wrapped, inputs))
