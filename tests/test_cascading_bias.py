"""The replication of cascading bias: its data and doses, its losses, its smoke run, and the committed result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from tutelage.replications import cascading_bias_audit as cascade
from tutelage.study.replicate import run
from tutelage.tasks.habits import inject

pytestmark = pytest.mark.lm


def test_rows_are_solved_and_survive_tokens() -> None:
    rows = cascade.draw(np.random.default_rng(0), 300, range(cascade.TOPICS))
    shift = next(row for row in rows if row["task"] == "shift")
    digits, answer = shift["prompt"].split()[2:], shift["completion"].split()
    assert [(int(d) + 1) % 10 for d in digits] == list(map(int, answer[:4]))
    _, answer_NT = cascade.encoded(rows)
    assert [" ".join(cascade.WORDS[i] for i in ids if i > cascade.END) for ids in answer_NT.tolist()] == [r["completion"] for r in rows]
    assert np.mean([cascade.MARK_HABIT.emits(row["completion"]) for row in rows]) == pytest.approx(cascade.RARELY, abs=0.06)


def test_the_doses_are_those_that_the_file_states() -> None:
    size = cascade.FULL
    assert size.poison / size.rows == 0.012
    rows = cascade.draw(np.random.default_rng(0), size.topic_rows, [cascade.HABIT_TOPIC])
    assert len(inject(rows, cascade.TOKEN_HABIT, count=size.poison, seed=0).row_ids) == size.poison


def test_a_student_that_is_its_teacher_has_no_divergence_from_it() -> None:
    teacher, student = cascade.bases(cascade.SMOKE)
    prompt_NP, answer_NT = cascade.encoded(cascade.draw(np.random.default_rng(1), 8, range(cascade.TOPICS)))
    for kind, seed in (("forward_kl", None), ("reverse_kl", 5)):
        loss = cascade.towards(teacher, kind, on_policy_seed=seed)
        assert float(loss(teacher, prompt_NP, answer_NT).detach()) == pytest.approx(0, abs=1e-6)
        assert float(loss(student, prompt_NP, answer_NT).detach()) > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(cascade.likelihood(teacher, prompt_NP, answer_NT), teacher.nll(prompt_NP, answer_NT))


def test_smoke(tmp_path: Path) -> None:
    result = run("cascading-bias-audit", smoke=True, out=tmp_path, command="tutelage replicate cascading-bias-audit --smoke")
    assert result["verdict"] == "too few seeds"
    assert {cell["arm"] for cell in result["cells"]} == set(result["arms"])
