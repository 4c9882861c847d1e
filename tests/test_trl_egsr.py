"""EGSR in TRL's GRPO: the guided answer belongs to the un-guided prompt, whatever loss, filter, accumulation or number of processes."""
# ruff: noqa: E402

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from accelerate import PartialState

import tiny
from test_trl_ranks import raised, two_ranks
from test_trl_refill import Admit
from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.teachers.egsr import Egsr
from tutelage.trainers import _batches, _refill
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)
GUIDE = "{hint}{prompt}"


def tasks(hint: str = "ab", chat: bool = False) -> tuple[Any, tt.TaskPool]:
    data, pool = tiny.tasks(chat=chat)
    return data.add_column("solution", [f"{hint}{i % 5}" for i in range(24)]).add_column("answer", list(range(24))), pool


def guided(prompts: list[Any]) -> list[bool]:
    return [len(prompt if isinstance(prompt, str) else prompt[-1]["content"]) > 3 for prompt in prompts]


class Script:
    """Grades by where an answer came from: own attempts of even tasks fail, of odd tasks the first succeeds; guided ones succeed.

    A stand-in for a verifier; it tells guided from own rollouts by the trainer, since reward functions are shown un-guided prompts.
    """

    __name__ = "script"

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.fails, self.trainer, self.prompts = fails, None, []

    def __call__(self, prompts: list[Any], completions: list[Any], number: list[int], **columns: Any) -> list[float]:
        self.prompts += prompts
        if self.trainer._heard.prompts is not None:
            return [float(n not in self.fails) for n in number]
        first = PartialState().process_index * len(number)
        return [float(n % 2 == 1 and (first + i) % self.trainer.num_generations == 0) for i, n in enumerate(number)]


def make(
    path: Path, *, teacher: Any = None, cur: Any = None, reward: Any = None, hint: str = "ab", model: Any = None, chat: bool = False,
    objective: Any = None, trainer: type = Trainer, lesson_callbacks: Any = (), refill_cap: int = 4, **options: Any,
) -> Any:  # fmt: skip
    data, pool = tasks(hint, chat)
    script = reward or Script()
    config = tiny.grpo_config(path, **{"per_device_train_batch_size": 16} | options)
    made = trainer(
        model or tiny.model(), script, args=config, train_dataset=data, processing_class=tiny.tokenizer(), objective=objective,
        curriculum=cur or Admit(pool, "x"), teacher=teacher or Egsr(template=GUIDE), lesson_callbacks=lesson_callbacks,
        refill_cap=refill_cap,
    )  # fmt: skip
    if isinstance(script, Script):
        script.trainer = made
    return made


def batch_of(trainer: Any) -> dict[str, Any]:
    trainer.model.train()
    return trainer._generate_and_score_completions([])


