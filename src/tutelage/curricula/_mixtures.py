"""Teachers that fit Gaussian mixtures to recent episodes and sample where a component promises progress.

Shared by ALP-GMM and Covar-GMM: the fit with a criterion, and the loop around it.

    fewer than `fit_every` episodes seen:   a uniform point, or one of an easy Gaussian where an expert states it
    U(0, 1) < random_share:                 a uniform point
    else   k ~ utility_k / sum of utilities  (uniform where all are 0);   x ~ N(mean_k, cov_k);   drop the last coordinates; clip
    every `fit_every` episodes: fit one mixture per number of components to the last `fit_every` rows; keep the best criterion
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._draws import draw_arms, proportional
from tutelage.curricula._gaussian import stated_gaussian
from tutelage.curricula._spaces import Range, SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
Criterion = Literal["aic", "bic", "aicc"]
CRITERIA = get_args(Criterion)

_MOST_STEPS, _LEAST_CHANGE, _RIDGE = 100, 1e-3, 1e-6  # scikit-learn's max_iter, tol and reg_covar


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


def fit_mixture(row_MQ: Float, components: range, criterion: Criterion, rng: np.random.Generator) -> tuple[Float, Float] | None:
    """Means (K, Q) and covariances (K, Q, Q) of the mixture with the least criterion over the numbers of components.

    What scikit-learn's `GaussianMixture` gives for full covariances and one start, to rounding: its k-means starts, and its expectation
    maximisation with all components at once, which takes a fraction of the time. The weights are not used by the teachers. None, where
    every number of components ends in a covariance that is not positive definite (rows on a face of a vast space).
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    best, chosen = np.inf, None
    for k in components:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # few distinct rows are no error
            label_M = KMeans(k, n_init=1, random_state=int(rng.integers(2**31))).fit(row_MQ).labels_
        try:
            mean_KQ, cov_KQQ, log_likelihood = maximise_likelihood(row_MQ, np.eye(k)[label_M])
        except np.linalg.LinAlgError:
            continue
        value = criterion_of(log_likelihood, len(row_MQ), parameter_count(k, row_MQ.shape[1]), criterion)
        if value < best or chosen is None:
            best, chosen = value, (mean_KQ, cov_KQQ)
    return chosen


def maximise_likelihood(row_MQ: Float, share_MK: Float) -> tuple[Float, Float, float]:
    """Expectation maximisation from the components' shares of each row: means, covariances, log-likelihood.

    Stops after 100 steps, or once the mean log-likelihood of a row changes by less than 0.001.
    """
    before, parts = -np.inf, _maximise(row_MQ, share_MK)
    for _ in range(_MOST_STEPS):
        joint_MK = _log_joint(row_MQ, *parts)
        row_M1 = _log_sum(joint_MK)
        parts = _maximise(row_MQ, np.exp(joint_MK - row_M1))
        now = float(row_M1.mean())
        if abs(now - before) < _LEAST_CHANGE:
            break
        before = now
    return parts[1], parts[2], float(_log_sum(_log_joint(row_MQ, *parts)).sum())


def _maximise(row_MQ: Float, share_MK: Float) -> tuple[Float, Float, Float]:
    """Weights, means and covariances for given shares."""
    rows_K = share_MK.sum(axis=0) + 10 * np.finfo(np.float64).eps
    mean_KQ = share_MK.T @ row_MQ / rows_K[:, None]
    away_KMQ = row_MQ - mean_KQ[:, None]
    cov_KQQ = (share_MK.T[:, :, None] * away_KMQ).transpose(0, 2, 1) @ away_KMQ / rows_K[:, None, None]
    return rows_K / rows_K.sum(), mean_KQ, cov_KQQ + _RIDGE * np.eye(row_MQ.shape[1])


def _log_joint(row_MQ: Float, weight_K: Float, mean_KQ: Float, cov_KQQ: Float) -> Float:
    """log (weight_k p_k(row)), shape (M, K)."""
    root_KQQ = np.linalg.cholesky(cov_KQQ)
    whiten_KQQ = np.linalg.inv(root_KQQ).transpose(0, 2, 1)
    square_KM = ((row_MQ @ whiten_KQQ - mean_KQ[:, None] @ whiten_KQQ) ** 2).sum(axis=2)
    half_log_det_K = np.log(np.diagonal(root_KQQ, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray((np.log(weight_K) - half_log_det_K - 0.5 * row_MQ.shape[1] * np.log(2 * np.pi)) - 0.5 * square_KM.T)


def _log_sum(joint_MK: Float) -> Float:
    """log sum_k exp, shape (M, 1)."""
    most_M1 = joint_MK.max(axis=1, keepdims=True)
    return np.asarray(most_M1 + np.log(np.exp(joint_MK - most_M1).sum(axis=1, keepdims=True)))


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
        for name in ("initial_mean", "initial_std"):
            config[name] = None if config[name] is None else [float(x) for x in config[name]]
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        stated = (config["initial_mean"], config["initial_std"])
        self.easy_D, self.easy_std_D = stated_gaussian(self.space, *stated, name=f"{self.name}: initial")
        width = self.space.dimensions + self.extra
        self.row_MQ = np.zeros((0, width))
        self.episodes = 0
        self.mean_KQ, self.cov_KQQ = np.zeros((0, width)), np.zeros((0, width, width))

    def _propose(self, n: int) -> Float:
        points_ND = self.space.sample(n, self.rng)
        if not len(self.mean_KQ):
            if self.easy_D is None:
                return points_ND
            return self.space.clip(self.easy_D + self.easy_std_D * self.rng.standard_normal(points_ND.shape))
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
                fitted = fit_mixture(self.row_MQ, sweep, self.config["criterion"], self.rng)
                self.mean_KQ, self.cov_KQQ = fitted or (self.mean_KQ, self.cov_KQQ)
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
