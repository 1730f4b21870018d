"""Long sums of products in float32, a block at a time: γ_n grows with the longest chain of additions only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from .layer import Op
from .linear_maps import Change, Convolution, Dense, LinearMap, total
from .stage import Stage

BLOCK, LANES = 1152, 16  # products in a block: 128 channels of a 3×3 kernel; channels come in multiples of LANES


@dataclass(frozen=True)
class ShortSums(LinearMap):
    """The map `inner`, whose input (for the adjoint: output) channels are summed some at a time."""

    inner: Dense | Convolution

    def apply(self, x: Tensor) -> Tensor:
        return total(part.apply(piece) for part, piece in self._parts(x, 1))

    def adjoint(self, y: Tensor) -> Tensor:
        return total(part.adjoint(piece) for part, piece in self._parts(y, 0))

    def entries(self, change: Change) -> ShortSums:
        return replace(self, inner=self.inner.entries(change))

    @property
    def terms(self) -> int:
        return max(self._in_block(axis) * each + self._blocks(axis) for axis, each in enumerate(self._each))

    def _parts(self, x: Tensor, axis: int) -> list[tuple[Dense | Convolution, Tensor]]:
        """Maps of some of the channels, with these channels of x; axis: of the weight, 1 for apply, 0 for adjoint."""
        n = self._in_block(axis)
        pieces = x.split(n, 1 if isinstance(self.inner, Convolution) else -1)
        weights = self.inner.weight.split(n, axis)
        return [(replace(self.inner, weight=w), piece) for w, piece in zip(weights, pieces, strict=True)]

    @property
    def _each(self) -> tuple[int, int]:
        """Products of one channel in a sum of the adjoint, and of `apply`."""
        if isinstance(self.inner, Dense):
            return 1, 1
        kernel = self.inner.weight.shape[2:]
        return math.prod(-(-k // s) for k, s in zip(kernel, self.inner.stride, strict=True)), math.prod(kernel)

    def _in_block(self, axis: int) -> int:
        return max(LANES, BLOCK // self._each[axis] // LANES * LANES)

    def _blocks(self, axis: int) -> int:
        return -(-self.inner.weight.shape[axis] // self._in_block(axis))


def in_short_sums(stage: Stage) -> Stage:
    """The stage with short sums where they are long."""
    return replace(stage, layers=tuple(replace(layer, op=_short(layer.op)) for layer in stage.layers))


def _short(op: Op) -> Op:
    if isinstance(op, Dense) or (isinstance(op, Convolution) and op.groups == 1 and not op.transposed):
        return ShortSums(op.in_shape, op.out_shape, op) if op.terms > 2 * BLOCK else op
    return op
