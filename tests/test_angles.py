"""Angle concentration by hand, where states are found, prompts as segments, and a reader that resumes."""
# ruff: noqa: E402

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.lm
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig, PreTrainedTokenizerFast, Qwen3Config

import tiny
import tutelage as tt
from tutelage.errors import TutelageError
from tutelage.students import angles, builtin_path, reading
from tutelage.students.angles import OUTSIDE, PREFIX, QUESTION, angle_concentration, find_site, listening
from tutelage.students.parallel_answers import PAD, ParallelAnswers, SortingTasks, log_success
from tutelage.students.prompts import PromptTokens
from tutelage.students.reading import concentrations, like_lengths, model_fingerprint

THREE = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])


def ones(x_BTD: Tensor) -> Tensor:
    return torch.full(x_BTD.shape[:2], QUESTION)


def by_pairs(x_TD: Tensor, segment_T: Tensor, diagonal: bool) -> tuple[float, float]:
    """The definition, one pair after the other."""
    question, prefix = [x_TD[segment_T == s] for s in (QUESTION, PREFIX)]
    cos = torch.nn.functional.cosine_similarity
    intra = [float(cos(a, b, dim=0)) for i, a in enumerate(question) for j, b in enumerate(question) if diagonal or i != j]
    inter = [float(cos(a, b, dim=0)) for a in question for b in prefix]
    return (np.mean(intra) if intra else np.nan), (np.mean(inter) if inter else 0.0)


# --- the measure


def test_three_tokens_by_hand() -> None:
    intra, inter = angle_concentration(THREE, ones(THREE))
    assert intra.item() == pytest.approx(0.647603, abs=1e-6)
    assert inter.item() == 0
    assert angle_concentration(THREE, ones(THREE), include_diagonal=False)[0].item() == pytest.approx(0.471405, abs=1e-6)
    slip = torch.nn.functional.normalize(THREE[0], dim=0)  # over tokens, as the verl port: not this
    assert (slip @ slip.T).mean().item() == pytest.approx(0.444444, abs=1e-6)


def test_gradient_of_a_linear_map_is_the_double_sum() -> None:
    delta_TD = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    grad = delta_TD.T @ THREE[0]
    assert grad.tolist() == [[1, 1], [3, 1]]
    norm_T = THREE[0].norm(dim=1)
    cosine_TT = (THREE[0] @ THREE[0].T) / (norm_T[:, None] * norm_T)
    double = (norm_T[:, None] * norm_T * cosine_TT * (delta_TD @ delta_TD.T)).sum()
    assert double.item() == pytest.approx(12) == grad.square().sum().item()


@pytest.mark.parametrize("diagonal", [True, False])
def test_identical_and_orthogonal_tokens(diagonal: bool) -> None:
    same = torch.tensor([3.0, -4.0]).expand(1, 5, 2) * torch.arange(1, 6).view(1, 5, 1)
    assert angle_concentration(same, ones(same), include_diagonal=diagonal)[0].item() == pytest.approx(1, abs=1e-6)
    across = torch.eye(4).unsqueeze(0)
    assert angle_concentration(across, ones(across), include_diagonal=diagonal)[0].item() == pytest.approx(0.25 * diagonal, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(0, 5), st.integers(0, 3), st.booleans(), st.integers(0, 10_000))
