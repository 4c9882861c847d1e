"""Task vectors: they know their base, and what is applied comes off to the bit."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from checkpoints import llama, load, random, save
from tutelage.edits.apply import apply, corrected, plan_apply, planes, read_record
from tutelage.edits.remove import remove
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector, diff
from tutelage.edits.verify import verify
from tutelage.errors import TutelageError


@pytest.fixture
def pair(tmp_path):
    before = random(0)
    after = {n: a.copy() for n, a in before.items()}
    after["model.layers.0.mlp.weight"] += np.random.default_rng(5).normal(size=(8, 16)).astype("float32")
    after["model.norm.weight"][2] += 1
    base, tuned = WeightStore(save(tmp_path / "base", before)), WeightStore(save(tmp_path / "tuned", after))
    return base, tuned


def make(pair, tmp_path, **options):
    diff(*pair, tmp_path / "v.safetensors", **options)
    return TaskVector(tmp_path / "v.safetensors")


def bits(folder):
    return {n: a.tobytes() for n, a in load(folder).items()}


def test_diff_tells_what_changed_and_writes_only_that(pair, tmp_path):
    changes = {c.name: c for c in diff(*pair, tmp_path / "v.safetensors")}
    assert [n for n, c in changes.items() if c.changed] == ["model.layers.0.mlp.weight", "model.norm.weight"]
    norm, base = changes["model.norm.weight"], random(0)["model.norm.weight"]
    assert norm.share == 1 / 8
    assert norm.largest == pytest.approx(1, abs=1e-6)
    assert norm.relative == pytest.approx(1 / np.linalg.norm(base), rel=1e-5)
    written = load(tmp_path)  # read by the package itself
    truth = load(pair[1].path)["model.layers.0.mlp.weight"] - load(pair[0].path)["model.layers.0.mlp.weight"]
    assert set(written) == {"model.layers.0.mlp.weight", "model.norm.weight"}
    np.testing.assert_array_equal(written["model.layers.0.mlp.weight"], truth)
    assert [c.as_dict() for c in diff(*pair)] == [c.as_dict() for c in changes.values()]


def test_a_vector_refuses_another_base_and_names_the_tensors(pair, tmp_path):
    vector = make(pair, tmp_path)
    vector.check_base(pair[0])
    with pytest.raises(TutelageError, match=r"2 tensors differ \(model.layers.0.mlp.weight, model.norm.weight\)"):
        apply(pair[1], [vector], tmp_path / "out")
    other = random(0)
    other["model.embed_tokens.weight"][0, 0] += 1  # a tensor that the vector does not touch
    with pytest.raises(TutelageError, match="1 tensors differ"):
        apply(WeightStore(save(tmp_path / "other", other)), [vector], tmp_path / "out")
    half = WeightStore(save(tmp_path / "half", random(0, "float16")))
    with pytest.raises(TutelageError, match="4 tensors differ"):
        vector.check_base(half)
    assert not (tmp_path / "out").exists()


def test_apply_adds_and_leaves_the_rest_untouched(pair, tmp_path):
    vector = make(pair, tmp_path)
    apply(pair[0], [vector], tmp_path / "out", scale=0.5)
    before, after, delta = load(pair[0].path), load(tmp_path / "out"), load(tmp_path)
    for name, array in after.items():
        assert (array.dtype, array.shape) == (before[name].dtype, before[name].shape)
        truth = before[name] + np.float32(0.5) * delta[name] if name in delta else before[name]
        np.testing.assert_array_equal(array, truth)
    assert verify(WeightStore(tmp_path / "out"))["problems"] == []
    assert read_record(tmp_path / "out")["base"]["path"] == str(pair[0].path.resolve())


def test_only_some_tensors_and_a_pattern_that_matches_nothing(pair, tmp_path):
    vector = make(pair, tmp_path)
    plan = plan_apply(pair[0], [vector], only=["*.mlp.*"])
    assert plan.touched == ["model.layers.0.mlp.weight"]
    assert "model.norm.weight" in plan.skipped
    apply(pair[0], [vector], tmp_path / "out", only=["*.mlp.*"])
    assert bits(tmp_path / "out")["model.norm.weight"] == bits(pair[0].path)["model.norm.weight"]
    with pytest.raises(TutelageError, match="matches none"):
        apply(pair[0], [vector], tmp_path / "out2", only=["*.mlp.*", "*.attention.*"])


@pytest.mark.parametrize("source", ["base", "moved", "sidecar"])
def test_undo_is_exact_in_every_bit(pair, tmp_path, source):
    vector = make(pair, tmp_path)
    second = tmp_path / "w.safetensors"
    diff(pair[0], WeightStore(save(tmp_path / "third", random(9) | {"model.steps": np.arange(4)})), second)
    vectors, base = [vector, TaskVector(second)], bits(pair[0].path)
    apply(pair[0], vectors, tmp_path / "out", scale=-1.7, undo="sidecar" if source == "sidecar" else "base")
    if source != "base":
        pair[0].path.rename(tmp_path / "moved")
    result = remove(WeightStore(tmp_path / "out"), vectors[::-1], tmp_path / "back", base=tmp_path / "moved" if source == "moved" else None)
    assert result["source"] == ("sidecar" if source == "sidecar" else "base")
    assert bits(tmp_path / "back") == base
    assert not (tmp_path / "back" / "edit.json").exists()


@pytest.mark.lm
@pytest.mark.parametrize("tied", [False, True])
def test_undo_is_exact_for_sharded_bfloat16(tmp_path, tied):
    base, tuned = (WeightStore(llama(tmp_path / str(seed), seed=seed, tied=tied)) for seed in (0, 1))
    vector = make((base, tuned), tmp_path)
    apply(base, [vector], tmp_path / "out", undo="sidecar")
    for file in tuned.headers:  # the vector in float32 brings the tuned checkpoint back
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    shutil.move(base.path, tmp_path / "gone")
    remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    for path in (tmp_path / "gone").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_sidecar_of_several_chunks_survives_another_chunk_size(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    stores = [WeightStore(save(tmp_path / n, {"w": rng.normal(size=(7, 11)).astype("float32")})) for n in ("base", "tuned")]
    vector = make(stores, tmp_path)
    monkeypatch.setattr("tutelage.edits.apply.CHUNK", 10)
    apply(stores[0], [vector], tmp_path / "out", undo="sidecar", scale=1e3)
    monkeypatch.undo()
    stores[0].path.rename(tmp_path / "gone")
    remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    assert bits(tmp_path / "back") == bits(tmp_path / "gone")


def test_both_copies_of_a_tied_weight_change_and_come_back(tmp_path):
    stores = []
    for seed in (0, 1):
        tensors = random(seed)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        stores.append(WeightStore(save(tmp_path / str(seed), tensors, tie_word_embeddings=True)))
    vector = make(stores, tmp_path)
    assert "lm_head.weight" not in vector.names
    apply(stores[0], [vector], tmp_path / "out", undo="sidecar")
    after = bits(tmp_path / "out")
    assert after["lm_head.weight"] == after["model.embed_tokens.weight"] != bits(stores[0].path)["lm_head.weight"]
    stores[0].path.rename(tmp_path / "gone")
    remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    assert bits(tmp_path / "back") == bits(tmp_path / "gone")


def test_a_head_that_was_untied_by_training_is_not_overlooked(tmp_path):
    tensors = random(0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    base = WeightStore(save(tmp_path / "base", tensors, tie_word_embeddings=True))
    bare = WeightStore(save(tmp_path / "bare", tensors) / "model.safetensors")  # no configuration says that its copies are tied
    assert not any(c.changed for c in diff(base, bare))
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(TutelageError, match="a head of its own"):
        diff(base, WeightStore(save(tmp_path / "tuned", tensors, tie_word_embeddings=True)))


def test_without_base_or_sidecar_remove_refuses(pair, tmp_path):
    vector = make(pair, tmp_path)
    apply(pair[0], [vector], tmp_path / "out")
    with pytest.raises(TutelageError, match=r"no edit\.json"):
        remove(pair[0], [vector], tmp_path / "back")
    shutil.rmtree(pair[0].path)
    with pytest.raises(TutelageError, match=r"no undo\.zip"):
        remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    shutil.copytree(pair[1].path, pair[0].path)  # another checkpoint in the base's place
    with pytest.raises(TutelageError, match="no longer the base, 2 tensors differ"):
        remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_remove_refuses_other_vectors_and_a_changed_checkpoint(pair, tmp_path):
    vector = make(pair, tmp_path)
    apply(pair[0], [vector], tmp_path / "out", undo="sidecar")
    diff(pair[0], WeightStore(save(tmp_path / "third", random(9) | {"model.steps": np.arange(4)})), tmp_path / "w.safetensors")
    with pytest.raises(TutelageError, match=r"Give these: .*v\.safetensors"):
        remove(WeightStore(tmp_path / "out"), [TaskVector(tmp_path / "w.safetensors")], tmp_path / "back")
    shutil.rmtree(pair[0].path)
    with open(tmp_path / "out" / "model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01")
    assert len(verify(WeightStore(tmp_path / "out"))["problems"]) == 1
    with pytest.raises(TutelageError, match="did not come back as it was"):
        remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_sidecar_is_named(pair, tmp_path):
    vector = make(pair, tmp_path)
    apply(pair[0], [vector], tmp_path / "out", undo="sidecar")
    shutil.rmtree(pair[0].path)
    with zipfile.ZipFile(tmp_path / "out" / "undo.zip", "w"):
        pass
    with pytest.raises(TutelageError, match=r"undo\.zip is damaged"):
        remove(WeightStore(tmp_path / "out"), [vector], tmp_path / "back")


@given(st.integers(0, 2**32 - 1), st.sampled_from(["<u2", "<f4", "<f8"]))
def test_corrections_restore_any_bits(seed, dtype):
    rng = np.random.default_rng(seed)
    guess, truth = (np.frombuffer(rng.bytes(40), dtype) for _ in range(2))
    assert corrected(guess, planes(guess, truth).tobytes()).tobytes() == truth.tobytes()


def test_bad_vectors_are_refused(pair, tmp_path):
    with pytest.raises(TutelageError, match="not a task vector"):
        TaskVector(pair[0].path)
    vector = make(pair, tmp_path)
    raw = vector.path.read_bytes().replace(b'"version":"2"', b'"version":"9"')
    (tmp_path / "new.safetensors").write_bytes(raw)
    with pytest.raises(TutelageError, match="format 9"):
        TaskVector(tmp_path / "new.safetensors")
    with pytest.raises(TutelageError, match="not overwritten"):
        diff(*pair, vector.path)
    with pytest.raises(TutelageError, match="Did you mean 'bfloat16'"):
        diff(*pair, tmp_path / "x.safetensors", dtype="bfloat")


def test_checkpoints_that_cannot_be_compared(pair, tmp_path):
    tensors = random(0)
    tensors["model.steps"] = np.arange(4) + 1
    with pytest.raises(TutelageError, match=r"model\.steps .* stored as I64"):
        diff(pair[0], WeightStore(save(tmp_path / "steps", tensors)))
    tensors = random(0)
    tensors["model.embed_tokens.weight"] = np.zeros((33, 8), np.float32)
    with pytest.raises(TutelageError, match="The vocabularies differ"):
        diff(pair[0], WeightStore(save(tmp_path / "words", tensors)))
    del tensors["model.norm.weight"]
    with pytest.raises(TutelageError, match=r"1 only in .*base \(model.norm.weight\)"):
        diff(pair[0], WeightStore(save(tmp_path / "fewer", tensors)))


def test_an_overflow_is_refused(tmp_path):
    stores = [WeightStore(save(tmp_path / str(v), {"w": np.full(3, v, np.float16)})) for v in (1, 60000)]
    vector = make(stores, tmp_path)
    with pytest.raises(TutelageError, match="does not fit F16"):
        apply(stores[0], [vector], tmp_path / "out", scale=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "60000", "v.safetensors"]


def test_worker_processes_write_the_same_bytes(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.edits._spread.BATCH", 64)
    for workers in (1, 2):
        changes = diff(*pair, tmp_path / f"v{workers}.safetensors", workers=workers)
        assert sum(change.changed for change in changes) == 2
        apply(pair[0], [TaskVector(tmp_path / f"v{workers}.safetensors")], tmp_path / f"out{workers}", workers=workers)
    assert (tmp_path / "v1.safetensors").read_bytes() == (tmp_path / "v2.safetensors").read_bytes()
    assert bits(tmp_path / "out1") == bits(tmp_path / "out2") == bits(pair[1].path)
    assert read_record(tmp_path / "out1")["tensors"] == read_record(tmp_path / "out2")["tensors"]


def test_a_worker_says_what_is_wrong(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.edits._spread.BATCH", 64)
    vector = make(pair, tmp_path)
    with pytest.raises(TutelageError, match="made from another base"):
        apply(pair[1], [vector], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(pair, tmp_path, monkeypatch):
    vector = make(pair, tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tutelage.edits._copy.write_header", full)
    with pytest.raises(TutelageError, match="No space left"):
        apply(pair[0], [vector], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "tuned", "v.safetensors"]


def test_killed_midway_no_output_bears_the_name(pair, tmp_path):
    vector = make(pair, tmp_path)
    code = (
        "import os, signal, sys, pathlib; from tutelage.edits.apply import apply; from tutelage.edits.store import WeightStore\n"
        "from tutelage.edits.task_vector import TaskVector\n"
        "apply(WeightStore(sys.argv[1]), [TaskVector(sys.argv[2])], pathlib.Path(sys.argv[3]),"
        " tell=lambda n: os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", code, str(pair[0].path), str(vector.path), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    apply(pair[0], [vector], tmp_path / "out")  # the same command goes through afterwards
    assert json.loads((tmp_path / "out" / "edit.json").read_text())["edit"] == "apply"
