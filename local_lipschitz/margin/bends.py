"""The network near x0 with its kinks written out: y = y0 + Qδ + T(p − p0), p = max(y, 0), for the kinks that may bend.

Everything else is linear on the ball. A unit with slopes s_0, s_1, … between its knots κ_1, κ_2, … is, for y in [l, u],
z = c·y + Σ_k (s_k − s_{k−1}) max(y − κ_k, 0) + constant, over the knots between l and u, c being the slope at l: a kink
for each of these knots. A pair of a pooling window is max(a, b) = a + max(b − a, 0).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..joint_operator import Block, Plan, at_once
from ..joint_operator.pooling import Level
from ..layers.activations import PiecewiseLinear
from ..layers.layer import INPUT
from ..layers.rounding import roundings
from ..layers.stage import Stage
from ..numerics import UNDERFLOW, gamma_n


class NotDense(Exception):
    """The margin relaxation cannot be formed: more kinks than dense algebra takes, other units, or no time."""


@dataclass(frozen=True)
class Limit:
    """What the forming of rows may cost: how many kinks, and until when of time.monotonic()."""

    kinks: int
    deadline: float = math.inf

    def check(self, count: int = 0, factor: int = 1) -> None:
        """Raise NotDense where that is passed."""
        if count > factor * self.kinks:
            raise NotDense(f"{count} kinks may bend, {factor * self.kinks} are what dense algebra takes")
        if time.monotonic() > self.deadline:
            raise NotDense("the time was over before its rows were formed")


@dataclass(frozen=True)
class Bends:
    """One layer of kinks: Δz = c·Δy elementwise, and ρ·Δp added at the elements `index`, which may repeat.

    c: (*shape). index: (k,) flat positions. rho, knot: (k,). number: (k,) of the knot, in ascending order.
    """

    c: Tensor
    index: Tensor
    rho: Tensor
    knot: Tensor
    number: Tensor

    def among(self, more: Bends) -> Tensor:
        """(k,) the places of these kinks among those of `more`, which has them all."""
        size = self.c.numel()
        return torch.searchsorted(more.number * size + more.index, self.number * size + self.index)

    def forward(self, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(z, v) for y (b, *shape), w (b, k): c·y with ρ·w added, and what the kinks read."""
        z = (self.c * y).flatten(1).index_add(1, self.index, self.rho * w)
        return z.reshape(y.shape), y.flatten(1)[:, self.index]

    def adjoint(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(y, w), the adjoint of `forward`."""
        y = (self.c * z).flatten(1).index_add(1, self.index, v)
        return y.reshape(z.shape), self.rho * z.flatten(1)[:, self.index]


def may_bend(op: PiecewiseLinear, low: Tensor, high: Tensor, needed: Tensor) -> Bends:
    """The kinks of z = op(y) with y in [low, high] (*shape), where needed; elsewhere a slope of 0, as good as any."""
    knots = [op.cast(knot, low).expand_as(low) for knot in op.knots]
    slopes = [op.cast(slope, low).expand_as(low) for slope in op.slopes]
    c = slopes[0]
    for knot, slope in zip(knots, slopes[1:], strict=True):
        c = torch.where(low >= knot, slope, c)
    index, rho, at, number = [], [], [], []
    for i, (knot, before, after) in enumerate(zip(knots, slopes, slopes[1:], strict=False)):
        here = ((low < knot) & (knot < high) & (before != after) & needed).flatten().nonzero()[:, 0]
        index.append(here)
        rho.append((after - before).flatten()[here])
        at.append(knot.flatten()[here])
        number.append(torch.full_like(here, i))
    c = torch.where(needed, c, 0.0)
    return Bends(c, torch.cat(index), torch.cat(rho), torch.cat(at), torch.cat(number))


@dataclass
class Bent:
    """The blocks of a network so far, with their kinks, at one x0.

    sizes: for each stage at least what its sums add up in size on the ball, Σ|a_ij||x_j| + |b_i|, (*out_shape).
    """

    in_shape: tuple[int, ...]
    blocks: list[Block]
    sizes: list[Tensor]
    like: Tensor
    limit: Limit

    def add(self, plan: Plan, levels: list[Level], size: Tensor) -> None:
        """A block, still without kinks."""
        self.blocks.append(Block(plan, plan.stage.to(torch.float64), size, levels))
        self.sizes.append(size)

    @property
    def count(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def widest(self) -> int:
        return max([self.like[0].numel(), *(size.numel() for size in self.sizes)])

    def candidates(self, bends: Bends) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, T, error) of the kinks that are to be the next layer of the last block."""
        block, k = self.blocks[-1], len(bends.index)
        block.kinks.append(bends)  # type: ignore[arg-type]
        total = self.count

        def seed(first: int, size: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
            v = self.like.new_zeros(size, total)
            v[:, total - k + first : total - k + first + size].fill_diagonal_(1.0)
            return {}, v, self.like.new_zeros(size)

        Q, T, error = self._rows(seed, k)
        block.kinks.pop()
        return Q, T[:, : total - k], error

    def functions(self, last: Stage, size: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, error) of the functions C (K, m) of the output of the `last` stage."""

        def seed(first: int, count: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
            f = C[first : first + count].reshape(count, *last.out_shape)
            error = rounding_factor(last) * ((f.abs() * size).flatten(1).sum(1) + UNDERFLOW)
            return last.to(torch.float64).adjoint(f), self.like.new_zeros(count, self.count), error

        return self._rows(seed, len(C))

    def _rows(self, seed: Callable[[int, int], tuple], count: int) -> tuple[Tensor, Tensor, Tensor]:
        part = at_once(self.widest)
        parts = []
        for first in range(0, count, part):
            self.limit.check()
            parts.append(self._pull(*seed(first, min(part, count - first))))
        if not parts:
            empty = self.like.new_zeros(0, 1)
            return empty.expand(0, torch.Size(self.in_shape).numel()), empty.expand(0, self.count), empty[:, 0]
        Q, T, error = (torch.cat(each) for each in zip(*parts, strict=True))
        return Q, T, error

    def _pull(self, bars: dict[str, Tensor], v: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Functionals of what has been computed so far, back to δ and to the kinks; and what rounding makes of them.

        A rounding error at a stage acts on true values, whose size is known, so that errors do not grow with the depth:
        Σ_k γ_k⟨|r_k|, size_k⟩ for the functional r_k at the output of stage k.
        """
        ws: list[Tensor] = []
        used = v.shape[1]
        for block, size in zip(reversed(self.blocks), reversed(self.sizes), strict=True):
            z = bars.pop(block.plan.name, None)
            if z is None:
                z = v.new_zeros(len(v), *block.out_shape)
            y, w = block.adjoint(z, v[:, used - block.count : used])
            used -= block.count
            ws = w + ws
            weight = (y.abs() * size).flatten(1).sum(1) + UNDERFLOW
            error = error + rounding_factor(block.stage, len(block.levels)) * weight
            for name, x in block.stage.adjoint(y).items():
                bars[name] = bars[name] + x if name in bars else x
        delta = bars.get(INPUT, v.new_zeros(len(v), *self.in_shape))
        return delta.flatten(1), torch.cat(ws, 1) if ws else v, error


def rounding_factor(stage: Stage, levels: int = 0) -> float:
    """γ for the sums of a stage, of its adjoint and of the nominal value, and for the units that follow it."""
    return 4.0 * gamma_n(roundings(stage) + 16 + 8 * levels)
