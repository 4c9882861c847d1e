"""ADCL: the inversion rate by hand, batches and what is measured when, resume, budgets, and its replication."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

import tutelage as tt
from tutelage import Outcomes, TaskPool, TutelageError
from tutelage.curricula.adcl import Adcl, nir, partition
from tutelage.registry import replications
from tutelage.state import load_state, save_state
from tutelage.study import stats
from tutelage.study.replicate import Replication, run

NAN = float("nan")


def solved(difficulty_N: np.ndarray, attempts: int = 8) -> np.ndarray:
    """Judgements whose pass rates are as near 1 - difficulty as `attempts` allow, NaN where the difficulty is."""
    passes_N = np.round((1 - np.asarray(difficulty_N, dtype=float)) * attempts)
    return np.where(np.isnan(passes_N)[:, None], NAN, np.arange(attempts) < passes_N[:, None])


def answer(cur: Adcl, difficulty: np.ndarray, *, step: int = 0) -> list[int]:
    """Measure what the curriculum wants, with these difficulties by row; the rows measured."""
    wants = cur.wants()
    if wants is None:
        return []
    outcomes = Outcomes.of(cur.pool, wants.rows_N, step=step, solved=solved(difficulty[wants.rows_N], wants.attempts))
    cur.observe(outcomes.take(np.random.default_rng(step).permutation(len(outcomes))), probe=True)
    return wants.rows_N.tolist()


def lesson(cur: Adcl, n: int, difficulty: np.ndarray, *, step: int = 0) -> tuple[list[int], list[int]]:
    """(rows measured, rows taught) of one lesson."""
    measured = answer(cur, difficulty, step=step)
    rows_N = cur.propose(n)
    cur.observe(Outcomes.of(cur.pool, rows_N, step=step, solved=solved(difficulty[rows_N])))
    return measured, rows_N.tolist()


# --- the normalised inversion rate


@pytest.mark.parametrize("ties", ["skip", "half"])
@pytest.mark.parametrize(
    ("other", "expected"), [([1, 3, 2, 4], 1 / 6), ([4, 3, 2, 1], 1), ([2, 1, 4, 3], 1 / 3), ([1, 2, 3, 4], 0), ([4, 1, 2, 3], 1 / 2)]
)
def test_nir_by_hand(other: list[int], expected: float, ties: Any) -> None:
    assert nir([1, 2, 3, 4], other, ties=ties) == pytest.approx(expected)
    assert nir(other, [1, 2, 3, 4], ties=ties) == pytest.approx(expected)


def test_nir_ties_and_unknown_by_hand() -> None:
    # Pairs of (1, 1, 2, 3) and (1, 2, 3, 2): one tied in the first, one in the second, one inverted, three in order.
    assert nir([1, 1, 2, 3], [1, 2, 3, 2]) == pytest.approx(1 / 4)
    assert nir([1, 1, 2, 3], [1, 2, 3, 2], ties="half") == pytest.approx(2 / 6)
    assert nir([1, 1, 2], [2, 2, 1]) == 1  # a pair tied in both is one tie, not two
    assert nir([1, 1, 2], [2, 2, 1], ties="half") == pytest.approx(2.5 / 3)
    assert nir([1, NAN, 2, 3], [2, 0, 1, NAN]) == 1
    assert nir([2, 2, 2], [1, 2, 3], ties="half") == 0.5
    for nothing in ([], [1.0], [2.0, 2.0], [NAN, 1.0]):
        assert math.isnan(nir(nothing, nothing))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40)), min_size=2, max_size=40))
def test_nir_against_all_pairs_and_kendall(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    sign = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    sign = sign[np.triu_indices(len(a), 1)]
    inverted, tied, total = (sign < 0).sum(), (sign == 0).sum(), len(sign)
    assert nir(a, b, ties="half") == pytest.approx((inverted + tied / 2) / total)
    if tied < total:
        assert nir(a, b) == pytest.approx(inverted / (total - tied))
    if tied == 0:
        assert nir(a, b) == pytest.approx((1 - kendalltau(a, b).statistic) / 2)


def test_nir_of_a_million_is_quick_and_about_half() -> None:
    rng = np.random.default_rng(0)
    assert nir(rng.random(10**6), rng.integers(9, size=10**6)) == pytest.approx(0.5, abs=0.002)


def test_nir_refuses() -> None:
    with pytest.raises(TutelageError, match=r"got shapes \(2,\) and \(3,\)"):
        nir([1, 2], [1, 2, 3])
    with pytest.raises(TutelageError, match="Did you mean 'half'"):
        nir([1, 2], [1, 2], ties="halve")  # type: ignore[arg-type]


# --- batches


@pytest.mark.parametrize(
    ("size", "batches", "sizes"), [(10, 4, [3, 3, 2, 2]), (8, 4, [2, 2, 2, 2]), (3, 4, [1, 1, 1]), (1, 4, [1]), (7, 1, [7])]
)
def test_partition(size: int, batches: int, sizes: list[int]) -> None:
    assert np.diff(partition(size, batches)).tolist() == sizes


def one_by_one(cur: Adcl, n: int, difficulty: np.ndarray) -> tuple[list[int], list[int]]:
    """(rows measured before the first, rows taught) of n lessons of one task each; nothing is measured in between."""
    lessons = [lesson(cur, 1, difficulty) for _ in range(n)]
    assert not any(measured for measured, _ in lessons[1:])
    return sorted(lessons[0][0]), [row for _, taught in lessons for row in taught]


def test_batches_of_the_sheet() -> None:
    """Ten tasks in four batches 3, 3, 2, 2; each measured anew before it begins, and sorted; members never change."""
    first = np.arange(10) / 10  # row i is the i-th in difficulty
    cur = Adcl(TaskPool(arm=[0] * 10), attempts=10, seed=3)
    assert one_by_one(cur, 3, first) == (list(range(10)), [0, 1, 2])
    now = first.copy()
    now[[3, 4, 5, 0, 9]] = [0.9, 0.1, 0.5, 0.8, 0.0]  # what is outside the coming batch is neither measured nor moved
    assert one_by_one(cur, 3, now) == ([3, 4, 5], [4, 5, 3])
    assert cur.metrics["nir"] == pytest.approx(2 / 3)
    assert cur.order_M.tolist() == [0, 1, 2, 4, 5, 3, 6, 7, 8, 9]
    assert one_by_one(cur, 2, now) == ([6, 7], [6, 7])
    now[[8, 9]] = [0.3, 0.2]
    assert one_by_one(cur, 2, now) == ([8, 9], [9, 8])
    assert cur.metrics == pytest.approx({"passes": 1, "batch": 4, "nir": 1, "dead": 0})
    assert cur.batch_rows.tolist() == [9, 8]
    assert one_by_one(cur, 3, now) == ([0, 1, 2], [1, 2, 0])  # the second pass measures its first batch, too
    assert (cur.metrics["passes"], cur.metrics["batch"]) == (2, 1)


def test_a_proposal_that_straddles_two_batches_shows_the_new_order() -> None:
    first = np.arange(9) / 10
    cur = Adcl(TaskPool(arm=[0] * 9), batches=2, seed=1, attempts=10)
    assert lesson(cur, 3, first)[1] == [0, 1, 2]
    measured, taught = lesson(cur, 3, first[::-1])
    assert sorted(measured) == [5, 6, 7, 8]  # foreseen: a proposal as large as the last reaches into the second batch
    assert taught == [3, 4, 8]
    assert lesson(cur, 3, first[::-1]) == ([], [7, 6, 5])


def test_an_unforeseen_proposal_takes_the_old_order_and_the_rest_is_measured() -> None:
    first = np.arange(8) / 8
    cur = Adcl(TaskPool(arm=[0] * 8), batches=2, seed=1)
    lesson(cur, 2, first)
    assert lesson(cur, 3, first[::-1]) == ([], [2, 3, 4])
    measured, taught = lesson(cur, 3, first[::-1])
    assert sorted(measured) == [5, 6, 7]
    assert taught == [7, 6, 5]


def test_a_proposal_larger_than_all_tasks_measures_each_once() -> None:
    cur = Adcl(TaskPool(arm=[0] * 3), batches=2)
    measured = [lesson(cur, 8, np.arange(3) / 8)[0] for _ in range(4)]
    assert [len(rows) for rows in measured] == [3, 3, 2, 3]  # the third begins behind a task that this pass has shown
    assert all(len(set(rows)) == len(rows) for rows in measured)


@pytest.mark.parametrize(
    ("rescore", "measured", "taught"),
    [
        (None, [], [2, 3, 4, 5]),
        ("next", [2, 3], [3, 2, 5, 4]),
        ("all", [2, 3, 4, 5], [3, 2, 5, 4]),
        ("partition", [2, 3, 4, 5], [5, 4, 3, 2]),
    ],
)
def test_what_is_measured_again(rescore: Any, measured: list[int], taught: list[int]) -> None:
    first = np.arange(6) / 8
    cur = Adcl(TaskPool(arm=[0] * 6), batches=3, rescore=rescore)
    assert lesson(cur, 2, first)[1] == [0, 1]
    again, two = lesson(cur, 2, 1 - first)
    assert sorted(again) == measured
    _, last = lesson(cur, 2, 1 - first)
    assert [*two, *last] == taught


def test_orders_and_the_prior() -> None:
    first = np.arange(40) / 40
    down = Adcl(TaskPool(arm=[0] * 40), order="descending", rescore=None, attempts=40)
    assert lesson(down, 40, first)[1] == list(range(39, -1, -1))
    mixed = lesson(Adcl(TaskPool(arm=[0] * 40), order="random", rescore=None, attempts=40), 40, first)[1]
    assert [sorted(mixed[i : i + 10]) for i in range(0, 40, 10)] == [list(range(i, i + 10)) for i in range(0, 40, 10)]
    assert mixed != sorted(mixed)
    prior = Adcl(TaskPool(difficulty=-first), initial="prior")
    assert lesson(prior, 10, first) == ([], list(range(39, 29, -1)))
    measured, taught = lesson(prior, 10, first)
    assert sorted(measured) == list(range(20, 30))
    assert prior.metrics["nir"] == 1
    assert (np.diff(solved(first[taught]).mean(axis=1)) <= 0).all()


def test_ties_keep_their_order_and_the_unscorable_go_last() -> None:
    cur = Adcl(TaskPool(arm=[0] * 6), batches=1, seed=2)
    before = cur.order_M.tolist()
    answer(cur, np.full(6, 0.5))
    assert cur.order_M.tolist() == before
    cur = Adcl(TaskPool(arm=[0] * 6), batches=1, seed=2)
    answer(cur, np.array([0.5, NAN, 1.0, 0.0, NAN, 0.25]))
    assert cur.order_M.tolist() == [3, 5, 0, 2, *(row for row in before if row in (1, 4))]
    cur = Adcl(TaskPool(arm=[0] * 6), batches=1, seed=2)
    answer(cur, np.full(6, NAN))
    assert cur.order_M.tolist() == before
    assert "nir" not in cur.metrics


def test_draws_choose_a_uniform_subset() -> None:
    pool = TaskPool(arm=[0] * 12)
    shown = np.zeros(12)
    for seed in range(600):
        cur = Adcl(pool, draws=4, batches=2, seed=seed)
        measured, taught = lesson(cur, 4, np.zeros(12))
        assert sorted(measured) == sorted(taught)
        assert len(set(taught)) == 4
        shown[taught] += 1
    assert shown.min() > 140  # 200 expected, standard deviation 11.5
    assert shown.max() < 260
    assert len(Adcl(pool, draws=100).order_M) == 12


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 23),
    st.integers(1, 6),
    st.sampled_from(["next", "all", "partition", None]),
    st.sampled_from(["measure", "prior"]),
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(0, 9),
)
def test_every_pass_shows_every_task_once(
    size: int, batches: int, rescore: Any, initial: Any, numbers: list[int], answered: list[bool], seed: int
) -> None:
    """Whatever the sizes of proposals, and whether or not the trainer answers."""
    rng = np.random.default_rng(seed)
    cur = Adcl(TaskPool(difficulty=rng.random(size)), batches=batches, rescore=rescore, initial=initial, seed=seed)
    shown: list[int] = []
    for step, (n, told) in enumerate(zip(numbers, answered, strict=False)):
        wants = cur.wants()
        if wants is not None:
            assert len(set(wants.rows_N.tolist())) == len(wants.rows_N) <= size
            assert rescore is not None or initial == "measure"
        if told:
            place = len(shown) % size
            pending = set(cur.order_M[place:].tolist())
            answer(cur, rng.random(size), step=step)
            assert set(cur.order_M[place:].tolist()) == pending  # what has been shown in this pass is not shown again
            if answer(cur, rng.random(size), step=step):  # only a late first answer leaves the head of the next pass to ask for
                assert not any(answered[:step])
            assert cur.wants() is None
        shown += cur.propose(n).tolist()
    for start in range(0, len(shown) - size + 1, size):
        assert sorted(shown[start : start + size]) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 23), st.integers(2, 6), st.sampled_from(["next", "all"]), st.integers(1, 9), st.integers(0, 9))
def test_members_of_a_batch_never_change(size: int, batches: int, rescore: Any, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cur = Adcl(TaskPool(arm=[0] * size), batches=batches, rescore=rescore, seed=seed)
    answer(cur, rng.random(size))
    edge = partition(size, batches)
    members = [set(part.tolist()) for part in np.split(cur.order_M, edge[1:-1])]
    for step in range(8):
        lesson(cur, n, rng.random(size), step=step)
        assert [set(part.tolist()) for part in np.split(cur.order_M, edge[1:-1])] == members
    assert set(cur.batch_rows.tolist()) in members


# --- budgets, states, errors


@pytest.mark.parametrize(
    ("options", "per_draw"),
    [
        ({}, 14),
        ({"rescore": None}, 8),
        ({"rescore": None, "initial": "prior"}, 0),
        ({"rescore": "partition"}, 20),
        ({"rescore": "all", "initial": "prior", "attempts": 4, "batches": 2}, 2),
    ],
)
def test_probes_per_draw_is_what_one_pass_asks_for(options: dict[str, Any], per_draw: float) -> None:
    cur = Adcl(TaskPool(difficulty=np.arange(40.0)), **options)
    asked = sum(len(lesson(cur, 10 if options.get("batches", 4) == 4 else 20, np.zeros(40))[0]) for _ in range(options.get("batches", 4)))
    assert asked * cur.config["attempts"] == 40 * per_draw
    assert Adcl.probes_per_draw(**options) == per_draw


def test_a_resumed_run_is_the_unbroken_one_at_any_moment(tmp_path: Path) -> None:
    pool = TaskPool(key=[f"k{i}" for i in range(30)])
    options: dict[str, Any] = {"batches": 4, "order": "random", "rescore": "partition", "seed": 7}
    drift = np.random.default_rng(0).random((12, 30))

    def reload(cur: Adcl) -> Adcl:
        save_state(tmp_path / "state.npz", cur.state_dict())
        fresh = Adcl(pool, **options)
        fresh.load_state_dict(load_state(tmp_path / "state.npz"))
        return fresh

    def decisions(interrupted: bool) -> list[Any]:
        cur, seen = Adcl(pool, **options), []
        for step in range(12):
            wants = cur.wants()
            cur = reload(cur) if interrupted else cur  # between wants and its answer
            assert (cur.wants() is None) == (wants is None)
            seen.append(answer(cur, drift[step], step=step))
            cur = reload(cur) if interrupted else cur
            rows_N = cur.propose(4)  # never at the edge of a batch: sizes are 8, 8, 7, 7
            cur = reload(cur) if interrupted else cur  # between propose and observe
            cur.observe(Outcomes.of(pool, rows_N, step=step, solved=solved(drift[step][rows_N])))
            seen.append((rows_N.tolist(), cur.metrics))
        return seen

    assert decisions(True) == decisions(False)


def test_dead_groups_of_the_last_lesson() -> None:
    cur = Adcl(TaskPool(arm=[0] * 4))
    assert cur.metrics == {"passes": 1, "batch": 1}
    cur.observe(Outcomes.of(cur.pool, [0, 1, 2, 3], step=0, solved=[[1, 1], [0, 0], [1, 0], [NAN, NAN]]))
    assert cur.metrics["dead"] == 0.75


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rescore": "nxt"}, "Did you mean 'next'"),
        ({"initial": "measured"}, "Did you mean 'measure'"),
        ({"order": "ascend"}, "Did you mean 'ascending'"),
        ({"batches": 0}, "got 0, 8 and None"),
        ({"draws": 0}, "got 4, 8 and 0"),
        ({"initial": "prior"}, "needs a pool with difficulties"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        Adcl(TaskPool(arm=[0, 0]), **options)


def test_an_answer_to_something_else_is_refused() -> None:
    cur = Adcl(TaskPool(arm=[0] * 5))
    with pytest.raises(TutelageError, match="asked for 5 tasks to be measured, and the answer lacks 3"):
        cur.observe(Outcomes.of(cur.pool, [1, 4], step=0, solved=[[1.0], [0.0]]), probe=True)
    assert cur.wants() is not None


def test_millions_of_tasks_are_cheap_to_propose() -> None:
    cur = Adcl(TaskPool(difficulty=np.random.default_rng(0).random(4 * 10**6, dtype=np.float32)), initial="prior")
    began = time.process_time()
    for _ in range(50):
        assert cur.wants() is None
        cur.propose(512)
    assert time.process_time() - began < 0.25  # 5 ms a lesson


# --- in a comparison


@pytest.mark.lm
def test_draws_are_filled_in_from_the_budget() -> None:
    pytest.importorskip("trl")
    from tutelage.study.config import Run, parse_arm
    from tutelage.study.engines import draws_of

    run = Run(steps=10)  # the built-in student: 8 tasks x 8 attempts a step
    adcl, uniform = parse_arm("adcl"), parse_arm("uniform")
    assert draws_of(run, adcl, ("updates", 10.0)) == draws_of(run, uniform, ("rollouts", 640.0)) == 80
    assert draws_of(run, adcl, ("rollouts", 640.0)) == 30  # 8 attempts to train on and 14 to measure, for each
    assert draws_of(run, parse_arm("adcl:rescore=null,initial=prior"), ("rollouts", 640.0)) == 80


@pytest.mark.lm
def test_a_comparison_tells_about_it_three_times() -> None:
    pytest.importorskip("trl")
    from tutelage.study.compare import plan
    from tutelage.study.config import Run, parse_arm

    names = [p.name for p in plan(Run(arms=[parse_arm("adcl")], seeds=6)).plans]
    assert names == ["uniform", "adcl", "adcl@updates", "uniform@adcl"]


# --- under TRL


@pytest.mark.lm
def test_grpo_measures_counts_and_resumes(tmp_path: Path) -> None:
    """24 tasks in 3 batches of 8, two a lesson: measured before lessons 0, 4 and 8, and counted; a resumed run is the unbroken one."""
    trl = pytest.importorskip("trl")
    import tiny
    from tutelage.trainers.trl import with_curriculum

    def make(path: Path, lessons: list[Any]) -> Any:
        data, pool = tiny.tasks()
        config = tiny.grpo_config(path, max_steps=10, save_strategy="steps", save_steps=3)
        return with_curriculum(trl.GRPOTrainer)(
            tiny.model(), tiny.digits, args=config, train_dataset=data, processing_class=tiny.tokenizer(), solved=tiny.has_a,
            curriculum=tt.curriculum("adcl", pool, seed=5, batches=3, attempts=3),
            lesson_callbacks=[lambda x: lessons.append((x.step, x.rows_N.tolist(), x.ledger.probe_rollouts))],
        )  # fmt: skip

    whole: list[Any] = []
    unbroken = make(tmp_path, whole)
    unbroken.train()
    assert [probes for _, _, probes in whole] == [72] * 4 + [96] * 4 + [120] * 2
    assert len({row for _, rows, _ in whole for row in rows}) == 20
    ledger = unbroken.ledger
    assert (ledger.updates, ledger.lessons, ledger.probe_rollouts, ledger.rollouts) == (10, 10, 120, 200)
    assert "curriculum/batch" in unbroken.state.log_history[0]
    for checkpoint in ("checkpoint-3", "checkpoint-6"):  # in the middle of the first and of the second batch
        lessons: list[Any] = []
        resumed = make(tmp_path, lessons)
        resumed.train(resume_from_checkpoint=str(tmp_path / checkpoint))
        assert lessons == whole[-len(lessons) :]
        assert len(lessons) == 10 - int(checkpoint[-1])
        assert resumed.ledger == ledger
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))


# --- the replication


def test_the_plan_is_complete() -> None:
    part = replications.get("adcl")
    plan: Replication = part.target()
    assert part.summary.endswith(".")
    assert plan.seeds >= stats.seeds_needed(len(plan.comparisons))
    assert {name for c in plan.comparisons for name in (c.method, c.baseline)} == set(plan.arms)
    assert len({c.name for c in plan.comparisons}) == len(plan.comparisons)
    assert [plan.arms[name].settings["updates"] for name in ("adcl", "uniform", "uniform_long")] == [64, 64, 152]


@pytest.mark.lm
def test_varied_tasks_differ_in_duplicates_and_disorder() -> None:
    pytest.importorskip("torch")
    from tutelage.students.parallel_answers import SortingTasks

    tasks = SortingTasks.draw(np.random.default_rng(0), per_arm=400, varied=True)
    digit_NT = tasks.token_NT[tasks.arm_N == 7].numpy()
    assert (np.sort(digit_NT, axis=1) == tasks.answer_NT[tasks.arm_N == 7].numpy()).all()
    kinds = np.array([len(set(row)) for row in digit_NT.tolist()])
    inversions = np.array([np.triu(row[:, None] > row, 1).sum() for row in digit_NT])
    assert set(kinds) >= set(range(1, 8))
    assert (inversions[kinds > 4] == 0).any()
    assert inversions.max() > 15


@pytest.mark.lm
def test_smoke_and_what_was_counted(tmp_path: Path) -> None:
    result = run("adcl", smoke=True, out=tmp_path, command="tutelage replicate adcl --smoke")
    assert result["minutes"] < 0.5
    assert len({(cell["seed"], cell["curve"]["hard"][0]) for cell in result["cells"]}) == 2  # one warm start per seed
    probes = {cell["arm"]: cell["cost"]["probe_rollouts"] for cell in result["cells"]}
    # 32 items, 32 a lesson, four lessons: every lesson is a whole pass, and measured as one, after the first.
    assert probes["uniform"] == probes["uniform_long"] == 0
    assert probes["predefined"] == probes["shuffled"] == probes["reverse"] == 32 * 8
    assert probes["adcl"] == probes["partition"] == 4 * 32 * 8
    for cell in result["cells"]:
        assert 0 <= cell["score"]["dead_share"] <= 1
        assert ("order" in cell["score"]) == (not cell["arm"].startswith("uniform"))
        assert cell["curve"]["shift"][0] == 0
    json.dumps(result, allow_nan=False)
