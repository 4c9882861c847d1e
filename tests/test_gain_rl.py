"""GAIN-RL: the shift and the window by hand and by chance, rankings, epochs, and what it tells."""

from __future__ import annotations

import logging
import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, spearmanr

import tutelage as tt
from tutelage import Outcomes, TaskPool, TutelageError
from tutelage.curricula.gain_rl import GainRL, _draw_wide, _reach, draw_window, rank_correlation, window_shift
from tutelage.testing import check_curriculum
from tutelage.testing._lessons import lesson, make_pool, simulate

PAPER = {"n": 1000, "alpha": 2.0, "beta": 0.5}


# --- the shift


@pytest.mark.parametrize(
    ("accuracy", "concentration", "expected"),
    [(0.5, 0.2, 189.974), (1, 0, 380.797), (0, 0, -380.797), (0.25, 0.25, 0), (math.nan, 0.2, 189.974)],
)
def test_shift_by_hand(accuracy: float, concentration: float, expected: float) -> None:
    assert window_shift(**PAPER, accuracy=accuracy, concentration=concentration) == pytest.approx(expected, abs=5e-4)
    clamped = window_shift(**PAPER, accuracy=accuracy, concentration=concentration, clamp=(0, 1000))
    assert clamped == pytest.approx(max(expected, 0), abs=5e-4)


def test_shift_of_the_verl_port_and_of_nothing() -> None:
    port = {"n": 1000, "alpha": 2.0, "beta": 0.5, "clamp": (0.0, 1000.0)}
    assert window_shift(accuracy=1 / 2, concentration=0.2, **port) == pytest.approx(189.974, abs=5e-4)
    assert window_shift(accuracy=0 / 2, concentration=0.2, **{**port, "clamp": None}) == pytest.approx(-190.823, abs=5e-4)
    assert window_shift(accuracy=0 / 2, concentration=0.2, **port) == 0
    assert window_shift(accuracy=math.nan, concentration=math.nan, **PAPER) == 0
    halved = window_shift(n=1000, alpha=1.0, beta=1.0, accuracy=0.7, concentration=math.nan)  # 2 (x / 2 - 1 / 2) = x - 1
    assert halved == pytest.approx(500 * math.tanh(2 * (0.35 - 0.5)))


# --- the window


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.integers(1, 500), st.floats(-500, 1500), st.floats(0.3, 3000) | st.just(math.inf), st.integers(0, 999))
def test_draws_are_distinct_positions(size: int, n: int, mu: float, sigma: float, seed: int) -> None:
    drawn = draw_window(size, n, mu, sigma, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == min(n, size)
    assert 0 <= drawn.min() <= drawn.max() < size
    low, high = _reach(size, min(n, size), mu, sigma)
    assert high - low >= min(n, size)
    if high - low > 8 * n:  # where positions are drawn by rejection
        wide = _draw_wide(low, high, n, mu, sigma, np.random.default_rng(seed))
        assert len(set(wide.tolist())) == n


def successive(weight_M: np.ndarray, n: int) -> dict[tuple[int, ...], float]:
    """The chance of each ordered draw without replacement, by definition."""
    chances = {}
    for order in permutations(range(len(weight_M)), n):
        chance, left = 1.0, weight_M.sum()
        for i in order:
            chance, left = chance * weight_M[i] / left, left - weight_M[i]
        chances[order] = chance
    return chances


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("mu", "sigma"), [(1.0, 1.0), (-2.0, 1.5), (6.0, 2.0), (2.0, math.inf)])
def test_draws_are_successive_draws_by_weight(mu: float, sigma: float, wide: bool) -> None:
    rng = np.random.default_rng(0)
    expected = successive(np.exp(-((np.arange(5) - mu) ** 2) / (2 * sigma**2)), 2)
    draw = (lambda: _draw_wide(0, 5, 2, mu, sigma, rng)) if wide else (lambda: draw_window(5, 2, mu, sigma, rng))
    seen = dict.fromkeys(expected, 0)
    for _ in range(4000):
        seen[tuple(draw().tolist())] += 1
    assert chisquare(list(seen.values()), 4000 * np.array(list(expected.values()))).pvalue > 1e-3


