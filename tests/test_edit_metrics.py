"""Metrics of what a model still knows: values by hand, and open-unlearning's shape."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm


class Counting(torch.nn.Module):
    """Says with probability 3/4 that the next id is one more, and spreads the rest over the three others of five (not itself)."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, use_cache):
        p_BTV = torch.full((*input_ids.shape, 5), 0.25 / 4)
        p_BTV.scatter_(-1, ((input_ids + 1) % 5).unsqueeze(-1), 0.75)
        return SimpleNamespace(logits=p_BTV.log())


def test_values_by_hand():
    from tutelage.model_edits.calibration import Example
    from tutelage.model_edits.metrics import memorisation, summary

    found = memorisation(Counting(), [Example((0, 1, 2, 3), 1, "", ""), Example((0, 2, 3, 4), 1, "", "")], batch_size=1)
    assert found["Q_A_Prob"]["value_by_index"]["0"]["prob"] == pytest.approx(0.75)
    surprise = -(2 * math.log(0.75) + math.log(0.0625)) / 3
    assert found["Q_A_Prob"]["value_by_index"]["1"]["avg_loss"] == pytest.approx(surprise, rel=1e-5)
    assert [v["score"] for v in found["exact_memorization"]["value_by_index"].values()] == pytest.approx([1, 2 / 3])
    assert [v["score"] for v in found["extraction_strength"]["value_by_index"].values()] == pytest.approx([1, 2 / 3])
    assert summary({"forget": found})["forget_exact_memorization"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(("right", "strength"), [([1, 1, 1, 1], 1), ([0, 1, 1, 1], 0.75), ([1, 1, 0, 1], 0.25), ([1, 1, 1, 0], 0)])
def test_extraction_strength(right, strength):
    from tutelage.model_edits.metrics import extraction_strength

    assert extraction_strength(np.array(right, dtype=bool)) == strength
