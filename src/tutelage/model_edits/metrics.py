"""What an edited model still knows, measured by reading: probability, exact memorisation and extraction strength of given answers.

Results have open-unlearning's shape: metric → {"agg_value": number, "value_by_index": {"0": {...}, ...}}, indices in the examples' order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.model_edits.calibration import Example, batches
from tutelage.model_edits.unlearn import columns

Metrics = dict[str, dict[str, Any]]


@torch.no_grad()
def memorisation(
    model: nn.Module, examples: Sequence[Example], *, batch_size: int = 8, pad_id: int = 0, tell: Callable[[int], None] | None = None
) -> Metrics:
    """Read each prompt with its answer once, in the mode the model is in.

    - `Q_A_Prob`: exp(−mean NLL of the answer's tokens), the geometric mean probability of a token; `avg_loss` is that mean, in nats.
    - `exact_memorization` (arXiv 2210.01504): share of the answer's tokens that are the model's first choice, given the true ones before.
    - `extraction_strength` (arXiv 2202.07646): 1 − k / n for the least k such that every token after the first k of n is.
    """
    rows: list[tuple[float, float, float]] = []
    device = next(model.parameters()).device
    for batch in batches(examples, size=batch_size, pad_id=pad_id, device=device):
        found = columns(model, batch)
        right_BT = found["logp_BTV"].argmax(-1) == batch["labels"][:, 1:]
        for logp_T, right_T, mask_T in zip(found["logp_BT"], right_BT, found["mask_BT"], strict=True):
            right = right_T[mask_T].cpu().numpy()
            rows.append((-float(logp_T[mask_T].mean()), float(right.mean()), extraction_strength(right)))
        if tell:
            tell(len(batch["input_ids"]))
    nll_N, exact_N, strength_N = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    return {
        "Q_A_Prob": _metric(np.exp(-nll_N), lambda i: {"prob": float(np.exp(-nll_N[i])), "avg_loss": float(nll_N[i])}),
        "exact_memorization": _metric(exact_N, lambda i: {"score": float(exact_N[i])}),
        "extraction_strength": _metric(strength_N, lambda i: {"score": float(strength_N[i])}),
    }


def extraction_strength(right_T: np.ndarray) -> float:
    """1 − k / n, k being the least number of tokens after which all n − k others are right."""
    wrong = np.flatnonzero(~np.asarray(right_T, dtype=bool))
    return 1.0 - (int(wrong[-1]) + 1 if len(wrong) else 0) / max(len(right_T), 1)


def _metric(value_N: np.ndarray, entry: Callable[[int], dict[str, float]]) -> dict[str, Any]:
    mean = float(value_N.mean()) if len(value_N) else None
    return {"agg_value": mean, "value_by_index": {str(i): entry(i) for i in range(len(value_N))}}


def summary(groups: dict[str, Metrics]) -> dict[str, float | None]:
    """The flat table that open-unlearning calls a summary: `<group>_<metric>` → its aggregate."""
    return {f"{group}_{name}": metric["agg_value"] for group, metrics in groups.items() for name, metric in metrics.items()}
