"""Max pooling as a tournament of pairs, max(a, b) = a + relu(b − a): winners meet again until one is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.activations import RELU
from ..layers.max_pooling import MaxPool
from .kinks import Reads


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
class Winners:
    """Elements of one level: nominal value, what rounding may have changed in it, how far they can go up and down.

    All (C, length); up, down ≥ 0.
    """

    y0: Tensor
    off: Tensor
    up: Tensor
    down: Tensor


def play(level: Level, x: Winners) -> tuple[Winners, Winners]:
    """The differences x[b] − x[a] of one level, (C, pairs), and its winners.

    A difference is said to go as far as it can in the direction that could change the winner.
    """
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
    differences = Winners(torch.where(a_wins, -gap, gap), apart, h, h)
    return differences, Winners(x.y0.gather(1, first), off, up, down)


def pairs(levels: list[Level], played: list[Winners], alive: Tensor, eps: float) -> list[Reads]:
    """What the kinks of each level read; alive (C, windows): whose result does matter."""
    reads = []
    for i in range(len(levels) - 1, -1, -1):
        d = played[i]
        reads.append(Reads(RELU, d.y0, d.off, d.up / eps, alive))
        if i > 0:
            s_lo, s_hi = reads[-1].slopes(eps)
            before = torch.zeros(alive.shape[0], len(levels[i - 1].a), dtype=torch.int32, device=alive.device)
            before.index_add_(1, levels[i].a, (alive & (s_lo < 1)).int())
            before.index_add_(1, levels[i].b, (alive & (s_hi > 0)).int())
            alive = before > 0
    return reads[::-1]
