"""EGSR (arXiv 2505.08364): where a group fails, the student rewrites the expert's solution in its own words and learns from that.

**Claim.** On tasks that the student never solves, expert-guided self-reformulation teaches where plain GRPO cannot, and it keeps the
student's own style, which supervised training on the expert's text loses.

**Set-up.** A task is a list of digits, each 0 to 4; its solution is the list of running totals modulo 5. Each value has two digits, a known
and an unknown one. There are two alphabets for totals: the student's own and the expert's. A tiny causal student (60,000 parameters) is
pre-trained on two skills: to solve lists of one to five known digits, in its own letters, and to translate an expert's solution that stands
in the prompt into its own letters, whatever the digits. Then it is taught hard lists, of five unknown digits, which it solves about once in
three hundred attempts. The verifier accepts the totals in either alphabet. Primary metric: the share of the 447 held-out hard lists that
are solved in the student's own letters, sampled at temperature 1 from prompts without a hint (asserted), after the last update. Seeds 0 to
9. Fixed before the first full run.

**Arms and controls.** GRPO, with one attempt more per task than EGSR's own eight, so that it has at least EGSR's rollouts. Supervised
training on the expert's text; the same for the first half and GRPO for the second. EGSR with the three readings of the ratio, each batch
used twice, for in a first pass over a batch "on_policy" and "none" are the same. EGSR shown the last total only: the answer without the
working. `reformulated`: supervised training on guided answers that were accepted, one tried for each task: what remains without
reinforcement. Beside the primary metric, `solved` counts answers in either alphabet, `purity` is the share of answered letters that are the
student's own, and `known` the accuracy on known lists, which nobody practises (forgetting). Learning rates were chosen on the pilot seeds
100 and 101 between 5e-4 and 1e-2, by what an arm learns: `own`, for the arms that imitate the expert `solved`. GRPO learns at none.

**Departures from the paper.** A miniature instead of Qwen2.5-7B on mathematics; the paper's exact loss, trigger and instruction are not
known to us (see `tutelage.teachers.egsr`). In a first design hard lists were longer ones instead of ones with unknown digits: there too
guided answers taught and attempts alone did not, but new lengths are learned so slowly that the skill of using hints was lost meanwhile.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.registry import replications
from tutelage.study.miniature import integer_of, one_thread, torch_or_raise
from tutelage.study.replicate import Arm, Cell, Comparison, Replication
from tutelage.teachers.egsr import Egsr
from tutelage.teachers.groups import OWN, Attempts, Groups
from tutelage.trainers.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.students.tiny_causal import TinyCausal

Digits = NDArray[np.int64]
BASE, SLOTS = 5, 5
ASK, BLANK, DIGIT = 1, 2, 3  # 0 is padding; BASE known digits from DIGIT, as many unknown ones after them, then the alphabets
MINE, THEIRS = DIGIT + 2 * BASE, DIGIT + 3 * BASE


@dataclass(frozen=True)
class Scale:
    """The size of an experiment. `pretraining` steps of 64 tasks of each skill; `passes` over each batch."""

    pretraining: int = 400
    pretraining_lr: float = 5e-3
    updates: int = 100
    prompts: int = 16
    attempts: int = 8
    passes: int = 2
    evaluate_every: int = 25


FULL = Scale()
SMOKE = Scale(pretraining=4, updates=2, prompts=4, attempts=4, evaluate_every=1)
Kind = Literal["reinforce", "imitate", "imitate_then_reinforce", "reformulated"]


# Tasks -----------------------------------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, size: int, *, unknown: float) -> Digits:
    """Lists of one to SLOTS digits, (N, SLOTS), -1 beyond a list's end. Digits from BASE on are the unknown ones, drawn with this
    probability; their values are 0 ... BASE - 1 again."""
    digit_NT = rng.integers(BASE, size=(size, SLOTS)) + BASE * (rng.random((size, SLOTS)) < unknown)
    return np.where(np.arange(SLOTS) < rng.integers(1, SLOTS + 1, size=(size, 1)), digit_NT, -1)


@lru_cache(maxsize=1)
def hard_lists() -> tuple[Digits, Digits]:
    """All full lists of unknown digits: those to train on, and every seventh by its number, which is held out."""
    place_N = np.arange(BASE**SLOTS)
    digit_NT = BASE + place_N[:, None] // BASE ** np.arange(SLOTS) % BASE
    return digit_NT[place_N % 7 > 0], digit_NT[place_N % 7 == 0]


def hard(rng: np.random.Generator, size: int) -> Digits:
    """Hard lists to train on."""
    return rng.choice(hard_lists()[0], size=size)


def solution(digit_NT: Digits, alphabet: int) -> Digits:
    """The running totals in the letters of an alphabet, 0 (padding) beyond the end."""
    return np.where(digit_NT >= 0, alphabet + digit_NT.cumsum(axis=1) % BASE, 0)


def prompts(digit_NT: Digits, hint_NT: Digits | None = None) -> Digits:
    """The list in its slots, the hint in its own (blank without one), and the request."""
    hint_NT = np.zeros_like(digit_NT) if hint_NT is None else hint_NT
    slots = [np.where(digit_NT >= 0, DIGIT + digit_NT, BLANK), np.where(hint_NT > 0, hint_NT, BLANK)]
    return np.concatenate([*slots, np.full((len(digit_NT), 1), ASK)], axis=1)


def guide(prompt: Sequence[int], hint: Sequence[int]) -> list[int]:
    """A prompt with the hint in its slots, the last letter in the slot of the list's last digit."""
    first = SLOTS - list(prompt[:SLOTS]).count(BLANK) - len(hint)
    return [*prompt[: SLOTS + first], *hint, *prompt[SLOTS + first + len(hint) :]]