def test_sums_are_the_pairs(question: int, prefix: int, padding: int, diagonal: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = question + prefix + padding + 1
    x_BTD = torch.randn(2, total, 3, generator=generator)
    kinds = torch.tensor([PREFIX] * prefix + [QUESTION] * question + [OUTSIDE] * (padding + 1))
    segment_BT = torch.stack([kinds, kinds[torch.randperm(total, generator=generator)]])  # segments need not be contiguous
    x_BTD[segment_BT == OUTSIDE] = float("nan")  # what stands under padding does not count
    intra_B, inter_B = angle_concentration(x_BTD, segment_BT, include_diagonal=diagonal)
    for b in range(2):
        expected = by_pairs(x_BTD[b], segment_BT[b], diagonal)
        np.testing.assert_allclose([intra_B[b].item(), inter_B[b].item() if question else 0.0], expected, atol=1e-5)


def test_weights_half_precision_and_tokens_without_direction() -> None:
    segment = torch.tensor([[PREFIX, QUESTION, QUESTION]])
    intra, inter = angle_concentration(THREE, segment)
    assert inter.item() == pytest.approx((0.707107 + 0) / 2, abs=1e-6)
    weighted = angle_concentration(THREE, segment, weights=(1.0, 8.0))
    assert weighted[0].item() == intra.item()
    assert weighted[1].item() == pytest.approx(8 * inter.item())
    assert angle_concentration(THREE.bfloat16(), segment)[0].dtype == torch.float32
    zero = torch.zeros(1, 2, 3)
    assert [x.item() for x in angle_concentration(zero, ones(zero))] == [0, 0]
    one = torch.ones(1, 1, 3)
    assert angle_concentration(one, ones(one))[0].item() == pytest.approx(1)
    assert angle_concentration(one, ones(one), include_diagonal=False)[0].isnan().item()


def test_what_is_no_segment_is_refused() -> None:
    for segment in (torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.int64)):
        with pytest.raises(TutelageError, match=r"integer segments \(B, T\) of 0, 1 and 2"):
            angle_concentration(THREE, segment)


# --- where states are found


def small(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(vocab_size=43, **options)).eval()


MODELS: dict[str, Any] = {
    "llama": tiny.model,
    "gpt2": lambda: small(GPT2Config, n_embd=16, n_layer=3, n_head=2, n_positions=32),
    "opt": lambda: small(OPTConfig, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
                         max_position_embeddings=32),
    "qwen3": lambda: small(Qwen3Config, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, head_dim=8),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_the_declared_layer(name: str) -> None:
    model = MODELS[name]().eval()
    ids = torch.arange(3, 13).view(1, 10)
    with torch.no_grad(), listening(find_site(model, site="block_output")) as out, listening(find_site(model)) as heard:
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    (x_BTD,) = heard
    assert x_BTD.reshape(1, 10, -1).shape[-1] == model.config.hidden_size
    final = next(m for n, m in model.named_modules() if n.split(".")[-1] in ("norm", "ln_f", "final_layer_norm") and "layers." not in n)
    torch.testing.assert_close(final(out[0]), states[-1])  # the last layer's output, before the final norm
    if name == "llama":
        block = model.model.layers[-1]
        mlp_TD = block.mlp(x_BTD)
        residual = out[0] - mlp_TD
        torch.testing.assert_close(block.post_attention_layernorm(residual), x_BTD)  # the input of the MLP, after the norm
    first = find_site(model, layer=0, site="block_output")
    with torch.no_grad(), listening(first) as low:
        model(input_ids=ids, use_cache=False)
    if model.config.num_hidden_layers > 1:
        torch.testing.assert_close(low[0], states[1])


def test_models_without_such_states_are_refused() -> None:
    with pytest.raises(TutelageError, match=r"Linear has no list of its decoder layers, so there are no hidden states"):
        find_site(nn.Linear(2, 2))
    with pytest.raises(TutelageError, match=r"layer=5, but LlamaForCausalLM has 1 decoder layers, -1 to 0"):
        find_site(tiny.model(), layer=5)
    with pytest.raises(TutelageError, match=r"Unknown site of hidden states 'mlp_inptu'. Did you mean 'mlp_input'"):
        find_site(tiny.model(), site="mlp_inptu")  # type: ignore[arg-type]
    strange = tiny.model()
    block = strange.model.layers[-1]
    block.hidden = block.mlp
    del block.mlp
    with pytest.raises(TutelageError, match=r"has no MLP known by name .*site='block_output'"):
        find_site(strange)


# --- prompts


def test_prefix_and_question_come_from_the_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(builtin_path())
    earlier = [{"role": "user", "content": "12"}, {"role": "assistant", "content": "12"}]
    chats = [[{"role": "user", "content": "sort 3 1"}], [*earlier, {"role": "user", "content": "12"}]]
    for chat, prefix, tokens in zip(
        chats, ["<|user|>", "<|user|>12<|assistant|>12<|end|><|user|>"], PromptTokens(tokenizer)(chats), strict=True
    ):
        assert tokens.id_T.tolist() == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        text = {s: tokenizer.decode(tokens.id_T[tokens.segment_T == s]) for s in (PREFIX, QUESTION, OUTSIDE)}
        assert text == {PREFIX: prefix, QUESTION: chat[-1]["content"], OUTSIDE: "<|assistant|>"}


def test_a_template_may_trim_and_must_not_meddle() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT.replace("m['content']", "m['content']|trim")
    (tokens,) = PromptTokens(tokenizer)([[{"role": "user", "content": "  ab "}]])
    assert tokenizer.decode(tokens.id_T[tokens.segment_T == QUESTION]) == "ab"
    tokenizer.chat_template = "{{ messages[0]['content']|length }}{{ messages[0]['content'] }}"
    with pytest.raises(TutelageError, match="does not leave what surrounds a question alone"):
        PromptTokens(tokenizer)([[{"role": "user", "content": "abc"}]])
    tokenizer.chat_template = None
    with pytest.raises(TutelageError, match="cannot render a conversation"):
        PromptTokens(tokenizer)([[{"role": "user", "content": "abc"}]])
    for wrong in ([["ab"]], [[{"role": "user", "content": [{"type": "image"}]}]], [[]], ["ab", [{"role": "user", "content": "b"}]]):
        with pytest.raises(TutelageError, match="A prompt must be a text, or a list of messages"):
            PromptTokens(tiny.tokenizer())(wrong)
    with pytest.raises(TutelageError, match="does not say which characters"):
        PromptTokens(object())


def test_texts_are_questions_but_for_special_tokens() -> None:
    tokenizer = tiny.tokenizer()
    from tokenizers.processors import TemplateProcessing

    raw = tokenizer.backend_tokenizer
    raw.post_processor = TemplateProcessing(single="? $A ?", special_tokens=[("?", 2)])
    (tokens,) = PromptTokens(PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="?"))(["ab"])
    assert tokens.segment_T.tolist() == [PREFIX, QUESTION, QUESTION, OUTSIDE]


