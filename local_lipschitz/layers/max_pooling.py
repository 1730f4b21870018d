"""Max pooling, known by its windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_maps import Shape

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over all dimensions of (B, *in_shape) but the channels, in_shape = (C, *spatial)."""

    in_shape: Shape
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    ceil_mode: bool

    def apply(self, y: Tensor) -> Tensor:
        """The largest element of each window, (B, *out_shape)."""
        return POOLS[len(self.kernel)](y, *self._arguments)

    def difference(self, y0: Tensor, dy: Tensor) -> Tensor:
        """The change of the pooled values when y0 (1, *in_shape) becomes y0 + dy, without cancellation."""
        _, winner = POOLS[len(self.kernel)](y0 + dy, *self._arguments, return_indices=True)
        at = winner.flatten(2)
        y0_there = y0.expand_as(dy).flatten(2).gather(2, at)
        change = (y0_there - self.apply(y0).flatten(2)) + dy.flatten(2).gather(2, at)
        return change.reshape(winner.shape)

    def lead(self, y: Tensor) -> Tensor:
        """By how much the largest element of each window leads, (B, *out_shape); inf where it is alone."""
        index = F.pad(self.windows.to(y.device), (0, 1), value=-1)  # at least two
        values = torch.where(index >= 0, y.flatten(2)[..., index.clamp(min=0)], -math.inf)
        first, second = values.topk(2, -1).values.unbind(-1)
        return (first - second).reshape(*y.shape[:2], *self.out_shape[1:])

    @property
    def _arguments(self) -> tuple:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @cached_property
    def out_shape(self) -> Shape:
        return tuple(self.apply(torch.zeros(1, *self.in_shape)).shape[1:])

    @cached_property
    def windows(self) -> Tensor:
        """(windows, elements): the indices into a flattened channel that each window reads, −1 for padding."""
        index = torch.zeros(1, 1, dtype=torch.int64)
        for axis, (length, count) in enumerate(zip(self.in_shape[1:], self.out_shape[1:], strict=True)):
            before, at = index[:, None, :, None], self._reads(axis, length, count)[None, :, None, :]
            index = torch.where((before >= 0) & (at >= 0), before * length + at, -1).flatten(2).flatten(0, 1)
        return index

    def _reads(self, axis: int, length: int, windows: int) -> Tensor:
        """(windows, kernel): the positions along one axis that each window reads, −1 outside."""
        start = torch.arange(windows) * self.stride[axis] - self.padding[axis]
        at = start[:, None] + torch.arange(self.kernel[axis]) * self.dilation[axis]
        return torch.where((at >= 0) & (at < length), at, -1)

    @cached_property
    def overlap(self) -> int:
        """The largest number of windows that one input element falls in; ‖Δ pooled‖ ≤ √overlap · ‖Δ input‖.

        The product of ⌈kernel/stride⌉ over the axes for dilation 1; counted exactly here, for any dilation.
        """
        index = self.windows
        return int(torch.bincount(index[index >= 0]).max())


def pool_anything(pool: MaxPool, mask: Tensor) -> Tensor:
    """True where any element of the window is; mask (B, *in_shape) bool."""
    return pool.apply(mask.to(torch.float32)) > 0.5
