"""Checkpoints: whole or not there, and a resumed run is the unbroken one."""
# ruff: noqa: E402

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
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
from tutelage.trainers import _checkpoint
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reuse": {"num_iterations": 2, "steps_per_generation": 2, "save_steps": 1},
    "accumulate": {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "save_steps": 1},
    "epochs": {"save_steps": 3, "max_steps": 10, "per_device_train_batch_size": 32},
    "reference": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "save_steps": 3},
}


def make(path: Path, *, name: str = "sec", lessons: list[Any] | None = None, model: Any = None, **options: Any) -> Any:
    data, pool = tiny.tasks()
    defaults = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    hear = [] if lessons is None else [lambda x: lessons.append((x.step, x.rows_N.tolist(), x.outcomes.reward_NG.tolist()))]
    return Trainer(
        model or tiny.model(dropout=0.1), tiny.digits, args=tiny.grpo_config(path, **defaults | options), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=tt.curriculum(name, pool, seed=5), lesson_callbacks=hear,
    )  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_resumed_equals_unbroken(tmp_path: Path, setting: str) -> None:
    options = dict(SETTINGS[setting])
    if "beta" in options:
        options["model"] = tiny.saved(tmp_path / "model")
    whole: list[Any] = []
    unbroken = make(tmp_path / "a", lessons=whole, **options)
    unbroken.train()
    checkpoints = complete_checkpoints(tmp_path / "a")
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints[:-1]:
        lessons: list[Any] = []
        torch.manual_seed(99)
        resumed = make(tmp_path / "b", lessons=lessons, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
        assert lessons == whole[len(whole) - len(lessons) :]
        assert resumed.ledger == unbroken.ledger
        assert len(lessons) < len(whole)
        ours, theirs = (
            [{k: v for k, v in h.items() if k.startswith(("reward", "curriculum", "completions"))} for h in t.state.log_history]
            for t in (resumed, unbroken)
        )
        assert ours[-2] == theirs[-2]


def test_lora_resumes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    finals = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        data, pool = tiny.tasks()
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
        made = Trainer(
            tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path, save_strategy="steps", save_steps=2), train_dataset=data,
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool), peft_config=config,
        )  # fmt: skip
        made.train(resume_from_checkpoint=resume)
        finals.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*finals)


def test_a_filter_resumes_with_evaluation_and_best_model(tmp_path: Path) -> None:
    finals, best = [], []
    for resume in (None, True):
        data, pool = tiny.tasks()
        config = tiny.grpo_config(
            tmp_path, max_steps=6, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=False,
            metric_for_best_model="eval_reward", greater_is_better=True, per_device_eval_batch_size=8, save_total_limit=3,
        )  # fmt: skip
        made = Trainer(
            tiny.model(dropout=0.1), tiny.has_a, args=config, train_dataset=data, eval_dataset=data.select(range(4)),
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("odf", pool),
        )  # fmt: skip
        made.train(resume_from_checkpoint=resume)
        finals.append(tiny.weights(made.model))
        best.append(made.state.best_model_checkpoint)
        assert Path(best[-1]).parent == tmp_path
        assert json.loads((Path(best[-1]) / "trainer_state.json").read_text())["best_model_checkpoint"] == best[-1]
        shutil.rmtree(tmp_path / "checkpoint-6")
    np.testing.assert_array_equal(*finals)
    assert best[0] == best[1]


def _train_in_child(path: Path, resume: bool, die_at: int | None, record: str) -> None:
    """Train to the end, or until killed: from outside, or at the n-th call that touches the disk."""
    os.close(1)
    if die_at is not None:
        calls = iter(range(die_at, -1, -1))

        def deadly(function: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if next(calls) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapped

        for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (torch, "save"), (shutil, "rmtree"), (json, "dumps")):
            setattr(module, name, deadly(getattr(module, name)))
    lessons: list[Any] = []
    made = make(path, lessons=lessons, save_steps=1, num_iterations=2, save_total_limit=2)
    made.train(resume_from_checkpoint=resume)
    np.save(record, tiny.weights(made.model))
    os._exit(0)


