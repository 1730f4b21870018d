"""Anchored secant slopes of activations that are smooth: convex or concave between a few known points.

Let q(t) = (φ(y0 + t) − φ(y0)) / t on the way to the right of y0 (to the left it is the same with −φ(−y)). On a piece
where φ is convex, q is quasi-convex: {q ≤ c} = {φ(y0 + t) − φ(y0) − c t ≤ 0} is an interval. So it is largest at an
end of the piece, and every tangent of φ bounds it from below: with the tangent at t1

    q(s) ≥ φ'(t1) − e1/s,   e1 = t1 (φ'(t1) − q(t1)),       for every s of the piece.                        (1)

Of two tangents with e1 ≤ 0 ≤ e2 the mean with weights e2 and −e1 has no term in 1/s left:

    q(s) ≥ (e2 φ'(t1) − e1 φ'(t2)) / (e2 − e1)                                                               (2)

for every s, whatever t1 and t2 are: how well the point where φ' = q is bracketed decides how tight this is, not whether
it is true. Concave pieces are convex ones of −φ. On the piece that starts at y0 both extremes are at its ends.

Rounding: every function here comes with the size of what was summed up, and is within `ROUNDED` times that of the truth
(a few units in the last place, and the 745 of them by which exp may amplify its argument's); all is widened by that.
"""

from __future__ import annotations

from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .activations import Activation, Interval

ROUNDED = 1e-12  # of a computed φ, φ' or average, relative to the size of its terms
SMALLEST = 1e-300  # what may have vanished below the smallest numbers
FARTHEST = 1e300  # ways are no longer than that
STEPS = 24  # halvings of the bracket of a tangent point, of which (2) squares the width


class Sized(NamedTuple):
    """Computed values, and the size of the terms that were summed up in them."""

    value: Tensor
    size: Tensor

    @property
    def off(self) -> Tensor:
        """What rounding may have changed in the values."""
        return ROUNDED * self.size + SMALLEST


class Smooth(Activation):
    """A φ that is convex, concave or straight between `breaks`. Tensors are float64 but in `apply`.

    breaks: inflection points and kinks, ascending. bends: of the pieces between, from left to right, 1 convex,
    −1 concave, 0 straight. ends: φ' at −∞ and at ∞. curvature: the largest |φ''| between breaks. jumps: the largest
    change of φ' at each break; 0 where φ' is continuous.
    """

    breaks: ClassVar[tuple[float, ...]] = ()
    bends: tuple[int, ...]
    ends: ClassVar[tuple[float, float]]
    curvature: float
    jumps: tuple[float, ...] = (0.0,)

    def derivative(self, y: Tensor, side: float) -> Sized:
        """φ'(y), at a kink that of the piece to this side."""
        raise NotImplementedError

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        """(φ(y0 + side·way) − φ(y0)) / (side·way) for ways > 0, without cancellation."""
        raise NotImplementedError

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        way = torch.where(dy == 0, 1.0, dy.abs())
        right, left = self.average(y0, way, 1.0).value, self.average(y0, way, -1.0).value
        return torch.where(dy > 0, right, left) * dy

    @property
    def non_decreasing(self) -> bool:
        return float(self.slope_range(torch.zeros((), dtype=torch.float64))[0]) >= 0.0

    def slope_range(self, like: Tensor) -> Interval:
        at = torch.tensor(self.breaks, dtype=torch.float64, device=like.device)
        beside = [self.derivative(at, side) for side in (-1.0, 1.0)]
        low = min([*self.ends, *(float((s.value - s.off).amin()) for s in beside if len(at))])
        high = max([*self.ends, *(float((s.value + s.off).amax()) for s in beside if len(at))])
        return like.new_tensor(low), like.new_tensor(high)

    def sided_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> tuple[Interval, Interval]:
        y0, h = torch.broadcast_tensors(y0, h)
        off = torch.zeros_like(h) if off is None else off.expand_as(h)
        way = (h + off).clamp(max=FARTHEST)  # reaches all that any of the anchors reaches
        flat_y0, flat_way = y0.flatten(), torch.where(h > 0, way, 1.0).flatten()
        wider = self.moved(y0, way, off)
        low, high = self.slope_range(y0)

        def side(side: float) -> Interval:
            lo, hi = (s.reshape(y0.shape) for s in self._one_side(flat_y0, flat_way, side))
            lo, hi = (lo - wider).clamp(low, high), (hi + wider).clamp(low, high)
            return lo.masked_fill(h <= 0, 0.0), hi.masked_fill(h <= 0, 0.0)

        return side(-1.0), side(1.0)

    def moved(self, y0: Tensor, way: Tensor, off: Tensor) -> Tensor:
        """By how much a secant slope may change when its anchor moves by `off`, its end staying where it is.

        It is the average of φ' over the way, whose points move by off/2 on average; beyond a kink that is met, at most
        the share off/way of the jump, the way being at least as long as the gap to the kink.
        """
        moved = 0.5 * self.curvature * off
        for at, jump in zip(self.breaks, self.jumps, strict=False):
            if jump:
                gap = (y0 - at).abs()
                share = torch.where(gap > off, off / (gap - off), 1.0).clamp(max=1.0)
                moved = moved + torch.where((gap <= way) & (off > 0), jump * share, 0.0)
        return moved

    def _one_side(self, y0: Tensor, h: Tensor, side: float) -> Interval:
        """The range of secant slopes over the ways of length up to h > 0 from y0 to this side; y0, h (n,)."""
        ends = [self.derivative(y0, side), self.average(y0, h, side)]
        lo, hi = _lowest(ends), _highest(ends)
        crossings = list(zip(self.breaks, self.bends[1:] if side > 0 else self.bends[:-1], strict=True))
        crossings = crossings if side > 0 else crossings[::-1]
        beyond = [side * (at - y0) for at, _ in crossings[1:]]
        for (at, bend), next_one in zip(crossings, [*beyond, h], strict=False):
            start = side * (at - y0)
            i = ((start > 0) & (start < h)).nonzero()[:, 0]
            if len(i) == 0:
                continue
            piece = Piece(self, y0[i], start[i], torch.minimum(h, next_one)[i], side, bend * side)
            low, high = piece.extremes()
            lo[i], hi[i] = torch.minimum(lo[i], low), torch.maximum(hi[i], high)
        return lo, hi


