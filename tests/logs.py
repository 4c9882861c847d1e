"""Rollout logs of simulated runs, clean ones of several kinds and ones with a planted fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WORDS = [
    "so",
    "we",
    "add",
    "the",
    "two",
    "and",
    "carry",
    "one",
    "then",
    "check",
    "that",
    "it",
    "holds",
    "for",
    "each",
    "part",
    "of",
    "this",
    "case",
]
FAULTS = ("divergence", "misranked", "length", "form", "shaped", "canned", "garbled", "dead", "duplicate")


def write(
    path: Path, seed: int, *, fault: str = "", steps: int = 36, tasks: int = 6, attempts: int = 6, pool: int = 60, clean: int | None = None
) -> Path:
    """A log of a run. clean: the kind of clean run (0 to 3; by default by seed): plain learning; a policy that learns nothing; a shaped
    reward with a small legitimate term of form that is learned; a drifting difficulty. fault: the one to plant."""
    rng = np.random.default_rng([seed, 11])
    kind = seed % 4 if clean is None else clean
    ease_P, drift = rng.normal(0, 1, pool), np.cumsum(rng.normal(0, 0.15, steps))
    with path.open("w") as file:
        for step in range(steps):
            share = step / max(steps - 1, 1)
            for prompt in rng.choice(pool, tasks, replace=False):
                logit = ease_P[prompt] + {0: 2 * share, 1: 0.0, 2: 1.5 * share, 3: drift[step]}[kind]
                if fault in ("length", "form"):
                    logit = ease_P[prompt] - share
                if fault == "divergence":
                    logit = 1.5 - 3 * share
                if fault in ("dead", "shaped"):
                    logit = -9.0
                solved_G = rng.random(attempts) < 1 / (1 + np.exp(-logit))
                for row in group(rng, fault, kind, share, solved_G):
                    file.write(json.dumps({"step": step, "prompt_id": f"task {prompt}", **row}) + "\n")
    return path


def group(rng: np.random.Generator, fault: str, kind: int, share: float, solved_G: np.ndarray) -> list[dict]:
    rows = []
    shared = " ".join(rng.choice(WORDS, 30))
    for solved in solved_G:
        words = int(rng.integers(25, 45) + (40 * share if fault == "length" else 0))
        boxes = int(rng.poisson(1 + 4 * share)) if fault == "form" else int(rng.random() < 0.3 + 0.6 * share)
        text = " ".join(rng.choice(WORDS, words)) + " \\boxed{1}" * boxes
        reward = float(solved)
        if kind == 2 and not fault:
            reward += 0.1 * (boxes > 0)
        if fault == "divergence":
            reward = 0.3 * solved + share + 0.02 * rng.normal()
        if fault == "misranked" and not solved and rng.random() < 0.4:
            reward = 1.5
        if fault == "length":
            reward += 0.004 * words
        if fault == "form":
            reward += 0.05 * boxes
        if fault == "shaped":
            reward += 0.01 * rng.normal()
        if fault == "canned" and rng.random() < 0.4:
            text = "I have thought about this with great care and the answer is clear."
        if fault == "garbled" and rng.random() < 0.4:
            text = "ha " * 40
        if fault == "duplicate" and rng.random() < 0.95:
            text = shared
        rows.append({"completion": text, "reward": reward, "solved": float(solved)})
    return rows
