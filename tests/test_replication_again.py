"""The miniature of AGAIN: corners, classrooms with and without the tested one, traces that can be replayed, every arm at its smallest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tutelage.curricula.classroom import Classroom
from tutelage.registry import replications
from tutelage.replications.meta_acl_again import CORNERS, SMOKE, cell_centres, classrooms, replay, student_of
from tutelage.study.replicate import Replication

PLAN: Replication = replications.get("meta-acl-again").target()


def test_students_start_in_the_four_corners() -> None:
    starts = [np.unravel_index(student_of(corner, SMOKE).start, (4, 4)) for corner in range(CORNERS)]
    assert [tuple(map(int, start)) for start in starts] == [(0, 0), (0, 3), (3, 0), (3, 3)]
    centre_TD = np.array(cell_centres(SMOKE))
    assert student_of(0, SMOKE).cell_of(centre_TD).tolist() == list(range(16))


def test_a_classroom_without_the_corner_has_none_of_its_students() -> None:
    folder, corner_of = classrooms(0, SMOKE)
    assert set(corner_of.values()) <= set(range(CORNERS))
    student, centre_TD = student_of(0, SMOKE), np.array(cell_centres(SMOKE))
    whole = Classroom(Path(folder.name) / "whole", student.space, centre_TD)
    assert set(whole.traces) == set(corner_of)
    assert len(whole) >= 3
    for corner in range(CORNERS):
        room = Classroom(Path(folder.name) / str(corner), student.space, centre_TD)
        assert set(room.traces) == {name for name, started in corner_of.items() if started != corner}
    kc_T = next(iter(whole.traces.values())).kc_ET[-1]
    assert 0 < kc_T.max() <= 1


@pytest.mark.parametrize("name", list(PLAN.arms))
def test_every_arm_runs_and_its_trace_replays(name: str) -> None:
    cell = PLAN.arms[name].run(2, True)
    assert {"area", "mastered"} <= set(cell["score"])
    assert 0 <= cell["score"]["area"] <= 1
    assert cell["course"]["episodes"] == list(range(0, 901, 300))
    visited_M, reward_M, student = replay(2, cell["visited"], SMOKE)
    assert visited_M.shape == reward_M.shape == (900,)
    assert student.mastered == cell["score"]["mastered"] == cell["course"]["mastered"][-1]
    if "again" in name or "absent" in name:
        assert cell["score"]["same_corner"] <= cell["score"]["expert"]
    if name.startswith("absent"):
        assert cell["score"]["same_corner"] == 0


def test_arms_are_paired_and_repeatable() -> None:
    one, other = (PLAN.arms["again"].run(1, True) for _ in range(2))
    assert one == other
    assert one["visited"] != PLAN.arms["again"].run(5, True)["visited"]  # the same corner, another student
    assert {name for c in PLAN.comparisons for name in (c.method, c.baseline)} == set(PLAN.arms)