def logp_of(trainer: Any, model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return trainer.token_columns(model, batch, entropy=False)[0] * batch["completion_mask"]


# What a mixed batch is ----------------------------------------------------------------------------------------------------------------


def test_a_guided_success_takes_the_place_of_a_failure(tmp_path: Path) -> None:
    """Groups 0 and 2 fail and get help; advantages, counts, metrics and TRL's table are those of the mixed groups."""
    seen: list[Any] = []
    trainer = make(tmp_path, lesson_callbacks=[seen.append], log_completions=True, num_completions_to_print=0)
    batch = batch_of(trainer)
    prompts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    assert prompts == [f"{i:02d}=" for i in range(4) for _ in range(4)]
    high, low = 0.75 / (0.5 + 1e-4), -0.25 / (0.5 + 1e-4)
    expected = [[low, low, low, high], [high, low, low, low]] * 2
    np.testing.assert_allclose(batch["advantages"].view(4, 4), expected, atol=1e-6)
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    own = seen[0].outcomes
    np.testing.assert_array_equal(own.solved_NG, [[0] * 4, [1, 0, 0, 0]] * 2)  # the curriculum sees the student's own
    assert (own.advantage_NG[0] == 0).all()
    metrics = trainer._metrics["train"]
    assert metrics["teacher/guided_share"] == [0.5]
    assert metrics["teacher/success"] == [1.0]
    assert 0 <= metrics["teacher/overlap"][0] <= 1
    assert len(metrics["teacher/surprise_gap"]) == 1
    assert metrics["reward"] == [pytest.approx(0.25)]
    assert metrics["frac_reward_zero_std"] == [0.0]
    assert metrics["completions/mean_length"] == [pytest.approx(float(batch["completion_mask"].sum(1).float().mean()))]
    assert list(trainer._logs["prompt"]) == prompts
    np.testing.assert_allclose(list(trainer._logs["advantages"]), batch["advantages"], atol=1e-6)
    assert list(trainer._logs["rewards"]["script"]) == [0, 0, 0, 1, 1, 0, 0, 0] * 2
    decoded = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert list(trainer._logs["completion"]) == decoded
    ledger = trainer.ledger
    assert (ledger.lessons, ledger.rollouts, ledger.guided_rollouts, ledger.rejected_rollouts) == (1, 18, 2, 2)
    assert ledger.training_tokens == batch["completion_mask"].sum()


def test_the_surprise_gap_and_the_guided_answer(tmp_path: Path) -> None:
    trainer = make(tmp_path, teacher=Egsr(template=GUIDE, guided_attempts=3))
    trainer.model.train()
    asked: list[Any] = []
    usual = trainer.roll_out
    trainer.roll_out = lambda rows, attempts, prompts=None: asked.append((prompts, found := usual(rows, attempts, prompts))) or found
    batch = trainer._generate_and_score_completions([])
    assert asked[0][0] is None
    assert asked[1][0] == ["ab000=", "ab202="]
    guided_ids = asked[1][1].batch["completion_ids"]
    assert guided_ids.shape[0] == 6
    rows = torch.tensor([3, 11])
    part = {key: value[rows] for key, value in batch.items() if value.ndim}
    width = min(guided_ids.shape[1], batch["completion_ids"].shape[1])
    assert torch.equal(
        part["completion_ids"][:, :width] * part["completion_mask"][:, :width],
        guided_ids[[0, 3]][:, :width] * part["completion_mask"][:, :width],
    )
    nll = -logp_of(trainer, trainer.model, part).sum() / part["completion_mask"].sum()
    ids = torch.tensor([[*trainer.processing_class(text)["input_ids"], 1] for text in ("ab0", "ab2")])
    expert = {
        "prompt_ids": part["prompt_ids"],
        "prompt_mask": part["prompt_mask"],
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
    }
    gap = -logp_of(trainer, trainer.model, expert).mean() - nll
    assert trainer._metrics["train"]["teacher/surprise_gap"] == [pytest.approx(float(gap), abs=1e-5)]


def test_reward_functions_are_shown_the_prompt_of_the_task(tmp_path: Path) -> None:
    for chat in (False, True):
        reward = Script()
        trainer = make(tmp_path, reward=reward, chat=chat)
        batch_of(trainer)
        assert len(reward.prompts) == 18
        assert not any(guided(reward.prompts))


def test_failed_guidance_leaves_the_batch_as_it_was(tmp_path: Path) -> None:
    trainer = make(tmp_path, reward=Script(fails=tuple(range(24))))
    batch = batch_of(trainer)
    assert (batch["advantages"].view(4, 4)[[0, 2]] == 0).all()
    assert trainer._metrics["train"]["teacher/success"] == [0.0]
    assert "teacher/surprise_gap" not in trainer._metrics["train"]
    assert (trainer.ledger.guided_rollouts, trainer.ledger.rejected_rollouts) == (2, 0)


def test_nobody_needs_help(tmp_path: Path) -> None:
    trainer = make(tmp_path, reward=tiny.has_a, teacher=Egsr(template=GUIDE, success=0.5))
    trainer.judge.local = lambda inputs, state, **attempts: ([1.0] * len(inputs), None)
    batch_of(trainer)
    assert trainer.ledger.guided_rollouts == 0
    assert trainer._metrics["train"]["teacher/guided_share"] == [0.0]


# Log-probabilities --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", ["on_policy", "importance", "none"])
@pytest.mark.parametrize("stale", [False, True])
def test_old_and_reference_log_probabilities(tmp_path: Path, ratio: Any, stale: bool) -> None:
    """Reference: always under the un-guided prompt. Old: the same under (a) and (c), under the guided one with (b)."""
    more = {"num_iterations": 2} if stale else {}
    trainer = make(
        tmp_path, teacher=Egsr(template=GUIDE, ratio=ratio), beta=0.1, model=tiny.saved(tmp_path / "model"), **more
    )  # fmt: skip
    with torch.no_grad():
        trainer.model.model.embed_tokens.weight.mul_(1.3)  # away from the reference
    batch = batch_of(trainer)
    mask = batch["completion_mask"]
    torch.testing.assert_close(batch["ref_per_token_logps"] * mask, logp_of(trainer, trainer.ref_model, batch), atol=1e-5, rtol=1e-5)
    unguided = logp_of(trainer, trainer.model, batch)
    assert ("old_per_token_logps" in batch) == (stale or ratio == "importance")
    assert ("no_ratio" in batch) == (ratio == "none")
    if ratio == "none":
        assert batch["no_ratio"].nonzero().flatten().tolist() == [3, 11]
    if "old_per_token_logps" not in batch:
        return
    old, put_in = batch["old_per_token_logps"] * mask, torch.tensor([3, 11])
    own = torch.tensor([b for b in range(16) if b not in (3, 11)])
    torch.testing.assert_close(old[own], unguided[own], atol=1e-5, rtol=1e-5)
    if ratio != "importance":
        torch.testing.assert_close(old[put_in], unguided[put_in], atol=1e-5, rtol=1e-5)
        return
    ids = torch.tensor([trainer.processing_class(text)["input_ids"] for text in ("ab000=", "ab202=")])
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": batch["completion_ids"][put_in],
        "completion_mask": mask[put_in],
    }
    torch.testing.assert_close(old[put_in], logp_of(trainer, trainer.model, inputs), atol=1e-5, rtol=1e-5)
    assert (old[put_in] - unguided[put_in]).abs().max() > 1e-3


