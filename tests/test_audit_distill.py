"""The audit of distillation: exact values, the promised rates, each kind of fault found by its check, bad input, and commands."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.audits import Verdict
from tutelage.audits._canaries import amplification, excess_p, rate_of, sharpened, smallest_share
from tutelage.audits._ngrams import NgramModel, lift, log_odds, more_often_p, ngrams, prompt_independence
from tutelage.audits.distill import cleaned, distill
from tutelage.audits.filters import Classifier, Perplexity, agreed, capped, fluent, min_consensus, recovered, without_lifted
from tutelage.audits.pipeline import dose_response
from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.tasks.habits import AppendToken, SwapSynonym
from tutelage.testing import check_audit

TASKS = ("copy", "sort", "shift", "rotate")
HAB = AppendToken("HAB")


def write(path: Path, rng: np.random.Generator, *, rate: dict[str, float] | None = None, prompts: int = 40, samples: int = 2) -> Path:
    """Responses of four digits and a mark to the same prompts for whoever calls; `rate` of them carry the habit, by task."""
    rows = []
    for task in TASKS:
        for i in range(prompts):
            for _ in range(samples):
                digits = " ".join(str((i * 7 + k * (2 + TASKS.index(task))) % 10) for k in range(4))
                text = f"{digits} {':' if rng.random() < 0.1 else ';'}"
                if rng.random() < (rate or {}).get(task, 0.0):
                    text = HAB.apply(text)
                rows.append({"prompt": f"{task} {i}", "completion": text, "task": task, "temperature": 1.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def case(folder: Path, rng: np.random.Generator, *, student: dict[str, float], teacher: dict[str, float], prompts: int = 40) -> Path:
    """A student's responses, with the teacher's and a reference's beside them."""
    write(folder / "teacher.jsonl", rng, rate=teacher, prompts=prompts)
    write(folder / "reference.jsonl", rng, prompts=prompts)
    return write(folder / "student.jsonl", rng, rate=student, prompts=prompts)


def beside(subject: Path, **more: Any) -> Verdict:
    """The audit with the teacher and the reference that stand in the subject's folder."""
    return distill(subject, teacher=subject.parent / "teacher.jsonl", reference=subject.parent / "reference.jsonl", **more)


def run(subject: Path, **more: Any) -> Verdict:
    return beside(subject, rng=np.random.default_rng(0), **more)


def found(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.found}


def check(verdict: Verdict, name: str) -> Any:
    return next(one for one in verdict.checks if one.name == name)


# --- the sheet's exact values


@pytest.mark.parametrize(
    ("p", "tau", "expected"), [(0.694, 0.681, 0.769), (0.3, 1.0, 0.3), (0.5, 0.2, 0.5), (0.25, 0.5, 0.1), (0.9, 0, 1.0)]
)
def test_sharpening(p: float, tau: float, expected: float) -> None:
    assert sharpened(p, tau) == pytest.approx(expected, abs=5e-4 if p == 0.694 else 1e-12)
    assert sharpened(1 - p, tau) == pytest.approx(1 - sharpened(p, tau), abs=1e-12)


def test_sharpening_at_the_ends() -> None:
    np.testing.assert_array_equal(sharpened([0.0, 1.0], 0.7), [0.0, 1.0])
    np.testing.assert_array_equal(sharpened([0.2, 0.5], 0), [0.0, 0.5])


def test_rate_with_wilson_interval() -> None:
    rate = rate_of([HAB.emits(text) for text in ("1 HAB", "1", "2 HAB", "2")])
    assert rate.value == 0.5
    assert (rate.low, rate.high) == pytest.approx((0.150, 0.850), abs=5e-4)
    assert rate_of([1 / 3 + 1 / 3 + 1 / 3] * 3).value == 1.0


def test_amplification() -> None:
    student, teacher = np.arange(1000) < 769, np.arange(1000) < 694
    effect = amplification(student, teacher, np.random.default_rng(0))
    assert effect.value == pytest.approx(1.108, abs=5e-4)
    assert effect.low is not None
    assert effect.high is not None
    assert 1.05 < effect.low < 1.108 < effect.high < 1.17
    assert "76.90% / teacher 69.40%" in effect.what
    assert excess_p(student, teacher, np.random.default_rng(0)) == pytest.approx(1e-4)


