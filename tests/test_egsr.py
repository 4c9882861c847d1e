"""EGSR without an engine: who gets help, what goes in and for whom, the advantages that come of it, the ratio's three readings."""
# ruff: noqa: E402

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.lm
torch = pytest.importorskip("torch")

from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.outcomes import group_advantage
from tutelage.registry import replications, teachers
from tutelage.replications import egsr as miniature
from tutelage.students.tiny_causal import TinyCausal
from tutelage.study.replicate import run
from tutelage.study.stats import seeds_needed
from tutelage.teachers.egsr import TEMPLATES, Egsr, inject, overlap
from tutelage.teachers.groups import OWN, Attempts, Groups
from tutelage.trainers.ledger import Ledger

ZEROS = np.zeros(8)
FAILED = np.zeros(8, dtype=bool)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_success_among_eight() -> None:
    """The sheet's case: std 0.353553, advantages +2.474874 and -0.353553; Dr. GRPO +0.875 and -0.125; both add up to 0."""
    assert (group_advantage(ZEROS[None]) == 0).all()
    mixed_G, place = inject(ZEROS, FAILED, 1.0, rng=rng())
    assert (place, mixed_G.tolist()) == (7, [0.0] * 7 + [1.0])
    assert ZEROS.sum() == 0  # not changed in place
    advantage_G = group_advantage(mixed_G[None])[0]
    np.testing.assert_allclose(advantage_G, [-0.353553] * 7 + [2.474874], atol=1e-6)
    assert advantage_G[7] == pytest.approx(7 / math.sqrt(8))
    reward_NG = torch.from_numpy(mixed_G[None])
    np.testing.assert_allclose(objective("dr_grpo").advantages(reward_NG).numpy(), [-0.125] * 7 + [0.875])
    for name in ("grpo", "dr_grpo"):
        assert float(objective(name, kl_coef=0.0).advantages(reward_NG).sum()) == pytest.approx(0, abs=1e-12)


def test_which_answer_gives_way() -> None:
    reward_G, solved_G = np.array([0.2, 0.0, 1.0, 0.0, 0.3]), np.array([False, False, True, False, False])
    assert inject(reward_G, solved_G, 1.0, rng=rng())[1] == 3
    assert inject(np.array([0.2, np.nan, 0.1]), FAILED[:3], 1.0, rng=rng())[1] == 1
    drawn = {inject(reward_G, solved_G, 1.0, replace="random", rng=np.random.default_rng(seed))[1] for seed in range(60)}
    assert drawn == {0, 1, 3, 4}
    with pytest.raises(TutelageError, match="none of this group failed"):
        inject(np.ones(2), ~FAILED[:2], 1.0, rng=rng())


def test_overlap() -> None:
    assert overlap("the cat sat on the mat", "The cat sat on the mat.", ngram=4) == 1.0
    assert overlap("a b c d e", "a b c x e", ngram=3) == pytest.approx(1 / 3)
    assert overlap("a b c d e", "a b c x e", ngram=1) == pytest.approx(4 / 5)
    assert overlap("two words", "here are two words and more", ngram=4) == 1.0  # shorter than n: as one gram
    assert overlap("", "expert") == overlap("answer", "") == 0.0
    assert overlap([3, 4, 5], (9, 3, 4, 8), ngram=2) == 0.5


class Engine:
    """Answers whatever it is asked with the attempts given: per group, lists of (text, grade)."""

    def __init__(self, answers: dict[int, list[tuple[str, float]]], length: int = 9) -> None:
        self.answers, self.length, self.asked = answers, length, []

    def __call__(self, index_M: np.ndarray, prompts: list[Any], attempts: int) -> Attempts:
        self.asked.append((index_M.tolist(), prompts, attempts))
        rows = [self.answers[n] for n in index_M]
        grade_MK = np.array([[grade for _, grade in row] for row in rows])
        return Attempts(grade_MK, grade_MK.copy(), np.full(grade_MK.shape, self.length), [[text for text, _ in row] for row in rows])


def groups(engine: Engine, solved_NG: Any, *, lesson: int = 0, **columns: Any) -> Groups:
    solved_NG = np.asarray(solved_NG, dtype=np.float64)
    tasks = [{"prompt": f"q{n}", "solution": f"e{n}", "answer": str(n)} for n in range(len(solved_NG))]
    tasks = [task | {name: column[n] for name, column in columns.items()} for n, task in enumerate(tasks)]
    return Groups.of(tasks, solved_NG, solved_NG * 2, lesson=lesson, ask=engine)


