"""The main job, as a user types it, on a stock tiny model directory and a JSONL file: table, report, resume, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lm

BASE = ["--seeds", "2", "--steps", "2", "--jobs", "1", "--set", "per_device_train_batch_size=8", "--set", "num_generations=4"]
BASE += ["--set", "max_completion_length=3", "--set", "evaluation.points=2", "--set", "evaluation.tasks_per_arm=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory as save_pretrained writes it, and tasks in GSM8K's format with a column of levels."""
    import tiny

    folder = tmp_path_factory.mktemp("compare")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = []
    for i, j in ((i, j) for i in range(8) for j in range(8)):
        rows.append({"question": f"{i} + {j} =", "answer": f"It is {i + j}.\n#### {i + j}", "level": f"l{i % 2}"})
    (folder / "tasks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def compare(place: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tutelage.cli", "compare", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def league(place: Path) -> dict:
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--set", "columns.arm=level", "--out", "full"]
    return json.loads(compare(place, "uniform", "sec", "odf", *own, *BASE, "--json").stdout)


def test_the_league_holds_what_was_asked(league: dict, place: Path):
    assert [r["name"] for r in league["rows"]] == ["uniform", "sec", "odf", "odf@updates", "uniform@odf"]
    assert [r["kind"] for r in league["rows"]] == ["baseline", "method", "method", "equal-updates", "control"]
    assert league["arm_names"] == ["l0", "l1"]
    assert len(league["cells"]) == 5 * 2
    assert {r["verdict"] for r in league["rows"][1:4]} == {"too few seeds"}
    assert json.loads((place / "full" / "league.json").read_text())["rows"] == league["rows"]
    assert "<table" in (place / "full" / "report.html").read_text()


def test_budgets_are_kept_and_what_is_thrown_away_counts(league: dict):
    for cell in league["cells"]:
        totals = cell["totals"]
        if cell["row"] in ("uniform", "sec"):
            assert (totals["rollouts"], totals["updates"]) == (16, 2)
        if cell["row"] == "odf":
            assert totals["rollouts"] >= 16
        if cell["row"] == "odf@updates":
            assert totals["updates"] == 2
            control = next(c for c in league["cells"] if c["row"] == "uniform@odf" and c["seed"] == cell["seed"])
            assert control["totals"]["rollouts"] == totals["rollouts"] > 16  # a tiny random model is always filtered
        assert cell["curve"]["step"][0] == 0
        assert cell["curve"]["rollouts"][-1] == totals["rollouts"]
        assert all(abs(sum(share) - 1) < 1e-3 for share in cell["taught"]["share"])


@pytest.fixture(scope="module")
def every_kind(place: Path) -> dict:
    """One arm of each kind: guided curriculum, hidden-state signal, switching losses, self-play, distillation."""
    own = [
        "--model",
        "model",
        "--tasks",
        "tasks.jsonl",
        "--set",
        "columns.arm=level",
        "--out",
        "kinds",
        "--seeds",
        "1",
        "--budget",
        "3updates",
    ]
    arms = ["uniform", "adcl:batches=2,attempts=2+egsr", "gain-rl", "sasr:warmup_steps=1", "tpaw", "gkd+local:model=model"]
    return json.loads(compare(place, *arms, *own, *BASE[4:], "--jobs", "1", "--json").stdout)


def test_every_kind_of_teaching_is_an_arm(every_kind: dict):
    rows = {row["name"]: row for row in every_kind["rows"]}
    cells = {cell["row"]: cell for cell in every_kind["cells"]}
    assert [name for name, row in rows.items() if row["kind"] == "method"] == [
        "adcl:batches=2,attempts=2+egsr", "gain-rl", "sasr:warmup_steps=1", "tpaw", "gkd+local:model=model",
    ]  # fmt: skip
    assert {cell["totals"]["updates"] for cell in cells.values() if cell["row"] != "uniform@adcl:batches=2,attempts=2+egsr"} == {3}
    guided = cells["adcl:batches=2,attempts=2+egsr"]["totals"]
    assert guided["probe_rollouts"] > 0
    assert guided["guided_rollouts"] > 0
    assert cells["sasr:warmup_steps=1"]["totals"]["rollouts"] < 24  # supervised steps cost none
    assert rows["sft@tpaw"]["note"] == "supervised, as long as tpaw"
    assert cells["sft@tpaw"]["totals"]["rollouts"] == 0 < cells["tpaw"]["totals"]["rollouts"]
    assert len(cells["tpaw"]["curve"]["accuracy"]) == 4  # before, and after each of three rounds
    assert sum("log-probability moved by" in note for note in every_kind["notes"]) == 2  # of self-play and of its control


def test_self_play_wants_a_budget_that_its_rounds_divide(place: Path):
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--out", "none", "--seeds", "1", "--jobs", "1"]
    assert "equal rounds" in compare(place, "uniform", "spin", *own, "--budget", "4updates", check=False).stderr
    assert "in updates" in compare(place, "uniform", "spin", *own, "--budget", "40rollouts", check=False).stderr


def test_every_evaluation_is_diagnosed_and_the_report_shows_it(league: dict, place: Path):
    for cell in league["cells"]:
        assert len(cell["curve"]["diagnostics"]) == len(cell["curve"]["step"])
        for found, accuracy in zip(cell["curve"]["diagnostics"], cell["curve"]["accuracy"], strict=True):
            assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)  # both arms have as many measured tasks
            assert 0 < found["mean_length"] <= 3
            assert "pass_at_k" not in found  # a single attempt
    assert "The answers themselves" in (place / "full" / "report.html").read_text()


