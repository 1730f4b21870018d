"""Max pooling and activations as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.activations import RELU, PiecewiseLinear
from ..layers.max_pooling import MaxPool
from .affine_functions import check_spatial, per_axis, per_channel
from .symbol import Traced


def max_pool2d(
    x: Traced, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Traced:
    check_spatial(x, 2)
    kernel, dilation = per_axis(kernel_size, 2), per_axis(dilation, 2)
    return _max_pool(x, kernel, per_axis(stride, 2) if stride else kernel, per_axis(padding, 2), dilation, ceil_mode)


def max_pool1d(
    x: Traced, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Traced:
    check_spatial(x, 1)
    (k,), (p,), (d,) = per_axis(kernel_size, 1), per_axis(padding, 1), per_axis(dilation, 1)
    (s,) = per_axis(stride, 1) if stride else (k,)
    channels, length = x.unbatched
    y = _max_pool(x.reshaped((channels, 1, length)), (1, k), (1, s), (0, p), (1, d), ceil_mode)
    return y.reshaped((channels, y.unbatched[-1]))


def adaptive_max_pool(x: Traced, output_size, return_indices=False, *, spatial: int) -> Traced:
    check_spatial(x, spatial)
    wanted = per_axis(output_size, spatial)
    sizes = [n if size is None else size for n, size in zip(x.unbatched[1:], wanted, strict=True)]
    if any(n % size for n, size in zip(x.unbatched[1:], sizes, strict=True)):
        raise UnsupportedLayerError(f"to {tuple(sizes)} from {x.unbatched} its windows are of unequal size")
    kernel = tuple(n // size for n, size in zip(x.unbatched[1:], sizes, strict=True))
    return max_pool2d(x, kernel) if spatial == 2 else max_pool1d(x, kernel)


def _max_pool(x: Traced, kernel, stride, padding, dilation, ceil_mode: bool) -> Traced:
    pool = MaxPool(x.unbatched, kernel, stride, padding, dilation, ceil_mode)
    try:
        pool.out_shape  # noqa: B018 - torch's own check of kernel, padding and size
    except RuntimeError as error:
        raise ValueError(f"it does not fit an input of shape {x.unbatched}: {str(error).splitlines()[0]}") from None
    return x.then(pool)


def with_indices(x: Traced, *args: object, **kwargs: object) -> Traced:
    raise UnsupportedLayerError("return_indices=True; the indices are not a continuous function, leave them out")


# Piecewise linear activations


def leaky_relu(x: Traced, negative_slope: float = 0.01) -> Traced:
    return x.then(PiecewiseLinear((0.0,), (float(negative_slope), 1.0)))


def prelu(x: Traced, weight: Tensor) -> Traced:
    if weight.numel() not in (1, x.unbatched[0]):
        raise ValueError(f"it has {weight.numel()} slopes for an input of shape {x.unbatched}")
    slope = weight.detach() if weight.numel() == 1 else per_channel(weight, len(x.unbatched) - 1)
    return x.then(PiecewiseLinear((0.0,), (slope, 1.0)))


def clamp(x: Traced, min: float | None = None, max: float | None = None) -> Traced:
    low, high = (None if v is None or abs(v) == float("inf") else float(v) for v in (min, max))
    if low == 0.0 and high is None:
        return x.then(RELU)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"it clamps to [{low}, {high}], which is no interval")
    knots = tuple(v for v in (low, high) if v is not None)
    slopes = (*((0.0,) if low is not None else ()), 1.0, *((0.0,) if high is not None else ()))
    at_zero = 0.0 if low is None else low if low > 0.0 else 0.0
    at_zero = at_zero if high is None or high > at_zero else high
    return x.then(PiecewiseLinear(knots, slopes, at_zero)) if knots else x


def hardtanh(x: Traced, min_val: float = -1.0, max_val: float = 1.0) -> Traced:
    return clamp(x, min_val, max_val)


def dropout(x: Traced, p: float = 0.5, training: bool = True) -> Traced:
    if training and p > 0.0:
        raise UnsupportedLayerError("it is random in training mode; pass training=self.training and call net.eval()")
    return x
