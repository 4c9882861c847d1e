"""The pairwise logistic loss: one row is one pair, a target reply to be preferred and another one. DPO, SPIN and TPAW are its presets.

    P_j(y) = β ( log π_θ(y) − log π_j(y) )            reward under player (frozen reference) j; log π sums over a reply's tokens
    L      = mean over pairs of  Σ_j w_j ℓ( α_j P_j(chosen) − P_j(rejected) )   +   s · NLL(chosen),          ℓ(z) = log(1 + e^−z)

| preset | players j | pairs | α_j | w_j |
|---|---|---|---|---|
| `dpo` (arXiv 2305.18290) | one, fixed | preferences | 1 | 1 |
| `spin` (arXiv 2401.01335) | one, the last checkpoint | demonstration over the last checkpoint's own sample | 1 | 1 |
| `tpaw` (arXiv 2605.09922) | the last three checkpoints | the same, samples of three rounds | η where P_j ≤ 0 | softmax(−γ margin) |

The players never run here. Score each pair once under each of them, `sequence_logp(...)`, and store the two numbers as columns:

| key | meaning | gradient |
|---|---|---|
| `chosen_logp_BT`, `rejected_logp_BT` | log-probability of each token of the two replies under the trained policy, in nats | yes |
| `chosen_mask_BT`, `rejected_mask_BT` | true where a token counts: reply and end token, not prompt or padding; one width for both | no |
| `ref_chosen_logp_BJ`, `ref_rejected_logp_BJ` | the same of the whole reply under each of J players; J = 1 for DPO and SPIN | no |

Every loss of this form may push both log-probabilities down, which the loss itself does not show: watch the stat `target_drift`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError, unknown
from tutelage.objectives.aggregation import token_weights
from tutelage.objectives.contract import Batch, Stats, check_batch, denominators_of
from tutelage.registry import objectives

SupervisedAggregation = Literal["seq_mean_token_mean", "token_mean"]


def sequence_logp(logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log π(y) of whole replies (B,), in nats: the sum over the tokens that count, in single precision at least."""
    wide_BT = logp_BT.float() if logp_BT.dtype in (torch.float16, torch.bfloat16) else logp_BT
    return torch.where(mask_BT.bool(), wide_BT, 0.0).sum(dim=1)


def target_multipliers(target_reward_BJ: Tensor, *, multiplier: float = 6.0) -> Tensor:
    """TPAW's α_j (B, J): `multiplier` (the paper's η) where P_j(y) ≤ 0, else 1; piecewise constant, so without gradient.

    Where player j says that the policy has not moved towards the target, the pull on the target is amplified. P = 0 counts as not moved,
    hence α = η everywhere in the first step of a first round. The paper's text was not available; the boundary is taken as written, "≤".

    Args:
        target_reward_BJ: P_j(y) of the targets under J players (B, J).
    """
    reward_BJ = target_reward_BJ.detach()
    return torch.where(reward_BJ <= 0, torch.full_like(reward_BJ, multiplier), torch.ones_like(reward_BJ))


def player_weights(margin_BJ: Tensor, *, gamma: float = 0.5) -> Tensor:
    """TPAW's β_j = softmax over players of −γ m_j, (B, J): the player that separates the two replies worst gets the most weight.

    Rows sum to 1; γ = 0 is the uniform weight 1/J. The policy's own part of m_j is common to all players and cancels in the softmax: the
    weights depend on the players' log-probabilities alone, stay as they are through training, and have no gradient to stop.

    Args:
        margin_BJ: m_j = P_j(y) − P_j(y'), without α (B, J).
    """
    return torch.softmax(-gamma * margin_BJ.detach(), dim=1)


