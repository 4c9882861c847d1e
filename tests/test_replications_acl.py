"""The replications of ALP-GMM and TeachMyAgent: their students, arms at smoke size, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tutelage.registry import replications
from tutelage.replications.teachmyagent import CHALLENGES, SMOKE
from tutelage.students.adding import BLANK, LENGTHS, AddingStudent, sums
from tutelage.study.acl.toys import PROFILES
from tutelage.study.replicate import Replication
from tutelage.study.stats import seeds_needed

RESULTS = Path(__file__).parent.parent / "results"
PLANS: dict[str, Replication] = {slug: replications.get(slug).target() for slug in ("alp-gmm", "teachmyagent")}
CELLS = [name for name in PLANS["alp-gmm"].arms if not name.endswith("_sums")]


@pytest.mark.parametrize("slug", list(PLANS))
def test_every_comparison_can_be_decided(slug: str) -> None:
    plan = PLANS[slug]
    needed = seeds_needed(len(plan.comparisons))
    for comparison in plan.comparisons:
        assert all((plan.arms[arm].seeds or plan.seeds) >= needed for arm in (comparison.method, comparison.baseline))
    assert len({c.name for c in plan.comparisons}) == len(plan.comparisons)


@pytest.mark.parametrize("arm", CELLS)
def test_arms_on_cells_repeat_themselves(arm: str) -> None:
    first, again = (PLANS["alp-gmm"].arms[arm].run(100, True) for _ in range(2))
    assert (first["curve"], first["proposed"]) == (again["curve"], again["proposed"])
    assert first["curve"]["step"][-1] == 300
    assert first["score"]["mastered"] == first["curve"]["mastered"][-1] > 0
    assert np.sum(first["proposed"]["count"][0]) == 300
    assert len(first["proposed"]["names"]) == (4 if arm.endswith("irrelevant") else 2)


@pytest.mark.parametrize("arm", [name for name in PLANS["teachmyagent"].arms if name not in ("goal-gan", "setter-solver")])
def test_a_teacher_meets_every_profile(arm: str) -> None:
    cell = PLANS["teachmyagent"].arms[arm].run(100, True)
    assert set(cell["score"]) == {"mastered", *PROFILES}
    assert cell["score"]["mastered"] == pytest.approx(np.mean([cell["score"][profile] for profile in CHALLENGES]))
    assert set(cell["proposed"]) == set(PROFILES)
    assert cell["cost"]["episodes"] == SMOKE.episodes * len(PROFILES)


@pytest.mark.lm
def test_a_neural_teacher_meets_every_profile() -> None:
    assert set(PLANS["teachmyagent"].arms["goal-gan"].run(100, True)["score"]) == {"mastered", *PROFILES}


class TestSums:
    def test_answers_are_sums_and_carries_are_as_asked(self) -> None:
        rng = np.random.default_rng(0)
        for length, carries in ((1, 0.0), (4, 1.0), (3, 0.5)):
            feature_NF, answer_NT = sums(length, carries, 400, rng)
            digit_NP2 = feature_NF.reshape(400, LENGTHS, 2, BLANK + 1).argmax(3)
            assert (digit_NP2[:, length:] == BLANK).all()
            power_P = 10 ** np.arange(length)
            total_N = (digit_NP2[:, :length] * power_P[:, None]).sum(axis=(1, 2))
            said_N = (answer_NT[:, : length + 1] * 10 ** np.arange(length + 1)).sum(axis=1)
            np.testing.assert_array_equal(total_N, said_N)
            assert (answer_NT[:, length + 1 :] == BLANK).all()
            assert (digit_NP2[:, :length].sum(axis=2) >= 10).mean() == pytest.approx(carries, abs=0.05)

    def test_the_longest_sums_have_random_answers(self) -> None:
        _, answer_NT = sums(LENGTHS, 0.0, 2000, np.random.default_rng(0))
        share_K = np.bincount(answer_NT[:, 0], minlength=10) / 2000
        assert share_K.min() > 0.07

    def test_the_student_learns_short_sums(self) -> None:
        student, rng = AddingStudent(seed=3), np.random.default_rng(0)
        twin = AddingStudent(seed=3)
        before = student.accuracy
        points_ND = np.column_stack([np.full(1000, 0.05), rng.random(1000)])
        returns_N = student.attempt(points_ND)
        assert returns_N[-50:].mean() > returns_N[:50].mean() + 0.15
        assert student.accuracy > before + 0.02
        np.testing.assert_array_equal(twin.attempt(points_ND[:5]), returns_N[:5])

    def test_gradients_agree_with_finite_differences(self) -> None:
        student, rng = AddingStudent(seed=1, hidden=5), np.random.default_rng(0)
        student.weights = [weight.astype(np.float64) for weight in student.weights]  # type: ignore[misc]
        feature_NF, answer_NT = sums(3, 0.5, 6, rng)

        def loss() -> float:
            logit_NTK = student._forward(feature_NF)[1]
            log_NTK = logit_NTK - np.log(np.exp(logit_NTK).sum(axis=2, keepdims=True))
            return float(-np.take_along_axis(log_NTK, answer_NT[:, :, None], axis=2).mean())

        gradients = student._gradients(feature_NF, *student._forward(feature_NF), answer_NT)
        for weight, gradient in zip(student.weights, gradients, strict=True):
            place = np.unravel_index(np.abs(gradient).argmax(), weight.shape)
            old, sides = weight[place], []
            for step in (1e-5, -1e-5):
                weight[place] = old + step
                sides.append(loss())
            weight[place] = old
            assert gradient[place] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4)

    def test_an_arm_on_sums(self) -> None:
        cell = PLANS["alp-gmm"].arms["alp-gmm_sums"].run(100, True)
        assert set(cell["score"]) == {"accuracy", "accuracy_half"}
        assert cell["score"]["accuracy"] == cell["curve"]["accuracy"][-1]


@pytest.mark.parametrize("slug", [slug for slug in PLANS if (RESULTS / f"{slug}.json").exists()])
def test_committed_results_are_full_and_of_these_arms(slug: str) -> None:
    result = json.loads((RESULTS / f"{slug}.json").read_text())
    assert result["full"]
    assert result["command"] == f"tutelage replicate {slug} --out results"
    assert set(result["arms"]) == set(PLANS[slug].arms)
    assert [c["name"] for c in result["comparisons"]] == [c.name for c in PLANS[slug].comparisons]
    assert all(c["verdict"] != "too few seeds" for c in result["comparisons"])
    seeds = {(cell["arm"], cell["seed"]) for cell in result["cells"]}
    assert len(seeds) == sum(arm.seeds or PLANS[slug].seeds for arm in PLANS[slug].arms.values())
