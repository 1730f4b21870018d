"""A dual barrier method, for more kinks than the primal–dual one has time for (docs/margin.md).

    max t(μ) + τ (log det Z_11 + Σ log μ_i)  over μ with Z_11 ≻ 0 and γ, f, h > 0, for τ → 0,

with t(μ) the largest t of these multipliers, as in layered.py. Newton's matrix is tr(A_i V A_j V), V = Z⁻¹: as the A_i
have rank two, products of what V is between the rows p and n. A step costs a sixth of a primal–dual one, and t rises
from the first on. Where there are many multipliers those that promise most move. On the central path ξξᵀ + τ Z_11⁻¹ is
feasible for the primal problem, with a gap of τ times the size.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .interior_point import Goal
from .newton import Newton
from .reduced import Point, Reduced

FLOOR = 1e-3  # of γ/√G: the least f and h to begin with
MOVING = 3000  # multipliers that move in one step, at most
FIRST = 1.0  # of how far t is below the nominal value, by the size: the first τ
SHRINK = 0.5  # of τ, once t rises by less than SLOW of what τ costs
SLOW = 0.1
FRACTION = 0.9  # of the way to where a multiplier changes its sign
LEFT = 12  # steps, as good as the last one, that gain more than all that are left: each gains less than the one before
SHORT = 0.3  # of a step: so long ones may fall for the sake of the central path, and the primal value ends them
LEAST, LONGER = 1e-4, 3.0  # of a step; and how much longer than the one before it may be
RIDGE = 1e-13
STEP = 8.0  # about how many times as long as one point a step takes, before one was seen


@dataclass(frozen=True)
class Climbed:
    """The best multipliers mu (1, M); primal: about the largest t there can be, ∞ where unknown; steps taken."""

    mu: Tensor
    primal: float
    steps: int


def climb(reduced: Reduced, c: Tensor, mu: Tensor, goal: Goal, least: float = -math.inf) -> Climbed | None:
    """From multipliers mu (1, M) for function c (1, N) until the goal is reached; None where mu proves nothing.

    The work also ends once it is not going to give as much as `least`, or, where it has that, as the target.
    """
    target = float(goal.target[0])
    relaxation, start = reduced.relaxation, mu[0].clone()
    G = relaxation.kinks
    start[2 + G :].clamp_(min=FLOOR * float(start[1]) * max(1, G) ** -0.5)
    began = time.monotonic()
    now = reduced.point(start, c[0])
    if now is None:
        return None
    size, took = relaxation.size + int(relaxation.signed().sum()), STEP * (time.monotonic() - began)
    tau = FIRST * abs(float(c[0, 0]) - now.t) / size
    best, steps, primal, length = now, 0, math.inf, 1.0
    while steps < goal.steps and best.t <= target:
        began = time.monotonic()
        if began + took > goal.deadline:
            break
        found = _step(reduced, c[0], now, tau, length)
        took = time.monotonic() - began
        if found is None:
            break
        rise, (now, decrement, length) = found[0].t - now.t, found
        best, steps = (now if now.t > best.t else best), steps + 1
        if decrement < 1.0:
            primal = now.t + tau * (size + decrement * math.sqrt(size))
            if primal - best.t <= float(goal.gap[0]) or primal < least:
                break
        needed, near = least if best.t <= least else target, length < SHORT  # near the boundary: no step will do more
        if near and math.isfinite(needed) and best.t + min(goal.steps - steps, LEFT) * max(rise, 0.0) < needed:
            break
        if tau * size < 0.1 * float(goal.gap[0]):  # what is left does not lie on the central path
            break
        if rise < SLOW * tau * size:
            tau *= SHRINK
    return Climbed(best.mu[None], primal, steps)


def _step(reduced: Reduced, c: Tensor, at: Point, tau: float, length: float) -> tuple[Point, float, float] | None:
    """The next point, by a Newton step and a search along it; the Newton decrement before; the length of the step.

    length: of the step before.
    """
    signed = reduced.relaxation.signed()
    inverse = torch.where(signed, 1.0 / at.mu, 0.0)
    newton = Newton.of(reduced, at, tau)
    slope = newton.values + inverse
    slope[0] += 1.0 / tau
    moving = newton.promising(slope, inverse, MOVING)
    M = newton.matrix(moving)
    del newton
    M.diagonal().add_(inverse[moving].square())
    scale = M.diagonal().rsqrt()
    M.mul_(scale[:, None]).mul_(scale)
    M.diagonal().add_(RIDGE)
    factor, bad = torch.linalg.cholesky_ex(M)
    del M
    move = torch.zeros_like(slope)
    move[moving] = scale * torch.cholesky_solve((scale * slope[moving])[:, None], factor)[:, 0]
    if int(bad) or not bool(torch.isfinite(move).all()):
        return None
    decrement = math.sqrt(max(float(slope @ move), 0.0)) if len(moving) == len(slope) else math.inf
    found = _along(reduced, c, at, move, tau, length)
    return None if found is None else (found[0], decrement, found[1])


def _along(
    reduced: Reduced, c: Tensor, at: Point, move: Tensor, tau: float, length: float
) -> tuple[Point, float] | None:  # fmt: skip
    """The first better point in the direction `move` (M,), and how far it is.

    From LONGER times the `length` of the step before backwards, within FRACTION of the way to where signs change: each
    try is a factorisation.
    """
    signed = reduced.relaxation.signed()

    def height(p: Point) -> float:
        return p.t + tau * (p.log_det + float(p.mu[signed].log().sum()))

    reach = float(torch.where(signed & (move < 0), -at.mu / move, torch.inf).amin())
    length, top = min(1.0, LONGER * length, FRACTION * reach), height(at)
    while length > LEAST:
        found = reduced.point(at.mu + length * move, c)
        if found is not None and height(found) > top:
            return found, length
        length *= 0.5
    return None
