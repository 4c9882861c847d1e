"""The replication of several packs at once: what its skills ask for, and that low-rank adapters begin at the base."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from tutelage.replications.graftllm_fusion import LENGTHS, NEW, _low_rank, skill
from tutelage.students.parallel_answers import DIGITS, SortingTasks

pytestmark = pytest.mark.lm


@pytest.fixture
def tasks():
    return SortingTasks.draw(np.random.default_rng(0), per_arm=4, lengths=LENGTHS)


def test_each_skill_has_symbols_and_answers_of_its_own(tasks):
    reverse, sums = (skill(tasks, name) for name in NEW)
    for token_T, mask_T, shown_T, answer_T in zip(tasks.token_NT, tasks.mask_NT, reverse.token_NT, reverse.answer_NT, strict=True):
        value_T = token_T[mask_T] % 5
        assert shown_T[mask_T].tolist() == (value_T + DIGITS).tolist()
        assert answer_T[mask_T].tolist() == value_T.flip(0).tolist()
        assert (answer_T[~mask_T] == 0).all()
    for token_T, mask_T, shown_T, answer_T in zip(tasks.token_NT, tasks.mask_NT, sums.token_NT, sums.answer_NT, strict=True):
        value_T = token_T[mask_T] % 5
        assert shown_T[mask_T].tolist() == (value_T + DIGITS + 5).tolist()
        assert answer_T[mask_T].tolist() == [sum(value_T[: i + 1].tolist()) % 5 for i in range(len(value_T))]
    assert skill(tasks, "sort") is tasks


def test_an_adapter_begins_at_the_base_and_has_its_rank():
    weight, adapter = torch.randn(6, 4), _low_rank((6, 4), 2)
    assert torch.equal(adapter(weight), weight)
    torch.nn.init.normal_(adapter.b)
    assert torch.linalg.matrix_rank(adapter(weight) - weight) == 2
