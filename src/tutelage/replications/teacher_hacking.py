"""Teacher hacking (arXiv 2502.02671): a student that leaves the truth while it comes closer to its teacher.

**Claim.** Distilled on fixed answers, a student ends further from the truth than it once was; on fresh answers of the teacher it does not.

**Set-up.** The truth is an oracle: a frozen random transformer (2 layers, width 64, 16 tokens), the weights of its blocks 1.7 times torch's
so that it looks beyond its last token, its logits sharpened to 1.2 nats of entropy per token; prompts of 6 random tokens, answers of 8. The
teacher (2 layers, width 48) is trained on 2,000 oracle answers for 1,200 steps, until it overfits; the student (1 layer, width 32) on the
same for 200. Then the student minimises the forward KL to the teacher, token by token over the vocabulary, on answers from one of the
sources, 64 at a time, 640 steps of AdamW at 1e-3. Every 16 steps, on 192 held-out prompts: proxy P = KL(teacher ‖ student) on answers of
the teacher, golden G = KL(oracle ‖ student) on answers of the oracle, both in nats per answer, exact over the vocabulary at each token, the
same answers at every evaluation. Seeds 0 to 9, a new oracle each. Fixed before the first full run.

**Primary metric.** `kept`: min G − G(end), at most 0; 0 where the last evaluation is the best. It compares a run with itself, so that the
choice of the least of a noisy curve is the same in every arm.

**Arms.** Fixed answers: one each to 1,000 prompts (`offline`), five each to 200 (`narrow`), five each to 1,000 (`more_answers`). Fresh
answers to the same 1,000 prompts: of the teacher (`online_teacher`), of the student (`online_student`). All take equal optimiser steps.
`good_teacher` is `offline` under a teacher of 6,000 answers and 400 steps: where there is less to exploit. `stopped` is `offline` ended
where the proxy leaves its power law (`tutelage audit teacher` without a golden distance), the whole run where it never does.

**What else is kept.** `hacking` and `overfitting` (1 where that is the verdict on the curves, tolerance two standard errors of the paired
differences over prompts), `golden` = −G(end), `best` = −min G, `proxy` = −P(end), `ceiling` = −KL(oracle ‖ teacher), and of `stopped` the
step where it stopped and the cost, min G − G(stop).

**Sizes** were set on seeds 100 and 101: with torch's own weights the oracle is nearly a table of token pairs, which everyone learns, and
with four times as large ones nobody learns it.

**Departures.** A miniature, as the sheet of the method designs it, cut to what two cores do in minutes: 40 evaluations instead of 60, 192
held-out prompts instead of 512. Online arms pay for their answers beside the equal steps; `seconds` shows it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.audits._hacking import hacking_report, power_law
from tutelage.registry import replications
from tutelage.study.miniature import integer_of, one_thread, torch_or_raise
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from tutelage.students.tiny_causal import TinyCausal

TOKENS, PROMPT, ANSWER = 16, 6, 8
ENTROPY, DEPTH = 1.2, 1.7


@dataclass(frozen=True)
class Scale:
    """Steps are of `batch` answers; `every` steps the student is measured on `held_out` prompts."""

    prompts: int = 1000
    held_out: int = 192
    oracle_answers: int = 2000
    teacher_steps: int = 1200
    student_steps: int = 200
    steps: int = 640
    every: int = 16
    batch: int = 64
    lr: float = 1e-3


FULL = Scale()
SMOKE = Scale(prompts=50, held_out=16, oracle_answers=64, teacher_steps=5, student_steps=5, steps=24, every=2, batch=8)
GOOD = {"oracle_answers": 6000, "teacher_steps": 400}
Answers = Callable[[int, "TinyCausal", "Generator"], "tuple[Tensor, Tensor]"]  # (step, student, generator) → prompts and answers


class Classroom:
    """What all arms of a seed share: oracle, teachers, the student's start, prompts, and held-out answers with the truth about them."""

    def __init__(self, seed: int, size: Scale) -> None:
        import torch

        self.size = size
        children = zip(("oracle", "data", "play"), np.random.SeedSequence(seed).spawn(3), strict=True)
        self.seeds = {name: integer_of(child) for name, child in children}
        draw = torch.Generator().manual_seed(self.seeds["data"])
        self.oracle = _model(self.seeds["oracle"], width=64, layers=2)
        deepen(self.oracle)
        self.sharp = sharpness(self.oracle, prompts(512, draw))
        self.prompt_NP, self.held_NP = prompts(size.prompts, draw), prompts(size.held_out, draw)
        shown_NP = prompts(max(size.oracle_answers, GOOD["oracle_answers"] if size is FULL else 0), draw)
        shown_NT = write(self.oracle, shown_NP, draw, self.sharp)
        few = slice(size.oracle_answers)
        self.teacher = _model(self.seeds["data"], width=48, layers=2)
        imitate(self.teacher, shown_NP[few], shown_NT[few], size.teacher_steps, size, draw)
        self.good_teacher = _model(self.seeds["data"], width=48, layers=2)
        imitate(self.good_teacher, shown_NP, shown_NT, GOOD["teacher_steps"] if size is FULL else 2, size, draw)
        self.student = _model(self.seeds["play"], width=32, layers=1)
        imitate(self.student, shown_NP[few], shown_NT[few], size.student_steps, size, draw)
        self.true_NT = write(self.oracle, self.held_NP, draw, self.sharp)
        self.true_logp_NTV = logp(self.oracle, self.held_NP, self.true_NT, self.sharp)


