"""Objectives: how a signal becomes a loss. Pure functions of a batch, one per family, that any split of the batch leaves unchanged.

    from tutelage.objectives import objective

    grpo = objective("grpo", kl_coef=0.0)                    # or "dapo", "dr_grpo", "gspo", "rloo", "cispo", "trl:dapo", ...
    batch["advantage_B"] = grpo.advantages(reward_NG)        # whole groups, before any split
    denominators = grpo.denominators_of(batch)               # whole optimiser step
    loss, stats = grpo(batch, denominators=denominators)     # the step, or any part of it

`contract.py` says what a batch and an objective are, `policy_gradient.py` lists the six switches of the GRPO family, `presets.py` the
methods and which library version they were compared with, `distillation.py` the losses that read a teacher, `pairwise.py` those of
preference pairs (DPO, SPIN, TPAW), `compose.py` sums of objectives, over one batch or several sources, and `controllers.py` what sets
their weights from step to step (SASR, `sasr.py`). Needs torch (`pip install 'tutelage[lm]'`).
"""

from __future__ import annotations

from tutelage.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.objectives.advantages import group_advantages, keep_groups, overlong_penalty, token_returns, whiten
from tutelage.objectives.aggregation import group_tokens, token_weights
from tutelage.objectives.compose import On, Sum, TokenAverage
from tutelage.objectives.contract import Objective, check_batch, denominators_of, requires
from tutelage.objectives.controllers import CONTROLLERS, Controller, controller
from tutelage.objectives.distillation import Distillation
from tutelage.objectives.divergence import divergence_between, token_divergence, top_k_events
from tutelage.objectives.kl import kl_estimate
from tutelage.objectives.pairwise import Pairwise, pairwise_logistic, sequence_logp
from tutelage.objectives.policy_gradient import PolicyGradient, log_ratio, surrogate_loss
from tutelage.objectives.presets import PRESETS, objective

__all__ = [
    "CONTROLLERS",
    "PRESETS",
    "Controller",
    "Distillation",
    "Objective",
    "On",
    "Pairwise",
    "PolicyGradient",
    "Sum",
    "TokenAverage",
    "check_batch",
    "controller",
    "denominators_of",
    "divergence_between",
    "group_advantages",
    "group_tokens",
    "keep_groups",
    "kl_estimate",
    "log_ratio",
    "objective",
    "overlong_penalty",
    "pairwise_logistic",
    "requires",
    "sequence_logp",
    "surrogate_loss",
    "token_divergence",
    "token_returns",
    "token_weights",
    "top_k_events",
    "whiten",
]
