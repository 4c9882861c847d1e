"""How per-token losses become one number: the weight of every token.

loss = Σ_{i,t} w[i,t] x[i,t], with B sequences, n_i tokens in sequence i, N = Σ n_i tokens, all counted over the whole optimiser step:

| aggregation | w | elsewhere |
|---|---|---|
| `seq_mean_token_mean` | 1 / (B n_i) | GRPO; TRL `loss_type="grpo"`; verl `seq-mean-token-mean` |
| `token_mean` | 1 / N | DAPO; TRL `dapo`; verl `token-mean`; OpenRLHF |
| `group_token_mean` | 1 / (groups · tokens of the group) | DAPO eq. (8) to the letter; no library does it |
| `seq_mean_token_sum` | 1 / B | verl `seq-mean-token-sum` |
| `seq_mean_token_sum_norm` | 1 / (B L) | Dr. GRPO; TRL `dr_grpo`; verl from February 2026 |
| `token_sum_norm` | 1 / L | verl's `seq-mean-token-sum-norm` before (B times larger; its L was the padded width unless set) |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown

Aggregation = Literal[
    "seq_mean_token_mean", "token_mean", "group_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm", "token_sum_norm"
]


def token_weights(
    mask_BT: Tensor,
    denominators: Mapping[str, Tensor],
    *,
    aggregation: Aggregation = "seq_mean_token_mean",
    max_length: int | None = None,
    drop_empty: bool = False,
    group_tokens_B: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weights w_BT (B, T), exactly 0 where masked.

    Args:
        mask_BT: true where a token counts (B, T).
        denominators: from `denominators_of` on the *whole* batch.
        aggregation: see the table above.
        max_length: L, in tokens; without it `denominators["max_length"]` is used.
        drop_empty: leave fully masked sequences out of B, as verl and OpenRLHF do; TRL counts them.
        group_tokens_B: tokens of the row's whole group (B,), for `group_token_mean`.
        dtype: of the weights.

    Raises:
        TutelageError: an unknown aggregation, or a count that is missing.
    """
    if aggregation not in get_args(Aggregation):
        raise unknown("aggregation", aggregation, get_args(Aggregation))
    weight_BT = mask_BT.to(dtype)
    if aggregation == "token_mean":
        return weight_BT / _count(denominators, "tokens")
    if aggregation == "group_token_mean":
        if group_tokens_B is None:
            raise TutelageError("aggregation 'group_token_mean' needs `group_tokens_B`; compute it on whole groups with `group_tokens`.")
        return weight_BT / (_count(denominators, "groups") * group_tokens_B.clamp(min=1).to(dtype).unsqueeze(1))
    if aggregation == "seq_mean_token_mean":
        weight_BT = weight_BT / weight_BT.sum(dim=1, keepdim=True).clamp(min=1)
    if aggregation.endswith("_norm"):
        weight_BT = weight_BT / (max_length or _count(denominators, "max_length"))
    if aggregation == "token_sum_norm":
        return weight_BT
    return weight_BT / _count(denominators, "nonempty" if drop_empty else "sequences")


def group_tokens(mask_BT: Tensor, group_B: Tensor) -> Tensor:
    """The number of tokens of each row's group, as a column `group_tokens_B` (B,), int64. Call it on whole groups, before any split."""
    _, index_B = group_B.unique(return_inverse=True)
    length_B = mask_BT.bool().sum(dim=1)
    return torch.zeros_like(length_B).scatter_add_(0, index_B, length_B)[index_B]


def _count(denominators: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in denominators:
        hint = {
            "max_length": "Dr. GRPO divides by a constant length: give `max_length` to the objective or to `denominators_of`.",
            "groups": "The batch needs the column `group_B` when the denominators are counted.",
        }.get(key, "Count them over the whole optimiser step with `objective.denominators_of(batch)`.")
        raise TutelageError(f"The denominator {key!r} is missing; there are {', '.join(sorted(denominators)) or 'none'}. {hint}")
    return torch.as_tensor(denominators[key]).clamp(min=1)
