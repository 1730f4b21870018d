"""The multipliers of the joint bound: from λ to the bound, and downhill (docs/joint_bound.md, sections 3 and 4).

With μ = 1/λ the condition ‖H‖ ≤ 1 reads K diag(1, μ) Kᵀ ⪯ diag(γ, μ), K = [[N, P], [Q, T]]: linear in (γ, μ). So
W(μ) = diag(μ) − QQᵀ − T diag(μ) Tᵀ must be positive definite, and the best γ is the largest eigenvalue of the small
matrix S(μ) = NNᵀ + P diag(μ) Pᵀ + CᵀW⁻¹C, C = QNᵀ + T diag(μ) Pᵀ, a convex function of μ.

Each function here takes B problems at once: μ is (B, G), and whatever is one number a problem (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vecdot

from .lbfgs import Pairs

FIRST_STEP = 0.5  # in log μ, the largest change
TINY = 1e-290
STALL = 3e-4  # of the objective (a logarithm), over PATIENCE steps
PATIENCE = 6
GROWTH = 1.5  # of a step over the one before, at most
RAISED = 1e-9  # of the Hessian's diagonal, for rounding
SHORTEST, SHORTEST_NEWTON = 1e-7, 1e-6  # steps that are not tried: in log μ, and relative to Newton's


class Infeasible(Exception):
    """No feasible multipliers were found."""


class TooManyGroups(Exception):
    """There are this many uncertain groups, or more, which is too many for the way that was taken."""

    def __init__(self, groups: int) -> None:
        super().__init__(f"more uncertain groups ({groups} or more) than are affordable")
        self.groups = groups


@dataclass(frozen=True)
class Point:
    """B objectives at some μ (B, G): their values, their gradients up − down in log μ, and their Hessians (B, G, G).

    value: (B,), ∞ where μ is not feasible, and then the rest means nothing. up, down ≥ 0: (B, G), the positive and the
    negative part; 0 where a place is only filled up. sizes: (B,) groups of each problem. excess: (B,) log of S over its
    target, of the largest or a little more. enough: (B,) no more is wanted.
    """

    value: Tensor
    up: Tensor
    down: Tensor
    sizes: Tensor
    excess: Tensor
    enough: Tensor
    hessian: Callable[[], Tensor] | None = None

    @classmethod
    def nowhere(cls, mu: Tensor) -> Point:
        """At μ that are not feasible."""
        value, nothing = torch.full_like(mu[:, 0], math.inf), torch.zeros_like(mu)
        return cls(value, nothing, nothing, value, value, torch.zeros_like(value, dtype=torch.bool))

    @property
    def gradient(self) -> Tensor:
        return self.up - self.down

    @property
    def goes_on(self) -> Tensor:
        """(B,) whether a better one is wanted, and to be had from here."""
        return (self.value < math.inf) & ~self.enough

    def where(self, here: Tensor, other: Point) -> Point:
        """The values of problems `here` (B,), those of `other` elsewhere, where no derivatives are wanted any more."""
        pairs = ((self.value, other.value), (self.excess, other.excess), (self.enough, other.enough))
        value, excess, enough = (torch.where(here, *both) for both in pairs)
        return replace(self, value=value, excess=excess, enough=enough)


Evaluate = Callable[[Tensor], Point]  # of μ


def affordable(steps: int, size: int, dear: int, power: int, least: int) -> int:
    """Fewer steps from the size `dear` on, where each takes longer, by a power of it; but `least`."""
    return max(min(steps, least), round(steps * min(1.0, dear / max(1, size)) ** power))


def descend(
    evaluate: Evaluate, mu: Tensor, steps: Tensor, stall: float = STALL, longest: Tensor | float = FIRST_STEP
) -> tuple[Tensor, Tensor, Point, Tensor]:
    """Minimise over θ = log μ from a feasible start: (μ, evaluations, last point, how long a next step may be).

    Ends after `steps` (B,) evaluations, or where the value falls by less than `stall` over PATIENCE steps. longest:
    what max |Δθ| of the first step may be. Later ones may be GROWTH times as long as the longest since one was too
    long, or as that was in the end: L-BFGS does not see the boundary of the feasible, only such lengths tell how near
    it is.

    L-BFGS with the inverse of |positive| + |negative| part of the gradient as its initial Hessian: each part is the
    curvature that its group has by itself. Backtracks from infeasible points, so every iterate is feasible.
    """

    def objective(theta: Tensor) -> Point:
        return evaluate(theta.exp())

    point, used, theta, start = evaluate(mu), torch.ones_like(steps), mu.log(), mu
    pairs, values, longest = Pairs(theta), list[Tensor](), longest * torch.ones_like(point.value)
    open_ = point.goes_on & (used < steps)
    while bool(open_.any()):
        values.append(point.value)
        if len(values) > PATIENCE:
            open_ = open_ & (values[-1 - PATIENCE] - point.value >= stall)
        scale = point.up + point.down
        scale = scale + (1e-3 / point.sizes * scale.sum(1))[:, None] + torch.finfo(theta.dtype).tiny
        direction = pairs.direction(point.gradient, scale)
        largest = direction.abs().amax(1)
        open_ = open_ & (largest > 0.0) & (largest < math.inf)
        direction = torch.where(open_[:, None], direction, 0.0)
        first = torch.where(open_, (longest / largest).clamp(max=1.0), 0.0)
        line, slope = Line(objective, theta, direction, (1e-4, 0.3)), vecdot(point.gradient, direction)
        step, trial, more = line.search(point, slope, first, SHORTEST / largest, steps - used)
        pairs.add(step[:, None] * direction, trial.gradient - point.gradient)
        theta, point, used = line.at(step), trial, used + more
        open_ = open_ & (step > 0.0) & point.goes_on & (used < steps)
        length = torch.where(step > 0.0, step * largest, 0.0)
        longest = torch.maximum(torch.where((step > 0.0) & (step < first), length, longest), GROWTH * length)
    return torch.where((used > 1)[:, None], theta.exp(), start), used, point, longest


def newton(evaluate: Evaluate, mu: Tensor, steps: Tensor, accuracy: float) -> tuple[Tensor, Tensor, Point]:
    """Minimise a convex objective from a feasible start by damped Newton steps, as `descend`. μ stays feasible.

    Ends where enough is reached, too.
    """
    point, used, longest = evaluate(mu), torch.ones_like(steps), torch.ones_like(mu[:, 0])
    open_ = point.goes_on & (used < steps)
    while bool(open_.any()):
        assert point.hessian is not None
        hessian = point.hessian()
        hessian.diagonal(dim1=1, dim2=2).mul_(1.0 + RAISED).add_(TINY)
        L, info = torch.linalg.cholesky_ex(hessian)
        direction = -torch.cholesky_solve(point.gradient[:, :, None], L)[:, :, 0]
        slope = vecdot(point.gradient, direction)
        open_ = open_ & (info == 0) & (slope < -accuracy)
        direction = torch.where(open_[:, None], direction, 0.0)
        inside = 0.95 / (-direction).amax(1).clamp(min=1e-3)  # μ > 0
        first = torch.where(open_, torch.minimum(longest, inside).clamp(max=1.0), 0.0)
        line = Line(evaluate, mu, mu * direction, (0.1, 0.5))
        step, point, more = line.search(point, slope, first, torch.full_like(first, SHORTEST_NEWTON), steps - used)
        mu, used = line.at(step), used + more
        longest = torch.where(step == first, 2.0, 1.0) * step
        open_ = open_ & (step > 0.0) & point.goes_on & (used < steps)
    return mu, used, point


@dataclass(frozen=True)
class Line:
    """A way down for each problem, start + step·direction, (B, G) each.

    rule: how much has to come of the fall that the slope promises; what a step that is not feasible is shortened to.
    """

    evaluate: Evaluate
    start: Tensor
    direction: Tensor
    rule: tuple[float, float]

    def at(self, step: Tensor) -> Tensor:
        return self.start + step[:, None] * self.direction

    def search(
        self, point: Point, slope: Tensor, step: Tensor, least: Tensor, budget: Tensor
    ) -> tuple[Tensor, Point, Tensor]:
        """From `step` (B,) downwards until the objective falls: (step, point, evaluations); 0 where it never does.

        slope: of the objective, at `point`. Problems whose first step is 0 stay where they are.
        """
        promised, shortened = self.rule
        taken, used, trial = torch.zeros_like(step), torch.zeros_like(budget), point
        open_ = step > 0.0
        while bool(open_.any()):
            trial = self.evaluate(self.at(torch.where(open_, step, taken)))
            used = used + open_
            falls = trial.value <= point.value + promised * step * slope
            taken = torch.where(open_ & falls, step, taken)
            open_ = open_ & ~falls & (used < budget)
            if bool(open_.any()):
                step = step * torch.where(trial.value < math.inf, 0.5, shortened)
                open_ = open_ & (step >= least)
        moved = taken > 0.0
        return taken, trial if bool(moved.all()) else trial.where(moved, point), used
