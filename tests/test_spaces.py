"""`TaskSpace`, points in `Outcomes`, and the errors of both, which name the field."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tutelage as tt
from tutelage.spaces import keys_of

SPACE = tt.TaskSpace([0.0, 0.0], [3.0, 6.0], names=["stump_height", "spacing"])
POOL = tt.TaskPool(arm=[0, 0, 1], difficulty=[0.0, 1.0, 2.0])


# --- the space


def test_a_space() -> None:
    assert SPACE.dimensions == 2
    assert SPACE.range_D.tolist() == [3.0, 6.0]
    assert repr(SPACE) == "TaskSpace(stump_height [0, 3], spacing [0, 6])"
    points_ND = SPACE.sample(1000, np.random.default_rng(0))
    assert points_ND.dtype == np.float64
    assert points_ND.shape == (1000, 2)
    assert SPACE.contains(points_ND).all()
    np.testing.assert_allclose(points_ND.mean(axis=0), [1.5, 3.0], atol=0.2)
    assert SPACE.contains(np.array([[0.0, 6.0], [3.0, 6.1]])).tolist() == [True, False]
    assert SPACE.clip(np.array([[-1.0, 7.0]])).tolist() == [[0.0, 6.0]]
    with pytest.raises(ValueError, match="read-only"):
        SPACE.low_D[0] = 1.0


def test_names_do_not_make_another_space() -> None:
    assert tt.TaskSpace([0, 0], [3, 6]).fingerprint == SPACE.fingerprint
    assert tt.TaskSpace([0, 0], [3, 7]).fingerprint != SPACE.fingerprint


@pytest.mark.parametrize(
    ("low", "high", "names", "message"),
    [
        ([0, 0], [1, 0], ["a", "b"], r"side 'b' runs from low_D 0.0 to high_D 0.0 and is empty"),
        ([0, 2], [1, 1], None, r"side 'x1' runs from low_D 2.0 to high_D 1.0 and is empty"),
        ([0, 0], [1, np.inf], ["a", "b"], r"side 'b' .* high_D inf; both bounds must be finite"),
        ([-np.inf], [1], None, r"side 'x0' .* both bounds must be finite"),
        ([0], [np.nan], None, r"both bounds must be finite"),
        ([-1e308], [1e308], None, r"both bounds must be finite"),
        ([0], [1, 2], None, r"low_D has 1 parameters and high_D has 2"),
        (0.0, 1.0, None, r"low_D has shape \(\); expected \(D,\)"),
        ([], [], None, r"low_D has shape \(0,\)"),
        (["a"], [1], None, r"low_D must hold numbers"),
        ([0, 0], [1, 1], ["a", "a"], r"expected 2 different names"),
        ([0, 0], [1, 1], ["a"], r"expected 2 different names"),
    ],
)
def test_what_is_no_space(low: Any, high: Any, names: Any, message: str) -> None:
    with pytest.raises(tt.TutelageError, match=message):
        tt.TaskSpace(low, high, names=names)


def test_a_box_stands_for_a_space() -> None:
    box = SimpleNamespace(low=np.zeros(2, np.float32), high=np.array([3, 6], np.float32))
    assert tt.TaskSpace.of(box).fingerprint == SPACE.fingerprint
    assert tt.TaskSpace.from_box(box, names=SPACE.names).names == SPACE.names
    one, other = tt.curriculum("alp-gmm", box, seed=3), tt.curriculum("alp-gmm", SPACE, seed=3)
    points_ND = one.propose(8)
    assert np.array_equal(points_ND, other.propose(8))
    one.observe(tt.Outcomes.of(box, points_ND, reward=np.ones(8)))
    other.load_state_dict(one.state_dict())


def test_gymnasium_both_ways() -> None:
    pytest.importorskip("gymnasium")
    box = SPACE.to_box()
    assert box.dtype == np.float64
    assert tt.TaskSpace.of(box).fingerprint == SPACE.fingerprint


def test_a_box_without_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium.spaces", None)
    with pytest.raises(tt.TutelageError, match=r"to_box\(\) needs gymnasium"):
        SPACE.to_box()


def test_gymnasium_is_not_imported() -> None:
    code = (
        "import sys, tutelage as tt; tt.curriculum('riac', tt.TaskSpace([0], [1])); "
        "print({'gymnasium', 'torch', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# --- points in outcomes


def test_outcomes_of_points() -> None:
    points_ND = np.array([[0.1, 5.0], [2.9, 0.0]])
    outcomes = tt.Outcomes.of(SPACE, points_ND, solved=[1.0, 0.0], reward=[230.0, -100.0])
    assert outcomes.step == 0
    assert outcomes.reward_NG.tolist() == [[230.0], [-100.0]]
    assert outcomes.pass_rate_N.tolist() == [1.0, 0.0]
    assert outcomes.point_ND.tobytes() == points_ND.tobytes()
    assert outcomes.arm_N is None
    assert [len(key) for key in outcomes.key_N] == [32, 32]
    assert outcomes.take(np.array([1])).point_ND.tolist() == [[2.9, 0.0]]
    groups = tt.Outcomes.of(SPACE, points_ND, solved=[[1, 0], [0, 0]], step=7)
    assert groups.step == 7
    assert groups.reward_NG.tolist() == [[1, 0], [0, 0]]
    np.testing.assert_allclose(groups.advantage_NG, [[0.5**0.5, -(0.5**0.5)], [0, 0]])


def test_keys_are_points() -> None:
    keys = keys_of(np.array([[0.1, 0.2], [0.1, 0.2], [0.1, np.nextafter(0.2, 1)]]))
    assert keys[0] == keys[1] != keys[2]
    minus = tt.Outcomes.of(SPACE, np.array([[-0.0, 1.0]]), reward=[0.0])
    assert minus.key_N[0] == keys_of(np.array([[0.0, 1.0]]))[0]


@pytest.mark.parametrize(
    ("points", "columns", "message"),
    [
        ([[1.0, 7.0]], {"reward": [1.0]}, r"points_ND row 0: spacing is 7.0, outside \[0.0, 6.0\]"),
        ([[1.0, 1.0], [-0.1, 1.0]], {"reward": [1.0, 1.0]}, r"points_ND row 1: stump_height is -0.1"),
        ([[1.0, np.nan]], {"reward": [1.0]}, r"points_ND row 0: spacing is nan"),
        ([1.0, 1.0], {"reward": [1.0]}, r"points_ND has shape \(2,\); expected \(N, 2\)"),
        ([[1.0]], {"reward": [1.0]}, r"points_ND has shape \(1, 1\); expected \(N, 2\)"),
        ([[1.0, 1.0]], {"reward": [np.nan]}, r"reward .* of row 0 is \[nan\]"),
        ([[1.0, 1.0]] * 2, {"reward": [[1.0, 1.0], [np.inf, 0.0]]}, r"reward .* of row 1 is \[inf, 0.0\]"),
        ([[1.0, 1.0]], {"solved": [np.nan]}, r"reward \(or solved"),
        ([[1.0, 1.0]], {"reward": [1.0, 2.0]}, r"reward_NG has shape \(2, 1\); expected \(1, G\)"),
        ([[1.0, 1.0]], {"solved": [230.0]}, r"solved_NG must lie in \[0, 1\]"),
    ],
)
def test_bad_outcomes_name_the_field(points: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(tt.TutelageError, match=message):
        tt.Outcomes.of(SPACE, points, **columns)


def test_a_pool_still_needs_its_step() -> None:
    with pytest.raises(tt.TutelageError, match="step="):
        tt.Outcomes.of(POOL, [0, 1], solved=[[1.0], [0.0]])


# --- pools and spaces are told apart


@pytest.mark.parametrize("name", ["uniform", "sec", "dump", "odf", "mixture", "easy_to_hard"])
def test_a_pool_curriculum_refuses_a_space(name: str) -> None:
    with pytest.raises(tt.TutelageError, match=rf"curriculum '{name}' teaches the tasks of a TaskPool; it got a continuous space"):
        tt.curriculum(name, SPACE)


@pytest.mark.parametrize("name", ["random", "alp-gmm", "riac", "covar-gmm", "adr", "oracle"])
def test_a_space_curriculum_refuses_a_pool(name: str) -> None:
    with pytest.raises(tt.TutelageError, match="Expected a TaskSpace or a Gymnasium Box; got a TaskPool"):
        tt.curriculum(name, POOL)


def test_outcomes_of_the_other_kind() -> None:
    curriculum = tt.curriculum("alp-gmm", SPACE)
    with pytest.raises(tt.TutelageError, match="needs the column point_ND"):
        curriculum.observe(tt.Outcomes.of(POOL, [0], reward=[[1.0]], step=0))
    with pytest.raises(tt.TutelageError, match="migrate matches memory by the names of arms"):
        tt.migrate(curriculum.state_dict(), POOL, curriculum)
    with pytest.raises(tt.TutelageError, match=r"'alp-gmm' teaches points of a TaskSpace; .* needs a curriculum over a TaskPool"):
        _ = curriculum.arms


def test_the_point_that_was_cast_is_told() -> None:
    curriculum = tt.curriculum("random", SPACE)
    cast_ND = curriculum.propose(4).astype(np.float32)
    with pytest.raises(tt.TutelageError, match=r"was never proposed .* float32"):
        curriculum.observe(tt.Outcomes.of(SPACE, cast_ND, reward=np.zeros(4)))
