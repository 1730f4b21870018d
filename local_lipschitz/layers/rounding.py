"""What rounding may have changed in nominal values, and in the norms of layers that cancel each other.

Near a kink, tiny ε turn a changed nominal value into a changed slope.

A secant slope such as (y0 + h)/h depends on y0 relative to h = ε·‖a_i‖·…, and y0 = a_iᵀx + b_i is only known to the
rounding of its largest terms. Hence slopes are taken over y0 ± off.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..norms.spectral_norm import rounding_slack
from .graph import Graph
from .layer import INPUT, Sum
from .linear_maps import LinearMap
from .stage import Stage

REPEATS, SAFETY = 3, 4.0  # of the passes that measure rounding


def affine_rounding(stage: Stage, values: Mapping[str, Tensor], y0: Tensor) -> Tensor:
    """What rounding may have changed in y0 = stage.affine(values) for exact values, (B, *out_shape), float64.

    γ(|A_L|(… |A_1||x| + |b_1| …) + |b_L| + |y0|), with γ the `rounding_slack` of float64. Of several layers every sum
    counts: what is large in between and cancels later has been rounded as well.
    """
    summed = stage.affine({name: value.abs() for name, value in values.items()}, Tensor.abs_)
    # a convolution routine may return a rounding below zero where the sum is zero
    return gamma(stage) * (summed.clamp(min=0.0) + y0.abs())


def output(graph: Graph, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(y, off): the outputs (B, m) at x in float64, and (B,) what rounding in `dtype` may change in any of them.

    The nominal pass is repeated with every sum moved by as much as rounding may have moved it, up or down at random.
    (Norms bound that too, but grow with the depth beyond all measure: rounding errors are not worst directions.)
    """
    generator = torch.Generator().manual_seed(0)
    coarser = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    values = {INPUT: x.double().repeat(1 + REPEATS, *(1,) * (x.dim() - 1))}
    for stage in graph.stages:
        read_by = {name: values[name] for name in stage.sources}
        y = stage.affine(read_by)
        signs = 2.0 * torch.randint(2, y.shape, generator=generator).to(y) - 1.0
        signs[: len(x)] = 0.0
        y = y + signs * coarser * affine_rounding(stage, read_by, y)
        if stage.reader is not None:
            name, op = stage.nonlinear
            values[name] = op.apply(y)
    passes = y.reshape(1 + REPEATS, len(x), -1)
    return passes[0], SAFETY * (passes - passes[0]).abs().amax((0, 2))


def lost_in_sums(stage: Stage, source: str, r: Tensor | None, live: Tensor) -> Tensor | float:
    """What rounding may take from ‖R A D‖ where layers that follow one another cancel: γ‖R |A_L|…|A_1| D‖, or 0.

    r, live as for `StageNorms`; (1 or B,). The norm of a matrix is at most √(largest row sum · largest column sum).
    """
    if not sums_products(stage, source):
        return 0.0
    absolute, d = stage.entries(Tensor.abs).to(torch.float64), live.double()
    rows = absolute.apply({source: d})
    columns = d * absolute.adjoint(torch.ones_like(rows[:1]) if r is None else r)[source]
    rows = rows if r is None else r * rows
    return gamma(stage) * (rows.flatten(1).amax(1) * columns.flatten(1).amax(1)).clamp(min=0.0).sqrt()


def sums_products(stage: Stage, source: str) -> bool:
    """Whether entries of A_source are sums, in which products of entries of several layers may cancel."""
    several = {source: False}  # layer -> whether a column of the map to it may hold several entries
    for layer in stage.of(source).layers:
        inputs = [name for name in layer.inputs if name in several]
        adds = len(inputs) > 1 and isinstance(layer.op, Sum)
        before = any(several[name] for name in inputs)
        if adds or (before and not getattr(layer.op, "one_per_row", True)):
            return True
        several[layer.name] = before or len(inputs) > 1 or not getattr(layer.op, "one_per_column", True)
    return False


def gamma(stage: Stage) -> float:
    """The `rounding_slack` of float64 for each of the layers that sum."""
    summing = sum(isinstance(layer.op, LinearMap) and layer.op.terms > 1 for layer in stage.layers)
    return rounding_slack(torch.float64, stage.terms) * max(1, summing)
