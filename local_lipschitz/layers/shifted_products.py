"""Convolutions in float64 on a CPU, as a sum of matrix products, one a tap of the kernel.

torch copies each element of the input once a tap and multiplies then: with few channels and many pixels that takes
three times as long as the products, of which each reads the input itself, shifted.
"""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 2048  # pixels at a time: what is summed stays in the cache
LEAST_CHANNELS, LEAST_PIXELS = 16, 512  # of fewer, torch's own are as fast


def pays(x: Tensor, weight: Tensor, stride: tuple[int, ...], groups: int) -> bool:
    """Whether `convolve` takes this convolution, or transposed one, of x (B, C, H, W), and is faster than torch's."""
    if min(weight.shape[:2]) < LEAST_CHANNELS or stride != (1, 1) or groups != 1:
        return False
    if x.dtype is not torch.float64 or x.device.type != "cpu" or math.prod(x.shape[2:]) < LEAST_PIXELS:
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))  # it writes to its own memory


def convolve(
    x: Tensor, weight: Tensor, padding: tuple[int, ...], dilation: tuple[int, ...], transposed: bool
) -> Tensor:
    """torch.convolution of x (B, C, H, W) with stride 1 and one group; a weight with `taps_first` is not copied."""
    (k, m), taps = weight.shape[2:], taps_first(weight).permute(2, 3, 0, 1).flatten(0, 1)
    rows, columns = (k - 1) * dilation[0], (m - 1) * dilation[1]
    top, left = (rows - padding[0], columns - padding[1]) if transposed else padding
    padded = F.pad(x, (left, left, top, top + 1))  # the last row: for what the shifts read beyond the end
    height, width = padded.shape[2] - 1 - rows, padded.shape[3]
    shifts = [i * dilation[0] * width + j * dilation[1] for i, j in product(range(k), range(m))]
    if transposed:  # the convolution with the kernel turned round and its channels exchanged
        taps, shifts = taps.mT, shifts[::-1]
    flat, n = padded.flatten(2), height * width
    y = x.new_empty(len(x), taps.shape[1], n)
    for image, out in zip(flat, y, strict=True):
        for start in range(0, n, COLUMNS):
            part = out[:, start : start + COLUMNS]
            for number, (tap, shift) in enumerate(zip(taps, shifts, strict=True)):
                read = image[:, start + shift : start + shift + part.shape[1]]
                torch.addmm(part, tap, read, beta=0 if number == 0 else 1, out=part)
    return y.unflatten(2, (height, width))[..., : width - columns]


def taps_first(weight: Tensor) -> Tensor:
    """weight (m, n, k, l) with the matrices of its taps side by side in memory; others as they are."""
    return weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1) if weight.dim() == 4 else weight
