"""Activations as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.activations import RELU, PiecewiseLinear
from .arguments import Constant, number, per_channel
from .arithmetic_functions import aligned
from .symbol import Traced


def leaky_relu(x: Traced, negative_slope: float = 0.01) -> Traced:
    return x.then(PiecewiseLinear((0.0,), (number(negative_slope, x), 1.0)))


def prelu(x: Traced, weight: Tensor) -> Traced:
    if weight.numel() not in (1, x.unbatched[0]):
        raise ValueError(f"it has {weight.numel()} slopes for an input of shape {x.unbatched}")
    slope = weight.detach() if weight.numel() == 1 else per_channel(weight, len(x.unbatched) - 1)
    return x.then(PiecewiseLinear((0.0,), (slope, 1.0)))


def rrelu(x: Traced, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Traced:
    if training:
        raise UnsupportedLayerError("it is random in training mode; call net.eval()")
    return leaky_relu(x, (lower + upper) / 2)


def clamp(x: Traced, min: Constant | None = None, max: Constant | None = None) -> Traced:
    """min(max(x, min), max); limits are numbers, or tensors that broadcast."""
    limits = [_limit(x, v) for v in (min, max)]
    if any(isinstance(v, Tensor) for v in limits):
        return _clamp_each(x, limits[0], limits[1])
    low, high = (None if v is None or abs(v) == math.inf else v for v in limits)
    if low == 0.0 and high is None:
        return x.then(RELU)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"it clamps to [{low}, {high}], which is no interval")
    knots = tuple(v for v in (low, high) if v is not None)
    slopes = (*((0.0,) if low is not None else ()), 1.0, *((0.0,) if high is not None else ()))
    at_zero = 0.0 if low is None else low if low > 0.0 else 0.0
    at_zero = at_zero if high is None or high > at_zero else high
    return x.then(PiecewiseLinear(knots, slopes, at_zero)) if knots else x


def _limit(x: Traced, value: Constant | None) -> float | Tensor | None:
    """A number where it is one for all elements."""
    if value is None:
        return None
    v = torch.as_tensor(value, dtype=torch.float64)
    if bool(v.isnan().any()):
        raise ValueError("it clamps to NaN")
    return v if v.dim() > 0 and v.numel() != 1 else number(float(v), x)


def _clamp_each(x: Traced, low: float | Tensor | None, high: float | Tensor | None) -> Traced:
    """Limits of its own for each element; where low ≥ high torch gives high."""
    x, low = aligned(x, -math.inf if low is None else low)
    x, high = aligned(x, math.inf if high is None else high)
    low = low.minimum(high)
    at_zero = torch.zeros_like(low).maximum(low).minimum(high)
    return x.then(PiecewiseLinear((low, high), (0.0, 1.0, 0.0), at_zero))


def hardtanh(x: Traced, min_val: float = -1.0, max_val: float = 1.0) -> Traced:
    return clamp(x, min_val, max_val)


def hardsigmoid(x: Traced) -> Traced:
    """relu6(x + 3)/6. torch divides by 6 on the CPU; elsewhere it multiplies by the float32 number next to a sixth."""
    sixth = 1.0 / 6.0 if x.device.type == "cpu" else float(torch.tensor(1.0 / 6.0, dtype=torch.float32))
    return x.then(PiecewiseLinear((-3.0, 3.0), (0.0, sixth, 0.0), 3.0 * sixth))


def softshrink(x: Traced, lambd: float = 0.5) -> Traced:
    knot = number(lambd, x)
    return x.then(PiecewiseLinear((-knot, knot), (1.0, 0.0, 1.0))) if knot > 0.0 else x.copied()


def hardshrink(x: Traced, lambd: float = 0.5) -> Traced:
    if lambd != 0.0:
        raise UnsupportedLayerError(f"it is not continuous: it jumps from 0 to {lambd} there, and has no bound near; "
                                    "Softshrink is supported")  # fmt: skip
    return x.copied()


def threshold(x: Traced, threshold: float, value: float) -> Traced:
    """x where it is above the threshold, else the value."""
    if number(threshold, x) != number(value, x):
        raise UnsupportedLayerError(
            f"it is not continuous: it jumps from {value} to {threshold} at {threshold}, and has no bound near; "
            "Threshold(t, t) is supported"
        )
    return clamp(x, threshold)


def dropout(x: Traced, p: float = 0.5, training: bool = True) -> Traced:
    if training and p > 0.0:
        raise UnsupportedLayerError("it is random in training mode; pass training=self.training and call net.eval()")
    return x