def test_every_arm_starts_from_the_same_weights(league: dict):
    assert len({json.dumps(c["curve"]["by_arm"][0]) for c in league["cells"]}) == 1


def test_a_finished_comparison_is_not_run_again_and_seeds_can_be_added(league: dict, place: Path):
    files = {p: p.stat().st_mtime_ns for p in (place / "full" / "cells").iterdir()}
    again = json.loads(compare(place, "--out", "full", "--resume", "--json").stdout)
    assert again["rows"] == league["rows"]
    assert {p: p.stat().st_mtime_ns for p in (place / "full" / "cells").iterdir()} == files


def test_another_configuration_in_the_same_directory_is_refused(league: dict, place: Path):
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--set", "columns.arm=level", "--out", "full"]
    done = compare(place, "uniform", *own, *BASE, "--set", "learning_rate=1e-3", check=False)
    assert done.returncode == 2
    assert "another configuration" in done.stderr
    assert "learning_rate" in done.stderr
    assert json.loads((place / "full" / "league.json").read_text())["rows"] == league["rows"]


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_result(league: dict, place: Path):
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--set", "columns.arm=level", "--out", "killed"]
    command = [sys.executable, "-m", "tutelage.cli", "compare", "uniform", "sec", "odf", *own, *BASE, "--json"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((place / "killed" / "cells").glob("*.json"))) < 2:
        time.sleep(0.05)
    import os

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p.name: p.read_text() for p in (place / "killed" / "cells").glob("*.json")}
    resumed = json.loads(compare(place, "uniform", "sec", "odf", *own, *BASE, "--json").stdout)
    assert 2 <= len(kept) < 10
    assert all((place / "killed" / "cells" / name).read_text() == text for name, text in kept.items())
    for mine, theirs in zip(resumed["cells"], league["cells"], strict=True):
        assert mine["curve"]["by_arm"] == theirs["curve"]["by_arm"]  # the same decisions, the same weights
        assert mine["train"] == theirs["train"]


