"""What a row sees: where that is little, a problem of its own is small, and its multipliers serve nobody else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .ball import Ball, scaled
from .barrier import climb
from .certificate import certified
from .interior_point import Goal
from .kinks import Interval, KinkRows, Rows
from .layered import rescaled
from .reduced import Reduced
from .start import shared

STEPS, MOVING = 2, 600  # of the barrier method for each end, and multipliers that move in one


@dataclass(frozen=True)
class Field:
    """Rows `which` (k,) of some, in terms of the kinks and of the elements of the input that they see."""

    which: Tensor
    kinks: KinkRows
    rows: Rows


def fields(kinks: KinkRows, rows: Rows, at: Tensor) -> list[Field]:
    """The rows `at`, those that see the same kinks together."""
    reads = (kinks.T != 0).to(kinks.T)
    sees = (rows.T[at] != 0).to(reads)
    for _ in kinks.starts:  # a kink that is seen sees those that it reads
        sees = ((sees + sees @ reads) != 0).to(reads)
    inputs = ((rows.Q[at] != 0) | (sees @ (kinks.Q != 0).to(sees) != 0)).to(sees)
    found: dict[bytes, list[int]] = {}
    for i, seen in enumerate((sees != 0).cpu().numpy()):
        found.setdefault(seen.tobytes(), []).append(i)
    return [_field(kinks, rows, at[i], sees[i[0]] != 0, inputs[i].sum(0) != 0) for i in found.values()]


def _field(kinks: KinkRows, rows: Rows, which: Tensor, seen: Tensor, inputs: Tensor) -> Field:
    index, delta = seen.nonzero()[:, 0], inputs.nonzero()[:, 0]
    starts = [int((index < first).sum()) for first, end in kinks.layers() if bool(seen[first:end].any())]
    y0, error, lower, upper, reach, joint = (
        x[index] for x in (kinks.y0, kinks.error, kinks.lower, kinks.upper, kinks.reach, kinks.joint)
    )
    Q, T = kinks.Q[index][:, delta], kinks.T[index][:, index]
    part = KinkRows(kinks.eps, kinks.sides.none(), y0, Q, T, error, lower, upper, reach, joint, starts)
    picked = rows.pick(which)
    return Field(which, part, replace(picked, Q=picked.Q[:, delta], T=picked.T[:, index]))


def own_ends(field: Field, low: Tensor, high: Tensor) -> Interval:
    """Better ends (k,) of the rows of a field, which lie in [low, high], with multipliers of its own for each.

    What is proven to lie on one side of 0 is left there: it cannot bend.
    """
    both = Rows.join(field.rows, -field.rows)
    ball, known, start = scaled(field.kinks, both), torch.cat([low, -high]), shared(field.kinks)
    reduced, k = Reduced.of(ball.relaxation), len(low)
    scale, t = ball.relaxation.shares(start, ball.functions)
    first = torch.where(high < -low, k, 0) + torch.arange(k, device=low.device)  # the nearer end
    for i, j in zip(first.tolist(), ((first + k) % (2 * k)).tolist(), strict=True):
        for at in (i, j):
            if bool(known[i] < 0):
                found = _own(ball, reduced, at, scale[at] * start, bool(t[at] > known[at]))
                known[at] = torch.maximum(known[at], found)
    return known[:k], -known[k:]


def _own(ball: Ball, reduced: Reduced, k: int, mu: Tensor, good: bool) -> Tensor:
    """A proven lower bound of function k, from multipliers mu (1, M); where these are not good, scaled by layers."""
    c, zero = ball.functions[k : k + 1], torch.zeros_like(ball.function_error[:1])
    if not good:
        better = rescaled(reduced, c, mu, 0.0, math.inf)
        mu = mu if better is None else better.mu[None]
    found = climb(reduced, c, mu, Goal(STEPS, zero, zero), MOVING)
    if found is None:
        return torch.full_like(zero[0], -math.inf)
    found.mu[0, 0] -= 1e-7 * (c[0, 0] - found.mu[0, 0]).abs()
    return certified(ball, k, found.mu)
