"""Smooth activations y·g(y) with a gate g that goes from 0 to 1. Further functions: smooth_functions.py."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .activations import PiecewiseLinear
from .smooth_activations import Sized, Smooth
from .smooth_functions import ends, softplus, softplus_change, tanh_change, tanh_slope

NODES, WEIGHTS = (x.tolist() for x in np.polynomial.legendre.leggauss(8))


class Gated(Smooth):
    """y·g(y), its average slope by the product rule: g at one end, plus the other end times the average of g'.

    g is that of the end that is farther from 0: so nothing cancels that does not cancel in φ' as well.
    """

    ends = (0.0, 1.0)

    def gate(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def gate_slope(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        """The average of g' over the way."""
        raise NotImplementedError

    def apply(self, y: Tensor) -> Tensor:
        return y * self.gate(y)

    def derivative(self, y: Tensor, side: float) -> Sized:
        return self._sum(self.gate(y), y, self.gate_slope(y))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        end = y0 + side * way
        far, near = torch.where(end.abs() > y0.abs(), end, y0), torch.where(end.abs() > y0.abs(), y0, end)
        return self._sum(self.gate(far), near, self.gate_average(y0, way, side))

    @staticmethod
    def _sum(g: Tensor, y: Tensor, slope: Tensor) -> Sized:
        product = torch.where(slope == 0, 0.0, y * slope)  # y may be infinite
        return Sized(g + product, g + product.abs())


class SiLU(Gated):
    """y·σ(y); φ'' = 0 where y·tanh(y/2) = 2."""

    breaks = (-2.399357280515467668, 2.399357280515467668)
    bends, curvature = (-1, 1, -1), 0.51  # 1/2, at 0

    def gate(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y)

    def gate_slope(self, y: Tensor) -> Tensor:
        return 0.25 * tanh_slope(0.5 * y)

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        a, b = ends(y0, way, side)
        return 0.5 * tanh_change(0.5 * a, 0.5 * b, 0.5 * way) / way


class Mish(Gated):
    """y·tanh(softplus(y)); the zeros of φ'' have no closed form."""

    breaks = (-2.256376396360793, 1.490571179485428)
    bends, curvature = (-1, 1, -1), 0.66

    def gate(self, y: Tensor) -> Tensor:
        return torch.tanh(softplus(y))

    def gate_slope(self, y: Tensor) -> Tensor:
        return tanh_slope(softplus(y)) * torch.sigmoid(y)

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        a, b = ends(y0, way, side)
        return tanh_change(softplus(a), softplus(b), softplus_change(a, b, way)) / way


class GELU(Gated):
    """y·Φ(y), Φ the distribution function of the normal distribution; φ'' = (2 − y²)·Φ'(y)."""

    breaks = (-math.sqrt(2.0), math.sqrt(2.0))
    bends, curvature = (-1, 1, -1), 0.8  # 2/√(2π), at 0

    def gate(self, y: Tensor) -> Tensor:
        return 0.5 * torch.special.erfc(-math.sqrt(0.5) * y)

    def gate_slope(self, y: Tensor) -> Tensor:
        return (-0.5 * y.square()).exp() / math.sqrt(2.0 * math.pi)

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        """By Gauss's quadrature where Φ' hardly changes, else from Φ, on the side of 0 where it is small."""
        a, b = ends(y0, way, side)
        short = (way <= 0.5) & (way * (a.abs() + b.abs()) <= 1.0)
        step = torch.where(short, 0.5 * way, 0.0)
        at = [y0 + side * step * (1.0 + node) for node in NODES]
        nodes = [weight * self.gate_slope(y) for y, weight in zip(at, WEIGHTS, strict=True)]
        small = torch.where(a > 0, self.gate(-a) - self.gate(-b), self.gate(b) - self.gate(a))
        return torch.where(short, 0.5 * torch.stack(nodes).sum(0), small / way)


class TanhGELU(Gated):
    """y·(1 + tanh(u))/2 = y·σ(2u), u = √(2/π)·(y + 0.044715 y³); the zeros of φ'' have no closed form."""

    breaks = (-1.4185040087908284, 1.4185040087908284)
    bends, curvature = (-1, 1, -1), 0.8
    root, cubic = math.sqrt(2.0 / math.pi), 0.044715

    def _inner(self, y: Tensor) -> Tensor:
        return self.root * y * (1.0 + self.cubic * y.square())

    def gate(self, y: Tensor) -> Tensor:
        return torch.sigmoid(2.0 * self._inner(y))

    def gate_slope(self, y: Tensor) -> Tensor:
        slope = 0.5 * tanh_slope(self._inner(y))
        return torch.where(slope == 0, 0.0, slope * self.root * (1.0 + 3.0 * self.cubic * y.square()))

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        a, b = ends(y0, way, side)
        squares = 0.5 * (a.square() + b.square() + (a + b).square())  # (b³ − a³) / (b − a)
        change = self.root * way * (1.0 + self.cubic * squares)
        return 0.5 * tanh_change(self._inner(a), self._inner(b), change) / way


class Hardswish(Gated):
    """y·clamp(y/6 + 1/2, 0, 1): straight, a parabola, straight, with kinks at ±3."""

    breaks, bends, curvature, jumps = (-3.0, 3.0), (0, 1, 0), 0.34, (0.51, 0.51)
    clamped = PiecewiseLinear((-3.0, 3.0), (0.0, 1.0 / 6.0, 0.0), at_zero=0.5)

    def gate(self, y: Tensor) -> Tensor:
        return ((y + 3.0) / 6.0).clamp(0.0, 1.0)

    def derivative(self, y: Tensor, side: float) -> Sized:
        low, high = (y >= -3.0, y < 3.0) if side > 0 else (y > -3.0, y <= 3.0)
        return self._sum(self.gate(y), y, (low & high).to(y.dtype) / 6.0)

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        value, size = super().average(y0, way, side)
        a, b = ends(y0, way, side)
        return Sized(value, size + ((a <= 3.0) & (b >= -3.0)))  # g near a kink has the rounding of the far end

    def gate_average(self, y0: Tensor, way: Tensor, side: float) -> Tensor:
        return self.clamped.difference(y0, side * way) / (side * way)
