"""Filtering and refilling: which groups train, what the batch then holds, what is counted, and what happens when too few are admitted."""
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

import tiny
from tutelage.errors import TutelageError
from tutelage.trainers import _batches, _refill
from tutelage.trainers.trl import with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)


class Admit(tt.Curriculum):
    """Proposes rows in order and admits by a fixed pattern over all groups drawn."""

    name = "admit"
    memory = ("drawn", "seen")

    def __init__(self, pool: tt.TaskPool, pattern: str) -> None:
        super().__init__(pool)
        self.pattern, self.drawn, self.seen = pattern, 0, 0

    def _propose(self, n: int) -> np.ndarray:
        self.drawn += n
        return np.arange(self.drawn - n, self.drawn) % len(self.pool)

    def _observe(self, outcomes: tt.Outcomes, *, probe: bool) -> None:
        self.seen += len(outcomes)

    def admit(self, outcomes: tt.Outcomes) -> np.ndarray:
        first = self.seen - len(outcomes)
        return np.array([self.pattern[(first + i) % len(self.pattern)] == "x" for i in range(len(outcomes))])


def make(path: Path, cur: tt.Curriculum | None, *, reward: Any = None, cap: int = 4, on_short: str = "pad", **options: Any) -> Any:
    data, _ = tiny.tasks()
    model = options.pop("model", None) or tiny.model()
    config = tiny.grpo_config(path, **{"per_device_train_batch_size": 16, "log_completions": True, "num_completions_to_print": 0} | options)
    return Trainer(
        model, reward or [tiny.digits, tiny.has_a], args=config, train_dataset=data, processing_class=tiny.tokenizer(),
        curriculum=cur, refill_cap=cap, on_short=on_short, lesson_callbacks=[],
    )  # fmt: skip


def lesson(trainer: Any) -> dict[str, Any]:
    trainer.model.train()
    return trainer._generate_and_score_completions([])


def test_put_together_undoes_take_apart(tmp_path: Path) -> None:
    trainer = make(tmp_path, tt.curriculum("uniform", tiny.tasks()[1]), model=tiny.saved(tmp_path / "model"), beta=0.1, num_iterations=2)
    batch = lesson(trainer)
    length = batch["completion_mask"].sum(1).tolist()
    wide = _batches.token_columns([batch])
    assert wide == {"completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"}
    again = _batches.put_together(_batches.take_apart(batch, length, wide), wide, pad_id=0, multiple_of=None)
    assert set(batch) - set(again) == {"num_items_in_batch"}
    for key, value in again.items():
        expected = batch[key] * batch["completion_mask"] if key.endswith("logps") else batch[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_advantages_and_metrics_are_those_of_trl(tmp_path: Path, scale: str, aggregation: str) -> None:
    """A batch rebuilt from one fully admitted round has the advantages, counts, metrics and table that TRL gave it."""

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if i == 3 else len(c) / 7 for i, c in enumerate(completions)]

    def other(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if i in (3, 5) else float("a" in c) for i, c in enumerate(completions)]

    options = {"scale_rewards": scale, "multi_objective_aggregation": aggregation, "reward_weights": [1.0, 0.3]}
    trainer = make(tmp_path, tt.curriculum("uniform", tiny.tasks()[1]), reward=[reward, other], **options)
    trainer.model.train()
    rollouts = trainer.roll_out(np.arange(4), 4)
    metrics, logs = copy.deepcopy(trainer._metrics["train"]), copy.deepcopy(trainer._logs)
    batch, _ = _refill.assemble(trainer, [rollouts], _refill.Choice(np.arange(4), np.zeros(4, bool)), {})
    torch.testing.assert_close(batch["advantages"], rollouts.batch["advantages"], atol=1e-5, rtol=1e-5)
    assert batch["num_items_in_batch"] == rollouts.batch["num_items_in_batch"]
    assert trainer._metrics["train"].keys() == metrics.keys()
    for name, values in metrics.items():
        assert trainer._metrics["train"][name] == pytest.approx(values, abs=1e-5, nan_ok=True), name
    assert repr(trainer._logs) == repr(logs)


def test_the_batch_holds_the_first_admitted_groups(tmp_path: Path) -> None:
    trainer = make(tmp_path, Admit(tiny.tasks()[1], "x..x.x.xxxxx"))
    seen: list[Any] = []
    trainer.lesson_callbacks = (seen.append,)
    batch = lesson(trainer)
    assert [x.admitted_N.tolist() for x in seen] == [[True, False, False, True], [False, True, False, True]]
    decoded = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    assert decoded == [f"{i:02d}=" for i in (0, 3, 5, 7) for _ in range(4)]
    kept = [(0, 0), (0, 3), (1, 1), (1, 3)]
    reward_NG = np.array([seen[r].outcomes.reward_NG[n] for r, n in kept])
    advantage_NG = np.array([seen[r].outcomes.advantage_NG[n] for r, n in kept])
    length_NG = np.array([seen[r].outcomes.length_NG[n] for r, n in kept])
    np.testing.assert_allclose(batch["advantages"].numpy(), advantage_NG.ravel(), atol=1e-5)
    np.testing.assert_array_equal(batch["completion_mask"].sum(1).numpy(), length_NG.ravel())
    assert batch["num_items_in_batch"].item() == length_NG.sum()
    metrics = trainer._metrics["train"]
    assert metrics["reward"] == [pytest.approx(reward_NG.mean(), abs=1e-5)]
    assert metrics["completions/mean_length"] == [pytest.approx(length_NG.mean())]
    assert metrics["curriculum/acceptance"] == [0.5]
    assert metrics["curriculum/rejected_easy"][0] + metrics["curriculum/rejected_hard"][0] == pytest.approx(0.5)
    assert metrics["curriculum/rollouts"] == [32.0]
    ledger = trainer.ledger
    assert (ledger.lessons, ledger.rollouts, ledger.rejected_rollouts) == (2, 32, 16)
    assert ledger.tokens == sum(x.outcomes.length_NG.sum() for x in seen)
    assert ledger.training_tokens == length_NG.sum()
    assert list(trainer._logs["prompt"]) == decoded
    np.testing.assert_allclose(list(trainer._logs["advantages"]), batch["advantages"].numpy(), atol=1e-5)


