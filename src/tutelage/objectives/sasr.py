"""SASR (arXiv 2505.13026): at every step a supervised or a reinforcement update, by the norm of the supervised gradient.

1. Warm-up: `warmup_steps` supervised steps; g_ref is the norm of the last one's gradient.
2. Hybrid phase: supervised with chance p = g_last / (g_last + gamma g_ref), g_last being the norm of the latest supervised step, else GRPO.

The loss of a step is L_sft or L_grpo, each divided by its own counts; no step computes both, but for mode="expected", which takes
p L_sft + (1 - p) L_grpo. The rule (`controllers.SASRSwitch`) is reconstructed: the abstract names the gradient norm and the divergence
from the original distribution, no code was released, and the formula, gamma = 1 and the norm before clipping are not quoted anywhere.
"""

from __future__ import annotations

from typing import Any

from tutelage.objectives.aggregation import Aggregation
from tutelage.objectives.compose import On, Sum, TokenAverage
from tutelage.objectives.controllers import Mode, SASRSwitch
from tutelage.objectives.presets import objective
from tutelage.registry import objectives


@objectives.register("sasr")
def sasr(
    *,
    gamma: float = 1.0,
    warmup_steps: int = 100,
    mode: Mode = "coin",
    g_ref: float | None = None,
    reference_steps: int = 1,
    ema: float = 0.0,
    seed: int = 0,
    sft_weight: float = 1.0,
    aggregation: Aggregation = "token_mean",
    source: str = "demonstrations",
    policy: str = "grpo",
    kl_coef: float = 0.0,
) -> Sum:
    """SASR (arXiv 2505.13026): supervised steps on demonstrations and GRPO steps, switched by the supervised gradient's norm.

    A `Sum` of "policy" and "imitate" with a controller; the trainer gives the gradient norm that it clips by, and generates nothing in a
    supervised step. One generation batch must be one optimiser step.

    Args:
        gamma, g_ref, reference_steps, ema, mode, seed: see `controllers.SASRSwitch`.
        warmup_steps: supervised steps at the start; the paper has one or two epochs of its demonstrations (reconstructed).
        sft_weight: weight of the supervised loss; the policy's is 1. One optimiser serves both (reconstructed), so this is where two
            learning rates go. p does not change with it.
        aggregation: of the supervised loss over tokens; the paper sums them in each demonstration ("seq_mean_token_sum").
        source: where the demonstrations come from.
        policy: the policy gradient's preset.
        kl_coef: its KL penalty. The paper penalises the distance from the warmed-up model (reconstructed); here the reference is the
            trainer's, which is the model before the warm-up, so the default is 0.
    """
    controller = SASRSwitch(
        gamma=gamma, g_ref=g_ref, reference_steps=reference_steps, ema=ema, warmup_steps=warmup_steps, mode=mode, seed=seed
    )
    policy_gradient: Any = objective(policy, kl_coef=kl_coef)
    nll = TokenAverage(key="logp_BT", scale=-1.0, aggregation=aggregation)
    return Sum({"policy": (policy_gradient, 1.0), "imitate": (On(source, nll), sft_weight)}, controller=controller)