def test_only_dead_groups_are_helped() -> None:
    engine = Engine({0: [("own words", 1.0)], 3: [("wrong", 0.0)]})
    before = groups(engine, [[0, 0], [0, 1], [1, 1], [0, 0], [np.nan, np.nan]])
    after = Egsr(template="{prompt}|{hint}").intervene(before)
    assert engine.asked == [([0, 3], ["q0|e0", "q3|e3"], 1)]
    assert after.guided_NG.tolist() == [[OWN, 0], [OWN, OWN], [OWN, OWN], [OWN, OWN], [OWN, OWN]]
    np.testing.assert_array_equal(after.solved_NG[0], [0, 1])
    np.testing.assert_array_equal(after.reward_NG[1:], before.reward_NG[1:])  # guidance that fails leaves the group as it was
    assert after.metrics == {"guided_share": 0.4, "success": 0.5, "overlap": 0.0}
    assert after.expert == {0: "e0", 3: "e3"}
    assert (before.guided_NG == OWN).all()


def test_nothing_to_help_asks_nothing() -> None:
    engine = Engine({})
    after = Egsr().intervene(groups(engine, [[1, 0], [1, 1]]))
    assert (engine.asked, after.metrics) == ([], {"guided_share": 0.0})
    assert (after.guided_NG == OWN).all()
    assert Egsr().intervene(groups(engine, [[0, 0]], solution=[None])).metrics == {"guided_share": 0.0}
    assert Egsr().intervene(groups(engine, [[0, 0]], solution=["  "])).metrics == {"guided_share": 0.0}


def test_a_trigger_above_zero_helps_weak_groups_too() -> None:
    engine = Engine({0: [("x", 1.0)], 1: [("x", 1.0)]})
    after = Egsr(trigger=0.25).intervene(groups(engine, [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]]))
    assert after.guided_NG.tolist() == [[OWN] * 3 + [0], [OWN, OWN, 1, OWN], [OWN] * 4]


def test_partial_grades_are_no_success() -> None:
    engine = Engine({0: [("x", 0.6)]})
    assert (Egsr().intervene(groups(engine, [[0.5, 0.9]])).guided_NG == OWN).all()
    assert Egsr(success=0.6).intervene(groups(engine, [[0.5, 0.3]])).guided_NG.tolist() == [[OWN, 0]]
    assert not Egsr(success=0.9).needs_help(np.array([[0.5, 0.9]]))[0]


def test_the_best_of_several_guided_answers() -> None:
    engine = Engine({0: [("w", 0.0), ("x", 1.0), ("y", 1.0)], 1: [("w", 0.0)] * 3, 2: [("w", 0.0), ("w", np.nan), ("z", 1.0)]})
    after = Egsr(guided_attempts=3).intervene(groups(engine, np.zeros((3, 2))))
    assert after.guided_NG.tolist() == [[OWN, 1], [OWN, OWN], [OWN, 8]]
    assert after.metrics["success"] == pytest.approx(2 / 3)


def test_copies_and_bare_answers_are_refused() -> None:
    said = "first we add two and three"
    engine = Engine({0: [(said, 1.0)], 1: [("sum them: two, three", 1.0)]}, length=5)
    lesson = groups(engine, np.zeros((2, 2)), solution=[f"{said}, which is five", "add two and three"])
    assert Egsr().intervene(lesson).guided_NG[:, 1].tolist() == [0, 1]
    refused = Egsr(max_overlap=0.9, ngram=3).intervene(lesson)
    assert refused.guided_NG[:, 1].tolist() == [OWN, 1]
    assert refused.metrics["overlap"] == pytest.approx(0.5)
    assert (Egsr(min_length=6).intervene(lesson).guided_NG == OWN).all()


def test_random_replacement_depends_on_seed_and_lesson_alone() -> None:
    engine = Engine({n: [("x", 1.0)] for n in range(6)})

    def places(seed: int, lesson: int) -> list[int]:
        return Egsr(replace="random", seed=seed).intervene(groups(engine, np.zeros((6, 8)), lesson=lesson)).guided_NG.argmax(1).tolist()

    assert places(0, 3) == places(0, 3)
    assert places(0, 3) != places(0, 4) != places(1, 4)


