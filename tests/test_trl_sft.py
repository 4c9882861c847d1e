"""Supervised fine-tuning with a curriculum: rows chosen per optimiser step, signals from the training pass itself."""
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
from tutelage.errors import TutelageError
from tutelage.trainers.trl import complete_checkpoints, with_curriculum

Trainer = with_curriculum(trl.SFTTrainer)
SIZE = 20


class Recite(tt.Curriculum):
    """Rows in order, round and round; keeps what it is shown."""

    name = "recite"
    needs = frozenset({"signals/loss", "signals/entropy", "length_NG"})
    memory = ("at",)

    def __init__(self, pool: tt.TaskPool) -> None:
        super().__init__(pool)
        self.at, self.shown = 0, []

    def _propose(self, n: int) -> np.ndarray:
        self.at += n
        return np.arange(self.at - n, self.at) % len(self.pool)

    def _observe(self, outcomes: tt.Outcomes, *, probe: bool) -> None:
        self.shown.append((probe, outcomes))


class Steep(tt.Curriculum):
    """Repeats the rows of highest loss, so that its decisions hang on the signal."""

    name = "steep"
    needs = frozenset({"signals/loss"})
    memory = ("loss_N",)

    def __init__(self, pool: tt.TaskPool) -> None:
        super().__init__(pool)
        self.loss_N = np.full(len(pool), 99.0)

    def _propose(self, n: int) -> np.ndarray:
        return np.argsort(-self.loss_N, kind="stable")[np.arange(n) % len(self.pool)]

    def _observe(self, outcomes: tt.Outcomes, *, probe: bool) -> None:
        self.loss_N[self.pool.rows_of(outcomes.key_N)] = outcomes.signals["loss"]


def rows(chat: bool = False) -> Dataset:
    prompts, answers = [f"{i:02d}=" for i in range(SIZE)], [f"{'abc'[i % 3] * (1 + i % 4)}" for i in range(SIZE)]
    if not chat:
        return Dataset.from_dict({"prompt": prompts, "completion": answers})
    said = [[{"role": "user", "content": p}] for p in prompts], [[{"role": "assistant", "content": a}] for a in answers]
    return Dataset.from_dict({"prompt": said[0], "completion": said[1]})


def make(path: Path, cur: tt.Curriculum | None, *, chat: bool = False, trainer: type = Trainer, **options: Any) -> Any:
    ours = {k: options.pop(k) for k in ("lesson_callbacks", "objective", "peft_config", "eval_dataset") if k in options}
    ours |= {"curriculum": cur} if trainer is Trainer else {}
    net = tiny.model(dropout=options.pop("dropout", 0.1))
    config = tiny.sft_config(path, **options)
    return trainer(net, args=config, train_dataset=rows(chat), processing_class=tiny.tokenizer(), **ours)


def pool() -> tt.TaskPool:
    return tt.TaskPool(arm=[i % 3 for i in range(SIZE)])


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"max_steps": -1, "num_train_epochs": 2}])
def test_rows_in_order_train_as_trl_does(tmp_path: Path, options: dict[str, Any], chat: bool) -> None:
    finals = []
    for trainer, extra in ((trl.SFTTrainer, {"train_sampling_strategy": "sequential"}), (Trainer, {})):
        made = make(tmp_path, Recite(pool()), chat=chat, trainer=trainer, dropout=0.0, **options, **extra)
        made.train()
        finals.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*finals)


