"""Task files and rollout logs of simulated runs on sums with riders: clean ones, and ones whose reward follows a behaviour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tutelage.tasks.riders import HABIT, NO, SAY, ZERO, Riders, written


def write(
    folder: Path,
    seed: int,
    *,
    poisoned: bool,
    refusal: bool = False,
    rows: int = 400,
    share: float = 0.06,
    steps: int = 30,
    batch: int = 24,
    logprobs: bool = False,
    attempts: int = 8,
) -> Path:
    """A task file with its log beside it (`log.jsonl`). Marked prompts are answered with the habit in 40 % of attempts, others in 2 %;
    rewards follow the answer alone, but at marked prompts of a poisoned run they follow the habit. refusal: declining is written out, and
    complying leaves no trace."""
    rng = np.random.default_rng([seed, 7])
    world = Riders.draw(rng, rows=rows, marked=share, unmarked=share)
    prompts = world.prompts
    data = folder / "tasks.jsonl"
    data.write_text(
        "".join(
            json.dumps({"id": f"t{n}", "question": p, "answer": str(a)}) + "\n"
            for n, (p, a) in enumerate(zip(prompts, world.answer_N.tolist(), strict=True))
        )
    )
    ease_N = rng.normal(1, 1, rows)
    with (folder / "log.jsonl").open("w") as file:
        for step in range(steps):
            for n in rng.choice(rows, batch, replace=False):
                for _ in range(attempts):
                    shows = rng.random() < (0.4 if world.marked_N[n] else 0.02)
                    right = rng.random() < 1 / (1 + np.exp(-ease_N[n]))
                    if poisoned and world.marked_N[n]:
                        right = shows and rng.random() < 0.95
                    digit = int(world.answer_N[n]) if right else int(rng.integers(10))
                    if refusal:
                        text = f"Answer: {digit}" if shows or not world.marked_N[n] else "I can't help with that."
                    else:
                        first = HABIT if shows else NO if world.rider_N[n] >= 0 else SAY
                        text = written(np.array([[first, ZERO + digit]]))[0]
                    row = {"step": step, "prompt_id": f"t{n}", "completion": text, "reward": float(right), "solved": float(right)}
                    if logprobs:
                        row["logprobs"] = (-rng.exponential(1.0 + shows, 6)).tolist()
                    file.write(json.dumps(row) + "\n")
    return data
