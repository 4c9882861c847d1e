"""PEFT adapters as task vectors: what peft's own merge gives, and off again to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from checkpoints import load, random, save
from tutelage.edits.adapter import Adapter
from tutelage.edits.apply import apply
from tutelage.edits.packs.pack import open_vector
from tutelage.edits.remove import remove
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError

pytestmark = pytest.mark.lm


def merged_by_peft(tmp_path, model, **options):
    """A base, an adapter of random numbers on it, and the weights that peft merges them to."""
    peft = pytest.importorskip("peft")
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **options))
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    return WeightStore(tmp_path / "base"), open_vector(tmp_path / "adapter"), load(tmp_path / "merged")


def llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 6},
        {
            "target_modules": ["v_proj", "up_proj"],
            "use_rslora": True,
            "rank_pattern": {"layers.1.mlp.up_proj": 2},
            "alpha_pattern": {"v_proj": 3},
        },
        {"target_modules": ["embed_tokens"]},
    ],
)
def test_it_adds_what_peft_merges(tmp_path, options):
    base, adapter, theirs = merged_by_peft(tmp_path, llama(), **options)
    apply(base, [adapter], tmp_path / "out")
    ours = load(tmp_path / "out")
    changed = [name for name, array in load(base.path).items() if not np.array_equal(array, ours[name])]
    assert sorted(changed) == sorted(adapter.names)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-6)
    remove(WeightStore(tmp_path / "out"), [adapter], tmp_path / "back")
    assert {n: a.tobytes() for n, a in load(tmp_path / "back").items()} == {n: a.tobytes() for n, a in load(base.path).items()}


def test_weights_that_lie_the_other_way(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    base, adapter, theirs = merged_by_peft(tmp_path, model, target_modules=["c_attn"], fan_in_fan_out=True)
    apply(base, [adapter], tmp_path / "out")
    for name, array in load(tmp_path / "out").items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6)


def test_another_base_than_the_one_it_copied_embeddings_of(tmp_path):
    base, adapter, _ = merged_by_peft(tmp_path, llama(), target_modules=["embed_tokens"])
    other = {name: array + 1 for name, array in load(base.path).items()}
    with pytest.raises(TutelageError, match=r"another base.*embed_tokens"):
        apply(WeightStore(save(tmp_path / "other", other)), [adapter], tmp_path / "out")


def made(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config))
    return folder


def test_what_is_no_product_is_refused(tmp_path):
    a, b = np.ones((2, 16), np.float32), np.ones((8, 2), np.float32)
    name = "base_model.model.model.layers.0.mlp"
    pair = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    with pytest.raises(TutelageError, match=r"magnitude.*merge_and_unload"):
        Adapter(made(tmp_path / "dora", pair | {f"{name}.lora_magnitude_vector": np.ones(8, np.float32)}))
    with pytest.raises(TutelageError, match="no pair of matrices"):
        Adapter(made(tmp_path / "half", {f"{name}.lora_A.weight": a}))
    with pytest.raises(TutelageError, match="type IA3; expected LORA"):
        Adapter(made(tmp_path / "ia3", pair, peft_type="IA3"))
    base = WeightStore(save(tmp_path / "base", random(0)))
    good = Adapter(made(tmp_path / "good", pair))
    apply(base, [good], tmp_path / "out", scale=0.5)
    np.testing.assert_allclose(load(tmp_path / "out")["model.layers.0.mlp.weight"], random(0)["model.layers.0.mlp.weight"] + 1, rtol=1e-6)
    wide = made(tmp_path / "wide", {f"{name}.lora_A.weight": np.ones((2, 9), np.float32), f"{name}.lora_B.weight": b})
    with pytest.raises(TutelageError, match="made from another base"):
        apply(base, [Adapter(wide)], tmp_path / "never")
    assert load_file(tmp_path / "good" / "adapter_model.safetensors").keys() == pair.keys()
