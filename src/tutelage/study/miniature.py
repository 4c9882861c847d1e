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
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

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
    """The size of an experiment. `per_arm` training and `held_out` evaluation tasks for each length; `warm_steps` supervised steps.

    items: train on so many fixed tasks of each length instead. All tasks, held-out and warm start included, are then of the varied kind
    (see `SortingTasks.draw`), and the warm start sees other tasks than the fixed ones.
    distractors, prefix: of inputs that hold symbols to be ignored, see `SortingTasks.cluttered`.
    """

    updates: int = 200
    batch: int = 32
    attempts: int = 8
    lr: float = 5e-4
    warm_steps: int = 150
    evaluate_every: int = 20
    per_arm: int = 4096
    held_out: int = 256
    items: int | None = None
    distractors: int = 0
    prefix: int = 0


FULL = Scale()
SMOKE = Scale(updates=4, warm_steps=15, evaluate_every=2, per_arm=64, held_out=8)
BUDGET = f"{FULL.updates} updates of {FULL.batch} prompts x {FULL.attempts} rollouts, unless an arm says otherwise"
METRIC_ABOUT = f"sampled accuracy on the {HARDEST} longest inputs after the last update"
SETTINGS = {**asdict(FULL), "objective": "grpo", "kl_coef": 0.0, "aggregation": "token_mean", "optimizer": "Adam"}
Build = Callable[[TaskPool, int, Scale], Curriculum]
Watch = Callable[["ParallelAnswers", "SortingTasks", Curriculum, np.random.Generator], Callable[[], dict[str, float]]]


def arm(
    curriculum: str | Build,
    about: str,
    *,
    batch: int | None = None,
    noise: bool = False,
    full: Scale = FULL,
    smoke: Scale = SMOKE,
    watch: Watch | None = None,
    **hyper: Any,
) -> Arm:
    """An arm of a replication: the student under a curriculum.

    curriculum: the name of a registered one, built with `hyper`, or a function (pool, seed, scale) that builds one. batch: prompts per
    update, if not 32. noise: add the unlearnable arm. full, smoke: the scales. watch: as `teach` takes it. A curriculum's `steps` are
    filled in with the number of updates, its `draws` with the number of tasks shown.
    """
    options: dict[str, Any] = {} if watch is None else {"watch": watch}

    def build(pool: TaskPool, seed: int, size: Scale) -> Curriculum:
        if not isinstance(curriculum, str):
            return curriculum(pool, seed, size)
        filled = {"steps": size.updates, "draws": size.updates * (batch or size.batch)}
        known = curricula.get(curriculum).parameters
        return curricula.build(curriculum, pool, seed=seed, **{k: v for k, v in filled.items() if k in known}, **hyper)

    name = curriculum if isinstance(curriculum, str) else getattr(curriculum, "__name__", "")
    settings = {"curriculum": name, **hyper, "batch": batch or full.batch, "noise": noise}
    if full is not FULL:
        settings |= asdict(full) | {"batch": batch or full.batch}

    def run(seed: int, small: bool) -> Cell:
        return teach(seed, smoke if small else full, build, batch=batch, noise=noise, **options)

    return Arm(run=run, about=about, settings=settings)


@lru_cache(maxsize=2)
def classroom(seed: int, size: Scale) -> tuple[SortingTasks, ParallelAnswers]:
    """Held-out tasks and the warm-started student of a seed: what all arms share."""
    from tutelage.students.parallel_answers import ParallelAnswers, warm_start

    start = np.random.SeedSequence(seed).spawn(2)[1]
    student = ParallelAnswers(_tasks(seed, size, "stream"), seed=integer_of(start))
    with one_thread():
        warm_start(student, student.tasks, rng=np.random.default_rng(start), steps=size.warm_steps)
    return _tasks(seed, size, "held out"), student


def _tasks(seed: int, size: Scale, kind: Literal["stream", "held out", "items"], *, noise: bool = False) -> SortingTasks:
    """The seed's tasks of one kind: those to train on unless there are fixed items, those to evaluate on, the fixed items."""
    from tutelage.students.parallel_answers import SortingTasks

    per_arm = {"stream": size.per_arm, "held out": size.held_out, "items": size.items or 0}
    data = np.random.SeedSequence(seed).spawn(1)[0].spawn(3)[list(per_arm).index(kind)]
    rng = np.random.default_rng(data)
    tasks = SortingTasks.draw(rng, per_arm=per_arm[kind], noise=noise, varied=size.items is not None)
    return tasks.cluttered(rng, distractors=size.distractors, prefix=size.prefix) if size.distractors or size.prefix else tasks


def integer_of(child: np.random.SeedSequence) -> int:
    return int(child.generate_state(1)[0])


def teach(seed: int, size: Scale, build: Build, *, batch: int | None = None, noise: bool = False, watch: Watch | None = None) -> Cell:
    """Teach the warm-started student of `seed` under the curriculum `build(pool, curriculum_seed, size)`.

    Args:
        batch: prompts per update, if not the scale's.
        noise: add the unlearnable arm, whose answers are accepted with probability 1/7 whatever they say.
        watch: given the student, its tasks, the curriculum and a generator of its own before the first step, returns a function that is
            called at every evaluation for further numbers.

    Returns:
        The cell: `score` (final sampled accuracy over all lengths, on the three longest, on the worst; `noise_share`, the noise arm's
        share of all groups trained on, where there is one; with `watch`, means of its numbers over the evaluations after the first),
        `curve` (lists over evaluations), `taught` (groups trained on per arm between evaluations) with `arm_names`, and `cost`.
    """
    torch = torch_or_raise()
    from tutelage.objectives import objective
    from tutelage.students.parallel_answers import success_rate
    from tutelage.trainers.torch_loop import train

    held_out, warm = classroom(seed, replace(size, updates=0))  # the same room, however long the lesson
    rollouts, method, watching = np.random.SeedSequence(seed).spawn(5)[2:]
    student, coins = copy.deepcopy(warm), np.random.default_rng(rollouts)
    student.tasks = tasks = _tasks(seed, size, "items" if size.items else "stream", noise=noise)
    with one_thread():
        curriculum = build(tasks.pool(), integer_of(method), size)
        further = watch(student, tasks, curriculum, np.random.default_rng(watching)) if watch else dict
        run = train(
            student,
            curriculum,
            lambda rows_N, token_NGT: tasks.verify(rows_N, token_NGT, coins),
            objective("grpo", kl_coef=0.0, aggregation="token_mean"),
            torch.optim.Adam(student.parameters(), lr=size.lr, fused=True),
            generator=torch.Generator().manual_seed(integer_of(rollouts)),
            updates=size.updates,
            batch=batch or size.batch,
            attempts=size.attempts,
            evaluate=lambda: {**_marks(success_rate(student, held_out)), **further()},
            evaluate_every=size.evaluate_every,
        )
    curve = {key: [point[key] for point in run.curve] for key in run.curve[0]}
    taught_XA = np.array(run.taught_XA)
    score = {key: curve[key][-1] for key in ("hard", "accuracy", "worst")}
    if watch:
        score |= {key: float(np.mean(curve[key][1:])) for key in further()}
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


def torch_or_raise() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise missing_extra("torch", "lm") from None
    return torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """More threads would slow so small a student down, and change its rounding with the number of cores."""
    torch = torch_or_raise()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
