"""Linear maps whose every output is one of the inputs, or 0: reshaping, cutting, repeating, padding with zeros."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from .linear_maps import LinearMap, Shape, size


@dataclass(frozen=True)
class Reshape(LinearMap):
    """The same numbers in another shape (flatten, view)."""

    one_per_row: ClassVar[bool] = True
    one_per_column: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.reshape(y.shape[0], *self.in_shape)


@dataclass(frozen=True)
class Permute(LinearMap):
    """The same numbers with dimensions in another order; dims[i] is the old place of the new dimension i, from 0."""

    dims: tuple[int, ...]
    one_per_row: ClassVar[bool] = True
    one_per_column: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        return x.permute(0, *(d + 1 for d in self.dims))

    def adjoint(self, y: Tensor) -> Tensor:
        return y.permute(0, *(self.dims.index(d) + 1 for d in range(len(self.dims))))


@dataclass(frozen=True)
class Select(LinearMap):
    """x -> x[:, *index], for slices, numbers and None; transposed: x put there, zeros around it.

    Cropping and cutting channels; transposed, zero padding.
    """

    index: tuple
    transposed: bool = False
    one_per_row: ClassVar[bool] = True
    one_per_column: ClassVar[bool] = True

    def apply(self, x: Tensor) -> Tensor:
        return self._put(x, self.out_shape) if self.transposed else x[self._at]

    def adjoint(self, y: Tensor) -> Tensor:
        return y[self._at] if self.transposed else self._put(y, self.in_shape)

    @property
    def _at(self) -> tuple:
        return (slice(None), *self.index)

    def _put(self, values: Tensor, shape: Shape) -> Tensor:
        full = values.new_zeros(values.shape[0], *shape)
        full[self._at] = values
        return full


@dataclass(frozen=True)
class Take(LinearMap):
    """Any rearrangement, elements left out and elements repeated among them: y_j = x_index[j] on flattened elements.

    index (size of out_shape,) int64.
    """

    index: Tensor
    one_per_row: ClassVar[bool] = True

    @cached_property
    def one_per_column(self) -> bool:  # type: ignore[override]
        return self.terms <= 1

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.index).reshape(x.shape[0], *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(y.shape[0], size(self.in_shape))
        return x.index_add_(1, self.index, y.reshape(y.shape[0], -1)).reshape(y.shape[0], *self.in_shape)

    @cached_property
    def terms(self) -> int:  # type: ignore[override]
        """How often the element that is repeated most often is."""
        return int(torch.bincount(self.index).max()) if self.index.numel() else 1
