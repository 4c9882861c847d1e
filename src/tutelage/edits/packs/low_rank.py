"""Truncated singular value decompositions, and a product that every machine computes to the same bit.

The factors come from the eigenvectors of the smaller Gram matrix in float64: Δ Δᵀ = U Σ² Uᵀ, then Σ Vᵀ = Uᵀ Δ. Squaring halves the digits
of small singular values, of float64's sixteen, so that those of a float32 matrix survive; it takes a third of the time of LAPACK's SVD
(and of torch's). Where few directions are wanted of many, a randomised range finder is faster still (Halko, Martinsson & Tropp 2011,
algorithms 4.4 and 5.1).
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from tutelage.edits._dtypes import Array

_RANDOMISED = 16  # from this many times fewer directions than the matrix has
_OVERSAMPLE = 16
_POWER = 4


def truncated_svd(delta_MN: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """U (M, R), σ (R,) falling, and Vᵀ (R, N) of the best approximation of rank R = min(rank, M, N), in float32.

    `rng` is used only by the randomised method, for ranks of at most a sixteenth of min(M, N); its error is within 2 % of the least
    possible on the spectra of the tests.
    """
    rank = min(rank, *delta_MN.shape)
    if delta_MN.shape[0] > delta_MN.shape[1]:
        v_NR, sigma_R, ut_RM = truncated_svd(delta_MN.T, rank, rng)
        return ut_RM.T, sigma_R, v_NR.T
    if rank * _RANDOMISED <= delta_MN.shape[0]:
        return _randomised(delta_MN, rank, rng)
    return _of_basis(delta_MN, _eigenvectors(delta_MN, rank))


def squared_singular_values(delta_MN: Array) -> Array:
    """σ² of all directions, falling, in float64."""
    return np.maximum(np.linalg.eigvalsh(_gram(delta_MN))[::-1], 0)


def energy_rank(energy_R: Array, share: float) -> int:
    """The smallest k with Σ_{i≤k} σ_i² ≥ share · Σ_i σ_i² (GraftLLM's rule for MLP matrices)."""
    total = np.cumsum(energy_R)
    return int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)) + 1) if total[-1] > 0 else 0


def _gram(delta_MN: Array) -> Array:
    wide = delta_MN.astype(np.float64)
    return wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide


def _eigenvectors(delta_MN: Array, rank: int) -> Array:
    size = len(delta_MN)
    if 4 * rank > size:
        return np.linalg.eigh(_gram(delta_MN))[1][:, ::-1][:, :rank]
    return linalg.eigh(_gram(delta_MN), subset_by_index=(size - rank, size - 1), overwrite_a=True)[1][:, ::-1]


def _of_basis(delta_MN: Array, u_MR: Array) -> tuple[Array, Array, Array]:
    """Σ Vᵀ = Uᵀ Δ for an orthonormal basis; a direction of length zero has Vᵀ = 0."""
    u_MR = np.ascontiguousarray(u_MR, dtype=np.float32)
    scaled_RN = u_MR.T @ delta_MN.astype(np.float32, copy=False)
    sigma_R = np.sqrt(np.einsum("rn,rn->r", scaled_RN, scaled_RN, dtype=np.float64)).astype(np.float32)
    return u_MR, sigma_R, np.divide(scaled_RN, sigma_R[:, None], out=np.zeros_like(scaled_RN), where=sigma_R[:, None] > 0)


def _randomised(delta_MN: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    delta_MN = delta_MN.astype(np.float32, copy=False)
    width = min(rank + max(_OVERSAMPLE, rank // 4), len(delta_MN))
    basis_MW = np.linalg.qr(delta_MN @ rng.standard_normal((delta_MN.shape[1], width), dtype=np.float32))[0]
    for _ in range(_POWER):
        basis_NW = np.linalg.qr(delta_MN.T @ basis_MW)[0]
        basis_MW = np.linalg.qr(delta_MN @ basis_NW)[0]
    small_WN = basis_MW.T @ delta_MN
    rotation_WR = np.linalg.eigh(_gram(small_WN))[1][:, ::-1][:, :rank]
    return _of_basis(delta_MN, basis_MW @ rotation_WR.astype(np.float32))


def exact_product(left_MR: Array, right_RN: Array) -> Array:
    """left @ right in float32, the same bits on every machine.

    Both are rounded to integers times a power of two, so few bits each (21 at R = 1000) that every partial sum of the product is an integer
    below 2^53: float64 holds it exactly, in whatever order a machine adds.
    """
    rank = max(left_MR.shape[1], 1)
    bits = (53 - int(np.ceil(np.log2(rank)))) // 2
    (left, down), (right, also) = _integers(left_MR, bits), _integers(right_RN, bits)
    out_MN = np.empty((left_MR.shape[0], right_RN.shape[1]), np.float32)
    for start in range(0, len(out_MN), 512):  # few rows at a time in float64
        product_KN = left[start : start + 512] @ right
        out_MN[start : start + 512] = np.multiply(product_KN, 2.0 ** (-down - also), out=product_KN)
    return out_MN


def _integers(x: Array, bits: int) -> tuple[Array, int]:
    """x · 2^k, rounded to integers of at most `bits` bits, and k."""
    power = bits - int(np.frexp(np.abs(x).max(initial=0))[1])
    scaled = x.astype(np.float64)
    scaled *= 2.0**power  # exact, as all here: a power of two, far from the ends of float64's range
    return np.rint(scaled, out=scaled), power
