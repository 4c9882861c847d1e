"""Teachers: who gives the signal. There is no base class; a teacher has the methods of what it can do.

| method | gives |
|---|---|
| `demonstrate(tasks, rng)` | demonstrations: text to imitate |
| `score(ids_BL)` | a `Signal` (`signal.py`): its next-token distributions, dense or top k, with what is needed to use them rightly |
| `intervene(groups)` | the groups changed, after the reward and before the advantage |

    big = teacher("local", model="path/or/name")      # scores anything, and demonstrates
    saved = teacher("cached", path="told/")           # what a teacher said, from disk

`contract.py` says what trainers ask of a teacher, `tutelage.objectives.distillation` turns a signal into a loss, and the trainers take
both: `with_curriculum(trl.SFTTrainer)(..., teacher=big, objective=objective("gkd"))`.
"""

from __future__ import annotations

from typing import Any


def teacher(name: str, **parameters: Any) -> Any:
    """Build a teacher by name; `tutelage ls teachers` lists them, `tutelage show NAME` the parameters."""
    from tutelage.registry import teachers

    return teachers.build(name, **parameters)
