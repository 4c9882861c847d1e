"""Traces of curricula: what is read back, what a killed or resumed run leaves behind, and whose file it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tutelage as tt
from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.traces import read_trace

SPACE = tt.TaskSpace([0.0, -1.0], [1.0, 3.0], names=["height", "spacing"])


def teacher(name: str = "alp-gmm", seed: int = 0, **hyper: object) -> SpaceCurriculum:
    small = {"fit_every": 10, "max_components": 2} if name == "alp-gmm" else {}
    built = tt.curriculum(name, SPACE, seed=seed, **small, **hyper)
    assert isinstance(built, SpaceCurriculum)
    return built


def teach(curriculum: SpaceCurriculum, lessons: int, *, start: int = 0, n: int = 3) -> list[np.ndarray]:
    """Points taught; a point's return is its first parameter, and it is solved above 0.5."""
    taught = []
    for step in range(start, start + lessons):
        points_ND = curriculum.propose(n)
        reward_N = points_ND[:, 0]
        curriculum.observe(tt.Outcomes.of(SPACE, points_ND[::-1], reward=reward_N[::-1], solved=reward_N[::-1] > 0.5, step=step))
        taught.append(points_ND)
    return taught


@pytest.mark.parametrize("name", ["random", "alp-gmm", "riac"])
def test_what_was_taught_is_read_back_to_the_bit(tmp_path: Path, name: str) -> None:
    curriculum = teacher(name)
    curriculum.log_to(tmp_path / "trace.jsonl")
    taught_MD = np.concatenate(teach(curriculum, 8))
    still_open_ND = curriculum.propose(2)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert trace.curriculum == name
    assert (trace.space.fingerprint, trace.space.names) == (SPACE.fingerprint, SPACE.names)
    np.testing.assert_array_equal(trace.point_MD, np.concatenate([taught_MD, still_open_ND]))
    if name != "random":
        np.testing.assert_array_equal(trace.reward_M[:24], taught_MD[:, 0])
        np.testing.assert_array_equal(trace.solved_M[:24], taught_MD[:, 0] > 0.5)
    np.testing.assert_array_equal(trace.step_M, [*np.repeat(np.arange(8), 3), -1, -1])
    assert np.isnan(trace.reward_M[24:]).all()
    assert np.isnan(trace.returned_M[24:]).all()
    assert (trace.returned_M[:24] >= trace.proposed_M[:24]).all()
    assert trace.warnings == ()
    assert len(trace) == 26


def test_logged_and_unlogged_runs_decide_alike_and_fits_are_kept(tmp_path: Path) -> None:
    logged, plain = teacher(), teacher()
    logged.log_to(tmp_path / "trace.jsonl")
    np.testing.assert_array_equal(teach(logged, 12), teach(plain, 12))
    fits = read_trace(tmp_path / "trace.jsonl").fits
    assert [fit["episode"] for fit in fits] == [10, 20, 30]
    np.testing.assert_array_equal(fits[-1]["mean"], plain.mean_KQ)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(fits[-1]["cov"], plain.cov_KQQ)  # type: ignore[attr-defined]


def test_a_point_twice_belongs_to_its_proposals_in_order(tmp_path: Path) -> None:
    curriculum = teacher("adr", initial=(0.5, 0.0), boundary_share=0.0)
    curriculum.log_to(tmp_path / "trace.jsonl")
    points_ND = curriculum.propose(2)
    assert (points_ND[0] == points_ND[1]).all()
    for reward in (1.0, 2.0):
        curriculum.observe(tt.Outcomes.of(SPACE, points_ND[:1], reward=[[reward, reward + 1]]))
    np.testing.assert_array_equal(read_trace(tmp_path / "trace.jsonl").reward_M, [1.5, 2.5])


