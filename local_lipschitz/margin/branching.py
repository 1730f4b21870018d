"""Branch and bound over the signs of kinks, best bound first (docs/margin.md).

Where a kink's sign is fixed it is linear: p = 0 and n = −y, or n = 0 and p = y. What is left of it is one row w in
[0, 1], n or p, with its inequality w² ≤ w; the coordinate of p stays, but stands for nothing. The multipliers of a node
prove at least as much of its children, so that bounds only rise. With all signs fixed the relaxation is exact.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .ball import Ball
from .certificate import certified
from .interior_point import Goal, solve
from .relaxation import Relaxation
from .start import begin

WIDTH = {"cpu": 1, "cuda": 16}  # nodes that are split at once
STEPS = 40
LEAST = 1e-3  # f of a coordinate that stands for nothing, relative to γ
UP = 1e-13  # outward, for the rounding of a substitution


@dataclass(frozen=True)
class Node:
    """A part of the ball: one function, which is ≥ lower there.

    mu: (1, M) multipliers that prove about that. X: (1, N, N), the primal point beside them. interior: one well inside.
    """

    ball: Ball
    mu: Tensor
    X: Tensor
    interior: Tensor
    lower: float


@dataclass(frozen=True)
class Branched:
    """lower: of the function on the whole ball. nodes: that were solved. open: that were left."""

    lower: float
    nodes: int
    open: int


def branch(
    root: Node, target: float, limit: int, deadline: float, tolerance: float, seen: Callable[[Ball, Tensor], bool]
) -> Branched:
    """Split nodes until all have a bound above `target`, `limit` nodes are solved, or the deadline has passed.

    seen(ball, ξ (1, N)) is told where each node has its minimum, and says whether to stop.
    """
    order = itertools.count()
    heap = [(root.lower, next(order), root)]
    closed, nodes = torch.inf, 0
    width = WIDTH.get(root.X.device.type, 1)
    while heap and nodes < limit and time.monotonic() < deadline:
        parents = [heapq.heappop(heap)[2] for _ in range(min(width, len(heap)))]
        families = [split(parent) for parent in parents]
        if not all(families):  # every sign is fixed: nothing is left to split, and the whole is no better than a part
            heap += [(parent.lower, next(order), parent) for parent in parents]
            break
        children = [child for family in families for child in family]
        solved = _solve(children, target, tolerance, deadline)
        nodes += len(children)
        stop = False
        for node in solved:
            if node.lower > target:
                closed = min(closed, node.lower)
                continue
            heapq.heappush(heap, (node.lower, next(order), node))
            stop = stop or seen(node.ball, node.X[:, 0])
        if stop:
            break
    lower = min([closed, *(node.lower for _, _, node in heap)])
    return Branched(lower, nodes, len(heap))


def _solve(nodes: list[Node], target: float, tolerance: float, deadline: float) -> list[Node]:
    """Better multipliers for nodes of one size, all at once."""
    balls = [node.ball for node in nodes]
    rows, bends = (torch.cat([getattr(ball.relaxation, name) for ball in balls]) for name in ("rows", "bends"))
    relaxation = replace(balls[0].relaxation, rows=rows, bends=bends)
    c, mu, X = (torch.cat(each) for each in ([b.functions for b in balls], [n.mu for n in nodes], [n.X for n in nodes]))
    start = begin(relaxation, c, mu, 0.5 * (X + torch.cat([node.interior for node in nodes])))
    gap = tolerance * (c[:, 0] - mu[:, 0]).abs()
    # a little above the target, since the certificate takes something off
    goal = Goal(STEPS, gap, torch.full_like(gap, target) + 1e-6 * gap, deadline)
    result = solve(relaxation, c, start, goal)
    better = []
    for i, node in enumerate(nodes):
        lower = max(node.lower, float(certified(node.ball, 0, result.mu[i : i + 1])))
        better.append(replace(node, mu=result.mu[i : i + 1], X=result.X[i : i + 1], lower=lower))
    return better


def split(node: Node) -> list[Node]:
    """The two children of a node at the kink whose relaxation is loosest there; none where all are fixed."""
    relaxation = node.ball.relaxation
    _, _, lam, f, h = (x[0] for x in relaxation.split(node.mu))
    bends = relaxation.bends[0]
    if not bool(bends.any()):
        return []
    p = node.X[0, 0, 1 + relaxation.span :]
    n = relaxation.rows[0, : relaxation.kinks] @ node.X[0, 0]
    weight = lam.abs() + f + h[: relaxation.kinks]
    score = (weight * p.clamp(min=1e-9) * n.clamp(min=1e-9)).masked_fill(~bends, -1.0)
    g = int(score.argmax())
    return [_fixed(node, g, active) for active in (False, True)]


def _fixed(node: Node, g: int, active: bool) -> Node:
    """The child where kink g has p = y and n = 0 (`active`), or p = 0 and n = −y."""
    ball, relaxation = node.ball, node.ball.relaxation
    rows, c, column = relaxation.rows[0].clone(), ball.functions[0].clone(), 1 + relaxation.span + g
    row_error, function_error = ball.row_error.clone(), ball.function_error.clone()
    own = rows[g, column].clone()  # u/ℓ
    w = rows[g].clone()
    w[column] = 0.0  # −y/ℓ
    if active:
        w = -w / own  # y/u
        off = row_error[g] / own
        at, in_c = rows[:, column].clone(), c[column].clone()
        at[g] = 0.0
        rows, c = rows + at[:, None] * w, c + in_c * w
        row_error = row_error + at.abs() * off + UP * (1.0 + at.abs()) * (rows.abs().sum(1) + w.abs().sum())
        function_error = function_error + in_c.abs() * off + UP * (c.abs().sum() + in_c.abs() * w.abs().sum())
        row_error[g] = off + UP * w.abs().sum()
    rows[:, column], c[column] = 0.0, 0.0
    rows[g] = w
    mu = _inherited(relaxation, node.mu, g, active)
    bends = relaxation.bends.clone()
    bends[0, g] = False
    child = replace(
        ball, relaxation=replace(relaxation, rows=rows[None], bends=bends), functions=c[None],
        row_error=row_error, function_error=function_error,
    )  # fmt: skip
    return replace(node, ball=child, mu=mu)


def _inherited(relaxation: Relaxation, mu: Tensor, g: int, active: bool) -> Tensor:
    """The multipliers of a node for its child: λ falls away, and f or h of the kink is that of the row that is left."""
    G, mu = relaxation.kinks, mu.clone()
    f, h = 2 + G + g, 2 + 2 * G + g
    if active:
        mu[:, h] = mu[:, f]
    mu[:, 2 + g] = 0.0
    mu[:, f] = LEAST * mu[:, 1]
    mu[:, 0] -= mu[:, f] + 1e-9 * mu[:, 0].abs()
    return mu
