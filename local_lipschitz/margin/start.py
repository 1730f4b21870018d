"""Where the interior-point method begins: points of the ball run through the network; multipliers that always do."""

from __future__ import annotations

import torch
from torch import Tensor

from .ball import Ball
from .interior_point import Iterate
from .kinks import KinkRows, Lines, Rows
from .relaxation import Relaxation

PLAIN, INSIDE = 0.1, 0.03  # of the plain multipliers, added to those of the lines, and to any others
SPREAD = 1e-2  # of an identity, added to the moments of the points


def moments(ball: Ball, seed: int = 0) -> Tensor:
    """X (1, N, N): the mean of ξξᵀ over points of the ball, which all the inequalities hold for, and a little more."""
    relaxation = ball.relaxation
    k, G, N = relaxation.span, relaxation.kinks, relaxation.size
    generator = torch.Generator().manual_seed(seed)
    count = N + 50
    delta = torch.randn(count, k, generator=generator, dtype=torch.float64)
    length = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 0.25
    delta = length * delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True).clamp(min=1e-300)
    xi = torch.cat([torch.ones(count, 1), delta, torch.zeros(count, G)], 1).to(ball.functions)
    rows = relaxation.rows[0, :G]
    own = rows[:, 1 + k :].diagonal()
    for first, end in zip(relaxation.starts, [*relaxation.starts, G][1:], strict=True):
        y = -xi @ rows[first:end].mT  # n = −y as long as p = 0
        xi[:, 1 + k + first : 1 + k + end] = y.clamp(min=0.0) / own[first:end]
    X = xi.mT @ xi / count
    diagonal = X.diagonal()
    diagonal[1 : 1 + k] += SPREAD / max(k, 1)
    diagonal[1 + k :] += SPREAD * diagonal[1 + k :].clamp(min=1e-2)
    return X[None]


def plain(ball: Ball) -> Tensor:
    """Multipliers (1, M) without t: γ = 1, λ = 0, equal f and h: Z is positive definite whatever the rows."""
    relaxation = ball.relaxation
    mu = ball.functions.new_zeros(1, relaxation.multipliers)
    mu[:, 1] = 1.0
    mu[:, 2 + relaxation.kinks :] = max(1, relaxation.kinks) ** -0.5
    return mu


def from_lines(kinks: KinkRows, lines: Lines) -> Tensor:
    """Multipliers (K, M), without t, that prove what the lines prove, and a little of the plain ones.

    What p ≥ 0 adds with weight w, f = w does as well, since p² ≥ 0; likewise h for n ≥ 0; and f = h = λ/2 = w for the
    chord p + n ≤ 1, since (p + n)² − (p + n) = (p + n − 1)² + (p + n − 1).
    """
    u, ell, b = kinks.upper, -kinks.lower, lines.weights
    chord = (-b).clamp(min=0.0) * u * ell / (u + ell)
    rising = b.clamp(min=0.0)
    f = chord + torch.where(u > ell, 0.0, rising * u)
    h = chord + torch.where(u > ell, rising * ell, 0.0)
    gamma = 0.5 * lines.reach[:, None]
    mean = gamma * max(1, len(kinks)) ** -0.5
    t = torch.zeros_like(gamma)
    sides = (PLAIN * mean).expand(-1, len(kinks.sides.index))
    return torch.cat([t, gamma, 2.0 * chord, f + PLAIN * mean, h + PLAIN * mean, sides], 1)


def starts(kinks: KinkRows, rows: Rows) -> list[Tensor]:
    """Multipliers to begin from, for functions `rows`, up to scale."""
    return [shared(kinks), from_lines(kinks, kinks.lines(rows))]


def shared(kinks: KinkRows) -> Tensor:
    """Multipliers (1, M) for any functions: those of the joint bound where they are known, else of the product."""
    return from_joint(kinks) if bool((kinks.joint > 0).any()) else from_product(kinks)


def from_product(kinks: KinkRows) -> Tensor:
    """Multipliers (1, M), without t and up to scale, which prove what a product of norms proves, and a little more.

    With L the product, layers of kinks in reach a_k, and the sector 0 ≤ Δp/Δy ≤ 1 that p n = 0 and n² ≤ n make:
    L/a_k² for each kink of a layer and γ = L/2 balance a chain of a_k ≤ ‖A_k‖ a_{k−1}.
    """
    return _sectors(kinks, kinks.reach.square().reciprocal(), 0.5)


def from_joint(kinks: KinkRows) -> Tensor:
    """Multipliers (1, M), without t and up to scale, which prove what the joint bound proves.

    It has ‖δ‖² − Σ (v² − w²)/μ ⪰ 0, v = Δy and w = (Δp − q_c Δy)/q_r for slopes in q_c ± q_r = [q_lo, 1], where y0 > 0
    and q_lo = y0/(y0 + ℓ), and v² − w² = (Δp − q_lo Δy)(Δy − Δp)/q_r² = −(4/(1 − q_lo)) (p n + (y0/ℓ)(n² − ℓ n)).
    """
    side = torch.where(kinks.y0 > 0, -kinks.lower, kinks.upper)
    return _sectors(kinks, 4.0 * kinks.joint * (1.0 + kinks.y0.abs() / side), kinks.eps**2)


def _sectors(kinks: KinkRows, weight: Tensor, gamma: float) -> Tensor:
    """γ and, for each kink, weight·(p n + (y0/ℓ)(n² − ℓ n)), or (|y0|/u)(p² − u p) where y0 < 0; and a little more."""
    u, ell, y0, G = kinks.upper, -kinks.lower, kinks.y0, len(kinks)
    ball = weight.new_full((1,), gamma)
    mean = PLAIN * 0.01 * ball * max(1, G) ** -0.5
    f, h = weight * u * (-y0).clamp(min=0.0), weight * ell * y0.clamp(min=0.0)
    mu = torch.cat([0.0 * ball, ball, weight * u * ell, f + mean, h + mean, mean.expand(len(kinks.sides.index))])
    return mu[None]


def begin(relaxation: Relaxation, c: Tensor, mu: Tensor, X: Tensor) -> Iterate:
    """Iterates for functions c (B, N) from multipliers mu (B, M) and primal points X, well inside of Z ⪰ 0."""
    mu = mu.clone()
    mu[:, 2 + relaxation.kinks :] += INSIDE * mu[:, 1:2] * max(1, relaxation.kinks) ** -0.5
    t = relaxation.attained(mu, c)
    mu[:, 0] = t - 0.2 * (c[:, 0] - t).abs() - 1e-9 * c.abs().amax(1)
    slack = (-relaxation.values(X)).clamp(min=1e-3) * relaxation.signed()
    infinite = torch.full_like(t, torch.inf)
    return Iterate(mu, X, slack, infinite, torch.zeros(len(t), dtype=torch.int64, device=t.device))
