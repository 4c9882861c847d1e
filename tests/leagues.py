"""Synthetic leagues for the tests of table and report: seeded, shaped like real comparisons, and judged by the real statistics."""

from __future__ import annotations

import numpy as np

from tutelage.study import stats
from tutelage.study.schema import Cell, Cost, Diagnostics, League, Row

FAMILIES = ("chain_sum", "products", "gcd", "lcm", "count_bits", "letter_counting", "spell_backward", "base_conversion")
STUDIED = (
    ("uniform", "uniform", "", "baseline", 0.0),
    ("sec", "sec", "", "method", 0.55),
    ("dump", "dump", "", "method", 0.2),
    ("odf", "odf", "", "method", -0.35),
    ("odf@updates", "odf", "at equal updates", "equal-updates", 0.35),
    ("uniform@odf", "uniform", "given odf's rollouts", "control", 0.5),
)


def builtin_arms() -> list[str]:
    return [f"{family}/{level}" for family in FAMILIES for level in range(1, 5)]


def make_league(
    *,
    seed: int = 0,
    arms: list[str] | None = None,
    seeds: int = 8,
    studied: tuple[tuple[str, str, str, str, float], ...] = STUDIED,
    evaluations: int = 12,
    steps: int = 240,
    target: float | None = 0.45,
    diagnosed: bool = False,
) -> League:
    """A league whose methods differ by a speed-up of learning (the last column of `studied`); every run logs each step.

    diagnosed: with diagnostics, in which the baseline's answers stay as they are and those of all others grow into the limit.
    """
    arms = builtin_arms() if arms is None else arms
    rng = np.random.default_rng(seed)
    ease_A = rng.uniform(0.25, 0.75, len(arms)) + np.array([0.5 - 0.28 * (index % 4) for index in range(len(arms))])
    noise_S = rng.normal(0, 0.05, seeds)
    cells = [
        _cell(rng, name, kind, gain, number, ease_A, float(noise_S[number]), evaluations, steps)
        for name, _, _, kind, gain in studied
        for number in range(seeds)
    ]
    for cell in cells if diagnosed else ():
        points = cell["curve"]["accuracy"]
        cell["curve"]["diagnostics"] = [
            _diagnosed(accuracy, 0.0 if cell["row"] == studied[0][0] else place / (len(points) - 1))
            for place, accuracy in enumerate(points)
        ]
    return {
        "title": "Built-in student on 8 reasoning families",
        "command": "tutelage compare uniform sec dump odf --seeds 8 --budget 12288",
        "created": "2025-06-01T12:00:00+00:00",
        "budget": {"kind": "rollouts", "amount": 12288.0, "steps": steps},
        "baseline": studied[0][0],
        "seeds": list(range(seeds)),
        "arm_names": arms,
        "metric": "held-out accuracy",
        "target": target,
        "rows": _rows(studied, cells, arms, target),
        "cells": cells,
        "config": {
            "student": {"model": "built-in", "parameters": 1_943_040, "layers": 6},
            "grpo": {"group": 8, "batch": 8, "learning_rate": 1e-5, "beta": 0.0, "loss": "dapo"},
            "curricula": {"sec": {"temperature": 1.0, "learning_rate": 0.5}, "odf": {"low": 0.2, "high": 0.8}},
        },
        "versions": {"python": "3.11.9", "tutelage": "0.1.0", "torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0"},
        "machine": {"cpus": 2, "memory_gb": 8.2, "gpu": None},
        "notes": ["odf against uniform@odf: teaches worse than it: -0.069 [-0.080, -0.058], p = 0.0391 (Holm)"] if len(studied) > 5 else [],
    }


