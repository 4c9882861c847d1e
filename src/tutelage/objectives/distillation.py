"""Distillation: the mean divergence between the student and a teacher's next-token distributions, dense or top k.

    soft = objective("gkd", beta=0.5)
    loss, stats = soft(batch, denominators=soft.denominators_of(window))
    both = Sum({"soft": (objective("kd", temperature=2.0), 0.5), "hard": (objective("nll"), 0.5)})      # Hinton's sum of two

Columns beside those of `contract.py` (`V` entries of the vocabulary, `K` of them given by the teacher):

| key | meaning | gradient |
|---|---|---|
| `logp_BTV` | the student's log-probabilities, or logits, of every next token | yes |
| `teacher_logp_BTV` | the teacher's, dense | no |
| `teacher_top_ids_BTK` | the entries a sparse teacher reports, distinct, int64 | no |
| `teacher_top_logp_BTK` | the teacher's log-probabilities of them, not renormalised | no |

Whose text the batch holds is not the loss's business, and no gradient flows through sampling: with the data's completions it is supervised
distillation, with the student's own it is on-policy distillation (GKD), with the teacher's it is GKD's supervised variant. Sequence-level
distillation (Kim & Rush, arXiv 1606.07947) is `objective("nll")` on the teacher's samples, and needs no teacher column.

Parity with TRL 1.16.0, values and gradients, run in this repository's tests: `trl:gkd` with `GKDTrainer.generalized_jsd_loss` at every β,
`trl:distillation` with `DistillationTrainer`'s chunked loss, `distill_top_k` with the top-k loss of its self-distillation trainers.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown
from tutelage.objectives.aggregation import Aggregation
from tutelage.objectives.compose import TokenAverage
from tutelage.objectives.contract import Batch, Stats, check_batch, denominators_of
from tutelage.objectives.divergence import (
    Kind,
    MissingMass,
    check_switches,
    check_tail,
    divergence_between,
    infinite_without_teacher_mass,
    token_divergence,
    top_k_events,
)
from tutelage.registry import objectives

TOP_K = ("teacher_top_ids_BTK", "teacher_top_logp_BTK")


@objectives.register("distill")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Distillation with every switch: the mean divergence of student and teacher over the tokens of a mask.

    Args:
        kind, beta, alpha: which divergence; see `divergence.py`.
        temperature, teacher_temperature, scale_by_t2: see `divergence.token_divergence`; nothing is implied.
        missing_mass: None reads the dense teacher; else the top-k columns, and this says what is assumed of the rest
            (`divergence.top_k_events`).
        mask: name of the mask that says which tokens count (and are counted).
        aggregation, max_length, drop_empty: see `aggregation.py`.

    Raises:
        TutelageError: switches without meaning, or whose loss would be infinite on every token.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.1
    temperature: float = 1.0
    teacher_temperature: float | None = None
    scale_by_t2: bool = False
    missing_mass: MissingMass | None = None
    mask: str = "mask_BT"
    aggregation: Aggregation = "token_mean"
    max_length: int | None = None
    drop_empty: bool = False

    def __post_init__(self) -> None:
        shape = {"kind": self.kind, "beta": self.beta, "alpha": self.alpha}
        check_switches(**shape, temperature=self.temperature, teacher_temperature=self.teacher_temperature)  # type: ignore[arg-type]
        check_tail(self.missing_mass, self._teacher_temperature)
        if self.missing_mass == "zero" and infinite_without_teacher_mass(**shape):  # type: ignore[arg-type]
            raise TutelageError(
                f"{self.kind} (beta={self.beta}, alpha={self.alpha}) is infinite wherever the teacher has no mass, and missing_mass='zero' "
                "gives it none outside its top k. Use missing_mass='tail' or 'renormalise', or a divergence towards a mixture."
            )
        if self.kind.startswith("skewed") and self.alpha == 1:
            raise TutelageError(f"{self.kind} with alpha=1 compares a distribution with itself: the loss is 0. Use an alpha below 1.")
        if self.kind == "generalized_js" and (0 < self.beta < 0.05 or 0.95 < self.beta < 1):
            warnings.warn(
                f"generalized_js with beta={self.beta} is about {min(self.beta, 1 - self.beta):g} times a KL divergence: near its ends "
                "beta scales the loss down. For an end itself give beta=0 or 1; for a continuous path there, kind='continuous_js'.",
                stacklevel=3,
            )

    @property
    def _teacher_temperature(self) -> float:
        return self.temperature if self.teacher_temperature is None else self.teacher_temperature

    @property
    def requires(self) -> frozenset[str]:
        teacher = TOP_K if self.missing_mass else ("teacher_logp_BTV",)
        return frozenset({"logp_BTV", self.mask, *teacher} | ({"group_tokens_B"} if self.aggregation == "group_token_mean" else set()))

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        return denominators_of(batch, mask=self.mask, max_length=max_length)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The aggregated divergence; the stat `mean` is its token mean, and `mass` the teacher's mass in its top k."""
        for name in hyper:
            if name not in (names := [field.name for field in dataclasses.fields(self)]):
                raise unknown("setting of Distillation", name, names)
        if hyper:
            return dataclasses.replace(self, **hyper)(batch, denominators=denominators)
        check_batch(self.requires, batch)
        columns = {key: batch[key] for key in (self.mask, "group_tokens_B") if key in batch}
        value_BT = self.token_values(batch)
        average = TokenAverage(
            key="value_BT", mask=self.mask, aggregation=self.aggregation, max_length=self.max_length, drop_empty=self.drop_empty
        )
        loss, stats = average({**columns, "value_BT": value_BT}, denominators=denominators)
        if self.missing_mass:
            mass_BT = batch["teacher_top_logp_BTK"].detach().to(value_BT.dtype).exp().sum(-1)
            _, of_mass = TokenAverage(key="mass_BT", mask=self.mask)({**columns, "mass_BT": mass_BT}, denominators=denominators)
            stats["mass"] = of_mass["mean"]
        return loss, stats

    def token_values(self, batch: Batch) -> Tensor:
        """The divergence at every token (B, T), before any averaging; 0 where masked, and only the other tokens are computed."""
        mask_BT = batch[self.mask].bool()
        student_NV = batch["logp_BTV"][mask_BT]
        if self.missing_mass is None:
            value_N = token_divergence(
                student_NV,
                batch["teacher_logp_BTV"][mask_BT],
                kind=self.kind,
                beta=self.beta,
                alpha=self.alpha,
                temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
                scale_by_t2=self.scale_by_t2,
            )
        else:
            teacher_NE, student_NE = top_k_events(
                student_NV,
                *(batch[key][mask_BT] for key in TOP_K),
                missing_mass=self.missing_mass,
                temperature=self.temperature,
                teacher_temperature=self._teacher_temperature,
            )
            value_N = divergence_between(teacher_NE, student_NE, kind=self.kind, beta=self.beta, alpha=self.alpha)
            value_N = value_N * self.temperature**2 if self.scale_by_t2 else value_N
        return torch.zeros(mask_BT.shape, dtype=value_N.dtype, device=value_N.device).masked_scatter(mask_BT, value_N)


