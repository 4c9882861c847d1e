"""Estimators of KL(π‖π_ref) from tokens that π sampled.

With x = log π − log π_ref (J. Schulman, "Approximating KL Divergence"):

| kind | value | E[value] | E[gradient of the value, as a loss] |
|---|---|---|---|
| `k1` | x | KL(π‖ref) | 0 (a score function): useless as a loss, right as a penalty on the reward |
| `k2` | x²/2 | biased | ∇KL(π‖ref), on-policy |
| `k3` | e^{−x} − 1 + x | KL(π‖ref) | ∇KL(ref‖π): the other direction |

`straight_through=True` keeps the value and takes the gradient of k2 (verl's `k1+`, `k3+`). k3 times the importance ratio has the on-policy
gradient ∇KL(π‖ref) too (TRL's `use_bias_correction_kl`; `PolicyGradient(kl_importance=True)`).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.errors import unknown

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(
    logp_BT: Tensor,
    ref_logp_BT: Tensor,
    *,
    kind: KLKind = "k3",
    straight_through: bool = False,
    inner_clamp: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Per-token estimate of KL(π‖π_ref), in nats (B, T).

    Args:
        logp_BT: log π of the sampled tokens (B, T).
        ref_logp_BT: log π_ref of the same tokens (B, T); carries no gradient.
        kind: see the table above.
        straight_through: gradient of k2 under the value of `kind`.
        inner_clamp: bound of |x| before the estimator (verl: 20, for k3).
        clamp: bound of |estimate| (verl: 10, for k3; OpenRLHF: 10, always). A clamped value has no gradient.
    """
    x_BT = logp_BT - ref_logp_BT.detach()
    if inner_clamp is not None:
        x_BT = x_BT.clamp(-inner_clamp, inner_clamp)
    if kind == "k1":
        value_BT = x_BT
    elif kind == "k2":
        value_BT = x_BT.square() / 2
    elif kind == "k3":
        value_BT = torch.expm1(-x_BT) + x_BT
    else:
        raise unknown("KL estimator", kind, get_args(KLKind))
    if clamp is not None:
        value_BT = value_BT.clamp(-clamp, clamp)
    if straight_through:
        k2_BT = (logp_BT - ref_logp_BT.detach()).square() / 2
        value_BT = value_BT.detach() + k2_BT - k2_BT.detach()
    return value_BT
