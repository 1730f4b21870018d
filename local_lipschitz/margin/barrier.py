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

from .interior_point import Goal, way
from .layered import Point, point
from .relaxation import Relaxation

MOVING = 3000  # multipliers that move in one step, at most
PAIRS = (("p", "r", 0), ("p", "p", 1), ("r", "r", 1))  # (a, b, what is taken from b) of λ, f and h
FLOOR = 1e-3  # of γ/√G: the least f and h to begin with
FIRST = 0.5  # of how far t is below the nominal value, by the size: the first τ
SHRINK = 0.5  # of τ, once t rises by less than SLOW of what τ costs
SLOW = 0.1
LENGTHS = (0.9, 0.6, 0.35, 0.2, 0.1, 0.05)  # of the way to the boundary
RIDGE = 1e-13
STEP = 8.0  # about how many times as long as one point a step takes, before one was seen


@dataclass(frozen=True)
class Climbed:
    """The last point; X (1, N, N) beside it; primal: about the largest t there can be, ∞ where unknown; steps taken."""

    point: Point
    X: Tensor
    primal: float
    steps: int


def climb(relaxation: Relaxation, c: Tensor, mu: Tensor, goal: Goal) -> Climbed | None:
    """From multipliers mu (1, M) for function c (1, N) until the goal is reached; None where mu proves nothing."""
    G, mu = relaxation.kinks, mu.clone()
    signed = relaxation.signed()
    mu[:, 2 + G :] = mu[:, 2 + G :].clamp(min=FLOOR * float(mu[0, 1]) * max(1, G) ** -0.5)
    began = time.monotonic()
    now = point(relaxation, c, mu)
    if now is None:
        return None
    size, took = relaxation.size + int(signed.sum()), STEP * (time.monotonic() - began)
    tau = FIRST * abs(float(c[0, 0] - now.t)) / size
    best, steps, primal = now, 0, math.inf
    while steps < goal.steps and float(best.t) <= float(goal.target[0]):
        began = time.monotonic()
        if began + took > goal.deadline:
            break
        found = _step(relaxation, c, now, tau, signed)
        took = time.monotonic() - began
        if found is None:
            break
        now, rise, decrement = found[0], float(found[0].t - now.t), found[1]
        best, steps = (now if now.t > best.t else best), steps + 1
        if decrement < 1.0:
            primal = float(now.t) + tau * (size + decrement * math.sqrt(size))
            if primal - float(best.t) <= float(goal.gap[0]) or primal < float(goal.target[0]) < math.inf:
                break
        if tau * size < 0.1 * float(goal.gap[0]):  # what is left does not lie on the central path
            break
        if rise < SLOW * tau * size:
            tau *= SHRINK
    X = torch.outer(now.xi, now.xi)
    X[1:, 1:] += tau * torch.cholesky_inverse(now.L)
    return Climbed(best, X[None], primal, steps)


def _step(relaxation: Relaxation, c: Tensor, at: Point, tau: float, signed: Tensor) -> tuple[Point, float] | None:
    """The next point, by a Newton step and a search along it; and the Newton decrement at the one before."""
    V = torch.outer(at.xi, at.xi) / tau
    V[1:, 1:] += torch.cholesky_inverse(at.L)
    inverse = torch.where(signed, 1.0 / at.mu[0], 0.0)
    newton = _Newton.of(relaxation, V)
    del V
    slope = newton.values + inverse
    slope[0] += 1.0 / tau
    moving = newton.promising(slope, inverse)
    M = newton.matrix(moving)
    M.diagonal().add_(inverse[moving].square())
    scale = M.diagonal().rsqrt()
    M.mul_(scale[:, None]).mul_(scale)
    M.diagonal().add_(RIDGE)
    factor, bad = torch.linalg.cholesky_ex(M)
    del M
    move = torch.zeros_like(slope)
    move[moving] = scale * torch.cholesky_solve((scale * slope[moving])[:, None], factor)[:, 0]
    del factor
    if int(bad) or not bool(torch.isfinite(move).all()):
        return None
    found = _along(relaxation, c, at, move[None], tau)
    decrement = math.sqrt(max(float(slope @ move), 0.0)) if len(moving) == len(slope) else math.inf
    return None if found is None else (found, decrement)


def _along(relaxation: Relaxation, c: Tensor, at: Point, move: Tensor, tau: float) -> Point | None:
    """The best of some points in the direction `move` (1, M); None where none is better."""
    move = move.clone()
    move[:, 0] = 0.0
    signed, dZ = relaxation.signed(), relaxation.matrix(move)[0]
    falling = signed & (move[0] < 0)
    sign_way = torch.where(falling, -at.mu[0] / move[0], torch.inf).min()
    reach = min(float(way(at.L[None], dZ[None, 1:, 1:])), float(sign_way))

    def height(p: Point) -> float:
        return float(p.t + tau * (2.0 * p.L.diagonal().log().sum() + p.mu[0, signed].log().sum()))

    best, top = None, height(at)
    for length in [1.0] * (reach > 2.0) + [reach * share for share in LENGTHS if reach * share < 1.0]:
        found = point(relaxation, c, at.mu + length * move, at.Z + length * dZ)
        if found is None or not height(found) > top:
            if best is not None:
                break
            continue
        best, top = found, height(found)
        if length == 1.0:
            break
    return best


