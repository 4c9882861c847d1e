"""Merges against cases worked by hand, and recipes as mergekit writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from checkpoints import llama, load, random, save
from tutelage.edits.dare import dare
from tutelage.edits.linear import linear
from tutelage.edits.merge import Merge
from tutelage.edits.recipe import parse_recipe, read_recipe
from tutelage.edits.store import WeightStore
from tutelage.edits.task_arithmetic import task_arithmetic
from tutelage.edits.ties import ties, trim
from tutelage.edits.verify import verify
from tutelage.errors import TutelageError
from tutelage.registry import edits


def f(*values):
    return np.array(values, np.float32)


def test_the_four_are_registered_with_their_schema():
    assert {"dare", "linear", "task_arithmetic", "ties"} <= set(edits.names())
    assert all(edits.get(name).summary for name in edits.names())
    assert edits.get("ties").parameters["density"].default == 0.2
    with pytest.raises(TutelageError, match="Did you mean 'density'"):
        edits.get("ties").check({"densty": 1})


def test_linear_by_hand():
    np.testing.assert_allclose(linear([f(1, 2), f(3, 6)], weight=[1, 3]), f(2.5, 5))
    np.testing.assert_allclose(linear([f(1, 2), f(3, 6)], weight=[1, -1], normalize=False), f(-2, -4))
    with pytest.raises(TutelageError, match="set normalize: false"):
        linear([f(1), f(2)], weight=[1, -1])
    with pytest.raises(TutelageError, match="one finite number for each of the 2"):
        linear([f(1), f(2)], weight=[1, 2, 3])


def test_task_arithmetic_by_hand():
    base, models = f(1, 1), [f(2, 1), f(1, 5)]
    np.testing.assert_allclose(task_arithmetic(base, models, weight=[0.5, -1]), f(1.5, -3))
    np.testing.assert_allclose(task_arithmetic(base, models, weight=[1, 3], normalize=True, scale=2), f(1.5, 7))
    np.testing.assert_array_equal(base, f(1, 1))  # inputs stay as they were


def test_ties_by_hand():
    """Two of four kept: (3, -2, 0, 0) and (0, 4, 0, 6) and (-1, 0, 0, -7); elected signs +, +, +, -."""
    base = f(10, 10, 10, 10)
    taus = [f(3, -2, 1, 0), f(1, 4, -0.5, 6), f(-1, 0.5, 0.2, -7)]
    models = [base + tau for tau in taus]
    np.testing.assert_allclose(ties(base, models, density=0.5), base + f(3, 4, 0, -7))
    np.testing.assert_allclose(ties(base, models, density=1.0), base + f(2, 2.25, 0.6, -7))  # means of those that agree
    np.testing.assert_allclose(ties(base, models, density=1.0, normalize=False, scale=0.5), base + f(2, 2.25, 0.6, -3.5))
    weighted = ties(base, models, density=1.0, weight=[1, 3, 1])  # weighted sums: (5, 10.5, -0.3, 11)
    np.testing.assert_allclose(weighted, base + f((3 + 3) / 4, (12 + 0.5) / 4, -0.5, 6), rtol=1e-6)


def test_a_tie_in_the_election_is_positive_and_negative_weights_subtract():
    base = f(0)
    np.testing.assert_allclose(ties(base, [f(2), f(-2)], density=1.0), f(2))
    np.testing.assert_allclose(ties(base, [f(1), f(3)], density=1.0, weight=[1, -1], normalize=False), f(-3))
    with pytest.raises(TutelageError, match="density"):
        ties(base, [f(1)], density=0.0)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.floats(0.01, 1))
def test_trim_keeps_exactly_the_largest(values, density):
    delta = f(*values) + 0.25  # no zero: the kept can be counted
    kept = trim(delta, density)
    count = max(1, int(density * len(values)))
    assert np.count_nonzero(kept) == count
    assert sorted(np.abs(kept[kept != 0])) == sorted(np.abs(delta))[-count:]


def test_dare_by_hand():
    base, tau = np.full(20_000, 5, np.float32), f(1)
    merged = dare(base, [base + tau], np.random.default_rng(0), density=0.25) - base
    assert set(np.unique(merged)) == {0, 4}  # dropped, or 1 / 0.25
    assert merged.mean() == pytest.approx(1, abs=0.05)
    plain = dare(base, [base + tau], np.random.default_rng(0), density=0.25, rescale=False, scale=3) - base
    np.testing.assert_array_equal(plain != 0, merged != 0)
    assert plain.max() == 3
    models = [base + 1, base - 3]
    np.testing.assert_allclose(dare(base, models, np.random.default_rng(0), density=1.0, weight=0.5), base - 1)
    np.testing.assert_allclose(dare(base, models, np.random.default_rng(0), density=1.0, weight=0.5, sign_election=True), base - 1.5)
    np.testing.assert_allclose(dare(base, models, np.random.default_rng(0), density=1.0, normalize=True), base - 1)


@pytest.fixture
def three(tmp_path):
    return [save(tmp_path / name, random(seed), model_type="llama", dtype="float32") for seed, name in enumerate(("base", "one", "two"))]


def recipe(three, method, *, shared=None, own=None, **keys):
    models = [{"model": str(path), "parameters": dict(own or {})} for path in three[1:]]
    return {"merge_method": method, "base_model": str(three[0]), "models": models, "parameters": shared or {}} | keys


def run(table, out, **options):
    record = Merge(parse_recipe(table), **options).run(out)
    assert verify(WeightStore(out))["problems"] == []
    return record, load(out)


@pytest.mark.parametrize(
    ("method", "shared", "own", "function"),
    [
        ("linear", {}, {"weight": 0.3}, lambda b, m: linear(m)),
        ("task_arithmetic", {"lambda": 0.5}, {"weight": 0.7}, lambda b, m: task_arithmetic(b, m, weight=0.7, scale=0.5)),
        ("ties", {"density": 0.5, "int8_mask": True}, {}, lambda b, m: ties(b, m, density=0.5)),
        ("dare_linear", {}, {"density": 1.0}, lambda b, m: task_arithmetic(b, m)),
        ("dare_ties", {"normalize": True}, {"density": 1.0}, lambda b, m: ties(b, m, density=1.0)),
    ],
)
def test_a_recipe_does_what_its_function_says(three, tmp_path, method, shared, own, function):
    record, merged = run(recipe(three, method, shared=shared, own=own), tmp_path / "out")
    base, one, two = map(load, three)
    for name, array in merged.items():
        assert (array.dtype, array.shape) == (base[name].dtype, base[name].shape)
        truth = function(base[name], [one[name], two[name]]) if name != "model.steps" else base[name]
        np.testing.assert_allclose(array, truth, rtol=1e-6, atol=1e-6)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    used = three if method != "linear" else three[1:]
    for path in used:
        assert record["inputs"][str(path.resolve())]["model.norm.weight"] == WeightStore(path).fingerprint("model.norm.weight")


def test_the_masks_of_dare_follow_the_seed(three, tmp_path):
    table = recipe(three, "dare_ties", own={"density": 0.5})
    first, again, other = (run(table, tmp_path / str(i), seed=seed)[1]["model.embed_tokens.weight"] for i, seed in enumerate((0, 0, 1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_filters_choose_by_name_and_must_match(three, tmp_path):
    table = recipe(three, "task_arithmetic", own={"weight": [{"filter": "mlp", "value": 1.0}, {"value": 0.0}]})
    base, merged = load(three[0]), run(table, tmp_path / "out")[1]
    changed = [n for n in base if base[n].tobytes() != merged[n].tobytes()]
    assert changed == ["model.layers.0.mlp.weight"]
    table["models"][0]["parameters"]["weight"][0]["filter"] = "attention"
    with pytest.raises(TutelageError, match=r"'attention' of weight matches none of the 5 tensors"):
        Merge(parse_recipe(table))
    for model in table["models"]:
        model["parameters"]["weight"] = [{"filter": "mlp", "value": 1.0}]
    with pytest.raises(TutelageError, match="End the list with a value"):
        Merge(parse_recipe(table))


def test_the_base_among_the_models_is_no_task(three, tmp_path):
    table = recipe(three, "ties", own={"density": 0.5})
    expected = run(table, tmp_path / "a")[1]
    table["models"].insert(0, {"model": str(three[0])})
    again = run(table, tmp_path / "b")[1]
    assert all(expected[n].tobytes() == again[n].tobytes() for n in expected)


@pytest.mark.lm
def test_sharded_models_merge_and_load_in_another_format(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    paths = [llama(tmp_path / str(seed), seed=seed, tied=True) for seed in range(3)]
    run_to = tmp_path / "out"
    Merge(parse_recipe(recipe(paths, "task_arithmetic", own={"weight": 0.5}, dtype="float16"))).run(run_to)
    base, one, two, merged = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in [*paths, run_to])
    assert AutoModelForCausalLM.from_pretrained(run_to).dtype == torch.float16
    for name, tensor in merged.items():
        b = base[name].float()
        truth = b + 0.5 * (one[name].float() - b) + 0.5 * (two[name].float() - b)
        torch.testing.assert_close(tensor.float(), truth, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tie"}, "Did you mean 'ties'"),
        ({"merge_metod": "ties"}, "Did you mean 'merge_method'"),
        ({"base_model": None}, "needs base_model"),
        ({"base_model": "org/name"}, "hf download org/name"),
        ({"models": []}, "expected a list"),
        ({"models": ["x"]}, r"models\[0\] should be a mapping"),
        ({"dtype": "bf16"}, "Unknown number format"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"parameters": {"lamda": 1}}, "Did you mean 'lambda'"),
        ({"parameters": {"normalize": "yes"}}, "true or false"),
        ({"parameters": {"lambda": "1"}}, "expected a number"),
        ({"parameters": {"density": 0.5, "weight": [0.1, 0.5]}}, "gradient over layers"),
        ({"slices": []}, "slices"),
    ],
)
def test_bad_recipes_say_what_is_wrong(three, change, message):
    with pytest.raises(TutelageError, match=message):
        parse_recipe(recipe(three, "ties", shared={"density": 0.5}) | {"parameters": {"density": 0.5}} | change)


def test_density_must_be_given_and_yaml_be_yaml(three, tmp_path):
    with pytest.raises(TutelageError, match=r"models\[0\] has no density"):
        parse_recipe(recipe(three, "ties"))
    (tmp_path / "r.yaml").write_text("models: [")
    with pytest.raises(TutelageError, match="not valid YAML"):
        read_recipe(tmp_path / "r.yaml")
    with pytest.raises(TutelageError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_bad_numbers_and_settings_fail_before_or_without_output(three, tmp_path):
    with pytest.raises(TutelageError, match="set normalize: false"):
        Merge(parse_recipe(recipe(three, "linear", own={"weight": -1})))
    tensors = random(7)
    tensors["model.norm.weight"][1] = np.nan
    bad = save(tmp_path / "bad", tensors)
    with pytest.raises(TutelageError, match=r"model\.norm\.weight has NaN in .*bad"):
        Merge(parse_recipe(recipe([three[0], bad], "task_arithmetic"))).run(tmp_path / "out")
    tensors = random(7)
    tensors["model.steps"] += 1
    bad = save(tmp_path / "steps", tensors)
    with pytest.raises(TutelageError, match=r"model\.steps .* cannot be merged"):
        Merge(parse_recipe(recipe([three[0], bad], "task_arithmetic"))).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_of_a_merge(three, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(["base", "one", "two"], "ties", own={"density": 0.5}, dtype="bfloat16")))
    plan = Merge(read_recipe(tmp_path / "r.yaml")).plan()  # paths beside the recipe are found
    size = WeightStore(three[0]).nbytes
    assert (len(plan.touched), plan.copied, plan.bytes_in) == (4, 1, 3 * size)
    assert plan.bytes_out == (size - 32) / 2 + 32
    assert json.loads(json.dumps(plan.as_dict()))["skipped"]["model.steps"].startswith("not a floating-point tensor")
