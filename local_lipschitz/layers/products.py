"""Linear maps that are products with constant matrices along some of the dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .linear_maps import Change, LinearMap, size


@dataclass(frozen=True)
class Separable(LinearMap):
    """One matrix (out, in) for each of the last dimensions: average pooling, interpolation, padding by values.

    In two dimensions x -> rows · x · columnsᵀ.
    """

    factors: tuple[Tensor, ...]

    @cached_property
    def one_per_row(self) -> bool:  # type: ignore[override]
        return all(bool((factor != 0).sum(1).max() <= 1) for factor in self.factors)

    @cached_property
    def one_per_column(self) -> bool:  # type: ignore[override]
        return all(bool((factor != 0).sum(0).max() <= 1) for factor in self.factors)

    def apply(self, x: Tensor) -> Tensor:
        return _along_last_dimensions(self.factors, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _along_last_dimensions([factor.mT for factor in self.factors], y)

    def entries(self, change: Change) -> Separable:
        return replace(self, factors=tuple(change(factor) for factor in self.factors))

    @property
    def terms(self) -> int:
        return sum(max(factor.shape) for factor in self.factors)


def _along_last_dimensions(factors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Each factor times the dimension that it stands for."""
    *others, last = factors
    x = x @ last.mT
    for i, factor in enumerate(others):
        behind = x.shape[i - len(others) :]
        x = (factor @ x.flatten(-len(behind))).unflatten(-1, behind)
    return x


@dataclass(frozen=True)
class Contraction(LinearMap):
    """torch.einsum of x and a constant: y = einsum("…reads, of -> …gives", x, weight), … the batch.

    reads, of, gives: one letter a dimension, none twice in a word, each in two of the three words at least. So every
    entry of the matrix is 0 or one element of the weight; the adjoint is the same with `reads` and `gives` exchanged.
    """

    weight: Tensor
    reads: str
    of: str
    gives: str

    def apply(self, x: Tensor) -> Tensor:
        return torch.einsum(f"...{self.reads},{self.of}->...{self.gives}", x, self.weight)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum(f"...{self.gives},{self.of}->...{self.reads}", y, self.weight)

    def entries(self, change: Change) -> Contraction:
        return replace(self, weight=change(self.weight))

    @property
    def terms(self) -> int:
        return max(self._size(set(self.reads) - set(self.gives)), self._size(set(self.gives) - set(self.reads)))

    @property
    def cost(self) -> int:
        return self._size(set(self.reads + self.gives))

    def _size(self, letters: set[str]) -> int:
        sizes = dict(zip(self.reads, self.in_shape, strict=True)) | dict(zip(self.gives, self.out_shape, strict=True))
        return size(tuple(sizes[letter] for letter in letters))