def test_weights_are_symmetric_and_infinite_sigma_is_uniform() -> None:
    rng = np.random.default_rng(1)
    count_M = np.bincount(np.concatenate([draw_window(21, 4, 10.0, 3.0, rng) for _ in range(6000)]), minlength=21)
    pair_M = np.stack([count_M[:10], count_M[:10:-1]])
    assert chisquare(pair_M, pair_M.mean(0, keepdims=True).repeat(2, 0), axis=0).pvalue.min() > 1e-3
    flat_M = np.bincount(np.concatenate([draw_window(21, 4, 3.0, math.inf, rng) for _ in range(6000)]), minlength=21)
    assert chisquare(flat_M).pvalue > 1e-3
    assert sorted(draw_window(21, 30, 3.0, 1.0, rng)) == list(range(21))


def test_far_beyond_the_tail_the_tail_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert draw_window(100, 5, 10_000.0, 10.0, rng).min() >= 90
    assert draw_window(100, 5, -10_000.0, 10.0, rng).max() < 10


def test_ten_million_positions_cost_no_more_than_the_window() -> None:
    size = 10_000_000
    low, high = _reach(size, 1024, 5e6, 1000.0)
    assert high - low < 20_000
    rng = np.random.default_rng(0)
    drawn = draw_window(size, 1024, 5e6, 1e6, rng)  # so wide that positions are drawn by rejection
    assert drawn.std() == pytest.approx(1e6, rel=0.08)
    assert drawn.mean() == pytest.approx(5e6, abs=1.2e5)


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 200).astype(float), rng.random(200)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    other[::3] = np.nan
    known = ~np.isnan(other)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one[known], other[known]).statistic)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5)))
    assert math.isnan(rank_correlation(np.full(5, np.nan), np.arange(5)))


# --- the curriculum


def gain(pool: TaskPool, **options: Any) -> GainRL:
    return tt.curriculum("gain-rl", pool, seed=3, **options)


def scored(size: int = 700, **columns: Any) -> TaskPool:
    score_N = np.random.default_rng(5).permutation(size).astype(np.float32)
    return TaskPool(columns={"angle_concentration": score_N, **columns})


def show(cur: GainRL, rows_N: np.ndarray, accuracy: float, concentration: float) -> None:
    solved = np.full((len(rows_N), 2), accuracy)
    signals = {"angle_concentration": np.full(len(rows_N), concentration)}
    cur.observe(Outcomes.of(cur.pool, rows_N, step=0, solved=solved, signals=signals))


def test_defaults_scale_to_the_pool() -> None:
    cases = {7: (1, 1.0), 700: (100, 100.0), 7473: (1024, 1000.0), 100_000: (1024, 1000.0)}
    for size, (n, sigma) in cases.items():
        cur = gain(TaskPool(arm=np.zeros(size, int)))
        assert (cur.n, cur.sigma) == (n, pytest.approx(sigma))


def test_high_concentration_comes_first() -> None:
    pool = scored()
    cur = gain(pool, scores="angle_concentration")
    assert cur.wants() is None
    first = cur.propose(100)
    assert len(set(first.tolist())) == 100
    score = np.asarray(pool.columns["angle_concentration"])
    assert score[first].mean() > 0.8 * 700  # half a Gaussian of width 100 from the top
    position_N = 699 - score[first]
    np.testing.assert_array_equal(np.sort(position_N)[:10] < 20, True)


@pytest.mark.parametrize(
    ("rank_by", "column", "high"), [("length", "prompt_length", False), ("loss", "loss", False), ("pass_rate", "rate", True)]
)
def test_controls_rank_the_other_way_round(rank_by: str, column: str, high: bool) -> None:
    pool = scored(**{column: np.arange(700.0)})
    rows = gain(pool, rank_by=rank_by, scores=column).propose(50)
    assert (rows.mean() > 500) == high


def test_difficulty_ranks_easy_first_and_chance_by_the_seed() -> None:
    pool = TaskPool(difficulty=np.arange(700.0))
    assert gain(pool, rank_by="difficulty").propose(50).mean() < 200
    orders = [tt.curriculum("gain-rl", pool, seed=seed, rank_by="random")._order_N for seed in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(700))  # a ranking is a permutation
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()


def test_an_epoch_is_distinct_and_moves_the_window_once() -> None:
    pool = scored()
    cur = gain(pool, scores="angle_concentration", n=96)
    seen: list[int] = []
    for _ in range(3):
        rows = cur.propose(32)
        seen += rows.tolist()
        show(cur, rows, 1.0, 0.3)
        assert cur.mu == 0
    assert len(set(seen)) == 96
    cur.propose(32)
    assert cur.mu == pytest.approx(48 * (math.tanh(1.0) + math.tanh(0.6)))
    assert cur.metrics["mu"] == cur.mu