@lru_cache(maxsize=1)
def _classroom(seed: int, size: Scale) -> Classroom:
    return Classroom(seed, size)


def _model(seed: int, *, width: int, layers: int) -> TinyCausal:
    from tutelage.students.tiny_causal import TinyCausal

    return TinyCausal(vocabulary=TOKENS + 1, context=PROMPT + ANSWER, seed=seed, width=width, layers=layers)


def deepen(oracle: TinyCausal) -> None:
    """Weights of the blocks `DEPTH` times as large: at torch's defaults a random transformer hardly looks beyond its last token."""
    import torch

    with torch.no_grad():
        for name, weight in oracle.blocks.named_parameters():
            if "norm" not in name:
                weight.mul_(DEPTH)


def prompts(count: int, generator: Generator) -> Tensor:
    import torch

    return torch.randint(1, TOKENS + 1, (count, PROMPT), generator=generator)


def write(model: TinyCausal, prompt_NP: Tensor, generator: Generator, sharp: float = 1.0) -> Tensor:
    """One sampled answer (N, T) to each prompt; `sharp` multiplies the logits."""
    return model.sample(prompt_NP, 1, generator, tokens=ANSWER, temperature=1 / sharp)[0][:, 0]


def logp(model: TinyCausal, prompt_NP: Tensor, answer_NT: Tensor, sharp: float = 1.0, *, train: bool = False) -> Tensor:
    """Log-probabilities of every token at every place of the answers (N, T, V), with gradient in training."""
    import torch

    with torch.set_grad_enabled(train):
        logp_NTV = model(torch.cat([prompt_NP, answer_NT[:, :-1]], dim=1))[:, PROMPT - 1 :, 1:]
        return logp_NTV if sharp == 1 else (sharp * logp_NTV).log_softmax(-1)


def sharpness(oracle: TinyCausal, prompt_NP: Tensor) -> float:
    """What the logits are multiplied by for a mean entropy of `ENTROPY` nats per token of its own answers, by bisection."""
    import torch

    low, high = 1.0, 64.0
    for _ in range(12):
        sharp = (low * high) ** 0.5
        logp_NTV = logp(oracle, prompt_NP, write(oracle, prompt_NP, torch.Generator().manual_seed(0), sharp), sharp)
        entropy = float(-(logp_NTV.exp() * logp_NTV).sum(-1).mean())
        low, high = (sharp, high) if entropy > ENTROPY else (low, sharp)
    return (low * high) ** 0.5


