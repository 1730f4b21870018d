"""One layer of kinks: Δz = c·Δy + ρ·w with |w| ≤ |Δy|, where [c − ρ, c + ρ] holds all anchored secant slopes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..layers.activations import Activation, Interval, merged
from ..product.stage_norms import channels_last

SLOPE_SLACK = 1e-10  # outward, for the rounding of float64 gains and slopes


@dataclass(frozen=True)
class Reads:
    """What a layer of kinks reads: y within y0 ± off at x0, and −down ≤ Δy/‖x − x0‖ ≤ up on the ball of radius eps.

    op: the z = φ(y) that it computes. All tensors (*shape), float64. needed: False where z never matters in the end.
    """

    op: Activation
    y0: Tensor
    off: Tensor
    down: Tensor
    up: Tensor
    needed: Tensor
    eps: float

    @property
    def reach(self) -> Tensor:
        """|Δy| ≤ reach·‖x − x0‖."""
        return torch.maximum(self.down, self.up)

    @cached_property
    def sides(self) -> tuple[Interval, Interval]:
        """Anchored secant slopes to the left and to the right; 0 where y cannot move to that side."""
        outward = self.eps * (1.0 + SLOPE_SLACK)
        left, _ = self.op.sided_slopes(self.y0, outward * self.down, self.off)
        _, right = self.op.sided_slopes(self.y0, outward * self.up, self.off)
        return left, right

    @property
    def slopes(self) -> Interval:
        """Anchored secant slopes [s_lo, s_hi]."""
        left, right = self.sides
        falls, rises = self.down > 0, self.up > 0
        s_lo, s_hi = merged(left, right)
        s_lo, s_hi = (torch.where(rises, s, side) for s, side in zip((s_lo, s_hi), left, strict=True))
        return torch.where(falls, s_lo, right[0]), torch.where(falls, s_hi, right[1])

    @property
    def image(self) -> Interval:
        """(down, up) of z."""
        left, right = self.sides
        down = torch.maximum(left[1] * self.down, -right[0] * self.up)
        up = torch.maximum(-left[0] * self.down, right[1] * self.up)
        down, up = (torch.where(self.needed, way, 0.0).clamp(min=0.0) * (1.0 + SLOPE_SLACK) for way in (down, up))
        return down, up

    @property
    def uncertain(self) -> Tensor:
        """The flat positions of those that may bend and matter."""
        s_lo, s_hi = self.slopes
        return ((s_hi > s_lo) & self.needed).flatten().nonzero()[:, 0]

    def within(self, at: Tensor, reach: Tensor) -> Reads:
        """The same with |Δy| ≤ reach·‖x − x0‖ for the elements `at` (flat positions)."""

        def smaller(way: Tensor) -> Tensor:
            flat = way.flatten()
            return flat.index_copy(0, at, torch.minimum(flat[at], reach)).reshape(way.shape)

        return replace(self, down=smaller(self.down), up=smaller(self.up))


@dataclass(frozen=True)
class Kinks:
    """Δz = c·Δy + ρ·w elementwise; ρ and w live only on the uncertain elements.

    c: (*shape). index: (k,) flat positions of the uncertain elements. rho: (k,). reads: what they were made from.
    moved: (*shape) the size of what rounding acts on, relative to ‖x − x0‖.
    Tensors are multiplied, read and written in whatever order they lie in memory.
    """

    c: Tensor
    index: Tensor
    rho: Tensor
    reads: Reads
    moved: Tensor

    @classmethod
    def centred(cls, reads: Reads, index: Tensor, dtype: torch.dtype, moved: Tensor | None = None) -> Kinks:
        """c and ρ in the working dtype, [s_lo, s_hi] inside [c − ρ, c + ρ] on `index`; exact slopes elsewhere."""
        s_lo, s_hi = (torch.where(reads.needed, s, 0.0) for s in reads.slopes)  # never matters: any slope, no kink
        c = (0.5 * (s_lo + s_hi)).to(dtype)
        at = c.double().flatten()[index]
        rho = torch.maximum(s_hi.flatten()[index] - at, at - s_lo.flatten()[index])
        if moved is None:
            moved = 2.0 * torch.maximum(s_lo.abs(), s_hi.abs()) * reads.reach
        kept = replace(reads)  # without the slopes, which would be held as long as the kinks are
        return cls(c, index, (rho * (1.0 + 4.0 * torch.finfo(dtype).eps)).to(dtype), kept, moved)

    def to(self, dtype: torch.dtype) -> Kinks:
        """The same kinks in another dtype, and in the plain order."""
        return replace(self, c=self.c.to(dtype).contiguous(), rho=self.rho.to(dtype))

    def channels_last(self) -> Kinks:
        """The same with c in the order in which convolutions with the channels last lie in memory."""
        return replace(self, c=channels_last(self.c[None])[0])

    def forward(self, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(z, v) for y (p, *shape), w (p, k)."""
        z = self.c * y
        z[self._at] += self.rho * w
        return z, y[self._at]

    def adjoint(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(y, w), the adjoint of `forward`, for z (p, *shape), v (p, k)."""
        y = self.c * z
        y[self._at] += v
        return y, self.rho * z[self._at]

    @cached_property
    def _at(self) -> tuple:
        return positions(self.index, self.c.shape)


def positions(index: Tensor, shape: torch.Size) -> tuple:
    """What picks the elements `index` (flat positions) from each of x (p, *shape)."""
    return (slice(None), *torch.unravel_index(index, shape))
