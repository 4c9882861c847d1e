"""Unlearning: losses that make a model forget, to be joined with one that makes it retain.

    L = γ · forget + α · retain            (open-unlearning's GradDiff convention; γ = α = 1)

| forget | loss of one sequence or token, ℓ = −log p | source |
|---|---|---|
| `ascent` | −ℓ per token: gradient ascent, unbounded, so stop by a bound on the forget loss | arXiv 2210.01504 |
| `npo` | −(2/β) log σ(−β Σ_t (log p − log p_ref)) | arXiv 2404.05868, eq. 3; β 0.1 |
| `simnpo` | −(2/β) log σ(β (mean_t ℓ − δ)) | arXiv 2410.07163; β 4.5, δ 0 |
| `wga` | −p^β ℓ per token, p detached | arXiv 2502.19301; β 1 |
| `satimp` | −p^β₁ (1 − p)^β₂ ℓ per token, weights detached | arXiv 2505.11953; β₁ 5, β₂ 1 |
| `erase` | p(answer) itself, the product over tokens | UnLOK-VQA (arXiv 2505.01456), fact erasure |
| `head_projection` | the answer out of the top and bottom k of the logit lens | UnLOK-VQA, from arXiv 2309.17410 |
| `max_entropy` | minus the entropy of the logit lens | the same |

Forgetting by another answer ("empty response", "error injection") is `objective("nll")` on that answer. The retain side is
`objective("nll")` on what is to be kept, or the forward KL from the model as it was, `objective("distill")` with that model as the
teacher: 0, with zero gradient, before the first step. Each side has its own denominators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError, unknown
from tutelage.objectives.aggregation import token_weights
from tutelage.objectives.contract import Batch, Stats, check_batch, denominators_of
from tutelage.registry import objectives

Kind = Literal["ascent", "npo", "simnpo", "wga", "satimp", "erase"]
PER_TOKEN = ("ascent", "wga", "satimp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forget:
    """A forget loss over the log-probabilities of what is to be forgotten; see the module's table.

    Args:
        kind: which. Those per token are averaged over all tokens of the step, the others over its sequences, as open-unlearning does.
        beta, beta2, delta: β (β₁ of `satimp`), β₂ and δ of the table.
    """

    kind: Kind = "ascent"
    beta: float = 1.0
    beta2: float = 1.0
    delta: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.beta2 < 0:
            raise TutelageError(f"{self.kind}: beta must be positive and beta2 not negative; got {self.beta} and {self.beta2}.")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"logp_BT", "mask_BT"} | ({"ref_logp_BT"} if self.kind == "npo" else set()))

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        return denominators_of(batch, max_length=max_length)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The forget loss; the stat `nll` is the token mean of −log p, in nats, which rises as the model forgets."""
        for name in hyper:
            if name not in (names := [field.name for field in dataclasses.fields(self)]):
                raise unknown("setting of Forget", name, names)
        if hyper:
            return dataclasses.replace(self, **hyper)(batch, denominators=denominators)
        check_batch(self.requires, batch)
        mask_BT = batch["mask_BT"].bool()
        logp_BT = torch.where(mask_BT, batch["logp_BT"], 0.0)
        logp_BT = logp_BT.to(torch.promote_types(logp_BT.dtype, torch.float32))
        mean_BT = token_weights(mask_BT, denominators, aggregation="token_mean", dtype=logp_BT.dtype)
        if self.kind in PER_TOKEN:
            loss = (mean_BT * self._token_weight(logp_BT) * logp_BT).sum()
        else:
            kept_B = mask_BT.any(dim=1)  # a sequence without tokens has nothing to forget
            loss = torch.where(kept_B, self._sequence_loss(batch, logp_BT, mask_BT), 0.0).sum() / denominators["nonempty"].clamp(min=1)
        return loss, {"nll": -(mean_BT * logp_BT).sum().detach()}

    def _token_weight(self, logp_BT: Tensor) -> Tensor:
        p_BT = logp_BT.detach().exp()
        if self.kind == "ascent":
            return torch.ones_like(p_BT)
        weight_BT = p_BT**self.beta
        return weight_BT * (1 - p_BT) ** self.beta2 if self.kind == "satimp" else weight_BT

    def _sequence_loss(self, batch: Batch, logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if self.kind == "erase":
            return logp_BT.sum(1).exp()
        if self.kind == "simnpo":
            nll_B = -logp_BT.sum(1) / mask_BT.sum(1).clamp(min=1)
            return -2 / self.beta * F.logsigmoid(self.beta * (nll_B - self.delta))
        ref_BT = torch.where(mask_BT, batch["ref_logp_BT"].detach().to(logp_BT), 0.0)
        return -2 / self.beta * F.logsigmoid(-self.beta * (logp_BT - ref_BT).sum(1))


@objectives.register("ascent")
def ascent() -> Forget:
    """Gradient ascent on what is to be forgotten (arXiv 2210.01504); unbounded: give it a stopping bound and a retain term."""
    return Forget(kind="ascent")


@objectives.register("npo")
def npo(*, beta: float = 0.1) -> Forget:
    """NPO (arXiv 2404.05868): negative preference optimisation, a bounded ascent against the model as it was."""
    return Forget(kind="npo", beta=beta)


@objectives.register("simnpo")
def simnpo(*, beta: float = 4.5, delta: float = 0.0) -> Forget:
    """SimNPO (arXiv 2410.07163): NPO without a reference, by the mean log-likelihood of a token; settings of open-unlearning."""
    return Forget(kind="simnpo", beta=beta, delta=delta)


@objectives.register("wga")
def wga(*, beta: float = 1.0) -> Forget:
    """WGA (arXiv 2502.19301): ascent weighted by p^β, so that what is forgotten already pushes no more."""
    return Forget(kind="wga", beta=beta)


@objectives.register("satimp")
def satimp(*, beta: float = 5.0, beta2: float = 1.0) -> Forget:
    """SatImp (arXiv 2505.11953): ascent weighted by saturation p^β₁ and importance (1 − p)^β₂."""
    return Forget(kind="satimp", beta=beta, beta2=beta2)


@objectives.register("erase")
def erase() -> Forget:
    """Fact erasure (UnLOK-VQA, arXiv 2505.01456): minimise the probability of the answer itself, not its logarithm."""
    return Forget(kind="erase")


def head_projection(prob_BLV: Tensor, target_B: Tensor, *, k: int = 4, margin: float = 0.0, exclude_target: bool = True) -> Tensor:
    """How far the target stands in the top or bottom k of the lens's distributions, mean over layers (B,); 0 when it is in neither.

        mean_ℓ max(0, D_ℓ[a] − D_ℓ(k) + m) + mean_ℓ max(0, D_ℓ(−k) − D_ℓ[a] + m)

    D(k) is the k-th largest and D(−k) the k-th smallest probability.

    Args:
        prob_BLV: the logit lens's probabilities at the answer's position, (B, L, V).
        target_B: token id of the answer (B,).
        margin: m; 0 in the released code.
        exclude_target: take D(k) among the others. The released code (False) counts the target itself, so that with k = 1 the loss is 0
            although an attack with one guess wins.

    Source: UnLOK-VQA (arXiv 2505.01456) and the predecessor's code (arXiv 2309.17410).
    """
    vocabulary = prob_BLV.shape[-1]
    if not 0 < k < vocabulary:
        raise TutelageError(f"head_projection: k={k} must be at least 1 and below the vocabulary's {vocabulary}.")
    own_BL = prob_BLV.gather(-1, target_B.view(-1, 1, 1).expand(-1, prob_BLV.shape[1], 1)).squeeze(-1)
    others = torch.zeros_like(prob_BLV, dtype=torch.bool)
    if exclude_target:
        others = others.scatter(-1, target_B.view(-1, 1, 1).expand(-1, prob_BLV.shape[1], 1), True)
    top_BL = prob_BLV.masked_fill(others, -torch.inf).topk(k, dim=-1).values[..., -1]
    bottom_BL = prob_BLV.masked_fill(others, torch.inf).topk(k, dim=-1, largest=False).values[..., -1]
    return ((own_BL - top_BL + margin).clamp(min=0) + (bottom_BL - own_BL + margin).clamp(min=0)).mean(1)


def max_entropy(prob_BLV: Tensor) -> Tensor:
    """Minus the entropy of the lens's distributions, in nats, mean over layers (B,): least where every layer knows nothing."""
    return (prob_BLV * prob_BLV.clamp(min=torch.finfo(prob_BLV.dtype).tiny).log()).sum(-1).mean(1)
