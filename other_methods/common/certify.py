"""What turns a solver's answer into an upper bound: checks in float64 whose own rounding is bounded.

Every check can fail on the safe side only: it says no, or gives a slightly larger number.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from other_methods.chain import Array
from other_methods.common.preactivation import ULP, gamma
from other_methods.common.reduced import Reduced


def spectral_norm(M: Array) -> float:
    """‖M‖₂ by a full SVD, plus what a backward stable SVD may lose: ulp·‖M‖ a row and a column, with room."""
    return float(np.linalg.norm(M, 2)) * (1.0 + 8.0 * ULP * sum(M.shape))


def is_positive_semidefinite(M: Array, error: Array | float = 0.0) -> bool:
    """True only if every symmetric matrix within `error` of M, elementwise, is positive semidefinite.

    Rump, BIT 46 (2006): if the floating-point Cholesky factorisation of M − c·I runs through, with a c that covers its
    own rounding, (n + 2)·ulp·trace, and the largest row sum of `error`, then they are. Rows and columns are first
    scaled to a diagonal near one, by powers of two, which is exact.
    """
    diagonal = np.diag(M)
    if not (np.isfinite(M).all() and (diagonal > 0).all()):
        return False
    scale = np.exp2(-np.round(0.5 * np.log2(diagonal)))
    M, error = scale[:, None] * M * scale, scale[:, None] * error * scale
    c = 2.0 * ((len(M) + 2) * ULP * float(np.trace(M)) + float(np.max(np.sum(error, axis=1))))
    try:
        scipy.linalg.cholesky(M - c * np.eye(len(M)), lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return False
    return True


def multiplier_matrix(net: Reduced, Lam: Array, rho: float) -> tuple[Array, Array]:
    """LipSDP's matrix, and a bound of the rounding in each entry:

        M = ρ‖x‖² − ‖[N P](x, z)‖² − 2 zᵀΛ(y − z)    as a quadratic form in the differences (x, z) of two points.

    Each pair of points has (Δz)ᵢ(Δy − Δz)ᵢ ≥ 0; so with Λ ≥ 0 diagonal and M ⪰ 0, ‖Δf‖² ≤ ρ‖Δx‖².
    Lam: diagonal (n,), or a full symmetric matrix (n, n).
    """
    n_0, n = net.inputs, len(net.layer)
    size = np.abs(net.output)
    M = -net.output.T @ net.output
    cross = (size + net.output_error).T @ net.output_error
    error = gamma(len(net.output)) * (size.T @ size) + cross + cross.T
    y_minus_z = net.hidden.copy()
    y_minus_z[:, n_0:] -= np.eye(n)
    half = _times(Lam, y_minus_z)
    half_error = _times(np.abs(Lam), gamma(0 if Lam.ndim == 1 else n) * np.abs(y_minus_z) + net.hidden_error)
    M[n_0:] -= half
    M[:, n_0:] -= half.T
    error[n_0:] += half_error
    error[:, n_0:] += half_error.T
    M[np.arange(n_0), np.arange(n_0)] += rho
    return M, error + gamma(0) * np.abs(M)


def _times(Lam: Array, A: Array) -> Array:
    return Lam[:, None] * A if Lam.ndim == 1 else Lam @ A


def smallest_rho(net: Reduced, Lam: Array) -> float:
    """The smallest ρ that satisfies M(ρ, Λ) ⪰ 0 with these multipliers, proved in float64; inf if none does.

    With M = [[ρ − A, −X], [−Xᵀ, K]] and K ≻ 0 that is λ_max(A + X K⁻¹ Xᵀ), the Schur complement; what is returned is
    as little above it as the Cholesky check lets pass.
    """
    M, error = multiplier_matrix(net, Lam, 0.0)
    corner = np.arange(net.inputs)
    A, X, K = -M[: len(corner), : len(corner)], -M[: len(corner), len(corner) :], M[len(corner) :, len(corner) :]
    try:
        L = scipy.linalg.cholesky(K, lower=True)
    except (scipy.linalg.LinAlgError, ValueError):
        return np.inf
    Y = scipy.linalg.solve_triangular(L, X.T, lower=True)
    rho = max(float(scipy.linalg.eigvalsh(A + Y.T @ Y)[-1]), float(np.finfo(np.float64).tiny))
    diagonal = M[corner, corner]
    margin = ULP * len(M) ** 2
    while margin < 1.0:
        larger = rho * (1.0 + margin)
        M[corner, corner] = diagonal + larger
        if is_positive_semidefinite(M, error + np.diag(gamma(0) * np.abs(M.diagonal()))):
            return larger
        margin *= 16.0
    return np.inf


def repaired_bound(net: Reduced, Lam: Array) -> float:
    """The Lipschitz bound √ρ that the multipliers Lam (n,) ≥ 0 prove, or ones nearby where these prove none.

    A solver's multipliers violate the inequality a little. A multiplier adds to its own block of the matrix and takes
    from those of the layers before it, so a factor (1 + t)^(layers to the output) makes any positive multipliers
    feasible for t large enough. The smallest bound over a range of t is returned; inf if the multipliers are unusable.
    """
    if len(Lam) == 0:
        return spectral_norm(net.N) + float(np.linalg.norm(net.output_error))
    if not np.isfinite(Lam).all() or Lam.max() <= 0:
        return np.inf
    Lam = np.maximum(Lam, 1e-9 * Lam.max())
    depth = net.layer.max() + 1 - net.layer
    best = np.inf
    for t in (0.0, *10.0 ** np.arange(-10.0, 4.0, 0.5)):
        rho = smallest_rho(net, Lam * (1.0 + t) ** depth)
        if np.isfinite(best) and rho > best * (1.0 - 1e-5):
            break  # no gain worth another check
        best = min(best, rho)
    return float(np.sqrt(best)) * (1.0 + 4.0 * ULP)
