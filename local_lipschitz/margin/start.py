"""Where the interior-point method begins: points of the ball run through the network, and multipliers that always do."""

from __future__ import annotations

import torch
from torch import Tensor

from .ball import Ball
from .interior_point import Iterate
from .relaxation import objective

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
    for first, end in zip(ball.starts, [*ball.starts, G][1:], strict=True):
        y = -xi @ rows[first:end].mT  # n = −y as long as p = 0
        xi[:, 1 + k + first : 1 + k + end] = y.clamp(min=0.0) / own[first:end]
    X = xi.mT @ xi / count
    diagonal = X.diagonal()
    diagonal[1 : 1 + k] += SPREAD / max(k, 1)
    diagonal[1 + k :] += SPREAD * diagonal[1 + k :].clamp(min=1e-2)
    return X[None]


def plain(ball: Ball) -> Tensor:
    """Multipliers (1, M) without t: γ = 1, λ = 0 and equal f and h, for which Z is positive definite whatever the rows."""
    relaxation = ball.relaxation
    mu = ball.functions.new_zeros(1, relaxation.multipliers)
    mu[:, 1] = 1.0
    mu[:, 2 + relaxation.kinks :] = max(1, relaxation.kinks) ** -0.5
    return mu


def begin(ball: Ball, k: int, mu: Tensor, scale: Tensor, t: Tensor, X: Tensor) -> Iterate:
    """An iterate for function k from multipliers mu (1, M) that give t at their best `scale`, well inside of Z ⪰ 0."""
    relaxation, c = ball.relaxation, ball.functions[k : k + 1]
    mu = mu * scale
    mu[:, 0] = t - 0.2 * (c[0, 0] - t).abs() - 1e-9 * c.abs().amax()
    slack = (-relaxation.values(X)).clamp(min=1e-3) * relaxation.signed()
    infinite = torch.full_like(mu[:, 0], torch.inf)
    return Iterate(mu, X, slack, infinite, torch.zeros(1, dtype=torch.int64, device=mu.device))
