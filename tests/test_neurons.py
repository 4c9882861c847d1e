"""Neurons of feed-forward blocks: scores by hand, locks that hold under any optimiser, equivariance."""

from __future__ import annotations

import pytest

from tutelage.errors import TutelageError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm


class Toy(torch.nn.Module):
    """y = w₂ relu(w₁ x) behind the interface of a language model: L = y comes out as the loss of one token."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        self.fc1.weight.data.fill_(3.0)
        self.fc2.weight.data.fill_(-1.0)

    def forward(self, input_ids, attention_mask, use_cache):
        from types import SimpleNamespace

        y_BT1 = self.fc2(self.fc1(input_ids.float().unsqueeze(-1)).relu())
        # softmax over (0, z) has −log p(0) = softplus(z), whose slope is 1 for large z; z = y + 100
        return SimpleNamespace(logits=torch.cat([torch.zeros_like(y_BT1), y_BT1 + 100], dim=-1))


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 30}
    return LlamaForCausalLM(LlamaConfig(**size)).eval()


@pytest.fixture(scope="module")
def batches():
    ids_BT = torch.randint(30, (6, 8), generator=torch.Generator().manual_seed(1))
    return lambda: iter([{"input_ids": ids_BT, "labels": ids_BT}])


def test_snip_by_hand():
    from tutelage.model_edits.neurons import feed_forwards, neuron_scores

    model = Toy()
    batch = {"input_ids": torch.tensor([[2, 0]]), "labels": torch.tensor([[-100, 0]])}
    block = feed_forwards(model)
    score = neuron_scores(model, lambda: iter([batch]), block)[""]
    assert score.item() == pytest.approx(6 + 6)  # |w₁ ∂y/∂w₁| + |w₂ ∂y/∂w₂| = |3·(−2)| + |−1·6|


def test_locks_are_exact_in_number_and_break_ties_by_index():
    from tutelage.model_edits.neurons import lock_mask

    scores = {"b": torch.tensor([5.0, 1, 9, 9, 2, 0, 7, 3, 4, 6])}
    assert lock_mask(scores, 0.3)["b"].nonzero().flatten().tolist() == [2, 3, 6]
    assert lock_mask(scores, 0.8)["b"].sum() == 8
    assert lock_mask(scores, 0.2, inverse=True)["b"].nonzero().flatten().tolist() == [1, 5]
    assert lock_mask({"b": torch.zeros(4)}, 0.5)["b"].tolist() == [True, True, False, False]
    with pytest.raises(TutelageError, match="rate"):
        lock_mask(scores, 80)


def test_blocks_of_stock_models(llama):
    from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

    from tutelage.model_edits.neurons import feed_forwards

    assert [block.name for block in feed_forwards(llama, (0.25, 0.5))] == ["model.layers.1.mlp"]
    assert len(feed_forwards(llama)) == 4
    assert feed_forwards(llama, (0.9, 0.95))[0].name == "model.layers.3.mlp"
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 30,
        "pad_token_id": 0,
    }
    fused = feed_forwards(Phi3ForCausalLM(Phi3Config(**size)))[0]
    locked = torch.zeros(24, dtype=torch.bool).index_fill(0, torch.tensor(3), True)
    assert fused.entries(locked)["model.layers.0.mlp.gate_up_proj.weight"].all(1).nonzero().flatten().tolist() == [3, 27]
    gpt = feed_forwards(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30)))[0]
    entries = gpt.entries(torch.zeros(64, dtype=torch.bool).index_fill(0, torch.tensor(5), True))
    assert entries["transformer.h.0.mlp.c_fc.weight"].nonzero()[:, 1].unique().tolist() == [5]
    assert entries["transformer.h.0.mlp.c_proj.weight"].nonzero()[:, 0].unique().tolist() == [5]
    assert entries["transformer.h.0.mlp.c_fc.bias"].nonzero().flatten().tolist() == [5]
    with pytest.raises(TutelageError, match="no feed-forward block"):
        feed_forwards(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["snip", "wanda", "activation"])
def test_permuting_neurons_permutes_their_scores(llama, batches, kind):
    import copy

    from tutelage.model_edits.neurons import feed_forwards, neuron_scores

    turned, order_F = copy.deepcopy(llama), torch.randperm(24, generator=torch.Generator().manual_seed(2))
    mlp = turned.model.layers[1].mlp
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight.data = layer.weight.data[order_F]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order_F]
    name = "model.layers.1.mlp"
    before = neuron_scores(llama, batches, feed_forwards(llama), kind=kind)[name]
    after = neuron_scores(turned, batches, feed_forwards(turned), kind=kind)[name]
    torch.testing.assert_close(after, before[order_F], rtol=1e-4, atol=1e-9)


def test_locked_entries_keep_their_bits_under_adamw_with_history_decay_and_clipping(llama, batches):
    import copy

    from tutelage.model_edits.masks import FrozenEntries
    from tutelage.model_edits.neurons import feed_forwards, lock_mask, neuron_scores

    model = copy.deepcopy(llama)
    blocks = feed_forwards(model, (0.25, 0.75))
    locked = lock_mask(neuron_scores(model, batches, blocks, kind="wanda"), 0.5)
    masks = {name: mask for block in blocks for name, mask in block.entries(locked[block.name]).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batch = next(batches())
    for step in range(6):
        if step == 2:  # the optimiser has moments by now
            frozen = FrozenEntries(model, masks)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if step >= 2:
            frozen.zero_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step >= 2:
            frozen.restore()
    for name, mask in masks.items():
        now = model.get_parameter(name)
        assert torch.equal(now[mask], before[name][mask])
        assert (now[~mask] != before[name][~mask]).any()


def test_masks_that_fit_nothing_are_refused(llama):
    from tutelage.model_edits.masks import FrozenEntries

    with pytest.raises(TutelageError, match="Did you mean"):
        FrozenEntries(llama, {"model.norm.weights": torch.ones(16, dtype=torch.bool)})
    with pytest.raises(TutelageError, match="expected bool"):
        FrozenEntries(llama, {"model.norm.weight": torch.ones(16)})
