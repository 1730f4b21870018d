"""What rounding may have changed in nominal values, in pulled-back rows and in the norms of layers: proven bounds.

Near a kink, tiny ε turn a changed nominal value into a changed slope: a secant slope such as (y0 + h)/h depends on y0
relative to h = ε·‖a_i‖·…, and y0 = a_iᵀx + b_i is only known to the rounding of its largest terms. Hence slopes are
taken over y0 ± off. Nothing here is sampled: every sum of n terms counts with γ_n (docs/rounding.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, gamma_n, of_computed
from .activations import RELU, Activation, PiecewiseLinear
from .graph import Graph
from .layer import INPUT, Layer, Sum
from .linear_maps import Dense, LinearMap
from .max_pooling import MaxPool
from .short_sums import in_short_sums
from .stage import Stage

ENTRIES = 16  # roundings in one entry or bias that reading computed: batch norm and constants folded in, averages
PIECES = 8  # roundings in one value of an activation, for each of its pieces


def roundings(stage: Stage) -> int:
    """The largest number of roundings on a way through the stage: of entries, products, their sums and biases."""
    count = dict.fromkeys(stage.sources, 0)
    for layer in stage.layers:
        count[layer.name] = max(count.get(name, 0) for name in layer.inputs) + _in_layer(layer)
    return count[stage.target]


def _in_layer(layer: Layer) -> int:
    if isinstance(layer.op, LinearMap):
        return layer.op.terms + ENTRIES + 1
    return len(layer.inputs) if isinstance(layer.op, Sum) else 0


def affine_rounding(stage: Stage, values: Mapping[str, Tensor]) -> Tensor:
    """What rounding may have changed in stage.affine(values) for exact values, (B, *out_shape), float64.

    γ_N(|A_L|(… |A_1||x| + |b_1| …) + |b_L|), N the `roundings` of the stage: a computed result is the sum over all
    ways through the layers, each multiplied by at most N factors 1 + δ, |δ| ≤ u.
    """
    return of_computed(roundings(stage)) * sizes(stage, {name: x.abs() for name, x in values.items()})


def sizes(stage: Stage, values: Mapping[str, Tensor], unit: float = 1.0) -> Tensor:
    """|A_L|(… |A_1|v + unit·|b_1| …) + unit·|b_L| for values v ≥ 0; biases count with all that they were added from."""
    known = dict(values)
    for layer in stage.layers:
        y = layer.apply([known[name] for name in layer.inputs], Tensor.abs_)
        if isinstance(layer.op, LinearMap):
            y = y.clamp(min=0.0) + unit * UNDERFLOW  # a convolution routine may return a rounding below zero
        known[layer.name] = y if layer.bias is None else y + unit * layer.bias_size.to(y.dtype)
    return known[stage.target]


def apply_rounding(op: Activation | MaxPool, y: Tensor) -> Tensor | float:
    """What rounding may have changed in op.apply(y) for an exact y."""
    if isinstance(op, MaxPool) or op is RELU:
        return 0.0
    if isinstance(op, PiecewiseLinear):
        return gamma_n(PIECES * len(op.slopes)) * (op.cast(op.at_zero, y).abs() + op.steepest_slope(y) * y.abs())
    return gamma_n(PIECES) * (op.apply(y).abs() + op.steepest_slope(y) * y.abs())


def nominal(graph: Graph, x: Tensor) -> Iterator[tuple[Stage, Tensor, Tensor]]:
    """(stage, y, off) of every stage: what it gives at x, in float64, and how far that may be from the exact value.

    What a stage reads is within `off` of its exact value, and so is what it gives, with off ← |A| off + γ_N(|A||x| +
    |b|); an activation passes on off times its steepest slope within y0 ± off.
    """
    values, offs = {INPUT: x.double()}, {INPUT: torch.zeros_like(x, dtype=torch.float64)}
    for stage in graph.stages:
        y = stage.affine({name: values[name] for name in stage.sources})
        unit = of_computed(roundings(stage))
        reads = {name: offs[name] + unit * values[name].abs() for name in stage.sources}
        off = sizes(stage, reads, unit) * (1.0 + unit)
        yield stage, y, off
        if stage.reader is not None:
            name, op = stage.nonlinear
            values[name] = op.apply(y)
            offs[name] = _passed_on(op, y, off) + apply_rounding(op, y)


def logits(graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    """(y, off): the outputs (B, m) at x, computed in float64, and how far each may be from the exact one."""
    ((_, y, off),) = deque(nominal(graph, x), maxlen=1)  # the last stage
    return y.flatten(1), off.flatten(1)


def _passed_on(op: Activation | MaxPool, y: Tensor, off: Tensor) -> Tensor:
    """|φ(y') − φ(y)| for |y' − y| ≤ off, at most."""
    if isinstance(op, MaxPool):
        return op.apply(off)
    lo, hi = op.secant_slopes(y, off)
    return torch.maximum(lo.abs(), hi.abs()) * off * (1.0 + gamma_n(PIECES))


def row_norms(stage: Stage, source: str, d: Tensor) -> Tensor:
    """`stage.row_norms`, rounded up: float64, for d (B, *shape) in 0/1."""
    count = 2 * roundings(stage) + PIECES * len(stage.layers) + PIECES
    return stage.row_norms(source, d.double()) * (1.0 + of_computed(count))


def norms_of(rows: Tensor) -> Tensor:
    """Euclidean norms (B,) of (B, *shape), rounded up."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1) * (1.0 + of_computed(rows[0].numel() + 2))


def norm_rounding(
    stage: Stage, source: str, sizes: Tensor, r: Tensor | None, live: Tensor, dtype: torch.dtype
) -> Tensor:
    """‖M' − R A D‖ for every M' that rounding in `dtype` may make of R A D, (1 or B,): γ_N ‖R |A_L|…|A_1| D‖.

    r, live as for `StageNorms`, sizes: r_i‖a_iᵀD‖; in float32 long sums are `in_short_sums`. The norm of a matrix is at
    most √(largest row sum · largest column sum); and at most ‖·‖_F, which is near it for a matrix whose entries do not
    repeat, and small enough in float64.
    """
    N = roundings(in_short_sums(stage) if dtype is torch.float32 else stage) + 4  # with R, D and their roundings
    adding = [layer.op for layer in stage.layers if isinstance(layer.op, LinearMap) and not layer.op.one_per_row]
    matrices = all(isinstance(op, Dense) and len(op.in_shape) == 1 for op in adding)
    if (matrices or dtype is torch.float64) and not sums_products(stage, source):
        unit = sizes.flatten(1).amax(1).clamp(min=torch.finfo(sizes.dtype).tiny)  # squares would vanish
        return of_computed(N, dtype) * unit * norms_of(sizes / unit.reshape(-1, *(1,) * (sizes.dim() - 1)))
    sums_up = 1.0 + 2.0 * of_computed(roundings(stage) + 4, dtype)  # the rounding of the row and column sums
    absolute, d = stage.entries(Tensor.abs).to(dtype), live.to(dtype)
    R = None if r is None else r.to(dtype)
    rows = absolute.apply({source: d}).clamp(min=0.0)
    columns = d * absolute.adjoint(torch.ones_like(rows[:1]) if R is None else R)[source].clamp(min=0.0)
    rows = rows if R is None else R * rows
    row, column = (sums.flatten(1).amax(1).double().sqrt() for sums in (rows, columns))  # their product may vanish
    return of_computed(N, dtype) * sums_up * row * column


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
