"""Affine layers with weights as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.linear_maps import Convolution, Dense, Diagonal, convolution
from .arguments import per_axis, per_channel
from .separable_functions import pad
from .symbol import Traced


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
    bias = None if bias is None else per_channel(bias, n)
    if groups == weight.shape[0] and weight[0].numel() == 1 and set(stride) == {1} and set(padding) == {0}:
        return x.then(Diagonal(x.unbatched, x.unbatched, per_channel(weight, n)), bias)  # a factor for each channel
    A = convolution(weight.detach(), x.unbatched, stride, padding, dilation, groups)
    if min(A.out_shape) < 1:
        raise ValueError(f"a kernel of {tuple(kernel)} finds no place in an input of shape {x.unbatched}")
    return x.then(A, bias)


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


def instance_norm(
    x: Traced, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
) -> Traced:
    """With running statistics the same as batch norm."""
    if use_input_stats or running_mean is None:
        raise UnsupportedLayerError(
            "it divides by statistics of its input; InstanceNorm(track_running_stats=True) in eval mode is supported"
        )
    return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)


def _check_channels(x: Traced, channels: int, spatial: int) -> None:
    if len(x.unbatched) != spatial + 1 or x.unbatched[0] != channels:
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}[spatial]
        raise ValueError(f"it reads ({channels}, {axes}), its input has shape {x.unbatched}")
