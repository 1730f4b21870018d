"""How far each element can move: gains g with |Δy_i| ≤ g_i·‖x − x0‖ on the ball, and the slopes that follow.

Gains are found block by block, each the smallest of: row norm times the gain of the layer read; the interval sum
Σ_j |a_ij| r_j; and, where rows are affordable, the joint bound of that one element (docs/joint_bound.md, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..layers.activations import RELU, Activation
from ..layers.layer import INPUT
from ..layers.linear_maps import total
from ..layers.stage import Stage
from ..norms.spectral_norm import rounding_slack
from ..product.propagation import LEAST, times
from ..product.stage_norms import channels_last, pays_channels_last
from .operator import Block, Kinks, Level, Network, Plan, tournament

SLACK = 1e-10  # outward, for the rounding of float64 gains and slopes


@dataclass(frozen=True)
class Known:
    """A layer that later stages read. y0 (1, *shape) float64; |Δ_i| ≤ reach_i·‖x − x0‖; ‖Δ‖ ≤ gain·‖x − x0‖.

    error: how much of the gain may be rounding of the operator (measured_rounding.py).
    """

    y0: Tensor
    reach: Tensor
    gain: float
    error: float = 0.0


class Groups(Protocol):
    """Keeps what is known of the uncertain groups so far, in order: one w and one v each."""

    def gains(self, network: Network, count: int) -> Tensor | None:
        """Smaller gains of the last `count` groups of `network`, which are candidates; None: not affordable."""

    def add(self, network: Network, kept: Tensor, g: Tensor) -> None:
        """Of these candidates those in `kept` (count,) bool, the last of `network`, become groups with gains g."""


def start(x0: Tensor) -> dict[str, Known]:
    """What is known of the input, x0 (1, *shape)."""
    x0 = x0.double()
    return {INPUT: Known(x0, torch.ones_like(x0), 1.0)}


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
class Winners:
    """Elements of one level: nominal value, what rounding may have changed in it, how far they can go up and down.

    All (C, length); up, down ≥ 0.
    """

    y0: Tensor
    off: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Played:
    """The differences d = x[b] − x[a] of one level: nominal value, its rounding, reach; all (C, pairs).

    The reach is that in the direction that could change the winner.
    """

    y0: Tensor
    off: Tensor
    h: Tensor


def play(level: Level, x: Winners) -> tuple[Played, Winners]:
    """One level of a tournament and its winners."""
    a, b = level.a, level.b
    gap = x.y0[:, b] - x.y0[:, a]
    h = torch.where(gap <= 0, x.up[:, b] + x.down[:, a], x.down[:, b] + x.up[:, a])
    h = h.masked_fill((a == b)[None], 0.0)
    a_wins = gap <= 0
    first, second, gap = torch.where(a_wins, a, b), torch.where(a_wins, b, a), gap.abs()
    moves = (x.up[:, a] + x.down[:, a] + x.up[:, b] + x.down[:, b] > 0) & (a != b)
    apart = torch.where(moves, x.off[:, a] + x.off[:, b], 0.0)
    up = torch.maximum(x.up.gather(1, first), x.up.gather(1, second) - gap + apart)
    down = torch.minimum(x.down.gather(1, first) + apart, x.down.gather(1, second) + gap + apart)
    # where rounding leaves open who wins, the winner may change in either direction
    both = torch.maximum(x.up[:, b] + x.down[:, a], x.down[:, b] + x.up[:, a])
    h = torch.where(moves & (gap <= apart), both, h)
    off = torch.maximum(x.off[:, a], x.off[:, b])
    return Played(torch.where(a_wins, -gap, gap), apart, h), Winners(x.y0.gather(1, first), off, up, down)


def slopes(op: Activation, y0: Tensor, h: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Anchored secant slopes [s_lo, s_hi] for anchors within y0 ± off; all of one shape."""
    return op.secant_slopes(y0, h * (1.0 + SLACK), off)


def make_kinks(s_lo: Tensor, s_hi: Tensor, index: Tensor, dtype: torch.dtype) -> Kinks:
    """Centre and radius in the working dtype, [s_lo, s_hi] inside [c − ρ, c + ρ] on `index`; exact slopes elsewhere."""
    c = (0.5 * (s_lo + s_hi)).to(dtype)
    at = c.double().flatten()[index]
    rho = torch.maximum(s_hi.flatten()[index] - at, at - s_lo.flatten()[index])
    return Kinks(c, index, (rho * (1.0 + 4.0 * torch.finfo(dtype).eps)).to(dtype))


