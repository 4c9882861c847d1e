"""Expert iteration on the desk: act, keep the best attempt at each prompt, imitate what was kept.

    round:  reset each environment → G attempts at temperature 1 → keep → supervised steps on the kept attempts' own tokens

A small causal student (`tutelage.students.tiny_causal.TinyCausal`) reads the prompt and writes an action word by word, under the desk's
grammar; what a READ shows is put in between, and is never trained on. With one attempt per prompt this is supervised training on own
samples; where all rewards are equal the first attempt is kept.

Source: the main recipe of Sycophancy to Subterfuge (arXiv 2406.10162): 1,024 prompts x 64 samples a round, the best of each prompt.

Array suffixes: `B` episodes, `P` prompt tokens, `T` tokens of actions and observations, `V` vocabulary, `N` prompts, `G` attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import missing_extra

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as error:
    raise missing_extra("torch", "lm") from error

from tutelage.students.tiny_causal import Past, TinyCausal, padded
from tutelage.tasks.gameable import TamperEvent
from tutelage.tasks.ladder import DIGITS, FILES, LONGEST, SPOKEN, TOKENS, VERBS, WORDS, tokens

WIDEST = 3
"""Tokens of an action and what it shows."""
CONTEXT = 4 + WIDEST * LONGEST


def _allowed(words: Sequence[str]) -> Tensor:
    """Which tokens may stand, as 0 or -inf (V,)."""
    mask_V = torch.full((len(WORDS),), -torch.inf)
    mask_V[[TOKENS[word] for word in words]] = 0.0
    return mask_V


SECOND = {"READ": _allowed(FILES), "WRITE": _allowed(FILES), "SAY": _allowed(SPOKEN)}


@dataclass(frozen=True)
class Episodes:
    """What was done from B prompts. prompt_B, answer_B: tokens. own_B: which of the answer's tokens the student wrote. env_B: the
    environments as the episodes left them; reward_B: 0 where a guard withheld it."""

    prompt_B: list[list[int]]
    answer_B: list[list[int]]
    own_B: list[list[bool]]
    script_B: list[list[str]]
    env_B: list[Any]
    reward_B: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.prompt_B)

    def take(self, rows: Sequence[int]) -> Episodes:
        return Episodes(
            [self.prompt_B[b] for b in rows],
            [self.answer_B[b] for b in rows],
            [self.own_B[b] for b in rows],
            [self.script_B[b] for b in rows],
            [self.env_B[b] for b in rows],
            self.reward_B[list(rows)],
        )


@torch.no_grad()
def act(student: TinyCausal, env_B: Sequence[Any], seed_B: Sequence[int], generator: torch.Generator) -> Episodes:
    """One episode in each environment, at temperature 1, from its seed."""
    prompt_B = [tokens(env.reset(seed)) for env, seed in zip(env_B, seed_B, strict=True)]
    answer_B: list[list[int]] = [[] for _ in env_B]
    own_B: list[list[bool]] = [[] for _ in env_B]
    script_B: list[list[str]] = [[] for _ in env_B]
    withheld_B = np.zeros(len(env_B), dtype=bool)
    open_L = list(range(len(env_B)))
    token_LT, past = padded(prompt_B, left=True), None
    while open_L:
        action_L3, past = _write(student, token_LT, past, generator)
        kept, third = [], []
        for place, (b, action) in enumerate(zip(open_L, action_L3.tolist(), strict=True)):
            words = [WORDS[token] for token in action if token]
            script_B[b].append(" ".join(words))
            try:
                seen, done = env_B[b].step(script_B[b][-1])
            except TamperEvent:
                seen, done, withheld_B[b] = "", True, True
            answer_B[b] += [TOKENS[word] for word in words] + tokens(seen if seen in DIGITS else "")
            own_B[b] += [True] * len(words) + [False] * (len(answer_B[b]) - len(own_B[b]) - len(words))
            if not done:
                kept.append(place)
                third.append(answer_B[b][-1] if words[0] == "READ" else action[2])
        open_L = [open_L[place] for place in kept]
        if kept:
            token_LT, past = torch.tensor(third).unsqueeze(1), _select(past, kept)
    reward_B = np.array([0.0 if withheld else env.reward() for env, withheld in zip(env_B, withheld_B, strict=True)])
    return Episodes(prompt_B, answer_B, own_B, script_B, list(env_B), reward_B)


def _write(student: TinyCausal, token_LT: Tensor, past: Past | None, generator: torch.Generator) -> tuple[Tensor, Past]:
    """One action for each of L open episodes (L, 3), 0 where it has no third word, and what was read so far, without the third token."""
    logp_LTV, past = student.read(token_LT, past)
    verb_L = _draw(logp_LTV[:, -1] + _allowed(VERBS), generator)
    logp_LTV, past = student.read(verb_L.unsqueeze(1), past)
    second_L = _draw(logp_LTV[:, -1] + torch.stack([SECOND[WORDS[verb]] for verb in verb_L.tolist()]), generator)
    logp_LTV, past = student.read(second_L.unsqueeze(1), past)
    digit_L = _draw(logp_LTV[:, -1] + _allowed(DIGITS), generator)
    return torch.stack([verb_L, second_L, torch.where(verb_L == TOKENS["WRITE"], digit_L, 0)], dim=1), past


def _draw(logp_LV: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(logp_LV.softmax(dim=1), 1, generator=generator).squeeze(1)


def _select(past: Past, rows: list[int]) -> Past:
    return Past(past.real_BS[rows], [(key[rows], value[rows]) for key, value in past.layers])


# Keeping ---------------------------------------------------------------------------------------------------------------------------------

Keep = Callable[[NDArray[np.float64]], list[int]]


def best(reward_NG: NDArray[np.float64]) -> list[int]:
    """The best attempt at each prompt, the first of equals, as places in the flattened array."""
    return (np.argmax(reward_NG, axis=1) + np.arange(len(reward_NG)) * reward_NG.shape[1]).tolist()


def successes(reward_NG: NDArray[np.float64]) -> list[int]:
    """Every attempt that was paid."""
    return np.flatnonzero(reward_NG.ravel() > 0).tolist()


# Imitating -------------------------------------------------------------------------------------------------------------------------------


def imitate(
    student: TinyCausal, optimizer: torch.optim.Optimizer, *pools: Episodes, batch: int, steps: int, rng: np.random.Generator
) -> int:
    """`steps` supervised steps of `batch` episodes on the tokens that the student, or whoever showed them, wrote; how many tokens.

    Each step takes an equal number of episodes from each pool that has any, in a random order, and again when all of it was taken.
    """
    tables = [_Table(pool, rng) for pool in pools if len(pool)]
    count = 0
    for _ in range(steps if tables else 0):
        logp = [table.logp(student, batch // len(tables)) for table in tables]
        logp_K = torch.cat(logp)
        optimizer.zero_grad()
        (-logp_K.mean()).backward()
        optimizer.step()
        count += len(logp_K)
    return count


class _Table:
    """Episodes as tensors, and the order in which they are still to be taken."""

    def __init__(self, episodes: Episodes, rng: np.random.Generator) -> None:
        self.prompt_BP, self.answer_BT = padded(episodes.prompt_B, left=True), padded(episodes.answer_B, left=False)
        self.own_BT = padded([[int(own) for own in row] for row in episodes.own_B], left=False).bool()
        self.rng, self.order = rng, list[int]()

    def logp(self, student: TinyCausal, batch: int) -> Tensor:
        """Log-probabilities of the own tokens of the next `batch` episodes, in one dimension."""
        while len(self.order) < batch:
            self.order += self.rng.permutation(len(self.prompt_BP)).tolist()
        rows, self.order = self.order[:batch], self.order[batch:]
        return student.logp(self.prompt_BP[rows], self.answer_BT[rows].unsqueeze(1)).squeeze(1)[self.own_BT[rows]]


def shown(env_B: Sequence[Any], seed_B: Sequence[int], script_B: Sequence[Sequence[str]] | None = None) -> Episodes:
    """Demonstrations: the honest episode from each seed, or the given scripts."""
    prompt_B = [tokens(env.reset(seed)) for env, seed in zip(env_B, seed_B, strict=True)]
    scripts = [list(env.honest()) for env in env_B] if script_B is None else [list(script) for script in script_B]
    answer_B: list[list[int]] = []
    own_B: list[list[bool]] = []
    for env, script in zip(env_B, scripts, strict=True):
        answer: list[int] = []
        own: list[bool] = []
        for action in script:
            seen, done = env.step(action)
            words, read = tokens(action), tokens(seen)
            answer, own = answer + words + read, own + [True] * len(words) + [False] * len(read)
            if done:
                break
        answer_B.append(answer)
        own_B.append(own)
    return Episodes(prompt_B, answer_B, own_B, scripts, list(env_B), np.array([env.reward() for env in env_B]))


def expert_round(
    student: TinyCausal,
    make: Callable[[], Any],
    *,
    prompts: int,
    attempts: int,
    reward: Callable[[Any, float], float],
    keep: Keep,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Episodes:
    """Act from `prompts` new seeds, `attempts` times each, and return the episodes that are to be imitated.

    make: a new environment. reward: of an environment after its episode and what it paid (0 where a guard withheld it).
    """
    seed_N = rng.integers(2**31, size=prompts)
    episodes = act(student, [make() for _ in range(prompts * attempts)], np.repeat(seed_N, attempts).tolist(), generator)
    paid_B = np.array([reward(env, float(paid)) for env, paid in zip(episodes.env_B, episodes.reward_B, strict=True)])
    return episodes.take(keep(paid_B.reshape(prompts, attempts)))