def _cell(
    rng: np.random.Generator, name: str, kind: str, gain: float, seed: int, ease_A: np.ndarray, shift: float, evaluations: int, steps: int
) -> Cell:
    step_X = np.unique(np.linspace(0, steps, evaluations).astype(int))
    speed = 1.0 + gain + rng.normal(0, 0.12)
    progress_X = speed * step_X / max(steps, 1)
    logit_XA = 6 * (ease_A - 0.75) + shift + 2.4 * progress_X[:, None] / (0.6 + progress_X[:, None])
    by_arm_XA = np.clip(1 / (1 + np.exp(-logit_XA)) + rng.normal(0, 0.015, logit_XA.shape), 0, 1)
    per_step = 64.0 * (1.45 if name.startswith(("odf", "uniform@")) else 1.0)
    rollouts_X, seconds_X = step_X * per_step, step_X * (0.42 + 0.02 * rng.random()) * (per_step / 64) ** 0.7
    logged_L = np.arange(1, steps + 1)
    focus_L = np.linspace(1.0, -0.1, steps)[:, None]
    weight_LA = np.exp(-((ease_A - focus_L) ** 2) / 0.09 * (0.0 if "uniform" in name else 1.0 if kind == "method" else 0.3))
    share_LA = np.stack([rng.multinomial(64, row_A / row_A.sum()) / 64 for row_A in weight_LA])
    solved_L = 0.3 + 0.2 * logged_L / steps + rng.normal(0, 0.03, steps)
    return {
        "row": name,
        "seed": seed,
        "curve": {
            "step": step_X.tolist(),
            "rollouts": rollouts_X.tolist(),
            "tokens": (rollouts_X * 11.4).tolist(),
            "seconds": seconds_X.tolist(),
            "accuracy": by_arm_XA.mean(axis=1).tolist(),
            "by_arm": by_arm_XA.tolist(),
        },
        "taught": {"step": logged_L.tolist(), "share": share_LA.tolist()},
        "train": {
            "step": logged_L.tolist(),
            "reward": solved_L.tolist(),
            "solved": solved_L.tolist(),
            "length": (11 + rng.normal(0, 0.4, steps)).tolist(),
        },
        "totals": {"rollouts": float(rollouts_X[-1]), "seconds": float(seconds_X[-1])},
    }


def _diagnosed(accuracy: float, growth: float) -> Diagnostics:
    return {
        "accuracy": accuracy,
        "format_rate": 0.9 - 0.1 * growth,
        "clip_ratio": 0.05 + 0.3 * growth,
        "mean_length": 10 + 4 * growth,
        "stopped_length": 9 - growth,
        "dead_share": 0.3,
        "distinct_answers": 2.5 - growth,
        "pass_at_k": {"1": accuracy, "2": min(1.0, 1.2 * accuracy), "4": min(1.0, 1.4 * accuracy)},
        "behaviours": {"verification": 0.1 + 0.1 * growth, "backtracking": 0.0, "subgoal_setting": 0.2, "enumeration": 0.0},
    }


def _rows(studied: tuple, cells: list[Cell], arms: list[str], target: float | None) -> list[Row]:
    curves = {name: [cell["curve"] for cell in cells if cell["row"] == name] for name, *_ in studied}
    final = {name: np.array([curve["accuracy"][-1] for curve in runs]) for name, runs in curves.items()}
    baseline = studied[0][0]
    judged = stats.judge({name: stats.difference(final[name], final[baseline]) for name in final if name != baseline}, baseline=baseline)
    reach = {
        unit: {name: _mean_reach(runs, unit, target) for name, runs in curves.items()} for unit in ("rollouts", "seconds")
    }  # NaN where the target is missing or never reached
    rows: list[Row] = []
    for name, label, note, kind, _ in studied:
        by_arm_A = np.mean([curve["by_arm"][-1] for curve in curves[name]], axis=0)
        judgement = judged.get(name)
        ratios = {unit: _ratio(reach[unit][name], reach[unit][baseline]) for unit in reach}
        rows.append(
            {
                "name": name,
                "label": label,
                "note": note,
                "kind": kind,
                "seeds": len(final[name]),
                "final": float(final[name].mean()),
                "final_sd": float(final[name].std(ddof=1)) if len(final[name]) > 1 else None,
                "worst_arm": float(by_arm_A.min()),
                "worst_arm_name": arms[int(by_arm_A.argmin())],
                "hardest": float(by_arm_A[3::4].mean()) if len(arms) > 3 else float(by_arm_A[-1]),
                "area": float(np.mean([stats.area_under_curve(c["rollouts"], c["accuracy"]) for c in curves[name]])),
                "rollouts_to_target_ratio": ratios["rollouts"],
                "seconds_to_target_ratio": ratios["seconds"],
                "difference": judgement.mean if judgement else None,
                "interval": [judgement.low, judgement.high] if judgement and judgement.n > 1 else None,
                "p": judgement.p if judgement else None,
                "p_holm": judgement.p_holm if judgement else None,
                "verdict": "baseline" if judgement is None else "control" if kind == "control" else judgement.verdict,
                "sentence": judgement.sentence if judgement else "",
                "cost": _cost(curves[name]),
            }
        )
    return rows


