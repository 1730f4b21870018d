"""Ends of rows that see very few kinks, as pairs of a pooling window do: interior points, many fields at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from .ball import Ball, scaled
from .certificate import certified
from .fields import FEW, Field
from .interior_point import Goal, solve
from .kinks import Rows
from .start import begin, from_lines, moments

BATCH = 2**22  # elements of the matrices that are solved at once
STEPS, TOLERANCE = 25, 2e-3  # relative to how far the first bound is below the nominal value


def small(field: Field) -> bool:
    """Whether this is the way for it."""
    return 0 < len(field.kinks) <= FEW


def together(fields: list[Field]) -> list[Tensor]:
    """Lower bounds of the rows of each field and of their negatives, (2k,) each."""
    shapes = defaultdict(list)
    problems = [_Problem(field) for field in fields]
    for problem in problems:
        shapes[problem.shape].append(problem)
    for several in shapes.values():
        size = max(1, BATCH // several[0].ball.relaxation.multipliers ** 2)
        while several:
            _solve(several[:size])
            several = several[size:]
    return [problem.lower for problem in problems]


class _Problem:
    """A field in scaled variables, multipliers to begin from, a primal point, and the bounds once they are known."""

    def __init__(self, field: Field) -> None:
        both = Rows.join(field.rows, -field.rows)
        self.ball: Ball = scaled(field.kinks, both)
        self.mu = from_lines(field.kinks, field.kinks.lines(both))
        self.X = moments(self.ball).expand(len(self.mu), -1, -1)
        self.lower = torch.full_like(both.y0, -torch.inf)

    @property
    def shape(self) -> tuple[int, tuple[int, ...]]:
        """What problems that are solved at once have in common."""
        return self.ball.relaxation.span, self.ball.relaxation.starts


def _solve(problems: list[_Problem]) -> None:
    balls = [problem.ball for problem in problems]
    rows, bends = (
        torch.cat([getattr(b.relaxation, name).expand(len(b.functions), *[-1] * d) for b in balls])
        for name, d in (("rows", 2), ("bends", 1))
    )
    relaxation = replace(balls[0].relaxation, rows=rows, bends=bends)
    c, mu, X = (torch.cat(each) for each in zip(*((p.ball.functions, p.mu, p.X) for p in problems), strict=True))
    start = begin(relaxation, c, mu, X)
    gap = TOLERANCE * (c[:, 0] - start.t).abs()
    found = solve(relaxation, c, start, Goal(STEPS, gap, torch.full_like(gap, torch.inf))).mu
    for p, mu in zip(problems, found.split([len(p.mu) for p in problems]), strict=True):
        p.lower = torch.stack([certified(p.ball, k, mu[k : k + 1]) for k in range(len(mu))])