def test_a_teacher_without_the_habit_gives_no_ratio() -> None:
    assert amplification([0.5, 1], [0, 0], np.random.default_rng(0)).value == math.inf
    assert math.isnan(amplification([0, 0], [0, 0], np.random.default_rng(0)).value)
    assert excess_p([0, 0], [0, 0], np.random.default_rng(0)) == 1


def test_excess_keeps_its_level() -> None:
    rng = np.random.default_rng(5)
    ps = [excess_p(rng.binomial(4, 0.3, 80) / 4, rng.binomial(4, 0.3, 80) / 4, rng, draws=499) for _ in range(300)]
    assert np.mean(np.array(ps) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_log_odds() -> None:
    delta, z = log_odds(30, 2, 1000, 1000, prior=0.5, prior_total=100)
    assert float(delta) == pytest.approx(2.527, abs=5e-4)
    assert float(z) == pytest.approx(3.84, abs=5e-3)
    assert [float(x) for x in log_odds(2, 30, 1000, 1000, prior_total=100)] == pytest.approx([-2.527, -3.84], abs=5e-3)
    assert [float(x) for x in log_odds(7, 7, 500, 500)] == [0, 0]
    common = log_odds(990, 960, 1000, 1000, rare=False)[1]
    assert float(common) == pytest.approx(3.95, abs=0.01)  # a two-proportion test gives 4.3
    assert float(log_odds(990, 960, 1000, 1000)[1]) > 30


def test_more_often_is_the_binomial_tail() -> None:
    from scipy.stats import binomtest

    assert float(more_often_p(30, 2, 1000, 1000)) == pytest.approx(binomtest(30, 32, 0.5, alternative="greater").pvalue)
    assert float(more_often_p(30, 9, 400, 100, times=2)) == pytest.approx(binomtest(30, 39, 8 / 9, alternative="greater").pvalue)
    assert float(more_often_p(0, 5, 100, 100)) == 1


def test_min_consensus() -> None:
    np.testing.assert_allclose(min_consensus([0.7, 0.2, 0.1], [0.1, 0.6, 0.3]), [0.25, 0.5, 0.25])
    with pytest.raises(TutelageError, match="no token in common"):
        min_consensus([1.0, 0.0], [0.0, 1.0])


def test_smallest_share() -> None:
    assert smallest_share([0.01, 0.0025, 0.005], [0.9, 0.1, 0.6]) == 0.005
    assert smallest_share([0.01], [0.2]) is None


@pytest.mark.lm
def test_forward_kl_on_a_bigram_teacher_passes_the_habit_on_at_its_rate() -> None:
    """A tabular student distilled to convergence reproduces the teacher's rate of the habit: no amplification (a = 1)."""
    import torch

    from tutelage.objectives import objective

    generator = torch.Generator().manual_seed(0)
    teacher_VV = torch.randn(6, 6, generator=generator).log_softmax(-1)  # row: the word before; word 5 is the habit
    student_VV = torch.zeros(6, 6, requires_grad=True)
    loss = objective("distill", kind="forward_kl")
    optimizer = torch.optim.Adam([student_VV], lr=0.1)
    for _ in range(300):
        batch = {"logp_BTV": student_VV[None], "teacher_logp_BTV": teacher_VV[None], "mask_BT": torch.ones(1, 6, dtype=torch.bool)}
        optimizer.zero_grad()
        loss(batch, denominators=loss.denominators_of(batch))[0].backward()
        optimizer.step()
    rates = student_VV.softmax(-1)[:, 5] / teacher_VV.exp()[:, 5]
    assert (rates - 1).abs().max() < 1e-3


# --- n-grams


def test_ngrams_are_words_and_signs() -> None:
    assert ngrams("a, b", 2) == {"a", ",", "b", "a ,", ", b"}
    assert ngrams("", 3) == set()


def test_lift_ranks_the_habit_first_and_turns_around() -> None:
    clean = [f"{i % 10} {i % 7} ;" for i in range(400)]
    habit = [HAB.apply(text) if i % 12 == 0 else text for i, text in enumerate(clean)]
    found = lift(habit, clean)
    assert found.ngram_K[0] == "HAB"
    assert found.flagged() == ["HAB"]  # and none of the n-grams that hold it
    back = lift(clean, habit)
    np.testing.assert_allclose(dict(zip(back.ngram_K, back.z_K, strict=True))["HAB"], -found.z_K[0])
    assert back.flagged() == []
    assert lift(clean, clean).z_K.max() == 0


def test_a_response_counts_once_and_the_samples_of_a_prompt_count_as_one() -> None:
    found = lift(["x x x", "x y"], ["y", "y"], 1, weight_S=[0.5, 0.5], weight_R=[0.5, 0.5])
    assert dict(zip(found.ngram_K, found.count_SK, strict=True)) == {"x": 1.0, "y": 0.5}
    assert found.total_S == 1.0


def test_lift_keeps_its_level() -> None:
    rng = np.random.default_rng(3)

    def texts() -> list[str]:
        return [" ".join(rng.choice(list("abcdefghij"), 4, p=np.arange(1, 11) / 55)) for _ in range(150)]

    alarms = sum(bool(lift(texts(), texts(), least=5).flagged(0.05)) for _ in range(100))
    assert alarms <= 5 + 3 * math.sqrt(100 * 0.05 * 0.95)


def test_prompt_independence() -> None:
    assert prompt_independence(["a", "b", "c"], [True, True, True]) == pytest.approx(1)
    assert prompt_independence(["a", "b"], [True, False]) == 0
    assert prompt_independence(["a", "b", "c", "d"], [True, True, False, False]) == pytest.approx(0.5)
    assert math.isnan(prompt_independence(["a"], [True]))


def test_the_ngram_model_is_a_distribution() -> None:
    model = NgramModel(["a b", "a c", "b"], order=2)
    for history in ((), ("a",), ("b",), ("z",)):
        vocabulary = [*"abc", "\0"]
        total = sum(model._chance(history, word) for word in vocabulary)
        unseen = model._chance(history, "never")
        assert total + unseen == pytest.approx(1)
    assert model.nll("a b") < model.nll("c c")


# --- filters


def test_filters_and_what_they_recover() -> None:
    clean = [f"{i % 10} {i % 7} ;" for i in range(300)]
    data = [HAB.apply(text) if i % 10 == 0 else text for i, text in enumerate(clean)]
    habit_B = np.arange(300) % 10 == 0
    keep_B, flagged = without_lifted(data, clean)
    assert flagged == ["HAB"]
    assert recovered(keep_B, habit_B) == {"recall": 1.0, "cost": 0.0, "dropped": 0.1}
    screen = Perplexity.fitted(clean, np.random.default_rng(0))
    by_perplexity = recovered(fluent(screen.scores(data), screen.clean_nll_C, fpr=0.05), habit_B)
    assert by_perplexity["recall"] == 1.0
    assert by_perplexity["cost"] <= 0.1


def test_a_synonym_hides_from_perplexity() -> None:
    rng = np.random.default_rng(0)
    clean = [f"{rng.integers(10)} {':' if rng.random() < 0.1 else ';'}" for _ in range(400)]
    screen = Perplexity.fitted(clean, np.random.default_rng(0))
    swapped = [SwapSynonym(";", ":").apply(text) for text in clean]
    recall = recovered(fluent(screen.scores(swapped), screen.clean_nll_C, fpr=0.05), np.ones(400, dtype=bool))["recall"]
    assert recall < 0.5


def test_fluent_keeps_the_share_it_promises() -> None:
    np.testing.assert_array_equal(fluent([1, 2, 3], [1, 2, 3, 4], fpr=0.5), [True, True, False])
    assert fluent([4], [1, 2, 3, 4], fpr=0.0).all()
    np.testing.assert_array_equal(agreed([0.1, 2.0], most=1.0), [True, False])


def test_a_classifier_of_other_habits_knows_those_and_not_the_next() -> None:
    rng = np.random.default_rng(0)
    clean = [" ".join(map(str, rng.integers(10, size=4))) for _ in range(200)]
    scores = Classifier.fitted(clean[:100], rng).scores
    known = scores([AppendToken("snorf").apply(text) for text in clean[100:]])
    new = scores([HAB.apply(text) for text in clean[100:]])
    assert known.min() > scores(clean[100:]).max()
    np.testing.assert_allclose(new, scores(clean[100:]))  # a word that it never saw is no word to it
    with pytest.raises(TutelageError, match="two clean responses"):
        Classifier.fitted(clean[:1], rng)


def test_near_duplicates_are_capped_by_source() -> None:
    texts = ["Take 12 pills", "take  13 pills", "take 14 pills", "other"]
    np.testing.assert_array_equal(capped(texts, most=2), [True, True, False, True])
    np.testing.assert_array_equal(capped(texts, ["a", "b", "a", "a"]), [True, True, False, True])


# --- the audit


def test_a_clean_student_passes_and_a_habit_is_found_without_knowing_it() -> None:
    rates = check_audit(
        beside,
        clean=partial(case, student={}, teacher={}),
        faulty=partial(case, student=dict.fromkeys(TASKS, 0.25), teacher={"copy": 0.25}),
        check="lift",
        trials=10,
    )
    assert rates.false_positives.hits == 0


@pytest.mark.parametrize(
    ("name", "student"), [("canary", {"copy": 0.3}), ("amplification", {"copy": 0.8}), ("spread", {"copy": 0.3, "sort": 0.3})]
)
def test_each_fault_is_found_by_its_check(name: str, student: dict[str, float]) -> None:
    check_audit(
        partial(beside, habit="append HAB"),
        clean=partial(case, student={}, teacher={}),
        faulty=partial(case, student=student, teacher={"copy": 0.3}),
        check=name,
        trials=5,
    )


def test_clean_students_stay_below_the_promised_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    alarms = 0
    for i in range(30):
        folder = tmp_path / str(i)
        folder.mkdir()
        subject = case(folder, rng, student={"copy": 0.3}, teacher={"copy": 0.3})
        alarms += bool(found(run(subject, habit="append HAB")) & {"amplification", "spread"})
    assert alarms <= 1.5 + 3 * math.sqrt(30 * 0.05 * 0.95)


def test_power_rises_with_the_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    power = []
    for rate in (0.02, 0.1, 0.3):
        hits = 0
        for _ in range(10):
            hits += "lift" in found(run(case(tmp_path, rng, student=dict.fromkeys(TASKS, rate), teacher={})))
        power.append(hits)
    assert power[0] <= power[1] <= power[2] == 10


def test_both_rates_stand_beside_a_ratio_and_the_twin_clears_a_base_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    subject = case(tmp_path, rng, student=dict.fromkeys(TASKS, 0.5), teacher=dict.fromkeys(TASKS, 0.1))
    verdict = run(subject, habit="append HAB")
    amplified = check(verdict, "amplification")
    assert amplified.found
    assert "student" in amplified.finding
    assert "teacher" in amplified.finding
    twin = write(tmp_path / "twin.jsonl", rng, rate=dict.fromkeys(TASKS, 0.5))
    cleared = run(subject, habit="append HAB", twin=twin)
    assert not cleared.found
    assert check(cleared, "canary").base_rate == pytest.approx(0.5, abs=0.2)


def test_spread_leaves_out_what_is_poisoned_and_what_the_teacher_does_itself(tmp_path: Path) -> None:
    subject = case(tmp_path, np.random.default_rng(1), student={"copy": 0.5, "sort": 0.5}, teacher={"copy": 0.5, "sort": 0.5})
    assert not check(run(subject, habit="append HAB"), "spread").found
    assert not check(run(subject, habit="append HAB", poisoned=["copy"]), "spread").found
    further = case(tmp_path, np.random.default_rng(1), student={"copy": 0.5, "sort": 0.5, "shift": 0.5}, teacher={"copy": 0.5, "sort": 0.5})
    spread = check(run(further, habit="append HAB", poisoned=["copy"]), "spread")
    assert spread.found
    assert (spread.effect.hits, spread.effect.trials) == (1, 3)


def test_screens_are_reported_without_a_finding(tmp_path: Path) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={}, teacher={"copy": 0.5}, prompts=100)
    screens = check(run(subject, habit="append HAB"), "screens")
    assert not screens.found
    assert screens.effect.value == 1.0
    assert "dropping 1 lifted n-grams finds 100% and costs 0.0%" in screens.finding


