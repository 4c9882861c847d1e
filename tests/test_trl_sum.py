"""Losses of different kinds in one optimiser step on the TRL trainer: each divides by its own counts, however the step is cut."""
# ruff: noqa: E402

from __future__ import annotations

import multiprocessing
import os
import runpy
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
from test_trl_ranks import raised, scripted, two_ranks
from tutelage.errors import TutelageError
from tutelage.objectives import On, Sum, controller, objective
from tutelage.trainers import _mix
from tutelage.trainers._sources import IGNORED, tokenised, tokeniser
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)
GRPO = objective("trl:grpo", kl_importance=False)
NLL = On("demonstrations", objective("nll"))


def both(policy: float = 1.0, imitate: float = 0.5, **options: Any) -> Sum:
    return Sum({"policy": (GRPO, policy), "imitate": (NLL, imitate)}, **options)


def demonstrations(size: int = 12) -> Dataset:
    """Completions of different lengths, so that a mean of means is not a mean."""
    return Dataset.from_dict({"prompt": [f"{i:02d}=" for i in range(size)], "completion": ["ab" * (1 + i % 3) for i in range(size)]})


def make(
    path: Path, *, objective: Any, curriculum: str | None = "uniform", reward: Any = tiny.digits, dropout: float = 0.0, **options: Any
) -> Any:
    data, pool = tiny.tasks()
    ours = {k: options.pop(k) for k in ("demonstrations_per_step", "lesson_callbacks", "eval_dataset") if k in options}
    given = options.pop("demonstrations", demonstrations())
    return Trainer(
        tiny.model(dropout=dropout), reward, args=tiny.grpo_config(path, **options), train_dataset=data, processing_class=tiny.tokenizer(),
        curriculum=curriculum and tt.curriculum(curriculum, pool, seed=5), objective=objective, demonstrations=given, **ours,
    )  # fmt: skip


def final(made: Any) -> np.ndarray:
    made.train()
    return tiny.weights(made.model).view(np.float32)


def gradient(made: Any) -> np.ndarray:
    """The gradient of the first step, as the optimiser gets it."""
    kept: list[np.ndarray] = []
    usual = made.create_optimizer

    def create(*args: Any, **kwargs: Any) -> Any:
        built = usual(*args, **kwargs)
        step = built.step

        def spy(*a: Any, **k: Any) -> Any:
            kept.append(np.concatenate([p.grad.detach().numpy().ravel() for p in made.model.parameters()]))
            return step(*a, **k)

        built.step = spy
        return built

    made.create_optimizer = create
    made.train()
    return kept[0]


def first_gradient(path: Path, share: int, accumulate: int, **options: Any) -> np.ndarray:
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "demonstrations_per_step": 5, "reward": scripted, "temperature": 1e-3}
    made = make(path, objective=both(), per_device_train_batch_size=share, gradient_accumulation_steps=accumulate, **settings | options)
    return gradient(made)


def expected_gradient(path: Path) -> np.ndarray:
    """The policy's gradient and half the demonstrations' mean negative log-likelihood's, put together by hand."""
    made = make(
        path,
        objective=GRPO,
        demonstrations=None,
        per_device_train_batch_size=8,
        max_steps=1,
        max_grad_norm=0.0,
        reward=scripted,
        temperature=1e-3,
    )
    policy = gradient(made)
    source = make(path, objective=both(), demonstrations_per_step=5, max_steps=1).mix.source
    model, total, tokens = tiny.model(), torch.zeros(()), 0
    for row in source.draw(1, 0, 1).rows_N:
        ids, labels = (torch.tensor([x]) for x in source.examples[row])
        logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        trained = labels[0, 1:] != IGNORED
        total, tokens = total - logp[trained].sum(), tokens + int(trained.sum())
    (0.5 * total / tokens).backward()
    return policy + np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