def test_prompts() -> None:
    teacher = Egsr()
    assert teacher.guide("1+1=\n", "It is {prompt} 2.").startswith("1+1=\n\nHere is a worked solution to help you:\nIt is {prompt} 2.\n\n")
    assert teacher.guide("1+1=\n", "2").endswith("\n")
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1="}]
    guided = teacher.guide(chat, "2")
    assert guided[0] == chat[0]
    assert guided[1]["role"] == "user"
    assert "Here is a worked solution to help you:\n2\n" in guided[1]["content"]
    assert chat[1]["content"] == "1+1="
    assert Egsr(hint="answer").guide("q", "42").startswith("q\n\nTo help you: the correct final answer is 42.")
    assert Egsr(template=lambda prompt, hint: [*prompt, *hint]).guide([1], [2]) == [1, 2]
    assert set(TEMPLATES) == {"solution", "answer"}


def test_the_answer_as_a_hint_may_be_a_number() -> None:
    engine = Engine({0: [("x", 1.0)]})
    Egsr(hint="answer", template="{prompt}:{hint}").intervene(groups(engine, [[0, 0]], answer=[7]))
    assert engine.asked == [([0], ["q0:7"], 1)]


def test_registration_and_errors() -> None:
    assert teachers.build("egsr", ratio="none", trigger=0.2).ratio == "none"
    with pytest.raises(TutelageError, match="Did you mean 'ratio'"):
        teachers.build("egsr", ration="none")
    for bad, words in (
        ({"ratio": "clip"}, "Unknown ratio 'clip'"),
        ({"hint": "both"}, "Unknown hint"),
        ({"replace": "best"}, "Unknown replace"),
        ({"trigger": 1.0}, r"trigger must lie in \[0, 1\); got 1.0"),
        ({"guided_attempts": 0}, "guided_attempts must be at least 1; got 0"),
        ({"advantage_cap": 0.0}, "advantage_cap must be positive"),
        ({"max_overlap": 1.5}, "max_overlap must lie"),
        ({"template": "only {prompt}"}, r"must hold the fields \{prompt\} and \{hint\}"),
    ):
        with pytest.raises(TutelageError, match=words):
            Egsr(**bad)


def test_data_without_hints() -> None:
    teacher = Egsr()
    teacher.check(["prompt", "solution"], lambda name: [None, "", "worked"])
    with pytest.raises(
        TutelageError, match=r"shows the student the task's solution, and train_dataset has only prompt, answer\. .*hint='answer'"
    ):
        teacher.check(["prompt", "answer"], lambda name: [])
    with pytest.raises(TutelageError, match="all in train_dataset are empty"):
        teacher.check(["solution"], lambda name: [None, " "])
    with pytest.raises(TutelageError, match="holds 3 of type int; expected text"):
        teacher.check(["solution"], lambda name: [None, 3])
    Egsr(hint="answer").check(["answer"], lambda name: [3])


# The ratio, on a real student ----------------------------------------------------------------------------------------------------------


def test_the_three_ratios() -> None:
    """At theta = old: (a) is 1, (b) is pi(o'|q) / pi(o'|q, e) token by token, and (c) has the gradient of the log-likelihood."""
    net = TinyCausal(vocabulary=9, context=16, seed=0, width=16)
    q, qe = torch.tensor([[2, 3]]), torch.tensor([[2, 3, 5, 6]])
    answer = torch.tensor([[[4, 5, 1]]])
    logp, guided = net.logp(q, answer)[0], net.logp(qe, answer)[0].detach()
    loss = objective("grpo", kl_coef=0.0, clip_low=None, clip_high=None)
    mask = torch.ones(1, 3, dtype=torch.bool)

    def gradient(old: torch.Tensor) -> torch.Tensor:
        batch = {"logp_BT": logp, "old_logp_BT": old, "mask_BT": mask, "advantage_B": torch.tensor([2.0])}
        return torch.autograd.grad(loss(batch, denominators=loss.denominators_of(batch))[0], logp, retain_graph=True)[0]

    torch.testing.assert_close(gradient(logp.detach()), torch.full((1, 3), -2.0 / 3))
    torch.testing.assert_close(gradient(guided), -2.0 / 3 * (logp.detach() - guided).exp())
    half = torch.tensor([[0.2, 0.2, 0.2]]).log(), torch.tensor([[0.8, 0.8, 0.8]]).log()
    batch = {"logp_BT": half[0].requires_grad_(), "old_logp_BT": half[1], "mask_BT": mask, "advantage_B": torch.tensor([1.0])}
    value, stats = loss(batch, denominators=loss.denominators_of(batch))
    assert float(stats["ratio"]) == pytest.approx(0.25)  # the sheet's case
    assert value.item() == pytest.approx(-0.25)


