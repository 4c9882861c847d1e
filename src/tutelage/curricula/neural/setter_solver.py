"""Setter-Solver: a flow that sets tasks of a requested feasibility, taught by a judge of what the student solves.

Source: Racaniere, Lampinen, Santoro, Reichert, Firoiu, Lillicrap, "Automated curricula through setter-solver interactions" (ICLR 2020,
arXiv 1909.12892), in the form of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815).

    next task:  g = S(z, f),  f ~ U(1e-8, 1) the feasibility asked for,  z ~ N(0, I),  S a conditional RealNVP (see `_flow`)
    every 100 episodes, one Adam step of the judge J (logit of success), then one of the setter, on the tasks since the last:
        judge    binary cross-entropy of J(g) and success
        setter   feasibility  mean (J(S(z_i, f_i)) - logit f_i)^2,   z_i the noise that gives g_i
               + validity     mean -log p(g_j + u | f_j) over solved tasks,   u ~ U(0, noise),  clipped to [1e-4, 1 - 1e-4]
               + coverage     mean log p(S(z_i, f_i) | f_i)
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._spaces import Float, Range, SpaceCurriculum
from tutelage.curricula.neural._flow import RealNVP, Weights, torch_or_raise
from tutelage.errors import TutelageError
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_FEASIBILITY = 1e-8
_MARGIN, _EDGE = 1e-4, 1e-7  # of solved tasks with noise; of any task, so that its noise is finite


class Judge:
    """The logit of success of points of the unit cube: D -> hidden relu -> linear, float64."""

    def __init__(self, dimensions: int, rng: np.random.Generator, *, hidden: list[int], learning_rate: float) -> None:
        pairs = itertools.pairwise([dimensions, *hidden, 1])
        self.weights = Weights([shape for fan_in, out in pairs for shape in ((fan_in, out), (1, out))], rng, learning_rate=learning_rate)

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Logits, shape (B,)."""
        tensors, h = self.weights.tensors(), x_BD
        for layer in range(0, len(tensors), 2):
            h = h @ tensors[layer] + tensors[layer + 1]
            h = h.relu() if layer < len(tensors) - 2 else h
        return h[:, 0]


def judge_loss(logit_B: Tensor, solved_B: Tensor) -> Tensor:
    """The binary cross-entropy of logits with success in {0, 1}."""
    return torch_or_raise().nn.functional.binary_cross_entropy_with_logits(logit_B, solved_B)


def setter_losses(setter: RealNVP, judge: Judge, goal_BD: Tensor, f_B1: Tensor, valid_MD: Tensor, valid_f_M1: Tensor) -> dict[str, Tensor]:
    """Feasibility, coverage and, where there are solved tasks, validity (see the module). goal_BD, valid_MD: in the open unit cube."""
    torch = torch_or_raise()
    with torch.no_grad():
        z_BD, _ = setter.infer(goal_BD, f_B1)
    made_BD, logp_B = setter.sample(z_BD, f_B1)
    losses = {"feasibility": ((judge(made_BD) - torch.logit(f_B1[:, 0])) ** 2).mean(), "coverage": logp_B.mean()}
    if len(valid_MD):
        losses["validity"] = -setter.infer(valid_MD, valid_f_M1)[1].mean()
    return losses


