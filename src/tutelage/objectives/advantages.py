"""From rewards to advantages: N tasks, G attempts each. No value network, no gradient.

With μ and s (divisor G−1) of one group, and S the standard deviation of all rewards of the batch:

| kind | advantage | source | TRL | verl | OpenRLHF |
|---|---|---|---|---|---|
| `group_std` | (r − μ) / (s + ε) | GRPO, arXiv 2402.03300 | `scale_rewards="group"`, ε 1e-4 | `grpo`, ε 1e-6 | `group_norm`, ε 1e-9 |
| `group_mean` | r − μ | Dr. GRPO, 2503.20783 | `"none"` | `norm_adv_by_std_in_grpo=False` | `dr_grpo` |
| `batch_std` | (r − μ) / (S + ε) | 2508.08221 | `"batch"`, ε 1e-4 | – | – |
| `leave_one_out` | r_i − mean of the others = G/(G−1) (r_i − μ) | RLOO, 2402.14740 | `RLOOTrainer` | `rloo` | `rloo` |
| `whiten` | return-to-go, whitened over all tokens of the batch | REINFORCE++, 2501.03262 | – | `reinforce_plus_plus` | `reinforce` |
| `group_mean_whiten` | the same of r − μ | ibid. | – | `reinforce_plus_plus_baseline` | `reinforce_baseline` |

The first four give one number per sequence, the last two one per token. All need whole groups (the last two and `batch_std` the whole
batch), so they run before any split.

Departures. A group whose rewards are all equal is *dead* and its advantages are exactly 0, so ε can default to 0 as in the papers. Without
that guard the float residue of "equal" rewards is divided by itself: eight float32 rewards of 0.1 get |A| = 0.83 with ε = 1e-9. NaN rewards
are unscorable: they enter no mean and get advantage 0; a group with fewer than two scorable rewards is dead (verl returns the raw reward
of a group of one).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown

GroupAdvantage = Literal["group_std", "group_mean", "batch_std", "leave_one_out"]


class GroupAdvantages(NamedTuple):
    """`advantage_NG` and statistics of each group over its scorable rewards (NaN where there are none; `std_N` needs two)."""

    advantage_NG: Tensor
    mean_N: Tensor
    std_N: Tensor
    dead_N: Tensor


def group_advantages(reward_NG: Tensor, *, kind: GroupAdvantage = "group_std", eps: float = 0.0, ddof: int = 1) -> GroupAdvantages:
    """Advantages of grouped rewards.

    Args:
        reward_NG: rewards (N, G); NaN = unscorable.
        kind: one of the first four rows of the table above.
        eps: ε, added to the standard deviation.
        ddof: 1 for the unbiased standard deviation that all libraries use.

    Raises:
        TutelageError: an unknown kind, a reward that is infinite, or a shape that is not (N, G).
    """
    if kind not in get_args(GroupAdvantage):
        raise unknown("group advantage", kind, get_args(GroupAdvantage))
    reward_NG = _checked(reward_NG)
    scorable_NG = ~reward_NG.isnan()
    count_N = scorable_NG.sum(dim=1)
    highest_N = reward_NG.nan_to_num(nan=-torch.inf).amax(dim=1)
    lowest_N = reward_NG.nan_to_num(nan=torch.inf).amin(dim=1)
    dead_N = (count_N < 2) | (highest_N == lowest_N)
    mean_N = reward_NG.nanmean(dim=1)
    std_N = _nanstd(reward_NG, ddof)
    centred_NG = torch.where(scorable_NG & ~dead_N.unsqueeze(1), reward_NG - mean_N.unsqueeze(1), 0.0)
    live_N = (~dead_N).unsqueeze(1)
    if kind == "group_std":
        scaled_NG = centred_NG / (std_N.unsqueeze(1) + eps)
    elif kind == "batch_std":
        scaled_NG = centred_NG / (_nanstd(reward_NG.reshape(1, -1), ddof) + eps)
    elif kind == "leave_one_out":
        scaled_NG = centred_NG * (count_N / (count_N - 1)).unsqueeze(1)
    else:
        scaled_NG = centred_NG
    return GroupAdvantages(torch.where(live_N, scaled_NG, 0.0), mean_N, std_N, dead_N)


def token_returns(reward_B: Tensor, mask_BT: Tensor, *, kl_BT: Tensor | None = None, kl_coef: float = 0.0, gamma: float = 1.0) -> Tensor:
    """Return-to-go R[i,t] = Σ_{t'≥t} γ^{t'−t} (r_i 1[t' = last] − c·KL[i,t']) over the unmasked tokens (B, T); 0 where masked.

    Time counts unmasked tokens only. (verl's loop restarts its sum at a masked token, so a tool's answer in the middle would cut the reward
    off from what precedes it.)

    Args:
        reward_B: one reward per sequence, put on its last unmasked token (B,).
        mask_BT: true where a token counts (B, T).
        kl_BT: per-token KL estimate (B, T), subtracted `kl_coef` times *after* the baseline, as OpenRLHF and verl do.
        gamma: γ.
    """
    mask_BT = mask_BT.bool()
    after_BT = mask_BT.flip(1).cumsum(dim=1).flip(1)  # unmasked tokens from here on, this one included
    step_BT = torch.where(mask_BT & (after_BT == 1), reward_B.unsqueeze(1), 0.0)
    if kl_BT is not None:
        step_BT = step_BT - torch.where(mask_BT, kl_coef * kl_BT, 0.0)
    if gamma == 1.0:
        return torch.where(mask_BT, step_BT.flip(1).cumsum(dim=1).flip(1), 0.0)
    return_BT, running_B = torch.zeros_like(step_BT), torch.zeros_like(reward_B)
    for t in reversed(range(mask_BT.shape[1])):
        running_B = torch.where(mask_BT[:, t], step_BT[:, t] + gamma * running_B, running_B)
        return_BT[:, t] = torch.where(mask_BT[:, t], running_B, 0.0)
    return return_BT


def whiten(x_BT: Tensor, mask_BT: Tensor, *, ddof: int = 1, eps: float = 1e-8, floor: float = 0.0) -> Tensor:
    """(x − mean) / sqrt(max(var, floor) + ε) over all unmasked tokens (B, T); 0 where masked, and exactly 0 if all are equal.

    Every token has the same weight, so long answers pull the mean. verl: `ddof=1, eps=1e-8`; OpenRLHF: `ddof=0, eps=0, floor=1e-8`.
    """
    mask_BT = mask_BT.bool()
    value_M = x_BT[mask_BT]
    if len(value_M) <= ddof or value_M.max() == value_M.min():
        return torch.zeros_like(x_BT)
    scale = (value_M.var(correction=ddof).clamp(min=floor) + eps).rsqrt()
    return torch.where(mask_BT, (x_BT - value_M.mean()) * scale, 0.0)


def overlong_penalty(length_B: Tensor, *, max_length: int = 20480, cache: int = 4096, factor: float = 1.0, clamp: bool = True) -> Tensor:
    """Soft overlong punishment (DAPO, arXiv 2503.14476), to be added to the reward (B,), in [−factor, 0].

    0 up to `max_length − cache` tokens, then falling linearly to −factor at `max_length`, and −factor beyond; `clamp=False` lets it fall
    on, as verl does.
    """
    penalty_B = -(length_B - (max_length - cache)).clamp(min=0) / cache
    return factor * (penalty_B.clamp(min=-1.0) if clamp else penalty_B)


def keep_groups(solved_NG: Tensor, *, above: float = 0.0, below: float = 1.0, inclusive: bool = False) -> Tensor:
    """Groups worth training on: those with a pass rate strictly between `above` and `below` (DAPO's dynamic sampling) (N,) bool.

    Compares integers (correct · denominator with attempts · numerator), so that 3 of 5 is not above 0.6. NaN (unscorable) attempts do not
    count; a group without any scorable attempt is not kept. For graded rewards use `~group_advantages(...).dead_N`.

    Args:
        solved_NG: 1 where the verifier accepts, 0 where not (N, G).
        above, below: bounds of the pass rate.
        inclusive: let the bounds themselves pass.
    """
    scorable_NG = ~solved_NG.isnan() if solved_NG.is_floating_point() else torch.ones_like(solved_NG, dtype=torch.bool)
    if not ((solved_NG == 0) | (solved_NG == 1) | ~scorable_NG).all():
        raise TutelageError(
            "keep_groups counts correct answers and got a value other than 0, 1 and NaN; for graded rewards use dead groups."
        )
    correct_N, attempts_N = (solved_NG == 1).sum(dim=1), scorable_NG.sum(dim=1)
    low, high = (Fraction(bound).limit_denominator(1_000_000) for bound in (above, below))
    over_N = correct_N * low.denominator - attempts_N * low.numerator
    under_N = attempts_N * high.numerator - correct_N * high.denominator
    inside_N = (over_N >= 0) & (under_N >= 0) if inclusive else (over_N > 0) & (under_N > 0)
    return inside_N & (attempts_N > 0)


def _checked(reward_NG: Tensor) -> Tensor:
    if reward_NG.dim() != 2:
        raise TutelageError(
            f"Rewards must have the shape (tasks, attempts), and came as {tuple(reward_NG.shape)}. "
            "Likely cause: flat rewards; reshape them with reward.view(-1, attempts_per_task)."
        )
    if reward_NG.isinf().any():
        row, attempt = reward_NG.isinf().nonzero()[0].tolist()
        raise TutelageError(f"The reward of task {row}, attempt {attempt} is infinite. Rewards are finite, or NaN where there is none.")
    return reward_NG if reward_NG.dtype == torch.float64 else reward_NG.float()


def _nanstd(x_NG: Tensor, ddof: int) -> Tensor:
    """Standard deviation of the non-NaN values of each row (N,); NaN where there are not more than `ddof`."""
    count_N = (~x_NG.isnan()).sum(dim=1)
    square_NG = (x_NG - x_NG.nanmean(dim=1, keepdim=True)).square()
    return (square_NG.nansum(dim=1) / torch.where(count_N > ddof, count_N - ddof, torch.nan)).sqrt()