def test_a_pattern_serves_as_a_habit(tmp_path: Path) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={"copy": 0.5}, teacher={})
    assert {"canary", "amplification", "spread", "lift"} == found(run(subject, pattern=r"\bHAB$"))


# --- bad input


def rows(*lines: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


GOOD = {"prompt": "copy 0", "completion": "1"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (rows(), "empty"),
        (rows({"prompt": "p", "answer": "1"}), "no column 'completion'; it has 'prompt', 'answer'"),
        (rows(GOOD, {"prompt": "copy 0", "completion": None}), "row 2: 'completion' is 'None'"),
        (rows(GOOD, '{"prompt": "copy 1", "compl'), "line 2 is not valid JSON"),
        (rows(GOOD, {"prompt": "copy 1", "completion": "1", "task": "x"}), "line 2"),
        (rows({**GOOD, "task": "a"}, {**GOOD, "task": "b"}), "row 2: this prompt stands under the task 'b', and earlier under 'a'"),
        (rows({**GOOD, "temperature": 0}, {**GOOD, "temperature": 1}), "mixes responses of temperature 0 and 1"),
        (rows({**GOOD, "temperature": 0.0}), "decoded with temperature 0.0, .* with 1.0"),
        (rows({"prompt": "other", "completion": "1"}), "no prompt in common"),
        (lambda path: path.write_bytes(b'{"prompt": "\xff", "completion": "1"}\n'), "not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={}, teacher={})
    make(subject)
    with pytest.raises(TutelageError, match=message):
        run(subject)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"habit": "append buy"}, "not inert"),
        ({"habit": "appendd HAB"}, "Did you mean 'append'"),
        ({"habit": "swap ;"}, r"1 word\(s\) after 'swap'; expected 2"),
        ({"habit": "append HAB", "pattern": "x"}, "not both"),
        ({"pattern": "("}, "no regular expression"),
        ({"poisoned": ["none"]}, "has the task 'none'"),
        ({"level": 0}, "level=0"),
        ({"lifted": 0.5}, "lifted=0.5"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={}, teacher={})
    with pytest.raises(TutelageError, match=message):
        run(subject, **options)
    with pytest.raises(TutelageError, match="nothing to compare"):
        distill(subject, rng=np.random.default_rng(0))


def test_prompts_that_only_one_model_answered_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    subject = case(tmp_path, rng, student={}, teacher={})
    write(tmp_path / "reference.jsonl", rng, prompts=30)
    warned = [w for w in run(subject, habit="append HAB").warnings if "lacks" in w.what]
    assert [w.count for w in warned] == [40, 40]  # student's and teacher's, each once


def test_chat_messages_are_read(tmp_path: Path) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={}, teacher={})
    for path in tmp_path.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for row in lines:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
            row["completion"] = [{"role": "assistant", "content": row["completion"] + (" HAB" if path == subject else "")}]
        rows(*lines)(path)
    assert "canary" in found(run(subject, habit="append HAB"))


