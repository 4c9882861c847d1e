"""The audit of teacher hacking: the sheet's curves, both rates, twins, data, and logs that are broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tutelage.audits._hacking import departure_p, hacking_report, moving_mean, power_law, theil_sen
from tutelage.audits.teacher import left_its_law, teacher
from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.testing import check_audit

STEPS = np.arange(1, 25) * 10.0


def write(path: Path, rng: np.random.Generator, *, turn: float | None = None, proxy_up: bool = False, golden: bool = True) -> Path:
    """Healthy curves over 40 prompts; from the step `turn` on golden rises, and with `proxy_up` the proxy as well."""
    late_S = np.maximum(0.0, STEPS - (math.inf if turn is None else turn)) / 100
    proxy_S = 5 * STEPS**-0.5 * np.exp((0.8 if proxy_up else 0.15) * late_S)
    golden_S = 1 + 4 * STEPS**-0.5 + 0.5 * late_S
    prompt_N = rng.normal(0, 0.3, (40, 2))
    with path.open("w") as file:
        for s, step in enumerate(STEPS):
            for n in range(40):
                row = {"step": step, "prompt_id": f"p{n}", "proxy": proxy_S[s] * math.exp(rng.normal(0, 0.03)) + 0.05 * prompt_N[n, 0] ** 2}
                if golden:
                    row["golden"] = golden_S[s] + prompt_N[n, 1] + rng.normal(0, 0.05)
                file.write(json.dumps(row) + "\n")
    return path


def run(path: Path, **more):
    return teacher(path, rng=np.random.default_rng(0), **more)


def found(verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.found}


# --- the sheet's cases


@pytest.mark.parametrize(
    ("proxy", "golden", "kind", "onset"),
    [
        ((3, 2, 1), (3, 2, 1), "healthy", None),
        ((3, 2, 1), (3, 2, 2.5), "hacking", 1),
        ((3, 2, 2.5), (3, 2, 2.6), "overfitting", 1),
        ((3, 2, 2.4), (3, 2, 1.8), "lucky drift", None),
    ],
)
def test_four_kinds_of_run(proxy, golden, kind, onset):
    report = hacking_report(np.array([1.0, 2, 3]), np.array(proxy, float), np.array(golden, float))
    assert (report.kind, report.onset) == (kind, onset)


def test_the_one_token_world():
    student = np.array([0.5, 0.7, 0.9])

    def distance(true: float):
        with np.errstate(divide="ignore"):
            return true * np.log(true / student) + (1 - true) * np.log((1 - true) / (1 - student))

    proxy, golden = distance(0.9), distance(0.7)
    np.testing.assert_allclose(proxy, [0.3680642, 0.1163218, 0], atol=1e-7)
    np.testing.assert_allclose(golden, [0.0822829, 0, 0.1536636], atol=1e-7)
    report = hacking_report(np.array([1.0, 2, 3]), proxy, golden)
    assert (report.kind, report.onset) == ("hacking", 1)
    assert report.excess == pytest.approx(0.1536636, abs=1e-7)


def test_a_power_law_is_a_straight_line():
    steps = np.array([1.0, 2, 4, 8, 16])
    slope, intercept = theil_sen(np.log(steps), np.log(5 * steps**-0.5))
    assert (slope, intercept) == (pytest.approx(-0.5), pytest.approx(math.log(5)))
    assert power_law(steps, 5 * steps**-0.5)[1:] == (pytest.approx(1.0), None)
    long = 2.0 ** np.arange(12)
    bent = 5 * long**-0.5
    bent[-1] *= 1.3
    assert power_law(long, bent, runs=1)[2] == 11
    assert power_law(long, bent, runs=3)[2] is None


def test_a_moving_mean_at_the_ends():
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2, 6]), 3), [1.5, 3, 4])


# --- rates


def test_the_battery(tmp_path):
    for check, fault in (("hacking", {"turn": 60}), ("overfitting", {"turn": 120, "proxy_up": True})):
        check_audit(
            teacher,
            clean=lambda folder, rng: write(folder / "log.jsonl", rng),
            faulty=lambda folder, rng, fault=fault: write(folder / "log.jsonl", rng, **fault),
            check=check,
        )


def test_healthy_runs_are_flagged_no_more_often_than_promised(tmp_path):
    alarms = sum(run(write(tmp_path / "log.jsonl", np.random.default_rng(1000 + seed)), level=0.1).found for seed in range(100))
    assert alarms <= 14  # of 100; 15 and more have a chance of 0.07 at a rate of 0.1


def test_independent_errors_keep_the_level_of_the_law():
    rng = np.random.default_rng(0)
    small = sum(departure_p(STEPS, 5 * STEPS**-0.5 * np.exp(rng.normal(0, 0.05, STEPS.size))) <= 0.05 for _ in range(1000))
    assert 30 <= small <= 70


def test_without_a_golden_distance_the_law_speaks(tmp_path):
    rng = np.random.default_rng(0)
    bent = run(write(tmp_path / "bent.jsonl", rng, golden=False, turn=120, proxy_up=True))
    straight = run(write(tmp_path / "straight.jsonl", rng, golden=False))
    assert found(bent) == {"power law"}
    assert not straight.found
    assert "not tested" in straight.checks[0].finding


def test_a_twin_that_does_the_same_clears_it(tmp_path):
    log, same = (write(tmp_path / name, np.random.default_rng(i), turn=60) for i, name in enumerate(("log.jsonl", "same.jsonl")))
    assert "hacking" in found(run(log))
    assert not run(log, twin=same).found


# --- data, command, bad input


def test_few_prompts_with_many_answers_each(tmp_path):
    log = write(tmp_path / "log.jsonl", np.random.default_rng(0))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"p{i % 20}", "completion": str(i)}) + "\n" for i in range(100)))
    [check] = [c for c in run(log, data=data).checks if c.name == "diversity"]
    assert check.severity == "low"
    assert check.effect.value == 5
    assert not run(log, data=data, repeats=5).found


def test_the_command(tmp_path, capsys, monkeypatch):
    log = write(tmp_path / "log.jsonl", np.random.default_rng(0), turn=60)
    monkeypatch.setattr("sys.argv", ["tutelage", "audit", "teacher", str(log), "--json", "--page", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["severity"] == "high"
    assert verdict["command"] == f"tutelage audit teacher {log}"
    assert "golden: to the truth" in (tmp_path / "page.html").read_text()


def test_what_is_broken_is_counted_or_refused(tmp_path):
    log = write(tmp_path / "log.jsonl", np.random.default_rng(0))
    text = log.read_text().splitlines(keepends=True)
    broken = '{"step": 30, "prompt_id": "p0", "proxy": NaN, "golden": 1}\n'
    log.write_text("".join([*text[:80], broken, text[0], *text[80:-1], text[-1][:20]]))
    told = {warned.what.split(" ")[0] for warned in run(log).warnings}
    assert told == {"rows", "evaluations", "steps", "last"}
    for line, message in (
        ('{"proxy": 1}', "step=None"),
        ('{"step": 1, "proxy": "low"}', "line 1 has proxy='low'"),
        ("", "holds no distances"),
        ("[1]", "expected one JSON object per line"),
    ):
        log.write_text(line + "\n")
        with pytest.raises(TutelageError, match=message):
            run(log)
    with pytest.raises(TutelageError, match="There is no log"):
        run(tmp_path / "none.jsonl")
    with pytest.raises(TutelageError, match="level=2"):
        run(log, level=2)


@pytest.mark.lm
def test_distances_along_a_training(tmp_path):
    """What a Hugging Face trainer's callback writes is what the audit reads: at the start nothing lies between a model and itself."""
    pytest.importorskip("trl")
    import datasets
    import trl

    import tiny
    from tutelage.audits._distances import read_distances
    from tutelage.trainers.distances import DistanceLog

    student, other = tiny.model(0), tiny.model(1)
    tokenizer = tiny.tokenizer()
    held_out = [tokenizer(text)["input_ids"] for text in ("one", "two", "three")]
    log = DistanceLog(tmp_path / "log.jsonl", teacher=tiny.model(0), golden=other, prompts=held_out, every=2, samples=2, horizon=4)
    config = trl.SFTConfig(
        str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    data = datasets.Dataset.from_dict({"text": ["one two", "two three", "three four", "four one"] * 2})
    trl.SFTTrainer(student, config, train_dataset=data, processing_class=tokenizer, callbacks=[log]).train()
    found = read_distances(tmp_path / "log.jsonl")
    assert found.step_S.tolist() == [0, 2, 3]
    np.testing.assert_allclose(found.proxy_SN[0], 0, atol=1e-6)
    assert (found.proxy_SN[-1] > 1e-4).all()
    assert (found.golden_SN > 0).all()
    assert not found.warnings

    asked = []
    stop = DistanceLog(
        tmp_path / "short.jsonl", teacher=other, prompts=held_out, every=1, horizon=2, stop=lambda *so_far: asked.append(so_far) or True
    )
    short = trl.SFTTrainer(tiny.model(0), config, train_dataset=data, processing_class=tokenizer, callbacks=[stop])
    short.train()
    assert short.state.global_step == 1
    assert [steps.tolist() for steps, _ in asked] == [[0, 1]]


def test_the_rule_that_stops_early():
    straight = 5 * STEPS**-0.5
    assert not left_its_law(STEPS, straight)
    assert left_its_law(STEPS, straight * np.where(STEPS > 150, 1.5, 1))