def test_the_gradient_does_not_depend_on_how_the_step_is_cut(tmp_path: Path) -> None:
    expected = expected_gradient(tmp_path)
    assert np.abs(expected).max() > 0.01
    for share, accumulate in ((8, 1), (4, 2), (1, 8)):
        np.testing.assert_allclose(first_gradient(tmp_path, share, accumulate), expected, atol=2e-6, err_msg=f"{share} x {accumulate}")
    first, second = raised(two_ranks(first_gradient, tmp_path, 2, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, atol=2e-6)


def test_weights_and_parts(tmp_path: Path) -> None:
    """A weight of 0 leaves the policy's own training, to the bit; a sum of one part is the part."""
    alone = final(make(tmp_path, objective=GRPO, demonstrations=None))
    np.testing.assert_array_equal(final(make(tmp_path, objective=Sum({"policy": (GRPO, 1.0)}), demonstrations=None)), alone)
    np.testing.assert_array_equal(final(make(tmp_path, objective=both(imitate=0.0))), alone)
    assert np.abs(final(make(tmp_path, objective=both())) - alone).max() > 1e-3


def test_what_is_logged_and_spent(tmp_path: Path) -> None:
    made = make(
        tmp_path, objective=both(), demonstrations_per_step=3, max_steps=6, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert make(tmp_path, objective=both()).mix.source.per_step == 2  # as many as tasks
    made.train()
    logs = [entry for entry in made.state.log_history if "objective/imitate/loss" in entry]
    assert len(logs) == 6
    assert logs[0]["objective/imitate/loss"] == pytest.approx(np.log(43), rel=0.1)
    assert logs[-1]["objective/imitate/loss"] < logs[0]["objective/imitate/loss"]
    assert all("objective/policy/policy_loss" in entry and "reward" in entry for entry in logs)
    sizes = [2 * (1 + i % 3) + 1 for i in range(12)]  # with the end token
    ledger = made.ledger
    source = make(tmp_path, objective=both(), demonstrations_per_step=3).mix.source
    rows = np.concatenate([source.draw(1, 0, 1).rows_N for _ in range(6)])
    assert sorted(rows[:12]) == list(range(12))
    assert ledger.training_tokens == ledger.tokens + sum(sizes[r] for r in rows)


def _resumed(path: Path, share: int, accumulate: int, curriculum: str | None, resume: str | None = None) -> tuple[np.ndarray, Any, Any]:
    made = make(
        path, objective=both(), curriculum=curriculum, dropout=0.1, demonstrations_per_step=5, max_steps=5, save_strategy="steps",
        save_steps=1, per_device_train_batch_size=share, gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    return tiny.weights(made.model), made.mix.state_dict(), made.ledger.state_dict()


@pytest.mark.parametrize("curriculum", ["sec", None])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, curriculum: str | None) -> None:
    unbroken = _resumed(tmp_path, 4, 2, curriculum)
    for name in ("checkpoint-2", "checkpoint-3"):
        resumed = _resumed(tmp_path / "again", 4, 2, curriculum, str(tmp_path / name))
        np.testing.assert_array_equal(resumed[0], unbroken[0])
        np.testing.assert_equal(resumed[1:], unbroken[1:])


def test_two_ranks_resume_together(tmp_path: Path) -> None:
    unbroken = raised(two_ranks(_resumed, tmp_path, 4, 1, "sec"))
    resumed = raised(two_ranks(_resumed, tmp_path / "again", 4, 1, "sec", str(tmp_path / "checkpoint-3")))
    for rank in (0, 1):
        np.testing.assert_array_equal(resumed[rank][0], unbroken[rank][0])
        np.testing.assert_equal(resumed[rank][1:], unbroken[rank][1:])


def _dies(path: Path) -> None:
    made = make(path, objective=both(), dropout=0.1, demonstrations_per_step=5, max_steps=5, save_strategy="steps", save_steps=1)
    usual = made.training_step

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if made.state.global_step == 3:
            os.kill(os.getpid(), 9)
        return usual(*args, **kwargs)

    made.training_step = deadly
    made.train()


def test_killed_and_resumed(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_dies, args=(tmp_path / "killed",))
    child.start()
    child.join()
    assert child.exitcode == -9
    assert [c.name for c in complete_checkpoints(tmp_path / "killed")] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    settings = {"dropout": 0.1, "demonstrations_per_step": 5, "max_steps": 5, "save_strategy": "steps", "save_steps": 1}
    resumed = make(tmp_path / "killed", objective=both(), **settings)
    resumed.train(resume_from_checkpoint=True)
    unbroken = final(make(tmp_path / "whole", objective=both(), **settings)).view(np.uint32)
    np.testing.assert_array_equal(tiny.weights(resumed.model), unbroken)


def test_evaluation_reads_rollouts_alone(tmp_path: Path) -> None:
    made = make(tmp_path, objective=both(), eval_dataset=tiny.tasks(8)[0], per_device_eval_batch_size=8)
    made.train()
    assert np.isfinite(made.evaluate()["eval_loss"])


def test_tokens_of_text_and_chat(tmp_path: Path) -> None:
    made = make(tmp_path, objective=both())
    decode = made.processing_class.decode

    def shown(data: Dataset) -> list[tuple[str, str]]:
        found = tokenised(data, tokeniser(made), "$", "demonstrations")
        return [(decode(e.ids), decode([t for t in e.labels if t != IGNORED])) for e in found]

    assert shown(demonstrations(1)) == [("00=ab$", "ab$")]
    assert shown(Dataset.from_dict({"prompt": ["1+"], "completion": ["2$"]})) == [("1+2$", "2$")]
    turns = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    assert shown(Dataset.from_list([{"messages": turns}])) == [("u:1+1a:2$", "2$")]
    assert shown(Dataset.from_list([{"prompt": turns[:1], "completion": turns[1:]}])) == [("u:1+1a:2$", "2$")]


def test_every_row_once_in_each_pass_whatever_the_cut(tmp_path: Path) -> None:
    def rows(micro_batches: int, world: int) -> list[Any]:
        sources = [make(tmp_path, objective=both(), demonstrations_per_step=5).mix.source for _ in range(world)]
        found = []
        for _ in range(12):
            windows = [source.draw(micro_batches, rank, world) for rank, source in enumerate(sources)]
            trained = [int((b["labels"] != IGNORED).sum()) for w in windows for b in w.batches]
            assert sum(trained) == int(sources[0].mask(windows[0].rows_N).sum())
            assert {len(b["labels"]) for w in windows for b in w.batches} == {-(-5 // (micro_batches * world))}
            found.append(windows[0].rows_N.tolist())
        return found

    alone = rows(1, 1)
    passes = np.concatenate(alone).reshape(5, 12)
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert rows(4, 1) == rows(3, 2) == alone


def test_what_cannot_be_summed_says_so(tmp_path: Path) -> None:
    def fails(message: str, **options: Any) -> None:
        with pytest.raises(TutelageError, match=message):
            make(tmp_path, **{"objective": both(), **options})

    fails(r"Give the trainer a data set of them: demonstrations=dataset", demonstrations=None)
    fails(r"no part of the objective reads them", objective=GRPO)
    fails(r"No part of the objective reads rollouts", objective=NLL)
    fails(r"No part of the objective reads rollouts", objective=Sum({"imitate": (NLL, 1.0)}))
    fails(r"reads both rollouts and demonstrations", objective=Sum({"all": (both(), 1.0)}))
    fails(r"2 parts of the objective compute advantages", objective=Sum({"a": (GRPO, 1.0), "b": (GRPO, 1.0)}), demonstrations=None)
    fails(r"reads web/logp_BT", objective=Sum({"policy": (GRPO, 1.0), "web": (On("web", objective("nll")), 1.0)}))
    fails(r"demonstrations_per_step is the number", demonstrations_per_step=0)
    fails(r"without demonstrations=", objective=GRPO, demonstrations=None, demonstrations_per_step=3)
    fails(r"column\(s\) text", demonstrations=Dataset.from_dict({"text": ["a"]}))
    fails(r"Row 1 of demonstrations", demonstrations=Dataset.from_dict({"prompt": ["a", "b"], "completion": ["a", ""]}))
    with pytest.raises(TutelageError, match=r"SFTTrainer has no rollouts"):
        with_curriculum(trl.SFTTrainer)(
            tiny.model(), args=tiny.sft_config(tmp_path), train_dataset=demonstrations(), processing_class=tiny.tokenizer(),
            objective=Sum({"imitate": (objective("nll"), 1.0)}, controller=controller("alternate")),
        )  # fmt: skip
    made = make(tmp_path, objective=both(), save_strategy="steps", save_steps=2)
    made.train()
    others = make(tmp_path, objective=both(), demonstrations=demonstrations(7))
    with pytest.raises(TutelageError, match=r"other demonstrations or another order"):
        others.train(resume_from_checkpoint=True)
    with pytest.raises(TutelageError, match=r"was made with demonstrations or a controller"):
        make(tmp_path, objective=GRPO, demonstrations=None).train(resume_from_checkpoint=True)


def test_one_column_of_advantages(tmp_path: Path) -> None:
    """A policy in a sum computes its own advantages, as it does alone."""
    leave_one_out = objective("dr_grpo", aggregation="token_mean")
    alone = final(make(tmp_path, objective=leave_one_out, demonstrations=None))
    np.testing.assert_array_equal(final(make(tmp_path, objective=Sum({"policy": (leave_one_out, 1.0)}), demonstrations=None)), alone)
    assert _mix.rollout_part(both()).parts.keys() == {"policy"}


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    from tutelage.students import builtin_path

    path = Path(__file__).parent.parent / "examples" / "sum_of_losses.py"
    logged = runpy.run_path(str(path))["main"](str(builtin_path()), str(builtin_path()), 2)
    steps = [entry for entry in logged if "reward" in entry]
    assert len(steps) == 2
    assert all(0 < entry["objective/imitate/loss"] < 1 and entry["reward"] > 0.2 for entry in steps)
    assert 0 < steps[1]["objective/distil/loss"] < 0.1  # the student has left its twin by then
