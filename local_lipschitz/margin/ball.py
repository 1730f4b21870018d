"""Kinks and functions in the scaled variables of the relaxation, and what rounding may take from a bound there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, gamma_n
from .kinks import KinkRows, Rows
from .relaxation import Relaxation


@dataclass(frozen=True)
class Ball:
    """The relaxation of one ball (a batch of one), and functions on it.

    functions: (K, N), c·ξ. On the ball each row is off by at most row_error (R,), each function by function_error (K,),
    and ‖δ‖² ≤ 1 + excess.
    """

    relaxation: Relaxation
    functions: Tensor
    row_error: Tensor
    function_error: Tensor
    excess: float
    basis: Tensor | None

    def points(self, xi: Tensor, eps: float) -> Tensor:
        """δ (b, n) in the ball, in its own units, of ξ (b, N)."""
        delta = xi[:, 1 : 1 + self.relaxation.span]
        delta = delta if self.basis is None else delta @ self.basis.mT
        return eps * delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True).clamp(min=1.0)

    def only(self, k: int) -> Ball:
        """With function k alone."""
        one = slice(k, k + 1)
        return replace(self, functions=self.functions[one], function_error=self.function_error[one])


def scaled(kinks: KinkRows, functions: Rows) -> Ball:
    """δ in units of ε and in a basis of what the rows see, p in units of u, n in units of ℓ; and the sides of a box."""
    G, eps, ell, u, p0 = len(kinks), kinks.eps, -kinks.lower, kinks.upper, kinks.p0
    K, sides = len(functions.y0), kinks.sides
    width = sides.high - sides.low
    w = kinks.Q.new_zeros(len(width), kinks.Q.shape[1])
    w.scatter_(1, sides.index[:, None], (eps / width)[:, None])  # (δ − low)/width, in [0, 1]
    Q, T = eps * torch.cat([kinks.Q, functions.Q]), torch.cat([kinks.T, functions.T])
    y0, error = torch.cat([kinks.y0, functions.y0]), torch.cat([kinks.error, functions.error])
    seen, lost, excess, basis = _in_basis(torch.cat([Q, w]))
    xi = torch.cat([(y0 - T @ p0)[:, None], seen[: G + K], T * u], 1)
    size = y0.abs() + T.abs() @ (p0 + u) + torch.linalg.vector_norm(Q, dim=1)
    error = error + lost[: G + K] + 2.0 * gamma_n(G + 8) * (size + UNDERFLOW)
    n = -xi[:G]
    n[:, 1 + seen.shape[1] :].diagonal().add_(u)
    n = n / ell[:, None]
    w = torch.cat([(-sides.low / width)[:, None], seen[G + K :], w.new_zeros(len(w), G)], 1)
    rows = torch.cat([n, w])
    row_error = torch.cat([error[:G] / ell * (1.0 + 1e-12), lost[G + K :]])
    row_error = row_error + 8.0 * gamma_n(4) * (rows.abs().sum(1) + 1.0)
    bends = torch.ones(1, G, dtype=torch.bool, device=y0.device)
    relaxation = Relaxation(rows[None], seen.shape[1], bends, tuple(kinks.starts))
    return Ball(relaxation, xi[G:], row_error, error[G:], excess, basis)


def _in_basis(Q: Tensor) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """The rows in an orthonormal basis B of their span where that is smaller; what is lost of each; ‖BᵀB‖ − 1; B."""
    count, n = Q.shape
    if count >= n:
        return Q, torch.zeros_like(Q[:, 0]), 0.0, None
    B = torch.linalg.qr(Q.mT)[0]  # (n, count)
    seen = Q @ B
    norms = torch.linalg.vector_norm(Q, dim=1)
    lost = torch.linalg.vector_norm(Q - seen @ B.mT, dim=1) + 4.0 * gamma_n(n + count + 8) * (count**0.5 * norms)
    gram = B.mT @ B
    gram.diagonal().sub_(1.0)
    excess = float(torch.linalg.matrix_norm(gram)) + 2.0 * gamma_n(n + 2) * count
    return seen, lost + UNDERFLOW, excess, B
