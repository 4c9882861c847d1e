"""Distillation in TRL's trainers: the right distributions at the right places, however the batch is cut, and nothing without a check."""
# ruff: noqa: E402

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from datasets import Dataset

import tiny
from test_trl_ranks import raised, two_ranks
from tutelage.errors import TutelageError
from tutelage.objectives import Sum, TokenAverage, objective
from tutelage.objectives.compose import On
from tutelage.objectives.divergence import token_divergence
from tutelage.teachers import teacher
from tutelage.teachers.contract import Facts
from tutelage.trainers._gkd import choose_source
from tutelage.trainers.trl import GKDRule, complete_checkpoints, with_curriculum

SFT, GRPO = with_curriculum(trl.SFTTrainer), with_curriculum(trl.GRPOTrainer)


def big(seed: int = 7, **options: Any) -> Any:
    """A teacher with opinions: a tiny model whose output layer is blown up."""
    net = tiny.model(seed)
    with torch.no_grad():
        net.get_output_embeddings().weight.mul_(20)
    return teacher("local", model=net, tokenizer=tiny.tokenizer(), **options)


def rows(size: int = 24) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [f"{i:02d}="[i % 2 :] for i in range(size)], "completion": ["abc"[i % 3] * (1 + i % 5) for i in range(size)]}
    )


def sft(path: Path, loss: Any, *, given: Any = None, curriculum: Any = None, **options: Any) -> Any:
    ours = {k: options.pop(k) for k in ("eval_dataset", "peft_config", "data_rule") if k in options}
    return SFT(
        options.pop("model", None) or tiny.model(), args=tiny.sft_config(path, **options), train_dataset=rows(), objective=loss,
        processing_class=tiny.tokenizer(), teacher=given, curriculum=curriculum and tt.curriculum(curriculum, tt.TaskPool(arm=[0] * 24)),
        **ours,
    )  # fmt: skip


def grpo(path: Path, loss: Any, *, given: Any = None, curriculum: Any = "uniform", **options: Any) -> Any:
    data, pool = tiny.tasks()
    ours = {k: options.pop(k) for k in ("eval_dataset",) if k in options}
    return GRPO(
        options.pop("model", None) or tiny.model(), [tiny.digits, tiny.has_a], args=tiny.grpo_config(path, **options), train_dataset=data,
        processing_class=tiny.tokenizer(), teacher=given, objective=loss, curriculum=curriculum and tt.curriculum(curriculum, pool, seed=5),
        **ours,
    )  # fmt: skip


def trained(made: Any) -> np.ndarray:
    made.train()
    return tiny.weights(made.model).view(np.float32)


def logged(made: Any, name: str) -> list[float]:
    return [entry[name] for entry in made.state.log_history if name in entry]


# --- the right loss


