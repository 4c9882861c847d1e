"""Differential execution: an honest episode, and the same episode with one or two further actions in it.

For each seed, each place in the honest episode and each action that is legal there, the action is inserted and the rest is replayed; after
an action that changed a file, a second one is tried too (a tampering that takes a write and a claim, or a write to the monitor). Nothing is
drawn, so a hole is a fact with a script that shows it, and not an estimate; that no hole was found speaks of these scripts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.errors import Tally, TutelageError
from tutelage.tasks.gameable import MITIGATIONS, Gameable, Played, Vary, mitigated, play

EPSILON = 1e-9


@dataclass(frozen=True)
class Pair:
    """An honest episode and one with actions inserted, from the same seed."""

    seed: int
    honest: Played
    tampered: Played

    @property
    def reward(self) -> float:
        """What the inserted actions add to the reward."""
        return self.tampered.reward - self.honest.reward

    @property
    def utility(self) -> float:
        """What they add to the true utility."""
        return self.tampered.utility - self.honest.utility

    @property
    def gameable(self) -> bool:
        """More reward for no more utility."""
        return self.reward > EPSILON and self.utility <= EPSILON

    @property
    def silent(self) -> bool:
        """And the monitor stays quiet."""
        return self.gameable and not self.tampered.caught


@dataclass
class Holes:
    """What was found in one environment: per question a row that shows the hole, or None; `unasked`: which could not be asked, and why."""

    name: str
    pairs: int = 0
    rows: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)


def examine(env: Gameable, *, seeds: int, depth: int, limit: int, tally: Tally) -> Holes:
    """Ask all questions of one environment; see `tutelage.audits.tampering` for what they are.

    Raises:
        TutelageError: the environment is not deterministic, gives numbers that are not finite, or fails outside of an inserted action.
    """
    try:
        return _examine(env, seeds, depth, limit, tally)
    except TutelageError:
        raise
    except Exception as error:
        raise TutelageError(
            f"The environment {env.name!r} failed while it was examined: {type(error).__name__}: {error}. Its methods are called as "
            "tutelage.tasks.gameable describes them: reset, then honest or actions, then step by step."
        ) from error


def _examine(env: Gameable, seeds: int, depth: int, limit: int, tally: Tally) -> Holes:
    holes = Holes(env.name, rows=dict.fromkeys(("reward_writable", "monitor_writable", "gameable", "silently_gameable")))
    best: dict[str, Pair] = {}
    for seed in range(seeds):
        honest = honest_episode(env, seed)
        for pair in pairs(env, seed, honest, depth=depth, limit=limit, tally=tally):
            holes.pairs += 1
            for question, files in (("reward_writable", env.reward_files), ("monitor_writable", env.monitor_files)):
                if holes.rows[question] is None and (names := _written(pair, frozenset(files))):
                    holes.rows[question] = {"environment": env.name, "seed": seed, "script": _text(pair.tampered.script), "file": names}
            for question, holds in (("gameable", pair.gameable), ("silently_gameable", pair.silent)):
                if holds and (question not in best or pair.reward > best[question].reward + EPSILON):
                    best[question] = pair
    for question, pair in best.items():
        holes.rows[question] = _row(env.name, pair)
    for question, vary in (("claim_only", "truth"), ("approval_leak", "preference")):
        _vary(env, question, vary, holes, seeds, depth, limit)  # type: ignore[arg-type]
    if best:
        _remeasure(env, best, holes, depth=depth, limit=limit)
    return holes


def honest_episode(env: Gameable, seed: int) -> Played:
    """The honest episode of a seed, played twice: an environment that is not deterministic cannot be audited by comparing episodes."""
    env.reset(seed)
    script = list(env.honest())
    if not script:
        raise TutelageError(f"The environment {env.name!r} has no honest episode from seed {seed}: honest() is empty. Give its actions.")
    first, second = play(env, seed, script), play(env, seed, script)
    if first != second:
        raise TutelageError(
            f"The environment {env.name!r} is not deterministic: its honest episode from seed {seed} gave reward {first.reward:g} and "
            f"utility {first.utility:g}, then {second.reward:g} and {second.utility:g}, or changed other files. Draw all randomness from "
            "the seed that reset is given."
        )
    _check_finite(env, first)
    return first


def pairs(env: Gameable, seed: int, honest: Played, *, depth: int, limit: int, tally: Tally) -> Iterator[Pair]:
    """All insertions, at most `limit`; what the environment broke off with an error of its own, and what was left out, is counted."""
    tried = 0
    for place in range(len(honest.script)):
        before, after = honest.script[:place], honest.script[place:]
        open_: list[tuple[Any, ...]] = [()]
        for level in range(depth):
            firsts, open_ = open_, []
            for first in firsts:
                for action in _legal(env, seed, (*before, *first)):
                    if tried == limit:
                        tally.add(f"{env.name}: the search was cut off at {limit:,} scripts from a seed; raise `scripts`", f"seed {seed}")
                        return
                    tried += 1
                    script = (*before, *first, action, *after)
                    try:
                        pair = Pair(seed, honest, play(env, seed, script))
                    except Exception as error:
                        tally.add(f"{env.name}: scripts that ended in an error of the environment ({type(error).__name__})", _text(script))
                        continue
                    _check_finite(env, pair.tampered)
                    yield pair
                    at = place + level
                    if at < len(pair.tampered.written) and pair.tampered.written[at]:
                        open_.append((*first, action))


def _legal(env: Gameable, seed: int, script: Sequence[Any]) -> list[Any]:
    """The actions that are legal after a script; none where it ended the episode."""
    env.reset(seed)
    for action in script:
        if env.step(action)[1]:
            return []
    return list(env.actions())


def _check_finite(env: Gameable, played: Played) -> None:
    if not (math.isfinite(played.reward) and math.isfinite(played.utility)):
        raise TutelageError(
            f"The environment {env.name!r} gave reward {played.reward} and utility {played.utility} for {_text(played.script)}; expected "
            "finite numbers: what cannot be compared cannot be audited."
        )


def _written(pair: Pair, guarded: frozenset[str]) -> str:
    """The guarded files that an action changed which the honest episode does not take."""
    honest = set(map(str, pair.honest.script))
    touched = [w & guarded for a, w in zip(pair.tampered.script, pair.tampered.written, strict=True) if str(a) not in honest]
    return ", ".join(sorted(frozenset().union(*touched)))


def _vary(env: Gameable, question: str, vary: Vary, holes: Holes, seeds: int, depth: int, limit: int) -> None:
    """The two questions that need another world: does the reward know the truth, and does it know the user's preference?"""
    if not callable(getattr(env, "vary", None)):
        holes.unasked[question] = f"{env.name} has no vary()"
        return
    worlds = []
    for seed in range(seeds):
        env.reset(seed)
        if env.vary(vary):  # type: ignore[attr-defined]
            worlds.append(seed)
    if not worlds:
        holes.unasked[question] = f"{env.name} has no {vary} to vary"
        return
    both = (found for seed in worlds for found in _both(env, seed, vary, depth, limit))
    holes.rows[question] = (_claim_only if vary == "truth" else _leak)(env.name, both)


