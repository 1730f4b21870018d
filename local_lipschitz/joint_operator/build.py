"""From a graph and x0 to the operator of the network near x0, block by block.

How far each element can move down and up, relative to ‖x − x0‖, and the slopes that follow. These reaches are each the
smallest of: row norm times the gain of the layer read; interval arithmetic over what each element read can do; and,
where rows are affordable, the joint bound of that one element (docs/joint_bound.md, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..layers.activations import Interval
from ..layers.graph import Graph
from ..layers.layer import INPUT
from ..layers.linear_maps import keep, total
from ..layers.rounding import row_norms
from ..layers.stage import Stage
from ..product.propagation import LEAST, Source, times
from ..product.stage_norms import channels_last, pays_channels_last
from .blocks import Block, Plan, plans
from .kinks import SLOPE_SLACK, Kinks, Reads
from .operator import Elements, JointOperator
from .pooling import Winners, pairs, play, tournament

X = TypeVar("X")
Work = Generator[Any, Any, X]  # what `Groups` ask for on the way is handed on, and so are the answers


@dataclass(frozen=True)
class Known:
    """A layer that later stages read. y0 (1, *shape) float64; −down_i ≤ Δ_i/‖x − x0‖ ≤ up_i; ‖Δ‖ ≤ gain·‖x − x0‖."""

    y0: Tensor
    down: Tensor
    up: Tensor
    gain: float

    @property
    def reach(self) -> Tensor:
        return torch.maximum(self.down, self.up)


class Found(Protocol):
    """What the rows of some elements tell. gains: (k,) of each, or None where rows are not affordable."""

    @property
    def gains(self) -> Tensor | None: ...


class Groups(Protocol):
    """Keeps what is known of the uncertain groups so far, in order: one w and one v each."""

    def find(self, candidates: Elements) -> Work[Found]:
        """Smaller gains of elements that the next layer of kinks reads."""

    def add(self, found: Any, kept: Tensor, elements: Elements) -> None:
        """Those of the candidates in `kept` (k,) bool, `elements`, become groups; elements.scale: their gains."""

    def layer_gain(self, operator: JointOperator, known: float) -> float:
        """A bound of ‖Δ‖ / ‖x − x0‖ for the output of `operator`; `known`: one that is there already."""


def build(
    graph: Graph, x0: Tensor, eps: float, product: Mapping[str, Source], operator: JointOperator, groups: Groups
) -> Work[list[tuple[str, float]]]:
    """Fill `operator`, still without blocks, with the network around x0 (1, *shape); its kinks become `groups`.

    product: what the product bound knows of each layer, for this input and eps. Returns the gain of each block.
    """
    blocks, last = plans(graph)
    ones = torch.ones_like(x0, dtype=torch.float64)
    known, growth = {INPUT: Known(x0.double(), ones, ones, 1.0)}, []
    for plan in blocks:
        off = product[plan.stage.nonlinear[0]].off[0]
        y0, (down, up) = yield from _Builder(operator, plan, known, eps, groups).add_block(off)
        gain = min(float(torch.maximum(down, up).norm()) * (1.0 + SLOPE_SLACK), _passed_on(plan, known, product))
        gain = min(gain, groups.layer_gain(operator, gain) if gain > 0.0 else 0.0)
        known[plan.name] = Known(y0[None], down[None], up[None], gain)
        growth.append((plan.stage.name, gain))
    operator.last = last.to(operator.like.dtype)
    operator.last_reach = stage_reach(last, known)[2]
    return growth


def _passed_on(plan: Plan, known: Mapping[str, Known], product: Mapping[str, Source]) -> float:
    """‖Δ‖ / ‖x − x0‖ of a block at most, Σ_s ‖R A_s D_s‖·gain_s with the norms of the product bound.

    That has this sum with larger gain_s, so it shrinks at least as the gain_s that shrinks least.
    """
    gain, gains = float(product[plan.name].gain), {name: float(product[name].gain) for name in plan.stage.sources}
    if gain == 0.0 or not math.isfinite(gain):
        return gain
    shrunk = max((known[name].gain / before for name, before in gains.items() if before > 0.0), default=0.0)
    return max(LEAST, gain * min(1.0, shrunk * (1.0 + SLOPE_SLACK)))


def stage_reach(stage: Stage, known: dict[str, Known]) -> tuple[Tensor, Tensor, Tensor]:
    """(down, up, Σ_j |a_ij| reach_j) for the output of a stage, all (*out_shape).

    down and up are the sums over the sources of the smaller of ‖a_i,s D_s‖·gain_s and interval arithmetic.
    """
    downs, ups, sums = [], [], []
    for name in stage.sources:
        source = known[name]
        rows = row_norms(stage, name, source.reach > 0)
        down = up = times(rows, rows.new_tensor(source.gain))
        sums.append(stage.apply({name: source.reach}, Tensor.abs_).clamp(min=0.0))
        if name != INPUT:
            middle, radius = 0.5 * (source.up - source.down), 0.5 * (source.up + source.down)
            drift = stage.apply({name: middle}, keep)
            spread = stage.apply({name: radius}, Tensor.abs_) + SLOPE_SLACK * sums[-1]
            down, up = (torch.minimum(g, (spread + d).clamp(min=LEAST)) for g, d in ((down, -drift), (up, drift)))
        downs.append(down)
        ups.append(up)
    down, up, sizes = (total(parts)[0] * (1.0 + SLOPE_SLACK) for parts in (downs, ups, sums))
    return down, up, sizes


@dataclass(frozen=True)
class _Builder:
    """The next block of an operator that holds all earlier ones."""

    operator: JointOperator
    plan: Plan
    known: dict[str, Known]
    eps: float
    groups: Groups

    def add_block(self, off: Tensor) -> Work[tuple[Tensor, Interval]]:
        """Append it; nominal value and reach of its output. off: what rounding may have changed in its stage's."""
        like, plan = self.operator.like, self.plan
        y0 = plan.stage.affine({name: self.known[name].y0 for name in plan.stage.sources})[0]
        down, up, sizes = stage_reach(plan.stage, self.known)
        stage = plan.stage.to(like.dtype)
        beside = pays_channels_last(stage, 1, like.device, like.dtype)
        levels = tournament(plan.pool, y0.device) if plan.pool else []
        self.operator.blocks.append(Block(plan, stage.entries(channels_last) if beside else stage, sizes, levels))
        if plan.pool:
            y0, off, down, up = yield from self._add_pool(y0, off, down, up)
        if plan.activation is None:
            return y0, (down, up)
        everywhere = torch.ones_like(y0, dtype=torch.bool)
        reads = Reads(plan.activation, y0, off, down, up, everywhere, self.eps)
        reads = yield from self._add_kinks(reads, beside=beside and not plan.pool)
        return plan.activation.apply(y0), reads.image

    def _add_pool(self, y0: Tensor, off: Tensor, down: Tensor, up: Tensor) -> Work[list[Tensor]]:
        """Append the levels of the tournament; y0, off, down and up of the pooled elements."""
        assert self.plan.pool is not None
        x = Winners(*(v.flatten(1) for v in (y0, off, self.eps * up, self.eps * down)))
        levels, played, moved = self.operator.blocks[-1].levels, [], []
        for level in levels:
            moved.append(level.moved(x) / self.eps)
            differences, x = play(level, x)
            played.append(differences)
        shape = self.plan.pool.out_shape
        y0, off, down, up = pooled = [v.reshape(shape) for v in (x.y0, x.off, x.down / self.eps, x.up / self.eps)]
        alive = torch.ones_like(y0, dtype=torch.bool)
        if self.plan.activation is not None:
            s_lo, s_hi = Reads(self.plan.activation, y0, off, down, up, alive, self.eps).slopes
            alive = (s_lo != 0) | (s_hi != 0)
        for reads, sizes in zip(pairs(levels, played, alive.flatten(1), self.eps), moved, strict=True):
            yield from self._add_kinks(reads, sizes)
        return pooled

    def _add_kinks(self, reads: Reads, moved: Tensor | None = None, beside: bool = False) -> Work[Reads]:
        """Append the next layer of kinks; what it reads, within the gains that were found."""
        block, like = self.operator.blocks[-1], self.operator.like
        index = reads.uncertain
        if len(index):
            found = yield from self.groups.find(Elements(self.operator, index, like.new_ones(len(index))))
            kept = torch.ones_like(index, dtype=torch.bool)
            if found.gains is not None:
                reads = reads.within(index, found.gains)
                kept = torch.isin(index, reads.uncertain)
            index = index[kept]
            if len(index):
                gains = reads.reach.flatten()[index].to(like)
                self.groups.add(found, kept, Elements(self.operator, index, gains))
        kinks = Kinks.centred(reads, index, like.dtype, moved)
        block.kinks.append(kinks.channels_last() if beside else kinks)
        return reads
