"""Published methods as dictionaries of switches, registered by name.

A bare name is the paper; `trl:`, `verl:` and `openrlhf:` are what that library computes, its constants and clamps included. Any switch can
be overridden: `objective("dapo", clip_high=0.3)`. Switches that a preset does not name keep `PolicyGradient`'s default.

Parity. "Run" = the library's own `_compute_loss` runs in this repository's tests on the same inputs: value and gradient of every parameter
agree within 1e-6, in one batch and in 2 and 4 accumulated ones. "Sheet" = agreement with numbers the library's functions gave once.

| library | tested version | how | presets |
|---|---|---|---|
| TRL, `GRPOTrainer` | 1.16.0 | run, also `beta`, `delta`, `epsilon_high` | `trl:grpo`, `trl:dapo`, `trl:dr_grpo`, `trl:gspo`, `trl:cispo` |
| TRL, `GRPOTrainer` | 1.16.0 | run, denominators counted per micro-batch (below) | `trl:bnpo` |
| TRL, `RLOOTrainer` | 1.16.0 | run | `trl:rloo` |
| verl | b178a3c, 2026-01-29 | sheet: losses, GSPO, KL, advantages | `verl:*` but `verl:cispo` (untested) |
| OpenRLHF | 3c3be62, 2026-08-13 | sheet: losses, advantages | `openrlhf:*` |

Where a library departs from the sum over the whole optimiser step, the presets do not follow it:
- TRL `bnpo` divides each micro-batch by its own tokens; `trl:bnpo` is `trl:dapo` with another name unless one counts denominators per
  micro-batch and divides by the number of them. verl's FSDP actor does the same to `token-mean`.
- TRL `dapo` and `cispo` take as N the tokens of the generation batch times gradient_accumulation_steps / steps_per_generation: the step's
  own tokens where the two are equal, an average otherwise. Pass that number as `denominators["tokens"]` for parity (tested).
- TRL 1.16 multiplies its k3 by the ratio unless `use_bias_correction_kl=False` (`kl_importance=False`); older versions did not by default.
- A KL term is averaged with the loss's own weights; an entropy bonus is a part of a `Sum` (`entropy` below), as a token mean.
- verl clips GSPO's log ratio from above only; its Dr. GRPO (`verl:dr_grpo`) is a sum over sequences in the version named.

Not switches, because they act before the batch exists: DAPO's overlong punishment (`advantages.overlong_penalty`, added to the reward), its
refill loop (`keep` says which groups; the trainer owns the loop), masking of truncated answers (clear their row of `mask_BT`).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from tutelage.objectives.compose import TokenAverage
from tutelage.objectives.policy_gradient import PolicyGradient
from tutelage.registry import objectives


class Preset(NamedTuple):
    """A summary and the switches that differ from `PolicyGradient`'s defaults."""

    summary: str
    switches: dict[str, Any]


def _preset(summary: str, **switches: Any) -> Preset:
    return Preset(summary, switches)


_GSPO = {"ratio": "seq_mean", "clip_low": 3e-4, "clip_high": 4e-4}
_DR_GRPO = {"advantage": "group_mean", "aggregation": "seq_mean_token_sum_norm"}
_RLOO = {"advantage": "leave_one_out", "ratio": "seq_sum", "kl": "k1", "kl_coef": 0.05, "kl_placement": "reward"}
_TRL = {"advantage_eps": 1e-4, "kl_importance": True}
_VERL = {
    "advantage_eps": 1e-6,
    "log_ratio_min": -20.0,
    "log_ratio_max": 20.0,
    "dual_clip": 3.0,
    "kl_inner_clamp": 20.0,
    "kl_clamp": 10.0,
    "drop_empty": True,
    "aggregation": "token_mean",
}
_OPENRLHF = {
    "advantage_clip": 10.0,
    "log_ratio_min": -20.0,
    "log_ratio_max": 20.0,
    "kl_clamp": 10.0,
    "drop_empty": True,
    "aggregation": "token_mean",
}
_OPENRLHF_WHITEN = {"whiten_ddof": 0, "whiten_eps": 0.0, "whiten_floor": 1e-8, "kl": "k1", "kl_coef": 0.01, "kl_placement": "return"}

