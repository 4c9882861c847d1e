"""The built-in student: a stock directory, as good as its card says on tasks it never saw, and moved by GRPO."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tutelage.students import builtin_path

pytestmark = pytest.mark.lm


@pytest.fixture(scope="module")
def bench():
    from tutelage.study.cell import Bench
    from tutelage.study.config import make_run

    return Bench(make_run(None, {"steps": 24}, ["evaluation.points=1", "evaluation.tasks_per_arm=16"]))


def test_the_directory_is_small_stock_and_complete():
    path = builtin_path()
    names = {p.name for p in path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"} <= names
    assert sum(p.stat().st_size for p in path.iterdir()) < 10e6
    assert json.loads((path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_tokenizer_round_trips_and_knows_the_wording():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_path())
    text = "Find the Greatest Common Divisor (GCD) of these numbers: 12, 18. Give only the GCD as your final answer."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < 10
    assert tokenizer.unk_token_id not in tokenizer("abc XYZ 0123456789 × ()+-*/", add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_it_does_what_its_card_says_on_tasks_it_never_saw(bench):
    from tutelage.study import engines
    from tutelage.study.evaluate import evaluate
    from tutelage.tasks.reasoning_gym import is_heldout

    record = json.loads((builtin_path() / "training.json").read_text())
    model, tokenizer = engines.load_model(bench.run)
    config = engines.make_config(bench.run, _uniform(), seed=0, max_steps=1, output_dir=builtin_path().parent)
    tasks = bench.held_out(tokenizer, config)
    assert all(is_heldout(p) for p in bench.tasks.heldout.columns["prompt"])
    assert not any(is_heldout(p) for p in bench.tasks.train.columns["prompt"][:500])
    found = dict(zip(bench.arm_names, evaluate(model, tokenizer, tasks).by_arm, strict=True))
    told = {f"{family}/{i}": rate for family, rates in record["sampled"].items() for i, rate in enumerate(rates, 1)}
    difference = np.array([found[name] - told[name] for name in found])
    assert abs(difference.mean()) < 0.04  # 28 arms of 16 tasks: a standard error of 0.02
    rates = np.array(list(told.values()))
    assert rates.min() < 0.06
    assert rates.max() > 0.6
    assert max(max(r) for r in record["greedy"].values()) > 0.95


@pytest.mark.slow
def test_grpo_moves_it(bench, tmp_path):
    from tutelage.study.cell import Job, run_cell

    record = run_cell(bench, Job("uniform", _uniform(), 0, ("updates", 24.0)), tmp_path, lambda info: None)
    before, after = record["curve"]["accuracy"]
    assert after > before + 0.05


def _uniform():
    from tutelage.study.config import parse_arm

    return parse_arm("uniform")
