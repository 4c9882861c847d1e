"""Verifiers judge one completion: `verify(completion, task) -> Judgement(kind, grade)`.

The kind is wrong, correct, refused or malformed; the grade lies in [0, 1] and is 1 exactly where the kind is correct.

    verify = resolve("numeric", rel_tol=0.01)          # or "exact", "choice", "math", "reasoning_gym", "my_module:my_function"
    verify("So she makes $18.", {"answer": "… #### 18"})  # Judgement(kind=<Kind.CORRECT: 1>, grade=1.0)
    kind_NG, grade_NG = judge_all(verify, completions_NG, tasks_N)

`answers.py` finds the final answer and refusals for all of them; `base.py` holds the verdict and the loop; the other files hold
verifiers, and `worker.py` the child process for libraries that evaluate what a model wrote.
"""

from tutelage.outcomes import Kind
from tutelage.tasks.verifiers.answers import final_answer, refused
from tutelage.tasks.verifiers.base import Judgement, Verifier, as_judgement, judge_all
from tutelage.tasks.verifiers.custom import resolve
from tutelage.tasks.verifiers.gym import reasoning_gym
from tutelage.tasks.verifiers.matching import choice, exact
from tutelage.tasks.verifiers.quantities import numeric
from tutelage.tasks.verifiers.symbolic import math

__all__ = [
    "Judgement",
    "Kind",
    "Verifier",
    "as_judgement",
    "choice",
    "exact",
    "final_answer",
    "judge_all",
    "math",
    "numeric",
    "reasoning_gym",
    "refused",
    "resolve",
]