def _run_child(*args: Any, kill_after: float | None = None) -> bool:
    """Whether the child came to its end by itself."""
    child = multiprocessing.get_context("fork").Process(target=_train_in_child, args=args)
    child.start()
    if kill_after is not None:
        time.sleep(kill_after)
        child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode == 0


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at random moments, and at chosen calls while a checkpoint is written; resumed until done; the same weights, bit for bit."""
    reference = str(tmp_path / "reference.npy")
    began = time.perf_counter()
    assert _run_child(tmp_path / "unbroken", False, None, reference)
    whole = time.perf_counter() - began
    rng = random.Random(0)
    for trial in range(3):
        run, record = tmp_path / f"run{trial}", str(tmp_path / f"final{trial}.npy")
        done, kills = False, 0
        while not done:
            resume = bool(complete_checkpoints(run))
            die_at = rng.randrange(60) if trial else None
            kill_after = None if trial else rng.uniform(0.1, 0.6) * whole
            done = _run_child(run, resume, None if kills > 12 else die_at, record, kill_after=None if kills > 12 else kill_after)
            kills += not done
        assert kills > 0
        np.testing.assert_array_equal(np.load(record), np.load(reference))


def break_newest(run: Path, how: str) -> None:
    newest = complete_checkpoints(run)[-1]
    if how == "truncated":
        with (newest / "model.safetensors").open("r+b") as file:
            file.truncate(100)
    elif how == "flipped":
        raw = bytearray((newest / "optimizer.pt").read_bytes())
        raw[len(raw) // 2] ^= 1
        (newest / "optimizer.pt").write_bytes(raw)
    elif how == "missing":
        (newest / "lessons.npz").unlink()
    elif how == "manifest":
        (newest / "tutelage.json").write_text('{"schema": 1, "fil')
    elif how == "unfinished":
        (newest / "tutelage.json").unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "manifest", "unfinished"])
def test_damaged_checkpoints_are_passed_over_and_named(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    unbroken = make(tmp_path, save_steps=2)
    unbroken.train()
    expected = tiny.weights(unbroken.model)
    break_newest(tmp_path, how)
    resumed = make(tmp_path, save_steps=2)
    with pytest.raises(TutelageError, match=r"Cannot resume from .*checkpoint-6: its? .*newest whole checkpoint"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    resumed.train(resume_from_checkpoint=True)
    assert list(resumed.skipped_checkpoints) == ["checkpoint-6"]
    assert "Passing over" in caplog.text
    assert "checkpoint-6" in caplog.text
    np.testing.assert_array_equal(tiny.weights(resumed.model), expected)
    assert [c.name for c in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("where", ["os.fsync", "torch.save", "os.rename"])
def test_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = make(tmp_path / "a")
    unbroken.train()
    made = make(tmp_path / "b")
    module, name = {"os.fsync": (os, "fsync"), "torch.save": (torch, "save"), "os.rename": (os, "rename")}[where]
    usual = getattr(module, name)

    def full(*args: Any, **kwargs: Any) -> Any:
        if made.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(TutelageError, match=r"checkpoint-4 could not be written: .*No space left.*as they were"):
            made.train()
    assert [c.name for c in complete_checkpoints(tmp_path / "b")] == ["checkpoint-2"]
    assert not (tmp_path / "b" / ".incomplete").exists()
    resumed = make(tmp_path / "b")
    resumed.train(resume_from_checkpoint=True)
    np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    made = make(tmp_path, save_steps=1, save_total_limit=2)
    made.train()
    assert [c.name for c in complete_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]
    for step in (7, 8, 9):
        shutil.copytree(tmp_path / "checkpoint-6", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-9" / "tutelage.json").unlink()
    _checkpoint.rotate(tmp_path, 1, {tmp_path / "checkpoint-5", tmp_path / "checkpoint-7"})
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-7", "checkpoint-9"]
    assert [c.name for c in complete_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-7"]


def test_the_newest_stays_though_another_is_the_best(tmp_path: Path) -> None:
    data, pool = tiny.tasks()
    scores = iter([3.0] * 4 + [2.0] * 4 + [1.0] * 8)

    def worse(completions: list[str], **columns: Any) -> list[float]:
        score = next(scores) if len(completions) == 4 else 0.5
        return [score for _ in completions]

    config = tiny.grpo_config(
        tmp_path, max_steps=6, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_reward", greater_is_better=True, per_device_eval_batch_size=4, save_total_limit=1,
    )  # fmt: skip
    made = Trainer(
        tiny.model(), worse, args=config, train_dataset=data, eval_dataset=data.select(range(4)), processing_class=tiny.tokenizer(),
        curriculum=tt.curriculum("uniform", pool), solved=tiny.has_a,
    )  # fmt: skip
    made.train()
    assert [c.name for c in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6"]
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert made.args.save_total_limit == 1


def test_a_new_run_replaces_checkpoints_of_the_same_step(tmp_path: Path) -> None:
    make(tmp_path, seed=1).train()
    second = make(tmp_path, seed=2)
    second.train()
    assert [c.name for c in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    third = make(tmp_path, seed=2)
    third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    np.testing.assert_array_equal(tiny.weights(third.model), tiny.weights(second.model))


def test_what_cannot_be_resumed_says_so(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="There is no whole checkpoint"):
        make(tmp_path / "none").train(resume_from_checkpoint=True)
    with pytest.raises(TutelageError, match="there is no such folder"):
        make(tmp_path / "none").train(resume_from_checkpoint=str(tmp_path / "no"))
    make(tmp_path / "model", save_only_model=True).train()
    with pytest.raises(TutelageError, match="save_only_model=True"):
        make(tmp_path / "model").train(resume_from_checkpoint=True)
    make(tmp_path / "sec").train()
    with pytest.raises(TutelageError, match="belongs to something else"):
        make(tmp_path / "sec", name="uniform").train(resume_from_checkpoint=True)
    data, _ = tiny.tasks()
    config = tiny.grpo_config(tmp_path / "plain", save_strategy="steps", save_steps=2)
    trl.GRPOTrainer(tiny.model(), tiny.digits, args=config, train_dataset=data, processing_class=tiny.tokenizer()).train()
    with pytest.raises(TutelageError, match="was not written by a trainer with a curriculum"):
        make(tmp_path / "plain").train(resume_from_checkpoint=True)


def test_other_settings_go_on_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, num_iterations=2, max_steps=3, save_steps=3).train()
    resumed = make(tmp_path, num_iterations=3, max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert "num_iterations was 2 and is 3" in caplog.text
    assert resumed.ledger.updates == 5