def test_shifts_of_mixed_lessons_unscorable_attempts_and_settings() -> None:
    cur = gain(scored(), scores="angle_concentration", n=4, step=1000, clamp=(0, 500), beta=0.4)
    rows = cur.propose(4)
    solved = np.array([[1, 1], [0, np.nan], [np.nan, np.nan], [1, 0]])
    concentration = np.array([0.1, np.nan, 0.5, 0.3])
    cur.observe(Outcomes.of(cur.pool, rows, step=0, solved=solved, signals={"angle_concentration": concentration}))
    cur.propose(4)
    assert cur.mu == pytest.approx(500 * (math.tanh(2 * (0.5 - 0.4)) + math.tanh(2 * 0.3)))
    show(cur, rows, 0.0, -1.0)
    mu = cur.mu
    cur.propose(4)
    assert cur.mu == mu  # clamped: it never moves back
    cur.propose(4)
    assert cur.mu == mu  # and nothing was seen in this epoch


def test_by_accuracy_alone_nothing_else_is_asked_for() -> None:
    cur = gain(scored(), scores="angle_concentration", n=8, shift_by="accuracy")
    assert cur.needs == {"solved_NG"}
    assert gain(scored(), scores="angle_concentration").needs == {"solved_NG", "signals/angle_concentration"}
    assert gain(scored(), rank_by="off_diagonal_concentration").needs == {"solved_NG", "signals/off_diagonal_concentration"}
    rows = cur.propose(8)
    cur.observe(Outcomes.of(cur.pool, rows, step=0, solved=np.ones((8, 2))))
    cur.propose(8)
    assert cur.mu == pytest.approx(4 * math.tanh(1.0))


def test_more_than_the_pool_and_a_lesson_over_two_epochs() -> None:
    cur = gain(scored(30), scores="angle_concentration", n=20)
    rows = cur.propose(75)
    assert np.bincount(rows, minlength=30).max() <= 3
    assert len(cur.propose(1)) == 1
    other = gain(scored(), scores="angle_concentration", n=10)
    show(other, other.propose(8), 1.0, 1.0)
    assert len(set(other.propose(8)[:2].tolist())) == 2  # two left, six of the next epoch
    assert other.mu > 0
    assert len(other.queue_N) == 4


def test_measuring_before_the_first_lesson() -> None:
    pool = TaskPool(key=np.arange(400)[::-1] + 7, arm=np.zeros(400, int))
    cur = gain(pool)
    assert cur.metrics["ranked"] == 0
    wants = cur.wants()
    assert wants is not None
    assert (wants.attempts, wants.signals) == (0, ("angle_concentration", "prompt_length"))
    assert wants.rows_N.tolist() == list(range(400))
    early = cur.propose(50)
    assert 120 < early.mean() < 280  # nothing known yet: uniform
    order = np.random.default_rng(0).permutation(400)
    values = {"angle_concentration": np.arange(400.0)[order], "prompt_length": 500 - np.arange(400.0)[order]}
    cur.observe(Outcomes.of(pool, order, step=0, signals=values), probe=True)
    assert cur.wants() is None
    assert cur.metrics["ranked"] == 1
    assert cur.metrics["length_spearman"] == pytest.approx(1)  # long tasks stand late
    assert cur.propose(40).mean() > 280


@pytest.mark.parametrize("rank_by", ["length", "loss", "off_diagonal_concentration", "pass_rate"])
def test_what_each_ranking_asks_for(rank_by: Any) -> None:
    wants = gain(make_pool(), rank_by=rank_by).wants()
    assert wants is not None
    expected = {"length": (0, ("prompt_length",)), "loss": (0, ("loss",)), "pass_rate": (8, ())}
    expected["off_diagonal_concentration"] = (0, ("off_diagonal_concentration", "prompt_length"))
    assert (wants.attempts, wants.signals) == expected[rank_by]


def test_measured_pass_rates_rank() -> None:
    pool = make_pool(300)
    cur = gain(pool, rank_by="pass_rate")
    rate_N = np.random.default_rng(0).random(300)
    solved_NG = (np.random.default_rng(1).random((300, 8)) < rate_N[:, None]).astype(float)
    cur.observe(Outcomes.of(pool, np.arange(300), step=0, solved=solved_NG), probe=True)
    assert rate_N[cur.propose(30)].mean() > 0.75


