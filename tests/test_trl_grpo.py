"""GRPO with a curriculum: what is proposed, what is observed, what is counted."""
# ruff: noqa: E402

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

from datasets import Dataset

import tiny
from tutelage.errors import TutelageError
from tutelage.trainers.trl import with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)


def run(path: Path, *, name: str = "sec", reward: Any = tiny.digits, chat: bool = False, trainer: type = Trainer, **options: Any) -> Any:
    data, pool = tiny.tasks(chat=chat)
    ours = {k: options.pop(k) for k in ("solved", "lesson_callbacks", "refill_cap", "on_short", "objective", "peft_config") if k in options}
    cur = options.pop("curriculum", None) or tt.curriculum(name, pool, seed=3)
    made = trainer(
        tiny.model(), reward, args=tiny.grpo_config(path, **options), train_dataset=data, processing_class=tiny.tokenizer(),
        curriculum=cur, **ours,
    )  # fmt: skip
    made.train()
    return made


def test_lessons_and_ledger(tmp_path: Path) -> None:
    lessons: list[Any] = []
    made = run(tmp_path, lesson_callbacks=[lessons.append])
    assert [x.step for x in lessons] == [0, 1, 2, 3]
    assert all(x.rows_N.shape == (2,) and x.outcomes.reward_NG.shape == (2, 4) for x in lessons)
    assert made.ledger.updates == 4
    assert made.ledger.lessons == 4
    assert made.ledger.rollouts == 32
    assert made.ledger.tokens == made.ledger.training_tokens == sum(x.outcomes.length_NG.sum() for x in lessons)
    assert [x.ledger.rollouts for x in lessons] == [8, 16, 24, 32]
    logged = [h for h in made.state.log_history if "curriculum/arm_entropy" in h]
    assert len(logged) == 4


def test_rows_are_those_proposed_and_columns_those_returned(tmp_path: Path) -> None:
    seen: list[Any] = []

    def reward(prompts: list[str], completions: list[str], number: list[int], **columns: Any) -> list[float]:
        values = [float(len(c) % 3) - 0.5 for c in completions]
        seen.append((list(prompts), list(number), values, [len(i) for i in columns["completion_ids"]]))
        return values

    lessons: list[Any] = []
    run(tmp_path, reward=reward, name="uniform", lesson_callbacks=[lessons.append])
    for lesson, (prompts, number, values, length) in zip(lessons, seen, strict=True):
        assert number == np.repeat(lesson.rows_N, 4).tolist()
        assert prompts == [f"{i:02d}=" for i in number]
        outcomes = lesson.outcomes
        assert outcomes.solved_NG is None  # -0.5 is no judgement
        assert outcomes.reward_NG.ravel().tolist() == values
        assert outcomes.length_NG.ravel().tolist() == length
        reward_NG = outcomes.reward_NG
        expected = (reward_NG - reward_NG.mean(1, keepdims=True)) / (reward_NG.std(1, ddof=1, keepdims=True) + 1e-4)
        np.testing.assert_allclose(outcomes.advantage_NG, expected, atol=1e-5)


@pytest.mark.parametrize("chat", [False, True])
def test_two_rewards_weights_and_named_judge(tmp_path: Path, chat: bool) -> None:
    lessons: list[Any] = []
    made = run(
        tmp_path, chat=chat, reward=[tiny.digits, tiny.has_a], solved="has_a", lesson_callbacks=[lessons.append], reward_weights=[2.0, 0.5]
    )
    assert made.ledger.lessons == 4
    for lesson in lessons:
        assert set(np.unique(lesson.outcomes.solved_NG)) <= {0.0, 1.0}
        graded = (lesson.outcomes.reward_NG - 0.5 * lesson.outcomes.solved_NG) / 2
        assert graded.min() >= -1e-6
        assert graded.max() <= 1 + 1e-6


class Verifier:
    """Holds kinds and grades of its last call; its reward is shaped."""

    __name__ = "verifier"

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        self.last_kind = [1 if "a" in t else 3 for t in completions]
        self.last_grade = [float("a" in t) for t in completions]
        return [g - 0.01 * len(t) for g, t in zip(self.last_grade, completions, strict=True)]


def test_verifier_protocol(tmp_path: Path) -> None:
    lessons: list[Any] = []
    run(tmp_path, reward=Verifier(), lesson_callbacks=[lessons.append])
    for lesson in lessons:
        np.testing.assert_array_equal(lesson.outcomes.kind_NG, np.where(lesson.outcomes.solved_NG == 1, 1, 3))
        assert lesson.outcomes.kind_NG.dtype == np.int8


