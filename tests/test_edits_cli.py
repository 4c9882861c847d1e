"""`tutelage edit` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("safetensors")
from checkpoints import load, random, save


def run(*arguments, cwd):
    command = [sys.executable, "-m", "tutelage.cli", "edit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def ok(*arguments, cwd):
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


@pytest.fixture
def home(tmp_path):
    save(tmp_path / "base", random(0), model_type="llama")
    save(tmp_path / "tuned", random(1), model_type="llama")
    return tmp_path


def test_diff_apply_remove_verify(home):
    assert ok("diff", "base", "tuned", "-o", "v.safetensors", "--dry-run", "--json", cwd=home)["touched"]
    assert not (home / "v.safetensors").exists()
    assert "4 of 5 tensors differ; v.safetensors" in ok("diff", "base", "tuned", "-o", "v.safetensors", cwd=home)
    assert len(ok("diff", "base", "tuned", "--json", cwd=home)["tensors"]) == 5
    plan = ok("apply", "base", "v.safetensors", "-o", "out", "--only", "*norm*", "--dry-run", cwd=home)
    assert "tensors calculated  1\n  model.norm.weight\ntensors copied      4" in plan
    assert not (home / "out").exists()
    assert "undo.zip" in ok("apply", "base", "v.safetensors", "-o", "out", "--undo", "sidecar", cwd=home)
    assert ok("remove", "out", "v.safetensors", "-o", "back", "--dry-run", "--json", cwd=home)["touched"] == []  # a copy of the base
    (home / "base").rename(home / "gone")
    assert len(ok("remove", "out", "v.safetensors", "-o", "back", "--dry-run", "--json", cwd=home)["touched"]) == 4
    assert not (home / "back").exists()
    assert "equal to the base in every bit (from the sidecar" in ok("remove", "out", "v.safetensors", "-o", "back", cwd=home)
    assert {n: a.tobytes() for n, a in load(home / "back").items()} == {n: a.tobytes() for n, a in load(home / "gone").items()}
    assert ok("verify", "out", "--json", cwd=home)["recorded"] is True
    assert "out: whole, as its edit recorded" in ok("verify", "out", cwd=home)


def test_merge(home):
    (home / "r.yaml").write_text("merge_method: linear\nmodels: [{model: base}, {model: tuned, parameters: {weight: 3}}]\n")
    assert ok("merge", "r.yaml", "-o", "out", "--dry-run", "--json", cwd=home)["copied"] == 1
    assert ok("merge", "r.yaml", "-o", "out", "--json", cwd=home)["method"] == "linear"
    truth = (random(0)["model.norm.weight"] + 3 * random(1)["model.norm.weight"]) / 4
    np.testing.assert_allclose(load(home / "out")["model.norm.weight"], truth, rtol=1e-6)


def test_errors_are_one_paragraph_and_status_2(home):
    ok("diff", "base", "tuned", "-o", "v.safetensors", cwd=home)
    for arguments, message in (
        (("apply", "tuned", "v.safetensors", "-o", "out"), "4 tensors differ"),
        (("apply", "base", "v.safetensors", "-o", "out", "--only", "*nothing*", "--dry-run"), "matches none"),
        (("apply", "base", "v.safetensors", "-o", "tuned"), "not overwritten"),
        (("apply", "base", "v.safetensors", "-o", "out", "--undo", "later"), "'base' or 'sidecar'"),
        (("merge", "none.yaml", "-o", "out"), "Cannot read the recipe"),
        (("verify", "nowhere"), "no checkpoint"),
    ):
        done = run(*arguments, cwd=home)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (home / "out").exists()


def test_verify_of_a_broken_checkpoint_is_status_2(home):
    tensors = random(0)
    tensors["model.norm.weight"][0] = np.nan
    save(home / "bad", tensors)
    done = run("verify", "bad", "--json", cwd=home)
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["problems"]) == 1


def test_the_parts_are_listed(home):
    command = [sys.executable, "-m", "tutelage.cli", "ls", "edits", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {"antidote", "dare", "linear", "svd_delta", "task_arithmetic", "ties"} <= {p["name"] for p in found}
