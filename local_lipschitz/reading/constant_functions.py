"""Constant masks, constants beside layers and joining, as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.layer import Concat
from ..layers.linear_maps import Diagonal, size
from ..layers.rearranging import Take
from .arguments import commas, constant, inner_dim
from .arithmetic_functions import Operand, add, div, mul, sub, times
from .rearranging_functions import reshaping
from .symbol import Traced, is_traced

DEPENDS = "a mask that depends on the network's input, which would decide by its values; constant masks are supported"


def masked_fill(x: Traced, mask: Tensor, value: float) -> Traced:
    """x where a constant mask is False, elsewhere the value."""
    return where(mask, value, x)


def where(condition: Any, x: Operand, other: Operand) -> Traced:
    """torch.where(mask, x, other) and x.where(mask, other) for a constant mask: x where it is True, other elsewhere."""
    if is_traced(condition):
        condition, x = x, condition
    if is_traced(condition):
        raise UnsupportedLayerError(DEPENDS)
    mask = condition.bool()
    return add(_kept(x, mask), _kept(other, ~mask))


def _kept(x: Operand, mask: Tensor) -> Operand:
    """x where the mask is True, else 0, also where x is not finite."""
    return mul(x, mask.double()) if is_traced(x) else torch.where(mask, torch.as_tensor(x, device=mask.device), 0.0)


def triangle(part: Callable[[Tensor, int], Tensor]) -> Callable[..., Traced]:
    """triu and tril, of the last two dimensions."""

    def handler(x: Traced, diagonal: int = 0) -> Traced:
        if len(x.unbatched) < 2:
            raise UnsupportedLayerError("its matrices have the batch for a dimension")
        return mul(x, part(torch.ones(x.unbatched, dtype=torch.float64, device=x.device), diagonal))

    return handler


def addcmul(x: Operand, a: Operand, b: Operand, *, value: float = 1.0) -> Traced:
    """x + value·a·b."""
    return add(x, times(mul(a, b) if is_traced(a) or is_traced(b) else a * b, value))


def addcdiv(x: Operand, a: Operand, b: Operand, *, value: float = 1.0) -> Traced:
    """x + value·a/b."""
    return add(x, times(div(a, b) if is_traced(a) or is_traced(b) else a / b, value))


def lerp(start: Operand, end: Operand, weight: Any) -> Traced:
    """start + weight·(end − start)."""
    return add(start, mul(sub(end, start), weight))


def filled(value: float) -> Callable[..., Tensor]:
    """zeros_like and ones_like: constants of a layer's shape."""
    return lambda x, **options: torch.full(x.shape, value, dtype=options.get("dtype") or x.dtype, device=x.device)


def new_filled(value: float) -> Callable[..., Tensor]:
    """new_zeros and new_ones: constants of another shape."""

    def handler(x: Traced, *size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        shape = size[0] if size and not isinstance(size[0], int) else size
        return torch.full(tuple(shape), value, dtype=dtype or x.dtype, device=x.device)

    return handler


# Joining


def cat(tensors: Sequence[Operand], dim: int = 0) -> Traced:
    first = next(x for x in tensors if is_traced(x))
    tensors = [x if is_traced(x) else _as_layer(x, first) for x in tensors]
    if len(tensors) == 1:
        return tensors[0].copied()
    first, at = tensors[0], inner_dim(tensors[0], dim)
    sizes = tuple(x.unbatched[at] for x in tensors)
    out_shape = (*first.unbatched[:at], sum(sizes), *first.unbatched[at + 1 :])
    if any((*x.unbatched[:at], sum(sizes), *x.unbatched[at + 1 :]) != out_shape for x in tensors):
        raise ValueError(f"it joins shapes {commas([x.unbatched for x in tensors])} along dimension {dim}")
    return first.tracer.join(Concat(at + 1, sizes), tensors, out_shape)


def stack(tensors: Sequence[Operand], dim: int = 0) -> Traced:
    at = dim % (tensors[0].dim() + 1)
    return cat([reshaping(torch.unsqueeze)(x, at) if is_traced(x) else x.unsqueeze(at) for x in tensors], at)


def hstack(tensors: Sequence[Operand]) -> Traced:
    return cat(tensors, 1)


def _as_layer(value: Tensor, like: Traced) -> Traced:
    """A constant (B, …) as a layer that does not move: an element of the layer `like` times 0, plus the constant."""
    if value.dim() != like.dim():
        raise ValueError(f"it joins a constant of shape {tuple(value.shape)} and (batch, {commas(like.unbatched)})")
    c, shape = constant(value, like), tuple(value.shape[1:])
    index = torch.zeros(size(shape), dtype=torch.int64, device=like.device)
    nothing = torch.zeros((), dtype=torch.float64, device=like.device)
    return like.then(Take(like.unbatched, shape, index)).then(Diagonal(shape, shape, nothing), c)