def test_signals_are_those_of_the_model_before_the_step(tmp_path: Path) -> None:
    cur = Recite(pool())
    made = make(tmp_path, cur, gradient_accumulation_steps=2, max_steps=1, dropout=0.0)
    forward = []
    made.model.model.register_forward_hook(lambda *_: forward.append(1))
    made.train()
    assert len(forward) == 2  # one pass per micro-batch
    [(probe, outcomes)] = cur.shown
    assert not probe
    assert outcomes.key_N.tolist() == list(range(8))
    net, dataset = tiny.model().train(), made.train_dataset
    for i in range(8):
        ids, labels = torch.tensor([dataset[i]["input_ids"]]), torch.tensor([dataset[i]["labels"]])
        logp = net(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        kept = labels[0, 1:] != -100
        loss = -logp[kept].gather(1, ids[0, 1:][kept, None]).mean()
        entropy = -(logp[kept].exp() * logp[kept]).sum(1).mean()
        assert outcomes.length_NG[i, 0] == kept.sum()
        assert outcomes.signals["loss"][i] == pytest.approx(loss.item(), abs=1e-4)
        assert outcomes.signals["entropy"][i] == pytest.approx(entropy.item(), abs=1e-4)


def test_ledger_lessons_and_metrics(tmp_path: Path) -> None:
    lessons: list[Any] = []
    made = make(tmp_path, tt.curriculum("uniform", pool()), lesson_callbacks=[lessons.append], gradient_accumulation_steps=3)
    made.train()
    assert [(x.step, len(x.rows_N)) for x in lessons] == [(0, 12), (1, 8), (2, 12), (3, 8)]  # TRL cuts the last step of an epoch short
    tokens = sum(x.outcomes.length_NG.sum() for x in lessons)
    ledger = made.ledger
    assert (ledger.updates, ledger.lessons, ledger.rollouts, ledger.tokens, ledger.training_tokens) == (4, 4, 0, tokens, tokens)
    assert made.curriculum_seconds > 0


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_resumed_equals_unbroken(tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    unbroken, lessons = make(tmp_path / "a", Steep(pool()), **options), []
    unbroken.train()
    for checkpoint in complete_checkpoints(tmp_path / "a")[:2]:
        resumed = make(tmp_path / "b", Steep(pool()), lesson_callbacks=[lessons.append], **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
        np.testing.assert_array_equal(resumed.curriculum.loss_N, unbroken.curriculum.loss_N)
        assert resumed.ledger == unbroken.ledger


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    finals = []
    for extra in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rows()}):
        made = make(tmp_path, Steep(pool()), **extra)
        made.train()
        finals.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*finals)


class Curious(Recite):
    """Asks about seven rows before each lesson."""

    name = "curious"

    def wants(self) -> tt.Wants:
        return tt.Wants(rows_N=np.arange(7) + self.at % 10, signals=("loss",))


def test_wants_are_answered_and_counted(tmp_path: Path) -> None:
    cur = Curious(pool())
    made = make(tmp_path, cur, max_steps=2)
    made.train()
    assert [(probe, len(o)) for probe, o in cur.shown] == [(True, 7), (False, 4)] * 2
    assert cur.shown[0][1].key_N.tolist() == list(range(7))
    assert made.ledger.probe_rollouts == made.ledger.rollouts == 14
    assert made.ledger.tokens > made.ledger.training_tokens
    net = tiny.model().eval()
    loss = []
    for i in range(7):
        row = made.train_dataset[i]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        loss.append(net(input_ids=ids, labels=labels).loss.item())
    np.testing.assert_allclose(cur.shown[0][1].signals["loss"], loss, atol=1e-4)


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = make(tmp_path, Steep(pool()), peft_config=config)
    made.train()
    assert made.ledger.updates == 4


def test_what_cannot_be_taught_says_so(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match=r"'sec' needs advantage_NG, reward_NG; this trainer gives .*signals/loss"):
        make(tmp_path, tt.curriculum("sec", pool()))
    with pytest.raises(TutelageError, match="'odf' needs solved_NG"):
        make(tmp_path, tt.curriculum("odf", pool()))
    with pytest.raises(TutelageError, match="shuffle_dataset of SFTConfig"):
        make(tmp_path, Steep(pool()), shuffle_dataset=True)
    with pytest.raises(TutelageError, match="train_sampling_strategy of SFTConfig"):
        make(tmp_path, Steep(pool()), train_sampling_strategy="group_by_length")
    with pytest.raises(TutelageError, match="auto_find_batch_size of SFTConfig"):
        make(tmp_path, Steep(pool()), auto_find_batch_size=True)
    with pytest.raises(TutelageError, match="packing of SFTConfig"):
        make(tmp_path, Steep(pool()), packing=True, packing_strategy="wrapped", max_length=8)
    with pytest.raises(TutelageError, match="padding_free"):
        make(tmp_path, Steep(pool()), padding_free=True, max_length=None)
    with pytest.raises(TutelageError, match="pool has 9 tasks and train_dataset 20 rows"):
        make(tmp_path, Steep(tt.TaskPool(arm=[0] * 9)))
    with pytest.raises(TutelageError, match=r"pool has 20 tasks and train_dataset \d+ rows"):
        make(tmp_path, Steep(pool()), max_length=3)  # TRL drops rows without an answer
    with pytest.raises(TutelageError, match="IterableDataset cannot give"):
        Trainer(
            tiny.model(), args=tiny.sft_config(tmp_path), train_dataset=rows().to_iterable_dataset(), processing_class=tiny.tokenizer(),
            curriculum=Steep(pool()),
        )  # fmt: skip

    class Picky(Steep):
        def admit(self, outcomes: tt.Outcomes) -> np.ndarray:
            return np.zeros(len(outcomes), bool)

    with pytest.raises(TutelageError, match="rejects groups after their attempts"):
        make(tmp_path, Picky(pool()))
