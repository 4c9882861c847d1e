"""Settings for a number of bytes: the least error that a budget buys.

Each tensor brings a curve of choices, bytes against squared error ‖Δ − Δ̂‖², from "left out" (no bytes) upwards. Minimising

    Σ_tensors error(choice)  subject to  Σ_tensors bytes(choice) ≤ budget

is a multiple-choice knapsack. Its Lagrangian relaxation, error + λ · bytes, is solved by walking down the lower convex hulls of all curves
in the order of error saved per byte; what is left of the budget is then spent, greedily, on any choice that still fits. The walk is optimal
at the budgets it passes through, and in between its error exceeds the optimum by at most the first step that no longer fitted. The sum of
bytes never exceeds the budget, for the bytes of a choice are exact. (GraftLLM sets ranks and bits by hand.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tutelage.edits.packs.coding import Choice
from tutelage.errors import TutelageError

Curves = Mapping[str, Sequence[Choice]]


def solve(curves: Curves, budget: int) -> dict[str, Choice]:
    """The choice for each tensor. `curves` need not be sorted; a choice without bytes must be among each tensor's.

    Raises `TutelageError` if not even the smallest choices fit.
    """
    hulls = {name: convex_hull(choices) for name, choices in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(choice.nbytes for choice in chosen.values())
    if left < 0:
        raise TutelageError(f"A budget of {budget} bytes is too small: the smallest settings take {budget - left}.")
    steps = [(_slope(a, b), name, i) for name, hull in hulls.items() for i, (a, b) in enumerate(pairwise(hull))]
    stopped: set[str] = set()
    for _, name, i in sorted(steps, key=lambda step: -step[0]):  # along a hull slopes fall, so its steps come in order
        cost = hulls[name][i + 1].nbytes - hulls[name][i].nbytes
        if name in stopped or cost > left:
            stopped.add(name)
            continue
        chosen[name], left = hulls[name][i + 1], left - cost
    return _spend(curves, chosen, left)


def convex_hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, bytes rising and error falling."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.error)):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(a: Choice, b: Choice) -> float:
    """Error saved per byte on the way from a to b."""
    return (a.error - b.error) / max(b.nbytes - a.nbytes, 1)


def _spend(curves: Curves, chosen: dict[str, Choice], left: int) -> dict[str, Choice]:
    """Take, again and again, the change that saves most error and fits."""
    while True:
        best: tuple[float, str, Choice] | None = None
        for name, now in chosen.items():
            for choice in curves[name]:
                saved = now.error - choice.error
                if choice.nbytes - now.nbytes <= left and saved > 0 and (best is None or saved > best[0]):
                    best = saved, name, choice
        if best is None:
            return chosen
        _, name, choice = best
        left -= choice.nbytes - chosen[name].nbytes
        chosen[name] = choice
