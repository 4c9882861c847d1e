"""The policy-gradient loss of the GRPO family: one step on groups of sampled answers, without a value network.

    L = Σ_{i,t} w[i,t] ( φ(ρ[i,t], A[i,t]) + β k(l[i,t], l_ref[i,t]) ),      ρ = exp(l − l_old)

The published methods differ in six independent switches; each is an argument here, and a method is a dictionary of them (`presets.py`):

1. advantage A (`advantages.py`): `advantage`, `advantage_eps`, `advantage_clip`, `gamma`, `whiten_ddof`, `whiten_eps`, `whiten_floor`
2. level of the ratio ρ: `ratio`, `log_ratio_min`, `log_ratio_max`
3. surrogate φ: `surrogate`, `clip_low`, `clip_high`, `dual_clip`
4. KL term k (`kl.py`): `kl`, `kl_coef`, `kl_placement`, `kl_straight_through`, `kl_importance`, `kl_inner_clamp`, `kl_clamp`
5. weights w (`aggregation.py`): `aggregation`, `max_length`, `drop_empty`
6. group filter: `keep_above`, `keep_below`

Switches 1 and 6 look at whole groups: call `objective.advantages(...)` and `objective.keep(...)` once, before any split; 2–5 are the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown
from tutelage.objectives.advantages import GroupAdvantage, group_advantages, keep_groups, token_returns, whiten
from tutelage.objectives.aggregation import Aggregation, token_weights
from tutelage.objectives.contract import Batch, Stats, check_batch, denominators_of
from tutelage.objectives.kl import KLKind, kl_estimate

Advantage = Literal["group_std", "group_mean", "batch_std", "leave_one_out", "whiten", "group_mean_whiten", "given"]
RatioLevel = Literal["token", "seq_mean", "seq_mean_token", "seq_sum"]
Surrogate = Literal["clip", "cispo"]
KLPlacement = Literal["loss", "reward", "return"]


class Clipped(NamedTuple):
    """Where the surrogate has no gradient left (for CISPO: where the ratio was bounded), by side; broadcastable to (B, T)."""

    low: Tensor
    high: Tensor
    dual: Tensor


def log_ratio(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    mask_BT: Tensor,
    *,
    level: RatioLevel = "token",
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """log ρ between the trained and the sampling policy, with d = logp − old_logp and n_i tokens in sequence i.

    - `token`: d, (B, T).
    - `seq_mean` (GSPO, arXiv 2507.18071): (1/n_i) Σ_t d, (B, 1); one clip decision per answer.
    - `seq_mean_token` (GSPO-token, ibid.): the value of `seq_mean`, the gradient through each token, (B, T).
    - `seq_sum` (TRL's RLOO): Σ_t d, the ratio of whole sequences, (B, 1).

    `low` and `high` bound the result and stop its gradient beyond (verl: ±20 for tokens, 10 from above for GSPO). Without
    them, as in TRL, a single-precision ratio overflows at log ρ = 88.
    """
    delta_BT = torch.where(mask_BT, logp_BT - old_logp_BT.detach(), 0.0)
    if level == "token":
        result = delta_BT
    elif level == "seq_sum":
        result = delta_BT.sum(dim=1, keepdim=True)
    elif level in ("seq_mean", "seq_mean_token"):
        result = delta_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        if level == "seq_mean_token":
            result = result.detach() + delta_BT - delta_BT.detach()
    else:
        raise unknown("ratio level", level, get_args(RatioLevel))
    return result if low is None and high is None else result.clamp(low, high)


def surrogate_loss(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    kind: Surrogate = "clip",
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    dual_clip: float | None = None,
    logp_BT: Tensor | None = None,
) -> tuple[Tensor, Clipped]:
    """φ(ρ, A), to be minimised, and where it was clipped; bounds are ρ ∈ [1 − clip_low, 1 + clip_high], None = no bound.

    - `clip` (PPO): φ = −min(ρ A, clip(ρ) A). With `dual_clip` c > 1 (arXiv 1912.09729) the loss of A < 0 is capped at c|A|; TRL's
      `delta` is the same thing when delta ≥ 1 + clip_high.
    - `cispo` (MiniMax-M1, arXiv 2506.13585): φ = −sg[clip(ρ)] A log π; the gradient survives clipping. TRL's `epsilon_high` is the
      bound itself, 1 + clip_high here, and it has no lower bound.

    Args:
        log_ratio: (B, T) or (B, 1), from `log_ratio`.
        advantage: (B, 1) or (B, T), without gradient.
        logp_BT: log π (B, T), read by `cispo` only.
    """
    ratio = log_ratio.exp()
    low, high = 1 - (1.0 if clip_low is None else clip_low), 1 + (math.inf if clip_high is None else clip_high)
    bounded = ratio.clamp(low, high)
    none = torch.zeros_like(ratio, dtype=torch.bool)
    if kind == "cispo":
        if logp_BT is None:
            raise TutelageError("surrogate 'cispo' is a weighted log-likelihood and needs `logp_BT`.")
        return -bounded.detach() * advantage * logp_BT, Clipped(ratio < low, ratio > high, none)
    if kind != "clip":
        raise unknown("surrogate", kind, get_args(Surrogate))
    loss = -torch.minimum(ratio * advantage, bounded * advantage)
    clipped = Clipped((ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0), none)
    if dual_clip is not None:
        cap = -dual_clip * advantage
        clipped = clipped._replace(dual=(advantage < 0) & (loss > cap))
        loss = torch.where(advantage < 0, torch.minimum(loss, cap), loss)
    return loss, clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """A policy-gradient objective as a record of switches; the defaults are GRPO without its KL term.

    Calling it reads `logp_BT`, `old_logp_BT`, `mask_BT`, the advantage (`advantage_BT` for the whitened kinds and `given`, else
    `advantage_B`), `ref_logp_BT` where a KL term is in the loss, and `group_tokens_B` for `group_token_mean`. Any switch can be overridden
    for one call: `objective(batch, denominators=d, kl_coef=0.01)`.

    Args:
        advantage: kind of advantage, see `advantages.py`; `given` = the caller's own `advantage_BT` (process rewards, anchors).
        advantage_eps: ε added to the standard deviation.
        advantage_clip: bound of |A| before whitening (OpenRLHF: 10).
        gamma: discount per token, for the whitened kinds.
        whiten_ddof, whiten_eps, whiten_floor: see `advantages.whiten`.
        ratio: level of the importance ratio, see `log_ratio`.
        log_ratio_min, log_ratio_max: bounds of log ρ.
        surrogate: `clip` or `cispo`, see `surrogate_loss`.
        clip_low, clip_high: ρ is clipped to [1 − clip_low, 1 + clip_high]; None = not on that side.
        dual_clip: cap c of the loss where A < 0; None = off.
        kl: estimator, see `kl.py`.
        kl_coef: β; 0 = no KL term, and no reference is read.
        kl_placement: `loss` adds β k to the loss with the same weights (GRPO); `reward` subtracts β Σ_t k from the reward before the
            baseline (TRL's RLOO); `return` subtracts β k per token after it (OpenRLHF, verl), for the whitened kinds only.
        kl_straight_through: value of `kl`, gradient of k2.
        kl_importance: multiply the estimate by ρ (TRL's `use_bias_correction_kl`).
        kl_inner_clamp, kl_clamp: bounds inside and outside of the estimator.
        aggregation: weights, see `aggregation.py`.
        max_length: L of the `_norm` aggregations, in tokens; None = `denominators["max_length"]`.
        drop_empty: leave fully masked sequences out of the count of sequences.
        keep_above, keep_below: keep a group iff its pass rate lies strictly between; None = no bound on that side.
    """

    advantage: Advantage = "group_std"
    advantage_eps: float = 0.0
    advantage_clip: float | None = None
    gamma: float = 1.0
    whiten_ddof: int = 1
    whiten_eps: float = 1e-8
    whiten_floor: float = 0.0
    ratio: RatioLevel = "token"
    log_ratio_min: float | None = None
    log_ratio_max: float | None = None
    surrogate: Surrogate = "clip"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    dual_clip: float | None = None
    kl: KLKind = "k3"
    kl_coef: float = 0.0
    kl_placement: KLPlacement = "loss"
    kl_straight_through: bool = False
    kl_importance: bool = False
    kl_inner_clamp: float | None = None
    kl_clamp: float | None = None
    aggregation: Aggregation = "seq_mean_token_mean"
    max_length: int | None = None
    drop_empty: bool = False
    keep_above: float | None = None
    keep_below: float | None = None

    def __post_init__(self) -> None:
        switches = {
            "advantage": Advantage,
            "ratio": RatioLevel,
            "surrogate": Surrogate,
            "kl": KLKind,
            "kl_placement": KLPlacement,
            "aggregation": Aggregation,
        }
        for name, kinds in switches.items():
            if getattr(self, name) not in get_args(kinds):
                raise unknown(name, getattr(self, name), get_args(kinds))
        for name in ("clip_low", "clip_high", "advantage_eps", "kl_coef"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise TutelageError(f"{name} must not be negative and is {value!r}; clip bounds are distances from a ratio of 1.")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise TutelageError(f"dual_clip must exceed 1 and is {self.dual_clip!r}; the usual value is 3.0, and None turns it off.")
        if self.kl_placement == "return" and not self.per_token and self.kl_coef:
            raise TutelageError(
                f"kl_placement='return' gives each token its own return, and advantage={self.advantage!r} has one number per sequence. "
                "Use kl_placement='reward' or 'loss', or a whitened advantage."
            )

    @property
    def per_token(self) -> bool:
        """Whether the advantage is `advantage_BT` rather than `advantage_B`."""
        return self.advantage in ("whiten", "group_mean_whiten", "given")

    @property
    def requires(self) -> frozenset[str]:
        keys = {"logp_BT", "old_logp_BT", "mask_BT", "advantage_BT" if self.per_token else "advantage_B"}
        if self.kl_coef and self.kl_placement == "loss":
            keys.add("ref_logp_BT")
        if self.aggregation == "group_token_mean":
            keys.add("group_tokens_B")
        return frozenset(keys)

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        return denominators_of(batch, max_length=max_length)

    def keep(self, solved_NG: Tensor) -> Tensor:
        """Switch 6, the groups to train on (N,): see `keep_groups`. All of them without bounds."""
        if self.keep_above is None and self.keep_below is None:
            return torch.ones(len(solved_NG), dtype=torch.bool, device=solved_NG.device)
        above = -1.0 if self.keep_above is None else self.keep_above
        return keep_groups(solved_NG, above=above, below=2.0 if self.keep_below is None else self.keep_below)

    @property
    def advantage_requires(self) -> frozenset[str]:
        """The columns that `advantages` reads beside the rewards."""
        penalised = bool(self.kl_coef) and self.kl_placement != "loss"
        masked = {"mask_BT"} if self.per_token or penalised else set()
        return frozenset(masked | ({"old_logp_BT", "ref_logp_BT"} if penalised else set()))

    def advantages(self, reward_NG: Tensor, batch: Batch | None = None) -> Tensor:
        """Switch 1: advantages of the whole batch, (B,) or, for the whitened kinds, (B, T), with B = N · G in the order of `reward_NG`.

        The order is OpenRLHF's: KL in the reward, baseline and scale, clip, KL in the return, whitening. Sequences without a reward (NaN)
        enter nothing and get 0. Whitening moves dead groups off 0 (its mean weights by tokens); the other kinds leave them there.

        Args:
            reward_NG: rewards (N, G), NaN = unscorable.
            batch: columns of the whole batch; reads `advantage_requires`, which is nothing for most methods.
        """
        if self.advantage == "given":
            raise TutelageError("advantage='given' means that the caller puts `advantage_BT` into the batch; there is nothing to compute.")
        batch = batch or {}
        check_batch(self.advantage_requires, batch)
        kl_BT = self._reward_kl(batch) if "ref_logp_BT" in self.advantage_requires else None
        if kl_BT is not None and self.kl_placement == "reward":
            reward_NG = reward_NG - self.kl_coef * kl_BT.sum(dim=1).view_as(reward_NG)
            kl_BT = None
        if self.advantage == "whiten":
            advantage_B = reward_NG.nan_to_num(nan=0.0).flatten()
        else:
            kind: GroupAdvantage = "group_mean" if self.advantage == "group_mean_whiten" else self.advantage
            advantage_B = group_advantages(reward_NG, kind=kind, eps=self.advantage_eps).advantage_NG.flatten()
        if self.advantage_clip is not None:
            advantage_B = advantage_B.clamp(-self.advantage_clip, self.advantage_clip)
        if not self.per_token:
            return advantage_B
        scored_BT = batch["mask_BT"].bool() & ~reward_NG.isnan().flatten().unsqueeze(1)
        return_BT = token_returns(advantage_B, batch["mask_BT"], kl_BT=kl_BT, kl_coef=self.kl_coef, gamma=self.gamma)
        return whiten(return_BT, scored_BT, ddof=self.whiten_ddof, eps=self.whiten_eps, floor=self.whiten_floor)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The loss of `batch`, which may be any part of the rows that `denominators` counts.

        Stats (they add up over parts): `policy_loss`, `kl_loss`, and averages over the tokens of the step: `ratio`, `clipped_low`,
        `clipped_high`, `clipped_dual` (fractions) and, with a KL term, `kl` in nats.
        """
        if hyper:
            return self._with(hyper)(batch, denominators=denominators)
        check_batch(self.requires, batch)
        mask_BT = batch["mask_BT"].bool()
        logp_BT, old_logp_BT = (_masked(batch[key], mask_BT) for key in ("logp_BT", "old_logp_BT"))
        advantage = _masked(batch["advantage_BT"], mask_BT) if self.per_token else batch["advantage_B"].to(logp_BT).unsqueeze(1)
        log_rho = log_ratio(logp_BT, old_logp_BT, mask_BT, level=self.ratio, low=self.log_ratio_min, high=self.log_ratio_max)
        loss_BT, clipped = surrogate_loss(
            log_rho,
            advantage.detach(),
            kind=self.surrogate,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            logp_BT=logp_BT,
        )
        weight_BT = token_weights(
            mask_BT,
            denominators,
            aggregation=self.aggregation,
            max_length=self.max_length,
            drop_empty=self.drop_empty,
            group_tokens_B=batch.get("group_tokens_B"),
            dtype=logp_BT.dtype,
        )
        token_BT = token_weights(mask_BT, denominators, aggregation="token_mean", dtype=logp_BT.dtype)
        loss = (weight_BT * loss_BT).sum()
        stats = {"policy_loss": loss, "ratio": (token_BT * log_rho.exp()).sum()}
        stats |= {f"clipped_{side}": (token_BT * where).sum() for side, where in clipped._asdict().items()}
        if "ref_logp_BT" in self.requires:
            kl_BT = self._kl(logp_BT, _masked(batch["ref_logp_BT"], mask_BT), log_rho)
            kl_loss = self.kl_coef * (weight_BT * kl_BT).sum()
            loss = loss + kl_loss
            stats |= {"kl_loss": kl_loss, "kl": (token_BT * kl_BT).sum()}
        return loss, {name: value.detach() for name, value in stats.items()}

    def _reward_kl(self, batch: Batch) -> Tensor:
        """The estimate as a penalty on the reward: at the sampling policy, without gradient, 0 where masked (B, T)."""
        mask_BT = batch["mask_BT"].bool()
        old_logp_BT, ref_logp_BT = (_masked(batch[key], mask_BT) for key in ("old_logp_BT", "ref_logp_BT"))
        return kl_estimate(old_logp_BT, ref_logp_BT, kind=self.kl, inner_clamp=self.kl_inner_clamp, clamp=self.kl_clamp).detach()

    def _kl(self, logp_BT: Tensor, ref_logp_BT: Tensor, log_rho: Tensor) -> Tensor:
        kl_BT = kl_estimate(
            logp_BT,
            ref_logp_BT,
            kind=self.kl,
            straight_through=self.kl_straight_through,
            inner_clamp=self.kl_inner_clamp,
            clamp=self.kl_clamp,
        )
        return kl_BT * log_rho.exp() if self.kl_importance else kl_BT

    def _with(self, hyper: Mapping[str, Any]) -> PolicyGradient:
        names = [field.name for field in dataclasses.fields(self)]
        for name in hyper:
            if name not in names:
                raise unknown("switch of the policy gradient", name, names)
        return dataclasses.replace(self, **hyper)


def _masked(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`x_BT` with zeros where masked, in single precision at least, so that padding may hold anything."""
    x_BT = x_BT.float() if x_BT.dtype in (torch.float16, torch.bfloat16) else x_BT
    return torch.where(mask_BT, x_BT, 0.0)