def _both(env: Gameable, seed: int, vary: Vary, depth: int, limit: int) -> Iterator[tuple[int, Played, Played]]:
    """Each script, as things are and as they would be."""
    honest = honest_episode(env, seed)
    yield seed, honest, play(env, seed, honest.script, vary=vary)
    for pair in pairs(env, seed, honest, depth=depth, limit=limit, tally=Tally()):
        yield seed, pair.tampered, play(env, seed, pair.tampered.script, vary=vary)


def _claim_only(name: str, both: Iterator[tuple[int, Played, Played]]) -> dict[str, Any] | None:
    """R3: the reward depends on what the policy does, the utility on the truth, and the reward never does."""
    shown: dict[str, Any] | None = None
    rewards: set[float] = set()
    for seed, here, there in both:
        if abs(here.reward - there.reward) > EPSILON:
            return None
        rewards.add(here.reward)
        if abs(here.utility - there.utility) > EPSILON and (shown is None or here.reward > shown["reward"]):
            shown = {"environment": name, "seed": seed, "script": _text(here.script), "reward": here.reward}
            shown |= {"utility": here.utility, "utility, truth varied": there.utility}
    return shown if len(rewards) > 1 else None


def _leak(name: str, both: Iterator[tuple[int, Played, Played]]) -> dict[str, Any] | None:
    """R4: at equal utility, the reward of the same episode changes with what the user says to prefer."""
    for seed, here, there in both:
        if abs(here.reward - there.reward) > EPSILON and abs(here.utility - there.utility) <= EPSILON:
            row = {"environment": name, "seed": seed, "script": _text(here.script), "utility": here.utility}
            return row | {"reward": here.reward, "reward, preference varied": there.reward}
    return None


def _remeasure(env: Gameable, best: dict[str, Pair], holes: Holes, *, depth: int, limit: int) -> None:
    """Which mitigations close the hole, and which make it heard, on the seeds that show it."""
    closed: list[str] = []
    heard: list[str] = []
    unmeasured: list[str] = []
    for name in MITIGATIONS:
        safer = mitigated(env, [name])
        try:
            left = [pair for seed in {p.seed for p in best.values()} for pair in _all(safer, seed, depth, limit) if pair.gameable]
        except Exception as error:  # an environment that cannot be copied, for one
            unmeasured.append(f"{name} ({type(error).__name__})")
            continue
        closed += [] if left else [name]
        heard += [name] if left and not any(pair.silent for pair in left) else []
    for row in (holes.rows["gameable"], holes.rows["silently_gameable"]):
        if row is not None:
            row |= {"closed by": ", ".join(closed) or "none tried", "seen by": ", ".join(heard) or "none tried"}
            row |= {"not measured": ", ".join(unmeasured)} if unmeasured else {}


def _all(env: Gameable, seed: int, depth: int, limit: int) -> list[Pair]:
    return list(pairs(env, seed, honest_episode(env, seed), depth=depth, limit=limit, tally=Tally()))


def _row(name: str, pair: Pair) -> dict[str, Any]:
    return {
        "environment": name,
        "seed": pair.seed,
        "honest": _text(pair.honest.script),
        "tampered": _text(pair.tampered.script),
        "Δreward": pair.reward,
        "Δutility": pair.utility,
        "caught": pair.tampered.caught,
    }


def _text(script: Sequence[Any]) -> str:
    return "; ".join(map(str, script))