@pytest.mark.parametrize("curriculum", [None, "uniform"])
def test_supervised_loss_and_gradient_are_those_of_the_definition(tmp_path: Path, curriculum: str | None) -> None:
    said = big()
    made = sft(tmp_path, objective("trl:gkd", beta=0.5), given=said, curriculum=curriculum)
    batch = made.data_collator([made.train_dataset[i] for i in range(6)])
    made.model.train()
    made.count_window([batch])
    outputs = made.trained_outputs(made.model, batch)
    loss = made.objective_loss(outputs)
    loss.backward()
    net = tiny.model()
    mask = batch["labels"][:, 1:] != -100
    logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    with torch.no_grad():
        theirs = said.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    truth = token_divergence(logits[mask], theirs[mask], kind="generalized_js", beta=0.5).mean()
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert truth > 0.1
    for (name, ours), other in zip(made.model.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(outputs.entropy[outputs.label_mask], entropy[mask], atol=1e-5, rtol=1e-4)
    picked = logp.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(outputs.log_probs[outputs.label_mask], picked[mask], atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in said.model.parameters())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_one_step_is_that_of_trls_gkd_trainer(tmp_path: Path, beta: float) -> None:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    said = big()
    options = tiny.sft_config(tmp_path, max_steps=2, per_device_train_batch_size=8, gradient_accumulation_steps=2).to_dict()
    kept = ("output_dir", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "report_to",
            "use_cpu", "disable_tqdm", "bf16", "gradient_checkpointing", "save_strategy", "logging_steps")  # fmt: skip
    options = {name: options[name] for name in kept} | {"train_sampling_strategy": "sequential"}
    ours = sft(tmp_path, objective("trl:gkd", beta=beta), given=said, **options)
    theirs = GKDTrainer(
        tiny.model(), copy.deepcopy(said.model), args=GKDConfig(**options, lmbda=0.0, beta=beta), processing_class=tiny.tokenizer(),
        train_dataset=ours.train_dataset, data_collator=ours.data_collator,
    )  # fmt: skip
    np.testing.assert_allclose(trained(ours), trained(theirs), atol=2e-4)
    np.testing.assert_allclose(logged(ours, "loss"), logged(theirs, "loss"), rtol=1e-4)
    assert np.abs(trained(ours) - tiny.weights(tiny.model()).view(np.float32)).max() > 1e-2


def test_on_policy_places_are_those_of_the_answers_own_tokens(tmp_path: Path) -> None:
    said = big()
    made = grpo(tmp_path, objective("distill", kind="reverse_kl"), given=said, curriculum=None)
    torch.manual_seed(3)
    prompt, answer = torch.randint(3, 40, (4, 5)), torch.randint(3, 40, (4, 6))
    prompt_mask, mask = torch.ones_like(prompt), torch.ones_like(answer)
    prompt_mask[0, :3], mask[1, 4:], mask[2] = 0, 0, 0
    inputs = {"prompt_ids": prompt, "prompt_mask": prompt_mask, "completion_ids": answer, "completion_mask": mask}
    from tutelage.trainers._distillation import grpo_columns

    columns = grpo_columns(made, made.model, inputs, mask.bool())
    for b in (0, 1, 3):
        ids = torch.cat([prompt[b][prompt_mask[b].bool()], answer[b][mask[b].bool()]])[None]
        start, length = int(prompt_mask[b].sum()), int(mask[b].sum())
        for net, key in ((tiny.model(), "logp_BTV"), (said.model, "teacher_logp_BTV")):
            logp = net(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(columns[key][b, :length].log_softmax(-1), logp, atol=1e-4, rtol=1e-4)
    assert columns["teacher_logp_BTV"][2].isnan().all()
    theirs = made.token_columns(made.model, inputs)
    torch.testing.assert_close(columns["logp_BT"][mask.bool()], theirs[0][mask.bool()], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(columns["entropy_BT"][mask.bool()], theirs[1][mask.bool()], atol=1e-5, rtol=1e-4)


def test_a_policy_beside_a_teacher_of_weight_0_is_the_policy_alone(tmp_path: Path) -> None:
    policy = objective("trl:dapo")
    options = {"loss_type": "dapo", "temperature": 0.8, "gradient_accumulation_steps": 2}
    alone = trained(grpo(tmp_path, policy, **options))
    beside = Sum({"policy": (policy, 1.0), "teach": (objective("gkd"), 0.0)})
    np.testing.assert_allclose(trained(grpo(tmp_path, beside, given=big(), **options)), alone, atol=2e-4)


def test_on_policy_distillation_pulls_the_student_to_the_teacher(tmp_path: Path) -> None:
    settings = {"max_steps": 30, "learning_rate": 3e-2, "num_generations": 2, "per_device_train_batch_size": 16}
    made = grpo(tmp_path, objective("distill", kind="reverse_kl"), given=big(), **settings)
    made.train()
    divergence = logged(made, "objective/mean")
    assert np.mean(divergence[-5:]) < 0.5 * np.mean(divergence[:5])
    assert "reward" in made.state.log_history[0]  # rewards feed the log alone
    both = grpo(tmp_path, Sum({"policy": (objective("dapo"), 1.0), "teach": (objective("gkd"), 0.5)}), given=big())
    both.train()
    assert {"objective/policy/loss", "objective/teach/loss"} <= set(both.state.log_history[0])


def test_every_entry_of_a_top_k_is_the_dense_teacher(tmp_path: Path) -> None:
    dense = trained(sft(tmp_path, objective("distill"), given=big()))
    for policy in ("tail", "renormalise"):
        loss = objective("distill_top_k", missing_mass=policy)
        np.testing.assert_allclose(trained(sft(tmp_path, loss, given=big(top_k=43, missing_mass=policy))), dense, atol=2e-4)
    few = trained(sft(tmp_path, objective("distill_top_k"), given=big(top_k=3)))
    assert np.abs(few - dense).max() > 1e-3


def test_padded_embeddings_are_cut_on_both_sides(tmp_path: Path) -> None:
    dense = trained(sft(tmp_path, objective("gkd"), given=big()))
    wide, student = big(), tiny.model()
    for net, size in ((wide.model, 64), (student, 48)):
        net.resize_token_embeddings(size, mean_resizing=False)
        net.get_output_embeddings().weight.data[43:] = 1.0
    made = sft(tmp_path, objective("gkd"), given=teacher("local", model=wide.model, tokenizer=tiny.tokenizer()), model=student)
    made.train()
    found = np.concatenate(
        [p.detach()[:43].numpy().ravel() if p.shape[0] == 48 else p.detach().numpy().ravel() for p in made.model.parameters()]
    )
    np.testing.assert_allclose(found, dense, atol=2e-4)


# --- however it is cut


@pytest.mark.parametrize("name", ["gkd", "trl:gkd"])
def test_accumulation_changes_nothing(tmp_path: Path, name: str) -> None:
    options = {"max_steps": 3, "train_sampling_strategy": "sequential"}
    one = trained(sft(tmp_path, objective(name), given=big(), per_device_train_batch_size=8, **options))
    for size in (4, 2):
        cut = sft(
            tmp_path, objective(name), given=big(), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **options
        )
        np.testing.assert_allclose(trained(cut), one, atol=2e-4)


def _two_sft(path: Path, size: int) -> Any:
    made = sft(path, objective("gkd"), given=big(), curriculum="uniform", per_device_train_batch_size=size, gradient_accumulation_steps=2)
    return [trained(made), logged(made, "objective/mean")]


def _two_grpo(path: Path) -> Any:
    loss = Sum({"policy": (objective("trl:dapo"), 1.0), "teach": (objective("gkd"), 1.0)})
    made = grpo(path, loss, given=big(), per_device_train_batch_size=6, gradient_accumulation_steps=2)
    return trained(made)


def test_two_processes(tmp_path: Path) -> None:
    alone = _two_sft(tmp_path / "one", 6)
    first, second = raised(two_ranks(_two_sft, tmp_path / "two", 3))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[0], alone[0], atol=2e-3)
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-3)
    np.testing.assert_array_equal(*raised(two_ranks(_two_grpo, tmp_path / "three")))


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    for make in (sft, grpo):
        unbroken = make(tmp_path / make.__name__, objective("gkd"), given=big(), curriculum="uniform", **options)
        unbroken.train()
        checkpoint = complete_checkpoints(tmp_path / make.__name__)[0]
        resumed = make(tmp_path / "again", objective("gkd"), given=big(), curriculum="uniform", **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))