def imitate(model: TinyCausal, prompt_NP: Tensor, answer_NT: Tensor, steps: int, size: Scale, generator: Generator) -> None:
    """Supervised training on answers."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=size.lr, fused=True)
    for _ in range(steps):
        row_B = torch.randint(len(prompt_NP), (size.batch,), generator=generator)
        logp_BTV = logp(model, prompt_NP[row_B], answer_NT[row_B], train=True)
        optimizer.zero_grad()
        (-logp_BTV.gather(2, answer_NT[row_B].unsqueeze(2) - 1).mean()).backward()
        optimizer.step()


def fixed(room: Classroom, teacher: TinyCausal, *, share: float = 1.0, each: int = 1) -> Answers:
    """`each` answers of the teacher, sampled once, to a share of the prompts."""
    import torch

    draw = torch.Generator().manual_seed(room.seeds["play"])
    prompt_NP = room.prompt_NP[: round(share * len(room.prompt_NP))].repeat_interleave(each, 0)
    answer_NT = write(teacher, prompt_NP, draw)

    def batch(step: int, student: TinyCausal, generator: Generator) -> tuple[Tensor, Tensor]:
        row_B = torch.randint(len(prompt_NP), (room.size.batch,), generator=generator)
        return prompt_NP[row_B], answer_NT[row_B]

    return batch


def fresh(room: Classroom, teacher: TinyCausal | None) -> Answers:
    """New answers at every step: of the teacher, or without one of the student itself."""
    import torch

    def batch(step: int, student: TinyCausal, generator: Generator) -> tuple[Tensor, Tensor]:
        prompt_BP = room.prompt_NP[torch.randint(len(room.prompt_NP), (room.size.batch,), generator=generator)]
        return prompt_BP, write(teacher or student, prompt_BP, generator)

    return batch


class Trace:
    """Distances on held-out prompts along a run; seconds are processor time without the measuring."""

    def __init__(self, room: Classroom, teacher: TinyCausal) -> None:
        import torch

        self.room = room
        self.own_NT = write(teacher, room.held_NP, torch.Generator().manual_seed(room.seeds["data"]))
        self.own_logp_NTV = logp(teacher, room.held_NP, self.own_NT)
        self.steps: list[int] = []
        self.proxy: list[np.ndarray[Any, Any]] = []
        self.golden: list[np.ndarray[Any, Any]] = []
        self.spent: list[float] = []
        self.seconds, self.began = 0.0, time.process_time()

    def mark(self, step: int, student: TinyCausal) -> None:
        self.seconds += time.process_time() - self.began
        self.steps.append(step)
        self.spent.append(self.seconds)
        self.proxy.append(self.distance(self.own_logp_NTV, student, self.own_NT))
        self.golden.append(self.distance(self.room.true_logp_NTV, student, self.room.true_NT))
        self.began = time.process_time()

    def distance(self, reference_NTV: Tensor, student: TinyCausal, answer_NT: Tensor) -> np.ndarray[Any, Any]:
        """KL(reference ‖ student) of each prompt's answer, in nats (N,)."""
        from tutelage.objectives.divergence import kl

        return kl(reference_NTV, logp(student, self.room.held_NP, answer_NT)).sum(1).double().numpy()

    def cell(self, teacher: TinyCausal, *, stop: bool) -> Cell:
        proxy_SN, golden_SN, step_S = np.stack(self.proxy), np.stack(self.golden), np.array(self.steps, float)
        proxy_S, golden_S = proxy_SN.mean(1), golden_SN.mean(1)
        more: dict[str, float] = {}
        if stop:
            at = power_law(step_S, proxy_S)[2]
            end = len(step_S) if at is None else at + 1
            more = {"stopped_at": step_S[end - 1], "cost": golden_S.min() - golden_S[end - 1]}
            proxy_SN, golden_SN, step_S, proxy_S, golden_S = (x[:end] for x in (proxy_SN, golden_SN, step_S, proxy_S, golden_S))
        best = int(golden_S.argmin())
        proxy_error, golden_error = (2 * (x[-1] - x[best]).std() / len(x[0]) ** 0.5 for x in (proxy_SN, golden_SN))
        report = hacking_report(step_S, proxy_S, golden_S, tolerance=(proxy_error, golden_error))
        ceiling = self.distance(self.room.true_logp_NTV, teacher, self.room.true_NT).mean()
        score = {
            "kept": golden_S.min() - golden_S[-1], "golden": -golden_S[-1], "best": -golden_S.min(), "proxy": -proxy_S[-1],
            "hacking": float(report.kind == "hacking"), "overfitting": float(report.kind == "overfitting"), "ceiling": -ceiling,
            "start": -golden_S[0], **more,
        }  # fmt: skip
        lines = {"step": step_S.astype(int), "proxy": -proxy_S, "golden": -golden_S, "kept": golden_S.min() - golden_S}
        curve = {"seconds": self.spent[: len(step_S)], **{name: line_S.tolist() for name, line_S in lines.items()}}
        return {"score": {k: float(v) for k, v in score.items()}, "curve": curve, "cost": {"seconds": self.seconds}}