@curricula.register("setter-solver")
class SetterSolver(SpaceCurriculum):
    """Points from a flow that is asked for a feasibility, and a judge of it (Setter-Solver; arXiv 1909.12892; needs torch).

    success: return above which an episode counts as solved (TeachMyAgent's walker: 230). update: episodes per training. noise: the most
    that is added to a solved task, as a share of each side. hidden: width of the setter's networks; blocks, layers: its blocks, and the
    gated layers of a network. judge: hidden widths of the judge; (64, 64) as released, where the first layer is lost. learning_rate: of
    both. reward_range: see `alp-gmm`; `success` then is in [0, 1]. TeachMyAgent's tuned values are update 50, noise 0.1 and hidden 64.

    The state holds the setter's weights and two moments in float64: 43 MB at 128 hidden units in three dimensions, 11 MB at 64.

    Departures: tasks are set n at a time and may come back in any order (the release wants each return before the next task); a training
    without a solved task leaves validity out (the release's mean over none is NaN, and so are its weights afterwards); one generator of
    chance; several attempts in one row of a lesson are one result, with their mean return.
    """

    name = "setter-solver"
    memory = ("networks", "open_f_P", "goal_MD", "feasibility_M", "solved_M", "trainings")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        success: float = 230.0,
        update: int = 100,
        noise: float = 0.05,
        hidden: int = 128,
        blocks: int = 3,
        layers: int = 3,
        judge: tuple[int, ...] = (64, 64, 64),
        learning_rate: float = 3e-4,
        reward_range: Range = None,
    ) -> None:
        sizes = {"update": update, "hidden": hidden, "blocks": blocks, "layers": layers}
        if min(*sizes.values(), *judge, 1) < 1:
            raise TutelageError(f"setter-solver: update, hidden, blocks, layers and judge must be at least 1; got {sizes}, judge={judge}.")
        if not (np.isfinite(success) and noise >= 0 and learning_rate > 0):
            raise TutelageError(
                "setter-solver: success must be finite, noise at least 0 and learning_rate above 0; got "
                f"success={success}, noise={noise}, learning_rate={learning_rate}."
            )
        config = {"success": success, **sizes, "noise": noise, "judge": list(judge), "learning_rate": learning_rate}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        self._torch, d = torch_or_raise(), self.space.dimensions
        self.judge = Judge(d, self.rng, hidden=list(judge), learning_rate=learning_rate)
        self.setter = RealNVP(d, self.rng, hidden=hidden, blocks=blocks, layers=layers, learning_rate=learning_rate)
        self.open_f_P = np.zeros(0)  # feasibility that each open proposal was asked for
        self.goal_MD, self.feasibility_M, self.solved_M = np.zeros((0, d)), np.zeros(0), np.zeros(0, dtype=bool)
        self.trainings = 0

    def propose(self, n: int) -> Float:
        points_ND = super().propose(n)
        self.open_f_P = np.concatenate([self.open_f_P, self._asked_N])[-len(self.open_PD) :]
        return points_ND

    def _propose(self, n: int) -> Float:
        self._asked_N = np.clip(self.rng.random(n), _LEAST_FEASIBILITY, 1 - _LEAST_FEASIBILITY)
        z_ND = self.rng.standard_normal((n, self.space.dimensions))
        with self._torch.no_grad():
            unit_ND, _ = self.setter.sample(self._torch.from_numpy(z_ND), self._torch.from_numpy(self._asked_N[:, None]))
        return self.space.clip(self.space.low_D + unit_ND.numpy() * self.space.range_D)

    def _settle(self, place_N: NDArray[np.int64]) -> None:
        self._settled_N = self.open_f_P[place_N]
        self.open_f_P = np.delete(self.open_f_P, place_N)

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        unit_ND = (points_ND - self.space.low_D) / self.space.range_D
        for row in range(len(unit_ND)):
            self.goal_MD = np.concatenate([self.goal_MD, unit_ND[row : row + 1]])
            self.feasibility_M = np.append(self.feasibility_M, self._settled_N[row])
            self.solved_M = np.append(self.solved_M, reward_N[row] > self.config["success"])
            if len(self.goal_MD) == self.config["update"]:
                self._train()

    def _train(self) -> None:
        """One step of both networks on the tasks since the last; they are then forgotten."""
        solved_MD = self.goal_MD[self.solved_M]
        solved_MD = solved_MD + self.config["noise"] * self.rng.random(solved_MD.shape)
        goal_BD, f_B1, solved_B, valid_MD = (
            self._torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
            for array in (self.goal_MD, self.feasibility_M[:, None], self.solved_M, np.clip(solved_MD, _MARGIN, 1 - _MARGIN))
        )
        self.judge.weights.step(judge_loss(self.judge(goal_BD), solved_B))
        losses = setter_losses(self.setter, self.judge, goal_BD.clamp(_EDGE, 1 - _EDGE), f_B1, valid_MD, f_B1[solved_B > 0])
        self.setter.weights.step(sum(losses.values(), start=self._torch.zeros(())))
        self.trainings += 1
        self.goal_MD, self.feasibility_M, self.solved_M = self.goal_MD[:0].copy(), np.zeros(0), np.zeros(0, dtype=bool)

    @property
    def networks(self) -> dict[str, list[Float]]:
        """Weights and optimiser state of judge and setter, as the curriculum's state keeps them."""
        return {"judge": self.judge.weights.arrays, "setter": self.setter.weights.arrays}

    @networks.setter
    def networks(self, networks: dict[str, list[Float]]) -> None:
        for name, net in (("judge", self.judge), ("setter", self.setter)):
            net.weights.arrays = networks[name]

    @property
    def metrics(self) -> dict[str, float]:
        solved = float(self.solved_M.mean()) if len(self.solved_M) else 0.0
        return {"trainings": float(self.trainings), "solved": solved}
