"""One cell of a curriculum replication: the parallel-answers student, warm-started, taught by GRPO under a curriculum.

Four child generators of one seed: *data* (tasks and held-out tasks), *student* (initial weights and warm start), *rollouts* (answers and
the noise arm's coins) and *method* (the curriculum). All arms of a replication therefore share data and warm start, seed by seed.

The loss is GRPO's without KL penalty, averaged over all tokens of the batch, which is the default of the engine that SEC and DUMP were
released on (verl) and of TRL; at the miniature's lengths a mean per answer would mute the long, hard tasks. This and the warm start were
chosen on seeds outside any replication, looking at the uniform baseline alone.

What is reported is the *sampled accuracy*, the chance that one sampled answer is right, averaged over held-out tasks; the student gives
it exactly, so there is no sampling noise in it. Short inputs have few distinct tasks (100 for n = 2), so there held-out tasks are not all
new.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import missing_extra
from tutelage.pools import TaskPool
from tutelage.registry import curricula
from tutelage.study.replicate import Arm, Cell

if TYPE_CHECKING:
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks

HARDEST = 3


@dataclass(frozen=True)
class Scale:
    """The size of an experiment. `per_arm` training and `held_out` evaluation tasks for each length; `warm_steps` supervised steps."""

    updates: int = 200
    batch: int = 32
    attempts: int = 8
    lr: float = 5e-4
    warm_steps: int = 150
    evaluate_every: int = 20
    per_arm: int = 4096
    held_out: int = 256


FULL = Scale()
SMOKE = Scale(updates=4, warm_steps=15, evaluate_every=2, per_arm=64, held_out=8)
BUDGET = f"{FULL.updates} updates of {FULL.batch} prompts x {FULL.attempts} rollouts, unless an arm says otherwise"
METRIC_ABOUT = f"sampled accuracy on the {HARDEST} longest inputs after the last update"
SETTINGS = {**asdict(FULL), "objective": "grpo", "kl_coef": 0.0, "aggregation": "token_mean", "optimizer": "Adam"}
Build = Callable[[TaskPool, int, Scale], Curriculum]


def arm(curriculum: str | Build, about: str, *, batch: int | None = None, noise: bool = False, **hyper: Any) -> Arm:
    """An arm of a replication: the student under a curriculum.

    curriculum: the name of a registered one, built with `hyper`, or a function (pool, seed, scale) that builds one. batch: prompts per
    update, if not 32. noise: add the unlearnable arm. A curriculum's `steps` are filled in with the number of updates.
    """

    def build(pool: TaskPool, seed: int, size: Scale) -> Curriculum:
        if not isinstance(curriculum, str):
            return curriculum(pool, seed, size)
        steps = {"steps": size.updates} if "steps" in curricula.get(curriculum).parameters else {}
        return curricula.build(curriculum, pool, seed=seed, **steps, **hyper)

    name = curriculum if isinstance(curriculum, str) else getattr(curriculum, "__name__", "")
    settings = {"curriculum": name, **hyper, "batch": batch or FULL.batch, "noise": noise}
    return Arm(
        run=lambda seed, smoke: teach(seed, SMOKE if smoke else FULL, build, batch=batch, noise=noise), about=about, settings=settings
    )


@lru_cache(maxsize=2)
def _classroom(seed: int, size: Scale) -> tuple[SortingTasks, ParallelAnswers]:
    """Held-out tasks and the warm-started student of a seed: what all arms share."""
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks, warm_start

    children = np.random.SeedSequence(seed).spawn(4)
    held_out = SortingTasks.draw(np.random.default_rng(children[0].spawn(2)[1]), per_arm=size.held_out)
    student = ParallelAnswers(_tasks(seed, size, noise=False), seed=_integer(children[1]))
    with one_thread():
        warm_start(student, student.tasks, rng=np.random.default_rng(children[1]), steps=size.warm_steps)
    return held_out, student


def _tasks(seed: int, size: Scale, *, noise: bool) -> SortingTasks:
    from tutelage.students.parallel_answers import SortingTasks

    data = np.random.SeedSequence(seed).spawn(4)[0].spawn(2)[0]
    return SortingTasks.draw(np.random.default_rng(data), per_arm=size.per_arm, noise=noise)


def _integer(child: np.random.SeedSequence) -> int:
    return int(child.generate_state(1)[0])


def teach(seed: int, size: Scale, build: Build, *, batch: int | None = None, noise: bool = False) -> Cell:
    """Teach the warm-started student of `seed` under the curriculum `build(pool, curriculum_seed, size)`.

    Args:
        batch: prompts per update, if not the scale's.
        noise: add the unlearnable arm, whose answers are accepted with probability 1/7 whatever they say.

    Returns:
        The cell: `score` (final sampled accuracy over all lengths, on the three longest, on the worst; `noise_share`, the noise arm's
        share of all groups trained on, where there is one), `curve` (lists over evaluations), `taught` (groups trained on per arm between
        evaluations) with `arm_names`, and `cost`.
    """
    torch = _torch()
    from tutelage.objectives import objective
    from tutelage.students.parallel_answers import success_rate
    from tutelage.trainers.torch_loop import train

    held_out, warm = _classroom(seed, size)
    rollouts, method = np.random.SeedSequence(seed).spawn(4)[2:]
    student, coins = copy.deepcopy(warm), np.random.default_rng(rollouts)
    student.tasks = tasks = _tasks(seed, size, noise=noise)
    with one_thread():
        run = train(
            student,
            build(tasks.pool(), _integer(method), size),
            lambda rows_N, token_NGT: tasks.verify(rows_N, token_NGT, coins),
            objective("grpo", kl_coef=0.0, aggregation="token_mean"),
            torch.optim.Adam(student.parameters(), lr=size.lr, fused=True),
            generator=torch.Generator().manual_seed(_integer(rollouts)),
            updates=size.updates,
            batch=batch or size.batch,
            attempts=size.attempts,
            evaluate=lambda: _marks(success_rate(student, held_out)),
            evaluate_every=size.evaluate_every,
        )
    curve = {key: [point[key] for point in run.curve] for key in run.curve[0]}
    taught_XA = np.array(run.taught_XA)
    score = {key: curve[key][-1] for key in ("hard", "accuracy", "worst")}
    if noise:
        score["noise_share"] = float(taught_XA[:, -1].sum() / max(taught_XA.sum(), 1))
    return {"score": score, "curve": curve, "taught": taught_XA.tolist(), "arm_names": list(tasks.arm_names), "cost": run.cost()}


def _marks(accuracy_A: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "hard": float(accuracy_A[-HARDEST:].mean()),
        "accuracy": float(accuracy_A.mean()),
        "worst": float(accuracy_A.min()),
        "by_arm": accuracy_A.tolist(),
    }


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise missing_extra("torch", "lm") from None
    return torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """More threads would slow so small a student down, and change its rounding with the number of cores."""
    torch = _torch()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
