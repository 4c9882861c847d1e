"""Divergences between a teacher p and a student q at every token: pure functions of log-probabilities, without any reduction over tokens.

Functions take the teacher first, and sum over the last axis: log-probabilities `(..., V)` give `(...)`, in nats. A probability of exactly
0 (log-probability −∞) is a valid value: 0 · log 0 = 0, and a divergence that is infinite comes out as infinity.

| kind | value | at its ends |
|---|---|---|
| `forward_kl` | KL(p‖q), mean-seeking | |
| `reverse_kl` | KL(q‖p), mode-seeking | |
| `generalized_js` | β KL(p‖m) + (1−β) KL(q‖m), m = β p + (1−β) q | β = 0: forward KL, β = 1: reverse KL, *not* its limits, which are 0 |
| `continuous_js` | (1−β) KL(p‖m) + β KL(q‖m), same m | β → 0: forward KL, β → 1: reverse KL, continuously |
| `symmetric_kl` | (1−β) KL(p‖q) + β KL(q‖p) | |
| `skewed_forward_kl` | KL(p ‖ α p + (1−α) q) | α = 0: forward KL, α = 1: 0 |
| `skewed_reverse_kl` | KL(q ‖ (1−α) p + α q) | α = 0: reverse KL, α = 1: 0 |
| `total_variation` | ½ Σ \\|p − q\\| | |
| `soft_cross_entropy` | −Σ p log q, the forward KL plus the teacher's entropy, with the forward KL's gradient | |

`generalized_js` is GKD's (arXiv 2306.13649, eq. 1) with TRL's end points; close to an end β acts as a factor on the learning rate.
DistiLLM's `js_distance(lam)` is `generalized_js(beta=1 - lam)`; its `skewed_forward_kl` (arXiv 2402.03898) returns the cross-entropy form
in code, which is larger by the teacher's entropy and has the same gradient. No β or α is ever clamped.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown

Kind = Literal[
    "forward_kl",
    "reverse_kl",
    "generalized_js",
    "continuous_js",
    "symmetric_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "soft_cross_entropy",
]
MissingMass = Literal["tail", "renormalise", "zero"]
TAIL_FLOOR = 1e-7  # least mass of a teacher's tail; what is left of 1 after rounding says no more (TRL uses the same)


def token_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: Kind = "forward_kl",
    beta: float = 0.5,
    alpha: float = 0.1,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    scale_by_t2: bool = False,
) -> Tensor:
    """The divergence of every token, `(..., V)` and `(..., V)` → `(...)`; no gradient reaches the teacher.

    Args:
        student: log-probabilities or logits: they are normalised here, after the temperature.
        teacher: the same over the same vocabulary.
        kind: see the table above.
        beta: 0 is the forward side, 1 the reverse side; for the two JS and the symmetric KL.
        alpha: for the skewed KL; 0.1 is DistiLLM's.
        temperature: what the student's logits are divided by.
        teacher_temperature: what the teacher's are divided by; without it `temperature`.
        scale_by_t2: multiply by `temperature`², which keeps the gradient's size as the temperature changes (Hinton et al., arXiv
            1503.02531, section 2). Never implied: TRL and DistiLLM do not, torchdistill does.

    Raises:
        TutelageError: an unknown kind, a β or α outside [0, 1], a temperature that is not positive, vocabularies that differ.
    """
    check_switches(kind=kind, beta=beta, alpha=alpha, temperature=temperature, teacher_temperature=teacher_temperature)
    if student.shape != teacher.shape:
        raise TutelageError(
            f"Student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape. The last axis is the vocabulary: models "
            "of different tokenizers, or with differently padded embeddings, cannot be compared token by token; cut padding off first."
        )
    teacher_logp = tempered(teacher.detach(), temperature if teacher_temperature is None else teacher_temperature)
    value = divergence_between(teacher_logp, tempered(student, temperature), kind=kind, beta=beta, alpha=alpha)
    return value * temperature**2 if scale_by_t2 else value


def divergence_between(teacher_logp: Tensor, student_logp: Tensor, *, kind: Kind, beta: float = 0.5, alpha: float = 0.1) -> Tensor:
    """The value of `kind` between two normalised distributions, `(..., V)` → `(...)`; arguments as in `token_divergence`."""
    p, q = teacher_logp, student_logp
    match kind:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "generalized_js":
            return _weighted(p, q, _mixture(p, q, beta), (beta, 1 - beta)) if 0 < beta < 1 else kl(*((q, p) if beta else (p, q)))
        case "continuous_js":
            return _weighted(p, q, _mixture(p, q, beta), (1 - beta, beta))
        case "symmetric_kl":
            return sum(w * kl(*pair) for w, pair in ((1 - beta, (p, q)), (beta, (q, p))) if w)  # type: ignore[return-value]
        case "skewed_forward_kl":
            return kl(p, _mixture(p, q, alpha))
        case "skewed_reverse_kl":
            return kl(q, _mixture(p, q, 1 - alpha))
        case "total_variation":
            return 0.5 * (p.exp() - q.exp()).abs().sum(-1)
        case "soft_cross_entropy":
            return kl(p, q) - (p.exp() * torch.where(p == -math.inf, 0.0, p)).sum(-1)
    raise unknown("divergence", kind, get_args(Kind))


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) of two normalised log-probabilities, `(..., V)` → `(...)`."""
    return (a.exp() * torch.where(a == -math.inf, 0.0, a - b)).sum(-1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of logits (or of log-probabilities) at a temperature, at least in single precision."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def top_k_events(
    student: Tensor,
    top_ids: Tensor,
    top_logp: Tensor,
    *,
    missing_mass: MissingMass,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Both distributions over what a teacher's top k entries can tell apart: `(..., E)` teacher and student, E = K or K + 1.

    | `missing_mass` | teacher | student | against the dense divergence |
    |---|---|---|---|
    | `tail` | K entries and the mass 1 − Σ, at least `TAIL_FLOOR` | the same K and all the rest | never larger (merging loses) |
    | `renormalise` | K entries scaled to sum 1 | the same K scaled to sum 1 | that of the conditionals; mass elsewhere is free |
    | `zero` | K entries scaled to sum 1, nothing elsewhere | the same K and all the rest | that of a teacher cut off at k |

    With all mass in the K entries, and K = V, all three are the dense divergence. The student's rest is summed over its own vocabulary.

    Args:
        student: log-probabilities or logits (..., V).
        top_ids: distinct entries of the vocabulary (..., K), int64.
        top_logp: the teacher's log-probabilities of them (..., K), not renormalised.
        missing_mass: what is assumed of the V − K others.
        temperature: of the student; the rest is taken after it.
        teacher_temperature: of the teacher; `tail` admits 1 only, as the mass left over at another temperature is not known.

    Raises:
        TutelageError: an unknown policy, a tail that is not known, shapes that do not belong together, ids outside the vocabulary.
    """
    if missing_mass not in get_args(MissingMass):
        raise unknown("missing-mass policy", missing_mass, get_args(MissingMass))
    check_tail(missing_mass, teacher_temperature)
    _check_ids(top_ids, top_logp, student.shape)
    q = tempered(student, temperature)
    top_q = q.gather(-1, top_ids)
    top_p = top_logp.detach().to(torch.promote_types(top_logp.dtype, torch.float32)) / teacher_temperature
    if missing_mass == "renormalise" or top_ids.shape[-1] == q.shape[-1]:
        return torch.log_softmax(top_p, -1), torch.log_softmax(top_q, -1)
    rest_q = q.scatter(-1, top_ids, -math.inf).logsumexp(-1, keepdim=True)
    if missing_mass == "zero":
        return torch.cat([torch.log_softmax(top_p, -1), torch.full_like(top_p[..., :1], -math.inf)], -1), torch.cat([top_q, rest_q], -1)
    mass = top_p.logsumexp(-1, keepdim=True).clamp(max=math.log1p(-TAIL_FLOOR))
    rest_p = (-mass.expm1()).log()
    return torch.log_softmax(torch.cat([top_p, rest_p], -1), -1), torch.cat([top_q, rest_q], -1)


def check_switches(*, kind: str, beta: float, alpha: float, temperature: float, teacher_temperature: float | None) -> None:
    """Raise `TutelageError` unless the switches of `token_divergence` have a meaning."""
    if kind not in get_args(Kind):
        raise unknown("divergence", kind, get_args(Kind))
    for name, value in (("beta", beta), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise TutelageError(f"{name}={value} is the weight of a mixture and lies in [0, 1]; 0 and 1 are allowed and exact.")
    for name, value in (("temperature", temperature), ("teacher_temperature", 1.0 if teacher_temperature is None else teacher_temperature)):
        if not 0 < value < math.inf:
            raise TutelageError(f"{name}={value} divides the logits and must be positive and finite; 1 leaves them as they are.")


def check_tail(missing_mass: MissingMass | None, teacher_temperature: float) -> None:
    """Raise `TutelageError` where a tail's mass would be needed at a temperature at which it is not known."""
    if missing_mass == "tail" and teacher_temperature != 1:
        raise TutelageError(
            f"missing_mass='tail' cannot re-temper a teacher's top k (by {teacher_temperature}): the mass outside them is known only at "
            "the temperature they were recorded at. Record the teacher at the wanted temperature and pass teacher_temperature=1.0 beside "
            "it, or use missing_mass='renormalise'."
        )


def infinite_without_teacher_mass(*, kind: Kind, beta: float, alpha: float) -> bool:
    """Whether the divergence is infinite where the teacher has no mass and the student has some."""
    reverse = {"reverse_kl": True, "symmetric_kl": beta > 0, "generalized_js": beta == 1, "continuous_js": beta == 1}
    return reverse.get(kind, False) or (kind == "skewed_reverse_kl" and alpha == 0)


def _check_ids(top_ids: Tensor, top_logp: Tensor, student: torch.Size) -> None:
    if top_ids.shape != top_logp.shape or top_ids.shape[:-1] != student[:-1] or not 0 < top_ids.shape[-1] <= student[-1]:
        raise TutelageError(
            f"A teacher's top k of ids {tuple(top_ids.shape)} and log-probabilities {tuple(top_logp.shape)} does not fit a student "
            f"{tuple(student)}: expected one shape (..., K) with K of 1 to {student[-1]}."
        )
    if top_ids.numel() and (int(top_ids.min()) < 0 or int(top_ids.max()) >= student[-1]):
        raise TutelageError(
            f"A teacher's top k holds ids from {int(top_ids.min())} to {int(top_ids.max())}; the student's vocabulary has {student[-1]} "
            "entries, counted from 0. Likely cause: different tokenizers (see tutelage.teachers.signal.Signal.check_student)."
        )


def _mixture(p: Tensor, q: Tensor, weight: float) -> Tensor:
    """log(weight · p + (1 − weight) · q), exactly p or q at the ends."""
    if weight in (0, 1):
        return p if weight else q
    both_zero = (p == -math.inf) & (q == -math.inf)  # set apart, as the gradient of log(0 + 0) is NaN
    mixed = torch.logaddexp(torch.where(both_zero, 0.0, p) + math.log(weight), torch.where(both_zero, 0.0, q) + math.log1p(-weight))
    return torch.where(both_zero, -math.inf, mixed)


def _weighted(p: Tensor, q: Tensor, m: Tensor, weights: tuple[float, float]) -> Tensor:
    """w₀ KL(p‖m) + w₁ KL(q‖m); a term of weight 0 is left out."""
    return sum(w * kl(x, m) for w, x in zip(weights, (p, q), strict=True) if w)  # type: ignore[return-value]
