"""`edit prune` and `edit unlearn` as a user types them, on a model directory of a stock configuration."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytestmark = pytest.mark.lm

import tiny  # noqa: E402
from checkpoints import load  # noqa: E402


def run(*words, cwd, code=0):
    done = subprocess.run([sys.executable, "-m", "tutelage.cli", "edit", *map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model that answers two kinds of questions by heart, the model before it learnt one of them, and the texts."""
    from tutelage.model_edits.calibration import batches, encode

    home = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tokenizer()
    texts = {"bad": [(f"h{i:02d}=", f"z{i % 10}z") for i in range(16)], "good": [(f"g{i:02d}=", f"{i % 7}{i % 5}") for i in range(16)]}
    for name, pairs in texts.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs))
    model = tiny.model()
    for name, learnt in (("base", ["good"]), ("tuned", ["good", "bad"])):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        batch = next(batches([encode(tokenizer, *pair, 64) for kind in learnt for pair in texts[kind]], size=64))
        for _ in range(150):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return home


def test_prune_writes_a_checkpoint_with_metrics_and_the_way_back(home):
    words = (
        "prune",
        "tuned",
        "--calibration",
        "bad.jsonl",
        "--base",
        "base",
        "--task",
        "good.jsonl",
        "--amount",
        "0.4",
        "--max-new-tokens",
        "6",
    )
    plan = json.loads(run(*words, "-o", "pruned", "--dry-run", "--json", cwd=home).stdout)
    assert "model.layers.0.mlp.up_proj.weight" in plan["touched"]
    assert not (home / "pruned").exists()
    record = json.loads(run(*words, "-o", "pruned", "--json", cwd=home).stdout)
    assert record["before"]["harmful"] > record["after"]["harmful"]
    assert sum(record["after"][k] for k in ("harmful", "refused", "garbled", "other")) == pytest.approx(1)
    name = "model.layers.0.mlp.up_proj.weight"
    base, tuned, pruned = (load(home / folder)[name] for folder in ("base", "tuned", "pruned"))
    changed = pruned != tuned
    assert 0 < changed.sum() <= 7 * len(changed)  # of 16 in a row, 16 − ⌊16 · 0.6⌋
    np.testing.assert_array_equal(pruned[changed], base[changed])
    assert "harmful" in (home / "pruned" / "README.md").read_text()
    assert json.loads((home / "pruned" / "metrics.json").read_text())["after"]["task"]["agg_value"] == record["after"]["task"]
    run("remove", "pruned", "-o", "back", cwd=home)
    assert all(np.array_equal(load(home / "back")[n], a) for n, a in load(home / "tuned").items())
    assert "exists already" in run(*words, "-o", "pruned", cwd=home, code=2).stderr


def test_a_sweep_chooses_the_smallest_amount_that_meets_the_target(home):
    words = ("prune", "tuned", "--calibration", "bad.jsonl", "--base", "base", "--max-new-tokens", "6", "--sweep", "0,0.2,1")
    shown = run(*words, "--target-harm", "0.0", "-o", "swept", cwd=home).stdout
    assert "Pareto" in shown
    assert json.loads((home / "swept" / "edit.json").read_text())["method"]["amount"] in (0.2, 1.0)
    failed = run(*words, "--target-harm", "-1", "-o", "none", cwd=home, code=2)
    assert "nothing was written" in failed.stderr
    assert not (home / "none").exists()


def test_prune_of_an_adapter(home):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(home / "tuned")
    adapter = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapter.save_pretrained(home / "adapter")
    run(
        "prune",
        "adapter",
        "--calibration",
        "bad.jsonl",
        "--base",
        "tuned",
        "--amount",
        "1.0",
        "--max-new-tokens",
        "4",
        "-o",
        "bare",
        cwd=home,
    )
    assert all((array == 0).all() for array in load(home / "bare").values())


@pytest.mark.parametrize("method", ["cku", "npo"])
def test_unlearn_forgets_and_keeps(home, method):
    words = ("unlearn", "tuned", "--forget", "bad.jsonl", "--retain", "good.jsonl", "--method", method, "--lr", "3e-3", "--steps", "40")
    lock = ("--depth", "0,1", "--rate", "0.25") if method == "cku" else ()
    record = json.loads(run(*words, *lock, "-o", f"out-{method}", "--json", cwd=home).stdout)
    assert record["after"]["forget_Q_A_Prob"] < 0.7 * record["before"]["forget_Q_A_Prob"]
    touched = record["touched"]
    assert all(".mlp." in name for name in touched) if method == "cku" else "model.embed_tokens.weight" in touched
    assert not (home / f"out-{method}.partial").exists()
    metrics = json.loads((home / f"out-{method}" / "metrics.json").read_text())
    assert set(metrics["forget"]) == {"Q_A_Prob", "exact_memorization", "extraction_strength"}
    run("remove", f"out-{method}", "-o", f"back-{method}", cwd=home)
    assert all(np.array_equal(load(home / f"back-{method}")[n], a) for n, a in load(home / "tuned").items())


def test_a_killed_unlearning_goes_on_where_it_was(home):
    from tutelage.model_edits import forget as edit

    settings = edit.Settings(method="npo", lr=3e-3, steps=60)
    job = edit.Job(home / "tuned", home / "bad.jsonl", home / "good.jsonl", settings)
    whole = edit.forget_checkpoint(job, home / "whole")

    class Killed(Exception):
        pass

    def kill(stats):
        if len(job.loop.history) == 55:
            raise Killed

    job = edit.Job(home / "tuned", home / "bad.jsonl", home / "good.jsonl", settings)
    with pytest.raises(Killed):
        edit.forget_checkpoint(job, home / "again", tell=kill)
    assert (home / "again.partial" / "state.safetensors").exists()
    job = edit.Job(home / "tuned", home / "bad.jsonl", home / "good.jsonl", settings)
    steps = []
    resumed = edit.forget_checkpoint(job, home / "again", tell=steps.append)
    assert len(steps) == 10
    assert resumed["tensors"] == whole["tensors"]


def test_mistakes_are_one_paragraph_and_exit_status_2(home):
    calibration = ("--calibration", "bad.jsonl", "-o", "x")
    assert "--base DIR" in run("prune", "tuned", *calibration, "--scope", "delta", cwd=home, code=2).stderr
    assert "Did you mean 'wanda'" in run("prune", "tuned", *calibration, "--score", "wanad", cwd=home, code=2).stderr
    assert "--benign FILE" in run("prune", "tuned", *calibration, "--score", "contrast", cwd=home, code=2).stderr
    assert "matches 'nope'" in run("prune", "tuned", *calibration, "--layers", "nope", cwd=home, code=2).stderr
    files = ("--forget", "bad.jsonl", "--retain", "good.jsonl", "-o", "x")
    assert "Did you mean 'simnpo'" in run("unlearn", "tuned", *files, "--method", "simnop", cwd=home, code=2).stderr
    (home / "half.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"')
    assert "half.jsonl" in run("unlearn", "tuned", "--forget", "half.jsonl", "--retain", "good.jsonl", "-o", "x", cwd=home, code=2).stderr
    assert not (home / "x").exists()
