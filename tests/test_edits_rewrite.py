"""Rewriting tensors: what is new is new, the rest keeps its bits, and the way back is exact."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("safetensors")
from checkpoints import load, random, save
from tutelage.edits.remove import remove
from tutelage.edits.rewrite import rewrite
from tutelage.edits.store import WeightStore
from tutelage.edits.verify import verify
from tutelage.errors import TutelageError

NAME = "model.layers.0.mlp.weight"


def bits(folder):
    return {n: a.tobytes() for n, a in load(folder).items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("undo", ["base", "sidecar"])
def test_a_rewrite_changes_what_it_names_and_comes_off_to_the_bit(tmp_path, dtype, undo):
    base = WeightStore(save(tmp_path / "base", random(0, dtype)))
    pruned = load(base.path)[NAME].astype(np.float32)
    pruned[:, ::2] = 0
    record = rewrite(base, tmp_path / "out", {NAME: lambda: pruned}, edit="prune", details={"amount": 0.5}, undo=undo)
    before, after = load(base.path), load(tmp_path / "out")
    np.testing.assert_array_equal(after[NAME].astype(np.float32), pruned)
    assert all(after[n].tobytes() == before[n].tobytes() for n in before if n != NAME)
    assert (record["edit"], record["amount"], record["changed"]) == ("prune", 0.5, {NAME: pruned.size // 2})
    assert verify(WeightStore(tmp_path / "out"))["problems"] == []
    if undo == "sidecar":
        base.path.rename(tmp_path / "gone")
    result = remove(WeightStore(tmp_path / "out"), [], tmp_path / "back")
    assert result["source"] == undo
    assert bits(tmp_path / "back") == {n: a.tobytes() for n, a in before.items()}


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    base = WeightStore(save(tmp_path / "base", random(0)))
    shape = base.tensors[NAME].shape
    with pytest.raises(TutelageError, match=f"Did you mean '{NAME}'"):
        rewrite(base, tmp_path / "out", {NAME + "s": lambda: np.zeros(1)}, edit="prune")
    with pytest.raises(TutelageError, match="shape"):
        rewrite(base, tmp_path / "out", {NAME: lambda: np.zeros(1)}, edit="prune")
    with pytest.raises(TutelageError, match=NAME):
        rewrite(base, tmp_path / "out", {NAME: lambda: np.full(shape, np.nan)}, edit="prune")
    assert not (tmp_path / "out").exists()
