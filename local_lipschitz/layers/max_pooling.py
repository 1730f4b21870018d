"""Max pooling, known by its windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_maps import Shape


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
