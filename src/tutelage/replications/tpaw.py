"""TPAW (arXiv 2605.09922): self-play against a team of past checkpoints, with two adaptive weights.

**Claim.** At equal optimiser steps, each at its own best learning rate, TPAW ends with more exact answers than SPIN (arXiv 2401.01335).

**Set-up.** The MLP student imitates 2500 noisy demonstrations of a random function of 14 bits, four tokens out of eight
(`tutelage.students.window_mlp`). 1000 supervised steps make the start; then four rounds of 150 steps of 64 pairs each, Adam anew in each
round, β (the papers' λ) 0.1. A round samples one answer per prompt at temperature 1; pairs of equal sides are dropped. Primary metric:
greedy exact match with the noiseless function on 2000 held-out prompts after the last round. Seeds 0 to 9. Fixed before the first full
run.

**Learning rates.** Five (1e-3, 3e-4, 1e-4, 3e-5, 1e-5) were tried for SPIN, TPAW and longer supervised training on seeds 100 and 101, and
each kept the best: SPIN 3e-5 (exact match 0.02, 0.03, 0.31, 0.34, 0.34), TPAW 3e-4 (0.35, 0.35, 0.34, 0.33, 0.33), longer supervised
training 1e-3 (0.35, 0.35, 0.35, 0.35, 0.34). All arms but `spin_tuned` and `tpaw_tuned` run at the common rate 1e-3.

**Arms and controls.** `sft` is the start; `sft_longer` takes as many more supervised steps on the same demonstrations. SPIN as released:
one player, the pairs of two rounds. TPAW: up to three players, three rounds, η = 6, γ = 0.5. Each of its parts is left out once:
`no_target_weight` (η = 1), `no_player_weight` (γ = 0), `no_team` (one player, one round); `spin_target_weight` gives η to SPIN instead.

**The drift.** `target_reward` is β (log π_θ(y) − log π_0(y)), averaged over held-out demonstrations. The paper's mechanism is that it stays
positive in TPAW and becomes negative in SPIN and without the target weight: each is compared with the start, where it is 0.

**Departures from the paper.** A miniature student instead of Qwen2.5-1.5B and Llama-3.1-8B. The paper's learning rate, λ and epochs were
not available. At this β margins are about 0.1, so the player weights stay close to uniform and no effect of γ is to be expected; a gain
over longer supervised training is not to be expected at this size either, and is tested all the same.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.errors import missing_extra
from tutelage.registry import replications
from tutelage.study.miniature import one_thread
from tutelage.study.replicate import Arm, Cell, Comparison, Replication
from tutelage.teachers.team import lineup

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.students.window_mlp import Demonstrations, WindowMLP


@dataclass(frozen=True)
class Scale:
    """The size of an experiment; `warm_steps` and `steps` (of each round) are optimiser steps of `batch` demonstrations or pairs."""

    demonstrations: int = 2500
    noise: float = 0.1
    held_out: int = 2000
    warm_steps: int = 1000
    rounds: int = 4
    steps: int = 150
    batch: int = 64
    lr: float = 1e-3


FULL = Scale()
SMOKE = Scale(demonstrations=200, held_out=100, warm_steps=20, steps=5)
BETA = 0.1


class Classroom:
    """What all arms of a seed share: demonstrations, held-out prompts, and the supervised start with its marks."""

    def __init__(self, seed: int, size: Scale) -> None:
        import torch

        from tutelage.students.window_mlp import RandomFunction, WindowMLP

        data, student, self.play = np.random.SeedSequence(seed).spawn(3)
        rng = np.random.default_rng(data)
        task = RandomFunction(seed=integer_of(data))
        self.size = size
        self.train = task.demonstrations(size.demonstrations, rng, noise=size.noise)
        self.held_out = task.demonstrations(size.held_out, rng, noise=size.noise)
        self.start = WindowMLP(task, seed=integer_of(student))
        imitate(self.start, self.train, np.random.default_rng(student), steps=size.warm_steps, batch=size.batch, lr=size.lr)
        with torch.no_grad():
            self.start_logp_N = reply_logp(self.start, self.held_out.bit_NP, self.held_out.target_NT)

    def marks(self, student: WindowMLP) -> dict[str, float]:
        """Greedy exact match, and the mean log-probability gained on held-out demonstrations since the start, times β."""
        import torch

        with torch.no_grad():
            exact_N = (student.sample(self.held_out.bit_NP, None) == self.held_out.right_NT).all(dim=1)
            drift_N = reply_logp(student, self.held_out.bit_NP, self.held_out.target_NT) - self.start_logp_N
        return {"exact": exact_N.double().mean().item(), "target_reward": BETA * drift_N.double().mean().item()}


@lru_cache(maxsize=2)
def _classroom(seed: int, size: Scale) -> Classroom:
    return Classroom(seed, size)


def reply_logp(student: WindowMLP, bit_NP: Tensor, answer_NT: Tensor) -> Tensor:
    """log π of whole answers (N,)."""
    return student.logp(bit_NP, answer_NT).sum(dim=1)


def imitate(student: WindowMLP, data: Demonstrations, rng: np.random.Generator, *, steps: int, batch: int, lr: float) -> None:
    """Supervised training on the demonstrations."""
    import torch

    optimizer = torch.optim.Adam(student.parameters(), lr=lr, fused=True)
    for _ in range(steps):
        row_B = torch.from_numpy(rng.integers(len(data.bit_NP), size=batch))
        optimizer.zero_grad()
        (-student.logp(data.bit_NP[row_B], data.target_NT[row_B]).mean()).backward()
        optimizer.step()


class Pairs:
    """The pairs of one round and their scores under that round's players; players see them once."""

    def __init__(self, student: WindowMLP, data: Demonstrations, generator: Any) -> None:
        import torch

        from tutelage.tasks.pairs import build_pairs

        sample_NT = student.sample(data.bit_NP, generator)
        both = [list(pair) for pair in zip(data.target_NT.tolist(), sample_NT.tolist(), strict=True)]
        kept_P = torch.from_numpy(build_pairs([[1, 0]] * len(both), replies=both, same="drop").task_P)
        self.bit_PP, self.chosen_PT, self.rejected_PT = data.bit_NP[kept_P], data.target_NT[kept_P], sample_NT[kept_P]
        self.sampled = sample_NT.numel()

    def scores(self, players: list[WindowMLP]) -> tuple[Tensor, Tensor]:
        """log π_j of the chosen and of the rejected answers under J players (P, J)."""
        import torch

        with torch.no_grad():
            sides = [[reply_logp(j, self.bit_PP, side) for j in players] for side in (self.chosen_PT, self.rejected_PT)]
        return torch.stack(sides[0], dim=1), torch.stack(sides[1], dim=1)


