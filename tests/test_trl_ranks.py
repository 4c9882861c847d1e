"""Two processes over gloo: they decide as one, their batches fit together, they resume together, and no error leaves one waiting."""
# ruff: noqa: E402

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

import tiny
from tutelage.errors import TutelageError
from tutelage.state import load_state
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)


def scripted(completions: list[str], number: list[int], **columns: Any) -> list[float]:
    """A reward that ignores the text: it depends on the row and on the attempt's place in its group, wherever it is generated."""
    first = PartialState().process_index * len(number)
    return [float((7 * n + 3 * ((first + i) % 4) + n * ((first + i) % 4)) % 5 < 2) for i, n in enumerate(number)]


def train(path: Path, name: str, share: int, *, resume: bool | str | None = None, **options: Any) -> dict[str, Any]:
    """Train on `share` samples per process and report what was decided."""
    data, pool = tiny.tasks()
    lessons: list[Any] = []
    made = Trainer(
        tiny.model(dropout=0.1), scripted, args=tiny.grpo_config(path, per_device_train_batch_size=share, **options), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=tt.curriculum(name, pool, seed=5), lesson_callbacks=[lessons.append],
    )  # fmt: skip
    batches: list[Any] = []
    usual = made.next_batch

    def spy() -> Any:
        batch = usual()
        prompts = made.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
        batches.append((prompts, batch["advantages"].tolist(), batch["num_items_in_batch"].item(), batch["completion_mask"].sum().item()))
        return batch

    made.next_batch = spy
    made.train(resume_from_checkpoint=resume)
    return {
        "lessons": [(x.step, x.rows_N.tolist(), x.outcomes.reward_NG.tolist(), x.admitted_N.tolist()) for x in lessons],
        "advantage": [x.outcomes.advantage_NG.tolist() for x in lessons],
        "state": made.curriculum.state_dict(), "batches": batches, "weights": tiny.weights(made.model), "ledger": made.ledger.state_dict(),
    }  # fmt: skip


def _rank(rank: int, port: int, results: Any, work: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        results.put((rank, work(*args, **options)))
    except BaseException as error:
        results.put((rank, error if isinstance(error, TutelageError) else RuntimeError(repr(error))))
    results.close()
    results.join_thread()
    os._exit(0)


def two_ranks(work: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """The results of two processes that run `work` as two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_rank, args=(r, port, results, work, args, options)) for r in (0, 1)]
    for child in children:
        child.start()
    try:
        found = dict(results.get(timeout=100) for _ in children)
    finally:
        for child in children:
            child.kill()
            child.join()
    return [found[0], found[1]]


def raised(found: list[Any]) -> list[Any]:
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


@pytest.mark.parametrize(
    ("name", "share", "options"),
    [
        ("sec", 8, {}),
        ("odf", 8, {"gradient_accumulation_steps": 2}),
        (
            "odf",
            6,
            {"gradient_accumulation_steps": 2, "generation_batch_size": 24, "scale_rewards": "batch"},
        ),  # a group straddles the ranks
    ],
)
def test_two_ranks_decide_as_one(tmp_path: Path, name: str, share: int, options: dict[str, Any]) -> None:
    alone = train(tmp_path / "one", name, 2 * share, **options)
    first, second = raised(two_ranks(train, tmp_path / "two", name, share, **options))
    assert first["lessons"] == alone["lessons"]
    assert second["lessons"] == []
    np.testing.assert_equal(first["state"], alone["state"])
    np.testing.assert_allclose(first["advantage"], alone["advantage"], atol=1e-6)
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert first["ledger"] == second["ledger"]
    assert len(first["batches"]) == len(alone["batches"])
    for mine, other, whole in zip(first["batches"], second["batches"], alone["batches"], strict=True):
        assert mine[0] + other[0] == whole[0]  # the very prompts, in the order of ranks
        np.testing.assert_allclose(mine[1] + other[1], whole[1], atol=1e-6)
        assert mine[2] == other[2] == mine[3] + other[3]


def test_two_ranks_resume_together(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2, "eval_strategy": "no"}
    unbroken = raised(two_ranks(train, tmp_path, "odf", 8, **options))
    newest = complete_checkpoints(tmp_path)[-2]
    assert newest.name == "checkpoint-3"
    assert {p.name for p in newest.iterdir()} >= {"engine_rank0.pt", "engine_rank1.pt", "rng_state_0.pth", "rng_state_1.pth"}
    assert load_state(newest / "lessons.npz")["ledger"]["updates"] == 3
    resumed = raised(two_ranks(train, tmp_path, "odf", 8, resume=str(newest), **options))
    for rank in (0, 1):
        np.testing.assert_array_equal(resumed[rank]["weights"], unbroken[rank]["weights"])
        assert resumed[rank]["ledger"] == unbroken[rank]["ledger"]


def _fails_on_rank_0(path: Path) -> None:
    class Broken(tt.Curriculum):
        def _propose(self, n: int) -> np.ndarray:
            raise TutelageError("the curriculum broke")

    data, pool = tiny.tasks()
    Trainer(
        tiny.model(), scripted, args=tiny.grpo_config(path), train_dataset=data, processing_class=tiny.tokenizer(), curriculum=Broken(pool)
    ).train()


def _disk_fails_on(path: Path, rank: int) -> None:
    usual = torch.save

    def full(*args: Any, **kwargs: Any) -> Any:
        if PartialState().process_index == rank:
            raise OSError(28, "No space left on device")
        return usual(*args, **kwargs)

    torch.save = full
    train(path, "sec", 8, save_strategy="steps", save_steps=1)


def test_errors_reach_every_rank(tmp_path: Path) -> None:
    first, second = two_ranks(_fails_on_rank_0, tmp_path)
    assert str(first) == "the curriculum broke"
    assert "Rank 0 could not decide" in str(second)
    assert "the curriculum broke" in str(second)
    for rank in (0, 1):
        found = two_ranks(_disk_fails_on, tmp_path, rank)
        assert all(isinstance(e, TutelageError) and "could not be written" in str(e) and "No space left" in str(e) for e in found)


def _supervise(path: Path, share: int) -> list[Any]:
    data, pool = tiny.tasks()
    data = data.map(lambda row: {"completion": "ab" * (1 + row["number"] % 3)}, remove_columns=["number", "level"])
    lessons: list[Any] = []
    made = with_curriculum(trl.SFTTrainer)(
        tiny.model(), args=tiny.sft_config(path, per_device_train_batch_size=share, gradient_accumulation_steps=2), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=tt.curriculum("uniform", pool, seed=5), lesson_callbacks=[lessons.append],
    )  # fmt: skip
    made.train()
    shown = [(x.rows_N.tolist(), x.outcomes.signals["loss"].tolist(), x.outcomes.length_NG.ravel().tolist()) for x in lessons]
    return [shown, tiny.weights(made.model), made.ledger.state_dict()]


def test_supervised_signals_find_their_rows(tmp_path: Path) -> None:
    alone = _supervise(tmp_path / "one", 6)
    first, second = raised(two_ranks(_supervise, tmp_path / "two", 3))
    assert first[2] == second[2] == alone[2]
    for (rows, loss, length), (rows_alone, loss_alone, length_alone) in zip(first[0], alone[0], strict=True):
        assert rows == rows_alone
        assert length == length_alone
        np.testing.assert_allclose(loss, loss_alone, rtol=1e-3)
    np.testing.assert_allclose(first[1].view(np.float32), alone[1].view(np.float32), atol=2e-3)
