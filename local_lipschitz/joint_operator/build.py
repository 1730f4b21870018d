"""From a graph and x0 to the operator of the network near x0, block by block.

How far each element can move: gains g with |Δy_i| ≤ g_i·‖x − x0‖ on the ball, and the slopes that follow. Gains are
each the smallest of: row norm times the gain of the layer read; the interval sum Σ_j |a_ij| r_j; and, where rows are
affordable, the joint bound of that one element (docs/joint_bound.md, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..layers.graph import Graph
from ..layers.layer import INPUT
from ..layers.linear_maps import total
from ..layers.stage import Stage
from ..norms.spectral_norm import rounding_slack
from ..product.propagation import LEAST, Source, times
from ..product.stage_norms import channels_last, pays_channels_last
from .blocks import Block, Plan, plans
from .kinks import SLACK, Kinks, Reads
from .measured_rounding import Rounding
from .operator import Elements, JointOperator
from .pooling import Winners, pairs, play, tournament


@dataclass(frozen=True)
class Known:
    """A layer that later stages read. y0 (1, *shape) float64; |Δ_i| ≤ reach_i·‖x − x0‖; ‖Δ‖ ≤ gain·‖x − x0‖.

    error: how much of the gain may be rounding of the operator (measured_rounding.py).
    """

    y0: Tensor
    reach: Tensor
    gain: float
    error: float = 0.0


class Found(Protocol):
    """What the rows of some elements tell. gains: (k,) of each, or None where rows are not affordable."""

    @property
    def gains(self) -> Tensor | None: ...


class Groups(Protocol):
    """Keeps what is known of the uncertain groups so far, in order: one w and one v each."""

    def find(self, candidates: Elements) -> Found:
        """Smaller gains of elements that the next layer of kinks reads."""

    def add(self, found: Any, kept: Tensor, elements: Elements) -> None:
        """Those of the candidates in `kept` (k,) bool, `elements`, become groups; elements.scale: their gains."""

    def layer_gain(self, operator: JointOperator) -> float:
        """A bound of ‖Δ‖ / ‖x − x0‖ for the output of `operator`."""


@dataclass(frozen=True)
class Built:
    """The operator of a whole network, and the gain of each of its blocks; error: of the output (Rounding.output)."""

    operator: JointOperator
    growth: list[tuple[str, float]]
    rounding: Rounding


def build(
    graph: Graph, x0: Tensor, eps: float, product: Mapping[str, Source], operator: JointOperator, groups: Groups,
    seed: int = 0,
) -> Built:  # fmt: skip
    """Fill `operator`, still without blocks, with the network around x0 (1, *shape); its kinks become `groups`.

    product: what the product bound knows of each layer, for this input and eps.
    """
    blocks, last = plans(graph)
    rounding = Rounding(graph.in_shape, operator.like, seed)
    known = {INPUT: Known(x0.double(), torch.ones_like(x0, dtype=torch.float64), 1.0)}
    growth = []
    for plan in blocks:
        off = product[plan.stage.nonlinear[0]].off[0]
        y0, reach = _Builder(operator, plan, known, eps, groups).add_block(off)
        error = rounding.through(operator.blocks[-1])
        gain = min(float(product[plan.name].gain), groups.layer_gain(operator) + error)
        known[plan.name] = Known(y0, reach, gain, error)
        growth.append((plan.stage.name, gain))
    operator.last = last.to(operator.like.dtype)
    return Built(operator, growth, rounding)


def stage_reach(stage: Stage, known: dict[str, Known]) -> Tensor:
    """g for the output of a stage, (1, *out_shape): Σ_s min(‖a_i,s D_s‖·gain_s, Σ_j |a_ij,s| r_j)."""
    gains = []
    for name in stage.sources:
        source = known[name]
        g = times(stage.row_norms(name, (source.reach > 0).double()), source.reach.new_tensor(source.gain))
        if name != INPUT:
            g = torch.minimum(g, stage.apply({name: source.reach}, Tensor.abs_).clamp(min=LEAST))
        gains.append(g)
    return total(gains) * (1.0 + SLACK)


@dataclass(frozen=True)
class _Builder:
    """The next block of an operator that holds all earlier ones."""

    operator: JointOperator
    plan: Plan
    known: dict[str, Known]
    eps: float
    groups: Groups

    def add_block(self, off: Tensor) -> tuple[Tensor, Tensor]:
        """Append it; nominal value and reach of its output. off: what rounding may have changed in its stage's."""
        like, plan = self.operator.like, self.plan
        y0 = plan.stage.affine({name: self.known[name].y0 for name in plan.stage.sources})[0]
        reach = stage_reach(plan.stage, self.known)[0]
        stage = plan.stage.to(like.dtype)
        beside = pays_channels_last(stage, 1, like.device, like.dtype)
        levels = tournament(plan.pool, y0.device) if plan.pool else []
        self.operator.blocks.append(Block(plan, stage.entries(channels_last) if beside else stage, levels))
        if plan.pool:
            y0, off, reach = self._add_pool(y0, off, reach)
        if plan.activation is None:
            return y0[None], reach[None]
        everywhere = torch.ones_like(y0, dtype=torch.bool)
        reach = self._add_kinks(Reads(plan.activation, y0, off, reach, everywhere), beside and not plan.pool)
        return plan.activation.apply(y0)[None], reach[None]

    def _add_pool(self, y0: Tensor, off: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append the levels of the tournament; y0, off and reach of the pooled elements."""
        assert self.plan.pool is not None
        block, shape = self.operator.blocks[-1], self.plan.pool.out_shape
        h = self.eps * reach.flatten(1)
        x, played = Winners(y0.flatten(1), off.flatten(1), h, h), []
        for level in block.levels:
            differences, x = play(level, x)
            played.append(differences)
        y0, off, reach = (v.reshape(shape) for v in (x.y0, x.off, torch.maximum(x.up, x.down) / self.eps))
        alive = torch.ones_like(y0, dtype=torch.bool)
        if self.plan.activation is not None:
            s_lo, s_hi = Reads(self.plan.activation, y0, off, reach, alive).slopes(self.eps)
            alive = (s_lo != 0) | (s_hi != 0)
        for reads in pairs(block.levels, played, alive.flatten(1), self.eps):
            self._add_kinks(reads)
        return y0, off, reach

    def _add_kinks(self, reads: Reads, beside: bool = False) -> Tensor:
        """Append the next layer of kinks; the reach of what it computes.

        A row may cancel in rounding, g does not: `lost`·g is what rounding may have taken from the gain by the row.
        """
        block, like = self.operator.blocks[-1], self.operator.like
        candidates, kept = reads.uncertain(self.eps), None
        if len(candidates):
            found = self.groups.find(Elements(self.operator, candidates, like.new_ones(len(candidates))))
            kept = torch.ones_like(candidates, dtype=torch.bool)
            if found.gains is not None:
                cheap = reads.reach.flatten()[candidates]
                smaller = torch.minimum(cheap, found.gains * (1.0 + SLACK) + self._lost * cheap)
                reads = reads.within(candidates, smaller)
                # what does not move but for rounding: any slope, no kink
                kept = torch.isin(candidates, reads.uncertain(self.eps)) & (found.gains > 0)
            index = candidates[kept]
            if len(index):
                gains = reads.reach.flatten()[index].to(like)
                self.groups.add(found, kept, Elements(self.operator, index, gains))
            candidates = index
        kinks = Kinks.centred(reads, self.eps, candidates, like.dtype)
        block.kinks.append(kinks.channels_last() if beside else kinks)
        s_lo, s_hi = reads.slopes(self.eps)
        return torch.where(reads.needed, torch.maximum(s_lo.abs(), s_hi.abs()), 0.0) * reads.reach

    @property
    def _lost(self) -> float:
        """What rounding may take from a row of the stage, relative to its gain without cancellation."""
        read = [self.known[name] for name in self.plan.stage.sources]
        inherited = max(layer.error / layer.gain if layer.gain > 0 else 0.0 for layer in read)
        return rounding_slack(self.operator.like.dtype, self.plan.stage.terms) + inherited