def test_what_cannot_be_scored_ranks_last() -> None:
    score = np.arange(100.0)
    score[50:] = np.nan
    cur = gain(TaskPool(columns={"c": score}), scores="c", n=50, sigma=0.5)
    assert cur.propose(50).max() < 50
    with pytest.raises(TutelageError, match=r"none of the 3 scores to rank by \(c\) is a finite number"):
        gain(TaskPool(columns={"c": [np.nan, np.inf, np.nan]}), scores="c")


def test_a_ranking_that_is_one_by_length_is_told(caplog: pytest.LogCaptureFixture) -> None:
    pool = scored(prompt_length=700 - np.asarray(scored().columns["angle_concentration"]))
    with caplog.at_level(logging.WARNING):
        cur = gain(pool, scores="angle_concentration")
    assert cur.metrics["length_spearman"] == pytest.approx(1)
    assert "almost one by prompt length (Spearman 1.00)" in caplog.text
    caplog.clear()
    unrelated = gain(scored(prompt_length=np.random.default_rng(0).integers(3, 9, 700)), scores="angle_concentration")
    assert abs(unrelated.metrics["length_spearman"]) < 0.1
    assert not caplog.text
    assert "length_spearman" not in gain(scored(), scores="angle_concentration").metrics


def test_a_state_knows_its_scores() -> None:
    pool = make_pool()
    cur = gain(pool)
    for step in range(3):
        lesson(cur, pool, step)
    assert cur.state_dict()["memory"]["score_N"].shape == (60,)
    given = scored(60)
    state = gain(given, scores="angle_concentration").state_dict()
    assert state["memory"]["score_N"].size == 0
    changed = TaskPool(columns={"angle_concentration": np.arange(60.0)})
    with pytest.raises(TutelageError, match="scores_hash: the state has"):
        gain(changed, scores="angle_concentration").load_state_dict(state)


def test_a_state_from_before_the_measuring_asks_again() -> None:
    pool = make_pool()
    cur, fresh = gain(pool), gain(pool).state_dict()
    lesson(cur, pool, 0)
    assert cur.wants() is None
    cur.load_state_dict(fresh)
    assert cur.wants() is not None


def test_mistakes_are_named() -> None:
    pool = scored()
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"Unknown rank_by of gain-rl 'lenght'. Did you mean 'length'", {"rank_by": "lenght"}),
        (r"Unknown shift_by of gain-rl 'conc'", {"shift_by": "conc"}),
        (r"n, draws, sigma and step must be above 0.*got n=0", {"n": 0}),
        (r"got n=None, draws=None, sigma=-1", {"sigma": -1.0}),
        (r"clamp=\(5.*", {"clamp": (5.0, 1.0)}),
        (r"Unknown column of the pool for scores of gain-rl: 'angles'. Known: angle_concentration", {"scores": "angles"}),
        (r"rank_by='difficulty', and this pool has none", {"rank_by": "difficulty"}),
    ]
    for message, options in cases:
        with pytest.raises(TutelageError, match=message):
            GainRL(pool, **options)
    cur = gain(make_pool())
    with pytest.raises(TutelageError, match=r"asked for the signal 'angle_concentration'; the answer has loss"):
        cur.observe(simulate(cur.pool, np.arange(60), step=0, signals=["loss"]), probe=True)


def test_the_battery_with_a_column_of_scores() -> None:
    def factory(pool: TaskPool, seed: int) -> GainRL:
        pool.columns["c"] = np.random.default_rng(len(pool)).random(len(pool))
        return GainRL(pool, seed=seed, scores="c", n=9, clamp=(0.0, 50.0))

    check_curriculum(factory, expected_failed_checks={"check_pool_untouched": "this factory adds a column to the pool"})


@pytest.mark.parametrize("rank_by", ["random", "length", "pass_rate", "off_diagonal_concentration", "difficulty"])
def test_the_battery_of_every_ranking(rank_by: Any) -> None:
    check_curriculum(lambda pool, seed: GainRL(pool, seed=seed, rank_by=rank_by, n=11, sigma=3.0, shift_by="accuracy"))


# --- its students and its replication


