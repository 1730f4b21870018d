"""A primal–dual interior-point method for the margin relaxation (docs/margin.md).

    max t  over μ = (t, γ, λ, f, h) with Z = C + Σ μ_i A_i ⪰ 0 and γ, f, h ≥ 0;
    min ⟨C, X⟩  over X ⪰ 0 with X_00 = 1, ⟨A_i, X⟩ = 0 for λ, ≤ 0 for the others.

The direction is the HKM one, with Mehrotra's predictor and corrector (Helmberg, Rendl, Vanderbei, Wolkowicz, SIAM J.
Optim. 6, 1996; Mehrotra, SIAM J. Optim. 2, 1992). μ is feasible throughout, so every iterate's t is a bound.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .relaxation import Relaxation, objective

FRACTION = 0.95  # of the way to the boundary
DOUBT = 10.0  # by how much more than now the residuals of X may weigh in the end
SMALL = 100  # rows of a matrix whose eigenvalues are all computed instead
LANCZOS = 16  # steps that find how far that is


@dataclass(frozen=True)
class Iterate:
    """μ (B, M) dual feasible, X (B, N, N), slack (B, M) of the inequalities (0 for equations).

    primal: (B,) the value of X, and what its residuals weigh: about the largest t there can be. steps: (B,) taken.
    """

    mu: Tensor
    X: Tensor
    slack: Tensor
    primal: Tensor
    steps: Tensor

    @property
    def t(self) -> Tensor:
        return self.mu[:, 0]

    def pick(self, which: Tensor) -> Iterate:
        return Iterate(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Goal:
    """When to stop: after `steps`, at a gap below `gap` (B,), once t > `target` (B,), or the primal value is below it.

    An infinite target is none. No step is begun that, lasting as long as those before, would end after the `deadline`
    of time.monotonic().
    """

    steps: int
    gap: Tensor
    target: Tensor
    deadline: float = math.inf


def solve(relaxation: Relaxation, c: Tensor, start: Iterate, goal: Goal) -> Iterate:
    """Iterates from `start` until the goal is reached; the last of each problem, functions c (B, N)."""
    result, now, began = start, start, time.monotonic()
    going = torch.arange(len(c), device=c.device)
    problem = _Problem(relaxation, objective(c))
    for step in range(goal.steps + 1):
        state = problem.factorise(now)
        now = replace(now, primal=state.primal, steps=now.steps + 1)
        result = _put(result, going[state.ok], now.pick(state.ok))
        done = ~state.ok | (now.primal - now.t <= goal.gap[going])
        target = goal.target[going]
        done |= (now.t > target) | ((now.primal < target) & target.isfinite())
        late = time.monotonic() + (time.monotonic() - began) / max(step, 1) > goal.deadline
        if step == goal.steps or late or bool(done.all()):
            break
        if bool(done.any()):
            going, now, state, problem = going[~done], now.pick(~done), state.pick(~done), problem.pick(~done)
        now = problem.step(now, state)
    return result


def _put(into: Iterate, at: Tensor, values: Iterate) -> Iterate:
    return Iterate(*(getattr(into, f.name).index_copy(0, at, getattr(values, f.name)) for f in fields(into)))


@dataclass(frozen=True)
class _State:
    """Factors at an iterate. ok: (B,) whether Z and X are positive definite there."""

    Z: Tensor
    L: Tensor
    LX: Tensor
    inverse: Tensor
    gap: Tensor
    primal: Tensor
    ok: Tensor

    def pick(self, which: Tensor) -> _State:
        return _State(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class _Direction:
    mu: Tensor
    Z: Tensor
    X: Tensor
    slack: Tensor


class _Problem:
    def __init__(self, relaxation: Relaxation, C: Tensor) -> None:
        self.relaxation, self.C = relaxation, C
        self.signed, self.fixed = relaxation.signed(), relaxation.fixed()
        self.right = torch.zeros(relaxation.multipliers, dtype=C.dtype, device=C.device)
        self.right[0] = -1.0  # ⟨A_t, X⟩ = −1

    def pick(self, which: Tensor) -> _Problem:
        return _Problem(self.relaxation.pick(which), self.C[which])

    def factorise(self, at: Iterate) -> _State:
        Z = self.C + self.relaxation.matrix(at.mu)
        L, bad = torch.linalg.cholesky_ex(Z)
        LX, bad_X = torch.linalg.cholesky_ex(at.X)
        ok = (bad == 0) & (bad_X == 0) & torch.isfinite(at.mu).all(1)
        L = torch.where(ok[:, None, None], L, torch.eye(L.shape[1], dtype=L.dtype, device=L.device))
        inverse = torch.cholesky_inverse(L)
        gap = (at.X * Z).sum((1, 2)) + (at.mu * at.slack).sum(1)
        residual = (self.relaxation.values(at.X) + at.slack - self.right).masked_fill(self.fixed, 0.0)
        primal = (self.C * at.X).sum((1, 2)) + DOUBT * (at.mu * residual).abs().sum(1)
        return _State(Z, L, LX, inverse, gap, primal, ok)

    def step(self, at: Iterate, state: _State) -> Iterate:
        """The next iterate; NaN where no step was possible."""
        size = self.relaxation.size + int(self.signed.sum())
        M = self.relaxation.schur(at.X, state.inverse)
        M.diagonal(dim1=1, dim2=2).add_(torch.where(self.signed, at.slack / at.mu, 0.0))
        M = M.masked_fill(self.fixed[:, None] | self.fixed[:, :, None], 0.0)
        M.diagonal(dim1=1, dim2=2).masked_fill_(self.fixed, 1.0)
        scale = M.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(M.dtype).tiny).rsqrt()
        M = M * scale[:, :, None] * scale[:, None]
        M.diagonal(dim1=1, dim2=2).add_(1e-15)
        factor, bad = torch.linalg.cholesky_ex(M)
        solver = _Solver(self, at, state, factor, scale)

        predicted = solver.direction(torch.zeros_like(state.gap), None)
        dual, primal = solver.lengths(predicted, 1.0)
        X, Z = at.X + _by(primal, predicted.X), state.Z + _by(dual, predicted.Z)
        slack, mu = at.slack + _by(primal, predicted.slack), at.mu + _by(dual, predicted.mu)
        ahead = (X * Z).sum((1, 2)) + torch.where(self.signed, mu * slack, 0.0).sum(1)
        share = (ahead / state.gap).clamp(1e-2, 1.0).square()
        share = torch.where(torch.minimum(dual, primal) < 0.1, share.clamp(min=0.3), share)
        found = solver.direction(share * state.gap / size, predicted)
        dual, primal = solver.lengths(found, FRACTION)
        stuck = (bad != 0) | (torch.maximum(dual, primal) < 1e-4)
        mu, X = at.mu + _by(dual, found.mu), at.X + _by(primal, found.X)
        mu = mu.masked_fill(stuck[:, None], torch.nan)
        return Iterate(mu, 0.5 * (X + X.mT), at.slack + _by(primal, found.slack), at.primal, at.steps)


class _Solver:
    """Directions from one factorisation of the Schur matrix."""

    def __init__(self, problem: _Problem, at: Iterate, state: _State, factor: Tensor, scale: Tensor) -> None:
        self.problem, self.at, self.state, self.factor, self.scale = problem, at, state, factor, scale
        self.seen = problem.relaxation.values(state.inverse)

    def direction(self, tau: Tensor, predicted: _Direction | None) -> _Direction:
        """Towards X Z = τ I and μ·slack = τ, with the second order of the predicted step."""
        problem, at, inverse = self.problem, self.at, self.state.inverse
        products = _by(tau, torch.ones_like(at.mu))
        right = _by(tau, self.seen) - problem.right
        if predicted is not None:
            second = predicted.X @ (predicted.Z @ inverse)
            second = 0.5 * (second + second.mT)
            right = right - problem.relaxation.values(second)
            products = products - predicted.slack * predicted.mu
        right = right + torch.where(problem.signed, products / at.mu, 0.0)
        right = (self.scale * right).masked_fill(problem.fixed, 0.0)
        mu = self.scale * torch.cholesky_solve(right[..., None], self.factor)[..., 0]
        Z = problem.relaxation.matrix(mu)
        X = at.X @ (Z @ inverse)
        X = _by(tau, inverse) - at.X - 0.5 * (X + X.mT)
        if predicted is not None:
            X = X - second
        slack = torch.where(problem.signed, (products - at.slack * mu) / at.mu - at.slack, 0.0)
        return _Direction(mu, Z, X, slack)

    def lengths(self, d: _Direction, fraction: float) -> tuple[Tensor, Tensor]:
        """(B,) dual and primal step lengths, at most 1, at most `fraction` of the way to the boundary."""
        signed = self.problem.signed
        dual = torch.minimum(way(self.state.L, d.Z), _way_of(self.at.mu, d.mu, signed))
        primal = torch.minimum(way(self.state.LX, d.X), _way_of(self.at.slack, d.slack, signed))
        return (fraction * dual).clamp(max=1.0), (fraction * primal).clamp(max=1.0)


def way(L: Tensor, D: Tensor) -> Tensor:
    """(B,) about the largest a with LLᵀ + a D ⪰ 0, rather less than more; by Lanczos on L⁻¹DL⁻ᵀ if that is large."""
    n = D.shape[-1]
    if n <= SMALL:
        S = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, D, upper=False).mT, upper=False)
        if not bool(torch.isfinite(S).all()):
            return torch.zeros(len(D), dtype=D.dtype, device=D.device)
        smallest = torch.linalg.eigvalsh(0.5 * (S + S.mT))[:, 0]
        return torch.where(smallest < 0, -1.0 / smallest.clamp(max=-1e-12), 1e12)
    v = torch.cos(torch.arange(n, dtype=D.dtype, device=D.device) * 1.7 + 0.3).expand(len(D), n)[..., None]
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    basis, alphas, betas = [v], [], []
    for _ in range(min(LANCZOS, n)):
        w = D @ torch.linalg.solve_triangular(L.mT, basis[-1], upper=True)
        w = torch.linalg.solve_triangular(L, w, upper=False)
        V = torch.cat(basis, 2)
        alphas.append((basis[-1] * w).sum((1, 2)))
        for _ in range(2):
            w = w - V @ (V.mT @ w)
        beta = torch.linalg.vector_norm(w, dim=(1, 2))
        betas.append(beta)
        basis.append(w / beta.clamp(min=1e-300)[:, None, None])
    T = torch.diag_embed(torch.stack(alphas, 1))
    off = torch.stack(betas, 1)
    T = T + torch.diag_embed(off[:, :-1], 1) + torch.diag_embed(off[:, :-1], -1)
    if not bool(torch.isfinite(T).all()):
        return torch.zeros(len(D), dtype=D.dtype, device=D.device)
    values, vectors = torch.linalg.eigh(T)
    smallest = values[:, 0] - off[:, -1] * vectors[:, -1, 0].abs()
    return torch.where(smallest < 0, -1.0 / smallest.clamp(max=-1e-12), 1e12)


def _way_of(x: Tensor, d: Tensor, signed: Tensor) -> Tensor:
    """(B,) the largest a with x + a d ≥ 0 where signed."""
    return torch.where(signed & (d < 0), -x / d, 1e12).amin(1)


def _by(factor: Tensor, values: Tensor) -> Tensor:
    """A factor (B,) times values (B, …)."""
    return factor.reshape(-1, *(1,) * (values.dim() - 1)) * values
