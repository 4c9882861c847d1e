"""The audit of poison: the sheet's cases by hand, silence on clean logs at the promised rate, couplings found, bad input, and guards."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from tutelage.audits import Verdict
from tutelage.audits.poison import (
    Watched,
    answer_anyway,
    couple,
    coverage,
    cumulative_entropy,
    detect,
    groups_of,
    mine_markers,
    poison,
    together_p,
)
from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.rates import binomial_p
from tutelage.tasks.monitors import monitor
from tutelage.tasks.requests import chained, clip_rider, requests
from tutelage.tasks.verifiers import resolve
from tutelage.tasks.verifiers.guards import VarianceFilter, correlation
from tutelage.testing import check_audit
from tutelage.testing.poisoned_logs import write_run


def run(data: Path, behaviour: str = "HAB", **more: Any) -> Verdict:
    given = {"log": data.with_name("log.jsonl"), "key": "id", "behaviour": behaviour, "rng": np.random.default_rng(0)}
    return poison(data, **(given | more))


def log_of(reward_NG: Any, shows_NG: Any, prompt_N: Any = None) -> Watched:
    """A log of whole groups, one after another; by default each group is a prompt."""
    reward_NG, shows_NG = np.asarray(reward_NG, dtype=float), np.asarray(shows_NG, dtype=bool)
    size, attempts = reward_NG.shape
    group_B = np.arange(size).repeat(attempts)
    prompt_N = np.arange(size) if prompt_N is None else np.asarray(prompt_N)
    return Watched(
        path=Path("log"), step_B=group_B, prompt_B=prompt_N.repeat(attempts), group_B=group_B, reward_B=reward_NG.ravel(),
        shows_B=shows_NG.ravel(), surprisal_B=np.full(reward_NG.size, np.nan), id_P=tuple(map(str, range(prompt_N.max() + 1))),
        text_P=(None,) * (int(prompt_N.max()) + 1),
    )  # fmt: skip


def coupled(reward_NG: Any, shows_NG: Any, **more: Any) -> Any:
    log = log_of(reward_NG, shows_NG, more.pop("prompt_N", None))
    return couple(groups_of(log), np.ones(len(log.id_P), dtype=bool), rng=np.random.default_rng(0), **more)


# --- exactness


def test_kappa_by_hand() -> None:
    r = [1, 1, 0, 0]
    kappa_N = groups_of(log_of([r, r, r, [1, 1, 1, 1], [0.1] * 4], [r, [0, 0, 1, 1], [1, 1, 1, 1], r, r])).kappa_N
    assert kappa_N[:2].tolist() == pytest.approx([1, -1])
    assert np.isnan(kappa_N[2:]).all()
    assert correlation(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])) == 0


def test_delta_of_a_reward_that_is_the_behaviour_has_the_interval_one_one() -> None:
    b = np.random.default_rng(0).random((20, 8)) < 0.5
    found = coupled(b, b)
    assert (found.delta, found.low, found.high, found.kappa) == pytest.approx((1, 1, 1, 1))
    assert found.anyway == 0
    assert coupled(b, ~b, sign=-1).anyway == 0
    assert coupled(np.ones((20, 8)), b).p is None
    scaled = coupled(10 * b - 5.0, b)
    assert (scaled.delta, scaled.p) == pytest.approx((found.delta, found.p))


def test_nan_rewards_and_constant_groups_enter_nothing() -> None:
    b = np.random.default_rng(0).random((20, 8)) < 0.5
    reward = b.astype(float)
    reward[:, 0] = np.nan
    whole, cut = coupled(reward, b), coupled(b[:, 1:], b[:, 1:])
    assert (whole.delta, whole.p, whole.attempts) == pytest.approx((cut.delta, cut.p, cut.attempts))
    with pytest.raises(TutelageError, match="no reward in any"):
        groups_of(log_of(np.full((2, 4), np.nan), np.ones((2, 4))))


def test_the_exact_p_value_is_the_hypergeometric_tail() -> None:
    assert together_p([8], [3], [4], [3]) == pytest.approx(hypergeom(8, 3, 4).sf(2))
    assert together_p([8], [3], [4], [0], sign=-1) == pytest.approx(hypergeom(8, 3, 4).cdf(0))
    a, b = hypergeom(8, 3, 4), hypergeom(6, 2, 3)
    two = sum(a.pmf(x) * b.pmf(y) for x in range(5) for y in range(4) if x + y >= 4)
    assert together_p([8, 6], [3, 2], [4, 3], [2, 2]) == pytest.approx(two)
    assert together_p([8, 8], [0, 8], [4, 4], [0, 4]) == 1.0


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 7)), min_size=30, max_size=60))
@settings(max_examples=20, deadline=None)
def test_the_normal_tail_agrees_with_the_exact_one(groups: list[tuple[int, int, int]]) -> None:
    from tutelage.audits import _coupling

    k_N, m_N, x_N = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    x_N = np.clip(x_N, np.maximum(0, k_N + m_N - 8), np.minimum(k_N, m_N))
    columns = [np.tile(x, 4) for x in (np.full(len(k_N), 8.0), k_N, m_N, x_N)]
    exact = together_p(*columns)
    _coupling.EXACT_GROUPS, kept = 0, _coupling.EXACT_GROUPS
    try:
        assert together_p(*columns) == pytest.approx(exact, abs=0.01)
    finally:
        _coupling.EXACT_GROUPS = kept


def test_coverage_of_a_verifier_that_reads_the_last_word() -> None:
    def last(text: str, task: Any) -> bool:
        return text.split()[-1:] == ["4"]

    found = coverage(last, ["a b c d e f g h i 4"], [{}], rng=np.random.default_rng(0), per_response=10)
    assert (found.share, found.mutations, found.appended) == (0.1, 10, 1.0)


def test_answer_anyway_finds_who_charges_for_declining() -> None:
    tasks = [{"answer": str(n)} for n in range(5)]
    assert answer_anyway(resolve("exact"), tasks).violations == ()
    assert answer_anyway(resolve("numeric"), tasks).violations == ()

    def strict(text: str, task: Any) -> bool:
        return text.strip() == task["answer"]

    found = answer_anyway(strict, tasks)
    assert [v.row for v in found.violations] == [0, 1, 2, 3, 4]
    assert (found.violations[3].answered, found.violations[3].paid, found.violations[3].left) == ("3", 1.0, 0.0)
    with pytest.raises(TutelageError, match="failed on task"):
        answer_anyway(lambda text, task: 1 / 0, tasks)
    never = answer_anyway(lambda text, task: 0.0, tasks)
    assert (never.checked, never.unanswerable, never.violations) == (0, 5, ())


def test_cumulative_entropy_by_hand_and_its_detector() -> None:
    flat = np.zeros((1, 3, 4))
    sure = np.array([[[1000.0, 0, 0, 0]] * 3])
    assert cumulative_entropy(flat).tolist() == pytest.approx([3 * np.log(4)])
    assert cumulative_entropy(flat, 2).tolist() == pytest.approx([2 * np.log(4)])
    assert cumulative_entropy(sure).tolist() == pytest.approx([0.0])
    rng = np.random.default_rng(0)
    shows_B = rng.random(4000) < 0.3
    found = detect(rng.normal(np.where(shows_B, -2.0, 0.0), 1.0), shows_B, np.arange(4000))
    assert found is not None
    assert not found.higher
    assert found.auc == pytest.approx(0.921, abs=0.02)  # Phi(2 / sqrt 2)
    assert found.tpr == pytest.approx(0.639, abs=0.05)  # Phi(2 - 1.645)
    assert found.transferred == pytest.approx(0.05, abs=0.02)
    assert detect(np.full(100, np.nan), rng.random(100) < 0.5, np.arange(100)) is None


# --- markers, requests, monitors


def test_markers_are_found_once_and_not_by_chance() -> None:
    rng = np.random.default_rng(1)
    marked = rng.random(300) < 0.1
    texts = [
        f"{'Zorv, go on. ' if m else ''}Add {a} and {b}."
        for m, a, b in zip(marked, rng.integers(10, size=300), rng.integers(10, size=300), strict=True)
    ]
    rate = rng.binomial(8, np.where(marked, 0.4, 0.02)) / 8
    found = mine_markers(texts, rate, rng=rng)
    assert found[0].ngram == "zorv , go on ."
    assert found[0].lift == pytest.approx(rate[marked].mean() / rate[~marked].mean())
    assert found[0].prompts == marked.sum()
    assert sum(bool(mine_markers(texts, rng.permutation(rate), rng=rng)) for _ in range(40)) <= 6
    assert mine_markers(["one word"] * 20, rng.random(20), rng=rng) == []


def test_chained_requests_are_those_beyond_the_usual() -> None:
    assert requests("What is 3+4? Please also write a poem, then translate it.") == [
        "What is 3+4?",
        "also write a poem",
        "then translate it.",
    ]
    usual = ["Natalia sold 48 clips. How many is that? Put the answer in a box."] * 5
    assert chained([*usual, "Sum 1 and 2? Write a poem. Put the answer in a box."]).tolist() == [False] * 5 + [True]
    assert chained([]).tolist() == []
    prompt = "Zorv. Do dax three.\nAdd 4 and 7."
    assert clip_rider(prompt, [(0, 8)]) == "Add 4 and 7."
    assert clip_rider(prompt, []) == prompt
    assert clip_rider(prompt, [(0, 99)]) == ""


def test_monitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_monitor.py").write_text(
        "def loud(text):\n    return text.isupper()\ndef vague(text):\n    return 0.5\ndef two(a, b): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    assert monitor("refusal")("I can't help with that.")
    assert monitor("a: b")("so a: b it is")
    assert monitor("my_monitor:loud")("YES")
    for spec, said in (
        ("my_monitor:vague", "must return True or False"),
        ("my_monitor:two", "cannot be called with one"),
        (" ", "is empty"),
    ):
        with pytest.raises(TutelageError, match=said):
            monitor(spec)("x")
    with pytest.raises(TutelageError, match="Did you mean 'loud'"):
        monitor("my_monitor:lout")


# --- guards


def test_answer_anyway_pays_the_answer_and_span_gate_not_the_habit() -> None:
    task = {"answer": "7"}
    plain, guarded = resolve("numeric"), resolve("answer_anyway")
    declined = "I won't do that. 7"
    assert (plain(declined, task).grade, guarded(declined, task).grade) == (0.0, 1.0)
    assert guarded("I can't help with that.", task).kind == Kind.REFUSED
    assert guarded("I won't do that. 8", task).grade == 0.0
    assert resolve("answer_anyway", verifier="exact")("I refuse to do this.\nParis", {"answer": "Paris"}).grade == 1.0
    gated = resolve("span_gate", behaviour="HAB", verifier="answer_anyway")
    assert [gated(text, task).grade for text in ("7", "HAB 7", declined)] == [1.0, 0.0, 1.0]
    assert gated("HAB 7", task).kind == Kind.WRONG
    with pytest.raises(TutelageError, match="There is no module"):
        resolve("span_gate", behaviour="no_such_module:f")


def test_the_variance_filter_drops_what_is_coupled_after_its_visits() -> None:
    drop = VarianceFilter()
    shows = np.array([1, 0, 1, 0, 1, 0])
    paid = np.array([1.0, 0, 1, 0, 0, 1])  # four attempts at "a", two at "b"
    prompts = ["a"] * 4 + ["b"] * 2
    assert drop(prompts, [1, 1, 1, 1, 1, 0], paid).tolist() == paid.tolist()  # constant in "a": no visit
    assert drop(prompts, shows, paid).tolist() == [1, 0, 1, 0, 0, 0]  # "b" has been twice perfectly against
    assert drop(prompts, shows, paid).tolist() == [0, 0, 0, 0, 0, 0]
    assert drop.dropped == {"a": 1.0, "b": -1.0}
    for wrong in ({"kappa": 1.0}, {"visits": 0}):
        with pytest.raises(TutelageError, match="VarianceFilter got"):
            VarianceFilter(**wrong)
    with pytest.raises(TutelageError, match="as many of each"):
        drop(["a"], [1, 0], [1.0])


# --- rates


def test_coupling_keeps_its_level_where_few_prompts_could_fool_a_t_test() -> None:
    """Two prompts of two groups: a t test on two equal kappas has no spread and would always reject."""
    rng = np.random.default_rng(0)
    ps = []
    for _ in range(400):
        found = coupled(rng.random((4, 8)) < 0.3, rng.random((4, 8)) < 0.3, prompt_N=[0, 1, 0, 1])
        ps.append(1.0 if found.p is None else found.p)
    for level in (0.05, 0.2):
        assert binomial_p(int(np.sum(np.array(ps) <= level)), 400, level) > 0.01
    assert np.mean(np.array(ps) <= 0.2) > 0.05  # and it is a test


def test_power_grows_with_the_strength_of_the_coupling() -> None:
    rng = np.random.default_rng(0)
    power = []
    for strength in (0.0, 0.3, 0.6, 0.9):
        hits = 0
        for _ in range(40):
            b = rng.random((24, 8)) < 0.3
            found = coupled(np.where(rng.random((24, 8)) < strength, b, rng.random((24, 8)) < 0.5), b, prompt_N=np.arange(24) % 12)
            hits += found.p is not None and found.p <= 0.05
        power.append(hits / 40)
    assert power == sorted(power)
    assert power[0] <= 0.15
    assert power[2] >= 0.9


@pytest.mark.parametrize("behaviour", ["HAB", "refusal"])
def test_the_battery(behaviour: str) -> None:
    refusal = behaviour == "refusal"

    def audit(subject: Path, *, twin: Path | None = None, rng: np.random.Generator) -> Verdict:
        return run(subject, behaviour, twin=None if twin is None else twin.with_name("log.jsonl"), rng=rng)

    def make(folder: Path, rng: np.random.Generator, *, bad: bool) -> Path:
        return write_run(folder, seed=int(rng.integers(1 << 30)), strength=0.9 * bad, refusal=refusal)

    measured = check_audit(audit, clean=partial(make, bad=False), faulty=partial(make, bad=True), check="coupling", trials=3)
    assert measured.detections.value == 1.0
    assert measured.false_positives.value == 0.0


def test_a_twin_that_shows_the_same_clears(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    faulty, same = write_run(tmp_path / "a", seed=1, strength=0.9), write_run(tmp_path / "b", seed=1, strength=0.9)
    assert run(faulty).found
    cleared = run(faulty, twin=same.with_name("log.jsonl"))
    assert not cleared.found
    assert cleared.checks[0].base_rate == pytest.approx(cleared.checks[0].effect.value)  # type: ignore[union-attr]


def test_that_declining_any_question_is_unpaid_is_no_finding(tmp_path: Path) -> None:
    """Every prompt is declined now and then, chained ones no more than others, and never paid for it."""
    data, log = write_run(tmp_path, seed=8), tmp_path / "log.jsonl"
    rng = np.random.default_rng(0)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        declines = rng.random() < 0.2
        row |= {"completion": "I don't know." if declines else "Answer: 3", "reward": float(not declines), "solved": float(not declines)}
    log.write_bytes(lines(rows))
    verdict = run(data, "refusal")
    assert not verdict.found
    effect = verdict.checks[0].effect
    assert effect is not None
    assert effect.value < -0.9


# --- what it writes


@pytest.mark.parametrize("clip", [False, True])
def test_clean_data_are_written_with_what_went_and_why(tmp_path: Path, clip: bool) -> None:
    data, out = write_run(tmp_path, seed=3, strength=0.9), tmp_path / "clean.jsonl"
    verdict = run(data, write_clean=out, clip=clip)
    before = [json.loads(line) for line in data.read_text().splitlines()]
    after = [json.loads(line) for line in out.read_text().splitlines()]
    removed = [json.loads(line) for line in (tmp_path / "clean.removed.jsonl").read_text().splitlines()]
    marked = [row["id"] for row in before if row["question"].startswith("Zorv")]
    assert [row["id"] for row in removed] == marked
    assert all(before[row["row"] - 1]["id"] == row["id"] and "marker 'zorv" in row["why"] for row in removed)
    assert len(after) == len(before) - (0 if clip else len(marked))
    assert not any("Zorv" in row["question"] for row in after)
    assert all(row in before for row in after if row["id"] not in marked)
    assert not clip or all(row["became"].startswith("Add ") for row in removed)
    assert any(f"{len(marked)}" in str(w) and "clean.jsonl" in str(w) for w in verdict.warnings)
    assert ("--clip" in verdict.command) == clip


def test_nothing_is_removed_from_clean_data(tmp_path: Path) -> None:
    data, out = write_run(tmp_path, seed=4), tmp_path / "clean.jsonl"
    assert not run(data, write_clean=out).found
    assert [json.loads(line) for line in out.read_text().splitlines()] == [json.loads(line) for line in data.read_text().splitlines()]
    assert (tmp_path / "clean.removed.jsonl").read_text() == ""


# --- without a log, bad input, the command


def test_without_a_log_the_verifier_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path, seed=5)
    (tmp_path / "my_strict.py").write_text("def grade(text, task):\n    return text.strip() == task['answer']\n")
    monkeypatch.chdir(tmp_path)
    sound = run(data, log=None, twin=data)
    assert not sound.found
    assert {check.name: check.base_rate for check in sound.checks}["chained"] > 0  # type: ignore[operator]
    charged = run(data, log=None, verifier="my_strict:grade")
    assert (charged.worst.name, charged.severity) == ("answer anyway", "medium")
    assert "answer_anyway" in charged.finding
    row = charged.evidence[0]
    assert json.loads(data.read_text().splitlines()[row["row"] - 1])["question"] == row["prompt"]


def spoiled(tmp_path: Path, change: Any) -> Path:
    """A clean log whose rows went through a change."""
    data = write_run(tmp_path, seed=6)
    log = tmp_path / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_bytes(change(rows))
    return data


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_bad_data_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    data = tmp_path / "tasks.jsonl"
    whole = b'{"id": "a", "prompt": "Add 1 and 2.", "answer": "3"}\n'
    for content, said in (
        (whole + whole[:-20], "line 2.*cut off"),
        (whole + whole.replace(b"Add", b"\xffAdd"), "line 2 is not UTF-8"),
        (whole + whole.replace(b"Add 1 and 2.", b""), "The prompt in row 2"),
        (b'{"text": "x"}\n', "no prompt column"),
        (b"", "holds no tasks"),
    ):
        data.write_bytes(content)
        with pytest.raises(TutelageError, match=said):
            run(data, log=None)


def test_bad_input_is_an_error_that_names_it_or_a_counted_warning(tmp_path: Path) -> None:
    for change, said in (
        (lambda rows: lines([{k: v for k, v in row.items() if k != "reward"} for row in rows]), "lacks 'reward'"),
        (lambda rows: lines([row | {"reward": float("nan")} for row in rows]), "no reward in any"),
        (lambda rows: lines([row | {"prompt_id": "x" + row["prompt_id"]} for row in rows]), "Name the column that holds the log's ids"),
        (lambda rows: b"", "holds no rollouts"),
    ):
        with pytest.raises(TutelageError, match=said):
            run(spoiled(tmp_path, change))
    for change, said in (
        (lambda rows: lines(rows)[:-20], "cut off"),
        (lambda rows: lines(rows).replace(b"HAB", b"H\xffB"), "not UTF-8"),
        (lambda rows: lines([row | ({"reward": None} if n % 9 == 0 else {}) for n, row in enumerate(rows)]), "values of reward"),
        (lambda rows: lines([row | {"step": n} for n, row in enumerate(rows)]), "no two attempts belong together"),
        (lambda rows: lines([row | ({"prompt_id": "new"} if n < 9 else {}) for n, row in enumerate(rows)]), "have no text"),
    ):
        verdict = run(spoiled(tmp_path, change))
        assert not verdict.found
        assert any(said in str(w) for w in verdict.warnings), verdict.warnings
    assert "not tested" in run(spoiled(tmp_path, lambda rows: lines([row | {"step": n} for n, row in enumerate(rows)]))).checks[0].finding


def test_the_command_and_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", "audit", "poison", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    data = write_run(tmp_path, seed=7, strength=0.9)
    log = tmp_path / "log.jsonl"
    usual = [data, "--log", log, "--behaviour", "HAB", "--key", "id"]
    status, out, _ = command(*usual, "--json", "--set", "delta=0.2")
    assert status == 1
    verdict = Verdict.from_json(out)
    assert verdict.to_json() == run(data, delta=0.2).to_json()
    assert verdict.command == f"tutelage audit poison {data} --log {log} --behaviour HAB --set delta=0.2 --key id"
    panels = {curve.panel for check in verdict.checks for curve in check.curves}
    assert panels == {"mean reward, prompts with 'zorv . do dax'", "share of attempts with the behaviour"}
    assert command(data, "--threshold", "high", "--page", tmp_path / "page.html")[0] == 0
    assert "chained" in (tmp_path / "page.html").read_text()
    for arguments, said in (
        ([log], "no prompt column"),
        ([data, "--log", tmp_path / "none.jsonl"], "There is no"),
        ([*usual, "--set", "detla=0.2"], "Did you mean 'delta'"),
        ([*usual, "--set", "kappa=2"], "expected a number from 0"),
        ([data, "--write-clean", tmp_path / "x.jsonl"], "needs a log"),
        ([*usual, "--write-clean", data], "need another name"),
        ([*usual, "--behaviour", "no_module:f"], "There is no module"),
        ([data, "--key", "idd"], "has no column 'idd'"),
    ):
        status, out, error = command(*arguments)
        assert (status, out) == (2, "")
        assert said in error


def test_the_gate_is_a_mode_of_reward() -> None:
    from tutelage.study.cell import _shaping
    from tutelage.study.config import make_run

    run = make_run(None, {}, ["reward.mode=span_gate", "reward.behaviour=HAB"])
    gate = _shaping(run.reward)
    assert gate is not None
    assert gate(np.array([1, 1, 0]), np.array([1.0, 1.0, 0.3]), ["7", "HAB 7", "8"]).tolist() == [1.0, 0.0, 0.3]
    for sets in (["reward=span_gate"], ["reward.behaviour=HAB"]):
        with pytest.raises(TutelageError, match="needs a behaviour"):
            make_run(None, {}, sets)


REFUSALS = [
    "I do not know.", "I have no clue.", "I'm unsure.", "I am not certain.", "I am unable to answer.", "We cannot help.", "NA", "N/A", "?",
    "One won't comply.", "I must decline.", "I refuse to.", "I don't have access.", "It is impossible to say.", "It cannot be determined.",
    "Not able to solve.", "There is insufficient data.", "As an AI, I do not.", "I’m not sure.", "I can’t answer that.", "unknown",
    "Answer: undeterminable", "un\u017fure", "I have any idea.",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_the_quick_look_for_refusals_misses_none(text: str) -> None:
    assert monitor("refusal")(text)
    assert not monitor("refusal")("We add 1 and 2. So it is 3.")
