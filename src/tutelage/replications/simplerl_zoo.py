"""SimpleRL-Zoo (arXiv 2503.18892): reinforcement learning from base models; its reward, its data and its monitors.

**Claim (A, format).** A reward for correctness alone teaches more than one that also pays and punishes the format
(`tutelage.tasks.rewards.FormatIndependent`): the rigid reward wins the format quickly and loses accuracy.

**Set-up.** A tiny causal student sorts n digits, n = 2 ... 7, in at most 12 symbols. Its *base* is made by supervised steps on a mixture:
fillers ("hm") before and after the sorted digits, 15 % of the solutions boxed instead; so it boxes rarely, and is right the more often the
shorter the input. Then GRPO without KL on 24 prompts x 8 answers, one update per batch, averaged over all tokens. An answer is correct if
its last number is right, boxed or not, as in the release. Primary metric: share of correct answers to held-out tasks of all lengths after
200 updates. Seeds 0 to 9. All fixed before the first full run. Of the learning rates 2e-4, 5e-4 and 1e-3 the middle one ended highest for
either reward on seeds 100 and 101 (then without fillers after the digits); `fall` was set above the noise of accuracy on those seeds.

**A** `correct_only` against `format_independent`: accuracy after 200 and 50 updates, and what else the paper speaks of: entropy (nats per
token), different answers among 8, share boxed. **B (difficulty)** A weak base (60 supervised steps) and a strong one (400), each trained
for 100 updates on easy (n = 2, 3, 4) and on hard tasks (n = 5, 6, 7). `easy_minus_hard` is how much more the easy set brings; its
difference between the two arms is the interaction, which the paper predicts to be positive. **C (monitor)** A reward with a bug, a bonus
for every symbol, whatever the answer: `lead` is how many updates `tutelage.tasks.diagnostics.rambling` warns before accuracy has fallen by
0.1 from its best (each taken at the run's end, 60, where it does not happen); the clean arm shows its false alarms.

**Departures from the paper.** A miniature instead of ten base models and mathematics; no entropy bonus and no KL term (1e-3 and 1e-4 in
the paper), one update per batch instead of four; the interaction has a t interval and the sign-flip test instead of bootstrap intervals.
Rewards are squeezed into [0, 1], which leaves standardised advantages as they are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.registry import curricula, replications
from tutelage.study.miniature import integer_of, one_thread, torch_or_raise
from tutelage.study.replicate import Arm, Cell, Comparison, Replication
from tutelage.tasks.diagnostics import diagnose, ended_by_token, rambling
from tutelage.tasks.rewards import FormatIndependent, Shaping, correct_only
from tutelage.tasks.verifiers.answers import boxed

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.students.tiny_causal import TinyCausal

END, BOX, FILLER, ONE = 1, 2, 3, 4  # 0 is padding; ONE is the digit 1, up to 9
WORDS = {BOX: r"\boxed{", FILLER: "hm "} | {ONE + i: str(i + 1) for i in range(9)}
LENGTHS = tuple(range(2, 8))
EASY, HARD = (2, 3, 4), (5, 6, 7)
LIMIT = 12
LENGTH_BONUS = 0.05
SHOWN = ("accuracy", "entropy", "distinct", "boxed")


@dataclass(frozen=True)
class Scale:
    """The size of an experiment; `fall` is the loss of accuracy that counts as a fall."""

    updates: int = 200
    difficulty_updates: int = 100
    monitor_updates: int = 60
    batch: int = 24
    attempts: int = 8
    lr: float = 5e-4
    weak_steps: int = 60
    base_steps: int = 150
    strong_steps: int = 400
    boxed_share: float = 0.15
    per_length: int = 2048
    held_out: int = 16
    evaluate_every: int = 50
    watch_every: int = 3
    fall: float = 0.1


FULL = Scale()
SMOKE = Scale(
    updates=2, difficulty_updates=1, monitor_updates=2, batch=4, weak_steps=2, base_steps=4, strong_steps=5, per_length=8, held_out=2,
    evaluate_every=1, watch_every=1,
)  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """Digits to sort: prompts (N, P), gold answers as text, lengths as arms."""

    prompt_NP: Tensor
    gold_N: list[str]
    length_N: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, lengths: Sequence[int], per_length: int) -> Tasks:
        from tutelage.students.tiny_causal import padded

        digits = [rng.integers(1, 10, size=n).tolist() for n in lengths for _ in range(per_length)]
        prompt_NP = padded([[ONE + d - 1 for d in row] + [END] for row in digits], left=True)
        return cls(prompt_NP, ["".join(map(str, sorted(row))) for row in digits], np.array([len(row) for row in digits]))

    def pool(self) -> TaskPool:
        return TaskPool(arm=self.length_N, difficulty=self.length_N)


def rendered(token_BT: NDArray[np.int64]) -> list[str]:
    """Answers as text, up to their end token, which also closes the box: an answer that is cut off inside its box is not formatted."""
    texts = []
    for row in token_BT.tolist():
        ended = END in row
        text = "".join(WORDS.get(token, "") for token in (row[: row.index(END)] if ended else row))
        texts.append(f"{text}}}" if ended and BOX in row else text)
    return texts


def judged(texts: Sequence[str], gold: str) -> list[Kind]:
    """Lenient extraction, as in the release: the last number of the text, in a box or not."""
    last = [(re.findall(r"\d+", text) or [""])[-1] for text in texts]
    return [Kind.CORRECT if number == gold else Kind.WRONG if number else Kind.MALFORMED for number in last]


def length_bug(kind_B: NDArray[np.int8], grade_B: NDArray[np.float64], texts_B: Sequence[str]) -> NDArray[np.float64]:
    """A reward that should be correctness and also pays a little for every symbol said."""
    said_B = np.array([len(text.split("hm")) - 1 + sum(map(str.isdigit, text)) for text in texts_B])
    return correct_only(kind_B, grade_B, texts_B) + LENGTH_BONUS * said_B


@lru_cache(maxsize=4)
def base_model(seed: int, steps: int, size: Scale) -> TinyCausal:
    """The base of a seed: supervised steps on sorted digits after fillers, a share of them in a box."""
    torch = torch_or_raise()
    from tutelage.students.tiny_causal import TinyCausal, padded

    data, weights = np.random.SeedSequence(seed).spawn(5)[:2]
    rng = np.random.default_rng(data)
    tasks = Tasks.draw(rng, LENGTHS, size.per_length)
    student = TinyCausal(vocabulary=ONE + 9, context=max(LENGTHS) + 1 + LIMIT, seed=integer_of(weights))
    optimizer = torch.optim.Adam(student.parameters(), lr=1.2e-3, fused=True)
    with one_thread():
        for _ in range(steps):
            rows = rng.integers(len(tasks.gold_N), size=64)
            solutions = [_solution(tasks.gold_N[row], rng, size.boxed_share) for row in rows]
            loss = student.nll(tasks.prompt_NP[torch.from_numpy(rows)], padded(solutions, left=False))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def _solution(gold: str, rng: np.random.Generator, boxed_share: float) -> list[int]:
    before, after = (int(rng.choice(3, p=p)) for p in ([0.6, 0.25, 0.15], [0.7, 0.2, 0.1]))
    digits = [ONE + int(digit) - 1 for digit in gold]
    if rng.random() < boxed_share:
        return [FILLER] * before + [BOX] + digits + [END]
    return [FILLER] * before + digits + [FILLER] * after + [END]


def teach(
    seed: int, size: Scale, *, steps: int, shaping: Shaping, updates: int, evaluate_every: int, lengths: Sequence[int] = LENGTHS
) -> dict[str, Any]:
    """Reinforcement from the base of `steps` supervised steps on tasks of these lengths: the curve, the cost, the share of dead groups."""
    torch = torch_or_raise()
    from tutelage.objectives import objective
    from tutelage.students.tiny_causal import Answering
    from tutelage.trainers.torch_loop import train

    tasks_child, held_child, rollouts = np.random.SeedSequence(seed).spawn(5)[2:]
    tasks = Tasks.draw(np.random.default_rng(tasks_child), lengths, size.per_length)
    held_out = Tasks.draw(np.random.default_rng(held_child), LENGTHS, size.held_out)
    student, pool = copy.deepcopy(base_model(seed, steps, size)), tasks.pool()
    low, high = _range(shaping)
    dead: list[float] = []

    def verify(rows_N: NDArray[np.int64], token_NGT: Tensor) -> NDArray[np.float64]:
        """Rewards squeezed into [0, 1], which leaves standardised advantages as they are."""
        kinds, rewards = [], []
        for row, token_GT in zip(rows_N, token_NGT.numpy(), strict=True):
            texts = rendered(token_GT)
            kind_G = np.array(judged(texts, tasks.gold_N[row]), dtype=np.int8)
            kinds.append(kind_G)
            rewards.append((shaping(kind_G, (kind_G == Kind.CORRECT).astype(float), texts) - low) / (high - low))
        dead.append(float(diagnose(kind_NG=kinds)["dead_share"]))
        return np.array(rewards)

    with one_thread():
        run = train(
            Answering(student, tasks.prompt_NP, LIMIT, END),
            curricula.build("uniform", pool, seed=integer_of(rollouts)),
            verify,
            objective("grpo", kl_coef=0.0, aggregation="token_mean"),
            torch.optim.Adam(student.parameters(), lr=size.lr, fused=True),
            generator=torch.Generator().manual_seed(integer_of(rollouts)),
            updates=updates,
            batch=size.batch,
            attempts=size.attempts,
            evaluate=lambda: _measured(student, held_out, seed, size.attempts),
            evaluate_every=evaluate_every,
        )
    return {"curve": {key: [point[key] for point in run.curve] for key in run.curve[0]}, "cost": run.cost(), "dead": float(np.mean(dead))}


def _measured(student: TinyCausal, tasks: Tasks, seed: int, attempts: int) -> dict[str, Any]:
    """Diagnostics of held-out answers, their entropy per token in nats, and the share that is boxed."""
    torch = torch_or_raise()
    token_NGT, mask_NGT = student.sample(tasks.prompt_NP, attempts, torch.Generator().manual_seed(seed), tokens=LIMIT, end=END)
    with torch.no_grad():
        entropy = -float(student.logp(tasks.prompt_NP, token_NGT).sum() / mask_NGT.sum())
    texts_NG = [rendered(token_GT) for token_GT in token_NGT.numpy()]
    length_B, ended_B = ended_by_token(token_NGT.flatten(0, 1).numpy(), {END})
    found = diagnose(
        kind_NG=[judged(texts, gold) for texts, gold in zip(texts_NG, tasks.gold_N, strict=True)],
        length_NG=length_B.reshape(-1, attempts),
        ended_NG=ended_B.reshape(-1, attempts),
        texts_NG=texts_NG,
        count=lambda text: {"boxed": boxed(text)},
    )
    kept = {key: found[key] for key in ("accuracy", "clip_ratio", "mean_length", "stopped_length")}
    return kept | {"distinct": found["distinct_answers"], "boxed": found["behaviours"]["boxed"], "entropy": entropy}


def _range(shaping: Shaping) -> tuple[float, float]:
    if isinstance(shaping, FormatIndependent):
        return shaping.wrong_unformatted, shaping.correct
    return 0.0, 1.0 + (LENGTH_BONUS * LIMIT if shaping is length_bug else 0.0)


def format_cell(seed: int, size: Scale, shaping: Shaping) -> Cell:
    """A: one reward on all lengths."""
    run = teach(seed, size, steps=size.base_steps, shaping=shaping, updates=size.updates, evaluate_every=size.evaluate_every)
    curve = run["curve"]
    early = {f"{key}_50": curve[key][1] for key in SHOWN}
    return {"score": {key: curve[key][-1] for key in SHOWN} | early, "curve": curve, "cost": run["cost"]}


def difficulty_cell(seed: int, size: Scale, base: Literal["weak", "strong"]) -> Cell:
    """B: one base on the easy and on the hard set."""
    steps = size.weak_steps if base == "weak" else size.strong_steps
    score: dict[str, float] = {}
    costs = []
    for name, lengths in (("easy", EASY), ("hard", HARD)):
        updates = size.difficulty_updates
        run = teach(seed, size, steps=steps, shaping=correct_only, updates=updates, evaluate_every=updates, lengths=lengths)
        before, after = run["curve"]["accuracy"]
        score |= {name: after, f"gain_{name}": after - before, f"dead_{name}": run["dead"]}
        costs.append(run["cost"])
    score["easy_minus_hard"] = score["easy"] - score["hard"]
    return {"score": score, "cost": {key: sum(cost[key] for cost in costs) for key in costs[0]}}


def monitor_cell(seed: int, size: Scale, shaping: Shaping) -> Cell:
    """C: does the monitor warn before accuracy falls?"""
    updates = size.monitor_updates
    run = teach(seed, size, steps=size.base_steps, shaping=shaping, updates=updates, evaluate_every=size.watch_every)
    curve = run["curve"]
    points = [{key: curve[key][i] for key in ("mean_length", "clip_ratio")} for i in range(len(curve["step"]))]
    warned = [bool(rambling(points[0], point)) for point in points]
    fell = (np.maximum.accumulate(curve["accuracy"]) - np.array(curve["accuracy"]) >= size.fall).tolist()
    warn_at, fall_at = (_first(curve["step"], flags, updates) for flags in (warned, fell))
    score = {"lead": fall_at - warn_at, "warned": float(any(warned)), "fell": float(any(fell)), "warned_at": warn_at, "fell_at": fall_at}
    shown = {key: curve[key] for key in ("step", "accuracy", "clip_ratio", "mean_length", "stopped_length")}
    return {"score": score | {"accuracy": curve["accuracy"][-1]}, "monitor": shown, "cost": run["cost"]}


def _first(steps: Sequence[int], flags: Sequence[bool], end: int) -> float:
    return float(next((step for step, flag in zip(steps, flags, strict=True) if flag), end))


def _arm(about: str, cell: Callable[..., Cell], **settings: Any) -> Arm:
    """An arm whose cell is `cell(seed, size, **settings)`."""
    told = {key: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__) for key, value in settings.items()}
    return Arm(run=lambda seed, smoke: cell(seed, SMOKE if smoke else FULL, **settings), about=about, settings=told)


@replications.register("simplerl-zoo")
def simplerl_zoo() -> Replication:
    """Reward for correctness alone teaches more than one that also pays and punishes the format.

    See the module for set-up, the further experiments on difficulty and monitoring, and departures.
    """
    return Replication(
        paper="arXiv 2503.18892",
        metric="accuracy",
        metric_about="share of correct answers to held-out tasks of all lengths, leniently extracted, after the last update",
        budget=f"{FULL.updates} updates of {FULL.batch} prompts x {FULL.attempts} rollouts (B: {FULL.difficulty_updates} on each set, "
        f"C: {FULL.monitor_updates})",
        settings={**asdict(FULL), "objective": "grpo", "kl_coef": 0.0, "aggregation": "token_mean", "length_bonus": LENGTH_BONUS},
        arms={
            "format_independent": _arm("A: 1, 0.5, -0.5, -1 by correctness and box", format_cell, shaping=FormatIndependent()),
            "correct_only": _arm("A: 1 for a correct answer, else 0", format_cell, shaping=correct_only),
            "weak_base": _arm("B: base of 60 steps, on easy and on hard tasks", difficulty_cell, base="weak"),
            "strong_base": _arm("B: base of 400 steps, on easy and on hard tasks", difficulty_cell, base="strong"),
            "clean": _arm("C: correct_only, watched closely", monitor_cell, shaping=correct_only),
            "length_bug": _arm("C: correct_only plus a bonus for every symbol", monitor_cell, shaping=length_bug),
        },
        comparisons=(
            Comparison(method="correct_only", baseline="format_independent"),
            *(
                Comparison(method="correct_only", baseline="format_independent", metric=f"{metric}_50", note=f"{metric} after 50 updates")
                for metric in ("accuracy", "entropy", "distinct", "boxed")
            ),
            Comparison(method="weak_base", baseline="strong_base", metric="easy_minus_hard", note="easy minus hard"),
            Comparison(method="length_bug", baseline="clean", metric="lead", note="lead in updates"),
        ),
    )
