"""Packs on a live model: on and off to the bit, summed, and routed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from checkpoints import llama
from tutelage.edits.apply import apply
from tutelage.edits.packs.build import pack
from tutelage.edits.packs.pack import open_vector
from tutelage.edits.packs.rules import parse_rules, read_rules
from tutelage.edits.packs.second_moments import SecondMoments
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import diff
from tutelage.errors import TutelageError
from tutelage.model_edits.routing import PackRack, PromptRouter, TaskRouter, mean_embeddings
from tutelage.model_edits.second_moments import save_second_moments

pytestmark = pytest.mark.lm


def bits(model):
    return {n: t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.dtype == torch.bfloat16 else t.numpy().tobytes()
            for n, t in model.state_dict().items()}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["own_head", "tied"])
def home(request, tmp_path_factory):
    """A bfloat16 model, two tuned ones, their packs and a task vector."""
    folder = tmp_path_factory.mktemp("models")
    llama(folder / "base", seed=0, tied=request.param)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    for seed, name in ((1, "math"), (2, "code")):
        tuned = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += (0.02 * torch.randn(parameter.shape, generator=generator)).to(torch.bfloat16)
        tuned.save_pretrained(folder / name)
        pack(WeightStore(folder / "base"), WeightStore(folder / name), folder / f"{name}.safetensors", rules=read_rules(None))
    diff(WeightStore(folder / "base"), WeightStore(folder / "code"), folder / "vector.safetensors")
    return folder, base


def rack_of(home, **more):
    folder, model = home
    return PackRack(model, {"math": folder / "math.safetensors", "code": open_vector(folder / "code.safetensors"), **more})


def test_loading_is_what_apply_writes_and_unloading_leaves_no_trace(home, tmp_path):
    folder, model = home
    rack, before = rack_of(home, vector=folder / "vector.safetensors"), bits(model)
    for names, scale in ((("math",), 1.0), (("math", "code"), 0.5), (("vector",), 1.0)):
        out = tmp_path / "-".join(names)
        apply(WeightStore(folder / "base"), [rack.packs[n] for n in names], out, scale=scale)
        truth = {n: t.view(torch.uint8).numpy().tobytes() for f in out.glob("*.safetensors") for n, t in load_torch(f).items()}
        rack.load(*names, scale=scale)
        assert rack.loaded == names
        now = bits(model)
        assert {n: now[n] for n in truth} == truth
        assert now != before
    rack.unload()
    assert bits(model) == before
    assert rack.loaded == ()


def test_blocks_nest_and_give_back_what_was_on(home):
    rack, model = rack_of(home), home[1]
    before = bits(model)
    with rack.on("math", scale=0.5):
        outer = bits(model)
        with rack.on("code") as inner:
            assert inner is model
            assert rack.loaded == ("code",)
        assert rack.loaded == ("math",)
        assert bits(model) == outer
        with pytest.raises(RuntimeError), rack.on("code"):
            raise RuntimeError
        assert bits(model) == outer
    assert bits(model) == before


def test_logits_without_the_pack_are_those_of_the_base(home):
    rack, model = rack_of(home), home[1]
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        before = model(tokens).logits
        with rack.on("math"):
            during = model(tokens).logits
        after = model(tokens).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, during)


def test_another_model_and_unknown_names_are_refused(home):
    folder, model = home
    other = AutoModelForCausalLM.from_pretrained(folder / "math", dtype=torch.bfloat16)
    with pytest.raises(TutelageError, match=r"another base than the loaded model: .* tensors differ"):
        PackRack(other, {"code": folder / "code.safetensors"})
    with pytest.raises(TutelageError, match="tensors differ"):  # the same numbers in another format
        PackRack(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), {"code": folder / "code.safetensors"})
    rack, before = rack_of(home), bits(model)
    with pytest.raises(TutelageError, match="Did you mean 'math'"):
        rack.load("maths")
    with pytest.raises(TutelageError, match="does not fit BF16"):
        rack.load("math", scale=1e39)
    assert bits(model) == before


def test_prompts_go_to_their_packs_and_come_back_in_order(home):
    rack, seen = rack_of(home), []

    def run(prompts):
        seen.append((rack.loaded, list(prompts)))
        return [f"{p}/{'+'.join(rack.loaded)}" for p in prompts]

    assert rack.route(list("abcd"), ["code", None, "math", "code"], run) == ["a/code", "b/", "c/math", "d/code"]
    assert seen == [(("code",), ["a", "d"]), ((), ["b"]), (("math",), ["c"])]
    with pytest.raises(TutelageError, match="2 prompts and 1 routes"):
        rack.route(["a", "b"], [None], run)
    with pytest.raises(TutelageError, match="0 results for 1 prompts"):
        rack.route(["a"], [None], lambda prompts: [])


def test_lookup_by_task():
    router = TaskRouter({"sums": "math", "chat": None})
    assert (router("sums"), router("chat")) == ("math", None)
    with pytest.raises(TutelageError, match="Did you mean 'sums'"):
        router("sum")
    assert TaskRouter({"sums": "math"}, strict=False)("sum") is None


def features(rng, size, shift):
    return rng.normal(size=(size, 5)) + np.eye(5)[shift] * 6


@pytest.mark.parametrize("labels", [["math", "code"], ["math", "code", None]])
def test_a_learned_router_finds_its_packs_and_abstains_between_them(labels, tmp_path):
    rng = np.random.default_rng(0)
    x = np.concatenate([features(rng, 40, i) for i in range(len(labels))])
    router = PromptRouter(threshold=0.9).fit(x, [label for label in labels for _ in range(40)])
    fresh = np.concatenate([features(rng, 50, i) for i in range(len(labels))])
    truth = [label for label in labels for _ in range(50)]
    assert np.mean([a == b for a, b in zip(router(fresh), truth, strict=True)]) > 0.9
    np.testing.assert_allclose(router.probabilities(fresh).sum(axis=1), 1)
    between = router.mean_D[None]  # as far from one as from the other
    assert router(between) == [None]
    assert PromptRouter(threshold=0.0).fit(x, [label or "base" for label in labels for _ in range(40)])(between) != [None]
    router.save(tmp_path / "r.json")
    again = PromptRouter.load(tmp_path / "r.json")
    np.testing.assert_array_equal(again.probabilities(fresh), router.probabilities(fresh))
    assert again(fresh) == router(fresh)


def test_the_router_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    for classes in (2, 3):
        x, y = rng.normal(size=(60, 4)), rng.integers(classes, size=60)
        router = PromptRouter().fit(x, [str(k) for k in y])
        z = (x - x.mean(axis=0)) / x.std(axis=0)
        truth = LogisticRegression(max_iter=1000).fit(z, y).predict_proba(z)
        np.testing.assert_allclose(router.probabilities(x), truth, atol=1e-9)


def test_a_router_objects_to_what_it_cannot_learn_from(tmp_path):
    for build, message in (
        (lambda: PromptRouter(threshold=2), "lies in"),
        (lambda: PromptRouter()(np.zeros((1, 2))), "not learned"),
        (lambda: PromptRouter().save(tmp_path / "r.json"), "nothing to save"),
        (lambda: PromptRouter().fit(np.zeros((2, 2)), ["a", "a"]), "two packs at least"),
        (lambda: PromptRouter().fit(np.zeros((2, 2)), ["a"]), "1 labels"),
        (lambda: PromptRouter().fit(np.full((2, 2), np.nan), ["a", "b"]), "finite"),
        (lambda: PromptRouter.load(tmp_path / "none.json"), "Cannot read a router"),
    ):
        with pytest.raises(TutelageError, match=message):
            build()
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(TutelageError, match="not a router"):
        PromptRouter.load(tmp_path / "bad.json")


def test_prompts_are_told_apart_by_their_mean_embedding(home):
    model, rng = home[1], np.random.default_rng(0)
    tokens = torch.from_numpy(np.concatenate([rng.integers(0, 32, (30, 6)), rng.integers(32, 64, (30, 6))]))
    mask = torch.ones_like(tokens)
    mask[:, 4:] = 0
    x = mean_embeddings(model, tokens, mask)
    truth = model.get_input_embeddings().weight.detach().double()[tokens[0, :4]].mean(dim=0)
    np.testing.assert_allclose(x[0], truth, rtol=1e-6)
    router = PromptRouter(threshold=0.5).fit(x[::2], ["low"] * 15 + ["high"] * 15)
    assert np.mean([a == b for a, b in zip(router(x[1::2]), ["low"] * 15 + ["high"] * 15, strict=True)]) > 0.8
    with pytest.raises(TutelageError, match="mask is all zero"):
        mean_embeddings(model, tokens, 0 * mask)


def test_statistics_of_inputs_do_not_depend_on_the_batches(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model, tokens = LlamaForCausalLM(config), torch.arange(48).reshape(8, 6) % 32
    seen = save_second_moments(model, [{"input_ids": tokens}], tmp_path / "one.safetensors")
    save_second_moments(model, [{"input_ids": tokens[:3]}, {"input_ids": tokens[3:]}], tmp_path / "two.safetensors")
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in ("one", "two"))
    name = "model.layers.0.self_attn.q_proj"
    assert seen[name] == 48
    assert one.keys() == two.keys() == {f"{n}.weight" for n in seen}
    for n in one:
        np.testing.assert_allclose(one[n], two[n], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens)).reshape(48, 16).numpy()
    np.testing.assert_allclose(one[f"{name}.weight"], 2 / 48 * x.T @ x, rtol=1e-4, atol=1e-6)
    with pytest.raises(TutelageError, match="does not exist yet"):
        save_second_moments(model, [{"input_ids": tokens}], tmp_path / "one.safetensors", layers=["mlp"])


def test_calibration_loses_less_of_what_a_layer_says(tmp_path):
    llama(tmp_path / "base", seed=0)
    llama(tmp_path / "tuned", seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.randint(0, 64, (16, 32), generator=torch.Generator().manual_seed(0))
    save_second_moments(model, [{"input_ids": tokens}], tmp_path / "h.safetensors", layers=["mlp", "attn"])
    statistics, stores = SecondMoments(tmp_path / "h.safetensors"), [WeightStore(tmp_path / n) for n in ("base", "tuned")]
    rules = parse_rules({"tensors": [{"match": "*", "operator": "quantized_delta", "bits": 3}]})
    before, after, loss = *({n: next(s.numbers(n, None)) for n in s.names} for s in stores), {}
    for name, calibration in (("plain", None), ("aware", statistics)):
        pack(*stores, tmp_path / f"{name}.safetensors", rules=rules, calibration=calibration)
        skill = open_vector(tmp_path / f"{name}.safetensors")
        loss[name] = []
        for tensor in (n for n in skill.names if statistics.gram(n) is not None):
            e = (after[tensor] - before[tensor]).reshape(skill.shape(tensor)) - skill.decode(tensor)
            loss[name].append(float(np.trace(e @ statistics.gram(tensor) @ e.T)))
    assert len(loss["plain"]) >= 14
    assert np.mean([a < b for a, b in zip(loss["aware"], loss["plain"], strict=True)]) > 0.9


def test_the_calibrate_command_feeds_the_pack_command(tmp_path):
    import tiny
    from test_edits_cli import ok, run

    for seed, name in enumerate(("base", "tuned")):
        tiny.model(seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "texts.jsonl").write_text('{"text": "one two three"}\n{"text": "four"}\n')
    calibrate = ("calibrate", "base", "texts.jsonl", "-o", "h.safetensors", "--layers", "mlp", "--per-pass", "2", "--json")
    plan = ok(*calibrate, "--dry-run", cwd=tmp_path)
    assert not (tmp_path / "h.safetensors").exists()
    made = ok(*calibrate, cwd=tmp_path)
    assert plan["layers"].keys() == made["tokens"].keys()
    assert plan["passes"] == -(-len(plan["layers"]) // 2)
    assert plan["bytes_out"] == sum(array.nbytes for array in load_file(tmp_path / "h.safetensors").values())
    assert made["tokens"] == dict.fromkeys(made["tokens"], len("one two three") + 1 + len("four") + 1)
    assert all("mlp" in name for name in made["tokens"])
    more = ("--recipe", "best", "--budget", "0.6", "--calibration", "h.safetensors")
    made = ok("pack", "base", "tuned", "-o", "p.safetensors", *more, "--json", cwd=tmp_path)
    assert made["share"] <= 0.6
    recipe = ok("diff", "base", "p.safetensors", "--json", cwd=tmp_path)["recipe"]
    assert recipe["calibration"].keys() == load_file(tmp_path / "h.safetensors").keys()
    done = run("calibrate", "base", "texts.jsonl", "-o", "h.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "not overwritten" in done.stderr