def test_callable_judge_and_unscorable(tmp_path: Path) -> None:
    lessons: list[Any] = []

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if i % 4 == 0 else float(len(c)) for i, c in enumerate(completions)]

    def judge(completions: list[str], number: list[int], **columns: Any) -> list[float | None]:
        return [None if n % 2 else 1.0 for n in number]

    run(tmp_path, reward=reward, solved=judge, lesson_callbacks=[lessons.append])
    for lesson in lessons:
        outcomes = lesson.outcomes
        np.testing.assert_array_equal(np.isnan(outcomes.solved_NG), np.repeat(lesson.rows_N % 2 == 1, 4).reshape(2, 4))
        assert np.isnan(outcomes.reward_NG[:, 0]).all()
        assert (outcomes.advantage_NG[:, 0] == 0).all()
        assert not np.isnan(outcomes.advantage_NG).any()


def test_without_curriculum_it_is_plain_trl(tmp_path: Path) -> None:
    data, _ = tiny.tasks()
    finals = []
    for trainer in (trl.GRPOTrainer, Trainer):
        made = trainer(tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path), train_dataset=data, processing_class=tiny.tokenizer())
        made.train()
        finals.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*finals)


def test_seeds_decide_everything(tmp_path: Path) -> None:
    first, second = (tiny.weights(run(tmp_path, name="uniform").model) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = tiny.weights(run(tmp_path, name="uniform", seed=7).model)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("options", "lessons"),
    [
        ({"num_iterations": 2}, 2),
        ({"gradient_accumulation_steps": 2}, 4),
        ({"steps_per_generation": 2}, 2),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, 8),
        ({"max_steps": -1, "num_train_epochs": 0.5}, 6),
    ],
)
def test_generation_happens_as_often_as_in_trl(tmp_path: Path, options: dict[str, Any], lessons: int) -> None:
    made = run(tmp_path, **options)
    assert made.ledger.lessons == lessons
    assert made.ledger.rollouts == lessons * made.args.generation_batch_size
    plain_data, _ = tiny.tasks()
    plain = trl.GRPOTrainer(
        tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path, **options), train_dataset=plain_data, processing_class=tiny.tokenizer()
    )
    assert len(plain.get_train_dataloader()) == len(made.get_train_dataloader())


def test_decisions_use_every_outcome_before(tmp_path: Path) -> None:
    """A curriculum that repeats the task it saw last: any stale decision breaks the chain."""

    class Chain(tt.Curriculum):
        name = "chain"
        memory = ("next",)

        def __init__(self, pool: tt.TaskPool) -> None:
            super().__init__(pool)
            self.next = 0

        def _propose(self, n: int) -> np.ndarray:
            return np.full(n, self.next)

        def _observe(self, outcomes: tt.Outcomes, *, probe: bool) -> None:
            self.next = (self.next + int(outcomes.length_NG.sum())) % len(self.pool)

    lessons: list[Any] = []
    run(tmp_path, curriculum=Chain(tiny.tasks()[1]), lesson_callbacks=[lessons.append], gradient_accumulation_steps=2)
    expected = 0
    for lesson in lessons:
        assert (lesson.rows_N == expected).all()
        expected = (expected + int(lesson.outcomes.length_NG.sum())) % 24


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    data, _ = tiny.tasks(8)
    finals = []
    for every in (None, 1):
        extra = {} if every is None else {"eval_strategy": "steps", "eval_steps": every, "per_device_eval_batch_size": 8}
        _, pool = tiny.tasks()
        made = Trainer(
            tiny.model(dropout=0.1), tiny.digits, args=tiny.grpo_config(tmp_path, **extra), train_dataset=tiny.tasks()[0],
            eval_dataset=data, processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool),
        )  # fmt: skip
        made.train()
        finals.append(tiny.weights(made.model))
    np.testing.assert_array_equal(*finals)


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = run(tmp_path, peft_config=config, beta=0.1)
    assert made.ledger.updates == 4
    assert {n for n, p in made.model.named_parameters() if p.requires_grad} != set()


def test_subclass_of_a_user(tmp_path: Path) -> None:
    class Mine(trl.GRPOTrainer):
        calls = 0

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            Mine.calls += 1
            return super()._generate_and_score_completions(inputs)

    assert with_curriculum(Mine) is with_curriculum(Mine)
    assert with_curriculum(with_curriculum(Mine)) is with_curriculum(Mine)
    made = run(tmp_path, trainer=with_curriculum(Mine))
    assert isinstance(made, Mine)
    assert Mine.calls == 4