def test_groups_are_not_changed_in_place() -> None:
    engine = Engine({0: [("x", 1.0)]})
    before = groups(engine, [[0, 0]])
    copy = dataclasses.replace(before, reward_NG=before.reward_NG.copy())
    Egsr().intervene(before)
    np.testing.assert_array_equal(before.reward_NG, copy.reward_NG)
    assert (before.solved_NG == 0).all()


# The replication -------------------------------------------------------------------------------------------------------------------------


def test_tasks_of_the_miniature() -> None:
    """A list with unknown digits, worked by hand: 3, 1 (unknown), 4 make 3, 4, 3 modulo 5; the last two slots are blank."""
    digit_NT = np.array([[3, 6, 4, -1, -1]])
    assert miniature.solution(digit_NT, 100).tolist() == [[103, 104, 103, 0, 0]]
    prompt = miniature.prompts(digit_NT)[0].tolist()
    blank = [miniature.BLANK] * 5
    assert prompt == [6, 9, 7, *blank[:2], *blank, miniature.ASK]
    hint = miniature.solution(digit_NT, miniature.THEIRS)
    shown = miniature.prompts(digit_NT, hint)[0].tolist()
    assert miniature.guide(prompt, hint[0, :3].tolist()) == shown
    assert miniature.guide(prompt, hint[0, 2:3].tolist()) == [*shown[:5], *blank[:2], shown[7], *shown[8:]]
    answer = torch.from_numpy(np.stack([miniature.solution(digit_NT, a) for a in (miniature.MINE, miniature.THEIRS)], axis=1))
    assert miniature.solved(answer, digit_NT).tolist() == [[1, 1]]
    answer[0, 0, 1] += miniature.BASE  # a right total in the wrong alphabet: mixed answers are wrong
    assert miniature.solved(answer, digit_NT).tolist() == [[0, 1]]


def test_held_out_lists_are_never_taught() -> None:
    taught, held_out = (set(map(tuple, part.tolist())) for part in miniature.hard_lists())
    assert (len(taught), len(held_out)) == (2678, 447)
    assert not taught & held_out
    drawn = miniature.hard(np.random.default_rng(0), 5000)
    assert set(map(tuple, drawn.tolist())) <= taught
    assert drawn.min() >= miniature.BASE


def test_smoke_of_the_replication(tmp_path: Path) -> None:
    result = run("egsr", smoke=True, out=tmp_path, command="tutelage replicate egsr --smoke")
    assert {c["verdict"] for c in result["comparisons"]} == {"too few seeds"}
    plan = replications.get("egsr").target()
    assert {name for c in plan.comparisons for name in (c.method, c.baseline)} == set(plan.arms)
    assert plan.seeds >= seeds_needed(len(plan.comparisons))
    starts = {(cell["seed"], cell["curve"]["purity"][0]) for cell in result["cells"]}
    assert len(starts) == 2  # one pre-trained student per seed, shared by all arms
    cost = {cell["arm"]: cell["cost"] for cell in result["cells"]}
    assert cost["grpo"]["rollouts"] == 2 * 4 * 5 >= cost["egsr"]["rollouts"]
    assert cost["egsr"]["guided_rollouts"] == cost["egsr"]["rollouts"] - 2 * 4 * 4 > 0
    assert cost["sft"]["rollouts"] == 0
    assert cost["reformulated"]["guided_rollouts"] == 2 * 4
    assert (tmp_path / "egsr.smoke.json").exists()


def test_help_moves_a_student_that_never_succeeds() -> None:
    """A student that copies hints and knows nothing else: one EGSR step raises log pi(o'|q), plain GRPO leaves every weight as it was."""
    size = dataclasses.replace(miniature.FULL, pretraining=120, updates=1, prompts=8)
    student = miniature.pretrained(100, size)
    for teacher, moved in ((None, False), (Egsr(template=miniature.guide, guided_attempts=8), True)):
        net = copy.deepcopy(student)
        room = miniature.Classroom(
            net, torch.optim.Adam(net.parameters()), 1e-2, torch.Generator().manual_seed(0), np.random.default_rng(0), size, Ledger()
        )
        room.reinforce(teacher, 4)
        changed = any(not torch.equal(a, b) for a, b in zip(net.parameters(), student.parameters(), strict=True))
        assert changed == moved
        assert (room.ledger.guided_rollouts > 0) == moved
