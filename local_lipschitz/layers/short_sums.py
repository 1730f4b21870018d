"""Long sums of products in float32, a block at a time: γ_n grows with the longest chain of additions only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from .layer import Op
from .linear_maps import Change, Convolution, Dense, LinearMap
from .stage import Stage

ROWS = 256  # products in a block of a matrix: shorter ones, too, cost little
BLOCK, LANES = 576, 16  # in one of a convolution: 64 channels of a 3×3 kernel; channels in multiples of LANES


@dataclass(frozen=True)
class ShortSums(LinearMap):
    """The map `inner`, whose sums are taken in blocks, which are added up at the end."""

    inner: Dense | Convolution

    def entries(self, change: Change) -> ShortSums:
        return replace(self, inner=self.inner.entries(change))


@dataclass(frozen=True)
class ShortDense(ShortSums):
    """A matrix, whose blocks are multiplied at once."""

    inner: Dense

    def apply(self, x: Tensor) -> Tensor:
        return _in_blocks(x, self._columns)

    def adjoint(self, y: Tensor) -> Tensor:
        return _in_blocks(y, self.inner.weight)

    @cached_property
    def _columns(self) -> Tensor:
        """The columns of the weight as rows: of blocks of columns memory is read twice as slowly."""
        return self.inner.weight.mT.contiguous()

    @property
    def terms(self) -> int:
        return max(ROWS + 1 + n // ROWS for n in self.inner.weight.shape)


def _in_blocks(x: Tensor, rows: Tensor) -> Tensor:
    """x @ rows for x (..., n) and rows (n, m), ROWS products at a time; what is left over is a block of its own."""
    k, flat = len(rows) // ROWS, x.reshape(-1, len(rows))
    whole, rest = flat[:, : k * ROWS].unflatten(1, (k, ROWS)), flat[:, k * ROWS :]
    y = torch.bmm(whole.transpose(0, 1), rows[: k * ROWS].unflatten(0, (k, ROWS))).sum(0)
    y = y if rest.shape[1] == 0 else y + rest @ rows[k * ROWS :]
    return y.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class ShortConvolution(ShortSums):
    """A convolution, whose input (for the adjoint: output) channels are summed some at a time."""

    inner: Convolution

    def apply(self, x: Tensor) -> Tensor:
        pieces = x.split(self._in_block(1), 1)
        return _added_up(part.apply(piece) for part, piece in zip(self._columns, pieces, strict=True))

    def adjoint(self, y: Tensor) -> Tensor:
        pieces = y.split(self._in_block(0), 1)
        return _added_up(part.adjoint(piece) for part, piece in zip(self._rows, pieces, strict=True))

    @property
    def terms(self) -> int:
        return max(self._in_block(axis) * self._taps(axis) + self._blocks(axis) for axis in (0, 1))

    @cached_property
    def _columns(self) -> list[Convolution]:
        """Maps of some of the input channels, each with its weight in one piece of memory."""
        weights = self.inner.weight.split(self._in_block(1), 1)
        return [replace(self.inner, weight=w.clone()) for w in weights]

    @cached_property
    def _rows(self) -> list[Convolution]:
        """Maps to some of the output channels."""
        return [replace(self.inner, weight=w) for w in self.inner.weight.split(self._in_block(0), 0)]

    def _taps(self, axis: int) -> int:
        """Products of one channel in a sum of the adjoint (axis 0), of `apply` (1)."""
        return self.inner.taps[1 - axis]

    def _in_block(self, axis: int) -> int:
        fitting = max(LANES, BLOCK // self._taps(axis) // LANES * LANES)
        return min(fitting, self.inner.weight.shape[axis])

    def _blocks(self, axis: int) -> int:
        return -(-self.inner.weight.shape[axis] // self._in_block(axis))


def _added_up(blocks: Iterable[Tensor]) -> Tensor:
    """Their sum, in the memory of the first: new memory for each would take as long as the sum."""
    return reduce(Tensor.add_, blocks)


def in_short_sums(stage: Stage) -> Stage:
    """The stage with short sums where they are long."""
    return replace(stage, layers=tuple(replace(layer, op=_short(layer.op)) for layer in stage.layers))


def _short(op: Op) -> Op:
    if isinstance(op, Dense) and op.terms > 2 * ROWS:
        return ShortDense(op.in_shape, op.out_shape, op)
    if isinstance(op, Convolution) and op.groups == 1 and not op.transposed and op.terms > BLOCK:
        return ShortConvolution(op.in_shape, op.out_shape, op)
    return op
