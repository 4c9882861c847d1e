"""Signals in GRPO: measured of prompts before the first lesson and of rollouts in every lesson, once, on every process."""
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
from datasets import Dataset

import tiny
from test_trl_ranks import raised, two_ranks
from tutelage.errors import TutelageError
from tutelage.students.angles import find_site
from tutelage.students.reading import concentrations, read_states
from tutelage.trainers import _signals
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)


def tasks(size: int = 24, chat: bool = True) -> tuple[Dataset, tt.TaskPool]:
    """Prompts of unequal lengths, as conversations."""
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh0123"), size=3 + i % 5)) for i in range(size)]
    prompts: list[Any] = [[{"role": "user", "content": w}] for w in words] if chat else words
    return Dataset.from_dict({"prompt": prompts}), tt.TaskPool(arm=[i % 3 for i in range(size)])


def make(path: Path, *, chat: bool = True, lessons: list[Any] | None = None, model: Any = None, gain: Any = None, **options: Any) -> Any:
    data, pool = tasks(chat=chat)
    cur = tt.curriculum("gain-rl", pool, seed=5, **{"n": 4, "sigma": 3.0, **(gain or {})})
    return Trainer(
        model or tiny.model(dropout=0.1), tiny.digits, args=tiny.grpo_config(path, **options), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=cur, lesson_callbacks=[] if lessons is None else [lessons.append],
    )  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_measured_once_as_the_reader_does(tmp_path: Path, chat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    usual = _signals.of_prompts

    def spy(*args: Any) -> Any:
        asked.append(usual(*args))
        return asked[-1]

    monkeypatch.setattr(_signals, "of_prompts", spy)
    made = make(tmp_path, chat=chat)
    made.train()
    assert len(asked) == 1
    columns = concentrations(tiny.model(), tiny.tokenizer(), tasks(chat=chat)[0])
    assert set(asked[0]) == {"angle_concentration", "prompt_length"}
    for name, value_N in asked[0].items():
        np.testing.assert_allclose(value_N, columns[name], atol=1e-6)
    np.testing.assert_allclose(made.curriculum.score_N, columns["angle_concentration"], atol=1e-6)
    assert made.ledger.probe_rollouts == 0
    assert made.ledger.rollouts == 32
    assert made.curriculum.metrics["ranked"] == 1
    assert made.curriculum.mu != 0
    logged = [h for h in made.state.log_history if "curriculum/length_spearman" in h]
    assert len(logged) == 4


def test_rollouts_are_measured_under_the_weights_that_made_them(tmp_path: Path) -> None:
    lessons: list[Any] = []
    made = make(tmp_path, lessons=lessons)
    kept: list[Any] = []
    usual = made.roll_out

    def spy(*args: Any) -> Any:
        rollouts = usual(*args)
        made.model.eval()
        ids = [
            [
                *rollouts.batch["prompt_ids"][b][rollouts.batch["prompt_mask"][b].bool()].tolist(),
                *rollouts.batch["completion_ids"][b][:n].tolist(),
            ]
            for b, n in enumerate(rollouts.length_b)
        ]
        alone = [
            read_states(made.model, find_site(made.model), [one], [[2] * len(one)]).signals()["angle_concentration"].item() for one in ids
        ]
        made.model.train()
        kept.append(np.array(alone).reshape(2, 4).mean(axis=1))
        return rollouts

    made.roll_out = spy
    made.train()
    assert len(kept) == len(lessons) == 4
    for lesson, expected in zip(lessons, kept, strict=True):
        assert set(lesson.outcomes.signals) == {"angle_concentration"}
        np.testing.assert_allclose(lesson.outcomes.signals["angle_concentration"], expected, atol=1e-5)
    assert not np.allclose(kept[0], kept[-1])


def test_nothing_is_measured_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_signals, "_angles", lambda *args: pytest.fail("nobody asked"))
    lessons: list[Any] = []
    made = make(tmp_path, lessons=lessons, gain={"rank_by": "random", "shift_by": "accuracy"})
    made.train()
    assert lessons[0].outcomes.signals == {}


def test_training_is_the_same_with_and_without_a_measurement(tmp_path: Path) -> None:
    """Measuring draws no random number and leaves dropout as it was."""
    found = []
    for by in ("both", "accuracy"):
        made = make(tmp_path / by, gain={"rank_by": "random", "shift_by": by}, max_steps=2)
        made.train()
        found.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*found)


