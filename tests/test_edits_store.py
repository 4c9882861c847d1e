"""Checkpoints on disk: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from checkpoints import llama, load, random, save
from tutelage.edits._copy import write_like
from tutelage.edits._dtypes import decode, encode
from tutelage.edits.store import WeightStore
from tutelage.edits.verify import verify
from tutelage.errors import TutelageError


def test_a_copy_has_equal_files_and_carries_the_rest(tmp_path):
    base = save(tmp_path / "base", random(0), model_type="llama")
    (base / "README.md").write_text("old")
    (base / "optimizer.pt").write_text("pickle")
    store, out = WeightStore(base), tmp_path / "out"
    out.mkdir()
    write_like(store, out, lambda info: store.chunks(info.name, 7))
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert set(store.others()[1]) == {"README.md", "optimizer.pt"}


def test_values_are_those_of_the_package_for_every_chunk_size(tmp_path):
    tensors = random(1, "float16")
    store = WeightStore(save(tmp_path / "base", tensors))
    for name in store.names:
        for elements in (1, 5, None):
            read = np.concatenate(list(store.chunks(name, elements)))
            np.testing.assert_array_equal(read, tensors[name].reshape(-1))


@pytest.mark.lm
def test_shards_of_transformers_round_trip(tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = llama(tmp_path / "base", seed=0)
    store = WeightStore(base)
    assert len(store.headers) > 2
    truth = {n: t for file in store.headers for n, t in load_file(file).items()}
    assert set(truth) == set(store.names)
    for name, tensor in truth.items():
        np.testing.assert_array_equal(np.concatenate(list(store.numbers(name, 33))), tensor.float().numpy().reshape(-1))
    out = tmp_path / "out"
    out.mkdir()
    write_like(store, out, lambda info: (encode(x, "F32") for x in store.numbers(info.name)), dtype="F32")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[n], t.float()) for n, t in truth.items())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * store.nbytes


@pytest.mark.lm
def test_tied_weights_are_stored_once(tmp_path):
    assert "lm_head.weight" not in WeightStore(llama(tmp_path / "tied", seed=0, tied=True)).names


def test_a_second_copy_of_a_tied_weight_counts_once(tmp_path):
    tensors = random(0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert WeightStore(save(tmp_path / "tied", tensors, tie_word_embeddings=True)).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert WeightStore(save(tmp_path / "untied", tensors, tie_word_embeddings=False)).tied == {}
    tensors["lm_head.weight"][3, 3] += 1
    assert WeightStore(save(tmp_path / "other", tensors, tie_word_embeddings=True)).tied == {}


@pytest.mark.lm
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_rounds_as_torch_does(values):
    import torch

    numbers = np.array(values, np.float32)
    truth = torch.from_numpy(numbers.copy()).to(torch.bfloat16)
    np.testing.assert_array_equal(decode(encode(numbers, "BF16"), "BF16"), truth.float().numpy())


@pytest.mark.parametrize("cut", [4, 60, -1, -200])
def test_a_truncated_file_is_named(tmp_path, cut):
    file = save(tmp_path / "base", random(0)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(TutelageError, match=r"model\.safetensors is truncated"):
        WeightStore(tmp_path / "base")


def test_trailing_bytes_and_foreign_files_are_refused(tmp_path):
    file = save(tmp_path / "base", random(0)) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole + b"x")
    with pytest.raises(TutelageError, match="1 bytes follow"):
        WeightStore(tmp_path / "base")
    file.write_bytes((4).to_bytes(8, "little") + b"nonsense")
    with pytest.raises(TutelageError, match="not that of a safetensors file"):
        WeightStore(tmp_path / "base")


def sharded(tmp_path):
    base = save(tmp_path / "base", random(0))
    (base / "model.safetensors").rename(base / "one.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(random(0), "one.safetensors")}
    return base, index


def test_an_index_must_agree_with_its_files(tmp_path):
    base, index = sharded(tmp_path)
    path = base / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert len(WeightStore(base).names) == 5
    index["weight_map"]["ghost"] = "two.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(TutelageError, match=r"two\.safetensors, which is not there"):
        WeightStore(base)
    index["weight_map"]["ghost"] = "one.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(TutelageError, match="ghost"):
        WeightStore(base)
    del index["weight_map"]["ghost"], index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(TutelageError, match=r"model\.norm\.weight"):
        WeightStore(base)


def test_what_is_no_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(TutelageError, match="hf download"):
        WeightStore(tmp_path / "nowhere")
    with pytest.raises(TutelageError, match="no weights"):
        WeightStore(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TutelageError, match="pickled"):
        WeightStore(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(TutelageError, match="PEFT adapter without"):
        WeightStore(tmp_path)


@pytest.mark.lm
def test_a_peft_adapter_is_read_and_written_like_a_checkpoint(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from tutelage.edits.rewrite import rewrite

    base = llama(tmp_path / "base", seed=0)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    store = WeightStore(tmp_path / "adapter")
    name = next(n for n in store.names if n.endswith("layers.0.self_attn.q_proj.lora_B.weight"))
    rewrite(store, tmp_path / "out", {name: lambda: np.zeros(store.tensors[name].shape, np.float32)}, edit="prune")
    back = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    weights = dict(back.named_parameters())
    assert (weights[name.replace("lora_B", "lora_B.default")] == 0).all()
    other = name.replace("layers.0", "layers.1")
    assert torch_equal(weights[other.replace("lora_B", "lora_B.default")], load(tmp_path / "adapter")[other])


def torch_equal(tensor, array):
    return np.array_equal(tensor.detach().float().numpy(), array.astype(np.float32))


def test_verify_counts_what_is_not_finite(tmp_path):
    tensors = random(0)
    assert verify(WeightStore(save(tmp_path / "good", tensors)))["problems"] == []
    tensors["model.norm.weight"][:3] = [np.nan, np.inf, -np.inf]
    (problem,) = verify(WeightStore(save(tmp_path / "bad", tensors)))["problems"]
    assert "model.norm.weight" in problem
    assert "1 NaN, 2 infinite of 8" in problem
    with pytest.raises(TutelageError, match=r"model\.norm\.weight has NaN"):
        list(WeightStore(tmp_path / "bad").numbers("model.norm.weight"))


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_method_that_needs_whole_tensors_keeps_to_its_plan(tmp_path, method):
    for seed in (0, 1, 2):
        save(tmp_path / str(seed), {"w": np.random.default_rng(seed).random(4 << 20, dtype=np.float32)})
    models = "[{model: 1}, {model: 2}]"
    (tmp_path / "r.yaml").write_text(f"merge_method: {method}\nbase_model: '0'\nmodels: {models}\nparameters: {{density: 0.5}}\n")
    used, planned = peaks(tmp_path)
    assert used < planned


def test_memory_stays_at_chunks_for_a_tensor_of_any_size(tmp_path):
    """A merge of two 128 MB tensors may not hold one of them."""
    for seed in (0, 1):
        save(tmp_path / str(seed), {"w": np.full(32 << 20, seed, np.float32)})
    (tmp_path / "r.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {tmp_path}/0}}, {{model: {tmp_path}/1}}]\n")
    used, planned = peaks(tmp_path)
    assert used < min(planned, 128 << 20)
    assert (load(tmp_path / "out")["w"] == 0.5).all()


def peaks(tmp_path):
    """Bytes that the merge of r.yaml took in a process of its own, and those that its plan foretold."""
    code = (
        "import resource, pathlib, sys; from tutelage.edits.merge import Merge; from tutelage.edits.recipe import read_recipe\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "job = Merge(read_recipe(sys.argv[1])); before = peak(); job.run(pathlib.Path(sys.argv[2]))\n"
        "print(peak() - before, job.plan().peak_memory)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r.yaml"), str(tmp_path / "out")]
    return map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
