"""SPDL: a Gaussian over tasks that moves from easy ones to a target, as far as the student's returns allow.

Source: Klink, D'Eramo, Peters, Pajarinen, "Self-paced deep reinforcement learning" (NeurIPS 2020), in the form of TeachMyAgent (Romac et
al., ICML 2021, arXiv 2103.09815).

    every `update_every` episodes, over the contexts c_i since the last update, with p = N(mean, L L^T) of parameters theta:
    maximise  mean_i p'(c_i) / p(c_i) V_i - alpha KL(p' || target)   subject to  KL(p || p') <= max_kl
    alpha = 0 in updates before `alpha_offset`, then zeta max(0, mean performance) / max(KL(p || target), 1e-10), at most 1e5

    one natural-gradient step:  x = (H + 0.01 I)^-1 g by conjugate gradients;  full = x / sqrt(x^T (H + 0.01 I) x / (2 max_kl))
    of full, full / 2, full / 4 ... (10 of them) the first that does not lower the objective, with KL <= 1.5 max_kl
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from tutelage.curricula._base import Wants
from tutelage.curricula._gaussian import Gaussian, Vector, stated_gaussian
from tutelage.curricula._spaces import Float, Range, SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace

Values = Literal["returns", "query"]
Performance = Literal["value", "return"]

_CG_STEPS, _CG_DAMPING, _CG_RESIDUAL = 10, 1e-2, 1e-10
_LINE_SEARCH, _TOLERANCE = 10, 1.5
_MOST_ALPHA, _LEAST_KL, _LEAST_STD = 1e5, 1e-10, 1e-8


def alpha_of(performance: float, kl: float, zeta: float) -> float:
    """The weight of the pull to the target: zeta max(0, performance) / max(KL, 1e-10), at most 1e5."""
    return min(zeta * max(0.0, performance) / max(kl, _LEAST_KL), _MOST_ALPHA)


def conjugate_gradient(matrix_PP: Float, b_P: Float) -> Float:
    """An approximate solution of matrix x = b: 10 steps, or fewer once the squared residual is below 1e-10."""
    x_P, r_P, p_P = np.zeros_like(b_P), b_P.copy(), b_P.copy()
    square = r_P @ r_P
    for _ in range(_CG_STEPS):
        z_P = matrix_PP @ p_P
        step = square / (p_P @ z_P)
        x_P, r_P = x_P + step * p_P, r_P - step * z_P
        before, square = square, r_P @ r_P
        if square < _CG_RESIDUAL:
            break
        p_P = r_P + square / before * p_P
    return x_P


def natural_step(
    old: Gaussian, gradient_P: Float, objective: Callable[[Gaussian], float], max_kl: float, *, either: bool = False
) -> Gaussian:
    """The Gaussian after one natural-gradient step with backtracking (see the module); `old` where no step is accepted.

    objective: of a Gaussian, to be raised. either: accept what keeps to the trust region OR does not lower the objective, as released.
    """
    if np.linalg.norm(gradient_P) < 1e-10:
        return old
    damped_PP = old.fisher() + _CG_DAMPING * np.eye(len(gradient_P))
    step_P = conjugate_gradient(damped_PP, gradient_P)
    full_P = step_P / np.sqrt(0.5 * step_P @ damped_PP @ step_P / max_kl)
    before, d = objective(old), len(old.mean_D)
    for halvings in range(_LINE_SEARCH):
        new_P = old.flat_P + full_P / 2**halvings
        if not np.isfinite(new_P).all() or new_P[d : 2 * d].min() < np.log(_LEAST_STD) or new_P[d : 2 * d].max() > -np.log(_LEAST_STD):
            continue
        new = Gaussian.of_flat(new_P, d)
        with np.errstate(over="ignore", invalid="ignore"):
            after = objective(new)
        near, better = old.kl(new) <= _TOLERANCE * max_kl, bool(np.isfinite(after) and after >= before)
        if (near or better) if either else (near and better):
            return new
    return old


@curricula.register("self-paced")
class SelfPaced(SpaceCurriculum):
    """Points from a Gaussian that moves to a target under a KL trust region, weighted by returns (SPDL; arXiv 2103.09815).

    update_every, update_offset: episodes between updates, and before the first. zeta, alpha_offset: of the pull to the target; the first
    update counts as 1. max_kl: the trust region, in nats. initial_mean, initial_std: an easy region in the parameters' units; None, a
    uniformly drawn mean and a tenth of each side. target_mean, target_std: None, the centre and a quarter of each side. values: V of a
    context, "returns", its episode's return; or "query", the student's critic at the episode's first state, asked for through `wants` as
    the signal "value" once an update is due (an update waits until it is answered). performance: the mean "value", or the mean "return"
    also where values are queried. std_floor: least diagonal of the factor, as a share of each side, while KL to the target exceeds
    `floor_kl`; None, no floor. released_search: see `natural_step`. reward_range: see `alp-gmm`. TeachMyAgent's tuned values are half the
    interval, alpha_offset 10, zeta 0.25, max_kl 0.1 and performance "return".

    Departures: intervals count episodes, not environment steps (the source's 100,000 steps are 50 episodes of the longest kind or more);
    a step must keep to the trust region AND not lower the objective (the release accepts either, so that the region can be ignored);
    the Gaussian lives in units of the sides, on which the damping of conjugate gradients depends; returns come as the trainer discounts
    them; at most the last 1,000 contexts count, as released; a step to a standard deviation below 1e-8 of a side is not taken.
    """

    name = "self-paced"
    memory = ("flat_P", "context_MD", "return_M", "episodes", "updates", "due", "alpha")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        update_every: int = 100,
        update_offset: int = 200,
        zeta: float = 0.05,
        alpha_offset: int = 0,
        max_kl: float = 0.8,
        initial_mean: Vector = None,
        initial_std: Vector = None,
        target_mean: Vector = None,
        target_std: Vector = None,
        values: Values = "returns",
        performance: Performance = "value",
        std_floor: float | None = None,
        floor_kl: float = 0.0,
        released_search: bool = False,
        buffer: int = 1000,
        reward_range: Range = None,
    ) -> None:
        _check(update_every, update_offset, zeta, alpha_offset, max_kl, std_floor, buffer)
        for what, value, known in (("values", values, Values), ("performance", performance, Performance)):
            if value not in get_args(known):
                raise unknown(f"{what} of self-paced", value, get_args(known))
        vectors = {"initial_mean": initial_mean, "initial_std": initial_std, "target_mean": target_mean, "target_std": target_std}
        config: dict[str, Any] = {name: None if vector is None else [float(x) for x in vector] for name, vector in vectors.items()}
        config |= {"update_every": update_every, "update_offset": update_offset, "zeta": zeta, "alpha_offset": alpha_offset}
        config |= {"max_kl": max_kl, "values": values, "performance": performance, "std_floor": std_floor, "floor_kl": floor_kl}
        config |= {"released_search": released_search, "buffer": buffer}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        drawn_D = self.rng.random(self.space.dimensions)
        self.flat_P = self._gaussian("initial", drawn_D, 0.1).flat_P
        self.target = self._gaussian("target", np.full(self.space.dimensions, 0.5), 0.25)
        self.context_MD, self.return_M = np.zeros((0, self.space.dimensions)), np.zeros(0)
        self.episodes, self.updates, self.due, self.alpha = 0, 0, False, 0.0

    def _gaussian(self, which: str, mean_D: Float, std: float) -> Gaussian:
        """The initial or the target Gaussian, in units of the sides."""
        stated = (self.config[f"{which}_mean"], self.config[f"{which}_std"])
        stated_D, std_D = stated_gaussian(self.space, *stated, share=std, name=f"self-paced: {which}")
        unit_D = np.maximum(std_D / self.space.range_D, _LEAST_STD)
        return Gaussian(mean_D if stated_D is None else self._unit(stated_D), np.diag(unit_D))

    def _unit(self, points_ND: Float) -> Float:
        return (points_ND - self.space.low_D) / self.space.range_D

    @property
    def gaussian(self) -> Gaussian:
        """The present distribution, in units of the sides: the space is [0, 1]^D."""
        return Gaussian.of_flat(self.flat_P, self.space.dimensions)

    def _propose(self, n: int) -> Float:
        now = self.gaussian
        unit_ND = now.mean_D + self.rng.standard_normal((n, self.space.dimensions)) @ now.root_DD.T
        return self.space.clip(self.space.low_D + unit_ND * self.space.range_D)

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            self.context_MD = np.concatenate([self.context_MD, point_D[None]])[-self.config["buffer"] :]
            self.return_M = np.append(self.return_M, reward)[-self.config["buffer"] :]
            self.episodes += 1
            if self.episodes >= self.config["update_offset"] and self.episodes % self.config["update_every"] == 0:
                if self.config["values"] == "query":
                    self.due = True
                else:
                    self._update(self.return_M)

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({"value"} if self.config["values"] == "query" else ())

    def wants(self) -> Wants | None:
        """With values="query", the contexts of an update that is due: the critic's value at each one's first state, as signal "value"."""
        return Wants(self.context_MD.copy(), attempts=0, signals=("value",)) if self.due else None

    def _answer(self, outcomes: Outcomes) -> None:
        if not self.due:
            super()._answer(outcomes)
        asked_M, given_N = np.lexsort(self.context_MD.T), np.zeros(0, dtype=np.int64)
        if outcomes.point_ND is not None and outcomes.point_ND.shape == self.context_MD.shape:
            given_N = np.lexsort(outcomes.point_ND.T)
        if outcomes.point_ND is None or not np.array_equal(self.context_MD[asked_M], outcomes.point_ND[given_N]):
            raise TutelageError(
                f"self-paced asked for the value of {len(self.context_MD)} contexts and got an answer of {len(outcomes)} rows that are "
                "not these. Answer `wants` with all of its points in one observe(..., probe=True), before further episodes are observed."
            )
        value_N = np.asarray(outcomes.signals.get("value", np.nan), dtype=np.float64)
        if value_N.shape != (len(outcomes),) or not np.isfinite(value_N).all():
            raise TutelageError(
                f"self-paced needs the signal 'value', one finite number per context, shape ({len(outcomes)},); got {value_N.tolist()}. "
                "Give the critic's estimate of the return from each context's first state, or build the curriculum with values='returns'."
            )
        value_M = np.empty(len(value_N))
        value_M[asked_M] = value_N[given_N]
        self._update(value_M)

    def _update(self, value_M: Float) -> None:
        """One step of the Gaussian; the contexts are then forgotten."""
        self.updates += 1
        old, unit_MD = self.gaussian, self._unit(self.context_MD)
        performance = (self.return_M if self.config["performance"] == "return" else value_M).mean()
        waits = self.updates < self.config["alpha_offset"]
        self.alpha = 0.0 if waits else alpha_of(float(performance), old.kl(self.target), self.config["zeta"])
        log_old_M = old.log_prob(unit_MD)

        def objective(new: Gaussian) -> float:
            ratio_M = np.exp(new.log_prob(unit_MD) - log_old_M)
            return float((ratio_M * value_M).mean()) - self.alpha * new.kl(self.target)

        gradient_P = value_M @ old.score(unit_MD) / len(value_M) - self.alpha * old.kl_gradient(self.target)
        new = natural_step(old, gradient_P, objective, self.config["max_kl"], either=self.config["released_search"])
        self.flat_P = self._floored(new).flat_P
        self.context_MD, self.return_M, self.due = np.zeros((0, self.space.dimensions)), np.zeros(0), False

    def _floored(self, new: Gaussian) -> Gaussian:
        if self.config["std_floor"] is None or new.kl(self.target) <= self.config["floor_kl"]:
            return new
        root_DD = new.root_DD.copy()
        np.fill_diagonal(root_DD, np.maximum(np.diag(root_DD), self.config["std_floor"]))
        return Gaussian(new.mean_D, root_DD)

    @property
    def metrics(self) -> dict[str, float]:
        now = self.gaussian
        std = float(np.sqrt((now.root_DD**2).sum(axis=1)).mean())
        return {"kl_to_target": now.kl(self.target), "alpha": float(self.alpha), "updates": float(self.updates), "std_mean": std}


def _check(
    update_every: int, update_offset: int, zeta: float, alpha_offset: int, max_kl: float, std_floor: float | None, buffer: int
) -> None:
    floor = 1.0 if std_floor is None else std_floor
    if min(update_every, buffer) < 1 or min(update_offset, alpha_offset) < 0 or not (zeta >= 0 and max_kl > 0 and 0 < floor < np.inf):
        raise TutelageError(
            "self-paced: update_every and buffer must be at least 1, update_offset, alpha_offset and zeta at least 0, max_kl and std_floor "
            f"above 0; got update_every={update_every}, buffer={buffer}, update_offset={update_offset}, alpha_offset={alpha_offset}, "
            f"zeta={zeta}, max_kl={max_kl}, std_floor={std_floor}."
        )