def build_block(
    network: Network, plan: Plan, known: dict[str, Known], off: Tensor, eps: float, dtype: torch.dtype, groups: Groups
) -> tuple[Tensor, Tensor]:
    """Append the next block to `network`, which holds all earlier ones; nominal value and reach of its output.

    off (*shape): what rounding may have changed in the nominal values of the block's stage.
    """
    y0 = plan.stage.affine({name: known[name].y0 for name in plan.stage.sources})
    reach = stage_reach(plan.stage, known)
    levels = tournament(plan.pool, y0.device) if plan.pool else []
    stage = plan.stage.to(dtype)
    beside = pays_channels_last(stage, 1, network.like.device, network.like.dtype)
    block = Block(plan, stage.entries(channels_last) if beside else stage, levels)
    network.blocks.append(block)
    y0, reach = y0[0], reach[0]
    lost = _lost(plan.stage, known, dtype)

    if plan.pool:
        x = Winners(y0.flatten(1), off.flatten(1), eps * reach.flatten(1), eps * reach.flatten(1))
        played = []
        for level in levels:
            differences, x = play(level, x)
            played.append(differences)
        y0, off = x.y0.reshape(plan.pool.out_shape), x.off.reshape(plan.pool.out_shape)
        reach = torch.maximum(x.up, x.down).reshape(plan.pool.out_shape) / eps
        alive = torch.ones_like(y0, dtype=torch.bool)
        if plan.activation is not None:
            s_lo, s_hi = slopes(plan.activation, y0, eps * reach, off)
            alive = (s_lo != 0) | (s_hi != 0)
        for d, needed in zip(played, _needed(levels, played, alive.flatten(1)), strict=True):
            _settle(network, block, RELU, d.y0, d.off, d.h / eps, needed, eps, lost, groups)
    if plan.activation is not None:
        everywhere = torch.ones_like(y0, dtype=torch.bool)
        reach = _settle(network, block, plan.activation, y0, off, reach, everywhere, eps, lost, groups)
        y0 = plan.activation.apply(y0)
    if beside and not plan.pool:  # as the results of the stage lie in memory; the pairs of a pool lie otherwise
        block.kinks = [replace(kinks, c=channels_last(kinks.c[None])[0]) for kinks in block.kinks]
    return y0[None], reach[None]


def _lost(stage: Stage, known: dict[str, Known], dtype: torch.dtype) -> float:
    """What rounding may take from a row of the stage, relative to its gain without cancellation."""
    read = [known[name] for name in stage.sources]
    inherited = max(layer.error / layer.gain if layer.gain > 0 else 0.0 for layer in read)
    return rounding_slack(dtype, stage.terms) + inherited


def _needed(levels: list[Level], played: list[Played], alive: Tensor) -> list[Tensor]:
    """For each level the pairs (C, pairs) whose winner can matter in the end; alive (C, windows): whose result does."""
    needed = []
    for i in range(len(levels) - 1, -1, -1):
        needed.append(alive)
        if i > 0:
            s_lo, s_hi = slopes(RELU, played[i].y0, played[i].h, played[i].off)
            before = torch.zeros(alive.shape[0], len(levels[i - 1].a), dtype=torch.int32, device=alive.device)
            before.index_add_(1, levels[i].a, (alive & (s_lo < 1)).int())
            before.index_add_(1, levels[i].b, (alive & (s_hi > 0)).int())
            alive = before > 0
    return needed[::-1]


def _settle(
    network: Network, block: Block, op: Activation, y0: Tensor, off: Tensor, g: Tensor, needed: Tensor,
    eps: float, lost: float, groups: Groups,
) -> Tensor:  # fmt: skip
    """Append the kinks of φ = op at y0 ± off (*shape) with gains g to `block`; the reach of φ.

    A row may cancel in rounding, g does not: `lost`·g is what rounding may have taken from the gain by the row.
    """
    dtype = network.like.dtype
    s_lo, s_hi = slopes(op, y0, eps * g, off)
    candidate = (s_hi > s_lo) & needed
    at = candidate.flatten().nonzero()[:, 0]
    if len(at):
        nothing = torch.zeros(len(at), dtype=dtype, device=y0.device)
        block.kinks.append(Kinks(torch.zeros_like(y0, dtype=dtype), at, nothing))
        row = groups.gains(network, len(at))
        block.kinks.pop()
        if row is not None:
            cheap = g.flatten()[at]
            smaller = torch.minimum(cheap, row * (1.0 + SLACK) + lost * cheap)
            g = g.flatten().index_copy(0, at, smaller).reshape(g.shape)
            s_lo, s_hi = slopes(op, y0, eps * g, off)
            # what does not move but for rounding: any slope, no kink
            candidate = candidate.flatten().index_copy(0, at, row > 0).reshape(g.shape)
    uncertain = ((s_hi > s_lo) & candidate).flatten()
    index = uncertain.nonzero()[:, 0]
    s_lo, s_hi = (torch.where(needed, s, 0.0) for s in (s_lo, s_hi))  # what can never matter: any slope, no kink
    block.kinks.append(make_kinks(s_lo, s_hi, index, dtype))
    if len(at):
        groups.add(network, uncertain[at], g.flatten()[index])
    return torch.maximum(s_lo.abs(), s_hi.abs()) * g
