"""What teachers over continuous spaces cost per episode, what they remember, and what a gridded student masters with each.

    python benchmarks/space_teachers.py [--episodes 20000] [--batch 8] [--seed 0] [--only NAME ...] [--json]

Each teacher has its defaults (ADR, Oracle and Self-Paced what an expert of the toy would tell them; AGAIN's second run an expert from the
first) on a grid of 6 x 6 x 6 cells (`tutelage.students.gridded`). The cost is that of `wants`, `propose` and `observe` alone, fits and
trainings included, divided by the episodes. Targets: 2 ms for the mixture teachers, 10 ms for those with networks, 1 ms for the others.
Beside it the peer, measured in the same run on the same windows: a plain scikit-learn sweep of 2 to 10 components every 250 episodes, and
the ratio to it. Growth: bytes that the state gains per episode in the second half of the run. ALP-GMM and AGAIN keep every episode, as
published; with `history` they do not, but for AGAIN's trace, which is what it leaves to a classroom. RIAC's tree grows until its boxes
reach the least side. Times are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

import tutelage as tt
from tutelage.curricula._mixtures import MixtureTeacher
from tutelage.curricula.again import Again
from tutelage.students.gridded import GriddedStudent
from tutelage.testing._lessons import state_bytes

MIXTURE_MS, NEURAL_MS, OTHER_MS = 2.0, 10.0, 1.0
TEACHERS: dict[str, dict[str, Any]] = {
    "random": {},
    "riac": {},
    "alp-gmm": {},
    "alp-gmm, bounded": {"history": 4096},
    "covar-gmm": {},
    "again": {},
    "again, bounded": {"history": 4096},
    "adr": {"low": 0.1, "high": 0.5, "initial": (0.0, 0.0, 0.0)},
    "oracle": {"threshold": 0.6, "step": (0.1, 0.1, 0.1)},
    "self-paced": {"initial_mean": (0.05, 0.05, 0.05)},
    "goal-gan": {"success": 0.5},
    "setter-solver": {"success": 0.5},
}


def measure(label: str, curriculum: tt.Curriculum, student: GriddedStudent, *, episodes: int, batch: int) -> dict[str, Any]:
    """CPU milliseconds per episode, growth in bytes per episode, the state's size in kB, the share of cells mastered."""
    spent, half = 0.0, 0
    windows: list[NDArray[np.float64]] = []
    for lesson in range(episodes // batch):
        start = time.process_time()
        wants = curriculum.wants()
        points_ND = curriculum.propose(batch) if wants is None else None
        spent += time.process_time() - start
        if wants is not None:
            score_N = student.competence_C[student.cell_of(wants.rows_N)] / student.most
            start = time.process_time()
            curriculum.observe(tt.Outcomes.of(student.space, wants.rows_N, reward=score_N), probe=True)
            points_ND = curriculum.propose(batch)
            spent += time.process_time() - start
        assert points_ND is not None
        reward_N = student.attempt(points_ND)
        start = time.process_time()
        curriculum.observe(tt.Outcomes.of(student.space, points_ND, reward=reward_N))
        spent += time.process_time() - start
        if lesson == episodes // batch // 2:
            half = state_bytes(curriculum.state_dict())
        if label == "alp-gmm" and isinstance(curriculum, MixtureTeacher) and (lesson + 1) * batch % 250 < batch:
            windows.append(curriculum.row_MQ.copy())
    size = state_bytes(curriculum.state_dict())
    row = {"ms": 1000 * spent / episodes, "growth": (size - half) / (episodes / 2), "state_kb": size / 1000, "mastered": student.mastered}
    return {**row, "peer_ms": plain_sweep(windows) / episodes} if windows else row


def plain_sweep(windows: list[NDArray[np.float64]]) -> float:
    """CPU milliseconds of scikit-learn's own fits of 2 to 10 components to these windows."""
    from sklearn.mixture import GaussianMixture

    start = time.process_time()
    for row_MQ in windows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits = [GaussianMixture(k, random_state=0).fit(row_MQ) for k in range(2, 11)]
            min(fits, key=lambda fit: float(fit.aic(row_MQ)))
    return 1000 * (time.process_time() - start)


def target(curriculum: tt.Curriculum) -> float:
    if ".neural." in type(curriculum).__module__:
        return NEURAL_MS
    return MIXTURE_MS if isinstance(curriculum, MixtureTeacher) else OTHER_MS


def run(names: list[str], episodes: int, batch: int, seed: int) -> dict[str, dict[str, Any]]:
    """The rows of the table; the second run of AGAIN has an expert from the first."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as classroom:
        for label in names:
            for expert in (False, True) if label == "again" else (False,):
                student = GriddedStudent(cells=6, dimensions=3)
                more = {"classroom": classroom, "least_progress": 0.05} if label == "again" else {}
                curriculum = tt.curriculum(label.split(",")[0], student.space, seed=seed + expert, **TEACHERS[label], **more)
                name = f"{label}, with an expert" if expert else label
                rows[name] = measure(label, curriculum, student, episodes=episodes, batch=batch)
                rows[name]["target_ms"] = target(curriculum)
                if isinstance(curriculum, Again) and label == "again":
                    curriculum.enrol(improved=False)
                    rows[name]["expert"] = bool(curriculum.expert)
    peer = rows.get("alp-gmm", {}).get("peer_ms")
    for row in rows.values():
        if peer and row["target_ms"] == MIXTURE_MS:
            row["ratio"] = row["ms"] / peer
    return rows


def main() -> None:
    import sklearn.mixture  # noqa: F401  (its import belongs to no teacher)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(TEACHERS), default=list(TEACHERS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = run(args.only, args.episodes // args.batch * args.batch, args.batch, args.seed)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':24}{'ms/episode':>11}{'target':>8}{'of peer':>9}{'growth B/ep':>13}{'state kB':>10}{'mastered':>10}")
    for name, row in rows.items():
        ratio = f"{row['ratio']:9.2f}" if "ratio" in row else " " * 9
        above = "" if row["ms"] <= row["target_ms"] else "  ABOVE"
        print(
            f"{name:24}{row['ms']:11.3f}{row['target_ms']:8.0f}{ratio}{row['growth']:13.1f}{row['state_kb']:10.0f}{row['mastered']:10.1%}"
            f"{above}"
        )
    if "peer_ms" in rows.get("alp-gmm", {}):
        print(f"{'plain scikit-learn sweep':24}{rows['alp-gmm']['peer_ms']:11.3f}")


if __name__ == "__main__":
    main()
