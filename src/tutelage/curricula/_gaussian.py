"""A Gaussian with its Cholesky factor as parameters: densities, divergences, their gradients and the Fisher information, in closed form.

The parameters are one flat vector of P = D + D (D + 1) / 2 numbers: the mean, the logarithms of the factor's diagonal, and the entries
below it, row by row. With x = mean + L z:

    d log p(x)  = (L^-T z) d mean + (L^-T z z^T - diag(1 / L_ii)) d L
    KL(p || q)  = (tr(T^-1 S) + (m_q - m_p)^T T^-1 (m_q - m_p) - D + log det T - log det S) / 2,   S and T the covariances of p and q
    Fisher      : d mean^T S^-1 d mean + |W|^2 + sum_i W_ii^2,   W = L^-1 dL        (the Hessian of KL(p || p') at p' = p)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
Vector = tuple[float, ...] | None


def stated_gaussian(space: TaskSpace, mean: Vector, std: Vector, *, share: float = 0.1, name: str) -> tuple[Float | None, Float]:
    """Mean (None where none is stated) and standard deviations (`share` of each side where none are) in the parameters' units.

    name: for errors, such as "alp-gmm: initial", which `_mean` and `_std` end.
    """
    mean_D = None if mean is None else space.check([mean], field=f"{name}_mean")[0]
    std_D = share * space.range_D if std is None else np.array(std, dtype=np.float64)
    if std_D.shape != (space.dimensions,) or not np.isfinite(std_D).all() or (std_D <= 0).any():
        names = ", ".join(space.names)
        raise TutelageError(f"{name}_std needs one finite number above 0 for each of {names}; got {std_D.tolist()}.")
    return mean_D, std_D


@dataclass(frozen=True)
class Gaussian:
    """N(mean_D, root_DD root_DD^T), the root lower triangular with a positive diagonal."""

    mean_D: Float
    root_DD: Float

    @classmethod
    def of_flat(cls, flat_P: Float, dimensions: int) -> Gaussian:
        """The Gaussian with these parameters; the inverse of `flat_P`."""
        root_DD = np.diag(np.exp(flat_P[dimensions : 2 * dimensions]))
        root_DD[np.tril_indices(dimensions, -1)] = flat_P[2 * dimensions :]
        return cls(flat_P[:dimensions].copy(), root_DD)

    @property
    def flat_P(self) -> Float:
        """Mean, log diagonal, strictly lower entries."""
        return self._flat(self.mean_D, np.log(np.diag(self.root_DD)), self.root_DD)

    def _flat(self, mean_D: Float, diagonal_D: Float, lower_DD: Float) -> Float:
        return np.concatenate([mean_D, diagonal_D, lower_DD[np.tril_indices(len(self.mean_D), -1)]])

    def _whiten(self, x_ND: Float) -> Float:
        return np.asarray(solve_triangular(self.root_DD, (x_ND - self.mean_D).T, lower=True).T)

    def log_prob(self, x_ND: Float) -> Float:
        """Log-densities, shape (N,)."""
        constant = np.log(np.diag(self.root_DD)).sum() + 0.5 * len(self.mean_D) * np.log(2 * np.pi)
        return np.asarray(-0.5 * (self._whiten(x_ND) ** 2).sum(axis=1) - constant)

    def score(self, x_ND: Float) -> Float:
        """Gradients of the log-densities in the parameters, shape (N, P)."""
        z_ND = self._whiten(x_ND)
        pull_ND = solve_triangular(self.root_DD, z_ND.T, lower=True, trans="T").T
        outer_NDD = pull_ND[:, :, None] * z_ND[:, None, :]
        diagonal_ND = np.einsum("nii->ni", outer_NDD) * np.diag(self.root_DD) - 1
        row, column = np.tril_indices(len(self.mean_D), -1)
        return np.concatenate([pull_ND, diagonal_ND, outer_NDD[:, row, column]], axis=1)

    def kl(self, other: Gaussian) -> float:
        """KL(self || other), in nats."""
        spread_DD = solve_triangular(other.root_DD, self.root_DD, lower=True)
        shift_D = solve_triangular(other.root_DD, other.mean_D - self.mean_D, lower=True)
        logs = np.log(np.diag(other.root_DD)).sum() - np.log(np.diag(self.root_DD)).sum()
        return float(0.5 * ((spread_DD**2).sum() + (shift_D**2).sum() - len(self.mean_D)) + logs)

    def kl_gradient(self, other: Gaussian) -> Float:
        """The gradient of KL(self || other) in the parameters of self, shape (P,)."""
        inverse_DD = solve_triangular(other.root_DD, np.eye(len(self.mean_D)), lower=True)
        precision_DD = inverse_DD.T @ inverse_DD
        lower_DD = precision_DD @ self.root_DD
        diagonal_D = np.diag(lower_DD) * np.diag(self.root_DD) - 1
        return self._flat(precision_DD @ (self.mean_D - other.mean_D), diagonal_D, lower_DD)

    def fisher(self) -> Float:
        """The Fisher information of the parameters, shape (P, P)."""
        d = len(self.mean_D)
        inverse_DD = solve_triangular(self.root_DD, np.eye(d), lower=True)
        row = np.concatenate([np.arange(d), np.tril_indices(d, -1)[0]])
        column = np.concatenate([np.arange(d), np.tril_indices(d, -1)[1]])
        scale_K = np.concatenate([np.diag(self.root_DD), np.ones(len(row) - d)])
        change_KDD = np.zeros((len(row), d, d))  # W of each parameter of the factor
        change_KDD[np.arange(len(row)), :, column] = inverse_DD[:, row].T * scale_K[:, None]
        diagonal_KD = np.einsum("kii->ki", change_KDD)
        fisher_PP = np.zeros((d + len(row), d + len(row)))
        fisher_PP[:d, :d] = inverse_DD.T @ inverse_DD
        fisher_PP[d:, d:] = np.einsum("kij,lij->kl", change_KDD, change_KDD) + diagonal_KD @ diagonal_KD.T
        return fisher_PP
