"""Verifiers as reward functions: what is judged, what is paid, what the curriculum reads afterwards, and inside TRL's own trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind, group_advantage
from tutelage.tasks.loaders import pool_of, to_dataset
from tutelage.tasks.rewards import FormatIndependent, VerifierReward, completion_text, correct_only
from tutelage.tasks.verifiers import Judgement, resolve

PROMPTS = ["1 + 1 =", "1 + 1 =", "2 + 2 =", "2 + 2 ="]
COMPLETIONS = ["2", "3", "I don't know.", ""]
KINDS = [Kind.CORRECT, Kind.WRONG, Kind.REFUSED, Kind.MALFORMED]


def half(completion: str, task: Mapping[str, Any]) -> Judgement:
    """Half the grade for "half", and the verdict of the column `answer` otherwise."""
    if completion == "half":
        return Judgement(Kind.WRONG, 0.5)
    right = completion == task["answer"]
    return Judgement(Kind.CORRECT if right else Kind.WRONG, float(right))


def test_rewards_are_grades_and_kinds_stay_apart() -> None:
    reward = VerifierReward(resolve("numeric"))
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 4, answer=["2", "2", "4", "4"]) == [1.0, 0.0, 0.0, 0.0]
    assert reward.last_kind.tolist() == KINDS
    assert reward.last_grade.tolist() == reward.last_reward.tolist() == [1.0, 0.0, 0.0, 0.0]
    reward(["3 + 3 ="], ["6"], answer=["6"])
    assert reward.last_kind.tolist() == [Kind.CORRECT]


def test_conversational_completions_are_judged_by_what_the_assistant_said_last() -> None:
    reward = VerifierReward(resolve("numeric"))
    prompts = [[{"role": "user", "content": p}] for p in PROMPTS[:2]]
    completions = [[{"role": "assistant", "content": "2"}], [{"role": "assistant", "content": "1"}, {"role": "assistant", "content": "2"}]]
    assert reward(prompts, completions, answer=["2", "2"]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "a"}], "a"),
        ([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}], "a"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"content": "a"}], "a"),
        ([], ""),
    ],
)
def test_the_text_of_a_completion(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize("completion", [3, None, ["text"], [[1, 2]]])
def test_what_is_no_completion_is_refused(completion: Any) -> None:
    with pytest.raises(TutelageError, match="must be text or a list of chat messages"):
        completion_text(completion)


def test_format_reward_pays_the_well_formed_alone_and_never_lowers() -> None:
    reward = VerifierReward(resolve("numeric"), format_reward=0.1)
    assert reward(PROMPTS, COMPLETIONS, answer=["2", "2", "4", "4"]) == [1.0, 0.1, 0.0, 0.0]
    assert reward.last_grade.tolist() == [1.0, 0.0, 0.0, 0.0]
    graded = VerifierReward(half, format_reward=0.1)
    assert graded(["p", "p"], ["half", "other"], answer=["x", "x"]) == [0.5, 0.1]
    with pytest.raises(TutelageError, match="format_reward=1"):
        VerifierReward(half, format_reward=1)


def test_shaping_changes_the_reward_and_not_the_judgement() -> None:
    def shorter_is_better(kind_B, grade_B, texts_B):
        return grade_B - 0.1 * np.array([len(text) for text in texts_B]) - (kind_B == Kind.WRONG)

    reward = VerifierReward(half, shaping=shorter_is_better)
    assert reward(["p", "q"], ["xx", "y"], answer=["xx", "x"]) == pytest.approx([0.8, -1.1])
    assert reward.last_grade.tolist() == [1.0, 0.0]
    with pytest.raises(TutelageError, match=r"shape \(1,\); expected \(2,\)"):
        VerifierReward(half, shaping=lambda kind, grade, texts: [0.0])(["p", "q"], ["a", "b"], answer=["a", "b"])


BOTH = [r"So \boxed{2}.", "It is 2.", r"So \boxed{3}.", "It is 3."]


def test_the_two_rewards_of_simplerl_zoo_by_its_table() -> None:
    """Correct or wrong, boxed or not; the verifier is lenient, so an unboxed answer can be correct."""
    answers = {"answer": ["2"] * 4}
    plain = VerifierReward(resolve("numeric"), shaping=correct_only)
    rigid = VerifierReward(resolve("numeric"), shaping=FormatIndependent())
    assert plain(["p"] * 4, BOTH, **answers) == [1.0, 1.0, 0.0, 0.0]
    assert rigid(["p"] * 4, BOTH, **answers) == [1.0, 0.5, -0.5, -1.0]
    assert rigid.last_grade.tolist() == [1.0, 1.0, 0.0, 0.0]  # the curriculum sees what was solved
    assert rigid(["p"] * 3, [r"\boxed{2", r"\boxed{}", r"<think>\boxed{2}</think> 2"], answer=["2"] * 3) == [0.5, -1.0, 0.5]
    own = FormatIndependent(correct=2, correct_unformatted=1, wrong=0.1, wrong_unformatted=0, formatted="marked")
    assert VerifierReward(resolve("numeric"), shaping=own)(["p"] * 2, ["Answer: 2", "3"], answer=["2"] * 2) == [2.0, 0.0]
    with pytest.raises(TutelageError, match="Did you mean 'boxed'"):
        FormatIndependent(formatted="boxd")


def test_the_pressure_towards_format_in_one_group() -> None:
    """Of [correct & boxed, wrong & boxed, wrong, wrong] the boxed one is pushed down less than the others, under the rigid reward only."""
    kinds, texts = np.array([Kind.CORRECT, Kind.WRONG, Kind.WRONG, Kind.WRONG]), [BOTH[0], BOTH[2], BOTH[3], BOTH[3]]
    rigid, plain = (shaping(kinds, np.zeros(4), texts) for shaping in (FormatIndependent(), correct_only))
    assert rigid.mean() == -0.375
    assert rigid.std(ddof=1) == pytest.approx(0.946485, abs=1e-6)
    assert group_advantage([rigid])[0] == pytest.approx([1.452744, -0.132068, -0.660338, -0.660338], abs=1e-6)
    assert group_advantage([plain])[0] == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_columns_that_are_not_rows_are_left_alone() -> None:
    seen = []

    def spy(completion: str, task: Mapping[str, Any]) -> Judgement:
        seen.append(dict(task))
        return Judgement(Kind.CORRECT, 1.0)

    VerifierReward(spy)(["p"], ["c"], answer=["a"], task_tools=["t"], task_family=["f"], trainer_state=object(), log_extra=print)
    assert seen == [{"prompt": "p", "answer": "a", "tools": "t", "task_family": "f"}]


def test_a_pool_brings_the_columns_that_the_data_set_lacks() -> None:
    pool = pool_of({"prompt": ["p", "q"], "answer": ["1", "2"], "id": ["a", "b"]}, key="id")
    reward = VerifierReward(half, pool=pool)
    assert reward(["q", "p", "q"], ["2", "1", "1"], key=["b", "a", "b"]) == [1.0, 1.0, 0.0]
    with pytest.raises(TutelageError, match=r"no column 'key'.*answer"):
        reward(["q"], ["2"], answer=["2"])
    with pytest.raises(TutelageError, match="not in this pool"):
        reward(["q"], ["2"], key=["c"])


def test_errors_of_the_verifier_name_the_task() -> None:
    def broken(completion: str, task: Mapping[str, Any]) -> Judgement:
        raise KeyError("gold")

    with pytest.raises(TutelageError, match=r"broken failed on task '2 \+ 2 ='.*KeyError"):
        VerifierReward(broken)(["2 + 2 ="], ["4"])
    with pytest.raises(TutelageError, match=r"'abc'.*no answer to judge by"):
        VerifierReward(resolve("numeric"))(["2 + 2 ="], ["4"], key=["abc"])


@pytest.mark.parametrize(("verifier", "name"), [(resolve("numeric", rel_tol=0.1), "numeric"), (resolve("exact"), "exact"), (half, "half")])
def test_the_name_under_which_trl_logs(verifier: Any, name: str) -> None:
    assert VerifierReward(verifier).__name__ == name


@pytest.mark.lm
@pytest.mark.parametrize("chat", [False, True])
def test_inside_trls_trainer(chat: bool, tmp_path: Path) -> None:
    """One real GRPO step: the reward sees every row's own columns, reserved names included, of plain and of conversational prompts."""
    trl = pytest.importorskip("trl")
    import tiny

    tokenizer = tiny.tokenizer()
    if not chat:
        tokenizer.chat_template = None
    pool = pool_of([{"prompt": f"{i}+{i}=", "answer": str(2 * i), "tools": f"tool {i}"} for i in range(4)])
    seen: list[Mapping[str, Any]] = []

    def spy(completion: str, task: Mapping[str, Any]) -> Judgement:
        seen.append(task)
        return Judgement(Kind.WRONG, 0.25)

    reward = VerifierReward(spy)
    trainer = trl.GRPOTrainer(
        model=tiny.model(),
        reward_funcs=reward,
        args=tiny.grpo_config(tmp_path, max_steps=1),
        train_dataset=to_dataset(pool, tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    assert reward.last_grade.tolist() == [0.25] * len(seen)
    for task in seen:
        row = pool.row(int(pool.rows_of([task["key"]])[0]))
        assert (task["answer"], task["tools"]) == (row["answer"], row["tools"])
        assert task["prompt"] == ([{"role": "user", "content": row["prompt"]}] if chat else row["prompt"] + "\n")
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert "rewards/spy/mean" in logged, logged