def pairwise_logistic(
    chosen_reward_BJ: Tensor,
    rejected_reward_BJ: Tensor,
    *,
    multiplier_BJ: Tensor,
    weight_BJ: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Σ_j w_j [ (1 − ε) ℓ(z_j) + ε ℓ(−z_j) ] per pair (B,), with z_j = α_j P_j(chosen) − P_j(rejected).

    Args:
        chosen_reward_BJ, rejected_reward_BJ: P_j of the two replies (B, J).
        multiplier_BJ: α_j on the target's reward; ones for DPO and SPIN.
        weight_BJ: w_j of the players; ones for J = 1.
        label_smoothing: ε, the assumed share of swapped labels ("conservative" DPO).
    """
    z_BJ = multiplier_BJ * chosen_reward_BJ - rejected_reward_BJ
    loss_BJ = -F.logsigmoid(z_BJ)
    if label_smoothing:
        loss_BJ = (1 - label_smoothing) * loss_BJ + label_smoothing * -F.logsigmoid(-z_BJ)
    return (weight_BJ * loss_BJ).sum(dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairwise:
    """A pairwise logistic objective as a record of switches; the defaults are DPO. Any switch can be overridden for one call.

    The two adaptive weightings are independent: `target_multiplier=1` switches off α, `player_gamma=0` switches off β (uniform weights).

    Args:
        beta: β of DPO, λ of SPIN and TPAW: the scale of the log-ratio. At 1 and above the logistic saturates and hides α.
        target_multiplier: η, see `target_multipliers`; 1 = off.
        player_gamma: γ, see `player_weights`; 0 = off.
        label_smoothing: ε, see `pairwise_logistic`; in [0, 0.5).
        supervised_weight: s, the weight of the chosen reply's negative log-likelihood; 0 = off. Honest LLM uses 1, Learning by
            Teaching 50.
        supervised_aggregation: `seq_mean_token_mean` averages over each reply's tokens and then over pairs (those papers, LLaMA-Factory);
            `token_mean` over all tokens of the step (TRL's loss type `sft`).
    """

    beta: float = 0.1
    target_multiplier: float = 1.0
    player_gamma: float = 0.0
    label_smoothing: float = 0.0
    supervised_weight: float = 0.0
    supervised_aggregation: SupervisedAggregation = "seq_mean_token_mean"

    def __post_init__(self) -> None:
        for name, positive in {"beta": True, "target_multiplier": True, "player_gamma": False, "supervised_weight": False}.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                off = {"target_multiplier": "; 1 switches it off", "beta": "; the usual value is 0.1"}.get(name, "; 0 switches it off")
                raise TutelageError(f"{name} must be finite and {'positive' if positive else 'not negative'} and is {value!r}{off}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise TutelageError(
                f"label_smoothing must lie in [0, 0.5) and is {self.label_smoothing!r}: from a half on, the labels would be mostly wrong."
            )
        if self.supervised_aggregation not in get_args(SupervisedAggregation):
            raise unknown("supervised_aggregation", self.supervised_aggregation, get_args(SupervisedAggregation))

    @property
    def requires(self) -> frozenset[str]:
        sides = ("chosen", "rejected")
        return frozenset(key for side in sides for key in (f"{side}_logp_BT", f"{side}_mask_BT", f"ref_{side}_logp_BJ"))

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        """Counts over one whole optimiser step: `sequences` are pairs, `tokens` those of the chosen replies."""
        return denominators_of(batch, mask="chosen_mask_BT", max_length=max_length)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The loss of `batch`, which may be any part of the pairs that `denominators` counts.

        Stats (they add up over parts), averages over the pairs of the step and over players, each player alike:

        - `target_drift`, `rejected_drift`: log π_θ − log π_j of the chosen and the rejected reply, in nats, without β. A negative target
          drift means that the policy moves away from what it should imitate.
        - `margin`: P_j(chosen) − P_j(rejected), without α; `accuracy`: share of margins above 0.
        - `not_moved`: share of P_j(chosen) ≤ 0, where `target_multiplier` acts.
        - `player_entropy`: entropy of the player weights, in nats, log J where they are uniform.
        - `pairwise_loss`, and with a supervised weight `supervised_loss`: the two terms, each as it enters the loss.
        """
        if hyper:
            return self._with(hyper)(batch, denominators=denominators)
        check_batch(self.requires, batch)
        chosen_drift_BJ, rejected_drift_BJ = (_drift(batch, side) for side in ("chosen", "rejected"))
        if chosen_drift_BJ.shape != rejected_drift_BJ.shape:
            raise TutelageError(
                f"`ref_chosen_logp_BJ` has {chosen_drift_BJ.shape[1]} players and `ref_rejected_logp_BJ` {rejected_drift_BJ.shape[1]}. "
                "Score both replies of each pair under the same players, in the same order."
            )
        chosen_BJ, rejected_BJ = self.beta * chosen_drift_BJ, self.beta * rejected_drift_BJ
        margin_BJ = chosen_BJ - rejected_BJ
        weight_BJ = player_weights(margin_BJ, gamma=self.player_gamma)
        loss_B = pairwise_logistic(
            chosen_BJ,
            rejected_BJ,
            multiplier_BJ=target_multipliers(chosen_BJ, multiplier=self.target_multiplier),
            weight_BJ=weight_BJ,
            label_smoothing=self.label_smoothing,
        )
        pairs = torch.as_tensor(denominators["sequences"]).clamp(min=1)
        loss = loss_B.sum() / pairs
        means = {
            "target_drift": chosen_drift_BJ,
            "rejected_drift": rejected_drift_BJ,
            "margin": margin_BJ,
            "accuracy": (margin_BJ > 0).to(margin_BJ),
            "not_moved": (chosen_BJ <= 0).to(margin_BJ),
        }
        stats = {"pairwise_loss": loss} | {name: x_BJ.mean(dim=1).sum() / pairs for name, x_BJ in means.items()}
        stats["player_entropy"] = torch.special.entr(weight_BJ).sum() / pairs
        if self.supervised_weight:
            stats["supervised_loss"] = self.supervised_weight * self._nll(batch, denominators)
            loss = loss + stats["supervised_loss"]
        return loss, {name: value.detach() for name, value in stats.items()}

    def _nll(self, batch: Batch, denominators: Mapping[str, Tensor]) -> Tensor:
        """The negative log-likelihood of the chosen replies, per token."""
        mask_BT, logp_BT = batch["chosen_mask_BT"].bool(), batch["chosen_logp_BT"]
        weight_BT = token_weights(mask_BT, denominators, aggregation=self.supervised_aggregation, dtype=_wide(logp_BT.dtype))
        return -sequence_logp(weight_BT * logp_BT, mask_BT).sum()

    def _with(self, hyper: Mapping[str, Any]) -> Pairwise:
        names = [field.name for field in dataclasses.fields(self)]
        for name in hyper:
            if name not in names:
                raise unknown("switch of the pairwise loss", name, names)
        return dataclasses.replace(self, **hyper)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _drift(batch: Batch, side: str) -> Tensor:
    """log π_θ(y) − log π_j(y) of one side's replies (B, J), in nats."""
    logp_B = sequence_logp(batch[f"{side}_logp_BT"], batch[f"{side}_mask_BT"])
    ref_BJ = batch[f"ref_{side}_logp_BJ"]
    if ref_BJ.dim() != 2 or len(ref_BJ) != len(logp_B) or ref_BJ.shape[1] == 0:
        raise TutelageError(
            f"`ref_{side}_logp_BJ` has the shape {tuple(ref_BJ.shape)}; expected ({len(logp_B)}, J): for each pair the log-probability of "
            "the whole reply under each of J ≥ 1 players. With one reference add the axis, `ref_B.unsqueeze(1)`; sum token columns first "
            "with `sequence_logp`."
        )
    return logp_B.unsqueeze(1) - ref_BJ.detach().to(logp_B)


@objectives.register("dpo")
def dpo(
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    supervised_weight: float = 0.0,
    supervised_aggregation: SupervisedAggregation = "seq_mean_token_mean",
) -> Pairwise:
    """DPO (arXiv 2305.18290, eq. 7): the logistic loss of preference pairs against one fixed reference.

    Equal to TRL 1.16's `DPOTrainer` with `loss_type="sigmoid"`; there `label_smoothing` does not reach that loss type, while here it is
    conservative DPO.
    """
    return Pairwise(
        beta=beta,
        label_smoothing=label_smoothing,
        supervised_weight=supervised_weight,
        supervised_aggregation=supervised_aggregation,
    )


@objectives.register("spin")
def spin(*, beta: float = 0.1, supervised_weight: float = 0.0) -> Pairwise:
    """SPIN (arXiv 2401.01335): demonstrations over own samples; the reference is the checkpoint that sampled them.

    In form DPO; `beta` is the paper's λ, 0.1 in the released configurations (5.0 in iteration 3), whose hinge variant is left out.
    """
    return Pairwise(beta=beta, supervised_weight=supervised_weight)


@objectives.register("tpaw")
def tpaw(
    *,
    beta: float = 0.1,
    target_multiplier: float = 6.0,
    player_gamma: float = 0.5,
    supervised_weight: float = 0.0,
) -> Pairwise:
    """TPAW (arXiv 2605.09922): SPIN against a team of the last checkpoints, with adaptive weights on target and players.

    `target_multiplier` is η and `player_gamma` γ; `beta` (λ) is SPIN's, the paper's was not available. One player, η = 1 is SPIN exactly.
    """
    return Pairwise(
        beta=beta,
        target_multiplier=target_multiplier,
        player_gamma=player_gamma,
        supervised_weight=supervised_weight,
    )
