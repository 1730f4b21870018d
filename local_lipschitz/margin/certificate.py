"""The proof: a lower bound of a function on the ball from multipliers, by one Cholesky factorisation in float64.

If floating-point Cholesky runs through on a symmetric Ẑ, then Ẑ ≻ −s I with s = γ_{N+1}/(1 − γ_{N+1}) tr Ẑ (S. M.
Rump, Verification of positive definiteness, BIT 46, 2006). Ẑ is within E of Σ μ_i A_i + C for the given numbers. And
on the ball ‖ξ‖² ≤ R = 2 + number of kinks. So g ≥ t − (s + ‖E‖) R, whatever μ is; what the rows may be off by is taken
from it, with the weight of the inequalities they enter (docs/margin.md). Nothing here is random or sampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, gamma_n, of_computed
from .ball import Ball
from .relaxation import objective

UP = 1.0 + 1e-10  # for the rounding of the corrections themselves


def certified(ball: Ball, k: int, mu: Tensor) -> Tensor:
    """A proven lower bound of function k with multipliers mu (1, 2 + 2G + R); −∞ where they prove nothing."""
    relaxation, c = ball.relaxation, ball.functions[k]
    t, gamma, lam, f, h = (x[0] for x in relaxation.split(mu))
    signs = (gamma >= 0) & (f >= 0).all() & (h >= 0).all() & (lam[~relaxation.bends[0]] == 0).all()
    feasible = bool(torch.isfinite(mu).all() & signs)
    Z = relaxation.matrix(mu) + objective(c[None])
    if not feasible or int(torch.linalg.cholesky_ex(Z)[1]):
        return torch.full_like(t, -math.inf)
    N, G = relaxation.size, relaxation.kinks
    shift = of_computed(N + 1) * float(Z[0].trace()) * UP + N * UNDERFLOW
    rows = torch.linalg.vector_norm(relaxation.rows[0], dim=1)
    size = (h * rows * (rows + 1.0)).sum() + lam.abs() @ rows[:G] + 2.0 * f.sum() + c.norm() + t.abs()
    size = size + gamma * (math.sqrt(relaxation.span) + 1.0)
    entries = gamma_n(relaxation.rows.shape[1] + 16) * size
    largest = 2.0 + ball.excess + G
    off = ball.row_error
    slack = lam.abs() @ off[:G] + (h * off * (3.0 + off)).sum() + gamma * ball.excess + ball.function_error[k]
    return t - UP * ((shift + entries) * largest + slack + 4.0 * gamma_n(4) * t.abs())