class Piece:
    """The secant slopes from y0 to a piece of φ, convex (bend 1), concave (−1) or straight (0) as seen on the way.

    It lies between the distances a and b from y0, 0 < a ≤ b; all (n,).
    """

    def __init__(self, phi: Smooth, y0: Tensor, a: Tensor, b: Tensor, side: float, bend: float) -> None:
        self.phi, self.y0, self.a, self.b, self.side, self.bend = phi, y0, a, b, side, bend

    def extremes(self) -> Interval:
        """Smallest and largest q at the start of the piece and within; what its end has is left to the next one."""
        start = self.phi.average(self.y0, self.a, self.side)
        lo, hi = start.value - start.off, start.value + start.off
        if self.bend > 0:
            lo = torch.minimum(lo, self._inner_bound(start))
        elif self.bend < 0:
            hi = torch.maximum(hi, -self._inner_bound(start))
        return lo, hi

    def _inner_bound(self, start: Sized) -> Tensor:
        """A bound of bend·q from below, by tangents, where its least value may lie inside; else that at the start."""
        # the slope grows (times bend) from a to b, so none is less than that at a
        entering = self.phi.derivative(self._at(self.a), self.side)
        least = torch.minimum(self.bend * start.value - start.off, self.bend * entering.value - entering.off)
        q, leaving = self.phi.average(self.y0, self.b, self.side), self.phi.derivative(self._at(self.b), -self.side)
        rising = self.bend * (entering.value - start.value) > entering.off + start.off  # from a on
        falling = self.bend * (leaving.value - q.value) < -(leaving.off + q.off)  # up to b
        result = torch.minimum(self.bend * start.value - start.off, self.bend * q.value - q.off)
        inside = ((self.a < self.b) & ~rising & ~falling).nonzero()[:, 0]
        if len(inside):
            piece = Piece(self.phi, self.y0[inside], self.a[inside], self.b[inside], self.side, self.bend)
            result[inside] = torch.minimum(result[inside], torch.maximum(least[inside], piece._by_tangents()))
        return result

    def _by_tangents(self) -> Tensor:
        """(2) for t1, t2 from a bracket, whose distance from a is halved in its logarithm."""
        t1, t2 = self.a, self.b
        for _ in range(STEPS):
            middle = self.a + (((1.0 + (t1 - self.a)) * (1.0 + (t2 - self.a))).sqrt() - 1.0)
            middle = torch.where((middle > t1) & (middle < t2), middle, 0.5 * t1 + 0.5 * t2)
            before = self._tangent(middle, self.side)[1] <= 0.0
            t1, t2 = torch.where(before, middle, t1), torch.where(before, t2, middle)
        slope1, e1, lost1 = self._tangent(t1, self.side)
        slope2, e2, lost2 = self._tangent(t2, -self.side)
        e1, e2 = e1.clamp(max=0.0), e2.clamp(min=0.0)
        share = torch.where(e2 > e1, e2 / (e2 - e1), 0.5)
        return share * (slope1 - lost1) + (1.0 - share) * (slope2 - lost2)

    def _tangent(self, t: Tensor, side: float) -> tuple[Tensor, Tensor, Tensor]:
        """(φ', e, what rounding may take from the right of (1)) of the tangent at t, times bend."""
        slope, q = self.phi.derivative(self._at(t), side), self.phi.average(self.y0, t, self.side)
        lost = slope.off + (slope.off + q.off) * (t / self.a)
        return self.bend * slope.value, self.bend * t * (slope.value - q.value), lost

    def _at(self, t: Tensor) -> Tensor:
        return self.y0 + self.side * t


def _lowest(of: list[Sized]) -> Tensor:
    return reduce(torch.minimum, [s.value - s.off for s in of])


def _highest(of: list[Sized]) -> Tensor:
    return reduce(torch.maximum, [s.value + s.off for s in of])
