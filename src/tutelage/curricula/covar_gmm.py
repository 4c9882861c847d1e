"""Covar-GMM: a Gaussian mixture over tasks, time and return, sampled where return grows with time.

Source: Moulin-Frier, Nguyen, Oudeyer, "Self-organization of early vocal development in infants and machines" (2013), as the baseline of
Portelas et al. (CoRL 2019, arXiv 1910.07224).

    rows [p, t, r],  t = (i mod fit_every) / fit_every in [0, 1)
    utility of component k = max(0, Cov_k(t, r)), or |Cov_k(t, r)|
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tutelage.curricula._gaussian import Vector
from tutelage.curricula._mixtures import Criterion, Float, MixtureTeacher
from tutelage.curricula._spaces import Range
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace


@curricula.register("covar-gmm")
class CovarGMM(MixtureTeacher):
    """Points from a Gaussian mixture, by the covariance of time and return (Moulin-Frier et al. 2013).

    absolute: False, only growing returns count (the release's default); True, falling ones too. The others as in `alp-gmm`; TeachMyAgent's
    tuned values are fit_every 150, random_share 0.1 and 2 to 14 components.

    Departures: one generator for everything, the mixtures' starts included (the release leaves those unseeded).
    """

    name = "covar-gmm"
    extra = 2

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
        absolute: bool = False,
        initial_mean: Vector = None,
        initial_std: Vector = None,
        reward_range: Range = None,
    ) -> None:
        config: dict[str, Any] = {"fit_every": fit_every, "random_share": random_share, "criterion": criterion, "absolute": absolute}
        config |= {"min_components": min_components, "max_components": max_components}
        config |= {"initial_mean": initial_mean, "initial_std": initial_std}
        super().__init__(space, seed=seed, reward_range=reward_range, config=config)

    def _row(self, point_D: Float, reward: float) -> Float:
        every = self.config["fit_every"]
        return np.append(point_D, [self.episodes % every / every, reward])

    def _utility_K(self) -> Float:
        covariance_K = self.cov_KQQ[:, -2, -1]
        return np.abs(covariance_K) if self.config["absolute"] else np.maximum(covariance_K, 0.0)
