"""EGSR, expert-guided self-reformulation: where the student fails, let it solve the task with the expert's help, in its own words.

For a task q with an expert solution e (Zhang et al., EMNLP 2025, arXiv 2505.08364, section on EGSR):

1. the student's group o_1 … o_G ~ π(·|q) shows no success;
2. guided answers o' ~ π(·|q, e) are sampled with an instruction to use e and to solve the task in one's own words, and verified;
3. one that is right takes the place of a failed answer: the group has a success, hence advantages;
4. the update is that of log π(o'|q), *without* e in the prompt: the model learns to write by itself what it could write with help.

o' is the student's own writing, so log π(o'|q) is far above log π(e|q): less surprise, a smaller change for the same information. The
`surprise_gap` among the metrics measures it: mean NLL per token of e given q, less that of o' given q.

The crux is the ratio ρ' of the guided answer's tokens in the policy-gradient loss. The paper's exact loss is not known to us; all three
readings are here, and the first is the default:

| `ratio` | ρ' | |
|---|---|---|
| `on_policy` | π(o'|q) / π_old(o'|q) | as if drawn without help: 1 at first, clipped as usual, biased |
| `importance` | π(o'|q) / π_old(o'|q, e) | unbiased, but tiny where a token is surprising without help, and the gradient with it |
| `none` | 1, gradient A' ∇ log π(o'|q) | weighted likelihood of self-written text, never clipped |

Reconstructed, for the source does not say: the trigger, one guided answer per group, which failed answer gives way, the instruction.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Number
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown
from tutelage.registry import teachers
from tutelage.teachers.groups import OWN, Attempts, Float, Groups, Ratio

Int = NDArray[np.int64]
Hint = Literal["solution", "answer"]
Replace = Literal["worst", "random"]
TEMPLATES: dict[str, str] = {
    "solution": (
        "{prompt}\n\nHere is a worked solution to help you:\n{hint}\n\nUnderstand it, then solve the problem yourself, step by step and in "
        "your own words. Do not copy or mention the solution. Give the final answer in the form that the problem asks for."
    ),
    "answer": (
        "{prompt}\n\nTo help you: the correct final answer is {hint}.\n\nSolve the problem yourself, step by step and in your own words, "
        "so that your reasoning leads there. Do not mention that you were told. Give the final answer in the form that the problem asks "
        "for."
    ),
}
_FIELD = re.compile(r"\{(prompt|hint)\}")
_WORD = re.compile(r"\w+|[^\w\s]")


def inject(
    reward_G: Float, solved_G: NDArray[np.bool_], guided_reward: float, *, replace: Replace = "worst", rng: np.random.Generator
) -> tuple[Float, int]:
    """A group's rewards (G,) with a guided answer's in the place of a failed one, and that place.

    replace: "worst", the failed answer with the lowest reward (unscorable ones first, of equals the last), or "random", any failed one.
    Raises `TutelageError` where none failed.
    """
    failed = np.flatnonzero(~solved_G)
    if not len(failed):
        raise TutelageError("A guided answer takes the place of a failed one, and none of this group failed; leave such groups alone.")
    if replace == "random":
        place = int(rng.choice(failed))
    else:
        reward = np.where(np.isnan(reward_G[failed]), -np.inf, reward_G[failed])
        place = int(failed[np.flatnonzero(reward == reward.min())[-1]])
    mixed_G = reward_G.copy()
    mixed_G[place] = guided_reward
    return mixed_G, place


def overlap(answer: Any, expert: Any, *, ngram: int = 4) -> float:
    """The share of an answer's n-grams that the expert's text has too, in [0, 1]; 0 for an empty answer.

    Texts are compared by lower-case words and single punctuation marks, sequences of tokens as they are. Where either is shorter than
    `ngram`, their n-grams are as long as the shorter one.
    """
    mine, theirs = _words(answer), _words(expert)
    n = min(ngram, len(mine), len(theirs))
    if n == 0:
        return 0.0
    known = set(_grams(theirs, n))
    found = [gram in known for gram in _grams(mine, n)]
    return sum(found) / len(found)


def _words(text: Any) -> Sequence[Hashable]:
    return _WORD.findall(text.lower()) if isinstance(text, str) else tuple(text)


def _grams(words: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@teachers.register("egsr")
class Egsr:
    """EGSR: a group without success gets one answer that the student wrote with an expert's help (arXiv 2505.08364).

    Args:
        hint: what the student is shown: the "solution" (column `solution` of the data set) or the "answer" alone (column `answer`). A task
            without it gets no help.
        trigger: a group gets help when the share of its attempts that succeeded is at most this; 0: when all failed.
        success: the least judgement, in (0, 1], that counts as success, of own and of guided answers.
        guided_attempts: answers sampled with help for each such group; the successful one of highest reward goes in, of equals the first.
        template: the guided prompt, a text with the fields `{prompt}` and `{hint}`, or a function (prompt, hint) -> prompt; of a chat the
            last message is rewritten. None: `TEMPLATES`.
        replace: which failed answer gives way: the "worst" (lowest reward) or a "random" one.
        ratio: see the module.
        advantage_cap: upper bound of a guided answer's advantage: in a group of G without other success it is (G - 1) / sqrt(G), 2.47 for
            G = 8, and dominates the task's gradient. None: no bound.
        max_overlap: a guided answer is refused when more than this share of its n-grams stands in the hint (`overlap`). 1: none is.
        ngram: n of these n-grams.
        min_length: a guided answer of fewer tokens is refused: one that states the answer without reasoning.
        seed: of the random replacement; what it draws depends on the seed and the lesson's number alone, so a resumed run draws the same.
    """

    def __init__(
        self,
        *,
        hint: Hint = "solution",
        trigger: float = 0.0,
        success: float = 1.0,
        guided_attempts: int = 1,
        template: str | Callable[[Any, Any], Any] | None = None,
        replace: Replace = "worst",
        ratio: Ratio = "on_policy",
        advantage_cap: float | None = None,
        max_overlap: float = 1.0,
        ngram: int = 4,
        min_length: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value, known in (("hint", hint, Hint), ("replace", replace, Replace), ("ratio", ratio, Ratio)):
            if value not in get_args(known):
                raise unknown(name, str(value), get_args(known))
        sound = {
            "trigger must lie in [0, 1)": 0 <= trigger < 1,
            "success must lie in (0, 1]": 0 < success <= 1,
            "guided_attempts must be at least 1": guided_attempts >= 1,
            "advantage_cap must be positive": advantage_cap is None or advantage_cap > 0,
            "max_overlap must lie in [0, 1]": 0 <= max_overlap <= 1,
            "ngram must be at least 1": ngram >= 1,
            "min_length must not be negative": min_length >= 0,
        }
        for rule, holds in sound.items():
            if not holds:
                raise TutelageError(f"EGSR: {rule}; got {locals()[rule.split()[0]]!r}.")
        if isinstance(template, str) and set(_FIELD.findall(template)) != {"prompt", "hint"}:
            raise TutelageError(f"EGSR: a template must hold the fields {{prompt}} and {{hint}}; got {template[:80]!r}.")
        self.hint, self.trigger, self.success, self.guided_attempts = hint, trigger, success, guided_attempts
        self.template = template if template is not None else TEMPLATES[hint]
        self.replace, self.ratio, self.advantage_cap = replace, ratio, advantage_cap
        self.max_overlap, self.ngram, self.min_length, self.seed = max_overlap, ngram, min_length, seed

    def check(self, columns: Sequence[str], values: Callable[[str], Iterable[Any]]) -> None:
        """Raise `TutelageError` unless a data set with these columns holds hints. values: the values of a column, looked at one by one."""
        advice = {
            "solution": "Give the tasks a column of worked solutions (solution, rationale, demonstration … are found by name; name another "
            "with solution=), or take Egsr(hint='answer').",
            "answer": "Give the tasks a column of answers.",
        }[self.hint]
        if self.hint not in columns:
            raise TutelageError(f"EGSR shows the student the task's {self.hint}, and train_dataset has only {', '.join(columns)}. {advice}")
        for value in values(self.hint):
            if value is not None and not isinstance(value, str) and self.hint == "solution":
                raise TutelageError(
                    f"EGSR shows the student the task's {self.hint}, and the column {self.hint!r} of train_dataset holds {value!r} of type "
                    f"{type(value).__name__}; expected text, or null where there is none. {advice}"
                )
            if _given(value) is not None:
                return
        raise TutelageError(f"EGSR shows the student the task's {self.hint}, and all in train_dataset are empty. {advice}")

    def guide(self, prompt: Any, hint: Any) -> Any:
        """The prompt that shows the hint: text for text, a chat for a chat (its last message rewritten)."""
        if callable(self.template):
            return self.template(prompt, hint)
        if not isinstance(prompt, str):
            last = prompt[-1]
            if not isinstance(last["content"], str):
                raise TutelageError(
                    f"EGSR's template rewrites the text of a chat's last message, and this one holds {str(last['content'])[:80]}. Give a "
                    "function (prompt, hint) -> prompt as the template."
                )
            return [*prompt[:-1], {**last, "content": self.guide(last["content"], hint)}]
        end = "\n" if prompt.endswith("\n") else ""
        parts = {"prompt": prompt.rstrip("\n"), "hint": str(hint)}
        return _FIELD.sub(lambda match: parts[match[1]], self.template) + end

    def needs_help(self, solved_NG: Float) -> NDArray[np.bool_]:
        """Groups whose share of successes is at most `trigger` (N,); one that could not be scored at all gets no help."""
        known_NG = ~np.isnan(solved_NG)
        rate_N = (np.nan_to_num(solved_NG) >= self.success).sum(axis=1) / np.maximum(known_NG.sum(axis=1), 1)
        return (rate_N <= self.trigger) & known_NG.any(axis=1)

    def choose(self, guided: Attempts, overlap_MK: Float) -> NDArray[np.int64]:
        """The guided attempt that goes in, for each group asked about (M,); `OWN` where none will do."""
        fit_MK = np.nan_to_num(guided.solved_MK) >= self.success
        fit_MK &= (overlap_MK <= self.max_overlap) & (guided.length_MK >= self.min_length)
        reward_MK = np.where(fit_MK, np.nan_to_num(guided.reward_MK, nan=-np.inf), -np.inf)
        return np.where(fit_MK.any(axis=1), reward_MK.argmax(axis=1), OWN)

    def intervene(self, groups: Groups) -> Groups:
        """The groups with a guided answer in each that needed and found help. Every process of a run decides the same."""
        mixed = dataclasses.replace(groups, ratio=self.ratio, advantage_cap=self.advantage_cap, metrics={"guided_share": 0.0})
        hints = [_given(task.get(self.hint)) for task in groups.tasks]
        helped_N = self.needs_help(groups.solved_NG) & np.array([hint is not None for hint in hints])
        index_M = np.flatnonzero(helped_N)
        if not len(index_M):
            return mixed
        expert = {int(n): hints[n] for n in index_M}
        guided = groups.ask(index_M, [self.guide(groups.tasks[n]["prompt"], hint) for n, hint in expert.items()], self.guided_attempts)
        overlap_MK = np.array(
            [[overlap(answer, hint, ngram=self.ngram) for answer in row] for row, hint in zip(guided.answers, expert.values(), strict=True)]
        )
        attempt_M = self.choose(guided, overlap_MK)
        found_M = attempt_M != OWN
        metrics = {"guided_share": float(helped_N.mean()), "success": float(found_M.mean()), "overlap": float(overlap_MK.mean())}
        mixed = dataclasses.replace(mixed, expert=expert, metrics=metrics)
        return self._mix(mixed, guided, index_M[found_M], np.flatnonzero(found_M), attempt_M[found_M])

    def _mix(self, groups: Groups, guided: Attempts, index_L: Int, row_L: Int, attempt_L: Int) -> Groups:
        """Attempt `attempt_L` of the groups asked about as `row_L` goes into the groups `index_L`."""
        rng = np.random.default_rng([self.seed, groups.lesson])
        solved_NG, reward_NG, guided_NG = groups.solved_NG.copy(), groups.reward_NG.copy(), groups.guided_NG.copy()
        for n, m, k in zip(index_L, row_L, attempt_L, strict=True):
            succeeded_G = np.nan_to_num(solved_NG[n]) >= self.success
            reward_NG[n], place = inject(reward_NG[n], succeeded_G, guided.reward_MK[m, k], replace=self.replace, rng=rng)
            solved_NG[n, place], guided_NG[n, place] = guided.solved_MK[m, k], m * self.guided_attempts + k
        return dataclasses.replace(groups, solved_NG=solved_NG, reward_NG=reward_NG, guided_NG=guided_NG)


def _given(hint: Any) -> Any:
    """The hint, numbers as text; None where it is null, blank or an empty sequence of tokens."""
    hint = str(hint) if isinstance(hint, Number) else hint
    return None if hint is None or not len(hint.strip() if isinstance(hint, str) else hint) else hint