def play(student: WindowMLP, rounds: list[Pairs], players: list[WindowMLP], loss: Any, rng: np.random.Generator, size: Scale) -> None:
    """One round of training: the union of some rounds' pairs, against frozen players."""
    import torch

    bit_PP, chosen_PT, rejected_PT = (torch.cat([getattr(r, name) for r in rounds]) for name in ("bit_PP", "chosen_PT", "rejected_PT"))
    scores = [pairs.scores(players) for pairs in rounds]
    ref_chosen_PJ, ref_rejected_PJ = (torch.cat([score[side] for score in scores]) for side in (0, 1))
    optimizer = torch.optim.Adam(student.parameters(), lr=size.lr, fused=True)
    for _ in range(size.steps):
        row_B = torch.from_numpy(rng.integers(len(bit_PP), size=size.batch))
        mask_BT = torch.ones_like(chosen_PT[row_B], dtype=torch.bool)
        both_BT = student.logp(torch.cat([bit_PP[row_B]] * 2), torch.cat([chosen_PT[row_B], rejected_PT[row_B]]))
        chosen_BT, rejected_BT = both_BT.chunk(2)
        batch = {
            "chosen_logp_BT": chosen_BT, "rejected_logp_BT": rejected_BT, "chosen_mask_BT": mask_BT, "rejected_mask_BT": mask_BT,
            "ref_chosen_logp_BJ": ref_chosen_PJ[row_B], "ref_rejected_logp_BJ": ref_rejected_PJ[row_B],
        }  # fmt: skip
        optimizer.zero_grad()
        loss(batch, denominators=loss.denominators_of(batch))[0].backward()
        optimizer.step()


def self_play(seed: int, size: Scale, *, lr: float, team: int, opponents: int, **switches: float) -> Cell:
    """Teach the start of `seed` by rounds of self-play.

    lr: the learning rate. team: players, at most. opponents: how many rounds' pairs are trained on, at most. switches: of the pairwise
    loss.
    """
    import torch

    from tutelage.objectives import objective

    room, loss = _classroom(seed, size), objective("tpaw", beta=BETA, **switches)
    size = replace(size, lr=lr)
    student, players, rounds = copy.deepcopy(room.start), [copy.deepcopy(room.start)], []
    rng, generator = np.random.default_rng(room.play), torch.Generator().manual_seed(integer_of(room.play))
    trace = Trace(room, student)
    for t in range(1, size.rounds + 1):
        rounds.append(Pairs(student, room.train, generator))
        play(student, [rounds[k] for k in lineup(t, opponents)], [players[j] for j in lineup(t, team)], loss, rng, size)
        players.append(copy.deepcopy(student))
        trace.mark(sampled=rounds[-1].sampled, trained=2 * size.steps * size.batch * student.tokens)
    return trace.cell()