def solved(answer_NGT: Tensor, digit_NT: Digits) -> NDArray[np.float64]:
    """1 where an answer (without what stands beyond the list's end) is right in either alphabet, (N, G)."""
    answers = answer_NGT.numpy()
    right = [(answers == solution(digit_NT, alphabet)[:, None]).all(axis=2) for alphabet in (MINE, THEIRS)]
    return (right[0] | right[1]).astype(np.float64)


# The student -----------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def pretrained(seed: int, size: Scale) -> TinyCausal:
    """The student with its two skills; all arms of a seed share it."""
    torch = torch_or_raise()
    from tutelage.students.tiny_causal import TinyCausal

    child = np.random.SeedSequence(seed).spawn(3)[0]
    rng = np.random.default_rng(child)
    student = TinyCausal(vocabulary=DIGIT + 4 * BASE, context=3 * SLOTS + 1, seed=integer_of(child))
    optimizer = torch.optim.Adam(student.parameters(), lr=size.pretraining_lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, size.pretraining_lr, total_steps=size.pretraining, pct_start=0.1)
    with one_thread():
        for _ in range(size.pretraining):
            known_NT, any_NT = draw(rng, 64, unknown=0.0), draw(rng, 64, unknown=0.5)
            prompt_NP = np.concatenate([prompts(known_NT), prompts(any_NT, solution(any_NT, THEIRS))])
            loss = _nll(student, prompt_NP, solution(np.concatenate([known_NT, any_NT]), MINE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student


def _nll(student: TinyCausal, prompt_NP: Digits, answer_NT: Digits) -> Tensor:
    torch = torch_or_raise()

    return student.nll(torch.from_numpy(prompt_NP), torch.from_numpy(answer_NT))


# One lesson ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Classroom:
    """A student being taught: what a lesson needs and what it has cost."""

    student: TinyCausal
    optimizer: Any
    lr: float
    generator: Any
    rng: np.random.Generator
    size: Scale
    ledger: Ledger

    def step(self, loss: Tensor) -> None:
        """One optimiser step: gradient norm at most 1, learning rate warmed up over the first 10 updates."""
        torch = torch_or_raise()

        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.ledger.updates + 1) / 10)
        self.optimizer.step()

    def attempt(self, prompt_NP: Digits, digit_NT: Digits, attempts: int) -> tuple[Tensor, NDArray[np.float64]]:
        """Answers (N, G, T) and whether they are right (N, G)."""
        torch = torch_or_raise()

        answer_NGT, _ = self.student.sample(torch.from_numpy(prompt_NP), attempts, self.generator, tokens=SLOTS)
        answer_NGT *= torch.from_numpy(digit_NT >= 0).unsqueeze(1)
        self.ledger.rollouts += len(prompt_NP) * attempts
        self.ledger.tokens += int((answer_NGT > 0).sum())
        return answer_NGT, solved(answer_NGT, digit_NT)

    def imitate(self, prompt_NP: Digits, answer_NT: Digits) -> None:
        """Supervised passes over a batch."""
        self.ledger.training_tokens += int((answer_NT > 0).sum())
        for _ in range(self.size.passes if len(answer_NT) else 0):
            self.step(_nll(self.student, prompt_NP, answer_NT))

    def reinforce(self, teacher: Egsr | None, attempts: int) -> None:
        """GRPO passes over a batch of groups; with a teacher, over the groups it has mixed."""
        torch = torch_or_raise()
        from tutelage.objectives import objective

        digit_NT = hard(self.rng, self.size.prompts)
        prompt_NP = prompts(digit_NT)
        answer_NGT, reward_NG = self.attempt(prompt_NP, digit_NT, attempts)
        mixed, guided = self.helped(teacher, prompt_NP, digit_NT, reward_NG)
        row_R = np.flatnonzero(mixed.guided_NG.ravel() != OWN)
        answer_BT, prompt = answer_NGT.flatten(0, 1), torch.from_numpy(prompt_NP)
        if len(row_R):
            answer_BT[row_R] = guided[0][mixed.guided_NG.ravel()[row_R]]
        answer_NGT = answer_BT.view_as(answer_NGT)
        loss = objective("grpo", kl_coef=0.0, aggregation="token_mean")
        batch = {"mask_BT": answer_BT > 0, "advantage_B": loss.advantages(torch.from_numpy(mixed.reward_NG))}
        counts = loss.denominators_of(batch)
        with torch.no_grad():
            old_BT = self.student.logp(prompt, answer_NGT).flatten(0, 1)
        if len(row_R) and mixed.ratio == "importance":
            old_BT[row_R] = guided[1][mixed.guided_NG.ravel()[row_R]]
        self.ledger.training_tokens += int(batch["mask_BT"].sum())
        for _ in range(self.size.passes if bool(batch["advantage_B"].any()) else 0):
            logp_BT = self.student.logp(prompt, answer_NGT).flatten(0, 1)
            if mixed.ratio == "none":
                old_BT[row_R] = logp_BT.detach()[row_R]
            self.step(loss(batch | {"logp_BT": logp_BT, "old_logp_BT": old_BT}, denominators=counts)[0])

    def helped(
        self, teacher: Egsr | None, prompt_NP: Digits, digit_NT: Digits, reward_NG: NDArray[np.float64]
    ) -> tuple[Groups, list[Tensor]]:
        """The groups as the teacher leaves them, and the guided answers with their log-probabilities under the guided prompt."""
        torch = torch_or_raise()

        guided: list[Tensor] = []

        def ask(index_M: Digits, prompt_M: Sequence[Any], attempts: int) -> Attempts:
            prompt_MP = np.array(prompt_M)
            answer_MKT, reward_MK = self.attempt(prompt_MP, digit_NT[index_M], attempts)
            with torch.no_grad():
                logp_MKT = self.student.logp(torch.from_numpy(prompt_MP), answer_MKT)
            guided.extend((answer_MKT.flatten(0, 1), logp_MKT.flatten(0, 1)))
            self.ledger.guided_rollouts += reward_MK.size
            return Attempts(reward_MK, reward_MK, np.full(reward_MK.shape, answer_MKT.shape[2]), answer_MKT.tolist())

        working_NT = solution(digit_NT, THEIRS)
        texts = [[letter for letter in row if letter] for row in working_NT.tolist()]
        tasks = [{"prompt": p, "solution": e, "answer": e[-1:]} for p, e in zip(prompt_NP.tolist(), texts, strict=True)]
        groups = Groups.of(tasks, reward_NG, reward_NG, lesson=self.ledger.lessons, ask=ask)
        return (groups if teacher is None else teacher.intervene(groups)), guided

    def reformulate(self, teacher: Egsr) -> None:
        """Supervised passes over the guided answers that the teacher accepts; without own attempts every task gets help."""
        digit_NT = hard(self.rng, self.size.prompts)
        prompt_NP = prompts(digit_NT)
        mixed, guided = self.helped(teacher, prompt_NP, digit_NT, np.zeros((len(digit_NT), 1)))
        accepted = mixed.guided_NG[:, 0] != OWN
        self.imitate(prompt_NP[accepted], guided[0][mixed.guided_NG[accepted, 0]].numpy())


