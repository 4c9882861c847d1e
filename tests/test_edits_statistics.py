"""The activation-statistics collector: hand-computed sums, and independence of how the text is cut into batches."""

from __future__ import annotations

import pytest

from tutelage.errors import TutelageError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
    return LlamaForCausalLM(LlamaConfig(**size)).train()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(30, (8, 7), generator=generator)
    mask_BT = (torch.arange(7) < torch.tensor([7, 5, 7, 3, 6, 7, 4, 7])[:, None]).long()
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": torch.where(mask_BT.bool(), ids_BT, -100)}


def cut(batch, *sizes):
    parts = zip(*(value.split(sizes) for value in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


def test_sums_do_not_depend_on_the_batches(model, batch):
    from tutelage.model_edits.statistics import collect, linear_layers

    layers = linear_layers(model, [r"mlp\.", "q_proj"])
    what = ("square", "gram", "saliency")
    whole = collect(model, [batch], layers, what=what)
    parts = collect(model, lambda: iter(cut(batch, 3, 5)), layers, what=what, per_pass=3)
    assert list(whole) == list(parts) == list(layers)
    assert len(layers) == 8
    for name, one in whole.items():
        assert (one.sequences, one.tokens) == (parts[name].sequences, parts[name].tokens) == (8, int(batch["attention_mask"].sum()))
        for key in ("square_I", "gram_II", "saliency_OI"):
            torch.testing.assert_close(getattr(one, key), getattr(parts[name], key), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(one.gram_II.diagonal(), one.square_I)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_saliency_is_the_sum_of_single_sequences_weights_times_gradients(model, batch):
    from tutelage.model_edits.statistics import collect

    name = "model.layers.1.mlp.down_proj"
    found = collect(model, [batch], [name], what=("saliency",))[name].saliency_OI
    weight = model.get_submodule(name).weight
    expected = torch.zeros_like(weight, dtype=torch.float64)
    model.eval()
    for one in cut(batch, *[1] * 8):
        loss = model(**one).loss
        expected += (weight * torch.autograd.grad(loss, weight)[0]).abs().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_norms_by_hand():
    from tutelage.model_edits.statistics import Statistics

    stats = Statistics(sequences=1, tokens=2, square_I=torch.tensor([1.0, 4.0], dtype=torch.float64))
    assert stats.norm().tolist() == [1.0, 2.0]
    with pytest.raises(TutelageError, match="square"):
        Statistics().norm()


def test_only_counted_tokens_enter(model, batch):
    from tutelage.model_edits.statistics import collect

    name = "model.layers.0.self_attn.q_proj"
    answer = batch | {"token_mask": torch.zeros_like(batch["input_ids"])}
    answer["token_mask"][:, 2] = 1
    assert collect(model, [answer], [name])[name].tokens == 8


def test_conv1d_of_gpt2_is_a_transposed_linear_layer(batch):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tutelage.model_edits.statistics import collect, linear_layers

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=16))
    name = "transformer.h.0.mlp.c_fc"
    stats = collect(model, [batch], linear_layers(model, ["c_fc"]), what=("square", "saliency"))[name]
    assert stats.square_I.shape == (16,)
    assert stats.saliency_OI.shape == (64, 16)


def test_mistakes_name_the_fix(model, batch):
    from tutelage.model_edits.statistics import collect, linear_layers

    with pytest.raises(TutelageError, match="matches 'mlpp'"):
        linear_layers(model, ["mlpp"])
    with pytest.raises(TutelageError, match=r"Did you mean 'model\.layers\.0\.mlp\.up_proj'"):
        collect(model, [batch], ["model.layers.0.mlp.upproj"])
    with pytest.raises(TutelageError, match="no calibration batches"):
        collect(model, [], ["lm_head"])
    with pytest.raises(TutelageError, match="labels"):
        collect(model, [{"input_ids": batch["input_ids"]}], ["lm_head"], what=("saliency",))
    with pytest.raises(TutelageError, match="several times"):
        collect(model, [batch], linear_layers(model, ["mlp"]), per_pass=1)