@lru_cache(maxsize=2)
def distil(seed: int, size: Scale, source: Callable[[Classroom, TinyCausal], Answers], good: bool) -> tuple[Trace, TinyCausal]:
    """One run: the student of a seed on the answers of a source; its trace, and its teacher."""
    import torch

    from tutelage.objectives.divergence import kl

    room = _classroom(seed, size)
    teacher = room.good_teacher if good else room.teacher
    answers, student = source(room, teacher), copy.deepcopy(room.student)
    generator = torch.Generator().manual_seed(room.seeds["play"])
    optimizer = torch.optim.AdamW(student.parameters(), lr=size.lr, fused=True)
    trace = Trace(room, teacher)
    trace.mark(0, student)
    for step in range(1, size.steps + 1):
        prompt_BP, answer_BT = answers(step, student, generator)
        loss = kl(logp(teacher, prompt_BP, answer_BT), logp(student, prompt_BP, answer_BT, train=True)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % size.every == 0:
            trace.mark(step, student)
    return trace, teacher


def _arm(about: str, source: Callable[[Classroom, TinyCausal], Answers], *, good: bool = False, stop: bool = False) -> Arm:
    def run(seed: int, smoke: bool) -> Cell:
        torch_or_raise()
        with one_thread():
            trace, teacher = distil(seed, SMOKE if smoke else FULL, source, good)
            return trace.cell(teacher, stop=stop)

    return Arm(run=run, about=about, settings={"good_teacher": good, "stopped": stop})


@replications.register("teacher-hacking")
def teacher_hacking() -> Replication:
    """Distilled on fixed answers, a student ends further from the truth than it once was; on a teacher's fresh answers it does not.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2502.02671",
        metric="kept",
        metric_about="least golden distance of the run minus that at its end, nats per answer (0: the end is best)",
        budget=f"{FULL.steps} optimiser steps of {FULL.batch} answers from the same start",
        settings=asdict(FULL) | {"optimizer": "AdamW", "loss": "forward KL", "entropy": ENTROPY},
        arms={
            "offline": _arm("one fixed answer to each of 1,000 prompts", fixed),
            "stopped": _arm("offline, ended where the proxy leaves its power law", fixed, stop=True),
            "online_teacher": _arm("fresh answers of the teacher", fresh),
            "online_student": _arm("fresh answers of the student", lambda room, teacher: fresh(room, None)),
            "narrow": _arm("five fixed answers to each of 200 prompts", lambda room, teacher: fixed(room, teacher, share=0.2, each=5)),
            "more_answers": _arm("five fixed answers to each of 1,000 prompts", lambda room, teacher: fixed(room, teacher, each=5)),
            "good_teacher": _arm("offline, under a teacher with three times the data", fixed, good=True),
        },
        comparisons=(
            Comparison(method="online_teacher", baseline="offline"),
            Comparison(method="online_student", baseline="offline"),
            Comparison(method="offline", baseline="narrow"),
            Comparison(method="more_answers", baseline="offline"),
            Comparison(method="good_teacher", baseline="offline"),
            Comparison(method="online_teacher", baseline="offline", metric="golden", note="golden at the end"),
            Comparison(method="online_teacher", baseline="more_answers", metric="golden", note="golden at the end"),
            Comparison(method="offline", baseline="online_teacher", metric="hacking", note="share of hacking"),
            Comparison(method="stopped", baseline="offline", metric="golden", note="golden at the end"),
        ),
    )