def _mean_reach(runs: list, unit: str, target: float | None) -> float:
    if target is None:
        return float("nan")
    return float(np.mean([stats.x_to_reach(run[unit], run["accuracy"], target) for run in runs]))


def _ratio(value: float, baseline: float) -> float | None:
    return value / baseline if np.isfinite(value) and baseline > 0 else None


def _cost(runs: list) -> Cost:
    rollouts, seconds, tokens = (float(np.mean([run[unit][-1] for run in runs])) for unit in ("rollouts", "seconds", "tokens"))
    updates = float(runs[0]["step"][-1])
    return {
        "rollouts": rollouts,
        "updates": updates,
        "tokens": tokens,
        "training_tokens": updates * 64 * 11.4,
        "seconds": seconds,
        "evaluation_seconds": 0.2 * seconds,
        "rejected_rollouts": rollouts - updates * 64,
        "curriculum_seconds": 0.0004 * seconds,
    }


def degenerate_leagues() -> dict[str, League]:
    """Leagues at the edges of what a comparison can be."""
    one_arm = make_league(arms=["gsm8k"], seeds=3, studied=STUDIED[:3], target=None)
    long_name = "a_method_with_a_name_that_is_longer_than_any_table_would_like_it_to_be_v2_final"
    long_names = make_league(
        arms=[f"{'very_' * 8}long_family_{index}/level-with-a-name-{level}" for index in range(3) for level in range(4)],
        studied=(STUDIED[0], (long_name, long_name, "with a note that is itself longer than the table would like", "method", 0.5)),
    )
    hostile = make_league(
        arms=["<script>alert(1)</script>/1", "a&b/2", "\"quoted\"/'x'", "</script>/4"],
        studied=(("<b>base</b>", "<b>base</b>", "", "baseline", 0.0), ("x & </script>", "x & </script>", "[red]n[/red]", "method", 0.5)),
    )
    hostile["title"], hostile["command"] = "</title><script>alert('t')</script>", "tutelage compare '<img src=x onerror=alert(1)>'"
    empty = make_league(seeds=1, studied=STUDIED[:2], evaluations=2)
    for cell in empty["cells"]:
        cell["taught"] = {"step": [], "share": []}
        cell["train"] = {"step": [], "reward": [], "solved": [], "length": []}
        cell["curve"]["by_arm"] = [[None] * 32 for _ in cell["curve"]["by_arm"]]
    nothing = make_league(studied=STUDIED[:2], seeds=2)
    nothing["cells"] = []
    for row in nothing["rows"]:
        row.update(final=None, final_sd=None, worst_arm=None, hardest=None, area=None, difference=None, interval=None)
    supervised = make_league(studied=STUDIED[:3])
    for cell in supervised["cells"]:
        cell["curve"]["rollouts"] = [0.0] * len(cell["curve"]["rollouts"])
    partly = make_league(studied=STUDIED[:2], seeds=2, diagnosed=True)  # one row's runs are of an older version; nothing ended
    for cell in partly["cells"]:
        if cell["row"] == "sec":
            del cell["curve"]["diagnostics"]
        else:
            for found in cell["curve"]["diagnostics"]:
                found["stopped_length"] = None
                del found["pass_at_k"]
    return {
        "one arm": one_arm,
        "supervised": supervised,
        "one seed": make_league(seeds=1),
        "one row": make_league(studied=STUDIED[:1]),
        "five seeds": make_league(seeds=5),
        "no target": make_league(target=None),
        "target never reached": make_league(target=0.999),
        "long names": long_names,
        "hostile names": hostile,
        "100 arms": make_league(arms=[f"task-{index:03d}" for index in range(100)], studied=STUDIED[:4]),
        "25 families": make_league(arms=[f"family_{index // 4}/{index % 4 + 1}" for index in range(100)], studied=STUDIED[:3]),
        "nothing logged": empty,
        "diagnosed": make_league(diagnosed=True),
        "partly diagnosed": partly,
        "no cells": nothing,
    }
