"""Max pooling as a tournament of pairs, max(a, b) = a + relu(b − a): winners meet again until one is left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def terms(self) -> int:
        """The largest number of terms summed in one element of `adjoint`."""
        return 2 + int(torch.bincount(torch.cat([self.a, self.b])).max()) if len(self.a) else 2

    def moved(self, x: Winners) -> Tensor:
        """Sizes that rounding acts on where max(a, b) = a + c·(b − a) + ρ·w, |c|, ρ ≤ 1: (C, pairs)."""
        reach = torch.maximum(x.up, x.down)
        return 3.0 * reach[:, self.a] + 2.0 * reach[:, self.b]

    def difference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x[a], x[b] − x[a])."""
        x = x.contiguous()  # where channels lie side by side, each of the two would take five times as long
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
    """The differences x[b] − x[a] of one level, (C, pairs), and its winners."""
    a, b = level.a, level.b
    gap = x.y0[:, b] - x.y0[:, a]
    alone = (a == b)[None]
    moves = (x.up[:, a] + x.down[:, a] + x.up[:, b] + x.down[:, b] > 0) & ~alone
    apart = torch.where(moves, x.off[:, a] + x.off[:, b], 0.0)
    up, down = x.up[:, b] + x.down[:, a], x.down[:, b] + x.up[:, a]
    differences = Winners(gap, apart, up.masked_fill(alone, 0.0), down.masked_fill(alone, 0.0))
    a_wins = gap <= 0
    first, second, gap = torch.where(a_wins, a, b), torch.where(a_wins, b, a), gap.abs()
    up = torch.maximum(x.up.gather(1, first), x.up.gather(1, second) - gap + apart)
    down = torch.minimum(x.down.gather(1, first) + apart, x.down.gather(1, second) + gap + apart)
    return differences, Winners(x.y0.gather(1, first), torch.maximum(x.off[:, a], x.off[:, b]), up, down)


def pairs(levels: list[Level], played: list[Winners], alive: Tensor, eps: float) -> list[Reads]:
    """What the kinks of each level read; alive (C, windows): whose result does matter."""
    reads = []
    for i in range(len(levels) - 1, -1, -1):
        d = played[i]
        reads.append(Reads(RELU, d.y0, d.off, d.down / eps, d.up / eps, alive, eps))
        if i > 0:
            s_lo, s_hi = reads[-1].slopes
            before = torch.zeros(alive.shape[0], len(levels[i - 1].a), dtype=torch.int32, device=alive.device)
            before.index_add_(1, levels[i].a, (alive & (s_lo < 1)).int())
            before.index_add_(1, levels[i].b, (alive & (s_hi > 0)).int())
            alive = before > 0
    return reads[::-1]