def test_evaluation_is_trls_and_leaves_no_trace(tmp_path: Path) -> None:
    plain = sft(tmp_path, None, eval_dataset=rows()).evaluate()["eval_loss"]
    finals = []
    for extra in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rows()}):
        made = sft(tmp_path, objective("gkd"), given=big(), curriculum="uniform", **extra)
        if extra:
            assert made.evaluate()["eval_loss"] == plain
        finals.append(trained(made))
    np.testing.assert_array_equal(*finals)


def test_the_teacher_stays_as_it_was(tmp_path: Path) -> None:
    said = big()
    said.model.train()
    before, state = tiny.weights(said.model).copy(), torch.get_rng_state()
    said.score(torch.full((2, 5), 7))
    assert torch.equal(state, torch.get_rng_state())
    made = sft(tmp_path, objective("gkd"), given=said)
    made.train()
    assert said.model.training
    assert all(p.requires_grad and p.grad is None for p in said.model.parameters())
    np.testing.assert_array_equal(tiny.weights(said.model), before)


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = sft(tmp_path, objective("gkd"), given=big(), peft_config=config, max_steps=2)
    made.train()
    assert len(logged(made, "objective/mean")) == 2


def test_only_trained_places_reach_the_output_layer(tmp_path: Path) -> None:
    made = sft(tmp_path, objective("gkd"), given=big())
    batch = made.data_collator([made.train_dataset[i] for i in range(6)])
    seen: list[Any] = []
    made.model.get_output_embeddings().register_forward_hook(lambda module, arguments, output: seen.append(tuple(output.shape)))
    made.trained_outputs(made.model, batch)
    longest = int((batch["labels"][:, 1:] != -100).sum(1).max())
    assert seen == [(6, longest, 43)]
    assert longest < batch["input_ids"].shape[1] - 1


