"""The multipliers of the joint bound: from λ to the bound, and downhill (docs/joint_bound.md, sections 3 and 4).

With μ = 1/λ the condition ‖H‖ ≤ 1 reads K diag(1, μ) Kᵀ ⪯ diag(γ, μ), K = [[N, P], [Q, T]]: linear in (γ, μ). So
W(μ) = diag(μ) − QQᵀ − T diag(μ) Tᵀ must be positive definite, and the best γ is the largest eigenvalue of the small
matrix S(μ) = NNᵀ + P diag(μ) Pᵀ + CᵀW⁻¹C, C = QNᵀ + T diag(μ) Pᵀ, a convex function of μ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 12  # pairs that L-BFGS keeps
FIRST_STEP = 0.5  # in log μ
TINY = 1e-290
STALL = 3e-4  # of the objective (a logarithm), over PATIENCE steps
PATIENCE = 6
GROWTH, AFTER = 2.0, 1.5  # of a step over the one before, at most; after one that was too long at first


class Infeasible(Exception):
    """No feasible multipliers were found."""


class TooManyGroups(Exception):
    """There are this many uncertain groups, or more, which is too many for the way that was taken."""

    def __init__(self, groups: int) -> None:
        super().__init__(f"more uncertain groups ({groups} or more) than are affordable")
        self.groups = groups


@dataclass(frozen=True)
class Point:
    """An objective at some μ: its value, its gradient up − down in log μ, and its Hessian.

    up, down ≥ 0: the positive and the negative part. excess: log of S over its target, of the largest or a little more.
    enough: no more is wanted.
    """

    value: float
    up: Tensor
    down: Tensor
    hessian: Callable[[], Tensor] | None = None
    excess: float = 0.0
    enough: bool = False

    @property
    def gradient(self) -> Tensor:
        return self.up - self.down


Evaluate = Callable[[Tensor], Point | None]  # of μ; None where it is not feasible


def affordable(steps: int, size: int, dear: int, power: int, least: int) -> int:
    """Fewer steps from the size `dear` on, where each takes longer, by a power of it; but `least`."""
    return max(min(steps, least), round(steps * min(1.0, dear / max(1, size)) ** power))


def descend(
    evaluate: Evaluate, mu: Tensor, steps: int, stall: float = STALL, growth: float = math.inf
) -> tuple[Tensor, int, Point | None]:
    """Minimise over θ = log μ from a feasible start; `steps` evaluations at most: (μ, evaluations, the last point).

    Ends where the value falls by less than `stall` over PATIENCE steps. growth: of a step over the one before, at most;
    after one that was too long at first, AFTER.

    L-BFGS with the inverse of |positive| + |negative| part of the gradient as its initial Hessian: each part is the
    curvature that its group has by itself. Backtracks from infeasible points, so every iterate is feasible.
    """
    point, used, theta = evaluate(mu), 1, mu.log()
    history: list[tuple[Tensor, Tensor]] = []
    values: list[float] = []
    longest = math.inf
    while point is not None and not point.enough and used < steps:
        values.append(point.value)
        if len(values) > PATIENCE and values[-1 - PATIENCE] - point.value < stall:
            break
        scale = point.up + point.down
        scale = scale + 1e-3 * scale.mean() + torch.finfo(theta.dtype).tiny
        direction = _two_loop(point.gradient, history, scale)
        slope = float(point.gradient @ direction)
        if not slope < 0.0:
            history.clear()
            direction = -point.gradient / scale
            slope = float(point.gradient @ direction)
        largest = float(direction.abs().max())
        if largest == 0.0 or not math.isfinite(largest):
            break
        first = step = min(1.0, (2.0 if history else FIRST_STEP) / largest, longest)
        trial = None
        while used < steps:
            trial = evaluate((theta + step * direction).exp())
            used += 1
            if trial is not None and trial.value <= point.value + 1e-4 * step * slope:
                break
            trial, step = None, step * (0.5 if trial is not None else 0.3)
            if step * largest < 1e-7:
                break
        if trial is None:
            break
        change, moved = trial.gradient - point.gradient, step * direction
        if float(change @ moved) > 1e-12 * float(moved.norm() * change.norm()):
            history = [*history[-MEMORY + 1 :], (moved, change)]
        theta, point, longest = theta + moved, trial, step * (growth if step == first else AFTER)
    return theta.exp() if used > 1 else mu, used, point


def _two_loop(gradient: Tensor, history: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    """−H·gradient, H the L-BFGS inverse Hessian that starts from diag(1/scale)."""
    q, kept = gradient.clone(), []
    for s, y in reversed(history):
        a = (s @ q) / (s @ y)
        q = q - a * y
        kept.append(a)
    q = q / scale
    if history:
        s, y = history[-1]
        q = q * ((s @ y) / (y @ (y / scale)))
    for (s, y), a in zip(history, reversed(kept), strict=True):
        q = q + s * (a - (y @ q) / (s @ y))
    return -q


def newton(evaluate: Evaluate, mu: Tensor, steps: int, accuracy: float) -> tuple[Tensor, int, Point | None]:
    """Minimise a convex objective from a feasible start by damped Newton steps, as `descend`. μ stays feasible.

    Ends where enough is reached, too.
    """
    point, used, longest = evaluate(mu), 1, 1.0
    while point is not None and not point.enough and used < steps:
        assert point.hessian is not None
        hessian = point.hessian()
        hessian.diagonal().add_(1e-9 * hessian.diagonal().mean() + TINY)
        L, info = torch.linalg.cholesky_ex(hessian)
        if int(info):
            break
        direction = -torch.cholesky_solve(point.gradient[:, None], L)[:, 0]
        slope = float(point.gradient @ direction)
        if not slope < -accuracy:
            break
        first = step = min(1.0, longest, 0.95 / max(float(-direction.min()), 1e-3))  # μ > 0
        trial = None
        while used < steps and step > 1e-6:
            trial = evaluate(mu * (1.0 + step * direction))
            used += 1
            if trial is not None and trial.value <= point.value + 0.1 * step * slope:
                break
            step, trial = 0.5 * step, None
        if trial is None:
            break
        mu, point = mu * (1.0 + step * direction), trial
        longest = 2.0 * step if step == first else step
    return mu, used, point


def log_norm(eigenvalues: Tensor, p: float) -> tuple[float, Tensor]:
    """log of the p-norm of eigenvalues ≥ 0, ≥ log of the largest, and its derivatives."""
    top = eigenvalues.amax().clamp(min=torch.finfo(eigenvalues.dtype).tiny)
    ratio = (eigenvalues / top).clamp(min=0.0)
    total = ratio.pow(p).sum()
    return float(top.log() + total.log() / p), ratio.pow(p - 1) / (total * top)


def inverse_of(L: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹, by matrix products: torch.cholesky_inverse is some fifteen times slower at a thousand groups."""
    X = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype, device=L.device), upper=False)
    return X.T @ X


def mixing(S: Tensor, p: float, turning: bool) -> list[tuple[int, int, float]]:
    """(i, j, factor) of the second derivative of log ‖S‖_p; negligible ones left out.

    turning: whether S are eigenvalues, whose vectors turn; others have no factors for i ≠ j.
    """
    top = S.amax().clamp(min=torch.finfo(S.dtype).tiny)
    ratio = (S / top).clamp(min=0.0)
    total = max(float(ratio.pow(p).sum() * top.square()), TINY)
    result = []
    for i in range(len(S)):
        for j in range(i + 1) if turning else (i,):
            a, b = float(ratio[i]), float(ratio[j])
            divided = (p - 1) * a ** (p - 2) if a - b < 1e-6 else (a ** (p - 1) - b ** (p - 1)) / (a - b)
            if divided > 1e-3:
                result.append((i, j, (1.0 if i == j else 2.0) * divided / total))
    return result
