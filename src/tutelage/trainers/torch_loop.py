"""GRPO for students that are not language models: one plain torch loop, nothing clever.

    step:  propose → sample → verify → observe → admit → (refill) → one gradient step on exactly the groups that were admitted

On-policy: every lesson is sampled by the weights that it trains, one optimiser step per lesson. The loop owns the refill: while groups
are missing it asks for as many more as are missing, up to `refill_cap` batches, and then does what `on_short` says.

Array suffixes: `N` tasks, `G` attempts, `T` slots or tokens of an answer, `B` = N G answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError, missing_extra

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.objectives.policy_gradient import PolicyGradient
from tutelage.outcomes import Outcomes
from tutelage.trainers.ledger import Ledger

OnShort = Literal["pad", "partial", "raise"]
Verify = Callable[[NDArray[np.int64], Tensor], NDArray[np.float64]]


class Student(Protocol):
    """What the loop needs of a student; rows are rows of the curriculum's pool."""

    def sample(self, rows_N: NDArray[np.int64], attempts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Answers (N, G, T) and the mask of the tokens that count, without gradient."""

    def logp(self, rows_N: NDArray[np.int64], token_NGT: Tensor) -> Tensor:
        """Log-probability of each token in nats (N, G, T), with gradient."""


@runtime_checkable
class Measured(Protocol):
    """What a student may offer beside: `signals` of rows, (N,) each, of those names that are in `signal_names`."""

    signal_names: frozenset[str]

    def signals(self, rows_N: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """The named signals as they are now, without gradient."""


@dataclass
class Run:
    """A finished run: what it has spent, and what was seen on the way, one entry per evaluation.

    seconds: processor time of this process without evaluation, so that a busy machine makes no method look slow. skipped: steps without
    any group to train on. dead: groups trained on whose answers all got the same reward, and so carried no gradient. curve: per evaluation
    `step`, the numbers of `cost` and what `evaluate` returned. taught_XA: groups trained on, per arm, since the evaluation before.
    """

    ledger: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0
    skipped: int = 0
    dead: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    taught_XA: list[NDArray[np.int64]] = field(default_factory=list)

    def cost(self) -> dict[str, float]:
        """The ledger, `seconds`, `skipped` and `dead`, as they stand now."""
        return {**asdict(self.ledger), "seconds": self.seconds, "skipped": self.skipped, "dead": self.dead}


class _Groups(NamedTuple):
    rows_N: NDArray[np.int64]
    token_NGT: Tensor
    mask_NGT: Tensor
    reward_NG: NDArray[np.float64]

    def take(self, index_N: NDArray[Any]) -> _Groups:
        index = torch.from_numpy(index_N)
        return _Groups(self.rows_N[index_N], self.token_NGT[index], self.mask_NGT[index], self.reward_NG[index_N])


def train(
    student: Student,
    curriculum: Curriculum,
    verify: Verify,
    objective: PolicyGradient,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator,
    updates: int = 200,
    batch: int = 32,
    attempts: int = 8,
    refill_cap: float = 4.0,
    on_short: OnShort = "partial",
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    evaluate_every: int = 20,
) -> Run:
    """Teach `student` for `updates` steps of `batch` groups of `attempts` answers.

    Args:
        verify: rewards (N, G) in [0, 1] of answers (N, G, T); what is verified is what is optimised.
        objective: of the GRPO family without a reference model (`kl_coef=0`); its advantages are what the curriculum observes.
        generator: of the answers' randomness.
        refill_cap: at most this many times `batch` groups are sampled per step (only curricula that filter ever refill).
        on_short: when the cap leaves groups missing, "raise", train on the "partial" batch (none at all: the step is skipped), or "pad"
        with
            rejected groups, the latest first.
        evaluate: called before the first step, after every `evaluate_every`-th and after the last; its time is not counted.

    Raises:
        TutelageError: the cap was reached with `on_short="raise"`, or the curriculum wants or needs signals that the student does not
        offer (see `Measured`).
    """
    if objective.kl_coef or objective.per_token:
        raise TutelageError("The torch loop keeps no reference model and one advantage per answer: use kl_coef=0 and a group advantage.")
    needed = tuple(sorted(c.removeprefix("signals/") for c in curriculum.needs if c.startswith("signals/")))
    _check_signals(student, curriculum, "needs", needed)
    run, loop = Run(), _Lesson(student, curriculum, verify, objective, attempts, generator, needed)
    taught_A = np.zeros(len(curriculum.pool.arms()), dtype=np.int64)
    for step in range(updates + 1):
        if evaluate is not None and (step % evaluate_every == 0 or step == updates):
            run.curve.append({"step": step, **run.cost(), **evaluate()})
            run.taught_XA.append(taught_A.copy())
            taught_A[:] = 0
        if step == updates:
            break
        start = time.process_time()
        loop.probe(step, run.ledger)
        groups = loop.fill(step, run.ledger, batch, int(refill_cap * batch), on_short)
        if len(groups.rows_N) == 0:
            run.skipped += 1
        else:
            optimizer.zero_grad()
            loop.loss(groups).backward()
            optimizer.step()
            run.ledger.updates += 1
            run.dead += int((groups.reward_NG == groups.reward_NG[:, :1]).all(axis=1).sum())
            taught_A += np.bincount(curriculum.pool.arms().arm_N[groups.rows_N], minlength=len(taught_A))
        run.seconds += time.process_time() - start
    return run


class _Lesson(NamedTuple):
    """One step's sampling and loss, with what stays the same from step to step."""

    student: Student
    curriculum: Curriculum
    verify: Verify
    objective: PolicyGradient
    attempts: int
    generator: torch.Generator
    needed: tuple[str, ...]

    def roll_out(self, rows_N: NDArray[np.int64], attempts: int, step: int, ledger: Ledger) -> tuple[_Groups, Outcomes]:
        """Sample and verify answers to these rows; the rollouts are entered in the ledger."""
        token_NGT, mask_NGT = self.student.sample(rows_N, attempts, self.generator)
        reward_NG = self.verify(rows_N, token_NGT)
        ledger.rollouts += reward_NG.size
        ledger.tokens += int(mask_NGT.sum())
        advantage_B = self.objective.advantages(torch.from_numpy(reward_NG))
        length_NG = mask_NGT.sum(dim=2).numpy()
        advantage_NG = advantage_B.view(reward_NG.shape).numpy()
        columns = {"solved": reward_NG, "advantage": advantage_NG, "length": length_NG}
        outcomes = Outcomes.of(self.curriculum.pool, rows_N, step=step, **columns, signals=self.measured(rows_N, self.needed))
        return _Groups(rows_N, token_NGT, mask_NGT, reward_NG), outcomes

    def measured(self, rows_N: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        return self.student.signals(rows_N, names) if names and isinstance(self.student, Measured) else {}

    def probe(self, step: int, ledger: Ledger) -> None:
        """Answer the curriculum's wish to measure rows before it proposes."""
        wanted = self.curriculum.wants()
        if wanted is None:
            return
        _check_signals(self.student, self.curriculum, "wants", wanted.signals)
        signals = self.measured(wanted.rows_N, wanted.signals)
        if wanted.attempts:
            _, outcomes = self.roll_out(wanted.rows_N, wanted.attempts, step, ledger)
            outcomes = replace(outcomes, signals={**outcomes.signals, **signals})
        else:
            outcomes = Outcomes.of(self.curriculum.pool, wanted.rows_N, step=step, signals=signals)
        ledger.probe_rollouts += len(wanted.rows_N) * wanted.attempts
        self.curriculum.observe(outcomes, probe=True)

    def fill(self, step: int, ledger: Ledger, batch: int, cap: int, on_short: OnShort) -> _Groups:
        """Groups to train on: `batch` of them, unless `cap` groups have been sampled before."""
        cap = max(cap, batch)
        kept: list[_Groups] = []
        spare: list[_Groups] = []
        missing, left = batch, cap
        while missing > 0 and left > 0:
            asked = min(missing, left)
            groups, outcomes = self.roll_out(self.curriculum.propose(asked), self.attempts, step, ledger)
            ledger.lessons += 1
            self.curriculum.observe(outcomes)
            keep_N = self.curriculum.admit(outcomes)
            kept.append(groups.take(keep_N))
            spare.append(groups.take(~keep_N))
            missing, left = missing - int(keep_N.sum()), left - asked
        if missing > 0 and on_short == "raise":
            raise TutelageError(
                f"Step {step}: only {batch - missing} of {batch} groups were admitted among {cap} sampled. The tasks are too easy or "
                "too hard for the filter; widen it, raise refill_cap, or choose on_short='partial' or 'pad'."
            )
        if missing > 0 and on_short == "pad":
            rejected = _joined(spare)
            kept.append(rejected.take(np.arange(len(rejected.rows_N))[-missing:]))
        groups = _joined(kept)
        ledger.rejected_rollouts += self.attempts * (cap - left - len(groups.rows_N))
        ledger.training_tokens += int(groups.mask_NGT.sum())
        return groups

    def loss(self, groups: _Groups) -> Tensor:
        """The objective's loss of one whole step; on-policy, the sampling policy is the trained one."""
        logp_BT = self.student.logp(groups.rows_N, groups.token_NGT).flatten(0, 1)
        batch = {
            "logp_BT": logp_BT,
            "old_logp_BT": logp_BT.detach(),
            "mask_BT": groups.mask_NGT.flatten(0, 1),
            "advantage_B": self.objective.advantages(torch.from_numpy(groups.reward_NG)),
        }
        return self.objective(batch, denominators=self.objective.denominators_of(batch))[0]


def _check_signals(student: Student, curriculum: Curriculum, verb: str, names: Sequence[str]) -> None:
    """Raise unless the student offers all of these signals."""
    offered = student.signal_names if isinstance(student, Measured) else frozenset()
    missing = sorted(set(names) - offered)
    if missing:
        raise TutelageError(
            f"The curriculum {curriculum.name!r} {verb} the signals {', '.join(missing)}; {type(student).__name__} offers "
            f"{', '.join(sorted(offered)) or 'none'}. Give the student `signal_names` and `signals(rows_N, names)`, or use a curriculum "
            "without those signals."
        )


def _joined(parts: list[_Groups]) -> _Groups:
    if len(parts) == 1:
        return parts[0]
    rows, tokens, masks, rewards = zip(*parts, strict=True)
    return _Groups(np.concatenate(rows), torch.cat(tokens), torch.cat(masks), np.concatenate(rewards))