# --- whose text


@pytest.mark.parametrize(("lmbda", "seq_kd", "frequency"), [
    (0.0, False, (0, 0, 1)), (0.0, True, (0, 1, 0)), (1.0, False, (1, 0, 0)), (1.0, True, (1, 0, 0)), (0.3, False, (0.3, 0, 0.7)),
    (0.3, True, (0.3, 0.7, 0)),
])  # fmt: skip
def test_the_source_is_drawn_as_gkd_says(lmbda: float, seq_kd: bool, frequency: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    found = [choose_source(rng, lmbda, seq_kd) for _ in range(4000)]
    shares = [found.count(name) / 4000 for name in ("student", "teacher", "data")]
    np.testing.assert_allclose(shares, frequency, atol=0 if lmbda in (0, 1) else 0.02)


def windows(made: Any) -> list[list[dict[str, torch.Tensor]]]:
    """The micro-batches of every step as they are trained."""
    seen: list[Any] = []
    usual = made.count_window
    made.count_window = lambda batches: (seen.append(batches), usual(batches))
    made.train()
    return seen


def test_the_students_own_answers_to_the_datas_prompts(tmp_path: Path) -> None:
    rule = GKDRule(lmbda=1.0, max_new_tokens=5, temperature=1.0)
    options = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2, "learning_rate": 0.0, "max_steps": 2}
    made = sft(tmp_path, objective("gkd"), given=big(), data_rule=rule, **options)
    seen = windows(made)
    assert len(seen) == 2
    before = torch.get_rng_state()
    made.sourced(seen[0])
    assert torch.equal(before, torch.get_rng_state())
    assert made.model.training
    number, distinct = 0, set()
    for batch in (batch for window in seen for batch in window):
        for ids, labels, attention in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            source = made.train_dataset[number]
            prompt = [i for i, label in zip(source["input_ids"], source["labels"], strict=True) if label == -100]
            trained = labels != -100
            assert ids[: len(prompt)].tolist() == prompt
            assert not trained[: len(prompt)].any()
            answer = ids[trained].tolist()
            assert ids[attention.bool()].tolist() == prompt + answer
            assert 1 not in answer[:-1]
            assert len(answer) == 5 or answer[-1] == 1
            distinct.add(tuple(answer))
            number += 1
    assert number == 16
    assert len(distinct) > 12
    assert set(logged(made, "gkd/student")) == {1.0}


def test_teachers_answers_are_the_teachers(tmp_path: Path) -> None:
    rule = GKDRule(lmbda=0.0, seq_kd=True, max_new_tokens=4, temperature=0.01)
    said = big()
    seen = windows(sft(tmp_path, objective("gkd"), given=said, data_rule=rule, max_steps=1))
    batch = seen[0][0]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        start, length = int((labels != -100).long().argmax()), int((labels != -100).sum())
        with torch.no_grad():
            best = said.model(input_ids=ids[None, : start + length]).logits[0].argmax(-1)
        assert ids[start : start + length].tolist() == best[start - 1 : start + length - 1].tolist()


def test_mixed_sources_resume_exactly(tmp_path: Path) -> None:
    rule = GKDRule(lmbda=0.5, max_new_tokens=4)
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "curriculum": "uniform", "given": big(), "data_rule": rule}
    unbroken = sft(tmp_path / "a", objective("gkd"), **options)
    unbroken.train()
    assert 0 < np.mean(logged(unbroken, "gkd/student")) < 1
    resumed = sft(tmp_path / "b", objective("gkd"), **options)
    resumed.train(resume_from_checkpoint=str(complete_checkpoints(tmp_path / "a")[0]))
    np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
    assert logged(resumed, "gkd/student") == logged(unbroken, "gkd/student")


def _two_writers(path: Path) -> Any:
    made = sft(path, objective("gkd"), given=big(), data_rule=GKDRule(lmbda=0.5, max_new_tokens=4), max_steps=6)
    return [trained(made), logged(made, "gkd/student")]


