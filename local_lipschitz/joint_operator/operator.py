"""The network near x0 as one linear operator with bounded uncertainties (docs/joint_bound.md, sections 1–3).

Every nonlinearity becomes scalar *kinks*: Δz = c·Δy + ρ·w with |w| ≤ |Δy|, where [c − ρ, c + ρ] holds all anchored
secant slopes. Max pooling is a tournament of pairs, max(a, b) = a + relu(b − a): each pair is a kink as well. With the
vector w of all uncertain kinks and v of what they read, the network's differences are

    Δf = N δ + P w,   v = Q δ + T w,   |w_g| ≤ |v_g|,   T strictly lower triangular in the order of the layers.

None of these matrices is formed here: one forward pass applies them, one backward pass their adjoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers.activations import Activation
from ..layers.graph import Graph
from ..layers.layer import INPUT
from ..layers.linear_maps import size
from ..layers.max_pooling import MaxPool
from ..layers.stage import Stage


@dataclass(frozen=True)
class Kinks:
    """Δz = c·Δy + ρ·w elementwise; ρ and w live only on the uncertain elements.

    c: (*shape). index: (k,) flat positions of the uncertain elements. rho: (k,).
    Tensors are multiplied, read and written in whatever order they lie in memory.
    """

    c: Tensor
    index: Tensor
    rho: Tensor

    def forward(self, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(z, v) for y (p, *shape), w (p, k)."""
        z, at = self.c * y, self._at(y)
        z[at] += self.rho * w
        return z, y[at]

    def adjoint(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(y, w), the adjoint of `forward`, for z (p, *shape), v (p, k)."""
        y, at = self.c * z, self._at(z)
        y[at] += v
        return y, self.rho * z[at]

    def _at(self, x: Tensor) -> tuple:
        """The uncertain elements of x (p, *shape)."""
        return (slice(None), *torch.unravel_index(self.index, x.shape[1:]))


@dataclass(frozen=True)
class Level:
    """One level of a tournament: from x (p, C, length) to the winners of the pairs (x[a], x[b]).

    a, b: (pairs,) positions along the last dimension; a == b where an element has no opponent.
    """

    a: Tensor
    b: Tensor

    def difference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x[a], x[b] − x[a])."""
        first = x[..., self.a]
        return first, x[..., self.b] - first

    def adjoint(self, first: Tensor, difference: Tensor, length: int) -> Tensor:
        """The adjoint of `difference`."""
        x = first.new_zeros(*first.shape[:-1], length)
        x.index_add_(-1, self.a, first - difference)
        x.index_add_(-1, self.b, difference)
        return x


def tournament(pool: MaxPool, device: torch.device) -> list[Level]:
    """The levels after which each window of `pool` has one winner; the first reads a flattened H·W channel."""
    table = pool.windows.to(device)
    table = table.gather(1, (table < 0).to(torch.int8).argsort(dim=1, stable=True))  # padding (−1) last
    levels = []
    while table.shape[1] > 1:
        if table.shape[1] % 2:
            table = torch.cat([table, torch.full_like(table[:, :1], -1)], 1)
        a, b = table[:, 0::2], table[:, 1::2]
        empty = a < 0
        a = torch.where(empty, table[:, :1], a)
        b = torch.where(b < 0, a, b)
        levels.append(Level(a.flatten(), b.flatten()))
        table = torch.arange(a.numel(), device=device).reshape(a.shape).masked_fill(empty, -1)
    return levels or [Level(table.flatten(), table.flatten())]


@dataclass(frozen=True)
class Plan:
    """What one block of the network does, before any slope is known.

    A stage, then max pooling or an activation or, for monotone activations, the pooling first and then the
    activation: max and a non-decreasing φ commute, and a window needs one kink where its elements need several.
    """

    name: str
    stage: Stage
    pool: MaxPool | None
    activation: Activation | None


def plans(graph: Graph) -> tuple[list[Plan], Stage]:
    """The blocks of a network in order, and its last stage."""
    result: list[Plan] = []
    merged: set[str] = set()
    for stage in graph.stages[:-1]:
        name, op = stage.nonlinear
        if name in merged:
            continue
        if isinstance(op, MaxPool):
            result.append(Plan(name, stage, op, None))
            continue
        pool_name, pool = _pooled_by(graph, name)
        if pool is not None and op.non_decreasing and op.same_within_channels(len(pool.in_shape)):
            merged.add(pool_name)
            result.append(Plan(pool_name, stage, pool, op))
        else:
            result.append(Plan(name, stage, None, op))
    return result, graph.stages[-1]


def _pooled_by(graph: Graph, name: str) -> tuple[str, MaxPool | None]:
    """Name and function of the max-pooling layer that alone reads layer `name`, directly; else ("", None)."""
    readers = [stage for stage in graph.stages if name in stage.sources]
    if len(readers) == 1 and not readers[0].layers and readers[0].reader is not None:
        pool_name, pool = readers[0].nonlinear
        if isinstance(pool, MaxPool):
            return pool_name, pool
    return "", None


@dataclass
class Block:
    """A plan with its slopes. `kinks` has one entry for each level of the tournament, then one for the activation."""

    plan: Plan
    stage: Stage  # in the working dtype
    levels: list[Level]
    kinks: list[Kinks] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(kinks.index) for kinks in self.kinks)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape after the kinks there are so far."""
        if self.plan.pool is not None and len(self.kinks) >= len(self.levels):
            return self.plan.pool.out_shape
        return tuple(self.kinks[-1].c.shape)

    def forward(self, y: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the stage's output (p, *shape) and this block's w (p, count) to (z, v of each kink layer)."""
        p, vs, used = y.shape[0], [], 0
        for i, kinks in enumerate(self.kinks):
            if i < len(self.levels):
                first, y = self.levels[i].difference(y.flatten(2) if i == 0 else y)
            z, v = kinks.forward(y, w[:, used : used + len(kinks.index)])
            y = first + z if i < len(self.levels) else z
            if self.plan.pool is not None and i == len(self.levels) - 1:
                y = y.reshape(p, *self.plan.pool.out_shape)
            vs.append(v)
            used += len(kinks.index)
        return y, vs

    def adjoint(self, z: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The adjoint: from z's and v's adjoint to (that of the stage's output, that of each w)."""
        p, ws, used = z.shape[0], [], self.count
        for i in range(len(self.kinks) - 1, -1, -1):
            kinks = self.kinks[i]
            k = len(kinks.index)
            if i == len(self.levels) - 1:
                z = z.reshape(p, z.shape[1], -1)
            y, w = kinks.adjoint(z, v[:, used - k : used])
            if i < len(self.levels):
                y = self.levels[i].adjoint(z, y, self._length(i))
            ws.append(w)
            z, used = y, used - k
        if self.plan.pool is not None and self.kinks:
            z = z.reshape(p, *self.plan.pool.in_shape)
        return z, ws[::-1]

    def _length(self, i: int) -> int:
        if i > 0 or self.plan.pool is None:
            return len(self.levels[i - 1].a)
        return self.plan.pool.in_shape[1] * self.plan.pool.in_shape[2]


class LastGroups:
    """The network up to its last `count` groups, their v, divided by `scale` (count,), being the output."""

    def __init__(self, network: Network, count: int, scale: Tensor) -> None:
        self.network, self.count, self.scale = network, count, scale
        self.in_shape, self.out_size, self.like = network.in_shape, count, network.like
        self.widest = network.widest

    def forward(self, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        nothing = w.new_zeros(w.shape[0], self.count)
        _, v = self.network.forward(delta, torch.cat([w, nothing], 1))
        return v[:, w.shape[1] :] / self.scale, v[:, : w.shape[1]]

    def adjoint(self, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        nothing = f.new_zeros(f.shape[0], self.network.out_size)
        delta, w = self.network.adjoint(nothing, torch.cat([v, f / self.scale], 1))
        return delta, w[:, : v.shape[1]]


@dataclass
class Network:
    """N, P, Q, T of a network or of its first blocks, by passes; p vectors at a time.

    `last` is the last stage, or None where the output is that of the last block.
    """

    in_shape: tuple[int, ...]
    blocks: list[Block]
    last: Stage | None
    like: Tensor  # of the working dtype and device
    work: float = 0.0  # multiplications spent

    @property
    def groups(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def cost(self) -> int:
        stages = [block.stage for block in self.blocks] + ([self.last] if self.last else [])
        return max(1, sum(stage.cost for stage in stages))

    @property
    def depth(self) -> int:
        """The number of kink layers with uncertain groups."""
        return sum(len(kinks.index) > 0 for block in self.blocks for kinks in block.kinks)

    @property
    def terms(self) -> int:
        """For the rounding of a pass: the products summed in one element, over all stages."""
        stages = [block.stage for block in self.blocks] + ([self.last] if self.last else [])
        return sum(stage.terms for stage in stages) + self.groups

    @property
    def widest(self) -> int:
        """Elements of the largest layer."""
        stages = [block.stage for block in self.blocks] + ([self.last] if self.last else [])
        return max([size(self.in_shape)] + [size(stage.out_shape) for stage in stages])

    @property
    def out_size(self) -> int:
        if self.last is not None:
            return size(self.last.out_shape)
        return size(self.blocks[-1].out_shape)

    def forward(self, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(Nδ + Pw, Qδ + Tw), (p, m) and (p, G), for delta (p, n), w (p, G)."""
        p, used = delta.shape[0], 0
        values: dict[str, Tensor] = {INPUT: delta.reshape(p, *self.in_shape)}
        vs: list[Tensor] = []
        y = values[INPUT]
        for block in self.blocks:
            y = block.stage.apply(self._read(block.stage, values))
            y, v = block.forward(y, w[:, used : used + block.count])
            values[block.plan.name] = y
            vs += v
            used += block.count
        if self.last is not None:
            y = self.last.apply(self._read(self.last, values))
        self.work += 0.5 * p * self.cost
        return y.reshape(p, -1), torch.cat(vs, 1) if vs else w

    def adjoint(self, f: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(Nᵀf + Qᵀv, Pᵀf + Tᵀv), (p, n) and (p, G), for f (p, m), v (p, G)."""
        p, used = f.shape[0], v.shape[1]
        bars: dict[str, Tensor] = {}
        ws: list[Tensor] = []
        if self.last is not None:
            self._add(bars, self.last.adjoint(f.reshape(p, *self.last.out_shape)))
        elif self.blocks:
            bars[self.blocks[-1].plan.name] = f.reshape(p, *self.blocks[-1].out_shape)
        for block in reversed(self.blocks):
            z = bars.pop(block.plan.name, None)
            if z is None:  # nothing later in this prefix reads it
                z = f.new_zeros(p, *block.out_shape)
            y, w = block.adjoint(z, v[:, used - block.count : used])
            self._add(bars, block.stage.adjoint(y))
            ws = w + ws
            used -= block.count
        self.work += 0.5 * p * self.cost
        delta = bars.get(INPUT, f.new_zeros(p, *self.in_shape))
        return delta.reshape(p, -1), torch.cat(ws, 1) if ws else v

    @staticmethod
    def _read(stage: Stage, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name] for name in stage.sources}

    @staticmethod
    def _add(bars: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
        for name, x in more.items():
            bars[name] = bars[name] + x if name in bars else x
