"""From cells to rows: means, ratios, verdicts, and the pairs that a filter is told with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tutelage.study import league


def cell(row: str, seed: int, accuracy: list[float], rollouts: list[float], by_arm: list[list[float]] | None = None) -> dict:
    by_arm = by_arm or [[a, a] for a in accuracy]
    steps = list(range(len(accuracy)))
    return {
        "row": row, "seed": seed, "taught": {}, "train": {},
        "curve": {
            "step": steps, "rollouts": rollouts, "tokens": rollouts, "seconds": [2 * r for r in rollouts],
            "accuracy": accuracy, "by_arm": by_arm,
        },
        "totals": {"rollouts": rollouts[-1], "updates": len(accuracy) - 1, "seconds": 2 * rollouts[-1]},
    }  # fmt: skip


BASE = [cell("uniform", s, [0.2, 0.4, 0.6], [0, 100, 200]) for s in range(6)]
FAST = [cell("sec", s, [0.2, 0.6, 0.7], [0, 100, 200]) for s in range(6)]


def row(name: str, cells: list[dict], target: float | None = 0.6, judgement=None, **options):
    return league.make_row(
        name, name, "", options.get("kind", "method"), cells, BASE, arm_names=["a", "b"], hardest_A=np.array([False, True]),
        axis="rollouts", until=200, target=target, judgement=judgement,
    )  # fmt: skip


def test_the_target_is_nine_tenths_of_the_baselines_gain():
    assert league.choose_target(BASE) == pytest.approx(0.2 + 0.9 * 0.4)
    assert league.choose_target([cell("uniform", 0, [0.5, 0.4], [0, 1])]) is None


def test_a_row_by_hand():
    found = row("sec", FAST)
    assert found["final"] == pytest.approx(0.7)
    assert found["area"] == pytest.approx((0.4 + 0.65) / 2)  # two trapezoids of equal width
    assert found["rollouts_to_target_ratio"] == pytest.approx(100 / 200)
    assert found["seconds_to_target_ratio"] == pytest.approx(0.5)
    assert found["cost"]["rollouts"] == 200
    assert math.isnan(found["cost"]["tokens"])
    assert found["final_sd"] == pytest.approx(0, abs=1e-12)


def test_worst_and_hardest_arm():
    cells = [cell("sec", s, [0.2, 0.5], [0, 200], [[0.2, 0.2], [0.9, 0.1]]) for s in range(2)]
    found = row("sec", cells)
    assert (found["worst_arm"], found["worst_arm_name"], found["hardest"]) == (pytest.approx(0.1), "b", pytest.approx(0.1))


def test_a_target_never_reached_is_nan():
    assert math.isnan(row("uniform", BASE, target=0.99)["rollouts_to_target_ratio"])
    assert math.isnan(row("uniform", BASE, target=None)["rollouts_to_target_ratio"])


def test_verdicts_are_paired_by_seed_and_corrected_over_all_comparisons():
    better = [cell("sec", s, [0.2, 0.61 + 0.01 * s], [0, 200]) for s in reversed(range(8))]  # another order of seeds
    base = [cell("uniform", s, [0.2, 0.6 + 0.01 * s], [0, 200]) for s in range(8)]
    same = [cell("dump", s, [0.2, 0.6 + 0.01 * s], [0, 200]) for s in range(8)]
    judged = league.judge_rows({"uniform": base, "sec": better, "dump": same}, {}, "uniform", {})
    assert judged["sec"].mean == pytest.approx(0.01)
    assert judged["sec"].p == pytest.approx(2 / 2**8)
    assert judged["sec"].p_holm == pytest.approx(4 / 2**8)
    assert (judged["sec"].verdict, judged["dump"].verdict) == ("holds", "not shown")


def test_a_filter_is_compared_with_its_control_too():
    rows = {"uniform": BASE, "odf@updates": FAST, "uniform@odf": [cell("uniform@odf", s, [0.2, 0.9], [0, 200]) for s in range(6)]}
    names = {"odf@updates": "odf (at equal updates)", "uniform@odf": "uniform (given odf's rollouts)"}
    pair = league.judge_rows(rows, names, "uniform", {"odf@updates": "uniform@odf"})["odf@updates : uniform@odf"]
    assert pair.mean == pytest.approx(-0.2)
    assert pair.sentence.startswith("odf (at equal updates): too few seeds to compare with uniform (given odf's rollouts)")
    assert pair.verdict == "too few seeds"  # three comparisons need more than six
