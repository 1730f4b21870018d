"""Lower bounds of several functions on one ball, which share what they can."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .ball import Ball
from .barrier import climb
from .certificate import certified
from .interior_point import Goal, solve
from .layered import rescaled
from .reduced import Reduced
from .start import begin, moments

STEP = 30.0  # about how many times as long as one `share` a step takes, before one was seen
INSIDE, LESS = 1e-9, (1e-7, 1e-5, 1e-3)  # of how far t is below the nominal value: by what it is made smaller
LITTLE = 1e-6  # of how far t is below the nominal value: what the error of one row may take
SMALL = 600  # the size up to which the primal–dual method is the faster one


@dataclass
class Solved:
    """The best multipliers so far of each function: mu (K, M), their t (K,), and primal (K,): no bound is above it.

    X: (1, N, N) each, a primal point, or None. before: (K,) the first t. closed: (K,) whether the work on it has ended.
    steps: taken in all.
    """

    mu: Tensor
    X: list[Tensor | None]
    t: Tensor
    before: Tensor
    primal: Tensor
    closed: Tensor
    steps: int = 0


@dataclass(frozen=True)
class Wanted:
    """targets: (K,), what is to be proved of each function; ∞ where as much as there is.

    The work on a function ends above its target, or once it cannot be reached, or to a `tolerance` relative to how far
    the first bound is below the nominal value, or after so many `steps`. smallest: only the smallest bound counts, so
    that the work on the others ends above it, and all of it once one target cannot be reached. No step is begun that
    would end after the `deadline` of time.monotonic() if it took as long as the one before. seed: of points to begin
    from. least: what is worth the work although it is below the target.
    """

    targets: Tensor
    tolerance: float
    steps: int
    smallest: bool = False
    deadline: float = math.inf
    seed: int = 0
    least: float = math.inf

    def worth(self, k: int) -> float:
        """The least bound of function k that is worth the work; −∞ where as much as there is."""
        target = float(self.targets[k])
        return min(target, self.least) if math.isfinite(target) else -math.inf


def solve_all(ball: Ball, starts: list[Tensor], wanted: Wanted) -> Solved:
    """Multipliers for every function of `ball`, as `wanted`.

    starts: multipliers to begin from, up to scale and without t, (1, M) for all functions or (K, M). Those of one
    function serve the others, up to scale: the hardest goes first.
    """
    work = _Work(ball, wanted)
    result = work.result
    for start in starts:
        work.begin(start)
    result.before = result.t.clone()
    result.closed |= result.t > work.targets
    while not bool(result.closed.all()) and not work.late():
        k = int(torch.where(result.closed, torch.inf, result.t).argmin())
        work.layers(k)
        if not bool(result.closed[k]) and not work.late():
            work.step_by_step(k) if ball.relaxation.size <= SMALL else work.climb(k)
        result.closed[k] = True
        if wanted.smallest:
            work.targets = work.targets.clamp(max=float(result.t[k]))
            result.closed |= (result.t > work.targets) | work.hopeless(k, result.primal[k])
    return result


class _Work:
    """What is known so far of every function, and how long it took."""

    def __init__(self, ball: Ball, wanted: Wanted) -> None:
        self.ball, self.relaxation, self.wanted = ball, ball.relaxation, wanted
        self.reduced = Reduced.of(ball.relaxation)
        none = torch.full_like(ball.functions[:, 0], -torch.inf)
        self.targets = wanted.targets
        mu = none.new_zeros(len(none), self.relaxation.multipliers)
        self.result = Solved(mu, [None] * len(none), none, none, -none, none > 0)
        self.starts: list[Tensor] = []  # (K, M) each, scaled for every function
        self.took = 0.0  # by the last evaluation of multipliers

    def late(self, times: float = 1.0) -> bool:
        """Whether what takes so many times as long as an evaluation would end after the deadline."""
        return time.monotonic() + times * self.took > self.wanted.deadline

    def begin(self, start: Tensor) -> None:
        """With multipliers (1, M) for all, or (K, M)."""
        K = len(self.result.t)
        if len(start) == 1:
            scale = self.share(start, torch.arange(K, device=start.device))
        else:
            scale = torch.full_like(self.result.t, torch.nan)
            for k in (self.result.t <= self.targets).nonzero()[:, 0]:
                scale[k] = self.share(start[k : k + 1], k[None])[0]
        self.starts.append(scale[:, None] * start)

    def share(self, mu: Tensor, which: Tensor) -> Tensor:
        """What multipliers (1, M) prove of functions `which` (k,), up to a scale; these scales, NaN for nothing."""
        began = time.monotonic()
        found = self.reduced.shared(mu[0], self.ball.functions[which])
        self.took = time.monotonic() - began
        if found is None:
            return torch.full_like(self.result.t[which], torch.nan)
        for j, k in enumerate(which.tolist()):
            self.note(k, found.scale[j] * mu, found.t[j])
        return found.scale

    def note(self, k: int, mu: Tensor, t: Tensor) -> bool:
        """Whether these multipliers (1, M), of which t is the largest, are the best so far of function k."""
        better = bool(t > self.result.t[k])
        if better:
            self.result.mu[k], self.result.t[k] = mu[0], t
            self.result.mu[k, 0] = t - INSIDE * (self.ball.functions[k, 0] - t).abs()
        return better

    def spread(self, k: int) -> None:
        """The multipliers of function k, tried on all others that are open."""
        others = ~self.result.closed
        others[k] = False
        if bool(others.any()) and not self.late():
            self.share(self.result.mu[k : k + 1], others.nonzero()[:, 0])
        self.result.closed |= self.result.t > self.targets

    def layers(self, k: int) -> None:
        """Better scales, by layers, of the best so far and what it started from, added up."""
        result, c = self.result, self.ball.functions[k : k + 1]
        if not bool(result.t[k].isfinite()):
            return
        best = result.mu[k : k + 1]
        others = [mu for start in self.starts if not torch.equal((mu := start[k : k + 1])[:, 1:], best[:, 1:])]
        several = [best, *(mu for mu in others if bool(mu.isfinite().all()))]
        found = rescaled(self.reduced, c, several, float(self.targets[k]), self.wanted.deadline)
        if found is not None and self.note(k, found.mu[None], found.mu[0]):
            self.spread(k)

    def gap(self, k: int) -> Tensor:
        """(1,) how near to the best is near enough."""
        return self.wanted.tolerance * (self.ball.functions[k, :1] - self.result.before[k]).abs()

    def hopeless(self, k: int, primal: Tensor) -> bool:
        """Whether function k will not reach what was wanted of it."""
        return bool(primal < self.wanted.worth(k))

    def climb(self, k: int) -> None:
        """The barrier method."""
        result, c = self.result, self.ball.functions[k : k + 1]
        goal = Goal(self.wanted.steps, self.gap(k), self.targets[k : k + 1], self.wanted.deadline)
        found = climb(self.reduced, c, result.mu[k : k + 1], goal, self.wanted.worth(k))
        if found is None:
            return
        result.steps += found.steps
        result.primal[k] = found.primal
        self.note(k, found.mu, found.mu[0, 0])
        self.spread(k)

    def step_by_step(self, k: int) -> None:
        """The primal–dual method; every step of it is tried on all that are open."""
        result, c, target = self.result, self.ball.functions[k : k + 1], self.targets[k : k + 1]
        if not bool(result.t[k].isfinite()):
            return
        X = result.X[k]
        now = begin(self.relaxation, c, result.mu[k : k + 1], moments(self.ball, self.wanted.seed) if X is None else X)
        took = STEP * self.took
        for _ in range(self.wanted.steps):
            began = time.monotonic()
            if began + took > self.wanted.deadline:
                break
            before, gap = now, self.gap(k)
            now = solve(self.relaxation, c, now, Goal(1, gap, target))
            result.steps += 1
            if torch.equal(now.mu, before.mu):  # no step was possible
                break
            self.note(k, now.mu, now.t[0])
            self.spread(k)
            took = time.monotonic() - began
            result.X[k] = now.X
            if self.hopeless(k, now.primal[0]) or bool(result.closed[k]) or float(now.primal - now.t) <= float(gap):
                break
        result.primal[k] = torch.minimum(result.primal[k], now.primal[0])


def proven(ball: Ball, solved: Solved) -> Tensor:
    """(K,) certified lower bounds."""
    reduced = Reduced.of(ball.relaxation) if ball.relaxation.size > SMALL else None
    return torch.stack([_proven(ball, k, solved.mu[k : k + 1].clone(), reduced) for k in range(len(solved.mu))])


def _proven(ball: Ball, k: int, mu: Tensor, reduced: Reduced | None) -> Tensor:
    """Of multipliers mu (1, M); where errors of the rows would take much, smaller ones of those rows are tried, too."""
    lower = _certified(ball, k, mu, reduced)
    most = LITTLE * (ball.functions[k, 0] - mu[0, 0]).abs() / ball.row_error[: ball.relaxation.kinks]
    lam = ball.relaxation.split(mu)[2]
    if not bool((lam.abs() > most).any()):
        return lower
    lam.copy_(lam.clamp(-most, most))  # a view of mu
    t = ball.relaxation.attained(mu, ball.functions[k : k + 1])
    mu[:, 0] = t - INSIDE * (ball.functions[k, 0] - t).abs()
    return torch.maximum(lower, _certified(ball, k, mu, reduced))


def _certified(ball: Ball, k: int, mu: Tensor, reduced: Reduced | None) -> Tensor:
    """For t a little smaller where the factorisation does not run through at once."""
    t, fall = mu[:, :1], (ball.functions[k, 0] - mu[0, 0]).abs()
    lower = certified(ball, k, mu, reduced)
    for less in LESS:
        if not bool(lower.isneginf()):
            break
        t = t - less * fall
        lower = certified(ball, k, torch.cat([t, mu[:, 1:]], 1), reduced)
    return lower