@pytest.mark.lm
def test_the_torch_loop_measures_what_is_asked_for() -> None:
    torch = pytest.importorskip("torch")
    from tutelage.objectives import objective
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks
    from tutelage.trainers.torch_loop import train

    tasks = SortingTasks.draw(np.random.default_rng(0), per_arm=20).cluttered(np.random.default_rng(1), distractors=3, prefix=2)
    student, coins = ParallelAnswers(tasks, seed=0), np.random.default_rng(2)
    expected = student.signals(np.arange(160), ("angle_concentration", "prompt_length"))

    def run(cur: Any, pupil: Any = student) -> Any:
        return train(
            pupil, cur, lambda rows_N, token_NGT: tasks.verify(rows_N, token_NGT, coins), objective("grpo", kl_coef=0.0),
            torch.optim.Adam(student.parameters(), lr=1e-3), generator=torch.Generator().manual_seed(0), updates=3, batch=8, attempts=2,
        )  # fmt: skip

    cur = gain(tasks.pool(), n=8)
    done = run(cur)
    assert done.ledger.rollouts == 3 * 8 * 2
    assert done.ledger.probe_rollouts == 0
    np.testing.assert_allclose(cur.score_N, expected["angle_concentration"], rtol=1e-6)
    spearman = spearmanr(-expected["angle_concentration"], expected["prompt_length"]).statistic
    assert cur.metrics["length_spearman"] == pytest.approx(spearman, abs=1e-6)
    assert cur.mu != 0
    rated = gain(tasks.pool(), rank_by="pass_rate", shift_by="accuracy")
    assert run(rated).ledger.probe_rollouts == 160 * 8

    class Mute:
        sample, logp = student.sample, student.logp

    with pytest.raises(TutelageError, match=r"needs the signals angle_concentration; Mute offers none"):
        run(gain(tasks.pool()), Mute())
    with pytest.raises(TutelageError, match=r"wants the signals prompt_length; Mute offers none"):
        run(gain(tasks.pool(), rank_by="length", shift_by="accuracy"), Mute())


@pytest.mark.lm
def test_the_expected_gradient_is_what_sampling_approaches() -> None:
    torch = pytest.importorskip("torch")
    from tutelage.outcomes import group_advantage
    from tutelage.replications.gain_rl import gradient_factor, gradient_norms
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks, log_success, warm_start

    tasks = SortingTasks.draw(np.random.default_rng(0), per_arm=30, lengths=(2, 3))
    student = ParallelAnswers(tasks, seed=0, width=16, layers=1)
    warm_start(student, tasks, rng=np.random.default_rng(0), steps=250)
    row, groups, attempts = np.array([4]), 4000, 8
    token_NGT, _ = student.sample(row, groups * attempts, torch.Generator().manual_seed(0))
    solved_NG = tasks.verify(row, token_NGT, np.random.default_rng(0)).reshape(groups, attempts)
    advantage = torch.from_numpy(group_advantage(solved_NG).reshape(1, -1)).float()
    logp_NGT = student.logp(row, token_NGT) * tasks.mask_NT[row].unsqueeze(1)
    sampled = torch.autograd.grad((logp_NGT.sum(2) * advantage).mean(), list(student.parameters()), allow_unused=True)
    size = math.sqrt(sum(float(g.square().sum()) for g in sampled if g is not None))
    assert 0.1 < solved_NG.mean() < 0.95
    assert gradient_norms(student, row, attempts)[0] == pytest.approx(size, rel=0.1)
    p = math.exp(log_success(student, tasks, row).item())
    many = gradient_factor(p, 2000)
    assert many == pytest.approx(math.sqrt(p * (1 - p)) / (1 - p), rel=1e-2)  # of large groups: grad p / sqrt(p (1 - p))


def test_partial_correlation_is_that_of_residuals() -> None:
    from tutelage.replications.gain_rl import partial

    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 500)) + np.array([[1.0], [0.5], [0]]) * rng.normal(size=500)
    a, b = a + c, b - c
    r = np.corrcoef([a, b, c])
    left = [x - np.polyval(np.polyfit(c, x, 1), c) for x in (a, b)]
    assert partial(r[0, 1], r[0, 2], r[1, 2]) == pytest.approx(np.corrcoef(left)[0, 1])


def test_a_short_run_still_has_epochs_and_crosses_the_pool() -> None:
    pool = TaskPool(arm=np.zeros(7000, dtype=int), columns={"c": np.linspace(1, 0, 7000)})
    cur = GainRL(pool, scores="c", draws=400, shift_by="accuracy", seed=0)
    assert (cur.n, cur.step) == (20, 1000)
    assert GainRL(pool, scores="c", shift_by="accuracy").step == 1000
    for step in range(20):
        rows_N = cur.propose(20)
        cur.observe(Outcomes.of(pool, rows_N, solved=np.ones((20, 4)), step=step))
    assert cur.mu > 6000
    with pytest.raises(TutelageError, match="draws=0"):
        GainRL(pool, scores="c", draws=0)