def gradient(trainer: Any, batch: dict[str, Any], rows: list[int]) -> np.ndarray:
    """Of the loss when only `rows` have an advantage."""
    trainer.current_gradient_accumulation_steps = 1
    only = torch.zeros_like(batch["advantages"])
    only[rows] = batch["advantages"][rows]
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, batch | {"advantages": only}).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in trainer.model.parameters()])


def forced(trainer: Any) -> None:
    """Guided prompts are answered with fixed tokens, whatever the hint says."""
    usual = trainer._generate_single_turn

    def fixed(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        ids, logps = usual(prompt_ids, *args, **kwargs)
        return [[5, 9, 7, 1] if len(prompt) > 3 else own for prompt, own in zip(prompt_ids, ids, strict=True)], logps

    trainer._generate_single_turn = fixed


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("ratio", ["on_policy", "importance", "none"])
def test_the_gradient_does_not_depend_on_the_expert(tmp_path: Path, ratio: Any, ours: bool) -> None:
    """The same guided answer under two experts: identical gradients under (a) and (c), others under (b)."""
    found = []
    for hint in ("ab", "yzx"):
        loss = objective("grpo", kl_coef=0.0) if ours else None
        trainer = make(tmp_path, teacher=Egsr(template=GUIDE, ratio=ratio), hint=hint, objective=loss, num_iterations=2)
        forced(trainer)
        torch.manual_seed(3)
        batch = batch_of(trainer)
        assert (batch["completion_ids"][3, :4].tolist(), float(batch["completion_mask"][3].sum())) == ([5, 9, 7, 1], 4)
        found.append(gradient(trainer, batch, [3]))
    assert np.abs(found[0]).max() > 1e-4
    if ratio == "importance":
        assert np.abs(found[0] - found[1]).max() > 1e-4
    else:
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("ours", [False, True])
def test_no_ratio_is_weighted_likelihood_even_off_policy(tmp_path: Path, ours: bool) -> None:
    """After the policy has moved, (c) has the gradient A' grad log pi, where (a) is clipped away; with TRL's loss and with ours."""
    gradients = {}
    for ratio in ("on_policy", "none"):
        loss = objective("grpo", kl_coef=0.0, aggregation="token_mean") if ours else None
        trainer = make(tmp_path, teacher=Egsr(template=GUIDE, ratio=ratio), objective=loss, num_iterations=2)
        forced(trainer)
        torch.manual_seed(3)
        batch = batch_of(trainer)
        with torch.no_grad():
            for row in ([3],):  # raise the guided answer's likelihood until every token's ratio lies beyond 1.2
                for _ in range(60):
                    part = {key: value[row] for key, value in batch.items() if value.ndim}
                    with torch.enable_grad():
                        logp = trainer.token_columns(trainer.model, part)[0]
                        step = torch.autograd.grad((logp * part["completion_mask"]).sum(), list(trainer.model.parameters()))
                    for parameter, change in zip(trainer.model.parameters(), step, strict=True):
                        parameter += 0.02 * change
        part = {key: value[[3]] for key, value in batch.items() if value.ndim}
        assert ((logp_of(trainer, trainer.model, part) - part["old_per_token_logps"])[0, :4] > 0.2).all()
        gradients[ratio] = gradient(trainer, batch, [3])
        logp = (trainer.token_columns(trainer.model, part)[0] * part["completion_mask"]).sum()
        weight = batch["advantages"][3] / batch["num_items_in_batch"]
        trainer.model.zero_grad()
        (-weight * logp).backward()
        likelihood = np.concatenate([p.grad.numpy().ravel() for p in trainer.model.parameters()])
    assert np.abs(gradients["on_policy"]).max() == 0
    np.testing.assert_allclose(gradients["none"], likelihood, atol=1e-6)


def test_the_inference_engines_correction_is_lifted(tmp_path: Path) -> None:
    """Columns that TRL adds with vLLM: they compare the engine with the model under the guided prompt, so (a) and (c) drop them."""

    class Engine(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            batch["importance_sampling_ratio"] = torch.full((len(inputs), 1), 0.5)
            batch["sampling_per_token_logps"] = torch.full_like(batch["completion_ids"], -7.0, dtype=torch.float32)
            return batch

    for ratio, expected in (("on_policy", 1.0), ("none", 1.0), ("importance", 0.5)):
        trainer = make(tmp_path, teacher=Egsr(template=GUIDE, ratio=ratio), trainer=with_curriculum(Engine))
        batch = batch_of(trainer)
        assert batch["importance_sampling_ratio"][[3, 11, 0]].flatten().tolist() == [expected, expected, 0.5]
        sampled = batch["sampling_per_token_logps"] * batch["completion_mask"]
        if ratio == "importance":
            assert sampled[3, 0] == -7
        else:
            torch.testing.assert_close(sampled[3], logp_of(trainer, trainer.model, batch)[3], atol=1e-5, rtol=1e-5)


# Caps, objectives, filters, accumulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "grpo", "dr_grpo", "reinforce_pp_baseline"])
def test_the_cap(tmp_path: Path, kind: str | None) -> None:
    loss = None if kind is None else objective(kind, kl_coef=0.0)
    free = batch_of(make(tmp_path, objective=loss))["advantages"]
    trainer = make(
        tmp_path, objective=loss, teacher=Egsr(template=GUIDE, advantage_cap=0.3), log_completions=True, num_completions_to_print=0
    )
    batch = batch_of(trainer)
    assert "advantage_cap" not in batch
    capped, rows = batch["advantages"], [3, 11]
    assert float(free[rows].max()) > 0.3
    assert float(capped[rows].max()) == pytest.approx(0.3)
    others = [b for b in range(16) if b not in rows]
    torch.testing.assert_close(capped[others], free[others])
    if kind is None:
        np.testing.assert_allclose(list(trainer._logs["advantages"]), capped, atol=1e-6)


def test_a_filter_looks_at_the_mixed_groups(tmp_path: Path) -> None:
    """Without the teacher the dead groups 0 and 2 are rejected; with it they train, in one round."""
    _, pool = tasks()
    for teacher, admitted, drawn in ((Egsr(template=GUIDE), [True] * 4, 1), (Egsr(template=GUIDE, min_length=99), [False, True] * 2, 2)):
        seen: list[Any] = []
        cur = Admit(pool, "x")
        cur.admit = lambda outcomes: (outcomes.solved_NG.mean(1) > 0) & (outcomes.solved_NG.mean(1) < 1)
        trainer = make(tmp_path, cur=cur, teacher=teacher, lesson_callbacks=[seen.append])
        batch = batch_of(trainer)
        assert seen[0].admitted_N.tolist() == admitted
        assert len(seen) == drawn
        assert (batch["advantages"].view(4, 4).abs().sum(1) > 0).all()
        assert trainer._metrics["train"]["curriculum/acceptance"] == [np.mean(admitted)] if cur.filters else True


def test_stand_ins_of_later_rounds_find_their_groups(tmp_path: Path) -> None:
    """A filter that rejects by place: groups of two rounds, guided answers of both, each under its own prompt and with its own text."""
    _, pool = tasks()
    trainer = make(
        tmp_path,
        cur=Admit(pool, "x..x.xx."),
        teacher=Egsr(template=GUIDE, guided_attempts=2, ratio="none"),
        log_completions=True,
        num_completions_to_print=0,
    )
    batch = batch_of(trainer)
    prompts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    assert prompts[::4] == ["00=", "03=", "05=", "06="]
    assert batch["no_ratio"].nonzero().flatten().tolist() == [3, 15]
    assert list(trainer._logs["rewards"]["script"]) == [0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    decoded = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    assert list(trainer._logs["completion"]) == decoded
    assert list(trainer._logs["prompt"]) == prompts
    ledger = trainer.ledger
    assert (ledger.rollouts, ledger.guided_rollouts, ledger.rejected_rollouts) == (32 + 8, 8, 16 + 2)
    assert ledger.training_tokens == batch["completion_mask"].sum() == batch["num_items_in_batch"]


def test_assembling_a_batch_without_help_is_as_before(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.model.train()
    rollouts = trainer.roll_out(np.arange(4), 4)
    batch, _ = _refill.assemble(trainer, [rollouts], _refill.Choice(np.arange(4), np.zeros(4, bool)), {})
    for key in _batches.token_columns([batch]):
        torch.testing.assert_close(batch[key], rollouts.batch[key])


@pytest.mark.parametrize("ratio", ["on_policy", "importance", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 8, "beta": 0.1},
        {"objective": "dapo", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
    ],
)
def test_whole_runs(tmp_path: Path, ratio: Any, options: dict[str, Any]) -> None:
    options = dict(options)
    name = options.pop("objective", None)
    options |= {"model": tiny.saved(tmp_path / "model")} if "beta" in options else {}
    trainer = make(tmp_path, teacher=Egsr(template=GUIDE, ratio=ratio), objective=objective(name) if name else None, max_steps=3, **options)
    trainer.train()
    assert trainer.ledger.updates == 3
    assert trainer.ledger.guided_rollouts > 0
    assert np.isfinite(tiny.weights(trainer.model).view(np.float32)).all()
    assert any("teacher/surprise_gap" in entry for entry in trainer.state.log_history)


def test_lora_has_its_reference(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    data, pool = tasks()
    script = Script()
    trainer = Trainer(
        tiny.model(), script, args=tiny.grpo_config(tmp_path, per_device_train_batch_size=16, beta=0.1), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=Admit(pool, "x"), teacher=Egsr(template=GUIDE),
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    script.trainer = trainer
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    batch = batch_of(trainer)
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        expected = logp_of(trainer, trainer.model, batch)
    torch.testing.assert_close(batch["ref_per_token_logps"] * batch["completion_mask"], expected, atol=1e-5, rtol=1e-5)


# Resume, processes, errors ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    def start() -> Any:
        teacher = Egsr(template=GUIDE, ratio="none", replace="random", guided_attempts=2)
        return make(tmp_path, teacher=teacher, save_strategy="steps", save_steps=1, num_iterations=2, max_steps=5)

    unbroken = start()
    unbroken.train()
    newest = {path.name: path for path in complete_checkpoints(tmp_path)}
    resumed = start()
    resumed.train(resume_from_checkpoint=str(newest["checkpoint-3"]))
    np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
    assert resumed.ledger == unbroken.ledger


def train(path: Path, share: int, ratio: Any, **options: Any) -> dict[str, Any]:
    """A run on `share` samples per process, and every batch it trained on."""
    trainer = make(
        path, teacher=Egsr(template=GUIDE, ratio=ratio, guided_attempts=1, replace="random"), per_device_train_batch_size=share,
        max_steps=2, gradient_accumulation_steps=2, generation_batch_size=24, num_generations=4,
    )  # fmt: skip
    batches: list[Any] = []
    usual = trainer.next_batch

    def spy() -> Any:
        batch = usual()
        prompts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
        own = logp_of(trainer, trainer.model, batch)
        old = batch.get("old_per_token_logps", own) * batch["completion_mask"]
        off = ((old - own).abs().max(1).values > 1e-4).tolist()
        flags = batch.get("no_ratio", torch.zeros(len(prompts))).tolist()
        batches.append(
            (prompts, batch["advantages"].tolist(), flags, off, batch["num_items_in_batch"].item(), batch["completion_mask"].sum().item())
        )
        return batch

    trainer.next_batch = spy
    trainer.train()
    return {"batches": batches, "weights": tiny.weights(trainer.model), "ledger": trainer.ledger.state_dict()}


@pytest.mark.parametrize("ratio", ["importance", "none"])
def test_two_ranks_mix_as_one(tmp_path: Path, ratio: str) -> None:
    """A group straddles the ranks (24 samples, 6 groups of 4, 12 on each), guided answers are generated on either."""
    alone = train(tmp_path / "one", 12, ratio)
    first, second = raised(two_ranks(train, tmp_path / "two", 6, ratio))
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert first["ledger"] == second["ledger"]
    counted = ("lessons", "rollouts", "guided_rollouts", "rejected_rollouts", "updates")
    assert {name: first["ledger"][name] for name in counted} == {name: alone["ledger"][name] for name in counted}
    assert first["ledger"]["guided_rollouts"] > 0
    for mine, other, whole in zip(first["batches"], second["batches"], alone["batches"], strict=True):
        assert mine[0] + other[0] == whole[0]
        np.testing.assert_allclose(mine[1] + other[1], whole[1], atol=1e-6)
        assert mine[2] + other[2] == whole[2]
        if ratio == "importance":
            assert mine[3] + other[3] == whole[3]
            assert sum(whole[3]) == 3
        assert mine[4] == other[4] == mine[5] + other[5]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    data, pool = tiny.tasks()
    kinds = {"args": tiny.grpo_config(tmp_path), "processing_class": tiny.tokenizer()}
    with pytest.raises(TutelageError, match=r"shows the student the task's solution, and train_dataset has only prompt, number, level"):
        Trainer(tiny.model(), tiny.digits, train_dataset=data, curriculum=tt.curriculum("uniform", pool), teacher=Egsr(), **kinds)
    with pytest.raises(TutelageError, match=r"intervenes in the lessons of a curriculum, and there is none.*uniform"):
        Trainer(tiny.model(), tiny.digits, train_dataset=tasks()[0], teacher=Egsr(), **kinds)
    with pytest.raises(TutelageError, match=r"teacher='egsr' neither scores text nor intervenes"):
        make(tmp_path, teacher="egsr")
    with pytest.raises(TutelageError, match="SFT has no groups of attempts"):
        with_curriculum(trl.SFTTrainer)(
            tiny.model(), args=tiny.sft_config(tmp_path), train_dataset=data.rename_column("prompt", "text"), teacher=Egsr(),
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("uniform", pool),
        )  # fmt: skip
    with pytest.raises(TutelageError, match="The teacher looks at what was solved, and the first reward function"):
        batch_of(make(tmp_path, reward=lambda completions, **_: [2.0 + len(c) for c in completions]))
    trainer = make(tmp_path, reward=tiny.has_a)
    trainer.judge.column = None  # as for a reward model
    with pytest.raises(TutelageError, match="'has_a'\\) is a model, no verifier"):
        batch_of(trainer)
