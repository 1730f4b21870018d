"""Between which ends every element lies on the ball, stage by stage, and so which kinks may bend.

Each end is the better of: intervals through the layers; the product bound's reach; and, for what these leave open, the
rows of the kinks themselves, by lines and by the margin certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..joint.kink_layers import KinkLayer, KinkLayers
from ..joint_operator import Plan, plans
from ..joint_operator.pooling import tournament
from ..layers.activations import RELU, Activation, PiecewiseLinear
from ..layers.graph import Graph
from ..layers.layer import INPUT
from ..layers.rounding import row_norms, sizes
from ..layers.stage import Stage
from ..numerics import UNDERFLOW, gamma_n
from ..product.propagation import Source, times
from .bends import Bends, Bent, Limit, NotDense, may_bend, rounding_factor
from .box import Region
from .kinks import Interval, KinkRows, Rows

UP = 1e-15  # outward, for a sum of two numbers

Refine = Callable[[KinkRows, Rows, Interval], Interval]  # better ends of some rows


@dataclass(frozen=True)
class Ends:
    """What is known of a layer: its nominal value and where it lies on the ball, all (1, *shape) float64.

    size: at least what its value, and the sums from which it is computed, have in size.
    """

    y0: Tensor
    low: Tensor
    high: Tensor
    size: Tensor


@dataclass(frozen=True)
class Given:
    """What cheaper bounds know of the network on the ball: the product bound of each layer, the joint one of kinks."""

    product: Mapping[str, Source]
    joint: KinkLayers = field(default_factory=dict)


@dataclass(frozen=True)
class Local:
    """A network on one ball: its kinks that may bend, the functions asked for; uncertain: {name: kinks}."""

    kinks: KinkRows
    functions: Rows
    uncertain: dict[str, int]


@torch.no_grad()
def local_network(
    graph: Graph, x0: Tensor, region: Region, C: Tensor, given: Given, refine: Refine, limit: Limit
) -> Local:
    """The network on a region around x0 (1, *shape), and its functions C (K, m), rows of outputs.

    What is beyond the `limit` raises NotDense.
    """
    x0, eps, box = x0.double(), region.eps, region.box
    blocks, last = plans(graph)
    bent, kinks = Bent(graph.in_shape, [], [], x0, limit), KinkRows.none(x0, eps, box)
    low, high = x0 - eps, x0 + eps
    if box is not None:
        low, high = torch.maximum(low, box[0].double()), torch.minimum(high, box[1].double())
    known = {INPUT: Ends(x0, low, high, x0.abs() + eps)}
    uncertain = {}
    for plan in blocks:
        before = len(kinks)
        reach = eps * float(given.product[plan.name].gain.reshape(-1)[0])
        block = _Block(bent, kinks, plan, refine, reach, given.joint)
        known[plan.name] = block(_stage_ends(plan.stage, known, eps, given.product))
        uncertain[plan.stage.name] = len(kinks) - before
    y = _stage_ends(last, known, eps, given.product)
    a, b, error = bent.functions(last, y.size[0], C)
    off = 2.0 * gamma_n(C.shape[1] + 2) * (C.abs() @ y.size.flatten())
    return Local(kinks, Rows(C @ y.y0.flatten(), a, b, error + off), uncertain)


def _stage_ends(stage: Stage, known: Mapping[str, Ends], eps: float, product: Mapping[str, Source]) -> Ends:
    """The output of a stage: intervals through its layers, and y0 ± ε Σ_s ‖a_i,s D_s‖·gain_s."""
    read = {name: known[name] for name in stage.sources}
    y0 = stage.affine({name: ends.y0 for name, ends in read.items()})
    size = sizes(stage, {name: ends.size for name, ends in read.items()})
    middle = stage.affine({name: 0.5 * (ends.low + ends.high) for name, ends in read.items()})
    half = stage.apply({name: 0.5 * (ends.high - ends.low) for name, ends in read.items()}, Tensor.abs_).clamp(min=0.0)
    reach = torch.zeros_like(y0)
    for name in stage.sources:
        source = product[name]
        gain = source.gain.double().reshape(-1)[0].expand_as(y0)
        reach = reach + times(row_norms(stage, name, source.live), gain)
    off = rounding_factor(stage) * (size + UNDERFLOW)
    low = torch.maximum(middle - half, y0 - eps * reach) - off
    high = torch.minimum(middle + half, y0 + eps * reach) + off
    return Ends(y0, low, high, size)


@dataclass(frozen=True)
class _Block:
    """One more block of the network, whose stage has been bounded; reach: how far its output may go, in norm."""

    bent: Bent
    kinks: KinkRows
    plan: Plan
    refine: Refine
    reach: float
    joint: KinkLayers

    def __call__(self, y: Ends) -> Ends:
        plan = self.plan
        self.bent.add(plan, tournament(plan.pool, y.y0.device) if plan.pool else [], y.size[0])
        if plan.pool:
            y = self._pooled(y)
        return self._activated(plan.activation, y) if plan.activation else y

    def _activated(self, op: Activation, y: Ends) -> Ends:
        op = self._piecewise(op)
        y, bends = self._settled(op, y, torch.ones_like(y.y0, dtype=torch.bool))
        ends = torch.stack([op.apply(y.low), op.apply(y.high)])
        inside = [op.apply(y.low.maximum(y.high.minimum(op.cast(k, y.y0)))) for k in op.knots]
        low, high = torch.stack([*ends, *inside]).aminmax(dim=0)
        widest = torch.maximum(y.low.abs(), y.high.abs())
        size = torch.maximum(low.abs(), high.abs()) + bends.c.abs() * widest
        added = torch.zeros_like(size).flatten()
        added.index_add_(0, bends.index, bends.rho.abs() * (widest.flatten()[bends.index] + bends.knot.abs()))
        return Ends(op.apply(y.y0), low, high, size + added.reshape(size.shape))

    def _pooled(self, y: Ends) -> Ends:
        """The levels of a tournament, each a layer of kinks of b − a."""
        pool, x = self.plan.pool, Ends(*(v.flatten(2) for v in (y.y0, y.low, y.high, y.size)))
        assert pool is not None
        needed = torch.ones(x.y0.shape[:2] + (pool.windows.shape[0],), dtype=torch.bool, device=x.y0.device)
        if self.plan.activation is not None:  # a window that never leaves the flat part at the left does not matter
            high, op = pool.apply(y.high).flatten(2), self._piecewise(self.plan.activation)
            needed = ~((op.cast(op.slopes[0], high) == 0).expand_as(high) & (high <= op.cast(op.knots[0], high)))
        for level in self.bent.blocks[-1].levels:
            a, b = level.a, level.b
            d = Ends(
                x.y0[..., b] - x.y0[..., a], x.low[..., b] - x.high[..., a], x.high[..., b] - x.low[..., a],
                x.size[..., a] + x.size[..., b],
            )  # fmt: skip
            d = replace(d, low=d.low - UP * d.size, high=d.high + UP * d.size)
            # pairs lie window by window
            wanted = needed.repeat_interleave(len(a) // needed.shape[2], 2) & (a != b)
            d, _ = self._settled(RELU, d, wanted)
            high, size = torch.maximum(x.high[..., a], x.high[..., b]), 2.0 * (x.size[..., a] + x.size[..., b])
            high = torch.minimum(high, x.high[..., a] + d.high.clamp(min=0.0) + UP * size)
            low = torch.maximum(x.low[..., a], x.low[..., b])
            x = Ends(torch.maximum(x.y0[..., a], x.y0[..., b]), low, high, size)
        return Ends(*(v.reshape(1, *pool.out_shape) for v in (x.y0, x.low, x.high, x.size)))

    def _settled(self, op: PiecewiseLinear, y: Ends, needed: Tensor) -> tuple[Ends, Bends]:
        """The next layer of kinks of the block: y with better ends where they were open, and what may still bend."""
        block = self.bent.blocks[-1]
        layer = self.joint.get((self.plan.name, len(block.kinks)))
        if layer is not None:
            low, high, alive = (v.reshape(y.y0.shape) for v in (layer.low, layer.high, layer.needed))
            y = replace(y, low=torch.maximum(y.low, low), high=torch.minimum(y.high, high))
            needed = needed & alive
        bends = may_bend(op, y.low[0], y.high[0], needed[0])
        if len(bends.index):
            self.bent.limit.check(len(bends.index) + len(self.kinks), 4)
            at, knot, candidates = bends.index, bends.knot, bends
            off = 4.0 * UP * (y.size.flatten()[at] + knot.abs())
            rows = Rows(y.y0.flatten()[at] - knot, *self.bent.candidates(bends))
            rows = replace(rows, error=rows.error + off)
            ends = y.low.flatten()[at] - knot - off, y.high.flatten()[at] - knot + off
            low, high = self.refine(self.kinks, rows, ends)
            y = replace(
                y,
                low=y.low.flatten().scatter_reduce(0, at, low + knot - off, "amax").reshape(y.low.shape),
                high=y.high.flatten().scatter_reduce(0, at, high + knot + off, "amin").reshape(y.high.shape),
            )
            bends = may_bend(op, y.low[0], y.high[0], needed[0])
            kept = bends.among(candidates)
            joint = None if layer is None else _multipliers(layer, bends.index)
            self.kinks.add(rows.pick(kept), (low[kept], high[kept]), self.reach, joint)
            self.bent.limit.check(len(self.kinks))
        block.kinks.append(bends)  # type: ignore[arg-type]
        return y, bends

    def _piecewise(self, op: Activation) -> PiecewiseLinear:
        if not isinstance(op, PiecewiseLinear):
            raise NotDense(f"{self.plan.name} is not piecewise linear")
        return op


def _multipliers(layer: KinkLayer, index: Tensor) -> Tensor:
    """1/μ of the elements `index`, 0 for those that cannot bend."""
    everywhere = torch.zeros_like(layer.low)
    everywhere[layer.index] = 1.0 / layer.mu.to(everywhere)
    return everywhere[index]