def test_batch_scaled_advantages_are_recomputed(tmp_path: Path) -> None:
    trainer = make(tmp_path, Admit(tiny.tasks()[1], "x..x.x.x"), scale_rewards="batch")
    seen: list[Any] = []
    trainer.lesson_callbacks = (seen.append,)
    batch = lesson(trainer)
    reward_NG = np.array([seen[r].outcomes.reward_NG[n] for r, n in [(0, 0), (0, 3), (1, 1), (1, 3)]])
    expected = (reward_NG - reward_NG.mean(1, keepdims=True)) / (reward_NG.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(batch["advantages"].numpy(), expected.ravel(), atol=1e-5)


def test_a_first_reward_that_turns_out_to_be_no_judgement(tmp_path: Path) -> None:
    calls: list[int] = []

    def growing(completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        return [0.3 * len(calls) * (i % 4) for i in range(len(completions))]

    trainer = make(tmp_path, Admit(tiny.tasks()[1], "x..x.x.x"), reward=growing)
    seen: list[Any] = []
    trainer.lesson_callbacks = (seen.append,)
    lesson(trainer)
    assert [x.outcomes.solved_NG is None for x in seen] == [False, True]
    assert trainer._metrics["train"]["curriculum/acceptance"] == [0.5]
    assert "curriculum/rejected_easy" not in trainer._metrics["train"]


def test_surplus_is_dropped_and_counted(tmp_path: Path) -> None:
    trainer = make(tmp_path, Admit(tiny.tasks()[1], "xxx.xxxx"))
    lesson(trainer)
    assert (trainer.ledger.rollouts, trainer.ledger.rejected_rollouts) == (32, 16)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_partial_batches_have_the_loss_of_the_admitted_alone(tmp_path: Path, loss_type: str) -> None:
    trainer = make(tmp_path, Admit(tiny.tasks()[1], "x..x........"), cap=2, on_short="partial", loss_type=loss_type)
    batch = lesson(trainer)
    live = batch["completion_mask"].sum(1) > 0
    assert live.tolist() == [True] * 8 + [False] * 8
    assert (batch["advantages"][8:] == 0).all()
    trainer.current_gradient_accumulation_steps = 1
    alone = {k: v[:8] if v.ndim else v for k, v in batch.items() if k != "loss_scale"}
    loss, expected = trainer._compute_loss(trainer.model, batch), trainer._compute_loss(trainer.model, alone)
    torch.testing.assert_close(loss, expected)
    assert trainer.ledger.training_tokens == batch["completion_mask"].sum()
    assert trainer.ledger.rejected_rollouts == 24


def test_padding_with_unfiltered_groups(tmp_path: Path) -> None:
    trainer = make(tmp_path, Admit(tiny.tasks()[1], "...x......."), cap=2)
    decoded = trainer.processing_class.batch_decode(lesson(trainer)["prompt_ids"], skip_special_tokens=True)
    assert decoded[::4] == ["03=", "00=", "01=", "02="]
    assert trainer.ledger.rejected_rollouts == 16


def test_too_few_raise_with_counts(tmp_path: Path) -> None:
    def zero(completions: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    pattern = Admit(tiny.tasks()[1], "x.......")
    with pytest.raises(TutelageError, match=r"admitted 1 of 8 groups drawn for one training batch of 4 \(refill_cap=2"):
        lesson(make(tmp_path, pattern, cap=2, on_short="raise"))
    for on_short in ("raise", "partial"):
        odf = tt.curriculum("odf", tiny.tasks()[1])
        with pytest.raises(TutelageError, match=r"admitted 0 of 12 .* 0 were solved by all 4 attempts, 12 by none"):
            lesson(make(tmp_path, odf, reward=zero, cap=3, on_short=on_short))
    trainer = make(tmp_path, tt.curriculum("odf", tiny.tasks()[1]), reward=zero, cap=1)
    for _ in range(_refill.PATIENCE - 1):
        lesson(trainer)
    with pytest.raises(TutelageError, match="10th batch in a row"):
        lesson(trainer)
    with pytest.raises(TutelageError, match="refill_cap must be at least 1"):
        make(tmp_path, pattern, cap=0)
    with pytest.raises(TutelageError, match="on_short one of"):
        make(tmp_path, pattern, on_short="skip")


def test_a_whole_run_with_a_filter(tmp_path: Path) -> None:
    for on_short in ("pad", "partial"):
        cur = tt.curriculum("odf", tiny.tasks()[1], window="strict")
        trainer = make(tmp_path, cur, on_short=on_short, reward=tiny.has_a, num_iterations=2, steps_per_generation=2, beta=0.0)
        trainer.train()
        assert trainer.ledger.updates == 4
        assert trainer.ledger.lessons > 1
        assert np.isfinite(tiny.weights(trainer.model).view(np.float32)).all()