PRESETS: dict[str, Preset] = {
    "grpo": _preset("GRPO (DeepSeekMath, arXiv 2402.03300): group z-scores, clipped token ratios, k3 penalty.", kl_coef=0.04),
    "dr_grpo": _preset("Dr. GRPO (arXiv 2503.20783): no division by the group's deviation or the answer's length.", **_DR_GRPO),
    "dapo": _preset(
        "DAPO (arXiv 2503.14476): clip-higher, token mean, no KL, only groups with mixed outcomes.",
        clip_high=0.28,
        aggregation="token_mean",
        keep_above=0.0,
        keep_below=1.0,
    ),
    "gspo": _preset("GSPO (arXiv 2507.18071): one length-normalised ratio and clip decision per answer.", **_GSPO),
    "gspo_token": _preset("GSPO-token (ibid.): GSPO's ratio with a gradient per token.", **_GSPO | {"ratio": "seq_mean_token"}),
    "rloo": _preset("RLOO (arXiv 2402.14740): leave-one-out baseline, KL in the reward; β as in TRL, the paper's varies by task.", **_RLOO),
    "cispo": _preset(
        "CISPO (MiniMax-M1, arXiv 2506.13585): clips the weight, not the gradient; bound 5 on the ratio, as TRL recommends.",
        surrogate="cispo",
        clip_low=None,
        clip_high=4.0,
        aggregation="token_mean",
    ),
    "reinforce_pp": _preset(
        "REINFORCE++ (arXiv 2501.03262): token returns whitened over the batch, KL in the return; coefficient as in OpenRLHF.",
        advantage="whiten",
        kl="k1",
        kl_coef=0.01,
        kl_placement="return",
        aggregation="token_mean",
    ),
    "reinforce_pp_baseline": _preset(
        "REINFORCE++-baseline (ibid.): group mean subtracted before the returns are whitened.",
        advantage="group_mean_whiten",
        kl="k1",
        kl_coef=0.01,
        kl_placement="return",
        aggregation="token_mean",
    ),
    "trl:grpo": _preset("TRL loss_type='grpo'.", **_TRL),
    "trl:dapo": _preset("TRL loss_type='dapo', its default, with its symmetric clip.", **_TRL, aggregation="token_mean"),
    "trl:bnpo": _preset("TRL loss_type='bnpo'; denominators must be counted per micro-batch.", **_TRL, aggregation="token_mean"),
    "trl:dr_grpo": _preset("TRL loss_type='dr_grpo', scale_rewards='none'; L is its max_completion_length.", **_TRL | _DR_GRPO),
    "trl:gspo": _preset("TRL importance_sampling_level='sequence', loss_type='grpo', at the paper's clip bounds.", **_TRL | _GSPO),
    "trl:cispo": _preset(
        "TRL loss_type='cispo' at its recommended epsilon_high=5.0.",
        **_TRL,
        surrogate="cispo",
        clip_low=None,
        clip_high=4.0,
        aggregation="token_mean",
    ),
    "trl:rloo": _preset("TRL RLOOTrainer.", **_RLOO),
    "verl:grpo": _preset("verl grpo with loss_agg_mode='token-mean', its default, and its dual clip.", **_VERL),
    "verl:dapo": _preset("verl's DAPO recipe.", **_VERL, clip_high=0.28, keep_above=0.0, keep_below=1.0),
    "verl:dr_grpo": _preset(
        "verl seq-mean-token-sum-norm as of January 2026: a sum over sequences, divided by L only.",
        **_VERL | {"advantage": "group_mean", "aggregation": "token_sum_norm"},
    ),
    "verl:gspo": _preset(
        "verl gspo: always seq-mean-token-mean, no dual clip, log ratio at most 10.",
        **_VERL
        | _GSPO
        | {
            "ratio": "seq_mean_token",
            "aggregation": "seq_mean_token_mean",
            "dual_clip": None,
            "log_ratio_min": None,
            "log_ratio_max": 10.0,
        },
    ),
    "verl:rloo": _preset("verl rloo: leave-one-out advantages in the token-mean loss.", **_VERL | {"advantage": "leave_one_out"}),
    "verl:cispo": _preset(
        "verl cispo: bounds the weight on both sides; no dual clip.", **_VERL | {"surrogate": "cispo", "dual_clip": None}
    ),
    "verl:reinforce_pp": _preset("verl reinforce_plus_plus.", **_VERL | {"advantage": "whiten"}),
    "verl:reinforce_pp_baseline": _preset("verl reinforce_plus_plus_baseline.", **_VERL | {"advantage": "group_mean_whiten"}),
    "openrlhf:group_norm": _preset("OpenRLHF group_norm.", **_OPENRLHF, advantage_eps=1e-9),
    "openrlhf:dr_grpo": _preset("OpenRLHF dr_grpo: changes the advantage only.", **_OPENRLHF, advantage="group_mean"),
    "openrlhf:rloo": _preset("OpenRLHF rloo.", **_OPENRLHF, advantage="leave_one_out"),
    "openrlhf:reinforce": _preset("OpenRLHF reinforce (REINFORCE++).", **_OPENRLHF, **_OPENRLHF_WHITEN, advantage="whiten"),
    "openrlhf:reinforce_baseline": _preset("OpenRLHF reinforce_baseline.", **_OPENRLHF, **_OPENRLHF_WHITEN, advantage="group_mean_whiten"),
}


def _factory(name: str, preset: Preset) -> Callable[..., PolicyGradient]:
    """A factory whose keyword-only signature is `PolicyGradient`'s, with the preset's values as defaults."""

    def build(**switches: Any) -> PolicyGradient:
        return PolicyGradient(**preset.switches | switches)

    signature = inspect.signature(PolicyGradient)
    own = [p.replace(default=preset.switches.get(p.name, p.default)) for p in signature.parameters.values()]
    build.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    build.__annotations__ = typing.get_type_hints(PolicyGradient.__init__)
    build.__name__ = build.__qualname__ = name
    differing = ", ".join(f"{key}={value!r}" for key, value in preset.switches.items())
    build.__doc__ = f"{preset.summary}\n\nSwitches: {differing or 'the defaults'}. See `PolicyGradient` for their meaning.\n"
    return build


for _name, _switches in PRESETS.items():
    objectives.register(_name)(_factory(_name, _switches))


@objectives.register("entropy")
def entropy(*, aggregation: str = "token_mean") -> TokenAverage:
    """Entropy bonus: minus the mean entropy of the policy; its weight in a `Sum` is the entropy coefficient."""
    return TokenAverage(key="entropy_BT", scale=-1.0, aggregation=aggregation)  # type: ignore[arg-type]


@objectives.register("nll")
def nll(*, mask: str = "mask_BT") -> TokenAverage:
    """Supervised term: minus the mean log-likelihood of the tokens in `mask`, per token."""
    return TokenAverage(key="logp_BT", scale=-1.0, mask=mask)


def objective(name: str, **overrides: Any) -> Any:
    """The registered `Objective` called `name`, some switches overridden; unknown names and switches raise and name the nearest."""
    return objectives.build(name, **overrides)