@dataclass(frozen=True)
class _Newton:
    """⟨A_i, V⟩ and tr(A_i V A_j V), by what V is between the rows: 1, p (G,) and r = n, w (R,).

    A = sym(a bᵀ) with (a, b) = (p, n) for λ, (p, p − 1) for f, (r, r − 1) for h; −sym(1 1) for t.
    values: (M,). between: p p, p r, r p and r r; with_one: 1 p and 1 r; one: 1 1. first: (2, M), the rows of t and γ.
    """

    values: Tensor
    between: dict[str, Tensor]
    with_one: dict[str, Tensor]
    one: Tensor
    first: Tensor

    @classmethod
    def of(cls, relaxation: Relaxation, V: Tensor) -> _Newton:
        """For V (N, N)."""
        G, k = relaxation.kinks, relaxation.span
        S = relaxation.seen(V[None])[0]
        rr = relaxation.seen(S.mT[None])[0]
        p, d = slice(1 + k, None), slice(1, 1 + k)
        pp, rp, one, p1, r1 = V[p, p], S[:, p], V[0, 0], V[p, 0], S[:, 0]
        Vd, Sd, v0 = V[p, d], S[:, d], V[0, d]
        ball = v0.square().sum()
        t = torch.cat([-p1 * r1[:G], p1 * (one - p1), r1 * (one - r1)])
        gamma = torch.cat([(Vd * Sd[:G]).sum(1), (Vd * (Vd - v0)).sum(1), (Sd * (Sd - v0)).sum(1)]) + t
        corner = torch.stack([one.square(), one.square() - ball, V[d, d].square().sum() - 2.0 * ball + one.square()])
        first = torch.cat([torch.stack([corner[:2], corner[1:]]), torch.stack([t, gamma])], 1)
        own = [rp[:G].diagonal(), pp.diagonal() - p1, rr.diagonal() - r1]
        values = torch.cat([-one[None], V.diagonal()[d].sum()[None] - one, *own])
        return cls(values, {"pp": pp, "rp": rp, "pr": rp.mT, "rr": rr}, {"p": p1, "r": r1}, one, first)

    def promising(self, slope: Tensor, inverse: Tensor) -> Tensor:
        """The multipliers that move, in order: those from which a Newton step by themselves would gain most."""
        one, p1, r1, G = self.one, self.with_one["p"], self.with_one["r"], len(self.with_one["p"])
        pp, rp, rr = (self.between[name].diagonal() for name in ("pp", "rp", "rr"))
        lam = 0.5 * (rp[:G].square() + pp * rr[:G])
        f, h = (0.5 * ((v - v1).square() + v * (v - 2.0 * v1 + one)) for v, v1 in ((pp, p1), (rr, r1)))
        gain = slope[2:].square() / (torch.cat([lam, f, h]) + inverse[2:].square())
        best = gain.topk(min(MOVING, len(gain))).indices.sort().values + 2
        return torch.cat([torch.arange(2, device=best.device), best])

    def matrix(self, moving: Tensor) -> Tensor:
        """tr(A_i V A_j V) for the multipliers `moving`, the first of which are t and γ."""
        G = len(self.with_one["p"])
        ends = [2, 2 + G, 2 + 2 * G, self.first.shape[1]]
        parts = [moving[(moving >= i) & (moving < j)] - i for i, j in zip(ends, ends[1:], strict=False)]
        M = self.first.new_empty(len(moving), len(moving))
        M[:2], M[:, :2] = self.first[:, moving], self.first[:, moving].mT
        starts = [2, 2 + len(parts[0]), 2 + len(parts[0]) + len(parts[1])]
        for i in range(3):
            for j in range(i, 3):
                block = self._block(PAIRS[i], parts[i], PAIRS[j], parts[j])
                rows, columns = slice(starts[i], starts[i] + len(block)), slice(starts[j], starts[j] + block.shape[1])
                M[rows, columns], M[columns, rows] = block, block.mT
        return M

    def _block(self, pair: tuple[str, str, int], i: Tensor, other: tuple[str, str, int], j: Tensor) -> Tensor:
        """½ (aᵀVb'·bᵀVa' + aᵀVa'·bᵀVb') for pairs (a, b) of one kind and (a', b') of another."""
        (a, b, less), (a2, b2, less2) = pair, other

        def form(x: str, y: str) -> Tensor:
            return self.between[x + y][i][:, j]

        one = self.with_one
        ab, ba, bb = form(a, b2), form(b, a2), form(b, b2)
        if less2:
            ab -= one[a][i][:, None]
            bb -= one[b][i][:, None]
        if less:
            ba -= one[a2][j]
            bb -= one[b2][j] - less2 * self.one
        return ab.mul_(ba).add_(form(a, a2).mul_(bb)).mul_(0.5)