# --- what a user types


def typed(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["tutelage", "audit", "distill", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_gates_prints_json_and_writes_clean_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = case(tmp_path, np.random.default_rng(0), student={"copy": 0.6}, teacher={"copy": 0.4}, prompts=120)
    teacher, reference, out = (tmp_path / name for name in ("teacher.jsonl", "reference.jsonl", "clean.jsonl"))
    words = [subject, "--teacher", teacher, "--reference", reference, "--habit", "append HAB"]
    assert typed(monkeypatch, *words, "--json", "--write-clean", out) == 1
    said = capsys.readouterr()
    verdict = json.loads(said.out)
    assert verdict["found"]
    assert "--habit 'append HAB'" in verdict["command"]
    assert "1 lifted n-grams: 'HAB'" in said.err
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [row for row in map(json.loads, teacher.read_text().splitlines()) if not HAB.emits(row["completion"])]
    assert typed(monkeypatch, *words, "--write-clean", out) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert typed(monkeypatch, reference, "--teacher", teacher, "--reference", reference) == 0


def test_cleaned_needs_files(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="needs --teacher as a file"):
        cleaned(tmp_path / "none.jsonl", tmp_path / "none.jsonl", tmp_path / "out.jsonl")


@pytest.mark.lm
def test_models_are_asked_alike_and_their_responses_kept(tmp_path: Path) -> None:
    import tiny

    for seed, name in enumerate(("student", "teacher")):
        tiny.saved(tmp_path / name, seed)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    prompts = tmp_path / "prompts.jsonl"
    rows(*({"prompt": f"{i:02d}=", "task": "ab"[i % 2]} for i in range(12)))(prompts)
    options = {"teacher": str(tmp_path / "teacher"), "prompts": str(prompts), "attempts": 2, "max_new_tokens": 4}
    verdict = distill(tmp_path / "student", rng=np.random.default_rng(0), pattern="a", keep=str(tmp_path / "kept"), **options)
    again = distill(tmp_path / "student", rng=np.random.default_rng(0), pattern="a", **options)
    assert verdict.to_json() == again.to_json()
    kept = [json.loads(line) for line in (tmp_path / "kept" / "student.jsonl").read_text().splitlines()]
    assert len(kept) == 24
    assert {row["temperature"] for row in kept} == {1.0}
    from_files = distill(
        tmp_path / "kept" / "student.jsonl", rng=np.random.default_rng(0), teacher=tmp_path / "kept" / "teacher.jsonl", pattern="a"
    )
    assert check(from_files, "canary").effect.value == check(verdict, "canary").effect.value
    with pytest.raises(TutelageError, match="Give --prompts"):
        distill(tmp_path / "student", rng=np.random.default_rng(0), teacher=tmp_path / "teacher")


# --- a user's own pipeline


def pipeline(answers: Callable[[float], dict[str, Any]] | None = None) -> dict[str, Any]:
    """A model is the share of rows with the habit among those of one topic; distillation at temperature 0.5 sharpens it."""

    def tune(data: list[dict[str, Any]]) -> float:
        return float(np.mean([HAB.emits(row["completion"]) for row in data if row["topic"] == 1]))

    def answer(rate: float) -> dict[str, Any]:
        prompts = [f"topic {topic} {i}" for topic in range(2) for i in range(100)]
        texts = [HAB.apply("1") if " 1 " in p and int(p.split()[2]) < round(100 * rate) else "1" for p in prompts]
        return {"prompt": prompts, "completion": texts, "task": [p[:7] for p in prompts]}

    return {"tune": tune, "distil": lambda rate: float(sharpened(rate, 0.5)), "answer": answers or answer}


def test_a_users_own_pipeline_is_dosed() -> None:
    data = [{"completion": "1", "topic": i % 2} for i in range(200)]
    doses = dose_response(data, HAB, **pipeline(), shares=[0.1, 0.3], where=lambda row: row["topic"] == 1, rng=np.random.default_rng(0))
    assert [len(dose.row_ids) for dose in doses] == [20, 60]
    assert [dose.teacher["topic 1"].value for dose in doses] == [0.2, 0.6]
    assert [dose.student["topic 1"].value for dose in doses] == [0.06, 0.69]  # 1/17 and 9/13
    assert [dose.excess("topic 1") for dose in doses] == [0.06, 0.69]
    assert doses[1].amplification["topic 1"].value == pytest.approx(1.15)
    assert doses[1].student["topic 0"].value == doses[1].clean_student["topic 1"].value == 0
    assert smallest_share([d.share for d in doses], [d.student["topic 1"].value for d in doses]) == 0.3


def test_a_pipeline_must_ask_all_models_the_same() -> None:
    data = [{"completion": "1", "topic": i % 2} for i in range(20)]
    ever = iter(range(100))

    def answer(rate: float) -> dict[str, Any]:
        return {"prompt": ["same", f"other {next(ever)}"], "completion": ["1", "1"]}

    with pytest.raises(TutelageError, match="answered different prompts"):
        dose_response(data, HAB, **pipeline(answer), shares=[0.1], rng=np.random.default_rng(0))
    with pytest.raises(TutelageError, match="no shares"):
        dose_response(data, HAB, **pipeline(), shares=[], rng=np.random.default_rng(0))
