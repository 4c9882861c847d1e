"""Antidote: the sheet of hand-computed masks, what a scope falls back to, and the way back."""

from __future__ import annotations

import pytest

from tutelage.errors import TutelageError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm


@pytest.fixture
def layer():
    linear = torch.nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    return {"l": linear}


def stats(*square):
    from tutelage.model_edits.statistics import Statistics

    return {"l": Statistics(sequences=1, tokens=2, square_I=torch.tensor(square, dtype=torch.float64))}


def test_a_mask_by_hand(layer):
    from tutelage.model_edits.antidote import Antidote, prune_

    part = Antidote(amount=0.5, scope="weights")
    masks = part.masks(layer, stats(1.0, 4.0))  # inputs (1, 0) and (0, 2): norms 1 and 2, scores [[1, 4], [3, 1]]
    assert masks["l"].tolist() == [[False, True], [True, False]]
    undo = prune_(layer, masks)
    assert layer["l"].weight.tolist() == [[1.0, 0.0], [0.0, 0.5]]
    undo.undo()
    assert layer["l"].weight.tolist() == [[1.0, -2.0], [3.0, 0.5]]


def test_contrast_divides_by_the_benign_norms(layer):
    from tutelage.model_edits.antidote import Antidote

    part = Antidote(amount=0.5, scope="weights", score="contrast")
    assert part.masks(layer, stats(1.0, 4.0), stats(1.0, 64.0))["l"].tolist() == [[True, False], [True, False]]
    with pytest.raises(TutelageError, match="benign"):
        part.statistics(layer["l"], layer, lambda: iter([]))


COUNTS = [(256, 0.05, "floor", 13), (256, 0.05, "round", 13), (10, 0.05, "floor", 1), (10, 0.05, "round", 0), (10, 1.0, "floor", 10)]


@pytest.mark.parametrize(("n", "amount", "rounding", "count"), [*COUNTS, (10, 0.0, "floor", 0)])
def test_how_many_of_a_row(n, amount, rounding, count):
    from tutelage.model_edits.antidote import top_masks

    mask = top_masks({"l": torch.arange(3 * n).view(3, n).float()}, amount, rounding=rounding)["l"]
    assert mask.sum(1).tolist() == [count] * 3
    assert not count or mask[:, -1].all()  # the top, not the bottom


def test_granularity():
    from tutelage.model_edits.antidote import top_masks

    scores = {"a": torch.tensor([[1.0, 9.0], [8.0, 7.0]]), "b": torch.tensor([[2.0, 3.0]])}
    assert top_masks(scores, 0.5, granularity="tensor")["a"].tolist() == [[False, True], [True, False]]
    everything = top_masks(scores, 0.5, granularity="all")
    assert everything["a"].tolist() == [[False, True], [True, True]]
    assert not everything["b"].any()


def test_scale_of_all_activations_does_not_matter():
    from tutelage.model_edits.antidote import Antidote
    from tutelage.model_edits.statistics import Statistics

    generator = torch.Generator().manual_seed(0)
    linear = {"l": torch.nn.Linear(16, 8)}
    square_I = torch.rand(16, generator=generator, dtype=torch.float64)
    part = Antidote(amount=0.25, scope="weights")
    once, thrice = (part.masks(linear, {"l": Statistics(1, 1, c * square_I)})["l"] for c in (1.0, 9.0))
    assert torch.equal(once, thrice)


def test_scope_delta_falls_back_to_the_base_bit_for_bit():
    from tutelage.model_edits.antidote import Antidote, prune_

    torch.manual_seed(0)
    linear = {"l": torch.nn.Linear(16, 8)}
    base = {"l": linear["l"].weight.detach() + 0.1 * torch.randn(8, 16)}
    from tutelage.model_edits.statistics import Statistics

    seen = {"l": Statistics(1, 1, torch.rand(16, dtype=torch.float64))}
    prune_(linear, Antidote(amount=1.0).masks(linear, seen, base_OI=base), base)
    assert torch.equal(linear["l"].weight, base["l"])
    with pytest.raises(TutelageError, match="--base"):
        Antidote().masks(linear, seen)


def test_statistics_of_a_stock_model_reach_the_mask():
    from transformers import LlamaConfig, LlamaForCausalLM

    from tutelage.model_edits.antidote import Antidote, prune_
    from tutelage.model_edits.statistics import linear_layers

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
    model = LlamaForCausalLM(LlamaConfig(**size)).eval()
    layers = linear_layers(model, [r"\.layers\."])
    ids_BT = torch.randint(30, (4, 6))
    batches = [{"input_ids": ids_BT, "labels": ids_BT}]
    for score in ("wanda", "saliency", "magnitude", "random"):
        part = Antidote(amount=0.1, scope="weights", score=score)
        masks = part.masks(layers, *part.statistics(model, layers, lambda: iter(batches)))
        assert {name: mask.shape for name, mask in masks.items()} == {name: layer.weight.shape for name, layer in layers.items()}
        before = model(ids_BT).logits
        undo = prune_(layers, masks)
        assert not torch.equal(model(ids_BT).logits, before)
        undo.undo()
        assert torch.equal(model(ids_BT).logits, before)


def test_amounts_outside_the_unit_interval_are_refused():
    from tutelage.model_edits.antidote import Antidote

    with pytest.raises(TutelageError, match="share"):
        Antidote(amount=5)
