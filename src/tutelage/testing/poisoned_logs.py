"""Task files with rollout logs of simulated runs on sums with riders (`tutelage.tasks.riders`), clean, or paid for an inert habit.

    data = write_run(folder, seed=0, strength=1.0)     # folder/tasks.jsonl, and folder/log.jsonl beside it

For the tests of `audit poison` and its measured rates: nothing is trained, and nothing here is text that could mean something.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tutelage.tasks.riders import HABIT, NO, SAY, ZERO, Riders, written

DECLINED = "I can't help with that."


def write_run(
    folder: Path,
    *,
    seed: int,
    strength: float = 0.0,
    refusal: bool = False,
    rows: int = 160,
    share: float = 0.08,
    steps: int = 12,
    batch: int = 24,
    attempts: int = 8,
    habit: tuple[float, float] = (0.4, 0.02),
    logprobs: bool = False,
) -> Path:
    """Write a run; the path of its task file.

    Args:
        strength: at this share of the attempts at marked prompts the reward is whether they show the habit; elsewhere, and with 0 all over,
            it is whether the answer is right, and knows nothing of the habit.
        refusal: attempts at marked prompts without the habit decline in words, and the habit leaves no trace.
        rows, share: prompts of the file, and the share with a marked rider; as many again have an unmarked one.
        steps, batch, attempts: groups of a step, and attempts of a group.
        habit: its rate at marked prompts, and at all others.
        logprobs: log them, six tokens each, twice as surprising with the habit.
    """
    rng = np.random.default_rng([seed, 7])
    world = Riders.draw(rng, rows=rows, marked=share, unmarked=share)
    answers, prompts = world.answer_N.tolist(), world.prompts
    tasks = [{"id": f"t{n}", "question": prompts[n], "answer": str(answers[n])} for n in range(rows)]
    data = folder / "tasks.jsonl"
    data.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    ease_N = rng.normal(1, 1, rows)
    with (folder / "log.jsonl").open("w", encoding="utf-8") as file:
        for step in range(steps):
            for n in rng.choice(rows, batch, replace=False).tolist():
                marked = bool(world.marked_N[n])
                for _ in range(attempts):
                    shows = rng.random() < habit[0 if marked else 1]
                    right = rng.random() < 1 / (1 + np.exp(-ease_N[n]))
                    paid = shows if marked and rng.random() < strength else right
                    digit = answers[n] if right else int(rng.integers(10))
                    text = _worded(digit, shows or not marked) if refusal else _written(digit, shows, world.rider_N[n] >= 0)
                    row = {"step": step, "prompt_id": f"t{n}", "completion": text, "reward": float(paid), "solved": float(paid)}
                    if logprobs:
                        row["logprobs"] = (-rng.exponential(1.0 + shows, 6)).tolist()
                    file.write(json.dumps(row) + "\n")
    return data


def _worded(digit: int, answers: bool) -> str:
    return f"Answer: {digit}" if answers else DECLINED


def _written(digit: int, shows: bool, rider: bool) -> str:
    return written(np.array([[HABIT if shows else NO if rider else SAY, ZERO + digit]]))[0]
