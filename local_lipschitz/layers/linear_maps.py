"""Each affine layer as a linear map A: apply it, apply its adjoint, change its entries.

A map never forms its matrix. What a bound needs of the entries it gets by running the same layer with other
weights: `A.entries(torch.square)` is the map with entries a_ij², so `A.entries(torch.square).apply(d)` is
Σ_j a_ij² d_j, the squared row norms of A·diag(√d) in a single pass; `A.entries(torch.abs)` gives Σ_j |a_ij| d_j.

Tensors are batch first, (B, *in_shape) -> (B, *out_shape). Biases live in the layer (graph.py), not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .shifted_products import convolve, pays

Shape = tuple[int, ...]
Change = Callable[[Tensor], Tensor]  # of entries, elementwise, with change(0) = 0
CHUNK = 2**20  # entries of a large weight that are copied at a time: they stay in the cache


def keep(a: Tensor) -> Tensor:
    """The change that leaves entries as they are, but in another dtype."""
    return a


@dataclass(frozen=True)
class LinearMap:
    """A: (B, *in_shape) -> (B, *out_shape). Subclasses say how.

    `one_per_row` (`one_per_column`): no row (column) of A holds more than one non-zero entry. Such maps may be
    composed with any other without two products of entries ever being summed, so that the squared entries of the
    composition are the composition of the squared entries (see `Stage.row_norms`).
    """

    in_shape: Shape
    out_shape: Shape
    one_per_row: ClassVar[bool] = False
    one_per_column: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        """A x for x (B, *in_shape)."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y for y (B, *out_shape)."""
        raise NotImplementedError

    def entries(self, change: Change) -> LinearMap:
        """The map whose entries are change(a_ij)."""
        return self

    def apply_changed(self, x: Tensor, change: Change) -> Tensor:
        """entries(change) applied to x, in the dtype of x; `change` is given copies and may work in place."""
        return self.entries(lambda a: change(a.to(x.dtype, copy=change is not keep))).apply(x)

    def to(self, dtype: torch.dtype) -> LinearMap:
        """The same map in another dtype."""
        return self.entries(lambda a: a.to(dtype))

    @property
    def terms(self) -> int:
        """The largest number of products summed in one element of A x or Aᵀ y."""
        return 1

    @property
    def cost(self) -> int:
        """Multiplications in A x."""
        return size(self.out_shape) * self.terms


@dataclass(frozen=True)
class Dense(LinearMap):
    """nn.Linear on the last dimension; weight (out, in)."""

    weight: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.weight

    def apply_changed(self, x: Tensor, change: Change) -> Tensor:
        """Some rows at a time: writing a large weight to memory once more takes ten times as long as its product."""
        if self.weight.numel() <= CHUNK or (change is keep and self.weight.dtype is x.dtype):
            return super().apply_changed(x, change)
        rows = max(1, CHUNK // self.weight.shape[1])
        copy = x.new_empty(rows, self.weight.shape[1])
        parts = [F.linear(x, change(copy[: len(part)].copy_(part))) for part in self.weight.split(rows)]
        return torch.cat(parts, -1)

    def entries(self, change: Change) -> Dense:
        return replace(self, weight=change(self.weight))

    @property
    def terms(self) -> int:
        return max(self.weight.shape)

    @property
    def cost(self) -> int:
        return self.weight.numel() * size(self.in_shape[:-1])


@dataclass(frozen=True)
class Convolution(LinearMap):
    """Conv1d/2d/3d, or its transpose; weight as torch keeps it. `in_shape` is what `apply` reads, in either direction.

    `output_padding` is what a transposed convolution needs to return to the larger of the two shapes.
    """

    weight: Tensor
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int
    output_padding: Shape
    transposed: bool = False

    def apply(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.transposed)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._convolve(y, not self.transposed)

    def _convolve(self, x: Tensor, transposed: bool) -> Tensor:
        output_padding = self.output_padding if transposed else (0,) * len(self.stride)
        if not any(self.output_padding) and pays(x, self.weight, self.stride, self.groups):
            return convolve(x, self.weight, self.padding, self.dilation, transposed)
        y = torch.convolution(
            x, self.weight, None, self.stride, self.padding, self.dilation, transposed, output_padding, self.groups
        )
        if self.transposed and not transposed:  # an output padding of a whole stride leaves room for one more
            for axis, n in enumerate(self.in_shape[1:], start=2):
                y = y.narrow(axis, 0, n)
        return y

    def entries(self, change: Change) -> Convolution:
        return replace(self, weight=change(self.weight))

    @property
    def terms(self) -> int:
        (rows, columns), (forwards, backwards) = self.weight.shape[:2], self.taps
        return max(columns * forwards, rows // self.groups * backwards)

    @property
    def taps(self) -> tuple[int, int]:
        """Entries of one channel's kernel that meet in an element of the output, and in one of the input.

        Along an axis every (stride / gcd(stride, dilation))-th entry meets the same element of the input.
        """
        kernel = self.weight.shape[2:]
        met = (-(-k // (s // math.gcd(s, d))) for k, s, d in zip(kernel, self.stride, self.dilation, strict=True))
        return math.prod(kernel), math.prod(met)

    @property
    def cost(self) -> int:
        return self.weight.numel() * min(size(self.in_shape[1:]), size(self.out_shape[1:]))


@dataclass(frozen=True)
class Diagonal(LinearMap):
    """x -> scale · x, elementwise; scale broadcasts against in_shape (batch norm, a constant factor)."""

    scale: Tensor
    one_per_row: ClassVar[bool] = True
    one_per_column: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        return self.scale * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scale * y

    def entries(self, change: Change) -> Diagonal:
        return replace(self, scale=change(self.scale))


def convolution(
    weight: Tensor,
    in_shape: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
) -> Convolution:
    """The map of a zero-padded convolution, for inputs of shape `in_shape` = (C, *spatial)."""
    spatial, kernel = in_shape[1:], weight.shape[2:]
    out, left_over = [], []
    for size, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True):
        steps, rest = divmod(size + 2 * p - d * (k - 1) - 1, s)
        out.append(steps + 1)
        left_over.append(rest)
    return Convolution(in_shape, (weight.shape[0], *out), weight, stride, padding, dilation, groups, tuple(left_over))


def total(tensors: Iterable[Tensor]) -> Tensor:
    """Their sum; there is at least one."""
    return reduce(torch.add, tensors)


def size(shape: Shape) -> int:
    """Number of elements of a tensor of this shape."""
    return math.prod(shape)
