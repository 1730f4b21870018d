"""One layer: a linear map with its bias, a sum, a concatenation, or a nonlinear function, of layers known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .activations import Activation
from .linear_maps import Change, LinearMap, Shape
from .max_pooling import MaxPool

INPUT = "input"


@dataclass(frozen=True)
class Sum:
    """The sum of several layers of one shape (a residual connection)."""


@dataclass(frozen=True)
class Concat:
    """Several layers side by side along one dimension, counted with the batch dimension."""

    dim: int
    sizes: tuple[int, ...]


Nonlinear = Activation | MaxPool
Op = LinearMap | Sum | Concat | Nonlinear


@dataclass(frozen=True)
class Layer:
    """One layer: `name` reads the layers `inputs` (INPUT is the network's input) and gives (B, *shape).

    A linear map adds `bias`, which broadcasts against (B, *shape). bias_sum: the sum of the sizes of what the bias was
    itself added up from, where reading did that (batch norm).
    """

    name: str
    inputs: tuple[str, ...]
    op: Op
    shape: Shape
    bias: Tensor | None = None
    bias_sum: Tensor | None = None

    @property
    def bias_size(self) -> Tensor:
        """What the rounding of the bias is relative to."""
        if self.bias_sum is not None:
            return self.bias_sum
        return torch.zeros(()) if self.bias is None else self.bias.abs()

    @property
    def is_linear(self) -> bool:
        return isinstance(self.op, LinearMap | Sum | Concat)

    def apply(self, xs: Sequence[Tensor | None], change: Change | None = None) -> Any:
        """The linear part, without bias. An input that is None is zero, and so (None) is what depends on no other.

        change: of the entries of its linear map, once they have the dtype of xs.
        """
        op, known = self.op, [x for x in xs if x is not None]
        if not known:
            return None
        if isinstance(op, LinearMap):
            return op.apply(known[0]) if change is None else op.apply_changed(known[0], change)
        if isinstance(op, Sum):
            return sum(known[1:], start=known[0])
        assert isinstance(op, Concat)
        return torch.cat([zeros(known[0], op, i) if x is None else x for i, x in enumerate(xs)], op.dim)

    def adjoint(self, y: Tensor) -> list[Tensor]:
        """The adjoint of the linear part: one tensor for each input."""
        op = self.op
        if isinstance(op, LinearMap):
            return [op.adjoint(y)]
        if isinstance(op, Sum):
            return [y] * len(self.inputs)
        assert isinstance(op, Concat)
        return list(y.split(op.sizes, op.dim))

    def entries(self, change: Change) -> Layer:
        """The layer with `change` applied to each entry of its linear map, and without bias."""
        op = self.op.entries(change) if isinstance(self.op, LinearMap) else self.op
        return replace(self, op=op, bias=None)


def zeros(like: Tensor, op: Concat, i: int) -> Tensor:
    """What stands for input i of a concatenation where it is zero; `like` is another of its inputs."""
    shape = list(like.shape)
    shape[op.dim] = op.sizes[i]
    return like.new_zeros(shape)