def test_train_saves_a_model_directory_with_a_card(place: Path):
    (place / "run.yaml").write_text(
        "model: model\ntasks: tasks.jsonl\ncolumns: {arm: level}\nsteps: 2\narms: [{name: mine, curriculum: sec, parameters: {tau: 0.4}}]\n"
        "evaluation: {points: 1, tasks_per_arm: 2}\n"
        "settings: {per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 3, save_strategy: steps, save_steps: 1}\n"
    )
    command = [sys.executable, "-m", "tutelage.cli", "train", "run.yaml", "--out", "trained"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(place / "trained")
    AutoTokenizer.from_pretrained(place / "trained")
    card = (place / "trained" / "README.md").read_text()
    assert "curriculum **sec** (tau=0.4)" in card
    assert "| l1 |" in card
    before = (place / "trained" / "training.json").read_bytes()
    again = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert (place / "trained" / "training.json").read_bytes() == before


def test_a_rigid_reward_is_trained_on_and_never_judged_by(place: Path):
    options = ["--model", "model", "--tasks", "tasks.jsonl", "--steps", "2", "--set", "reward=format_independent", "--out", "rigid"]
    for pair in ("per_device_train_batch_size=8", "num_generations=4", "max_completion_length=3", "evaluation.points=1"):
        options += ["--set", pair]
    command = [sys.executable, "-m", "tutelage.cli", "train", *options]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    train = json.loads((place / "rigid" / "training.json").read_text())["train"]
    assert all(0 <= solved <= 1 for solved in train["solved"])
    # a tiny random model never boxes: 0.5 where it is right, -1 elsewhere
    assert train["reward"] == pytest.approx([1.5 * solved - 1 for solved in train["solved"]])


@pytest.mark.slow
def test_a_killed_training_run_ends_with_the_same_weights(place: Path):
    command = [sys.executable, "-m", "tutelage.cli", "train", "--arm", "sec", "--steps", "8", "--model", "model", "--tasks", "tasks.jsonl"]
    for pair in (
        "columns.arm=level",
        "per_device_train_batch_size=8",
        "num_generations=4",
        "max_completion_length=3",
        "evaluation.points=4",
    ):
        command += ["--set", pair]
    command += ["--set", "evaluation.tasks_per_arm=3", "--set", "save_strategy=steps", "--set", "save_steps=1"]
    subprocess.run([*command, "--out", "unbroken"], cwd=place, check=True, capture_output=True, timeout=300)
    process = subprocess.Popen([*command, "--out", "broken"], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (place / "broken" / "checkpoints" / "checkpoint-3").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (place / "broken" / "training.json").exists()
    subprocess.run([*command, "--out", "broken"], cwd=place, check=True, capture_output=True, timeout=300)
    records = [json.loads((place / name / "training.json").read_text()) for name in ("unbroken", "broken")]
    assert records[0]["curve"]["by_arm"] == records[1]["curve"]["by_arm"]
    assert records[0]["taught"] == records[1]["taught"]
    weights = [(place / name / "model.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert weights[0] == weights[1]


def test_supervised_arms_and_an_objective_of_ones_own(place: Path):
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--set", "columns.arm=level", "--seeds", "1", "--steps", "2", "--jobs", "1"]
    own += ["--set", "per_device_train_batch_size=4", "--set", "evaluation.points=1", "--set", "evaluation.tasks_per_arm=2"]
    sft = json.loads(compare(place, "uniform", "mixture", *own, "--trainer", "sft", "--out", "sft", "--json").stdout)
    assert [r["cost"]["updates"] for r in sft["rows"]] == [2, 2]
    (place / "drgrpo.yaml").write_text("curriculum: uniform\nobjective: dr_grpo\n")
    extra = ["--set", "num_generations=4", "--set", "max_completion_length=3"]
    found = json.loads(compare(place, "uniform", "drgrpo.yaml", *own, *extra, "--out", "objective", "--json").stdout)
    assert [r["name"] for r in found["rows"]] == ["uniform", "drgrpo"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no_tokenizer", "has no tokenizer"),
        ("bad_line", "line 3"),
        ("missing_column", "difficulty"),
        ("empty", "no tasks"),
        ("repeated", "Duplicate"),
        ("raising", "verifier"),
        ("nan", "nan"),
        ("dying", "died without a word"),
        ("not_empty", "is not empty"),
    ],
)
def test_bad_input_is_one_clear_paragraph(place: Path, tmp_path: Path, change: str, words: str):
    shutil.copytree(place / "model", tmp_path / "model")
    lines = (place / "tasks.jsonl").read_text().splitlines(keepends=True)
    options = ["--set", "columns.arm=level"]
    judge = "def raising(text, task):\n    raise RuntimeError('no')\n\ndef nan(text, task):\n    return float('nan')\n"
    judge += "\ndef dying(text, task):\n    import os\n    os._exit(3)\n"
    (tmp_path / "judge.py").write_text(judge)
    match change:
        case "no_tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (tmp_path / "model" / name).unlink()
        case "bad_line":
            lines[2] = '{"question": "1 + 1 =", \n'
        case "missing_column":
            options += ["--set", "columns.difficulty=hardness"]
        case "empty":
            lines = []
        case "repeated":
            lines += lines[:1]
        case "raising" | "nan" | "dying":
            options += ["--verifier", f"judge:{change}"]
        case "not_empty":
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.tex").write_text("precious")
    (tmp_path / "tasks.jsonl").write_text("".join(lines))
    own = ["--model", "model", "--tasks", "tasks.jsonl", "--out", "out"]
    done = compare(tmp_path, "uniform", *own, *BASE, *options, check=False)
    assert done.returncode == 2, done.stderr
    assert words.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "league.json").exists()
    if change == "not_empty":
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]
