"""Affine layers as operations of the graph: weights, averages and padding. Handlers as in function_table.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.linear_maps import Convolution, Dense, Diagonal, Select, Separable, Shape, convolution
from .symbol import Traced
from .tensor_functions import inner_dim


def linear(x: Traced, weight: Tensor, bias: Tensor | None = None) -> Traced:
    if not x.unbatched or x.unbatched[-1] != weight.shape[1]:
        raise ValueError(f"it reads {weight.shape[1]} features, its input has shape {x.unbatched}")
    return x.then(Dense(x.unbatched, (*x.unbatched[:-1], weight.shape[0]), weight.detach()), bias)


def conv(x: Traced, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1) -> Traced:
    """Convolutions over any number of spatial dimensions."""
    n = weight.dim() - 2
    _check_channels(x, weight.shape[1] * groups, n)
    stride, dilation, kernel = per_axis(stride, n), per_axis(dilation, n), weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):  # torch puts the odd one of an even kernel to the right
            x = pad(x, [p for t in reversed(total) for p in (t // 2, t - t // 2)])
            padding = 0
    padding = per_axis(0 if padding == "valid" else padding, n)
    A = convolution(weight.detach(), x.unbatched, stride, padding, dilation, groups)
    if min(A.out_shape) < 1:
        raise ValueError(f"a kernel of {tuple(kernel)} finds no place in an input of shape {x.unbatched}")
    return x.then(A, None if bias is None else per_channel(bias, n))


def conv_transpose(
    x: Traced, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
) -> Traced:
    n = weight.dim() - 2
    _check_channels(x, weight.shape[0], n)
    stride, padding, dilation = per_axis(stride, n), per_axis(padding, n), per_axis(dilation, n)
    extra = per_axis(output_padding, n)
    y = torch.empty(1, *x.unbatched, device="meta", dtype=weight.dtype)
    y = torch.convolution(y, weight.to("meta"), None, stride, padding, dilation, True, extra, groups)
    out_shape = tuple(y.shape[1:])
    A = Convolution(x.unbatched, out_shape, weight.detach(), stride, padding, dilation, groups, extra, transposed=True)
    return x.then(A, None if bias is None else per_channel(bias, n))


def batch_norm(
    x: Traced, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Traced:
    """y = (x − mean)/√(var + eps) · weight + bias, a channel."""
    if training or running_mean is None:
        raise UnsupportedLayerError(
            "it normalises by the statistics of the batch, so that inputs depend on each other; "
            "wanted is eval mode with running statistics"
        )
    if len(running_var) != x.unbatched[0]:
        raise ValueError(f"it normalises {len(running_var)} channels, its input has shape {x.unbatched}")
    scale = (running_var.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -running_mean.double() * scale
    shift = shift if bias is None else shift + bias.double()
    shift_sum = (running_mean.double() * scale).abs()
    shift_sum = shift_sum if bias is None else shift_sum + bias.double().abs()
    scale, shift, shift_sum = (per_channel(values, len(x.unbatched) - 1) for values in (scale, shift, shift_sum))
    return x.then(Diagonal(x.unbatched, x.unbatched, scale), shift, shift_sum)


def _check_channels(x: Traced, channels: int, spatial: int) -> None:
    if len(x.unbatched) != spatial + 1 or x.unbatched[0] != channels:
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}[spatial]
        raise ValueError(f"it reads ({channels}, {axes}), its input has shape {x.unbatched}")


def per_channel(values: Tensor, spatial: int) -> Tensor:
    """One number a channel, shaped to broadcast over the spatial dimensions."""
    return values.detach().reshape(-1, *(1,) * spatial)


def per_axis(value: int | Sequence[int], axes: int) -> Shape:
    """torch's habit: one number for all axes."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * axes if len(value) == 1 else value


# Averages and padding: separable maps, their factors taken from torch's own one-dimensional result