@objectives.register("kd")
def kd(*, temperature: float = 2.0, mask: str = "mask_BT") -> Distillation:
    """Hinton's distillation (arXiv 1503.02531): forward KL of softened distributions, times τ².

    The paper tunes τ between 1 and 10 by task; 2 is this library's choice.
    """
    return Distillation(kind="forward_kl", temperature=temperature, scale_by_t2=True, mask=mask)


@objectives.register("gkd")
def gkd(*, beta: float = 0.5, mask: str = "mask_BT") -> Distillation:
    """GKD (arXiv 2306.13649): generalised Jensen-Shannon divergence, averaged within each answer, then over answers."""
    return Distillation(kind="generalized_js", beta=beta, aggregation="seq_mean_token_mean", mask=mask)


@objectives.register("distillm_skl")
def distillm_skl(*, alpha: float = 0.1, mask: str = "mask_BT") -> Distillation:
    """DistiLLM (arXiv 2402.03898): skewed forward KL; a true divergence, smaller than its code's value by the teacher's entropy."""
    return Distillation(kind="skewed_forward_kl", alpha=alpha, mask=mask)


@objectives.register("distillm_srkl")
def distillm_srkl(*, alpha: float = 0.1, mask: str = "mask_BT") -> Distillation:
    """DistiLLM (arXiv 2402.03898): skewed reverse KL."""
    return Distillation(kind="skewed_reverse_kl", alpha=alpha, mask=mask)


@objectives.register("distill_top_k")
def distill_top_k(
    *,
    kind: Kind = "forward_kl",
    beta: float = 0.5,
    alpha: float = 0.1,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    scale_by_t2: bool = False,
    missing_mass: MissingMass = "tail",
    mask: str = "mask_BT",
    aggregation: Aggregation = "token_mean",
) -> Distillation:
    """Distillation from a teacher's top k log-probabilities; `missing_mass` says what is assumed of the rest."""
    return Distillation(
        kind=kind,
        beta=beta,
        alpha=alpha,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        scale_by_t2=scale_by_t2,
        missing_mass=missing_mass,
        mask=mask,
        aggregation=aggregation,
    )


@objectives.register("trl:gkd")
def trl_gkd(*, beta: float = 0.5, mask: str = "mask_BT") -> Distillation:
    """TRL GKDTrainer: `gkd` as a token mean, always at temperature 1 (its `temperature` is for sampling only)."""
    return Distillation(kind="generalized_js", beta=beta, mask=mask)


@objectives.register("trl:distillation")
def trl_distillation(*, beta: float = 1.0, temperature: float = 1.0, mask: str = "mask_BT") -> Distillation:
    """TRL DistillationTrainer: reverse KL by default, softened on both sides, without τ²."""
    return Distillation(kind="generalized_js", beta=beta, temperature=temperature, mask=mask)
