"""One lesson in a language-model engine: propose, roll out, observe, admit. Rank 0 decides; every rank generates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum, Wants
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.trainers import _intervention, _signals
from tutelage.trainers._batches import Rollouts
from tutelage.trainers._rollouts import aside, attempts_in_words, check_judgement, joined_columns
from tutelage.trainers._sync import decide
from tutelage.trainers.ledger import Attempts, Lesson

if TYPE_CHECKING:
    from tutelage.trainers.trl import GRPOLessons, Lessons

T = TypeVar("T")


@dataclass
class Taught:
    """A lesson as every rank knows it: the student's rollouts, what a teacher changed in them, the columns (N, G) of the groups as they
    are now, and which of them may train."""

    rollouts: Rollouts
    help: _intervention.Help
    columns: dict[str, NDArray[Any]]
    admitted_N: NDArray[np.bool_]


def ask(trainer: Lessons, choose: Callable[[], T]) -> T:
    """Let the curriculum choose on rank 0; the time it takes is kept in `curriculum_seconds`."""

    def timed() -> T:
        began = time.perf_counter()
        try:
            return choose()
        finally:
            trainer.curriculum_seconds += time.perf_counter() - began

    return decide(timed)


def teach(trainer: GRPOLessons) -> Taught:
    """One lesson: a whole generation batch of fresh proposals."""
    groups = trainer.groups_per_batch
    rows_N = ask(trainer, lambda: trainer.curriculum.propose(groups))
    rollouts = trainer.roll_out(rows_N, trainer.num_generations)
    check_judgement(trainer, rollouts.columns)
    trainer.ledger.lessons += 1
    trainer.ledger.rollouts += groups * trainer.num_generations
    trainer.ledger.tokens += int(rollouts.columns["length"].sum())
    own: dict[str, Any] = {name: value for name, value in rollouts.columns.items() if name != "ended"}
    wordy = any(getattr(callback, "needs_attempts", False) for callback in trainer.lesson_callbacks)
    attempts = attempts_in_words(trainer, rows_N, rollouts) if wordy else None
    names = _signals.lesson_names(trainer.curriculum)
    signals = {"signals": _signals.of_rollouts(trainer, rollouts, names)} if names else {}
    if not trainer.intervenes:
        return Taught(rollouts, _intervention.Help(), own, learn(trainer, rows_N, own | signals, attempts=attempts))
    help = _intervention.intervene(trainer, rows_N, rollouts)
    mixed = _intervention.mixed_columns(trainer, rollouts, help)
    return Taught(rollouts, help, mixed, learn(trainer, rows_N, own | signals, mixed | signals, attempts))


def learn(
    trainer: Lessons,
    rows_N: NDArray[np.int64],
    fields: dict[str, Any],
    mixed: dict[str, Any] | None = None,
    attempts: Attempts | None = None,
) -> NDArray[np.bool_]:
    """Show a lesson's outcomes to the curriculum, and then to the callbacks; which groups may train, on every rank.

    fields: of the student's own attempts, which are observed. mixed: of the groups as a teacher left them, which are admitted or not.
    """
    cur = trainer.curriculum

    def show() -> NDArray[np.bool_]:
        step = trainer.state.global_step
        outcomes = Outcomes.of(cur.pool, rows_N, step=step, **fields)
        cur.observe(outcomes)
        admitted_N = np.asarray(cur.admit(outcomes if mixed is None else Outcomes.of(cur.pool, rows_N, step=step, **mixed)))
        if admitted_N.shape != rows_N.shape or admitted_N.dtype != bool:
            raise TutelageError(
                f"{type(cur).__name__}.admit returned {admitted_N.dtype} of shape {admitted_N.shape}; expected bool, {rows_N.shape}."
            )
        lesson = Lesson(trainer.state.global_step, rows_N, outcomes, admitted_N, trainer.ledger.copy(), attempts)
        began = time.perf_counter()
        for callback in trainer.lesson_callbacks:
            callback(lesson)
        trainer.curriculum_seconds -= time.perf_counter() - began  # theirs, not the curriculum's
        return admitted_N

    return ask(trainer, show)


def answer_wants(trainer: GRPOLessons) -> None:
    """Measure what the curriculum wants to know before it proposes. Nothing of it trains; all of it counts."""
    wants = wanted(trainer)
    if wants is None:
        return
    strange = sorted(set(wants.signals) - _signals.OF_PROMPTS)
    if strange:
        raise TutelageError(
            f"The curriculum {trainer.curriculum.name!r} wants the signals {', '.join(strange)}; GRPO measures attempts, and of prompts "
            f"{', '.join(sorted(_signals.OF_PROMPTS))}. trl.SFTTrainer measures loss and entropy."
        )
    rows_N = np.asarray(wants.rows_N, dtype=np.int64)
    fields: dict[str, Any] = _attempted(trainer, rows_N, wants.attempts) if wants.attempts else {}
    if wants.signals:
        fields["signals"] = _signals.of_prompts(trainer, rows_N, wants.signals)
    tell_probe(trainer, wants, fields)


def _attempted(trainer: GRPOLessons, rows_N: NDArray[np.int64], attempts: int) -> dict[str, NDArray[Any]]:
    """What `attempts` completions of each row show; they are entered in the ledger."""
    joined = joined_columns(aside(trainer, rows_N, attempts))
    check_judgement(trainer, joined)
    trainer.ledger.probe_rollouts += joined["length"].size
    trainer.ledger.rollouts += joined["length"].size
    trainer.ledger.tokens += int(joined["length"].sum())
    return {name: value for name, value in joined.items() if name not in ("ended", "advantage")}


def wanted(trainer: Lessons) -> Wants | None:
    """What the curriculum wants measured now; None, without asking, where it never wants anything."""
    if type(trainer.curriculum).wants is Curriculum.wants:
        return None
    wants = ask(trainer, trainer.curriculum.wants)
    return None if wants is None or not len(wants.rows_N) else wants


def tell_probe(trainer: Lessons, wants: Wants, fields: dict[str, Any]) -> None:
    """Answer a curriculum's wish."""
    cur = trainer.curriculum

    def show() -> None:
        cur.observe(Outcomes.of(cur.pool, wants.rows_N, step=trainer.state.global_step, **fields), probe=True)

    ask(trainer, show)
