"""The command line as a user meets it: light, clear, exit status 2 with one paragraph."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tutelage.cli", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_help_and_import_are_light():
    code = (
        "import sys, time; t = time.perf_counter(); import tutelage, tutelage.cli; print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    best = 9.0
    for _ in range(5):
        seconds, torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert torch == "False"
        best = min(best, float(seconds))
    assert best < 0.5
    started = time.perf_counter()
    assert "compare" in run("--help").stdout
    assert time.perf_counter() - started < 5


def test_ls_lists_every_noun_and_show_tells_parameters():
    found = json.loads(run("ls", "curricula", "--json").stdout)
    assert {"uniform", "mixture", "easy_to_hard", "hard_to_easy", "sec", "dump", "odf"} <= {p["name"] for p in found}
    assert all(p["summary"] for p in found)
    shown = json.loads(run("show", "sec", "--json").stdout)
    assert shown["noun"] == "curriculum"
    assert shown["parameters"]["alpha"]["default"] == 0.5
    assert "class SEC" in run("show", "sec").stdout


def test_cp_gives_a_file_that_runs_beside_the_original(tmp_path):
    done = run("cp", "sec", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script = (
        "import numpy as np, tutelage as tt, sec\n"
        "pool = tt.TaskPool(arm=np.arange(12) % 3)\n"
        "mine, theirs = tt.curriculum('my_sec', pool, seed=1), tt.curriculum('sec', pool, seed=1)\n"
        "assert type(mine) is sec.SEC and type(mine) is not type(theirs)\n"
        "assert (mine.propose(8) == theirs.propose(8)).all()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    again = run("cp", "sec", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "secc"], "Did you mean 'sec'"),
        (["ls", "curicula"], "Did you mean 'curricula'"),
        (["replicate", "sek", "--smoke"], "Did you mean 'sec'"),
        (["replicate"], "Name one replication"),
        (["compare", "unifrom", "--dry-run"], "Did you mean 'uniform'"),
        (["compare", "--config", "none.yaml"], "There is no file none.yaml"),
        (["compare", "--resume"], "--resume needs --out"),
        (["compare", "--budget", "12", "--dry-run"], "Cannot read the budget"),
    ],
)
def test_user_errors_are_one_paragraph_and_status_2(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.lm
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "learning_rat=1"], "Did you mean 'learning_rate'"),
        (["--set", "num_generations=1"], "group of one has no spread"),
        (["--set", "num_generations=7"], "cannot be cut into groups"),
        (["--verifier", "exakt"], "Did you mean 'exact'"),
        (["--tasks", "none.jsonl"], "none.jsonl"),
        (["--model", "."], "not a model directory"),
    ],
)
def test_compare_refuses_before_it_trains(tmp_path, arguments, words):
    done = run("compare", "uniform", "--seeds", "1", "--steps", "1", "--jobs", "1", "--out", "there", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "there" / "league.json").exists()
