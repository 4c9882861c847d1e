"""ALP-GMM: a Gaussian mixture over tasks and their absolute learning progress, sampled where progress is high.

Source: Portelas, Colas, Hofmann, Oudeyer, "Teacher algorithms for curriculum learning of Deep RL in continuously parameterized
environments" (CoRL 2019, arXiv 1910.07224), algorithm 1.

    ALP(p, r) = |r - r'|, r' the return of the nearest earlier task p'      (0 for the first six)
    every 250 episodes: mixtures of 2..10 components over the last 250 rows [p, ALP]; the lowest AIC stays
    next task: uniform with probability 0.2, else from component k with probability proportional to its mean ALP
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.curricula._gaussian import Vector
from tutelage.curricula._mixtures import Criterion, Float, MixtureTeacher
from tutelage.curricula._progress import AbsoluteLearningProgress
from tutelage.curricula._spaces import Range
from tutelage.errors import TutelageError
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace


@curricula.register("alp-gmm")
class ALPGMM(MixtureTeacher):
    """Points from a Gaussian mixture, by absolute learning progress (arXiv 1910.07224).

    fit_every: episodes between fits, of the bootstrap and of the window that is fitted. random_share: probability of a uniform point.
    min_components, max_components: the sweep, both included. criterion: "aic"; "bic" or "aicc". history: latest episodes among which the
    nearest task is sought (see `AbsoluteLearningProgress`); None, all of them, as published. initial_mean, initial_std: a Gaussian of easy
    tasks to bootstrap from, in the parameters' units, that an expert states (TeachMyAgent; a tenth of each side where only the mean is);
    None, uniform points. reward_range: the environment's lowest and highest return, mapped to [0, 1] with clipping (the paper's walker:
    -150, 350); None takes returns as they are. TeachMyAgent's tuned values are fit_every 150, random_share 0.05 and 2 to 9 components.

    Departures: one generator for everything (the release seeds the global one); float64 points throughout (the release hands out float32);
    AICc counts the parameters of all D + 1 coordinates (the release's helper counts D); of several equally near tasks the latest counts.
    """

    name = "alp-gmm"
    memory = (*MixtureTeacher.memory, "pair_MQ")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        fit_every: int = 250,
        random_share: float = 0.2,
        min_components: int = 2,
        max_components: int = 10,
        criterion: Criterion = "aic",
        history: int | None = None,
        initial_mean: Vector = None,
        initial_std: Vector = None,
        reward_range: Range = None,
    ) -> None:
        if history is not None and history < 1:
            raise TutelageError(f"{self.name}: history must be at least 1; got {history}.")
        config: dict[str, Any] = {"fit_every": fit_every, "random_share": random_share, "criterion": criterion}
        config |= {"min_components": min_components, "max_components": max_components, "history": history}
        config |= {"initial_mean": initial_mean, "initial_std": initial_std}
        super().__init__(space, seed=seed, reward_range=reward_range, config=config)
        self.progress = AbsoluteLearningProgress(self.space.dimensions, most=history)

    @property
    def pair_MQ(self) -> Float:
        """The tasks and returns among which the nearest is sought, as the state keeps them, shape (M, D + 1)."""
        return self.progress.pairs

    @pair_MQ.setter
    def pair_MQ(self, pair_MQ: Float) -> None:
        self.progress.pairs = pair_MQ

    def _row(self, point_D: Float, reward: float) -> Float:
        return np.append(point_D, self.progress.observe(point_D, reward))

    def _utility_K(self) -> Float:
        return np.maximum(self.mean_KQ[:, -1], 0.0)  # a mean of values >= 0, but for rounding
