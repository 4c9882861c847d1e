"""Whole answers: which of their tokens count, and the divergence between two models over everything that one of them may write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from torch import Tensor


def completion_mask(ids_BT: Tensor, end_ids: Sequence[int] | None) -> Tensor:
    """True up to and including the first end token of each answer (B, T); everywhere where there is no end token.

    What follows an end is padding, even where the padding token is the end token itself.
    """
    import torch

    ended_BT = torch.isin(ids_BT, torch.tensor(list(end_ids or []), dtype=ids_BT.dtype, device=ids_BT.device))
    return ended_BT.long().cumsum(1) - ended_BT.long() == 0


def sequence_kl(
    reference: Any,
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    horizon: int,
    rng: np.random.Generator,
    end_ids: Sequence[int] | None = None,
    vocabulary: int | None = None,
) -> tuple[float, float]:
    """KL(reference ‖ model) over whole answers, in nats, by sampling from `reference`: (mean, standard error).

    The chain rule: KL = E_{y ~ reference} Σ_t KL(reference(· | y_<t) ‖ model(· | y_<t)), with the exact KL over the vocabulary at every
    step, which has the mean of the log-ratio of the sampled tokens and less variance. The order matters: samples must come from the first
    model, or it is the sequence KL of nothing.

    Args:
        reference, model: causal language models of one tokenizer, used in evaluation mode and left as they were found.
        prompts: token ids, one list per prompt.
        samples: answers per prompt.
        horizon: tokens of an answer at most; the KL is that of answers cut there.
        rng: all randomness comes from it.
        end_ids: tokens that end an answer; without them every answer has `horizon` tokens.
        vocabulary: both softmaxes run over the first so many entries; without it over the narrower model's.

    Returns:
        The mean over prompts and samples, and its standard error, of samples and prompts together.
    """
    if not prompts or samples < 1 or samples * len(prompts) < 2 or horizon < 1:
        raise TutelageError(
            f"A sequence KL with its error needs a prompt, a horizon and two samples in all; got {len(prompts)} prompts, {samples} samples "
            f"of each and a horizon of {horizon}."
        )
    answers = answers_of(reference, prompts, samples=samples, horizon=horizon, rng=rng, end_ids=end_ids)
    value_NG = _kl_by_sample(reference, model, answers, vocabulary)
    return value_NG.mean().item(), (value_NG.std() / value_NG.numel() ** 0.5).item()


@dataclass(frozen=True)
class Answers:
    """What a model wrote: of each prompt its length, the ids of prompt and answers (G, L), and which answer tokens count (G, T)."""

    start_N: list[int]
    ids_GL: list[Tensor]
    mask_GT: list[Tensor]


def answers_of(
    reference: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    horizon: int,
    rng: np.random.Generator,
    end_ids: Sequence[int] | None = None,
) -> Answers:
    """`samples` answers of a model to each prompt, sampled at temperature 1; arguments as of `sequence_kl`."""
    import torch

    from tutelage.models import evaluating
    from tutelage.teachers._forward import seeded

    ends = list(end_ids) if end_ids else None
    answers = Answers([], [], [])
    with evaluating(reference), torch.no_grad(), seeded(reference, int(rng.integers(2**62))):
        for prompt in prompts:
            start = torch.tensor([list(prompt)] * samples, device=reference.device)
            ids_GL = reference.generate(
                input_ids=start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                max_new_tokens=horizon, eos_token_id=ends or [-1], pad_token_id=ends[0] if ends else 0,
            )  # fmt: skip
            answers.start_N.append(len(prompt))
            answers.ids_GL.append(ids_GL)
            answers.mask_GT.append(completion_mask(ids_GL[:, len(prompt) :], ends))
    return answers


def kl_on(reference: Any, model: Any, answers: Answers, *, vocabulary: int | None = None) -> NDArray[np.float64]:
    """KL(reference ‖ model) of each prompt (N,), in nats, on answers that the reference wrote: the mean over its answers."""
    return _kl_by_sample(reference, model, answers, vocabulary).mean(dim=1).numpy()


def _kl_by_sample(reference: Any, model: Any, answers: Answers, vocabulary: int | None) -> Tensor:
    """The exact KL at every token, summed over each answer (N, G)."""
    import torch

    from tutelage.models import evaluating
    from tutelage.objectives.divergence import kl, tempered
    from tutelage.teachers._forward import logits_at

    total = []
    with evaluating(reference), evaluating(model), torch.no_grad():
        for start, ids_GL, mask_GT in zip(answers.start_N, answers.ids_GL, answers.mask_GT, strict=True):
            rows_GT = torch.arange(len(ids_GL), device=ids_GL.device).unsqueeze(1).expand_as(mask_GT)
            places_GT = torch.arange(mask_GT.shape[1], device=ids_GL.device).expand_as(mask_GT) + start - 1
            inputs = {"input_ids": ids_GL, "attention_mask": torch.ones_like(ids_GL)}
            wide = [
                logits_at(net, {k: v.to(net.device) for k, v in inputs.items()}, rows_GT.to(net.device), places_GT.to(net.device))
                for net in (reference, model)
            ]
            entries = vocabulary or min(logits.shape[-1] for logits in wide)
            p, q = (tempered(logits[..., :entries].to(ids_GL.device), 1.0) for logits in wide)
            total.append(torch.where(mask_GT, kl(p, q), 0.0).sum(1).double().cpu())
    return torch.stack(total)