def test_two_processes_draw_one_source(tmp_path: Path) -> None:
    first, second = raised(two_ranks(_two_writers, tmp_path))
    np.testing.assert_array_equal(first[0], second[0])
    assert 0 < np.mean(first[1]) < 1


def test_rules_that_cannot_be(tmp_path: Path) -> None:
    for bad in ({"lmbda": 1.1}, {"temperature": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(TutelageError, match="GKDRule takes lmbda from 0 to 1"):
            GKDRule(**bad)
    with pytest.raises(TutelageError, match="only a teacher that scores any text"):
        sft(tmp_path, objective("nll"), data_rule=GKDRule())


# --- nothing without a check


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    other = tiny.tokenizer()
    other.add_tokens(["ab"])
    wide = tiny.model()
    wide.resize_token_embeddings(44, mean_resizing=False)
    template = tiny.tokenizer()
    template.chat_template = "{{ messages }}"
    net = tiny.model()
    gkd, sparse = objective("gkd"), objective("distill_top_k")
    for given, loss, message in (
        (teacher("local", model=wide, tokenizer=other), gkd, r"tokenizer \(\w+\) is not the student's"),
        (teacher("local", model=tiny.model(), tokenizer=template), gkd, "chat template .* is not the student's"),
        (big(top_k=4), gkd, r"its top 4\. Take an objective of a top k"),
        (big(), sparse, r"Build it with top_k="),
        (big(top_k=4, missing_mass="zero"), sparse, r"missing_mass='tail' outside the top 4, the teacher 'zero'"),
        (big(temperature=2.0), objective("kd"), r"at temperature 2 already.* teacher_temperature=1 for 2 in all"),
        (big(), objective("nll"), "nothing reads its scores"),
        (big(), None, "nothing reads its scores"),
        ("local", gkd, r"teacher='local' neither scores text nor intervenes"),
        (None, gkd, r"reads logp_BTV?.*|reads teacher_logp_BTV, which SFT does not have\. Give the trainer a teacher"),
    ):
        with pytest.raises(TutelageError, match=message):
            sft(tmp_path, loss, given=given)
    with pytest.raises(TutelageError, match="the very model that is trained"):
        sft(tmp_path, gkd, given=teacher("local", model=net, tokenizer=tiny.tokenizer()), model=net)
    with pytest.raises(TutelageError, match="packing cannot go with"):
        sft(tmp_path, gkd, given=big(), packing=True, packing_strategy="wrapped", max_length=8)
    with pytest.raises(TutelageError, match="cast_lm_head_to_fp32 cannot go with"):
        grpo(tmp_path, gkd, given=big(), cast_lm_head_to_fp32=True)
    elsewhere = Sum({"policy": (objective("dapo"), 1.0), "soft": (On("demonstrations", gkd), 1.0)})
    with pytest.raises(TutelageError, match="reads demonstrations/teacher_logp_BTV: a teacher scores a trainer's own texts"):
        grpo(tmp_path, elsewhere, given=big())
    with pytest.raises(TutelageError, match=r"reads teacher_logp_BTV, which GRPO does not have\. Give the trainer a teacher"):
        grpo(tmp_path, gkd)


def test_a_part_of_a_sum_is_checked_too_and_switches_that_say_it_pass(tmp_path: Path) -> None:
    hard = (TokenAverage(key="logp_BT", scale=-1.0), 0.5)
    with pytest.raises(TutelageError, match="at temperature 2 already"):
        sft(tmp_path, Sum({"soft": (objective("kd"), 0.5), "hard": hard}), given=big(temperature=2.0))
    finals = []
    for temperature, own in ((1.0, 2.0), (2.0, 1.0)):
        soft = objective("distill", temperature=2.0, teacher_temperature=own, scale_by_t2=True)
        finals.append(trained(sft(tmp_path, Sum({"soft": (soft, 0.5), "hard": hard}), given=big(temperature=temperature))))
    np.testing.assert_allclose(*finals, atol=2e-4)


class Recorded:
    """A teacher that only claims to have been recorded."""

    facts = Facts(tokenizer="t", chat_template="none", vocabulary=43, recorded=True)

    def score(self, *args: Any, **options: Any) -> Any:
        raise AssertionError


def test_a_record_is_no_use_on_policy(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="knows only the texts that were recorded, and GRPO trains on new ones"):
        grpo(tmp_path, objective("gkd"), given=Recorded())
