"""Rollout logs of simulated runs: clean ones of several kinds, and ones with a fault planted at a stated strength.

    from tutelage.testing.rollout_logs import FAULTS, write_log

    write_log(path, seed=0)                                   # clean
    write_log(path, seed=0, fault="misranked", strength=0.5)  # 20 % of the failed attempts are paid best

What an audit of logs is measured on: its rate of false alarms, and the strength from which on it finds each fault. The simulated policy
answers prompts of two sources by a logistic curve of its skill and their ease. Array suffixes: `B` attempts, `N` groups, `P` prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.rollouts import RolloutWriter

Floats = NDArray[np.float64]

FAULTS = {
    "divergence": "the outcome falls from 82 to 18 % and the reward rises by 1, times the strength",
    "source": "so it is within one of two sources, while the other improves",
    "mix": "within both sources the outcome falls by 2 logits times the strength, and the easier one takes over",
    "length": "0.004 of reward a word, and 40 more words by the end, both times the strength; the outcome does not rise",
    "form": "0.05 of reward for each box, and 4 more boxes by the end, both times the strength; the outcome does not rise",
    "misranked": "40 % of the failed attempts, times the strength, are paid more than solved ones",
    "span": "half of the solved attempts, times the strength, have a span that is empty, overruled or repeated",
    "stuffed": "half of the attempts, times the strength, mark five different answers",
    "shaped": "the share of groups, at most all, in which nothing is solved and a small shaping term alone differs",
    "canned": "half of the attempts, times the strength, are one reply to all prompts",
    "garbled": "half of the attempts, times the strength, are one word over and over",
    "kl": "half of the attempts of the last third, times the strength, are about 1 nat a token from the reference",
    "entropy": "the share of the attempts of the last third whose entropy is a tenth of what it was",
    "dead": "the share of groups, at most all, in which nothing is solved and all are paid alike",
    "duplicate": "the share of the attempts that are the same text as others of their group",
}
"""Each fault that can be planted, and what its strength, from 0 to 1, means. Each is named after the rule of `audit rewards` for it."""
KINDS = ("learning", "standing still", "shaped a little", "drifting")
"""Clean runs: plain learning, in which the entropy falls by half and the mix moves; a policy that learns nothing; a small legitimate term
for an opening tag, which is learned; tasks whose difficulty wanders, with every fault on a share of a fiftieth. None is above a threshold
of the audit."""
WORDS = np.array("so we add the two and carry one then check that it holds for each part of this case".split())  # noqa: SIM905
CANNED = "I have thought about this with great care and the answer is clear."
NOISE = 0.02


def write_log(path: Path, *, seed: int, **run: Any) -> Path:
    """Write the log of a simulated run to `path` (.jsonl); arguments as of `log_rows`."""
    rows = log_rows(seed=seed, **run)
    path.unlink(missing_ok=True)
    with RolloutWriter(path) as log:
        log.write(*rows)
    return path


def log_rows(
    *,
    seed: int,
    fault: str = "",
    strength: float = 1.0,
    clean: int | None = None,
    steps: int = 36,
    tasks: int = 6,
    attempts: int = 6,
    pool: int = 60,
) -> list[dict[str, Any]]:
    """The rows of a simulated run's log, with all columns that `audit rewards` looks at; the same seed, the same rows.

    Args:
        fault: the one to plant, see `FAULTS`; none by default.
        strength: of the fault, in [0, 1].
        clean: the kind of run, a place in `KINDS`; by default by seed. A faulty run learns nothing but its fault.
        steps, tasks, attempts: of the optimiser, prompts in each, attempts at each prompt.
        pool: how many prompts there are.
    """
    if fault and fault not in FAULTS:
        raise unknown("fault", fault, FAULTS)
    if not 0 <= strength <= 1:
        raise TutelageError(f"strength={strength}; expected 0 (no fault) to 1.")
    rng = np.random.default_rng([seed, 11])
    kind = 1 if fault else seed % len(KINDS) if clean is None else clean
    return _Run(rng, fault, strength, kind, steps, tasks, attempts, pool).rows()


@dataclass
class _Run:
    """The arrays of a run: what happens at each group and attempt, before it is put in words."""

    rng: np.random.Generator
    fault: str
    strength: float
    kind: int
    steps: int
    tasks: int
    attempts: int
    pool: int
    step_N: NDArray[np.int64] = field(init=False)
    prompt_N: NDArray[np.int64] = field(init=False)
    share_B: Floats = field(init=False)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the log."""
        rng = self.rng
        self.step_N = np.repeat(np.arange(self.steps), self.tasks)
        self.prompt_N = self._prompts()
        self.share_B = np.repeat(self.step_N / max(self.steps - 1, 1), self.attempts)
        count = len(self.share_B)
        struck_N = self._hit("shaped", "dead", of=1.0, size=len(self.step_N))
        struck_B = np.repeat(struck_N, self.attempts)
        solved_B = (rng.random(count) < 1 / (1 + np.exp(-self._logit_B()))) & ~struck_B
        words_B = rng.integers(25, 45, count) + np.rint(40 * self._at("length") * self.share_B).astype(int)
        boxes_B = 1 + rng.poisson((1 + 4 * self.share_B) * self._at("form"))
        tagged_B = rng.random(count) < 0.3 + 0.6 * self.share_B
        reward_B = self._reward_B(solved_B, words_B, boxes_B, tagged_B, struck_B)
        texts, spans = self._texts(words_B, boxes_B, tagged_B)
        late_B = self.share_B >= 2 / 3
        far_B = late_B & self._hit("kl", of=0.5, size=count)
        low_B = late_B & self._hit("entropy", of=1.0, size=count)
        kl_B = np.where(far_B, 1.0, 0.05 * self.share_B + 0.001) * np.exp(0.3 * rng.normal(size=count))
        entropy_B = np.where(low_B, 0.1, 1.0 - 0.5 * self.share_B * (self.kind == 0)) * np.exp(0.3 * rng.normal(size=count))
        return [
            {
                "step": int(self.step_N[b // self.attempts]),
                "prompt_id": f"task {self.prompt_N[b // self.attempts]}",
                "completion": texts[b],
                "reward": float(reward_B[b]),
                "solved": float(solved_B[b]),
                "source": "ab"[self.prompt_N[b // self.attempts] % 2],
                "span": spans[b],
                "kl": float(kl_B[b]),
                "entropy": float(entropy_B[b]),
            }
            for b in range(count)
        ]

    def _at(self, fault: str) -> float:
        return self.strength if self.fault == fault else 0.0

    def _hit(self, *faults: str, of: float, size: int) -> NDArray[np.bool_]:
        """Which attempts or groups a fault strikes: the share `of` times its strength; in a drifting clean run a few."""
        share = of * self.strength if self.fault in faults else NOISE if self.kind == 3 and not self.fault else 0.0
        return self.rng.random(size) < share

    def _prompts(self) -> NDArray[np.int64]:
        """The prompt of each group, all different within a step; odd ones are of the second source, which is the easier one."""
        shift = 1.0 if self.fault == "mix" else 0.5 if self.kind == 0 and not self.fault else 0.0
        odd_P = np.arange(self.pool) % 2
        found = []
        for step in range(self.steps):
            lean = 3 * shift * (step / max(self.steps - 1, 1) - 0.5)
            weight_P = np.exp(np.where(odd_P, lean, -lean))
            order_P = np.argsort(self.rng.exponential(size=self.pool) / weight_P)  # without replacement, in proportion to the weights
            found.append(order_P[: self.tasks])
        return np.concatenate(found)

    def _logit_B(self) -> Floats:
        """The log-odds of each attempt's success."""
        rng, share_B, odd_B = self.rng, self.share_B, np.repeat(self.prompt_N % 2, self.attempts)
        ease_B = np.repeat(rng.normal(0, 1, self.pool)[self.prompt_N], self.attempts)
        drift_B = np.repeat(np.cumsum(rng.normal(0, 0.15, self.steps))[self.step_N], self.attempts)
        if not self.fault:
            return ease_B + (2 * share_B, 0 * share_B, 1.5 * share_B, drift_B)[self.kind]
        if self.fault == "divergence":
            return self.strength * (1.5 - 3 * share_B) + (1 - self.strength) * ease_B
        if self.fault == "source":
            return self.strength * np.where(odd_B == 1, 1.5 - 3 * share_B, 3 * share_B - 1.5) + (1 - self.strength) * ease_B
        if self.fault == "mix":
            return 0.5 * ease_B + np.where(odd_B == 1, 2.0, -2.0) - 2 * self.strength * share_B
        return ease_B - share_B * (self.fault in ("length", "form"))

    def _reward_B(self, solved_B: Any, words_B: Any, boxes_B: Any, tagged_B: Any, struck_B: Any) -> Floats:
        rng, count = self.rng, len(solved_B)
        reward_B = solved_B.astype(np.float64)
        if self.kind == 2 and not self.fault:
            reward_B += 0.1 * tagged_B
        if self.fault in ("divergence", "source"):
            odd_B = np.repeat(self.prompt_N % 2, self.attempts)
            hacked_B = (odd_B == 1) | (self.fault == "divergence")
            hacked = 0.3 * solved_B + self.share_B + 0.02 * rng.normal(size=count)
            reward_B = np.where(hacked_B, self.strength * hacked + (1 - self.strength) * reward_B, reward_B)
        reward_B += 0.004 * self._at("length") * words_B + 0.05 * self._at("form") * boxes_B
        reward_B[~solved_B & self._hit("misranked", of=0.4, size=count)] = 1.5
        return reward_B + 0.01 * rng.normal(size=count) * (struck_B & (self.fault == "shaped"))

    def _texts(self, words_B: Any, boxes_B: Any, tagged_B: Any) -> tuple[list[str], list[list[int]]]:
        """Completions that end with their boxed answer, and the span of that answer."""
        rng, count = self.rng, len(words_B)
        chosen = WORDS[rng.integers(0, len(WORDS), (count, int(words_B.max())))].tolist()
        answer_B = rng.integers(0, 100, count).tolist()
        canned_B, garbled_B = self._hit("canned", of=0.5, size=count), self._hit("garbled", of=0.5, size=count)
        same_B, stuffed_B = self._hit("duplicate", of=1.0, size=count), self._hit("stuffed", of=0.5, size=count)
        odd_B = np.where(self._hit("span", of=0.5, size=count), rng.integers(1, 4, count), 0).tolist()
        texts, spans = [], []
        for b in range(count):
            first = b - b % self.attempts
            leader = first if same_B[b] else b
            opening = CANNED if canned_B[b] else "ha " * 40 if garbled_B[b] else " ".join(chosen[leader][: words_B[leader]])
            opening = "<think>" * bool(tagged_B[leader]) + opening
            answer = "1" if canned_B[b] else str(answer_B[leader])
            others = [str(100 + i) for i in range(4)] if stuffed_B[b] else [answer] * (int(boxes_B[leader]) - 1) * (not canned_B[b])
            text, span = _closed(opening, others, answer, odd_B[b])
            texts.append(text)
            spans.append(span)
        return texts, spans


def _closed(opening: str, others: list[str], answer: str, odd: int) -> tuple[str, list[int]]:
    """A completion and its verifier's span. odd: 0 for a sound one, 1 for an empty, 2 for an overruled, 3 for a repeated one."""
    text = opening + "".join(f" \\boxed{{{other}}}" for other in others)
    if odd == 3:
        text, start = f"{text} {' '.join([answer] * 6)}", len(text) + 1
        return text, [start, start + len(answer)]
    start = len(text) + len(" \\boxed{")
    text += f" \\boxed{{{answer}}}"
    if odd == 2:
        text += f" or rather \\boxed{{{answer}0}}"
    return text, [0, 0] if odd == 1 else [start, start + len(answer)]
