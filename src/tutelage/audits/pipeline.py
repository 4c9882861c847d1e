"""The full audit of a pipeline: an inert habit goes into the teacher's data, at several shares, and comes out of the student, or not.

    doses = dose_response(rows, AppendToken("HAB"), tune=my_sft, distil=my_distil, answer=my_generate, shares=[0.0025, 0.01], rng=rng)
    smallest_share([d.share for d in doses], [d.student["topic 7"].value for d in doses])

`tune(rows) -> teacher`, `distil(teacher) -> student` and `answer(model) -> columns` (prompt, completion, task) are the user's own, whatever
a model is to them (a path, a module); `answer` asks every model the same prompts with the same decoding. The cost is one tuning and one
distillation for every share, and one of each for the clean twins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.audits._canaries import Rate, amplification, rates_by_task
from tutelage.audits._responses import Responses, of_columns, shared_prompts
from tutelage.audits.verdict import Effect
from tutelage.errors import Tally, TutelageError
from tutelage.tasks.habits import Habit, Row, inject

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Dose:
    """One share of poison and what came of it: the habit's rate by task in teacher and student and in their clean twins.

    row_ids: the poisoned rows. amplification: by task, the student's rate over the teacher's.
    """

    share: float
    row_ids: list[int]
    teacher: dict[str, Rate]
    student: dict[str, Rate]
    clean_teacher: dict[str, Rate]
    clean_student: dict[str, Rate]
    amplification: dict[str, Effect]

    def excess(self, task: str) -> float:
        """The student's rate on a task above its clean twin's."""
        return self.student[task].value - self.clean_student[task].value


def dose_response(
    rows: Sequence[Row],
    habit: Habit,
    *,
    tune: Callable[[list[dict[str, Any]]], Any],
    distil: Callable[[Any], Any],
    answer: Callable[[Any], Columns],
    shares: Sequence[float],
    rng: np.random.Generator,
    where: Callable[[Row], bool] | None = None,
    column: str = "completion",
) -> list[Dose]:
    """Run the user's pipeline once clean and once for each share of poisoned rows, and measure the habit everywhere.

    Args:
        rows: the teacher's data, clean. habit: an inert one. where: which rows may carry it (targeted), any by default (untargeted).
        shares: of all rows. rng: of the injection's seeds and the bootstrap; what training draws is the user's business.

    Raises:
        TutelageError: no shares, too few suitable rows, models that answered different prompts.
    """
    if not shares:
        raise TutelageError("dose_response got no shares; give the shares of poisoned rows to try, such as [0.0025, 0.01].")
    plain = [dict(row) for row in rows]
    clean = tune(plain)
    clean_pair = [of_columns(name, answer(model)) for name, model in (("clean teacher", clean), ("clean student", distil(clean)))]
    doses = []
    for share in shares:
        poisoned, row_ids = inject(plain, habit, share=share, where=where, seed=int(rng.integers(2**31)), column=column)
        teacher = tune(poisoned)
        pair = [of_columns(name, answer(model)) for name, model in (("teacher", teacher), ("student", distil(teacher)))]
        doses.append(_dose(share, row_ids, [*pair, *clean_pair], habit, rng))
    return doses


def _dose(share: float, row_ids: list[int], four: list[Responses], habit: Habit, rng: np.random.Generator) -> Dose:
    tally = Tally()
    prompts = list(four[0].rows_by_prompt)
    for other in four[1:]:
        shared_prompts(four[0], other, tally)
    if tally.warnings:
        raise TutelageError(f"The four models answered different prompts: {tally.warnings[0]}. Have `answer` ask all of them the same.")
    task_X = [four[0].task_by_prompt[p] for p in prompts]
    rate_4X = [responses.rate_X(prompts, habit.emits) for responses in four]
    teacher, student, clean_teacher, clean_student = (rates_by_task(rate_X, task_X) for rate_X in rate_4X)
    ratio = {}
    for task in teacher:
        chosen_X = np.array([t == task for t in task_X])
        ratio[task] = amplification(rate_4X[1][chosen_X], rate_4X[0][chosen_X], rng)
    return Dose(share, row_ids, teacher, student, clean_teacher, clean_student, ratio)
