"""Teachers that fit Gaussian mixtures to recent episodes and sample where a component promises progress.

Shared by ALP-GMM and Covar-GMM: the fit with a criterion, and the loop around it.

    fewer than `fit_every` episodes seen, or U(0, 1) < random_share:   a uniform point
    else   k ~ utility_k / sum of utilities  (uniform where all are 0);   x ~ N(mean_k, cov_k);   drop the last coordinates; clip
    every `fit_every` episodes: fit one mixture per number of components to the last `fit_every` rows; keep the best criterion
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._draws import draw_arms, proportional
from tutelage.curricula._spaces import Range, SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
Criterion = Literal["aic", "bic", "aicc"]
CRITERIA = get_args(Criterion)


def parameter_count(components: int, dimensions: int) -> int:
    """Free parameters of a full-covariance mixture: means, covariances and all but one weight."""
    return components * (dimensions + dimensions * (dimensions + 1) // 2) + components - 1


def criterion_of(log_likelihood: float, rows: int, parameters: int, criterion: Criterion) -> float:
    """AIC = 2 q - 2 log L; BIC = q log n - 2 log L; AICc = AIC + 2 q (q + 1) / (n - q - 1), infinite where n <= q + 1."""
    if criterion == "bic":
        return parameters * np.log(rows) - 2 * log_likelihood
    aic = 2 * parameters - 2 * log_likelihood
    if criterion == "aic":
        return aic
    return aic + 2 * parameters * (parameters + 1) / (rows - parameters - 1) if rows > parameters + 1 else np.inf


def fit_mixture(row_MQ: Float, components: range, criterion: Criterion, rng: np.random.Generator) -> tuple[Float, Float]:
    """Means (K, Q) and covariances (K, Q, Q) of the mixture with the least criterion over the numbers of components.

    scikit-learn's `GaussianMixture` with full covariances and one start each. The weights are not used by the teachers.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    best, chosen = np.inf, None
    for k in components:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred steps are the method's budget; few distinct rows are no error
            fitted = GaussianMixture(k, random_state=int(rng.integers(2**31))).fit(row_MQ)
        value = criterion_of(fitted.score(row_MQ) * len(row_MQ), len(row_MQ), parameter_count(k, row_MQ.shape[1]), criterion)
        if value < best or chosen is None:
            best, chosen = value, fitted
    assert chosen is not None
    return chosen.means_, chosen.covariances_


class MixtureTeacher(SpaceCurriculum):
    """Base of the mixture teachers: rows of `extra` more coordinates than a point, and a utility of each component.

    A subclass writes `_row(point_D, reward)`, the row of one episode, and `_utility_K()`, at least 0, from `mean_KQ` and `cov_KQQ`.
    """

    memory: ClassVar[tuple[str, ...]] = ("row_MQ", "episodes", "mean_KQ", "cov_KQQ")
    extra: ClassVar[int] = 1

    def __init__(self, space: TaskSpace, *, seed: int, reward_range: Range, config: dict[str, Any]) -> None:
        low, high, fit_every, share = (config[name] for name in ("min_components", "max_components", "fit_every", "random_share"))
        if not 1 <= low <= high <= fit_every:
            raise TutelageError(
                f"{self.name}: components must run from min_components >= 1 to max_components <= fit_every; got {low} to {high} with "
                f"fit_every={fit_every}."
            )
        if not 0 <= share <= 1:
            raise TutelageError(f"{self.name}: random_share must lie in [0, 1]; got {share}.")
        if config["criterion"] not in CRITERIA:
            raise unknown(f"criterion of {self.name}", config["criterion"], CRITERIA)
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        width = self.space.dimensions + self.extra
        self.row_MQ = np.zeros((0, width))
        self.episodes = 0
        self.mean_KQ, self.cov_KQQ = np.zeros((0, width)), np.zeros((0, width, width))

    def _propose(self, n: int) -> Float:
        points_ND = self.space.sample(n, self.rng)
        if not len(self.mean_KQ):
            return points_ND
        guided = np.flatnonzero(self.rng.random(n) >= self.config["random_share"])
        component_N = draw_arms(proportional(self._utility_K()), len(guided), self.rng)
        normal_NQ = self.rng.standard_normal((len(guided), self.mean_KQ.shape[1]))
        root_KQQ = np.linalg.cholesky(self.cov_KQQ)
        draw_NQ = self.mean_KQ[component_N] + np.einsum("nij,nj->ni", root_KQQ[component_N], normal_NQ)
        points_ND[guided] = self.space.clip(draw_NQ[:, : self.space.dimensions])
        return points_ND

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            row_Q = self._row(point_D, float(reward))
            self.row_MQ = np.concatenate([self.row_MQ, row_Q[None]])[-self.config["fit_every"] :]
            self.episodes += 1
            if self.episodes % self.config["fit_every"] == 0:
                sweep = range(self.config["min_components"], self.config["max_components"] + 1)
                self.mean_KQ, self.cov_KQQ = fit_mixture(self.row_MQ, sweep, self.config["criterion"], self.rng)
                if self.log is not None:
                    self.log.write("fitted", episode=self.episodes, mean=self.mean_KQ, cov=self.cov_KQQ)

    def _row(self, point_D: Float, reward: float) -> Float:
        raise TutelageError(f"{type(self).__name__} must define _row(point_D, reward).")

    def _utility_K(self) -> Float:
        raise TutelageError(f"{type(self).__name__} must define _utility_K().")

    @property
    def metrics(self) -> dict[str, float]:
        utility_K = self._utility_K() if len(self.mean_KQ) else np.zeros(1)
        return {"components": float(len(self.mean_KQ)), "utility_mean": float(utility_K.mean()), "utility_max": float(utility_K.max())}