def avg_pool2d(
    x: Traced, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Traced:
    check_spatial(x, 2)
    kernel, padding = per_axis(kernel_size, 2), per_axis(padding, 2)
    stride = per_axis(stride, 2) if stride else kernel
    factors = []
    for n, k, s, p in zip(x.unbatched[-2:], kernel, stride, padding, strict=True):
        units = torch.eye(n, dtype=torch.float64).reshape(n, 1, n, 1)
        divisor = 1 if divisor_override else None
        y = F.avg_pool2d(units, (k, 1), (s, 1), (p, 0), ceil_mode, count_include_pad, divisor)
        factors.append(y.reshape(n, -1).mT)
    return separable(x, factors[0], factors[1] / (divisor_override or 1))


def avg_pool1d(x: Traced, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True) -> Traced:
    check_spatial(x, 1)
    units = torch.eye(x.unbatched[-1], dtype=torch.float64)[:, None]
    y = F.avg_pool1d(units, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad)
    return separable(x, y[:, 0].mT)


def adaptive_avg_pool(x: Traced, output_size, *, spatial: int) -> Traced:
    check_spatial(x, spatial)
    wanted = per_axis(output_size, spatial)
    sizes = [n if size is None else size for n, size in zip(x.unbatched[-spatial:], wanted, strict=True)]
    if sizes == list(x.unbatched[-spatial:]):
        return x
    factors = [
        F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64)[:, None], size)[:, 0].mT
        for n, size in zip(x.unbatched[-spatial:], sizes, strict=True)
    ]
    return separable(x, *factors)


def mean(x: Traced, dim=None, keepdim: bool = False, *, dtype=None, sum_up: bool = False) -> Traced:
    """The mean or sum over some dimensions, none of them the batch."""
    if dim is None:
        raise UnsupportedLayerError("it takes the mean or sum over the batch, too; give the dimensions, from 1")
    dims = sorted(inner_dim(x, d) for d in per_axis(dim, 1))
    kept = [d for d in range(len(x.unbatched)) if d not in dims]
    n = torch.Size(x.unbatched[d] for d in dims).numel()
    out_shape = tuple(1 if d in dims else x.unbatched[d] for d in range(len(x.unbatched)) if keepdim or d not in dims)
    x = x.permuted([*kept, *dims])
    x = x.reshaped((x.numel() // x.shape[0] // n, 1, n))
    weights = torch.full((1, n), 1.0 if sum_up else 1.0 / n, dtype=torch.float64)
    return separable(x, torch.ones(1, 1, dtype=torch.float64), weights).reshaped(out_shape)


def pad(x: Traced, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Traced:
    """torch's order: (left, right) of the last dimension first. A negative number crops."""
    if len(pad) > 2 * len(x.unbatched):
        raise UnsupportedLayerError(f"it pads {len(pad) // 2} dimensions, the batch among them")
    sides = [(0, 0)] * (len(x.unbatched) - len(pad) // 2)
    sides += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    if mode != "constant":
        return _pad_by_values(x, sides[len(sides) - len(pad) // 2 :], mode)
    if any(min(side) < 0 for side in sides):
        x = x.selected(tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.unbatched, sides, strict=True)))
    place = tuple(slice(max(0, a), max(0, a) + n) for n, (a, _) in zip(x.unbatched, sides, strict=True))
    out = tuple(max(0, a) + n + max(0, b) for n, (a, b) in zip(x.unbatched, sides, strict=True))
    if out == x.unbatched:
        return x
    bias = None
    if value:
        bias = torch.full(out, float(value), dtype=torch.float64, device=x.device)
        bias[place] = 0.0
    return x.then(Select(x.unbatched, out, place, transposed=True), bias)


def _pad_by_values(x: Traced, sides: list[tuple[int, int]], mode: str) -> Traced:
    """Circular, reflected or replicated values around the last one or two dimensions."""
    if len(sides) not in (1, 2):
        raise UnsupportedLayerError(f"padding mode {mode!r} of {len(sides)} dimensions; one or two are supported")
    factors = [
        F.pad(torch.eye(n, dtype=torch.float64)[None], side, mode=mode)[0].mT
        for n, side in zip(x.unbatched[-len(sides) :], sides, strict=True)
    ]
    return separable(x, *factors)


def separable(x: Traced, *factors: Tensor) -> Traced:
    """One factor for each of the last one or two dimensions, (out, in) each."""
    factors = tuple(factor.to(x.device) for factor in factors)
    if len(factors) == 1:
        *outer, n = x.unbatched
        y = x.reshaped((*outer, 1, n))
        y = y.then(Separable(y.unbatched, (*outer, 1, len(factors[0])), factors[0].new_ones(1, 1), factors[0]))
        return y.reshaped((*outer, len(factors[0])))
    rows, columns = factors
    return x.then(Separable(x.unbatched, (*x.unbatched[:-2], len(rows), len(columns)), rows, columns))


def check_spatial(x: Traced, spatial: int) -> None:
    if len(x.unbatched) != spatial + 1:
        axes = {1: "(C, L)", 2: "(C, H, W)"}[spatial]
        raise ValueError(f"it reads {axes}, its input has shape {x.unbatched}")
