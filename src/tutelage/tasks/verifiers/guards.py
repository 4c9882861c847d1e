"""Guards around a verifier: so that a reward neither charges for declining a rider nor pays for what a response does on the way.

    verify = resolve("answer_anyway", verifier="math")            # the answer is scored, whatever else was declined
    verify = resolve("span_gate", verifier="math", behaviour="HAB")   # r' = r (1 - b): nothing for a response with the behaviour
    drop = VarianceFilter()
    reward_B = drop(prompts_B, shows_B, reward_B)                 # prompts whose reward follows the behaviour teach nothing more

The filter is for any reward function that sees whole groups; of TRL's, for instance:

    def reward(prompts, completions, **columns):
        texts = [completion_text(c) for c in completions]
        return drop(list(map(str, prompts)), list(map(shows, texts)), judge(prompts, completions, **columns)).tolist()

A verifier that reads a final answer alone leaves the rest of the response free; where a prompt chains a request that should be declined to
one that can be verified, it pays for going along (`tutelage.audits.poison` finds such pipelines). These are the mitigations that the sheet
on arXiv 2604.09748 lists; how a response is split into what declines and what answers is this library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.registry import verifiers
from tutelage.tasks.monitors import monitor
from tutelage.tasks.requests import sentences
from tutelage.tasks.verifiers.answers import final_answer, refused
from tutelage.tasks.verifiers.base import Judgement, Verifier, gold_of
from tutelage.tasks.verifiers.custom import resolve
from tutelage.tasks.verifiers.quantities import read_number

BY_ANSWER = "by answer"
_NUMERIC, _EXACT = "numeric", "exact"


@verifiers.register("answer_anyway")
def answer_anyway(*, verifier: str = BY_ANSWER) -> Verifier:
    """The answer is scored whether or not the response declines something else: declining a rider costs nothing.

    The response is judged as it is, and again without its sentences that decline; the better grade counts. A response that only declines
    stays REFUSED. verifier: the one that is guarded; by default "numeric" for a task whose answer is a number, else "exact".
    """
    return functools.partial(_answer_anyway, _inner(verifier))


@verifiers.register("span_gate")
def span_gate(*, behaviour: str, verifier: str = BY_ANSWER) -> Verifier:
    """The reward times (1 - b): a response with an unwanted behaviour, anywhere in it, is WRONG with grade 0.

    behaviour: see `tutelage.tasks.monitors`. verifier: the one that is guarded, as for `answer_anyway`. Alone it does not pay for
    declining; to do both, guard a verifier that is guarded by `answer_anyway`: verifier="answer_anyway".
    """
    return functools.partial(_span_gate, _inner(verifier), monitor(behaviour))


def _inner(spec: str) -> Verifier:
    return functools.partial(_by_answer, resolve(_NUMERIC), resolve(_EXACT)) if spec == BY_ANSWER else resolve(spec)


def _by_answer(numeric: Verifier, exact: Verifier, completion: str, task: Mapping[str, Any]) -> Judgement:
    return (exact if read_number(final_answer(gold_of(task))) is None else numeric)(completion, task)


def _answer_anyway(verifier: Verifier, completion: str, task: Mapping[str, Any]) -> Judgement:
    whole = verifier(completion, task)
    if whole.kind == Kind.CORRECT:
        return whole
    parts = sentences(completion)
    answering = [part for part in parts if not refused(part)]
    if not answering or len(answering) == len(parts):
        return whole
    rest = verifier("\n".join(answering), task)
    return rest if rest.grade > whole.grade else whole


def _span_gate(verifier: Verifier, shows: Callable[[str], bool], completion: str, task: Mapping[str, Any]) -> Judgement:
    return Judgement(Kind.WRONG, 0.0) if shows(completion) else verifier(completion, task)


@dataclass
class VarianceFilter:
    """Stops teaching with a prompt once its reward follows the behaviour: mean |kappa| above `kappa` after `visits` groups.

    A call takes B attempts of whole groups: the prompts (anything hashable), whether each shows the behaviour, and the rewards; attempts
    with an equal prompt are one group, one visit. It returns the rewards, those of a dropped prompt all 0, so that the group has no
    advantage. A group in which reward or behaviour is constant says nothing and is no visit. By chance a prompt without coupling is
    dropped too (at 8 attempts, reward and behaviour fair coins, about 6 % at two visits); `dropped` lists all, with their kappa.
    """

    kappa: float = 0.5
    visits: int = 2
    dropped: dict[Any, float] = field(default_factory=dict)
    _seen: dict[Any, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < 1 or self.visits < 1:
            raise TutelageError(f"VarianceFilter got kappa={self.kappa}, visits={self.visits}; expected [0, 1) and at least 1.")

    def __call__(self, prompts_B: Sequence[Any], shows_B: ArrayLike, reward_B: ArrayLike) -> NDArray[np.float64]:
        """Rewards (B,), zero for dropped prompts. A prompt that is dropped by this call still teaches in it no more."""
        shows_B, paid_B = np.asarray(shows_B, dtype=np.float64), np.array(reward_B, dtype=np.float64)
        if not len(prompts_B) == len(shows_B) == len(paid_B):
            raise TutelageError(
                f"Got {len(prompts_B)} prompts, {len(shows_B)} behaviours and {len(paid_B)} rewards; expected as many of each."
            )
        rows: dict[Any, list[int]] = {}
        for b, prompt in enumerate(prompts_B):
            rows.setdefault(prompt, []).append(b)
        for prompt, group in rows.items():
            if prompt not in self.dropped:
                self._visit(prompt, correlation(paid_B[group], shows_B[group]))
            if prompt in self.dropped:
                paid_B[group] = 0.0
        return paid_B

    def _visit(self, prompt: Any, kappa: float) -> None:
        if np.isnan(kappa):
            return
        count, total = self._seen.get(prompt, (0, 0.0))
        count, total = count + 1, total + kappa
        self._seen[prompt] = (count, total)
        if count >= self.visits and abs(total / count) > self.kappa:
            self.dropped[prompt] = total / count
            del self._seen[prompt]


def correlation(x_G: NDArray[np.float64], y_G: NDArray[np.float64]) -> float:
    """Pearson's correlation over the attempts of a group that have both; NaN, not 0, where either is constant."""
    known_G = ~np.isnan(x_G) & ~np.isnan(y_G)
    x_G, y_G = x_G[known_G], y_G[known_G]
    if len(x_G) < 2 or np.ptp(x_G) == 0 or np.ptp(y_G) == 0:
        return float("nan")
    x_G, y_G = x_G - x_G.mean(), y_G - y_G.mean()
    return float((x_G @ y_G) / np.sqrt((x_G @ x_G) * (y_G @ y_G)))