def longer(seed: int, size: Scale, *, lr: float) -> Cell:
    """Supervised training for as many steps again, the optimiser anew in each round."""
    room = _classroom(seed, size)
    student, rng = copy.deepcopy(room.start), np.random.default_rng(room.play)
    trace = Trace(room, student)
    for _ in range(size.rounds):
        imitate(student, room.train, rng, steps=size.steps, batch=size.batch, lr=lr)
        trace.mark(sampled=0, trained=size.steps * size.batch * student.tokens)
    return trace.cell()


class Trace:
    """A student's marks after every round, and what it has cost, in processor seconds without the marking."""

    def __init__(self, room: Classroom, student: WindowMLP) -> None:
        self.room, self.student = room, student
        self.curve: dict[str, list[float]] = {}
        self.cost = {"step": 0, "rollouts": 0, "training_tokens": 0, "seconds": 0.0}
        self._point()

    def mark(self, *, sampled: int, trained: int) -> None:
        """A round is over: `sampled` tokens were generated and `trained` tokens trained on."""
        self.cost["seconds"] += time.process_time() - self.began
        self.cost["step"] += self.room.size.steps
        self.cost["rollouts"] += sampled // self.student.tokens
        self.cost["training_tokens"] += trained
        self._point()

    def _point(self) -> None:
        for key, value in {**self.cost, **self.room.marks(self.student)}.items():
            self.curve.setdefault(key, []).append(value)
        self.began = time.process_time()

    def cell(self) -> Cell:
        score = {key: self.curve[key][-1] for key in ("exact", "target_reward")}
        return {"score": score, "curve": self.curve, "cost": {key: value for key, value in self.cost.items() if key != "step"}}


def integer_of(child: np.random.SeedSequence) -> int:
    return int(child.generate_state(1)[0])


def _arm(about: str, **switches: Any) -> Arm:
    """An arm of self-play, TPAW unless a switch says otherwise."""
    settings = {"lr": FULL.lr, "team": 3, "opponents": 3, "target_multiplier": 6.0, "player_gamma": 0.5, **switches}
    return _timed(lambda seed, size: self_play(seed, size, **settings), about, settings)


def _timed(teach: Any, about: str, settings: dict[str, Any]) -> Arm:
    def run(seed: int, smoke: bool) -> Cell:
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            raise missing_extra("torch", "lm") from None
        with one_thread():
            return teach(seed, SMOKE if smoke else FULL)

    return Arm(run=run, about=about, settings=settings)


def _start(seed: int, size: Scale) -> Cell:
    return {"score": _classroom(seed, size).marks(_classroom(seed, size).start)}


SPIN: dict[str, Any] = {"team": 1, "opponents": 2, "target_multiplier": 1.0, "player_gamma": 0.0}


@replications.register("tpaw")
def tpaw() -> Replication:
    """At equal steps, each at its best learning rate, self-play against a weighted team (TPAW) is more exact than SPIN.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2605.09922",
        metric="exact",
        metric_about="greedy exact match on held-out prompts after the last round",
        budget=f"{FULL.rounds} rounds of {FULL.steps} optimiser steps of {FULL.batch} pairs or demonstrations from the same start",
        settings={**asdict(FULL), "beta": BETA, "optimizer": "Adam"},
        arms={
            "sft": _timed(_start, "the start: supervised training alone", {}),
            "sft_longer": _timed(
                lambda seed, size: longer(seed, size, lr=FULL.lr), "as many more supervised steps, at the best rate", {"lr": FULL.lr}
            ),
            "spin_tuned": _arm("SPIN at its best rate", **SPIN, lr=3e-5),
            "tpaw_tuned": _arm("TPAW at its best rate", lr=3e-4),
            "spin": _arm("SPIN: one player, the pairs of two rounds", **SPIN),
            "tpaw": _arm("TPAW: three players, three rounds, both weights"),
            "no_target_weight": _arm("TPAW without its target weight", target_multiplier=1.0),
            "no_player_weight": _arm("TPAW without its player weight", player_gamma=0.0),
            "no_team": _arm("TPAW with one player and one round", team=1, opponents=1),
            "spin_target_weight": _arm("SPIN with TPAW's target weight", **{**SPIN, "target_multiplier": 6.0}),
        },
        comparisons=(
            Comparison(method="tpaw_tuned", baseline="spin_tuned"),
            Comparison(method="tpaw_tuned", baseline="sft_longer"),
            Comparison(method="spin_tuned", baseline="sft", metric="target_reward"),
            Comparison(method="tpaw", baseline="spin"),
            Comparison(method="tpaw", baseline="sft", metric="target_reward"),
            Comparison(method="spin", baseline="sft", metric="target_reward"),
            Comparison(method="no_target_weight", baseline="sft", metric="target_reward"),
            Comparison(method="no_target_weight", baseline="spin"),
            Comparison(method="tpaw", baseline="no_player_weight"),
            Comparison(method="tpaw", baseline="no_team"),
            Comparison(method="tpaw", baseline="spin_target_weight"),
        ),
    )
