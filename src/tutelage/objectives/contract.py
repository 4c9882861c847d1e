"""What an objective is: a pure function from a batch and the size of the *whole* batch to a loss.

    loss, stats = objective(batch, denominators=denominators, **hyper)

`batch` is a dictionary of columns. One row is one sequence (or one pair, see `pairwise.py`), so any partition of the rows (micro-batches,
accumulation steps, processes) is a partition of the batch. Averages divide by `denominators`, which are counted once over the rows of one
optimiser step and passed to every part; therefore losses, gradients and stats of the parts *add up* to those of the whole, whatever the
partition:

    denominators = objective.denominators_of(window)           # all rows of one optimiser step
    for part in split(window):
        loss, stats = objective(part, denominators=denominators)
        loss.backward()                                        # gradients accumulate by summation: no division by the number of parts

Over several processes, sum every entry but the constant `max_length` (`all_reduce`), and multiply the loss by the number of processes where
the engine averages gradients (DDP, FSDP).

Columns (`B` sequences, `T` response tokens, right-padded; values at masked positions are never read and may be NaN):

| key | meaning | gradient |
|---|---|---|
| `logp_BT` | log-probability of each sampled token under the policy that is trained, in nats | yes |
| `old_logp_BT` | the same under the policy that sampled; on-policy, `logp_BT.detach()` | no |
| `ref_logp_BT` | the same under the frozen reference | no |
| `mask_BT` | true where a token counts (not padding, not a tool's answer) | no |
| `advantage_B` or `advantage_BT` | advantage of a sequence or of each token (`advantages.py`) | no |
| `entropy_BT` | entropy of the policy at each token, in nats | yes |
| `group_B` | integer id of the task a sequence answers; counted into `denominators["groups"]` | no |
| `group_tokens_B` | tokens of all sequences of the row's group (`aggregation.group_tokens`) | no |

Columns of other rows, which a part of a `Sum` may read, carry the name of their source: `demonstrations/logp_BT` (`compose.On`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tutelage.errors import TutelageError

Batch = Mapping[str, Tensor]
Stats = dict[str, Tensor]
F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class Objective(Protocol):
    """A loss that any partition of its batch leaves unchanged; `tutelage.testing.objectives.check_objective` tests the promise."""

    @property
    def requires(self) -> frozenset[str]:
        """The columns it reads; no other is read."""

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        """Count the rows of one whole optimiser step."""

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The scalar loss, to be minimised, and detached scalars that add up over parts as the loss does."""


def denominators_of(batch: Batch, *, mask: str = "mask_BT", max_length: int | None = None) -> dict[str, Tensor]:
    """Count what losses divide by, over all rows of one optimiser step.

    Args:
        batch: columns; reads `batch[mask]` (B, T) and, where present, `group_B` (B,).
        mask: name of the mask to count.
        max_length: the constant L of Dr. GRPO, in tokens (TRL: `max_completion_length`); a constant, never summed over processes.

    Returns:
        int64 scalars: `sequences` (rows), `nonempty` (rows with at least one token), `tokens`, and where known `groups` (a group must not
        straddle two processes) and `max_length`.
    """
    if mask not in batch:
        raise TutelageError(f"denominators_of needs the column {mask!r}; the batch has {', '.join(sorted(batch)) or 'no columns'}.")
    mask_BT = batch[mask].bool()
    length_B = mask_BT.sum(dim=1)
    counts = {
        "sequences": torch.tensor(len(mask_BT), device=mask_BT.device),
        "nonempty": (length_B > 0).sum(),
        "tokens": length_B.sum(),
    }
    if "group_B" in batch:
        counts["groups"] = torch.tensor(batch["group_B"].unique().numel(), device=mask_BT.device)
    if max_length is not None:
        counts["max_length"] = torch.tensor(max_length, device=mask_BT.device)
    return counts


def requires(*keys: str) -> Callable[[F], F]:
    """Decorator that makes an `Objective` of a plain function `(batch, *, denominators, **hyper)` which reads `keys`."""

    def mark(function: F) -> F:
        function.requires = frozenset(keys)  # type: ignore[attr-defined]
        function.denominators_of = denominators_of  # type: ignore[attr-defined]
        return function

    return mark


def check_batch(needed: Collection[str], batch: Batch) -> None:
    """Raise `TutelageError` unless every column of `needed` is there and all columns (`_B`, `_BT`, `_BTV`) have one and the same (B, T)."""
    missing = sorted(set(needed) - set(batch))
    if missing:
        raise TutelageError(
            f"The objective needs the column(s) {', '.join(missing)}; the batch has {', '.join(sorted(batch)) or 'none'}. "
            "Add them, or switch off the term that reads them (see the table in tutelage.objectives.contract)."
        )
    wide = {key: tuple(batch[key].shape) for key in sorted(needed) if key.rpartition("_")[2].startswith("BT")}
    rows = {key: tuple(batch[key].shape) for key in sorted(needed) if key.endswith("_B")}
    deep = all(len(shape) == len(key.rpartition("_")[2]) for key, shape in wide.items())
    spans = {shape[:2] for shape in wide.values()}
    fits = not wide or (deep and len(spans) == 1 and set(rows.values()) <= {shape[:1] for shape in spans})
    if not fits:
        found = ", ".join(f"{key} {got}" for key, got in {**wide, **rows}.items())
        raise TutelageError(
            f"Columns of one batch disagree in shape: {found}. Expected one (B, T) for all `_BT` (and at the front of `_BTV`), and (B,) "
            "for all `_B`. Likely cause: prompt tokens left in one of them, or rewards per group not flattened to one per sequence."
        )