def test_a_shuffled_data_set_is_noticed(tmp_path: Path) -> None:
    data, pool = tiny.tasks()

    def make(keys: list[Any], pool: tt.TaskPool = pool) -> Any:
        return Trainer(
            tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path), train_dataset=data.add_column("key", keys),
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool),
        )  # fmt: skip

    make(list(range(24)))
    make([f"question {i}" for i in range(24)])  # some other key
    make([100 + i for i in range(24)])
    named = tt.TaskPool(key=[f"k{i}" for i in range(24)])
    make([f"k{i}" for i in range(24)], named)
    with pytest.raises(TutelageError, match=r"Row 0 of train_dataset has the key 'k1' and row 0 of the curriculum's pool the key .*'k0'"):
        make([f"k{(i + 1) % 24}" for i in range(24)], named)
    with pytest.raises(TutelageError, match="shuffled or sorted"):
        make([23 - i for i in range(24)])


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    data, pool = tiny.tasks()
    with pytest.raises(TutelageError, match=r"pool has 24 tasks and train_dataset 23 rows"):
        Trainer(
            tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path), train_dataset=data.select(range(23)),
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool),
        )  # fmt: skip
    with pytest.raises(TutelageError, match="expected a curriculum over a pool"):
        run(tmp_path, curriculum="sec")
    with pytest.raises(TutelageError, match=r"'has_b'. Did you mean 'has_a'"):
        run(tmp_path, reward=tiny.has_a, solved="has_b")
    with pytest.raises(TutelageError, match=r"is a int; expected None, the name"):
        run(tmp_path, solved=3)
    with pytest.raises(TutelageError, match="IterableDataset cannot give"):
        Trainer(
            tiny.model(), tiny.digits, args=tiny.grpo_config(tmp_path), train_dataset=data.to_iterable_dataset(),
            processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool),
        )  # fmt: skip
    with pytest.raises(TutelageError, match=r"takes trl.GRPOTrainer, trl.SFTTrainer or a subclass"):
        with_curriculum(Dataset)
    with pytest.raises(TutelageError, match="the verifier, or give one"):
        run(tmp_path, name="odf", reward=lambda completions, **_: [2.0 + len(c) for c in completions])


class Asks(tt.Curriculum):
    """Asks for three attempts at five tasks before every lesson."""

    name = "asks"
    memory = ("at",)

    def __init__(self, pool: tt.TaskPool, signals: tuple[str, ...] = ()) -> None:
        super().__init__(pool)
        self.at, self.shown, self.signals = 0, [], signals

    def wants(self) -> tt.Wants | None:
        self.at += 5
        return tt.Wants(rows_N=np.arange(self.at, self.at + 5) % len(self.pool), attempts=3, signals=self.signals)

    def _propose(self, n: int) -> np.ndarray:
        return np.arange(n)

    def _observe(self, outcomes: tt.Outcomes, *, probe: bool) -> None:
        self.shown.append((probe, outcomes))


def test_wants_are_answered_before_the_proposal_and_counted(tmp_path: Path) -> None:
    cur = Asks(tiny.tasks()[1])
    made = run(tmp_path, curriculum=cur, max_steps=2, log_completions=True, num_completions_to_print=0, reward=tiny.has_a)
    assert [(probe, o.reward_NG.shape) for probe, o in cur.shown] == [(True, (5, 3)), (False, (2, 4))] * 2
    assert cur.shown[2][1].key_N.tolist() == [10, 11, 12, 13, 14]
    ledger = made.ledger
    assert (ledger.lessons, ledger.rollouts, ledger.probe_rollouts, ledger.rejected_rollouts) == (2, 46, 30, 0)
    assert ledger.training_tokens == sum(o.length_NG.sum() for probe, o in cur.shown if not probe)
    assert ledger.tokens > ledger.training_tokens
    for (_, outcomes), logged in zip(cur.shown[1::2], made.state.log_history, strict=False):
        assert logged["reward"] == pytest.approx(outcomes.reward_NG.mean())
    assert len(made._logs["prompt"]) == 8
    with pytest.raises(TutelageError, match="wants the signals entropy; GRPO measures attempts"):
        run(tmp_path, curriculum=Asks(tiny.tasks()[1], ("entropy",)))


def test_a_group_of_one_is_refused(tmp_path: Path) -> None:
    data, pool = tiny.tasks()
    config = tiny.grpo_config(tmp_path)
    config.num_generations = 1
    with pytest.raises(TutelageError, match="num_generations=1 leaves no group"):
        Trainer(
            tiny.model(), tiny.digits, args=config, train_dataset=data, processing_class=tiny.tokenizer(),
            curriculum=tt.curriculum("sec", pool),
        )  # fmt: skip


def test_a_curriculum_that_needs_signals_is_refused(tmp_path: Path) -> None:
    class Needs(Asks):
        needs = frozenset({"signals/loss"})

    with pytest.raises(TutelageError, match="needs signals/loss; this trainer gives advantage_NG"):
        run(tmp_path, curriculum=Needs(tiny.tasks()[1]))
