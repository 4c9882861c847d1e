"""The benchmark of teachers over task spaces: profiles, knowledge, views, cells that are never run twice, the table and the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tutelage as tt
from tutelage import TutelageError
from tutelage.registry import curricula
from tutelage.spaces import Scaled, ShuffledBox, TaskSpace
from tutelage.students.gridded import GriddedStudent
from tutelage.study.acl import bench, profiles
from tutelage.study.acl.profiles import LEAST, LEVELS, TELLS, build_teacher, facts, registered
from tutelage.study.acl.terminal import render
from tutelage.study.acl.toys import PROFILES, GriddedSuite, Sizes, teach
from tutelage.study.acl.traces import proposed
from tutelage.study.acl.verdicts import headline, table

WIDE = TaskSpace([0.0, -1.0], [3.0, 1.0])
SMALL = ["episodes=60", "cells=3", "visits=4", "evaluations=3"]


# --- views of a space


def test_a_shuffled_box_is_undone_by_its_inverse() -> None:
    view = ShuffledBox(WIDE, cuts=4, seed=3)
    points_ND = WIDE.sample(500, np.random.default_rng(0))
    moved_ND = view.forward(points_ND)
    assert WIDE.contains(moved_ND).all()
    np.testing.assert_allclose(view.inverse(moved_ND), points_ND, atol=1e-10)
    assert not np.allclose(moved_ND, points_ND)
    np.testing.assert_array_equal(ShuffledBox(WIDE, cuts=4, seed=3).slice_DC, view.slice_DC)


def test_borders_of_slices_belong_to_the_lower_one() -> None:
    view = ShuffledBox(TaskSpace([0.0], [1.0]), cuts=4, seed=1)
    for border in (0.0, 0.25, 0.5, 0.75, 1.0):
        lower = max(0, round(border * 4) - 1)
        moved = view.forward(np.array([[border]]))[0, 0]
        slot = view.slice_DC[0, lower]
        assert slot / 4 <= moved <= (slot + 1) / 4
        np.testing.assert_allclose(view.inverse(np.array([[moved]]))[0, 0], border, atol=1e-11)


def test_a_scaled_view_stretches_side_by_side() -> None:
    view = Scaled(WIDE)
    np.testing.assert_allclose(view.forward(np.array([[0.5, 0.25], [1.0, 1.0]])), [[1.5, -0.5], [3.0, 1.0]])
    np.testing.assert_allclose(view.inverse(np.array([[1.5, -0.5]])), [[0.5, 0.25]])
    with pytest.raises(TutelageError, match="1 parameters and the space has 2"):
        Scaled(WIDE, TaskSpace([0.0], [1.0]))
    with pytest.raises(TutelageError, match="cuts must be at least 1"):
        ShuffledBox(WIDE, cuts=0)


# --- the student


def test_students_start_elsewhere_learn_faster_and_forget() -> None:
    corner = GriddedStudent(cells=3, start=(2, 2), visits=2)
    at = {cell: (np.array([cell]) + 0.5) / 3 for cell in ((2, 2), (1, 1), (0, 0))}
    assert corner.attempt(at[1, 1])[0] == 0
    assert [corner.attempt(at[2, 2])[0] for _ in range(3)] == pytest.approx([3 / 8, 6 / 8, 1.0])
    assert corner.attempt(at[1, 1])[0] == pytest.approx(3 / 8)
    assert corner.attempt(at[0, 0])[0] == 0
    assert corner.mastered == pytest.approx(1 / 9)
    corner.reset()
    assert corner.mastered == 0
    assert corner.attempt(at[1, 1])[0] == 0


def test_adjacent_neighbours_unlock_in_every_direction_but_not_diagonally() -> None:
    student = GriddedStudent(cells=3, start=(1, 1), visits=1, neighbours="adjacent")
    open_of = lambda: [bool(c == student.start or (student.competence_C[student._before_CS[c]] >= 1).any()) for c in range(9)]  # noqa: E731
    assert open_of() == [False] * 4 + [True] + [False] * 4
    student.attempt(np.array([[0.5, 0.5]]))
    assert open_of() == [False, True, False, True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": (5, 0)}, "cell numbers from 0 to 3"),
        ({"neighbours": "adjacnt"}, "Did you mean 'adjacent'"),
        ({"visits": 0}, "visits >= 1"),
    ],
)
def test_students_refuse_what_makes_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TutelageError, match=words):
        GriddedStudent(cells=4, **settings)


# --- what an expert tells


def test_every_fact_is_a_hyperparameter_of_its_teacher_and_of_the_expert() -> None:
    expert = GriddedSuite().room("base", 0, Sizes()).expert
    for name, tells in TELLS.items():
        if name in curricula.names():
            assert set(tells) <= set(curricula.get(name).parameters)
            assert all(hasattr(expert, fact) for _, fact in tells.values())
    for name, tuned in GriddedSuite.tuned.items():
        if name in curricula.names():
            curricula.get(name).check(dict(tuned))


def test_levels_of_knowledge() -> None:
    assert facts("adr", "none") is None
    assert facts("adr", "low") == ("low", "high")
    assert facts("adr", "high") == ("low", "high", "initial")
    assert facts("alp-gmm", "low") == ()
    assert facts("alp-gmm", "high") == ("initial_mean", "initial_std")
    assert facts("oracle", "low") is None
    assert facts("riac", "high") == ()
    assert {level for level in LEVELS if facts("goal-gan", level) is None} == {"none"}
    assert set(LEAST) <= {"adr", "goal-gan", "setter-solver", "oracle"}


def test_adr_without_an_easy_task_begins_at_a_drawn_point() -> None:
    room = GriddedSuite().room("trivial", 0, Sizes())
    told = build_teacher("adr", ("low", "high", "initial"), room.space, room.expert, seed=3, parameters={})
    np.testing.assert_allclose(told.propose(1), [room.expert.easy_mean])
    first, second = (build_teacher("adr", ("low", "high"), room.space, room.expert, seed=seed, parameters={}).propose(1) for seed in (3, 4))
    assert not np.allclose(first, second)
    assert room.space.contains(first).all()


def test_registered_teachers_come_without_torch() -> None:
    code = (
        "import sys; from tutelage.study.acl import bench, profiles; names = profiles.registered();"
        "bench.plan(bench.make_bench('acl', [], [], None)); assert 'riac' in names; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_bootstrap_of_mixtures_follows_the_expert() -> None:
    for name in ("alp-gmm", "covar-gmm"):
        teacher = tt.curriculum(name, WIDE, seed=0, initial_mean=(0.3, -0.8), initial_std=(0.01, 0.01))
        assert np.abs(teacher.propose(200) - [0.3, -0.8]).max() < 0.06
    with pytest.raises(TutelageError, match="alp-gmm: initial_std needs one finite number"):
        tt.curriculum("alp-gmm", WIDE, initial_mean=(0.3, -0.8), initial_std=(0.1,))


# --- profiles


def test_what_the_profiles_change() -> None:
    made = GriddedSuite()
    rooms = {profile: made.room(profile, 0, Sizes(cells=4, visits=3)) for profile in PROFILES}
    middle = np.array([[0.1, 0.1]])
    assert rooms["unfeasible"].attempt(np.array([[2.0, 0.5]]))[0] == 0
    assert rooms["trivial"].attempt(np.array([[-0.5, 0.5]]))[0] == 1
    assert rooms["base"].attempt(middle)[0] == rooms["unfeasible"].attempt(middle)[0] == pytest.approx(0.25)
    easy = np.array([rooms["rugged"].expert.easy_mean])
    assert rooms["rugged"].attempt(easy)[0] == pytest.approx(0.25)
    students = {(room.student.start, room.student.visits) for room in (made.room("diverse", s, Sizes(visits=75)) for s in range(4))}
    assert students == {(0, 40), (24, 40), (0, 110), (24, 110)}


def test_the_forgetful_student_forgets_once() -> None:
    room = GriddedSuite().room("forgetful", 0, Sizes(cells=2, visits=1, episodes=100, evaluations=20))
    lessons = room.run(tt.curriculum("random", room.space, seed=0), lambda info: None)
    drops = np.flatnonzero(np.diff(lessons.mastered) < 0)
    assert [lessons.episodes[i + 1] for i in drops] == [40]  # at 35, seen at the next evaluation
    assert lessons.mastered[-1] > 0


def test_lessons_keep_every_proposal_in_order() -> None:
    room = GriddedSuite().room("base", 0, Sizes(cells=3, visits=2, episodes=50, evaluations=5))
    heard: list[dict[str, Any]] = []
    lessons = room.run(tt.curriculum("riac", room.space, seed=5), heard.append)
    twin, student = tt.curriculum("riac", room.space, seed=5), GriddedStudent(cells=3, visits=2)
    for point_D, reward in zip(lessons.point_ED, lessons.return_E, strict=True):
        points_1D = twin.propose(1)
        np.testing.assert_array_equal(points_1D[0], point_D)
        assert student.attempt(points_1D)[0] == reward
        twin.observe(tt.Outcomes.of(room.space, points_1D, reward=[reward]))
    assert lessons.episodes == [0, 10, 20, 30, 40, 50]
    assert lessons.mastered[-1] == student.mastered
    assert [info["share"] for info in heard] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("again", {"tests": 4, "test_every": 10}), ("self-paced", {"values": "query", "update_every": 10, "update_offset": 10})],
)
def test_teachers_that_ask_are_answered_without_teaching(name: str, settings: dict[str, Any]) -> None:
    room = GriddedSuite().room("rugged", 0, Sizes(cells=3, visits=2, episodes=40, evaluations=2))
    teacher = tt.curriculum(name, room.space, **settings)
    room.run(teacher, lambda info: None)
    state = teacher.state_dict()["memory"]
    assert len(state["kc_ET"]) == 3 if name == "again" else state["updates"] == 3
    before = room.student.competence_C.copy()
    np.testing.assert_allclose(room.score(np.array([room.expert.easy_mean])), min(before[0] / room.student.most, 1))
    np.testing.assert_array_equal(room.student.competence_C, before)
    teacher, student = tt.curriculum(name, room.space, **settings), GriddedStudent()
    with pytest.raises(TutelageError, match="asks for measurements"):
        teach(teacher, student.attempt, lambda: student.mastered, lambda info: None, episodes=40, evaluations=1)


def test_proposals_are_counted_by_parameter_and_stretch() -> None:
    space = TaskSpace([0.0, 0.0], [1.0, 10.0])
    point_ED = np.array([[0.05, 9.9]] * 10 + [[0.95, 10.0]] * 10)
    found = proposed(space, point_ED, np.arange(20) / 20)
    assert found["until"] == list(range(2, 21, 2))
    assert found["count"][0][0] == [2] + [0] * 9
    assert found["count"][0][9] == [0] * 9 + [2]
    assert found["count"][1][9] == [0] * 9 + [2]
    assert np.sum(found["count"]) == 40
    assert found["returned"][0] == pytest.approx(0.025)


# --- the table


def test_verdicts_are_paired_and_corrected_over_all_profiles() -> None:
    seeds = np.arange(8) / 100
    final = {
        ("random@none", "base"): 0.1 + seeds, ("random@none", "rugged"): 0.5 + seeds,
        ("riac@none", "base"): 0.3 + seeds, ("riac@none", "rugged"): 0.4 + seeds,
    }  # fmt: skip
    facts_of = {name: {"teacher": name.split("@")[0], "levels": list(LEVELS), "told": []} for name in ("random@none", "riac@none")}
    found = table(final, facts_of, "random@none")
    best = found["rows"][0]
    assert best["name"] == "riac@none"
    assert found["comparisons"] == 2
    assert best["profiles"]["base"]["difference"] == pytest.approx(0.2)
    assert best["profiles"]["base"]["p"] == pytest.approx(2 / 2**8)
    assert best["profiles"]["base"]["p_holm"] == pytest.approx(4 / 2**8)
    assert (best["profiles"]["base"]["verdict"], best["profiles"]["rugged"]["verdict"]) == ("holds", "reversed")
    assert best["overall"]["mean"] == pytest.approx(0.35 + seeds.mean())
    low, high = best["profiles"]["base"]["interval"]
    assert low < 0.3 + seeds.mean() < high
    result = {**found, "seeds": list(range(8)), "profiles": {"base": "", "rugged": ""}, "baseline": "random@none"}
    said = "Over 8 seeds, 1 teacher beats random tasks in some profiles; 1 teaches worse in some."
    assert headline(result) == said


# --- the command


def plan(out: Path, *teachers: str, sets: tuple[str, ...] = (), seeds: int | None = 2) -> bench.Benchmark:
    return bench.plan(bench.make_bench("acl", list(teachers), [*SMALL, "profiles=base,rugged", *sets], seeds), out=out)


def test_the_default_is_every_registered_teacher_at_every_level_with_enough_seeds() -> None:
    made = bench.plan(bench.make_bench("acl", [], [], None))
    assert [t.name for t in made.bench.teachers] == registered()
    assert [row.levels for row in made.plans if row.teacher.name == "random"] == [LEVELS]
    assert [row.name for row in made.plans if row.teacher.name == "alp-gmm"] == ["alp-gmm@none", "alp-gmm@high"]
    comparisons = (len(made.plans) - 1) * len(PROFILES)
    assert 2 * comparisons <= 0.05 * 2 ** len(made.seeds)


@pytest.mark.parametrize(
    ("teachers", "sets", "words"),
    [
        (["sec"], [], "teaches the tasks of a pool"),
        (["riak"], [], "Did you mean 'riac'"),
        (["riac:windo=3"], [], "Did you mean 'window'"),
        (["riac", "riac"], [], "named twice"),
        ([], ["profiles=rough"], "Unknown profile"),
        ([], ["knowledge=some"], "knowledge"),
        ([], ["episods=3"], "Did you mean 'episodes'"),
        ([], ["episodes=0"], "greater than or equal to 1"),
        ([], ["episodes"], "--set key=value"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(teachers: list[str], sets: list[str], words: str) -> None:
    with pytest.raises(TutelageError, match=words):
        bench.plan(bench.make_bench("acl", teachers, sets, None))
    with pytest.raises(TutelageError, match="Unknown suite 'alc'"):
        profiles.suite("alc")


def test_vectors_may_be_typed() -> None:
    teacher = bench.parse_teacher("adr:initial=[0.1, 0.2],step=0.05")
    assert teacher.parameters == {"initial": (0.1, 0.2), "step": 0.05}


def test_a_benchmark_runs_resumes_and_never_runs_a_cell_twice(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    first = bench.run_benchmark(plan(out, "riac", seeds=1), jobs=1)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert len(kept) == 4  # two rows, two profiles
    heard: list[str] = []
    second = bench.run_benchmark(plan(out, "riac", "adr", sets=("knowledge=high",)), jobs=1, tell=lambda kind, payload: heard.append(kind))
    assert heard.count("done") == len(second["cells"]) == 12  # another row name: knowledge is high alone
    third = bench.run_benchmark(plan(out, "riac", sets=("knowledge=none",)), jobs=2, tell=lambda kind, payload: heard.append(kind))
    assert heard.count("done") == 16
    assert all((out / "cells" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert [c for c in third["cells"] if c["seed"] == 0] == first["cells"]
    other = bench.run_benchmark(plan(tmp_path / "other", "riac"), jobs=1)  # in workers or not, the numbers are the same
    assert [(c["curve"], c["proposed"]) for c in other["cells"]] == [(c["curve"], c["proposed"]) for c in third["cells"]]
    trace = np.load(out / "traces" / "riac@none--base--1.npz", allow_pickle=False)
    assert trace["point_ED"].shape == (60, 2)
    with pytest.raises(TutelageError, match="another configuration"):
        bench.run_benchmark(plan(out, "riac", sets=("visits=5",)), jobs=1)
    page = (out / "report.html").read_text()
    assert "What was proposed when" in page
    assert (out / "figures" / "profile-none.svg").exists()
    console = Console(width=100, record=True)
    render(second, console)
    shown = console.export_text()
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "rugged" in shown
    assert "too few seeds" in shown


def test_the_command_line(tmp_path: Path) -> None:
    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tutelage.cli", "compare", "--suite", "acl", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    told = json.loads(typed("riac:window=50", "oracle", "--dry-run", "--set", "knowledge=low,high").stdout)
    assert [row["name"] for row in told["rows"]] == ["random@low", "riac:window=50@low", "oracle@high"]
    assert told["rows"][1]["settings"]["window"] == 50
    refused = typed("--model", "builtin")
    assert refused.returncode == 2
    assert "--model cannot go with --suite acl" in refused.stderr
    assert "Traceback" not in refused.stderr