def test_answers_to_wants_are_kept(tmp_path: Path) -> None:
    curriculum = teacher("self-paced", update_every=4, update_offset=0, values="query")
    curriculum.log_to(tmp_path / "trace.jsonl")
    teach(curriculum, 1, n=4)
    wants = curriculum.wants()
    assert wants is not None
    curriculum.observe(tt.Outcomes.of(SPACE, wants.rows_N, signals={"value": [1.0, 2.0, 3.0, 4.0]}), probe=True)
    (answer,) = read_trace(tmp_path / "trace.jsonl").answers
    assert answer["signals"] == {"value": [1.0, 2.0, 3.0, 4.0]}
    np.testing.assert_array_equal(answer["points"], wants.rows_N)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_cut_off_last_line_is_survived_and_counted(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "trace.jsonl"
    curriculum = teacher()
    curriculum.log_to(path)
    teach(curriculum, 5)
    state = curriculum.state_dict()
    path.write_bytes(path.read_bytes()[:-cut])
    trace = read_trace(path)
    assert [(w.count, w.first) for w in trace.warnings] == [(1, f"{path}, line 12")]  # head, 5 proposals, 5 lessons, a fit
    assert np.isfinite(trace.reward_M).sum() == 12  # the last lesson stands open

    resumed = teacher()
    resumed.load_state_dict(state)
    resumed.log_to(path)
    teach(resumed, 1, start=5)
    trace = read_trace(path)
    assert np.isfinite(trace.reward_M).sum() == 15
    assert {w.what[:20]: w.count for w in trace.warnings} == {"events that the stat": 1, "last lines that were": 1}


@pytest.mark.parametrize("attach_first", [True, False])
def test_what_a_resumed_run_lives_again_counts_once(tmp_path: Path, attach_first: bool) -> None:
    path, whole = tmp_path / "trace.jsonl", tmp_path / "whole.jsonl"
    unbroken = teacher()
    unbroken.log_to(whole)
    teach(unbroken, 9)
    broken = teacher()
    broken.log_to(path)
    teach(broken, 4)
    state = broken.state_dict()
    teach(broken, 3, start=4)  # lost with the run that died here

    resumed = teacher()
    if attach_first:
        resumed.log_to(path)
    resumed.load_state_dict(state)
    if not attach_first:
        resumed.log_to(path)
    teach(resumed, 5, start=4)
    trace, expected = read_trace(path), read_trace(whole)
    np.testing.assert_array_equal(trace.point_MD, expected.point_MD)
    np.testing.assert_array_equal(trace.reward_M, expected.reward_M)
    assert [fit["episode"] for fit in trace.fits] == [10, 20]
    (warning,) = trace.warnings
    assert warning.count == 7  # 3 proposals, 3 lessons, the fit after episode 20
    assert "lived again" in warning.what
    assert resumed.state_dict()["logged"] == unbroken.state_dict()["logged"]


def test_a_fresh_run_does_not_bury_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    first = teacher()
    first.log_to(path)
    teach(first, 2)
    before = path.read_bytes()
    second = teacher()
    second.log_to(path)
    with pytest.raises(tt.TutelageError, match="holds 4 events of an earlier run"):
        second.propose(1)
    other = teacher(seed=1)
    other.log_to(path)
    with pytest.raises(tt.TutelageError, match="the trace of another run"):
        other.propose(1)
    assert path.read_bytes() == before


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(tt.TutelageError, match=r"suffix \.jsonl"):
        teacher().log_to(tmp_path / "trace.npz")
    with pytest.raises(tt.TutelageError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    path = tmp_path / "trace.jsonl"
    for content, message in (
        ("", "holds no whole line"),
        ('{"trace": 9}\n', r"line 1 begins \{'trace': 9\}"),
        ('{"trace": 1}\n', "KeyError: 'space'"),
        ('{"trace": 1}\n{"eve\n', "line 2 cannot be read"),
        ('{"trace": 1}\n[1]\n', "line 2 cannot be read: it is no event"),
    ):
        path.write_text(content)
        with pytest.raises(tt.TutelageError, match=message):
            read_trace(path)


def test_it_is_plain_json(tmp_path: Path) -> None:
    curriculum = teacher()
    curriculum.log_to(tmp_path / "trace.jsonl")
    teach(curriculum, 4)
    rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert rows[0]["space"] == {"low": [0.0, -1.0], "high": [1.0, 3.0], "names": ["height", "spacing"]}
    assert [row["event"] for row in rows[1:]] == [*["proposed", "observed"] * 4, "fitted"]