# --- the reader


def words(size: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdef0123"), size=rng.integers(1, 12))) for _ in range(size)]


def test_columns_are_those_of_each_prompt_alone() -> None:
    model, tokenizer = tiny.model(dropout=0.3), tiny.tokenizer()
    model.train()
    prompts = [[{"role": "user", "content": word}] for word in words()]
    columns = concentrations(model, tokenizer, prompts, batch_tokens=64, chunk=16)
    assert model.training
    assert {name: value.dtype.kind for name, value in columns.items()} == {
        "angle_concentration": "f", "off_diagonal_concentration": "f", "inter_concentration": "f", "prompt_length": "i",
        "prefix_length": "i",
    }  # fmt: skip
    model.eval()
    for row, tokens in enumerate(PromptTokens(tokenizer)(prompts)):
        with torch.no_grad(), listening(find_site(model)) as heard:
            model(input_ids=torch.from_numpy(tokens.id_T)[None])
        intra, inter = by_pairs(heard[0][0], torch.from_numpy(tokens.segment_T), True)
        assert columns["angle_concentration"][row] == pytest.approx(intra + inter, abs=1e-5)
        assert columns["inter_concentration"][row] == pytest.approx(inter, abs=1e-5)
        assert columns["prompt_length"][row] == len(tokens.id_T)
        assert columns["prefix_length"][row] == 2
        alone = by_pairs(heard[0][0], torch.from_numpy(tokens.segment_T), False)[0] + inter
        np.testing.assert_allclose(columns["off_diagonal_concentration"][row], alone, atol=1e-5)  # NaN for a single token


def test_pools_data_sets_and_sequences_are_read_alike() -> None:
    data, _ = tiny.tasks()
    pool = tt.TaskPool(columns={"prompt": data["prompt"]})
    read = [concentrations(tiny.model(), tiny.tokenizer(), prompts) for prompts in (data, pool, list(data["prompt"]))]
    for other in read[1:]:
        np.testing.assert_equal(other, read[0])
    with pytest.raises(TutelageError, match="no column 'prompt' to read; the columns are number, level"):
        concentrations(tiny.model(), tiny.tokenizer(), data.remove_columns("prompt"))
    for nothing in ([], "a text"):
        with pytest.raises(TutelageError, match="sequence of at least one prompt"):
            concentrations(tiny.model(), tiny.tokenizer(), nothing)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    length_N = np.random.default_rng(0).integers(1, 50, size=200)
    batches = list(like_lengths(length_N, 128))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(b) * length_N[b].max() <= 128 or len(b) == 1 for b in batches)
    assert [len(b) for b in like_lengths(np.array([500, 3]), 128)] == [1, 1]


