"""Elementwise functions φ, by what a bound may know of them: their *anchored secant slopes*.

For z = φ(y) and |y − y0| ≤ h, φ(y) − φ(y0) = s·(y − y0) with s in [s_lo, s_hi]. Source: docs/bounds.md,
docs/joint_bound.md; Avant & Morgansen 2023, Section III.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Interval = tuple[Tensor, Tensor]


def merged(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both."""
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


class Activation:
    """A continuous, elementwise φ. Bounds ask for nothing but what is declared here; subclasses say how."""

    def apply(self, y: Tensor) -> Tensor:
        """φ(y)."""
        raise NotImplementedError

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        """φ(y0 + dy) − φ(y0) without cancellation: to relative rounding, however small dy is."""
        raise NotImplementedError

    def sided_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> tuple[Interval, Interval]:
        """The ranges of (φ(y) − φ(y0)) / (y − y0) for y0 − h ≤ y < y0 and for y0 < y ≤ y0 + h; 0 where h = 0.

        With `off` ranges for every anchor within y0 ± off: a y0 that is known to rounding only. y0, h, off (B, ...).
        """
        raise NotImplementedError

    def slope_range(self, like: Tensor) -> Interval:
        """The smallest and the largest φ', broadcasting against `like`, whose dtype and device they have."""
        raise NotImplementedError

    @property
    def non_decreasing(self) -> bool:
        """Whether φ(a) ≤ φ(b) for all a ≤ b."""
        raise NotImplementedError

    def same_within_channels(self, rank: int) -> bool:
        """Whether all elements of a channel, the first of `rank` dimensions, have the same φ."""
        return True

    def secant_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> Interval:
        """(s_lo, s_hi), the range of (φ(y) − φ(y0)) / (y − y0) over 0 < |y − y0| ≤ h; both 0 where h = 0.

        Arguments as for `sided_slopes`.
        """
        return merged(*self.sided_slopes(y0, h, off))

    def steepest_slope(self, like: Tensor) -> Tensor:
        """The largest |φ'| of each element, in the shape of `like`."""
        low, high = self.slope_range(like)
        return torch.maximum(low.abs(), high.abs()).expand_as(like)


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """A continuous, elementwise, piecewise linear φ with φ(0) = `at_zero`.

    knots: where the slope changes, in ascending order; slopes: one more than knots, from left to right. Each is a
    number or a tensor that broadcasts against the layer's input (PReLU has a slope a channel). A knot may be infinite
    where the slope beyond it is the number 0.0.
    """

    knots: tuple[float | Tensor, ...]
    slopes: tuple[float | Tensor, ...]
    at_zero: float | Tensor = 0.0

    def apply(self, y: Tensor) -> Tensor:
        """φ(y), the way from 0 to y taken piece by piece: where φ is flat, what y is rounded by does not count."""
        if self is RELU:
            return F.relu(y)
        ends = [-math.inf, *self.knots, math.inf]
        z = self.cast(self.at_zero, y).expand_as(y)
        for start, end, slope in zip(ends, ends[1:], self.slopes, strict=False):
            if not is_zero(slope):
                low, high = self.cast(start, y), self.cast(end, y)
                z = z + self.cast(slope, y) * (y.clamp(low, high) - low.clamp(min=0.0).minimum(high))
        return z

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        way = torch.where(dy == 0, 1.0, dy.abs())
        right, left = self._average_slope(y0, way, 1.0), self._average_slope(y0, way, -1.0)
        return torch.where(dy > 0, right, left) * dy

    def sided_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> tuple[Interval, Interval]:
        """The secant slope towards one side is the average of the slopes it crosses, weighted by the part of the way
        spent in each; its extremes lie at the end of the way, at a knot on it, or at its start. No difference of nearly
        equal values of φ is ever taken, so tiny h lose no digits.
        """
        constant = h <= 0
        if off is not None:
            h = h + off  # reaches all that any of the anchors reaches
        h = h.clamp(max=torch.finfo(h.dtype).max)
        sides = self._one_side(y0, h, -1.0), self._one_side(y0, h, 1.0)
        if off is not None and self.knots:
            sides = self._widened(y0, sides, h, off)
        (a, b), (c, d) = sides
        a, b, c, d = (s.masked_fill(constant, 0.0) for s in (a, b, c, d))
        return (a, b), (c, d)

    def _one_side(self, y0: Tensor, h: Tensor, side: float) -> Interval:
        """The range of secant slopes over the ways of length up to h from y0 to this side; anything where h = 0."""
        slopes = [self._slope_beside(y0, side), self._average_slope(y0, h, side)]
        for knot in self.knots if len(self.knots) > 1 else ():  # on the way to the nearest one the slope is constant
            way = side * (self.cast(knot, y0) - y0)
            inside = (way > 0) & (way <= h)
            slopes.append(self._average_slope(y0, torch.where(inside, way, h), side))
        return reduce(torch.minimum, slopes), reduce(torch.maximum, slopes)

    def _widened(
        self, y0: Tensor, sides: tuple[Interval, Interval], h: Tensor, off: Tensor
    ) -> tuple[Interval, Interval]:
        """Slopes to either side of every anchor within y0 ± off, from those of y0 over ways up to h, h ≥ off.

        An anchor on the other side of a knot than y0 may see any slope. Else moving it by off, the end staying where it
        is, moves the average over a way by at most the share off/way of all slopes. A way that meets a knot is at least
        gap − off long. With one knot the longest way has the extreme slope, and the share is off/h.
        """
        gap = reduce(torch.minimum, [(y0 - self.cast(knot, y0)).abs() for knot in self.knots])
        share, near = off / (gap - off), gap <= off
        if len(self.knots) == 1:
            share = torch.minimum(share, off / h)
        low, high = self.slope_range(y0)
        wide = (high - low) * share

        def widened(side: Interval) -> Interval:
            width = torch.where(side[1] > side[0], wide, 0.0)
            lo, hi = torch.maximum(side[0] - width, low), torch.minimum(side[1] + width, high)
            return torch.where(near, low, lo), torch.where(near, high, hi)

        return widened(sides[0]), widened(sides[1])

    def slope_range(self, like: Tensor) -> Interval:
        slopes = [self.cast(slope, like) for slope in self.slopes]
        return reduce(torch.minimum, slopes), reduce(torch.maximum, slopes)

    @property
    def non_decreasing(self) -> bool:
        return all(bool((torch.as_tensor(slope) >= 0).all()) for slope in self.slopes)

    def same_within_channels(self, rank: int) -> bool:
        return all(
            a.numel() == 1 or (a.dim() == rank and a[0].numel() == 1)
            for a in (*self.knots, *self.slopes, self.at_zero)
            if isinstance(a, Tensor)
        )

    def _average_slope(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        """Average of φ' between y0 and y0 + side·way, (B, ...), for finite ways > 0.

        A piece that is crossed from knot to knot counts with its own length: the difference of two distances from y0
        has no digit of it left where y0 is far away, and a slope of 0 would be too small.
        """
        knots, slopes = [self.cast(knot, y0) for knot in self.knots], self.slopes
        if side < 0:
            knots, slopes = knots[::-1], slopes[::-1]
        distance = [side * (knot - y0) for knot in knots]
        met = [*[d.clamp(min=0.0).minimum(way) for d in distance], way]
        average = torch.zeros_like(way)
        for i, slope in enumerate(slopes):
            if is_zero(slope):
                continue
            length = met[i] - met[i - 1] if i > 0 else met[0]
            if 0 < i < len(knots):
                crossed = (distance[i - 1] >= 0.0) & (distance[i] <= way)
                length = torch.where(crossed, (knots[i] - knots[i - 1]).abs(), length)
            average = average + self.cast(slope, y0) * (length / way)  # exact where one piece is the whole way
        return average

    def _slope_beside(self, y0: Tensor, side: float) -> Tensor:
        """The slope of the piece that one enters when one leaves y0 to this side."""
        slope = self.cast(self.slopes[0], y0).expand_as(y0)
        for knot, right in zip(self.knots, self.slopes[1:], strict=True):
            knot = self.cast(knot, y0)
            entered = y0 >= knot if side > 0 else y0 > knot
            slope = torch.where(entered, self.cast(right, y0), slope)
        return slope

    @staticmethod
    def cast(value: float | Tensor, like: Tensor) -> Tensor:
        """A knot or slope as a tensor of like's dtype and device."""
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def is_zero(slope: float | Tensor) -> bool:
    """Whether a piece is flat for all elements, and known to be so without a look at a tensor."""
    return isinstance(slope, float) and slope == 0.0


RELU = PiecewiseLinear(knots=(0.0,), slopes=(0.0, 1.0))
