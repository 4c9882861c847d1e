"""TRL's generation batch, taken apart into single samples and put together again, and the statistics it logs.

Keys of the batch as TRL 1.16 makes them: `prompt_ids`, `prompt_mask` (left-padded), `completion_ids`, `completion_mask`, `tool_mask` and
the log-probabilities (right-padded to the longest completion), `advantages` (one per sample, or per token in a subclass), and
`num_items_in_batch`, the tokens of the loss over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TutelageError

Batch = dict[str, Any]
Sample = dict[str, Tensor]
PICTURES = ("pixel_values", "num_images", "image_grid_thw", "image_sizes", "mm_token_type_ids", "token_type_ids")
FILL = {"tool_mask": 1}


@dataclass
class Rollouts:
    """What one generation batch gave.

    batch: this process's tensors, as TRL made them. length_b: tokens of this process's completions. Over all processes: reward_BF, raw
    rewards, one column per reward function; columns, (N, G) each: solved and kind where known, reward, advantage, length, ended (by
    itself, not by the limit). texts: the table of completions that TRL keeps, by column, where it is to be logged.
    """

    batch: Batch
    reward_BF: Tensor
    columns: dict[str, NDArray[Any]]
    length_b: list[int]
    texts: dict[str, list[Any]]


@dataclass
class Heard:
    """What the reward functions were given and gave, caught on the way. prompts: what they are shown instead of what was generated from."""

    prompts: list[Any] | None = None
    reward_BF: Tensor | None = None
    length_b: list[int] = field(default_factory=list)
    ended_b: list[bool] = field(default_factory=list)
    solved_b: list[float] | None = None
    kind_b: list[int] | None = None


def token_columns(batches: Sequence[Batch]) -> frozenset[str]:
    """Keys with one entry per completion token: as wide as the completions in every batch."""
    tensors = {key for key, value in batches[0].items() if isinstance(value, Tensor) and value.ndim > 1 and not key.startswith("prompt")}
    return frozenset(key for key in tensors if all(b[key].shape[1] == b["completion_ids"].shape[1] for b in batches))


def take_apart(batch: Batch, length_b: Sequence[int], wide: frozenset[str]) -> list[Sample]:
    """The samples of a batch without their padding. length_b: tokens of each completion. wide: from `token_columns`."""
    pictures = [key for key in PICTURES if key in batch]
    if pictures:
        raise TutelageError(
            f"A curriculum that filters, or a teacher that intervenes, cannot regroup batches with images (this one has "
            f"{', '.join(pictures)}); do without."
        )
    samples: list[Sample] = []
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.ndim > 0}
    for b, length in enumerate(length_b):
        kept = batch["prompt_mask"][b].bool()
        cut = {key: slice(length) if key in wide else kept if key.startswith("prompt") else ... for key in tensors}
        samples.append({key: value[b][cut[key]] for key, value in tensors.items()})
    return samples


def put_together(samples: Sequence[Sample], wide: frozenset[str], *, pad_id: int, multiple_of: int | None) -> Batch:
    """Samples as one padded batch, without the scalars that count over the batch."""
    batch: Batch = {}
    for key in samples[0]:
        values, left = [sample[key] for sample in samples], key.startswith("prompt")
        fill = pad_id if key in ("prompt_ids", "completion_ids") else FILL.get(key, 0)
        batch[key] = padded(values, fill, left=left, multiple_of=multiple_of) if left or key in wide else torch.stack(values)
    return batch


def padded(rows: Sequence[Tensor], fill: int, *, left: bool, multiple_of: int | None) -> Tensor:
    """Rows of different lengths as one tensor."""
    width = max(len(row) for row in rows)
    width += -width % (multiple_of or 1)
    result = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), fill)
    for b, row in enumerate(rows):
        result[b, slice(width - len(row), None) if left else slice(len(row))] = row
    return result


def nanstd(value: Tensor, dim: int) -> Tensor:
    """Standard deviation (divisor n - 1) without NaN entries; NaN where fewer than two are known."""
    known = ~torch.isnan(value)
    count = known.sum(dim, keepdim=True)
    mean = torch.nanmean(value, dim, keepdim=True)
    square = torch.where(known, value - mean, 0.0).square().sum(dim, keepdim=True)
    return torch.where(count > 1, square / (count - 1).clamp(min=1), torch.nan).sqrt().squeeze(dim)


def weighted_reward(reward_BF: Tensor, weight_F: Tensor) -> Tensor:
    """The reward that TRL optimises, (B,): NaN where no reward function scored the sample."""
    known_B = ~torch.isnan(reward_BF).all(dim=1)
    return torch.where(known_B, (reward_BF * weight_F.to(reward_BF)).nansum(dim=1), torch.nan)


def advantages(reward_BF: Tensor, weight_F: Tensor, attempts: int, *, scale: str, aggregation: str) -> tuple[Tensor, Tensor]:
    """TRL's advantages of whole groups and the standard deviations behind them, (B,) each.

    scale: "group", "batch" or "none". aggregation: "sum_then_normalize", or "normalize_then_sum" (GDPO, arXiv 2601.05242: each reward
    normalised within its group, the sum within the batch).
    """
    if aggregation == "normalize_then_sum":
        grouped_NGF = reward_BF.view(-1, attempts, reward_BF.shape[1])
        normal_NGF = (grouped_NGF - grouped_NGF.nanmean(1, keepdim=True)) / (nanstd(grouped_NGF, 1).unsqueeze(1) + 1e-4)
        total_B = weighted_reward(normal_NGF.reshape(reward_BF.shape), weight_F)
        std_B = nanstd(total_B, 0).expand_as(total_B)
        return ((total_B - total_B.nanmean()) / (std_B + 1e-4)).nan_to_num(nan=0.0), std_B
    total_B = weighted_reward(reward_BF, weight_F)
    total_NG = total_B.view(-1, attempts)
    centred_B = (total_NG - total_NG.nanmean(1, keepdim=True)).flatten()
    std_B = nanstd(total_B, 0).expand_as(total_B) if scale == "batch" else nanstd(total_NG, 1).repeat_interleave(attempts)
    return (centred_B if scale == "none" else centred_B / (std_B + 1e-4)).nan_to_num(nan=0.0), std_B


def completion_metrics(length_B: NDArray[Any], ended_B: NDArray[Any]) -> dict[str, float]:
    """What TRL logs of completions, over the samples given. ended_B: whether a completion ended by itself."""
    done_D = length_B[ended_B > 0] if (ended_B > 0).any() else np.zeros(1)
    shapes = {"length": length_B, "terminated_length": done_D}
    stats = {f"completions/{how}_{name}": float(getattr(np, how)(x)) for name, x in shapes.items() for how in ("mean", "min", "max")}
    return stats | {"completions/clipped_ratio": float(1 - ended_B.mean())}


def reward_metrics(reward_BF: Tensor, weight_F: Tensor, names: Sequence[str], std_B: Tensor) -> dict[str, float]:
    """What TRL logs of rewards, over the samples given."""
    total_B = weighted_reward(reward_BF, weight_F)
    metrics = {"reward": total_B.nanmean().item(), "reward_std": nanstd(total_B, 0).item()}
    metrics["frac_reward_zero_std"] = torch.isclose(std_B, torch.zeros_like(std_B)).float().mean().item()
    for f, name in enumerate(names):
        metrics |= {f"rewards/{name}/mean": reward_BF[:, f].nanmean().item(), f"rewards/{name}/std": nanstd(reward_BF[:, f], 0).item()}
    return metrics
