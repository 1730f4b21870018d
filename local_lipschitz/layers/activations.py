"""The nonlinear layers, by what a bound may know of them.

An activation is known by its *anchored secant slopes*: for z = φ(y) and |y − y0| ≤ h, φ(y) − φ(y0) = s·(y − y0) with
s in [s_lo, s_hi]. Max pooling is known by its windows. Source: docs/bounds.md, docs/joint_bound.md;
Avant & Morgansen 2023, Section III.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_maps import Shape

Interval = tuple[Tensor, Tensor]


def merged(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both."""
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous, elementwise, piecewise linear φ with φ(0) = `at_zero`.

    knots: where the slope changes, in ascending order; slopes: one more than knots, from left to right, each a
    number or a tensor that broadcasts against the layer's input (PReLU has a slope a channel).
    """

    knots: tuple[float, ...]
    slopes: tuple[float | Tensor, ...]
    at_zero: float = 0.0

    def apply(self, y: Tensor) -> Tensor:
        """φ(y), the way from 0 to y taken piece by piece: where φ is flat, what y is rounded by does not count."""
        if self is RELU:
            return F.relu(y)
        z = torch.full_like(y, self.at_zero)
        for start, end, slope in zip((-math.inf, *self.knots), (*self.knots, math.inf), self.slopes, strict=True):
            z = z + self.cast(slope, y) * (y.clamp(start, end) - min(max(start, 0.0), end))
        return z

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        """φ(y0 + dy) − φ(y0) without cancellation: to relative rounding, however small dy is."""
        way = torch.where(dy == 0, 1.0, dy.abs())
        right, left = self._average_slope(y0, way, 1.0), self._average_slope(y0, way, -1.0)
        return torch.where(dy > 0, right, left) * dy

    def secant_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> Interval:
        """(s_lo, s_hi), the range of (φ(y) − φ(y0)) / (y − y0) over 0 < |y − y0| ≤ h; both 0 where h = 0.

        Arguments as for `sided_slopes`.
        """
        return merged(*self.sided_slopes(y0, h, off))

    def sided_slopes(self, y0: Tensor, h: Tensor, off: Tensor | None = None) -> tuple[Interval, Interval]:
        """The ranges of (φ(y) − φ(y0)) / (y − y0) for y0 − h ≤ y < y0 and for y0 < y ≤ y0 + h; 0 where h = 0.

        With `off` ranges for every anchor within y0 ± off: a y0 that is known to rounding only.
        y0, h, off (B, ...). The secant slope towards one side is the average of the slopes it crosses, weighted by the
        part of the way spent in each; its extremes lie at the end of the way, at a knot on it, or at its start.
        No difference of nearly equal values of φ is ever taken, so tiny h lose no digits.
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
            way = side * (knot - y0)
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
        gap = reduce(torch.minimum, [(y0 - knot).abs() for knot in self.knots])
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

    def steepest(self, like: Tensor) -> Tensor:
        """The largest |φ'| of each element, in the shape of `like`."""
        low, high = self.slope_range(like)
        return torch.maximum(low.abs(), high.abs()).expand_as(like)

    def slope_range(self, like: Tensor) -> Interval:
        """The smallest and the largest φ', broadcasting against `like`."""
        slopes = [self.cast(slope, like) for slope in self.slopes]
        return reduce(torch.minimum, slopes), reduce(torch.maximum, slopes)

    def _average_slope(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        """Average of φ' between y0 and y0 + side·way, (B, ...), for finite ways > 0.

        A piece that is crossed from knot to knot counts with its own length: the difference of two distances from y0
        has no digit of it left where y0 is far away, and a slope of 0 would be too small.
        """
        knots, slopes = (self.knots, self.slopes) if side > 0 else (self.knots[::-1], self.slopes[::-1])
        distance = [side * (knot - y0) for knot in knots]
        met = [*[d.clamp(min=0.0).minimum(way) for d in distance], way]
        average = torch.zeros_like(way)
        for i, slope in enumerate(slopes):
            if isinstance(slope, float) and slope == 0.0:
                continue
            length = met[i] - met[i - 1] if i > 0 else met[0]
            if 0 < i < len(knots):
                crossed = (distance[i - 1] >= 0.0) & (distance[i] <= way)
                length = torch.where(crossed, abs(knots[i] - knots[i - 1]), length)
            average = average + self.cast(slope, y0) * (length / way)  # exact where one piece is the whole way
        return average

    def _slope_beside(self, y0: Tensor, side: float) -> Tensor:
        """The slope of the piece that one enters when one leaves y0 to this side."""
        slope = self.cast(self.slopes[0], y0).expand_as(y0)
        for knot, right in zip(self.knots, self.slopes[1:], strict=True):
            entered = y0 >= knot if side > 0 else y0 > knot
            slope = torch.where(entered, self.cast(right, y0), slope)
        return slope

    @staticmethod
    def cast(slope: float | Tensor, like: Tensor) -> Tensor:
        """A slope as a tensor of like's dtype and device."""
        return torch.as_tensor(slope, dtype=like.dtype, device=like.device)


RELU = PiecewiseLinear(knots=(0.0,), slopes=(0.0, 1.0))


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over the last two dimensions of (B, *in_shape), in_shape = (C, H, W)."""

    in_shape: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def apply(self, y: Tensor) -> Tensor:
        """The largest element of each window, (B, *out_shape)."""
        return F.max_pool2d(y, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        """The change of the pooled values when y0 (1, *in_shape) becomes y0 + dy, without cancellation."""
        args = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        _, winner = F.max_pool2d(y0 + dy, *args, return_indices=True)
        at = winner.flatten(2)
        y0_there = y0.expand_as(dy).flatten(2).gather(2, at)
        change = (y0_there - self.apply(y0).flatten(2)) + dy.flatten(2).gather(2, at)
        return change.reshape(winner.shape)

    @cached_property
    def out_shape(self) -> Shape:
        return tuple(self.apply(torch.zeros(1, *self.in_shape)).shape[1:])

    @cached_property
    def windows(self) -> Tensor:
        """(windows, elements): the indices into a flattened H·W channel that each window reads, −1 for padding."""
        (H, W), (H_out, W_out) = self.in_shape[1:], self.out_shape[1:]
        rows, columns = self._reads(0, H, H_out), self._reads(1, W, W_out)  # (H_out, k_h), (W_out, k_w)
        rows, columns = rows[:, None, :, None], columns[None, :, None, :]
        index = torch.where((rows >= 0) & (columns >= 0), rows * W + columns, -1)
        return index.reshape(H_out * W_out, -1)

    def _reads(self, axis: int, length: int, windows: int) -> Tensor:
        """(windows, kernel): the positions along one axis that each window reads, −1 outside."""
        start = torch.arange(windows) * self.stride[axis] - self.padding[axis]
        at = start[:, None] + torch.arange(self.kernel[axis]) * self.dilation[axis]
        return torch.where((at >= 0) & (at < length), at, -1)

    @cached_property
    def overlap(self) -> int:
        """The largest number of windows that one input element falls in; ‖Δ pooled‖ ≤ √overlap · ‖Δ input‖.

        ⌈k_h/s_h⌉·⌈k_w/s_w⌉ for dilation 1; counted exactly here, for any dilation.
        """
        index = self.windows
        return int(torch.bincount(index[index >= 0]).max())


def pool_anything(pool: MaxPool, mask: Tensor) -> Tensor:
    """True where any element of the window is; mask (B, *in_shape) bool."""
    return pool.apply(mask.to(torch.float32)) > 0.5


Nonlinear = PiecewiseLinear | MaxPool
