"""Lower bounds of several functions on one ball, which share what they can."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .ball import Ball
from .certificate import certified
from .interior_point import Goal, Iterate, solve
from .start import begin, moments

STEP = 30.0  # about how many times as long as one `shares` a step takes, before one was seen


@dataclass
class Solved:
    """The best multipliers so far of each function: mu (K, M), their t (K,), and primal (K,): no bound is above it.

    X: (1, N, N) each, a primal point. before: (K,) the first t. closed: (K,) whether the work on it has ended. steps:
    taken in all.
    """

    mu: Tensor
    X: list[Tensor]
    t: Tensor
    before: Tensor
    primal: Tensor
    closed: Tensor
    steps: int = 0


def solve_all(
    ball: Ball, starts: Tensor, targets: Tensor | None, tolerance: float, steps: int, deadline: float, seed: int = 0
) -> Solved:
    """Work on every function of `ball` until its bound is above its target (K,), or cannot be, or to `tolerance`.

    starts: (K, M) multipliers to begin from, without t. Those of one function serve the others, up to scale: the
    hardest goes first, and every step of it is tried on all that are open. `tolerance` is relative to how far the first
    bound is below the nominal value. Without targets only the smallest bound counts: the work on a function ends once
    its bound is above one that is done. At most `steps` for a function, and none is begun that would end after the
    `deadline` of time.monotonic() if it took as long as the one before.
    """
    relaxation, K, smallest = ball.relaxation, len(ball.functions), targets is None
    targets = torch.full_like(starts[:, 0], torch.inf) if targets is None else targets
    origin = list(starts.split(1))  # the multipliers from which each begins
    began = time.monotonic()
    own = [relaxation.shares(mu, ball.functions[k : k + 1]) for k, mu in enumerate(origin)]
    scale, t = torch.cat([s for s, _ in own]), torch.cat([t for _, t in own])
    infinite = torch.full_like(t, torch.inf)
    result = Solved(scale[:, None] * starts, [moments(ball, seed)] * K, t.clone(), t, infinite, t > targets)
    result.mu[:, 0] = t
    took = STEP * (time.monotonic() - began) / K
    while not bool(result.closed.all()) and time.monotonic() + took <= deadline:
        k = int(torch.where(result.closed, torch.inf, result.t).argmin())
        c = ball.functions[k : k + 1]
        scale, _ = relaxation.shares(origin[k], c)
        now = begin(relaxation, c, scale * origin[k], result.X[k])
        for _ in range(steps):
            if time.monotonic() + took > deadline:
                break
            began = time.monotonic()
            gap = tolerance * (ball.functions[k, :1] - result.before[k]).abs()
            before = now
            goal = torch.full_like(gap, torch.inf) if smallest else targets[k : k + 1]
            now = solve(relaxation, c, now, Goal(1, gap, goal))
            result.steps += 1
            if torch.equal(now.mu, before.mu):  # no step was possible
                break
            _note(result, ball, targets, now, origin, k)
            took = time.monotonic() - began
            result.X[k] = now.X
            hopeless = not smallest and bool(targets[k].isfinite() & (now.primal[0] < targets[k]))
            if hopeless or bool(result.closed[k]) or float(now.primal - now.t) <= float(gap):
                break
        result.primal[k] = torch.minimum(result.primal[k], now.primal[0])
        result.closed[k] = True
        if smallest:
            targets = targets.clamp(max=float(result.t[k]))
            result.closed |= result.t > targets
    return result


def _note(result: Solved, ball: Ball, targets: Tensor, now: Iterate, origin: list, k: int) -> None:
    """What multipliers on the way prove of function k, and of all that are open."""
    if float(now.t) > float(result.t[k]):
        result.mu[k], result.t[k] = now.mu[0], now.t[0]
    scale, t = ball.relaxation.shares(now.mu, ball.functions)
    better = ~result.closed & (t > result.t)
    better[k] = False
    for j in better.nonzero()[:, 0].tolist():
        result.mu[j], result.t[j] = scale[j] * now.mu[0], t[j]
        result.mu[j, 0] = t[j] - 1e-9 * (ball.functions[j, 0] - t[j]).abs()
        origin[j], result.X[j] = now.mu, now.X
    result.closed |= result.t > targets


def proven(ball: Ball, solved: Solved) -> Tensor:
    """(K,) certified lower bounds."""
    return torch.stack([certified(ball, k, solved.mu[k : k + 1]) for k in range(len(solved.mu))])
