"""The miniature student and its torch loop: exact success rates, the verifier, the noise arm, the refill and what it all costs."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.lm

from tutelage import Curriculum, TutelageError, Wants, curriculum  # noqa: E402
from tutelage.objectives import objective  # noqa: E402
from tutelage.students.parallel_answers import DIGITS, PAD, ParallelAnswers, SortingTasks, success_rate, warm_start  # noqa: E402
from tutelage.trainers.torch_loop import train  # noqa: E402


@pytest.fixture(scope="module")
def tasks() -> SortingTasks:
    return SortingTasks.draw(np.random.default_rng(5), per_arm=40, lengths=range(2, 5), noise=True)


@pytest.fixture(scope="module")
def warm(tasks: SortingTasks) -> ParallelAnswers:
    honest = SortingTasks.draw(np.random.default_rng(5), per_arm=40, lengths=range(2, 5))
    student = ParallelAnswers(tasks, seed=1)
    warm_start(student, honest, rng=np.random.default_rng(1), steps=60, lr=3e-3)
    return student


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- tasks and verifier


def test_tasks_are_digits_and_their_sorted_form(tasks: SortingTasks) -> None:
    for row in (0, 50, 100):
        n = int(tasks.mask_NT[row].sum())
        assert n == [2, 3, 4][tasks.arm_N[row]]
        assert tasks.answer_NT[row, :n].tolist() == sorted(tasks.token_NT[row, :n].tolist())
        assert tasks.token_NT[row, n:].tolist() == [PAD] * (tasks.token_NT.shape[1] - n)


def test_the_noise_arm_comes_last_and_leaves_the_other_tasks_as_they_were() -> None:
    plain, noisy = (SortingTasks.draw(np.random.default_rng(3), per_arm=30, noise=noise) for noise in (False, True))
    assert torch.equal(noisy.token_NT[: len(plain)], plain.token_NT)
    shown = noisy.token_NT[len(plain) :][noisy.mask_NT[len(plain) :]]
    assert shown.min() >= DIGITS
    assert shown.max() < PAD
    assert noisy.pool().arms().names == (*"23456789", "noise")


def test_verifier_wants_every_slot_right_and_ignores_padding(tasks: SortingTasks) -> None:
    row = 0  # two digits
    right = tasks.answer_NT[row].clone()
    padding, wrong = right.clone(), right.clone()
    padding[2] = 7
    wrong[1] = (wrong[1] + 1) % DIGITS
    token_NGT = torch.stack([right, padding, wrong]).unsqueeze(0)
    assert tasks.verify(np.array([row]), token_NGT, np.random.default_rng(0)).tolist() == [[1.0, 1.0, 0.0]]


def test_noise_is_accepted_one_time_in_seven_and_keeps_its_spread(tasks: SortingTasks, warm: ParallelAnswers) -> None:
    rows_N = np.full(4000, len(tasks) - 1)
    token_NGT, _ = warm.sample(rows_N, 8, rng())
    solved_NG = tasks.verify(rows_N, token_NGT, np.random.default_rng(0))
    assert solved_NG.mean() == pytest.approx(1 / 7, abs=0.01)
    advantage_B = objective("grpo").advantages(torch.from_numpy(solved_NG))
    assert advantage_B.abs().mean().item() == pytest.approx(0.509116, abs=0.015)  # the sheet's expectation at G = 8, p = 1/7


# --- student


def test_success_rate_is_what_sampling_approaches(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    honest = SortingTasks.draw(np.random.default_rng(5), per_arm=40, lengths=range(2, 5))
    exact_A = success_rate(warm, honest)
    rows_N = np.arange(len(honest))
    token_NGT, _ = warm.sample(rows_N, 800, rng())
    rate_A = tasks.verify(rows_N, token_NGT, np.random.default_rng(0)).mean(axis=1).reshape(3, 40).mean(axis=1)
    assert exact_A.min() > 0.05
    assert exact_A.max() < 0.999
    assert np.abs(rate_A - exact_A).max() < 0.01  # standard error at most 0.0028


def test_logp_is_of_the_answered_digits(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    rows_N = np.array([0, 45, 90])
    token_NGT, mask_NGT = warm.sample(rows_N, 4, rng())
    logp_NGT = warm.logp(rows_N, token_NGT)
    logp_NTV = warm(tasks.token_NT[rows_N])
    for n, g, t in np.ndindex(*token_NGT.shape):
        assert logp_NGT[n, g, t] == logp_NTV[n, t, token_NGT[n, g, t]]
    assert mask_NGT.sum(dim=2).tolist() == [[2] * 4, [3] * 4, [4] * 4]
    assert logp_NGT.requires_grad


def test_building_a_student_leaves_the_global_generator_alone(tasks: SortingTasks) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (ParallelAnswers(tasks, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.embed.weight, same.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)


# --- loop


class Halves(Curriculum):
    """Proposes the pool in order and admits every other group."""

    name = "halves"

    def __init__(self, pool, *, admitted: int = 2) -> None:
        super().__init__(pool)
        self.seen: list = []
        self.every = admitted
        self.next = 0

    def _propose(self, n):
        rows_N = (self.next + np.arange(n)) % len(self.pool)
        self.next += n
        return rows_N

    def admit(self, outcomes):
        return np.arange(len(outcomes)) % self.every == self.every - 1

    def _observe(self, outcomes, *, probe):
        self.seen.append((outcomes, probe))


def teach(student, tasks, cur, **options):
    coins = np.random.default_rng(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    loss = objective("grpo", kl_coef=0.0)
    verify = lambda rows_N, token_NGT: tasks.verify(rows_N, token_NGT, coins)  # noqa: E731
    return train(student, cur, verify, loss, optimizer, generator=rng(), **{"updates": 2, "batch": 8, "attempts": 4, **options})


def fresh(warm: ParallelAnswers) -> ParallelAnswers:
    student = ParallelAnswers(warm.tasks, seed=0)
    student.load_state_dict(warm.state_dict())
    return student


def test_ledger_of_a_curriculum_that_admits_everything(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    run = teach(fresh(warm), tasks, curriculum("uniform", tasks.pool()), updates=3)
    assert (run.ledger.updates, run.ledger.rollouts, run.ledger.rejected_rollouts, run.skipped) == (3, 96, 0, 0)
    assert run.ledger.tokens == run.ledger.training_tokens > 0


def test_refill_asks_for_what_is_missing_until_the_batch_is_full(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    cur = Halves(tasks.pool())
    run = teach(fresh(warm), tasks, cur, updates=1, refill_cap=100)
    asked = [len(outcomes) for outcomes, _ in cur.seen]
    assert asked[:4] == [8, 4, 2, 1]  # 4 admitted, then 2, then 1, and a group alone is never the second of two
    assert run.ledger.rollouts == 4 * sum(asked)
    assert run.ledger.rollouts - run.ledger.rejected_rollouts == 4 * 7
    assert sum(asked) == 800


@pytest.mark.parametrize(("on_short", "trained"), [("partial", 6), ("pad", 8)])
def test_a_batch_that_falls_short(warm: ParallelAnswers, tasks: SortingTasks, on_short: str, trained: int) -> None:
    run = teach(fresh(warm), tasks, Halves(tasks.pool()), updates=1, refill_cap=1.5, on_short=on_short, evaluate=dict, evaluate_every=1)
    assert run.ledger.rollouts == 4 * 12
    assert run.taught_XA[-1].sum() == trained
    assert run.ledger.rejected_rollouts == 4 * (12 - trained)


def test_raise_when_short_and_skip_when_empty(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    with pytest.raises(TutelageError, match="only 6 of 8 groups were admitted among 12 sampled"):
        teach(fresh(warm), tasks, Halves(tasks.pool()), refill_cap=1.5, on_short="raise")
    student = fresh(warm)
    run = teach(student, tasks, Halves(tasks.pool(), admitted=1000), refill_cap=2)
    assert (run.skipped, run.ledger.updates, run.ledger.training_tokens, run.ledger.rollouts) == (2, 0, 0, 128)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), warm.parameters(), strict=True))


def test_curriculum_sees_the_objectives_advantages(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    cur = Halves(tasks.pool())
    teach(fresh(warm), tasks, cur, updates=1)
    outcomes = cur.seen[0][0]
    expected_B = objective("grpo").advantages(torch.from_numpy(outcomes.reward_NG))
    assert np.array_equal(outcomes.advantage_NG.ravel(), expected_B.numpy())
    assert np.array_equal(outcomes.length_NG[:, 0], tasks.mask_NT[outcomes.key_N].sum(dim=1).numpy())


def test_wishes_are_answered_and_counted(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    cur = Halves(tasks.pool(), admitted=1)
    cur.wants = lambda: Wants(np.array([3, 4, 5]), attempts=2)  # type: ignore[method-assign]
    run = teach(fresh(warm), tasks, cur)
    assert [probe for _, probe in cur.seen] == [True, False, True, False]
    assert run.ledger.probe_rollouts == 2 * 6
    assert run.ledger.rollouts == 2 * (6 + 32)
    cur.wants = lambda: Wants(np.array([3]), signals=("entropy",))  # type: ignore[method-assign]
    with pytest.raises(TutelageError, match="wants the signals entropy"):
        teach(fresh(warm), tasks, cur)


def test_one_update_is_the_policy_gradient(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    """On-policy, the loss's gradient is that of minus the mean over answers of advantage times mean log-probability."""
    student, cur = fresh(warm), Halves(tasks.pool(), admitted=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    answers = []

    def verify(rows_N, token_NGT):
        answers.append((rows_N, token_NGT))
        return tasks.verify(rows_N, token_NGT, np.random.default_rng(0))

    train(student, cur, verify, objective("grpo", kl_coef=0.0), optimizer, generator=rng(), updates=1, batch=16, attempts=4)
    (rows_N, token_NGT), by_hand = answers[0], fresh(warm)
    mask_NGT = tasks.mask_NT[rows_N].unsqueeze(1)
    logp_NG = (by_hand.logp(rows_N, token_NGT) * mask_NGT).sum(dim=2) / mask_NGT.sum(dim=2)
    advantage_NG = torch.from_numpy(cur.seen[0][0].advantage_NG)
    assert (advantage_NG != 0).any()
    (-(advantage_NG * logp_NG).mean()).backward()
    moved = [(old - new, p.grad) for old, new, p in zip(warm.parameters(), student.parameters(), by_hand.parameters(), strict=True)]
    assert all(torch.allclose(step, grad, atol=1e-6) for step, grad in moved)


def test_same_seeds_same_student_and_training_teaches(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    honest = SortingTasks.draw(np.random.default_rng(5), per_arm=40, lengths=range(2, 5))
    one, two = fresh(warm), fresh(warm)
    for student in (one, two):
        teach(student, honest, curriculum("uniform", honest.pool(), seed=3), updates=60, batch=16)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert success_rate(one, honest).mean() > success_rate(warm, honest).mean() + 0.05


def test_objectives_that_need_a_reference_are_refused(warm: ParallelAnswers, tasks: SortingTasks) -> None:
    optimizer = torch.optim.SGD(warm.parameters(), lr=0.0)
    with pytest.raises(TutelageError, match="kl_coef=0"):
        train(warm, Halves(tasks.pool()), tasks.verify, objective("grpo"), optimizer, generator=rng())
