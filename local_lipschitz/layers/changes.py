"""How far the outputs move from x0 to x0 + δ, and what rounding may have changed in that: proven (docs/rounding.md).

A change passes through the layers by itself, dy = A dx and dz = φ(y0 + dy) − φ(y0), so that nothing cancels. Its error
e passes on by |A|e and by the steepest slopes. To it adds what the layers round, and how φ's change depends on the
rounding of its anchor y0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, gamma_n, of_computed, unit_roundoff
from .activations import Activation, PiecewiseLinear
from .graph import Graph
from .layer import INPUT
from .max_pooling import MaxPool
from .rounding import PIECES, nominal, roundings
from .smooth_activations import FARTHEST, Smooth


def change(graph: Graph, x0: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x0 + δ) − f(x0), how far each element of it may be off) for x0 (1, *in_shape), δ (N, *in_shape), float64."""
    changes, errors = {INPUT: delta}, {INPUT: torch.zeros_like(delta)}
    for stage, y0, off in nominal(graph, x0):
        names, unit = stage.sources, of_computed(roundings(stage))
        dy = stage.to(delta.dtype).apply({name: changes[name] for name in names})
        inherited = {name: errors[name] + unit * changes[name].abs() for name in names}
        e = stage.apply(inherited, Tensor.abs_).clamp(min=0.0) * (1.0 + unit) + UNDERFLOW
        if stage.reader is None:
            return dy, e
        name, op = stage.nonlinear
        changes[name] = op.difference(y0, dy)
        errors[name] = _of_pooling(op, y0, dy, off, e) if isinstance(op, MaxPool) else _of(op, y0, dy, off, e)
    raise AssertionError("the last stage has no reader")


def _of(op: Activation, y0: Tensor, dy: Tensor, off: Tensor, e: Tensor) -> Tensor:
    """The error of op.difference(y0, dy) for y0 within off and dy within e of what they should be."""
    low, high = op.slope_range(y0)
    anchored, size = (high - low) * torch.minimum(dy.abs(), off), dy.abs()
    if isinstance(op, PiecewiseLinear):
        far = torch.ones_like(anchored, dtype=torch.bool)
        for knot in op.knots:  # of which none lies between anchor and end, wherever they are
            gap = (op.cast(knot, y0) - y0).clamp(-FARTHEST, FARTHEST)
            near = off + gamma_n(PIECES) * (gap.abs() + size)
            far &= (gap - dy.clamp(min=0.0) > near) | (dy.clamp(max=0.0) - gap > near)
        anchored = torch.where(far, 0.0, anchored)
        rounded = gamma_n(PIECES * len(op.slopes)) * op.steepest_slope(y0) * size
    else:
        assert isinstance(op, Smooth)
        way = torch.where(dy == 0, 1.0, size)
        rounded = torch.maximum(*[op.average(y0, way, side).off for side in (1.0, -1.0)]) * size
        anchored = torch.minimum(anchored, op.moved(y0, way, off.expand_as(way)) * size)
    return (op.steepest_slope(y0) * e + anchored + rounded) * (1.0 + gamma_n(PIECES)) + UNDERFLOW


def _of_pooling(op: MaxPool, y0: Tensor, dy: Tensor, off: Tensor, e: Tensor) -> Tensor:
    """The same for max pooling: a maximum moves by as much as its largest element does.

    Where one element leads by more than all may move, its change is that of the maximum, exactly.
    """
    size, off = dy.abs(), off + unit_roundoff(y0.dtype) * 2.0 * (y0.abs() + dy.abs())
    moves = op.apply(size)
    leads = op.lead(y0) > 2.0 * (moves + op.apply(off))
    other = torch.where(leads, 0.0, 2.0 * torch.minimum(op.apply(off), moves))
    return (op.apply(e) + other + gamma_n(PIECES) * moves) * (1.0 + gamma_n(PIECES))
