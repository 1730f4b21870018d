"""The smooth activations: φ, φ' and the average of φ' over any way, each computed without cancellation.

What is needed of them, and what is made of it: smooth_activations.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .smooth_activations import Sized, Smooth

FAR = 30.0  # e^30 times smaller terms cannot cancel larger ones


def ends(y0: Tensor, way: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """The left and the right end of a way."""
    return (y0, y0 + way) if side > 0 else (y0 - way, y0)


def exact(value: Tensor) -> Sized:
    """A value whose terms all have one sign."""
    return Sized(value, value.abs())


def softplus(y: Tensor) -> Tensor:
    return y.clamp(min=0.0) + torch.log1p((-y.abs()).exp())


def softplus_change(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """softplus(b) − softplus(a) for b = a + d, d > 0: log1p(σ(a)·(e^d − 1)), or from the other side d − (…)."""
    near = torch.log1p(torch.sigmoid(a) * torch.expm1(d.clamp(max=FAR)))
    far = softplus(b) - softplus(a)
    positive = d + torch.log1p(torch.sigmoid(-a) * torch.expm1(-d))
    return torch.where(a > 0, positive, torch.where(d <= FAR, near, far))


def tanh_change(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """tanh(b) − tanh(a) = sinh(d) / (cosh(a)·cosh(b)) for b = a + d, d > 0; cosh(y) = e^|y| (1 + e^(−2|y|)) / 2."""
    a, b, apart = a.abs(), b.abs(), a * b < 0
    decay = torch.where(apart, 1.0, (-2.0 * torch.minimum(a, b)).exp())  # e^(d − |a| − |b|)
    return -2.0 * torch.expm1(-2.0 * d) * decay / ((1.0 + (-2.0 * a).exp()) * (1.0 + (-2.0 * b).exp()))


def tanh_slope(y: Tensor) -> Tensor:
    decay = (-2.0 * y.abs()).exp()
    return 4.0 * decay / (1.0 + decay).square()


class Tanh(Smooth):
    breaks, bends, ends, curvature = (0.0,), (1, -1), (0.0, 0.0), 0.77  # 4/(3√3)

    def apply(self, y: Tensor) -> Tensor:
        return torch.tanh(y)

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact(tanh_slope(y))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        return exact(tanh_change(*ends(y0, way, side), way) / way)


class Tanhshrink(Smooth):
    """y − tanh(y)."""

    breaks, bends, ends, curvature = (0.0,), (-1, 1), (1.0, 1.0), 0.77

    def apply(self, y: Tensor) -> Tensor:
        return y - torch.tanh(y)

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact(torch.tanh(y).square())

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        slope = tanh_change(*ends(y0, way, side), way) / way
        return Sized(1.0 - slope, 1.0 + slope)


class Sigmoid(Smooth):
    """σ(y) = (1 + tanh(y/2)) / 2."""

    breaks, bends, ends, curvature = (0.0,), (1, -1), (0.0, 0.0), 0.0963  # 1/(6√3)

    def apply(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y)

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact(0.25 * tanh_slope(0.5 * y))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        a, b = ends(y0, way, side)
        return exact(0.5 * tanh_change(0.5 * a, 0.5 * b, 0.5 * way) / way)


class Softsign(Smooth):
    """y / (1 + |y|)."""

    breaks, bends, ends, curvature = (0.0,), (1, -1), (0.0, 0.0), 2.0

    def apply(self, y: Tensor) -> Tensor:
        return y / (1.0 + y.abs())

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact((1.0 + y.abs()).reciprocal().square())

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        a, b = ends(y0, way, side)
        through = 2.0 * a.clamp(max=0.0).abs() * (b.clamp(min=0.0) / way)  # 0 where both have one sign
        return exact((1.0 + through) / (1.0 + a.abs()) / (1.0 + b.abs()))


@dataclass(frozen=True)
class Softplus(Smooth):
    """log(1 + e^(βy)) / β, everywhere: torch's is y itself from a threshold on, where it is up to `beyond` off."""

    beta: float = 1.0
    beyond: float = 0.0  # e^(−threshold)/β
    bends, ends = (1,), (0.0, 1.0)

    @property
    def curvature(self) -> float:  # type: ignore[override]
        return 0.25 * self.beta

    def apply(self, y: Tensor) -> Tensor:
        return softplus(self.beta * y) / self.beta

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact(torch.sigmoid(self.beta * y))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        a, b = ends(self.beta * y0, self.beta * way, side)
        return exact(softplus_change(a, b, self.beta * way) / (self.beta * way))


class LogSigmoid(Smooth):
    """−softplus(−y)."""

    bends, ends, curvature = (-1,), (1.0, 0.0), 0.25

    def apply(self, y: Tensor) -> Tensor:
        return -softplus(-y)

    def derivative(self, y: Tensor, side: float) -> Sized:
        return exact(torch.sigmoid(-y))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        a, b = ends(-y0, way, -side)
        return exact(softplus_change(a, b, way) / way)


@dataclass(frozen=True)
class ELU(Smooth):
    """scale·y for y ≥ 0, scale·alpha·(e^(y·rate) − 1) for y < 0: ELU, SELU and CELU."""

    alpha: float = 1.0
    scale: float = 1.0
    rate: float = 1.0
    breaks = (0.0,)

    @property
    def left(self) -> float:
        """φ' just left of 0."""
        return self.scale * self.alpha * self.rate

    @property
    def bends(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0 if self.alpha == 0 else 1 if self.alpha > 0 else -1), 0

    @property
    def ends(self) -> tuple[float, float]:  # type: ignore[override]
        return 0.0, self.scale

    @property
    def curvature(self) -> float:  # type: ignore[override]
        return 1.001 * abs(self.left) * self.rate

    @property
    def jumps(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.001 * abs(self.scale - self.left),)

    def apply(self, y: Tensor) -> Tensor:
        below = self.alpha * torch.expm1(self.rate * y.clamp(max=0.0))
        return self.scale * torch.where(y > 0, y, below)

    def derivative(self, y: Tensor, side: float) -> Sized:
        right = y >= 0 if side > 0 else y > 0
        return exact(torch.where(right, self.scale, self.left * (self.rate * y.clamp(max=0.0)).exp()))

    def average(self, y0: Tensor, way: Tensor, side: float) -> Sized:
        a, b = ends(y0, way, side)
        left = -self.left * (self.rate * b.clamp(max=0.0)).exp() * torch.expm1(-self.rate * way) / (self.rate * way)
        rise = b.clamp(min=0.0) / way
        drop = -self.alpha * (torch.expm1(self.rate * a.clamp(max=0.0)) / way)
        through = Sized(self.scale * (rise + drop), self.scale * (rise + drop.abs()))
        value = torch.where(b <= 0, left, torch.where(a >= 0, self.scale, through.value))
        return Sized(value, torch.where((a < 0) & (b > 0), through.size, value.abs()))