class Killed(Exception):
    pass


def test_a_killed_reading_goes_on_from_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompts = tiny.model(), tiny.tokenizer(), words()
    whole = concentrations(model, tokenizer, prompts, chunk=8)
    usual, passes = reading.read_states, []

    def counted(*args: Any) -> Any:
        passes.append(len(args[2]))
        if len(passes) == limit:
            raise Killed
        return usual(*args)

    monkeypatch.setattr(reading, "read_states", counted)
    limit = 3
    with pytest.raises(Killed):
        concentrations(model, tokenizer, prompts, cache=tmp_path / "c", chunk=8)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["chunk-000000.npz", "chunk-000001.npz", "manifest.json"]
    (tmp_path / "c" / "chunk-000001.npz").write_bytes(b"cut short")
    limit, passes[:] = 0, []
    np.testing.assert_equal(concentrations(model, tokenizer, prompts, cache=tmp_path / "c", chunk=8), whole)
    assert sum(passes) == 32  # all but the first chunk, the damaged one read anew
    passes.clear()
    np.testing.assert_equal(concentrations(model, tokenizer, prompts, cache=tmp_path / "c", chunk=8), whole)
    assert passes == []


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    model, tokenizer, prompts = tiny.model(), tiny.tokenizer(), words(6)
    cache = tmp_path / "c"
    concentrations(model, tokenizer, prompts, cache=cache)
    before = {p.name: p.read_bytes() for p in cache.iterdir()}
    other, third = tiny.tokenizer(), tiny.model()
    other.chat_template = "other"
    with torch.no_grad():
        third.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("model", (third, tokenizer, prompts), {}),
        ("layer", (model, tokenizer, prompts), {"site": "block_output"}),
        ("tokenizer", (model, other, prompts), {}),
        ("prompts", (model, tokenizer, [*prompts[:-1], "zz"]), {}),
        ("rows", (model, tokenizer, prompts[:-1]), {}),
        ("chunk", (model, tokenizer, prompts), {"chunk": 3}),
    ]
    for name, arguments, options in cases:
        with pytest.raises(TutelageError, match=f"belongs to something else and is not used.*{name}: the cache has"):
            concentrations(*arguments, cache=cache, **options)
    assert {p.name: p.read_bytes() for p in cache.iterdir()} == before
    (cache / "manifest.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(TutelageError, match="format: the cache has 'another'"):
        concentrations(model, tokenizer, prompts, cache=cache)
    (cache / "manifest.json").write_text("{")
    with pytest.raises(TutelageError, match="is damaged"):
        concentrations(model, tokenizer, prompts, cache=cache)
    (cache / "manifest.json").unlink()
    with pytest.raises(TutelageError, match="is not empty and holds no cache"):
        concentrations(model, tokenizer, prompts, cache=cache)


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    assert model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == model_fingerprint(model)
    assert model_fingerprint(tiny.model(seed=1)) != model_fingerprint(model)
    assert model_fingerprint(tiny.model().bfloat16()) != model_fingerprint(model)


def test_adapters_are_seen_through() -> None:
    from peft import LoraConfig, get_peft_model

    prompts = words(5)
    plain = concentrations(tiny.model(), tiny.tokenizer(), prompts)
    wrapped = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"]))  # starts as no change
    np.testing.assert_allclose(
        concentrations(wrapped, tiny.tokenizer(), prompts)["angle_concentration"], plain["angle_concentration"], atol=1e-6
    )


def test_a_site_that_nothing_passes_is_told() -> None:
    model = tiny.model()
    site = angles.Site(nn.Identity(), True, "output of an idle layer")
    with pytest.raises(TutelageError, match="nothing passed the output of an idle layer"):
        reading.read_states(model, site, [[3, 4]], [[2, 2]])


# --- the parallel-answers student


def test_cluttered_tasks_come_apart_in_length_and_difficulty() -> None:
    plain = SortingTasks.draw(np.random.default_rng(0), per_arm=200)
    tasks = plain.cluttered(np.random.default_rng(1), distractors=6, prefix=3)
    assert tasks.token_NT.shape[1] == 3 + 9 + 6
    assert (tasks.token_NT[:, :3] == torch.tensor([10, 11, 12])).all()
    length_N = (tasks.token_NT != PAD).sum(1).numpy() - 3
    digits_N = tasks.mask_NT.sum(1).numpy()
    extra_N = length_N - digits_N
    assert set(extra_N) == set(range(7))
    assert abs(np.corrcoef(extra_N, digits_N)[0, 1]) < 0.06
    for row in (0, 700, 1500):
        shown = tasks.token_NT[row, 3:].numpy()
        assert sorted(shown[shown < 10]) == tasks.answer_NT[row][tasks.mask_NT[row]].tolist()
        assert sorted(shown[shown < 10]) == sorted(plain.token_NT[row][plain.mask_NT[row]].tolist())
    assert len({tuple(np.flatnonzero(tasks.token_NT[row, 3:].numpy() < 10)) for row in range(200)}) > 10  # anywhere among the digits
    assert tasks.segment_NT[0].tolist() == [PREFIX] * 3 + [QUESTION] * length_N[0] + [OUTSIDE] * (15 - length_N[0])
    with pytest.raises(TutelageError, match="Only plain sorting tasks"):
        SortingTasks.draw(np.random.default_rng(0), per_arm=2, noise=True).cluttered(np.random.default_rng(0), distractors=2)


def test_the_student_offers_its_signals() -> None:
    tasks = SortingTasks.draw(np.random.default_rng(0), per_arm=80).cluttered(np.random.default_rng(1), distractors=3, prefix=2)
    student = ParallelAnswers(tasks, seed=0)
    rows_N = np.array([5, 600, 5])
    names = sorted(student.signal_names)
    found = student.signals(rows_N, names)
    assert list(found) == names
    x_BTD = student.blocks[0](student.embed(tasks.token_NT[rows_N]) + student.position_TD, (tasks.token_NT[rows_N] != PAD)[:, None, None])
    block = student.blocks[1]
    state: list[Tensor] = []
    hook = block.norm2.register_forward_hook(lambda module, args, output: state.append(output.detach()))
    block(x_BTD, (tasks.token_NT[rows_N] != PAD)[:, None, None])
    hook.remove()
    for b, row in enumerate(rows_N):
        intra, inter = by_pairs(state[0][b], tasks.segment_NT[row], True)
        assert found["angle_concentration"][b] == pytest.approx(intra + inter, abs=1e-5)
        assert found["prompt_length"][b] == (tasks.token_NT[row] != PAD).sum()
        assert found["loss"][b] == pytest.approx(-log_success(student, tasks, rows_N[b : b + 1]).item(), rel=1e-5)
    assert len(student.signals(np.arange(len(tasks)), ["loss"])["loss"]) == len(tasks)
