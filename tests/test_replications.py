"""Replications: the runner on a made-up claim with known numbers, the three papers at smoke size, and the committed results."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tutelage import TaskPool, TutelageError
from tutelage.outcomes import Kind
from tutelage.registry import replications
from tutelage.replications import simplerl_zoo
from tutelage.replications.dump import simulate
from tutelage.replications.sec import SortedPass
from tutelage.students.simulated import SimulatedStudent
from tutelage.study import miniature, replicate, stats
from tutelage.study.replicate import Arm, Comparison, Replication, atlas, render, run, write_atlas
from tutelage.tasks.rewards import FormatIndependent

SLUGS = ["dump", "online-difficulty-filtering", "sec"]
RESULTS = Path(__file__).parent.parent / "results"
computed: list[tuple[str, int]] = []


def toy_cell(name: str, gain: float, price: int) -> Callable[[int, bool], dict[str, Any]]:
    """Accuracy rises along a straight line of 10 steps, each costing `price` rollouts."""

    def cell(seed: int, smoke: bool) -> dict[str, Any]:
        computed.append((name, seed))
        steps = list(range(0, 11, 5))
        axes = {axis: [price * step for step in steps] for axis in ("rollouts", "training_tokens", "seconds")}
        hard = [gain * step + 0.01 * seed for step in steps]
        return {"score": {"hard": hard[-1]}, "curve": {"step": steps, **axes, "hard": hard}, "cost": {"rollouts": 10 * price}}

    return cell


@pytest.fixture
def toy() -> Iterator[None]:
    @replications.register("toy")
    def toy() -> Replication:
        """A made-up claim | with a bar."""
        return Replication(
            paper="nowhere",
            metric="hard",
            metric_about="height",
            budget="10 steps",
            arms={
                "base": Arm(run=toy_cell("base", 0.02, 1), about="slow and cheap"),
                "better": Arm(run=toy_cell("better", 0.03, 4), about="faster by the step, dear", seeds=12),
                "worse": Arm(run=toy_cell("worse", 0.01, 1), about="slower"),
            },
            comparisons=(
                Comparison(method="better", baseline="base"),
                Comparison(method="worse", baseline="base"),
                Comparison(method="better", baseline="base", equal="rollouts"),
            ),
        )

    computed.clear()
    yield
    del replications._parts["toy"]


def replicated(out: Path, **options: Any) -> dict[str, Any]:
    return run("toy", out=out, command="tutelage replicate toy", **options)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    cells = [{key: value for key, value in cell.items() if key != "wall_seconds"} for cell in result["cells"]]
    return {**result, "cells": cells, "minutes": None}


# --- the runner, by hand


def test_verdicts_of_known_differences(toy: None, tmp_path: Path) -> None:
    result = replicated(tmp_path)
    found = {c["name"]: c for c in result["comparisons"]}
    assert found["better against base"]["mean"] == pytest.approx(0.1)
    assert found["better against base"]["p"] == pytest.approx(2 / 2**10)  # ten equal differences
    assert found["better against base"]["p_holm"] == pytest.approx(3 * 2 / 2**10)
    assert [c["verdict"] for c in result["comparisons"]] == ["holds", "reversed", "reversed"]
    # After base's 10 rollouts `better` stands at step 2.5: 0.075 against 0.2.
    assert found["better against base at equal rollouts"]["mean"] == pytest.approx(0.075 - 0.2)
    assert result["verdict"] == "holds"
    assert "worse than base at equal rollouts" in found["better against base at equal rollouts"]["sentence"]
    assert json.loads((tmp_path / "toy.json").read_text()) == result


def test_means_and_areas_of_arms(toy: None, tmp_path: Path) -> None:
    result = replicated(tmp_path)
    better, base = (result["arms"][name] for name in ("better", "base"))
    assert (better["seeds"], base["seeds"]) == (12, 10)
    assert base["mean"]["hard"] == pytest.approx(0.2 + 0.045)
    assert base["mean"]["area_by_step"] == pytest.approx(0.1 + 0.045)
    assert better["mean"]["area_by_rollouts"] == pytest.approx(0.0375 + 0.055)  # only as far as the cheapest arm goes
    assert better["mean"]["rollouts"] == 40


def test_fewer_seeds_make_no_verdict_and_leave_the_full_result_alone(toy: None, tmp_path: Path) -> None:
    replicated(tmp_path)
    full = (tmp_path / "toy.json").read_bytes()
    result = replicated(tmp_path, seeds=6)
    assert {c["verdict"] for c in result["comparisons"]} == {"too few seeds"}  # three comparisons need seven
    assert replicated(tmp_path, smoke=True)["verdict"] == "too few seeds"
    assert (tmp_path / "toy.json").read_bytes() == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.6-seeds.json", "toy.json", "toy.smoke.json"]


def test_an_interrupted_replication_continues(toy: None, tmp_path: Path) -> None:
    unbroken = replicated(tmp_path / "unbroken")
    everything = list(computed)
    computed.clear()

    def interrupt(line: str) -> None:
        if line.startswith("7/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replicated(tmp_path, progress=interrupt)
    partial = tmp_path / "toy.partial.jsonl"
    partial.write_text(partial.read_text() + '{"arm": "worse", "se')  # killed while writing
    lines: list[str] = []
    result = replicated(tmp_path, progress=lines.append)
    assert computed == everything  # each cell once, in the same order
    assert lines[0] == "Continuing: 7 of 32 cells are there."
    assert without_times(result) == without_times(unbroken)
    assert not partial.exists()


def test_cells_of_other_code_are_not_continued(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replicated(tmp_path, progress=interrupt)
    monkeypatch.setattr(replicate, "_code", lambda path: "another")
    computed.clear()
    lines: list[str] = []
    replicated(tmp_path, progress=lines.append)
    assert len(computed) == 32
    assert "other code" in lines[0]


def test_the_code_hash_covers_the_replications_own_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("x = 1")
    before = replicate._code(own)
    own.write_text("x = 2")
    assert replicate._code(own) != before


def test_a_score_that_is_not_finite_is_refused_and_nothing_is_published(toy: None, tmp_path: Path) -> None:
    plan = replications.get("toy").target()
    broken = Arm(run=lambda seed, smoke: {"score": {"hard": float("nan")}}, about="diverges")

    @replications.register("broken")
    def broken_plan() -> Replication:
        """Diverges."""
        return Replication(
            paper="nowhere",
            metric="hard",
            metric_about="",
            budget="",
            arms={"base": plan.arms["base"], "method": broken},
            comparisons=(Comparison(method="method", baseline="base"),),
        )

    try:
        with pytest.raises(TutelageError, match="not finite"):
            run("broken", out=tmp_path, command="")
    finally:
        del replications._parts["broken"]
    assert not (tmp_path / "broken.json").exists()


@pytest.mark.parametrize(("options", "match"), [({"seeds": 0}, "at least one"), ({"jobs": 0}, "at least one")])
def test_impossible_requests(toy: None, tmp_path: Path, options: dict[str, int], match: str) -> None:
    with pytest.raises(TutelageError, match=match):
        replicated(tmp_path, **options)


def test_an_unknown_slug_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="Did you mean 'dump'"):
        run("dmup", out=tmp_path, command="")


# --- the atlas


def test_render_tells_arms_comparisons_and_verdict(toy: None, tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    render(replicated(tmp_path), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "A made-up claim | with a bar." in text
    assert re.search(r"better +12 +0\.355", text)
    assert re.search(r"better against base at equal rollouts +−0\.125 \[−0\.125, −0\.125\] +0\.00586 +reversed", text)
    assert "The claim: holds (better: teaches better than base: +0.1000" in " ".join(text.split())


def test_atlas_has_full_results_only(toy: None, tmp_path: Path) -> None:
    replicated(tmp_path, smoke=True)
    assert len(atlas(tmp_path).splitlines()) == 2
    replicated(tmp_path)
    (tmp_path / "league.json").write_text('{"rows": []}')
    line = atlas(tmp_path).splitlines()[2]
    assert line.startswith("| toy (nowhere) | A made-up claim \\| with a bar. | base | +0.100 [0.100, 0.100] | 0.00586 | **holds** | 10 |")


def test_atlas_names_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "sec.json").write_text('{"full": true,')
    with pytest.raises(TutelageError, match=r"sec\.json is not a result"):
        atlas(tmp_path)
    with pytest.raises(TutelageError, match="no directory"):
        atlas(tmp_path / "missing")


def test_write_atlas_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- atlas:begin -->\nold\n<!-- atlas:end -->\nafter\n")
    write_atlas(readme, "| new |\n")
    assert readme.read_text() == "before\n<!-- atlas:begin -->\n| new |\n<!-- atlas:end -->\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(TutelageError, match="no place for the atlas"):
        write_atlas(readme, "")


# --- the three papers


@pytest.mark.parametrize("slug", SLUGS)
def test_plans_are_complete(slug: str) -> None:
    part = replications.get(slug)
    plan: Replication = part.target()
    assert part.summary.endswith(".")
    assert plan.seeds >= stats.seeds_needed(len(plan.comparisons))
    assert {name for c in plan.comparisons for name in (c.method, c.baseline)} == set(plan.arms)
    assert len({c.name for c in plan.comparisons}) == len(plan.comparisons)
    claim = plan.comparisons[0]
    assert (claim.baseline, claim.equal, claim.metric) == ("uniform", None, None)


def test_listing_replications_needs_no_torch() -> None:
    code = "import sys; from tutelage.registry import replications; replications.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.lm
@pytest.mark.parametrize("slug", SLUGS)
def test_smoke(slug: str, tmp_path: Path) -> None:
    result = run(slug, smoke=True, out=tmp_path, command=f"tutelage replicate {slug} --smoke")
    assert result["minutes"] < 0.5
    assert {c["verdict"] for c in result["comparisons"]} == {"too few seeds"}
    starts = {(cell["seed"], cell["curve"]["hard"][0]) for cell in result["cells"] if "curve" in cell}
    assert len(starts) == 2  # one warm start per seed, shared by all arms
    for cell in result["cells"]:
        if "noise_share" in cell["score"]:
            taught_A = np.sum(cell["taught"], axis=0)
            assert cell["score"]["noise_share"] == pytest.approx(taught_A[-1] / taught_A.sum(), abs=1e-6)


@pytest.mark.lm
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    def timeless(cell: dict[str, Any]) -> dict[str, Any]:
        curve = {key: value for key, value in cell.get("curve", {}).items() if key != "seconds"}
        return {"arm": cell["arm"], "seed": cell["seed"], "score": cell["score"], "curve": curve, "taught": cell.get("taught")}

    one, two = (run("dump", smoke=True, jobs=jobs, out=tmp_path / str(jobs), command="") for jobs in (1, 2))
    assert [timeless(cell) for cell in one["cells"]] == [timeless(cell) for cell in two["cells"]]
    assert [c["difference_S"] for c in one["comparisons"]] == [c["difference_S"] for c in two["comparisons"]]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_findings_follow_from_their_cells(path: Path) -> None:
    """Verdicts, comparisons and means are recomputed from the stored cells: nothing was edited by hand."""
    stored = json.loads(path.read_text())
    if "replication" not in stored:
        pytest.skip("not a replication")
    plan: Replication = replications.get(stored["replication"]).target()
    count = {name: arm.seeds or plan.seeds for name, arm in plan.arms.items()}
    cells = {(cell["arm"], cell["seed"]): cell for cell in stored["cells"]}
    assert stored["full"]
    assert set(cells) == set(replicate._in_order(count))
    found = replicate._findings(plan, cells, count)
    assert found["verdict"] == stored["verdict"]
    assert found["areas_until"] == stored["areas_until"]
    for new, old in zip(found["comparisons"], stored["comparisons"], strict=True):
        assert (new["name"], new["sentence"], new["verdict"]) == (old["name"], old["sentence"], old["verdict"])
        assert new["difference_S"] == pytest.approx(old["difference_S"], abs=1e-12)
    for name, arm in found["arms"].items():
        assert arm["mean"] == pytest.approx(stored["arms"][name]["mean"])


# --- their parts


def test_sorted_pass_shows_the_pool_once_from_easy_to_hard() -> None:
    difficulty_N = np.tile([3.0, 1.0, 2.0], 20)
    cur = SortedPass(TaskPool(difficulty=difficulty_N), seed=4, draws=60)
    rows_N = np.concatenate([cur.propose(6) for _ in range(10)])
    assert sorted(rows_N) == list(range(60))
    assert difficulty_N[rows_N].tolist() == sorted(difficulty_N)
    assert rows_N[:20].tolist() != sorted(rows_N[:20])


def test_simulated_student_by_hand() -> None:
    student = SimulatedStudent(np.array([0.0, 1.0, 2.0]), slope=1.0, rate=0.1, spill=0.5)
    assert student.pass_rate_A == pytest.approx([0.5, 1 / (1 + np.e), 1 / (1 + np.e**2)])
    student.practise(np.array([1, 1, 0]), np.array([0.5, 0.5, 0.2]))
    assert student.skill_A == pytest.approx([0.02 + 0.05, 0.1 + 0.01, 0.05])
    solved_NG = student.attempt(np.zeros(500, dtype=np.int64), 8, np.random.default_rng(0))
    assert solved_NG.mean() == pytest.approx(student.pass_rate_A[0], abs=0.03)
    with pytest.raises(TutelageError, match="above 0"):
        SimulatedStudent(np.zeros(2), slope=0.0)


def test_in_simulation_dump_climbs_the_arms_in_order() -> None:
    dump = [simulate("dump", seed, steps=100, tau=0.1, window=60)["score"] for seed in range(300, 310)]
    uniform = [simulate("uniform", seed, steps=100)["score"] for seed in range(300, 310)]
    assert np.mean([score["order"] for score in dump]) > 0.4
    assert min(score["skill"] for score in dump) > max(score["skill"] for score in uniform)


@pytest.mark.parametrize("slug", SLUGS)
def test_recorded_settings_are_those_the_curriculum_gets(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TaskPool(arm=np.repeat(np.arange(8), 4), difficulty=np.repeat(np.arange(8.0), 4))
    for name, arm in replications.get(slug).target().arms.items():
        if name.startswith("simulated"):
            continue
        got: dict[str, Any] = {}
        monkeypatch.setattr(miniature, "teach", lambda seed, size, build, got=got, **options: got.update(build=build, size=size, **options))
        arm.run(0, False)
        assert got["size"] == miniature.FULL
        assert (got["batch"] or 32, got["noise"]) == (arm.settings["batch"], arm.settings["noise"])
        cur = got["build"](pool, 11, got["size"])
        hyper = {key: value for key, value in arm.settings.items() if key not in ("curriculum", "batch", "noise")}
        assert cur.config | hyper == cur.config
        assert cur.seed == 11
        assert cur.config.get("steps", 200) == 200
        assert cur.name == arm.settings["curriculum"]


def test_noise_is_an_arm_of_its_own() -> None:
    for slug in ("sec", "dump"):
        plan = replications.get(slug).target()
        assert [name for name, arm in plan.arms.items() if arm.settings.get("noise")] == ["uniform_noise", f"{slug}_noise"]
        assert {**plan.arms[f"{slug}_noise"].settings, "noise": False} == plan.arms[slug].settings


# --- simplerl-zoo


@pytest.mark.lm
def test_smoke_of_simplerl_zoo(tmp_path: Path) -> None:
    result = run("simplerl-zoo", smoke=True, out=tmp_path, command="tutelage replicate simplerl-zoo --smoke")
    assert {c["verdict"] for c in result["comparisons"]} == {"too few seeds"}
    assert len({c["name"] for c in result["comparisons"]}) == 7
    cells = {(cell["arm"], cell["seed"]): cell for cell in result["cells"]}
    for seed in (0, 1):  # the same base, measured on the same tasks
        assert cells["correct_only", seed]["curve"]["accuracy"][0] == cells["format_independent", seed]["curve"]["accuracy"][0]
        assert cells["clean", seed]["monitor"]["mean_length"][0] == cells["length_bug", seed]["monitor"]["mean_length"][0]


def test_answers_of_the_zoo_are_read_leniently_and_boxed_strictly() -> None:
    one, two = simplerl_zoo.ONE, simplerl_zoo.ONE + 1
    box, filler, end = simplerl_zoo.BOX, simplerl_zoo.FILLER, simplerl_zoo.END
    rows = [[filler, one, two, end], [box, one, two, end], [box, one, two, two], [one, filler, two, end], [filler, filler, end, one]]
    texts = simplerl_zoo.rendered(np.array(rows))
    assert texts == ["hm 12", r"\boxed{12}", r"\boxed{122", "1hm 2", "hm hm "]
    kinds = simplerl_zoo.judged(texts, "12")
    assert kinds == [Kind.CORRECT, Kind.CORRECT, Kind.WRONG, Kind.WRONG, Kind.MALFORMED]
    reward = FormatIndependent()(np.array(kinds), np.zeros(5), texts)
    assert reward.tolist() == [0.5, 1.0, -1.0, -1.0, -1.0]
    assert simplerl_zoo.length_bug(np.array(kinds), np.zeros(5), texts).tolist() == pytest.approx([1.15, 1.1, 0.15, 0.15, 0.1])


def test_comparisons_of_one_name_are_refused() -> None:
    same = (Comparison(method="a", baseline="b"), Comparison(method="a", baseline="b", metric="other"))
    with pytest.raises(TutelageError, match="Two comparisons are called 'a against b'"):
        Replication(paper="p", metric="m", metric_about="", budget="", arms={}, comparisons=same)
