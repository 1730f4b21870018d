"""Maxima and minima: max pooling, over dimensions, and of two layers. Handlers as in function_table.py.

max(a, b) = (a + b + |b − a|)/2 and min(a, b) = (a + b − |b − a|)/2 share one activation of the pair (a + b, b − a). As
the matrix [[1, 1], [−1, 1]] is √2 times a rotation, a maximum beside a minimum costs no factor: sorting is 1-Lipschitz.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.activations import PiecewiseLinear
from ..layers.linear_maps import Dense
from ..layers.max_pooling import MaxPool
from .activation_functions import clamp
from .arguments import check_spatial, inner_dim, per_axis
from .arithmetic_functions import Operand, neg, together
from .constant_functions import cat, stack
from .rearranging_functions import narrow
from .separable_functions import gathered
from .symbol import Traced, is_traced


class Positions(Traced):
    """Where the largest elements are: not continuous. They may be there as long as nobody uses them."""

    @property
    def at(self) -> int:
        raise UnsupportedLayerError(
            "it uses the positions (indices) of largest elements, which are not continuous in the network's input"
        )

    @at.setter
    def at(self, value: int) -> None:
        pass


class WithPositions(NamedTuple):
    """What torch returns where it tells the positions, too."""

    values: Traced
    indices: Positions


def with_positions(x: Traced) -> WithPositions:
    return WithPositions(x, Positions(x.tracer, -1, x.unbatched))


# Pooling


def max_pool(
    x: Traced, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
    *, spatial: int,
) -> Traced | WithPositions:  # fmt: skip
    check_spatial(x, spatial)
    kernel = per_axis(kernel_size, spatial)
    stride = per_axis(stride, spatial) if stride else kernel
    pool = MaxPool(x.unbatched, kernel, stride, per_axis(padding, spatial), per_axis(dilation, spatial), ceil_mode)
    try:
        pool.out_shape  # noqa: B018 - torch's own check of kernel, padding and size
    except RuntimeError as error:
        raise ValueError(f"it does not fit an input of shape {x.unbatched}: {str(error).splitlines()[0]}") from None
    return with_positions(x.then(pool)) if return_indices else x.then(pool)


def adaptive_max_pool(x: Traced, output_size, return_indices=False, *, spatial: int) -> Traced | WithPositions:
    check_spatial(x, spatial)
    wanted = per_axis(output_size, spatial)
    sizes = [n if size is None else size for n, size in zip(x.unbatched[1:], wanted, strict=True)]
    if any(n % size for n, size in zip(x.unbatched[1:], sizes, strict=True)):
        raise UnsupportedLayerError(f"to {tuple(sizes)} from {x.unbatched} its windows are of unequal size")
    kernel = tuple(n // size for n, size in zip(x.unbatched[1:], sizes, strict=True))
    return max_pool(x, kernel, return_indices=return_indices, spatial=spatial)


# Over dimensions


def amax(x: Traced, dim: Any = None, keepdim: bool = False) -> Traced:
    if dim is None or dim == ():
        raise UnsupportedLayerError("it compares the inputs of the batch, too; give the dimensions, from 1")
    rows, n, out_shape = gathered(x, dim, keepdim)
    return rows.then(MaxPool(rows.unbatched, (n,), (n,), (0,), (1,), False)).reshaped(out_shape)


def amin(x: Traced, dim: Any = None, keepdim: bool = False) -> Traced:
    return neg(amax(neg(x), dim, keepdim))


def maximum_of(x: Operand, other: Any = None, keepdim: bool = False, *, dim: int | None = None) -> Any:
    """torch.max: of two layers, or over a dimension."""
    dim = other if dim is None and isinstance(other, int) else dim
    return maximum(x, other) if dim is None and other is not None else with_positions(amax(x, dim, keepdim))


def minimum_of(x: Operand, other: Any = None, keepdim: bool = False, *, dim: int | None = None) -> Any:
    """torch.min: of two layers, or over a dimension."""
    dim = other if dim is None and isinstance(other, int) else dim
    return minimum(x, other) if dim is None and other is not None else with_positions(amin(x, dim, keepdim))


# Of two layers, or a layer and a constant


def maximum(x: Operand, other: Operand) -> Traced:
    if not is_traced(x) or not is_traced(other):
        return clamp(x, other) if is_traced(x) else clamp(other, x)
    return _of_pair(x, other, [0.5, 0.5])


def minimum(x: Operand, other: Operand) -> Traced:
    if not is_traced(x) or not is_traced(other):
        return clamp(x, None, other) if is_traced(x) else clamp(other, None, x)
    return _of_pair(x, other, [0.5, -0.5])


def clamp_to(x: Traced, min: Operand | None = None, max: Operand | None = None) -> Traced:
    """clamp, whose limits may be layers."""
    if not is_traced(min) and not is_traced(max):
        return clamp(x, min, max)
    x = x if min is None else maximum(x, min)
    return x if max is None else minimum(x, max)


def _of_pair(a: Traced, b: Traced, weights: list[float]) -> Traced:
    """weights · (a + b, |b − a|); a pair that was compared before is not compared again."""
    a, b = together(a, b)
    pairs, pair = a.tracer.pairs, (min(a.at, b.at), max(a.at, b.at))
    if pair not in pairs:
        pairs[pair] = _compared(a, b)
    return _dense(pairs[pair], torch.tensor([weights])).reshaped(a.unbatched)


def _compared(a: Traced, b: Traced) -> Traced:
    """(a + b, |b − a|) along a new last dimension."""
    rotated = _dense(stack([a, b], -1), torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    return rotated.then(PiecewiseLinear((0.0,), (torch.tensor([1.0, -1.0], device=a.device), 1.0)))


def _dense(x: Traced, weight: Tensor) -> Traced:
    weight = weight.to(x.device, torch.float64)
    return x.then(Dense(x.unbatched, (*x.unbatched[:-1], len(weight)), weight))


def sort(x: Traced, dim: int = -1, descending: bool = False, stable: bool = False) -> WithPositions:
    """Of two elements along a dimension, as networks of pairwise sorting write it."""
    at = inner_dim(x, dim) + 1
    if x.shape[at] != 2:
        raise UnsupportedLayerError(f"it sorts {x.shape[at]} elements; two are supported, and maxima of any number")
    a, b = narrow(x, at, 0, 1), narrow(x, at, 1, 1)
    ordered = minimum(a, b), maximum(a, b)
    return with_positions(cat(ordered[::-1] if descending else ordered, at))