def evaluate(student: TinyCausal) -> dict[str, float]:
    """Sampled answers to held-out hard lists and to known ones, from prompts without a hint."""
    torch = torch_or_raise()

    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def right(digit_NT: Digits) -> tuple[float, float, float]:
        """Shares of answers right in the student's alphabet and in the expert's, and of letters that are the student's."""
        prompt_NP = prompts(digit_NT)
        assert (prompt_NP[:, SLOTS : 2 * SLOTS] == BLANK).all(), "a hint leaked into the evaluation"
        answer_NT = student.sample(torch.from_numpy(prompt_NP), 1, generator, tokens=SLOTS)[0][:, 0].numpy() * (digit_NT >= 0)
        mine, theirs = (float((answer_NT == solution(digit_NT, alphabet)).all(axis=1).mean()) for alphabet in (MINE, THEIRS))
        letters = answer_NT[digit_NT >= 0]
        return mine, theirs, float(((letters >= MINE) & (letters < MINE + BASE)).mean())

    own, theirs, purity = right(hard_lists()[1])
    return {"own": own, "solved": own + theirs, "purity": purity, "known": right(draw(rng, 512, unknown=0.0))[0]}


# Arms ------------------------------------------------------------------------------------------------------------------------------------


def teach(seed: int, size: Scale, kind: Kind, lr: float, teacher: Egsr | None, more: int) -> Cell:
    """Teach the pre-trained student of `seed`. more: attempts per task beyond the scale's."""
    torch = torch_or_raise()
    data, rollouts = np.random.SeedSequence(seed).spawn(3)[1:]
    student = copy.deepcopy(pretrained(seed, size))
    optimizer = torch.optim.Adam(student.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    generator = torch.Generator().manual_seed(integer_of(rollouts))
    room = Classroom(student, optimizer, lr, generator, np.random.default_rng(data), size, Ledger())
    curve: list[dict[str, Any]] = []
    seconds = 0.0
    with one_thread():
        for step in range(size.updates + 1):
            if step % size.evaluate_every == 0 or step == size.updates:
                curve.append({"step": step, **asdict(room.ledger), "seconds": seconds, **evaluate(student)})
            if step == size.updates:
                break
            start = time.process_time()
            if kind == "reformulated":
                assert teacher is not None
                room.reformulate(teacher)
            elif kind == "imitate" or (kind == "imitate_then_reinforce" and step < size.updates // 2):
                digit_NT = hard(room.rng, size.prompts)
                room.imitate(prompts(digit_NT), solution(digit_NT, THEIRS))
            else:
                room.reinforce(teacher, size.attempts + more)
            room.ledger.lessons += 1
            room.ledger.updates += 1
            seconds += time.process_time() - start
    names = ("own", "solved", "purity", "known")
    cost = {**asdict(room.ledger), "seconds": seconds}
    return {"score": {name: curve[-1][name] for name in names}, "curve": {key: [p[key] for p in curve] for key in curve[0]}, "cost": cost}


def arm(about: str, *, kind: Kind = "reinforce", lr: float, teacher: dict[str, Any] | None = None, more: int = 0) -> Arm:
    """An arm of the replication. teacher: EGSR's parameters, or None."""

    def run(seed: int, smoke: bool) -> Cell:
        egsr = None if teacher is None else Egsr(template=guide, **teacher)
        return teach(seed, SMOKE if smoke else FULL, kind, lr, egsr, more)

    return Arm(run=run, about=about, settings={"kind": kind, "lr": lr, "teacher": teacher, "attempts": FULL.attempts + more})


@replications.register("egsr")
def egsr() -> Replication:
    """On tasks that the student never solves, answers it wrote itself with an expert's help teach it, in its own style; GRPO cannot.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2505.08364",
        metric="own",
        metric_about="sampled accuracy on held-out hard lists in the student's own letters, without a hint, after the last update",
        budget=f"{FULL.updates} updates of {FULL.prompts} hard lists; groups of 8 and at most one guided answer for each, or groups of 9",
        settings={**asdict(FULL), "objective": "grpo", "kl_coef": 0.0, "aggregation": "token_mean", "optimizer": "Adam"},
        arms={
            "grpo": arm("GRPO with nine attempts", lr=1e-3, more=1),
            "sft": arm("supervised training on the expert's text", kind="imitate", lr=3e-3),
            "sft_grpo": arm(
                "the same for half of the updates, then GRPO with nine attempts", kind="imitate_then_reinforce", lr=3e-3, more=1
            ),
            "egsr": arm("EGSR, ratio as if on-policy", lr=2e-3, teacher={}),
            "egsr_importance": arm("EGSR, true importance ratio", lr=2e-3, teacher={"ratio": "importance"}),
            "egsr_none": arm("EGSR, no ratio", lr=2e-3, teacher={"ratio": "none"}),
            "egsr_answer": arm("EGSR, shown the last total only", lr=2e-3, teacher={"hint": "answer"}),
            "reformulated": arm(
                "supervised training on accepted guided answers, one for each task", kind="reformulated", lr=1e-3, teacher={}
            ),
        },
        comparisons=(
            Comparison(method="egsr", baseline="grpo"),
            Comparison(method="egsr", baseline="sft"),
            Comparison(method="egsr", baseline="sft", metric="solved", note="in either style"),
            Comparison(method="egsr", baseline="sft", metric="known", note="on known digits"),
            Comparison(method="egsr", baseline="sft_grpo"),
            Comparison(method="egsr", baseline="egsr_importance"),
            Comparison(method="egsr", baseline="egsr_none"),
            Comparison(method="egsr", baseline="egsr_answer"),
            Comparison(method="egsr", baseline="reformulated"),
        ),
    )
