"""The proof: a lower bound of a function on the ball from multipliers, by one Cholesky factorisation in float64.

If floating-point Cholesky runs through on a symmetric Ẑ, in whatever order, then ξᵀẐξ ≥ −γ (Σ √ẑ_ii |ξ_i|)² with γ =
γ_{N+2}/(1 − γ_{N+2}) (J. Demmel, 1989; Higham, theorem 10.5), and so Ẑ ≻ −γ tr Ẑ I (S. M. Rump, BIT 46, 2006). Ẑ is
within E of Σ μ_i A_i + C for the given numbers, |ξ|ᵀ|E||ξ| a multiple of what the sizes of all terms add up to. On the
ball ‖δ‖ and every p are at most 1. So little is taken from t, whatever μ is; and what the rows may be off by, with the
weight of the inequalities they enter (docs/margin.md). Nothing here is random or sampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, gamma_n, of_computed
from .ball import Ball
from .reduced import Reduced
from .relaxation import Relaxation, best_scales, objective

UP = 1.0 + 1e-10  # for the rounding of the corrections themselves


def certified(ball: Ball, k: int, mu: Tensor, reduced: Reduced | None = None) -> Tensor:
    """A proven lower bound of function k with multipliers mu (1, 2 + 2G + R); −∞ where they prove nothing.

    reduced: of the same relaxation. What it does is a factorisation of the whole matrix in another order.
    """
    relaxation, c = ball.relaxation, ball.functions[k]
    t, gamma, lam, f, h = (x[0] for x in relaxation.split(mu))
    signs = (gamma >= 0) & (f >= 0).all() & (h >= 0).all() & (lam[~relaxation.bends[0]] == 0).all()
    feasible = bool(torch.isfinite(mu).all() & signs)
    if not feasible or not _runs_through(relaxation, c, mu, reduced):
        return torch.full_like(t, -math.inf)
    N, largest = relaxation.size, 2.0 + ball.excess + relaxation.kinks
    factor = of_computed(N + 2) * _across(ball, _diagonal(ball, mu, c).sqrt()[None])[0].square()
    entries = gamma_n(relaxation.rows.shape[1] + 16) * _terms(ball, mu, c)
    slack = _slack(ball, mu) + ball.function_error[k]
    return t - UP * (factor + N * UNDERFLOW * largest + entries + slack + 4.0 * gamma_n(4) * t.abs())


def _runs_through(relaxation: Relaxation, c: Tensor, mu: Tensor, reduced: Reduced | None) -> bool:
    """Whether Cholesky does on the matrix of mu (1, M) and function c (N,)."""
    if reduced is None:
        return not int(torch.linalg.cholesky_ex(relaxation.matrix(mu) + objective(c[None]))[1])
    found = reduced.point(mu[0], c)
    return found is not None and found.t > float(mu[0, 0])  # the last pivot, of the row of 1, is positive


def certified_shares(ball: Ball, mu: Tensor) -> Tensor:
    """Proven lower bounds (K,) of all functions, each with the best scale s of the same multipliers mu (1, 2 + 2G + R).

    One factorisation for all: with M the matrix of mu, b = c/2 + s m_0 and any y, r = s M_11 y + b, the value at
    ξ = (1, y + z) is at least c_0 + s m_00 + y·(r + b) + 2 r·z − s σ‖z‖², where Cholesky shows that M_11 ≻ −σ I; and
    ‖z‖ ≤ ‖ξ‖ + ‖y‖. −∞ where it does not run through.
    """
    relaxation, c = ball.relaxation, ball.functions
    M = relaxation.matrix(torch.cat([torch.zeros_like(mu[:, :1]), mu[:, 1:]], 1))[0]
    L, bad = torch.linalg.cholesky_ex(M[1:, 1:])
    if int(bad):
        return torch.full_like(c[:, 0], -math.inf)
    scale, y = best_scales(M, L, c)
    N, largest = relaxation.size, 2.0 + ball.excess + relaxation.kinks
    sigma = of_computed(N + 1) * float(M[1:, 1:].trace()) * UP + N * UNDERFLOW
    entries = gamma_n(relaxation.rows.shape[1] + 16) * _size(ball, mu)
    b = 0.5 * c[:, 1:].mT + scale * M[1:, :1]
    r = scale * (M[1:, 1:] @ y) + b
    b_size, y_size = (torch.linalg.vector_norm(v, dim=0) for v in (b, y))
    r_off = gamma_n(N + 8) * (scale * torch.linalg.matrix_norm(M[1:, 1:]) * y_size + b_size + 2.0 * c.norm(dim=1))
    r_size = torch.linalg.vector_norm(r, dim=0) * UP + r_off
    away = (math.sqrt(largest) + y_size) * UP
    value = c[:, 0] + scale * M[0, 0] + (y * (r + b)).sum(0)
    off = gamma_n(N + 8) * (c[:, 0].abs() + scale * M[0, 0].abs() + y_size * (r_size + b_size))
    lost = 2.0 * r_size * away + scale * (sigma * away.square() + entries * largest + _slack(ball, mu))
    proven = value - UP * (lost + off + 4.0 * r_off * y_size + ball.function_error)
    return torch.where(proven.isfinite(), proven, -math.inf)  # multipliers may be infinite


def _across(ball: Ball, rows: Tensor) -> Tensor:
    """(k,) at least ⟨|row|, |ξ|⟩ on the ball, for rows (k, N): ‖δ‖² ≤ 1 + excess and p ≤ 1."""
    first = 1 + ball.relaxation.span
    one, delta, p = rows[:, 0].abs(), rows[:, 1:first], rows[:, first:].abs()
    return one + (1.0 + ball.excess) * torch.linalg.vector_norm(delta, dim=1) + p.sum(1)


def _diagonal(ball: Ball, mu: Tensor, c: Tensor) -> Tensor:
    """(N,) at least the diagonal of Z."""
    relaxation, first = ball.relaxation, 1 + ball.relaxation.span
    t, gamma, lam, f, h = (x[0] for x in relaxation.split(mu))
    rows = relaxation.rows[0]
    diagonal = h @ rows.square()
    diagonal[0] += h @ rows[:, 0].abs() + gamma + t.abs() + c[0].abs()
    diagonal[1:first] += gamma
    diagonal[first:] += f + (lam * rows[: relaxation.kinks, first:].diagonal()).abs()
    return diagonal * UP


def _terms(ball: Ball, mu: Tensor, c: Tensor) -> Tensor:
    """At least what the sizes of all terms of ξᵀZξ add up to on the ball."""
    t, gamma = mu[0, :2]
    kinks = _kink_terms(ball, mu, _across(ball, ball.relaxation.rows[0]))
    return kinks + gamma * (2.0 + ball.excess) + _across(ball, c[None])[0] + t.abs()


def _size(ball: Ball, mu: Tensor) -> Tensor:
    """At least the sum of the sizes of all terms but t and c in Z."""
    kinks = _kink_terms(ball, mu, torch.linalg.vector_norm(ball.relaxation.rows[0], dim=1))
    return kinks + mu[0, 1] * (math.sqrt(ball.relaxation.span) + 1.0)


def _kink_terms(ball: Ball, mu: Tensor, rows: Tensor) -> Tensor:
    """What the sizes of the kinks' terms add up to, for the sizes of the rows (R,)."""
    _, _, lam, f, h = (x[0] for x in ball.relaxation.split(mu))
    return (h * rows * (rows + 1.0)).sum() + lam.abs() @ rows[: ball.relaxation.kinks] + 2.0 * f.sum()


def _slack(ball: Ball, mu: Tensor) -> Tensor:
    """What the errors of the rows and of the basis may take from a bound with these multipliers."""
    _, gamma, lam, _, h = (x[0] for x in ball.relaxation.split(mu))
    off = ball.row_error
    return lam.abs() @ off[: ball.relaxation.kinks] + (h * off * (3.0 + off)).sum() + gamma * ball.excess
