"""Fingerprints: what they hash, files of the first format, and finite numbers told from their bits."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from checkpoints import load, random, save
from tutelage.edits._dtypes import encode, require_finite_bits, storage
from tutelage.edits.apply import apply
from tutelage.edits.remove import remove
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector, diff
from tutelage.edits.verify import verify
from tutelage.errors import TutelageError


def old_prints(store: WeightStore) -> dict[str, str]:
    """The fingerprints of format 1."""
    return {
        name: hashlib.sha256(f"{i.dtype} {list(i.shape)} ".encode() + b"".join(p.tobytes() for p in store.chunks(name))).hexdigest()
        for name, i in store.tensors.items()
    }


@pytest.fixture
def old(tmp_path):
    """A base, and a vector as the first format wrote it."""
    base, tuned = (WeightStore(save(tmp_path / str(s), random(s) | {"model.steps": np.arange(4)})) for s in (0, 1))
    diff(base, tuned, tmp_path / "new.safetensors")
    metadata = {"format": "tutelage.task_vector", "version": "1", "base": json.dumps(old_prints(base)), "content": "c0ffee"}
    save_file(load_file(tmp_path / "new.safetensors"), tmp_path / "old.safetensors", metadata=metadata)
    return base, TaskVector(tmp_path / "old.safetensors"), TaskVector(tmp_path / "new.safetensors")


def test_a_fingerprint_is_the_hash_of_format_shape_and_bits(tmp_path):
    tensors = random(0)
    store = WeightStore(save(tmp_path / "base", tensors))
    for name, info in store.tensors.items():
        truth = xxhash.xxh3_128_hexdigest(f"{info.dtype} {list(info.shape)} ".encode() + tensors[name].tobytes())
        assert store.fingerprint(name) == truth
        assert store.matches(name, truth)
    assert not store.matches("model.norm.weight", store.fingerprint("model.scalar"))


def test_a_vector_of_the_first_format_knows_its_base(old, tmp_path):
    base, vector, new = old
    vector.check_base(base)
    apply(base, [vector], tmp_path / "out")
    apply(base, [vector, new], tmp_path / "both")  # one of each
    np.testing.assert_allclose(load(tmp_path / "out")["model.norm.weight"], random(1)["model.norm.weight"], atol=1e-6)
    other = random(0) | {"model.steps": np.arange(4)}
    other["model.norm.weight"] = other["model.norm.weight"] + 1
    with pytest.raises(TutelageError, match=r"1 tensors differ \(model.norm.weight\)"):
        apply(WeightStore(save(tmp_path / "other", other)), [vector], tmp_path / "out2")


@pytest.mark.parametrize("undo", ["base", "sidecar"])
def test_an_edit_recorded_in_the_first_format_comes_off(old, tmp_path, undo):
    base, vector, _ = old
    record = apply(base, [vector], tmp_path / "out", undo=undo)
    record |= {"format": 1, "tensors": old_prints(WeightStore(tmp_path / "out"))}
    record["base"]["tensors"] = old_prints(base)
    (tmp_path / "out" / "edit.json").write_text(json.dumps(record))
    assert verify(WeightStore(tmp_path / "out"))["problems"] == []
    truth = {n: a.tobytes() for n, a in load(base.path).items()}
    if undo == "sidecar":
        base.path.rename(tmp_path / "gone")
    assert remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")["source"] == undo
    assert {n: a.tobytes() for n, a in load(tmp_path / "back").items()} == truth
    with open(tmp_path / "out" / "model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01")
    assert len(verify(WeightStore(tmp_path / "out"))["problems"]) == 1


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=9), st.sampled_from(["F64", "F32", "F16", "BF16"]))
def test_bits_tell_what_is_not_finite(values, dtype):
    with np.errstate(over="ignore"):
        numbers = np.array(values, np.float64 if dtype == "F64" else np.float32)
    stored = encode(numbers, dtype)
    assert stored.dtype == storage(dtype)
    wide = stored.astype(np.uint32) << 16 if dtype == "BF16" else stored
    if np.isfinite(wide.view(np.float32) if dtype == "BF16" else wide).all():
        require_finite_bits(stored, dtype, "w", "here")
    else:
        with pytest.raises(TutelageError, match="w has"):
            require_finite_bits(stored, dtype, "w", "here")