def test_pass_rates_are_attempts_and_count(tmp_path: Path) -> None:
    made = make(tmp_path, gain={"rank_by": "pass_rate"})
    made.train()
    assert made.ledger.probe_rollouts == 24 * 8
    assert made.ledger.rollouts == 24 * 8 + 32
    assert np.isfinite(made.curriculum.score_N).all()


class AsksForBoth(tt.Curriculum):
    """Wants attempts and signals of a few rows before every lesson."""

    name = "asks_for_both"

    def __init__(self, pool: tt.TaskPool) -> None:
        super().__init__(pool)
        self.probes: list[tt.Outcomes] = []

    def wants(self) -> tt.Wants:
        return tt.Wants(np.array([3, 20, 4]), attempts=2, signals=("off_diagonal_concentration", "prompt_length"))

    def observe(self, outcomes: tt.Outcomes, *, probe: bool = False) -> None:
        if probe:
            self.probes.append(outcomes)

    def _propose(self, n: int) -> np.ndarray:
        return self.rng.integers(len(self.pool), size=n)


def test_attempts_and_signals_in_one_wish(tmp_path: Path) -> None:
    data, pool = tasks()
    cur = AsksForBoth(pool)
    made = Trainer(
        tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path, max_steps=2), train_dataset=data, processing_class=tiny.tokenizer(),
        curriculum=cur,
    )  # fmt: skip
    made.train()
    assert made.ledger.probe_rollouts == 12
    columns = concentrations(tiny.model(), tiny.tokenizer(), data)
    first = cur.probes[0]
    assert first.solved_NG is not None
    assert first.solved_NG.shape == (3, 2)
    assert first.signals["prompt_length"].tolist() == columns["prompt_length"][[3, 20, 4]].tolist()
    np.testing.assert_allclose(first.signals["off_diagonal_concentration"], columns["off_diagonal_concentration"][[3, 20, 4]], atol=1e-6)


def test_a_model_without_such_states_is_told_before_training(tmp_path: Path) -> None:
    strange = tiny.model()
    block = strange.model.layers[-1]
    block.hidden = block.mlp
    del block.mlp
    with pytest.raises(TutelageError, match="has no MLP known by name"):
        make(tmp_path, model=strange)


def test_resumed_equals_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole: list[Any] = []
    unbroken = make(tmp_path / "a", lessons=whole, **options)
    unbroken.train()
    monkeypatch.setattr(_signals, "of_prompts", lambda *args: pytest.fail("the scores are in the state"))
    for checkpoint in complete_checkpoints(tmp_path / "a")[:-1]:
        rest: list[Any] = []
        resumed = make(tmp_path / checkpoint.name, lessons=rest, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        step = int(checkpoint.name.split("-")[1])
        assert [(x.step, x.rows_N.tolist()) for x in rest] == [(x.step, x.rows_N.tolist()) for x in whole[step:]]
        for mine, theirs in zip(rest, whole[step:], strict=True):
            np.testing.assert_array_equal(mine.outcomes.signals["angle_concentration"], theirs.outcomes.signals["angle_concentration"])
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
        assert resumed.curriculum.mu == unbroken.curriculum.mu


def scripted(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that ignores what was generated, which differs between one process and two."""
    return [0.5] * len(completions)


def _decide(path: Path, share: int) -> dict[str, Any]:
    data, pool = tasks(23)
    lessons: list[Any] = []
    cur = tt.curriculum("gain-rl", pool, seed=5, n=4, sigma=3.0)
    args = tiny.grpo_config(
        path, per_device_train_batch_size=share, max_completion_length=1, learning_rate=0.0, temperature=1e-3, max_steps=3
    )
    made = Trainer(
        tiny.model(), scripted, args=args, train_dataset=data, processing_class=tiny.tokenizer(), curriculum=cur,
        lesson_callbacks=[lessons.append],
    )  # fmt: skip
    made.train()
    shown = [(x.rows_N.tolist(), x.outcomes.signals["angle_concentration"].tolist()) for x in lessons]
    return {"lessons": shown, "scores": made.curriculum.score_N, "seconds": made.curriculum_seconds}


def test_two_ranks_measure_and_decide_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    alone = _decide(tmp_path / "one", 8)
    first, second = raised(two_ranks(_decide, tmp_path / "two", 4))
    np.testing.assert_allclose(first["scores"], alone["scores"], atol=1e-6)
    assert len(second["scores"]) == 0  # rank 0 decides
    assert [rows for rows, _ in first["lessons"]] == [rows for rows, _ in alone["lessons"]]
    for (_, mine), (_, theirs) in zip(first["lessons"], alone["lessons"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)  # near-greedy single tokens: the same on one process and two
    assert alone["seconds"] > 0
