"""Arithmetic of layers and constants, as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.layer import Sum
from ..layers.linear_maps import Diagonal
from ..layers.rearranging import Reshape
from .arguments import Constant, commas, constant
from .rearranging_functions import expanded
from .symbol import Traced, is_traced

Operand = Any  # a Traced or a Constant


def add(x: Operand, other: Operand, alpha: float = 1.0) -> Traced:
    """x + alpha·other."""
    other = times(other, alpha)
    if is_traced(x) and is_traced(other):
        x, other = together(x, other)
        return x.tracer.join(Sum(), [x, other], x.unbatched)
    x, value = (x, other) if is_traced(x) else (other, x)
    if not isinstance(value, Tensor) and value == 0:
        return x.copied()  # python's sum() starts from 0
    x, c = aligned(x, value)
    return x.then(Reshape(x.unbatched, x.unbatched), c)


def sub(x: Operand, other: Operand, alpha: float = 1.0) -> Traced:
    return add(x, other, -alpha)


def mul(x: Operand, other: Operand) -> Traced:
    if is_traced(x) and is_traced(other):
        raise UnsupportedLayerError("a product of two layers is not piecewise linear; constant factors are supported")
    x, c = aligned(x, other) if is_traced(x) else aligned(other, x)
    return x.then(Diagonal(x.unbatched, x.unbatched, c))


def div(x: Operand, other: Operand, rounding_mode: str | None = None) -> Traced:
    if is_traced(other) or rounding_mode is not None:
        raise UnsupportedLayerError("a division by a layer, or a rounded one, is not piecewise linear")
    x, c = aligned(x, other)
    if bool((c == 0).any()):
        raise ValueError(
            f"a division by zero ({int((c == 0).sum())} of its {c.numel()} divisors); is it the standard deviation of "
            "a constant feature? Leave that out, or divide it by 1"
        )
    factor = 1.0 / c.double()
    elsewhere = not (isinstance(other, Tensor) and other.device == x.device)
    if c.dim() == 0 and elsewhere and x.device.type != "cpu":  # torch then multiplies by the rounded reciprocal
        factor = constant(factor, x)
    return x.then(Diagonal(x.unbatched, x.unbatched, factor))


def neg(x: Traced) -> Traced:
    return mul(x, -1.0)


def times(x: Operand, factor: float) -> Operand:
    """factor·x for a layer or a constant."""
    if factor == 1:
        return x
    return mul(x, factor) if is_traced(x) else factor * x


def together(x: Traced, y: Traced) -> tuple[Traced, Traced]:
    """Both expanded to the shape that torch's broadcasting gives them."""
    if x.dim() != y.dim():
        raise UnsupportedLayerError(
            f"(batch, {commas(x.unbatched)}) and (batch, {commas(y.unbatched)}) have different numbers of dimensions, "
            "so that the batch of one meets another dimension of the other; unsqueeze(1) makes them equal"
        )
    try:
        shape = tuple(torch.broadcast_shapes(x.unbatched, y.unbatched))
    except RuntimeError:
        raise ValueError(f"shapes {x.unbatched} and {y.unbatched} do not fit together") from None
    return expanded(x, shape), expanded(y, shape)


def aligned(x: Traced, value: Constant) -> tuple[Traced, Tensor]:
    """x and a constant that broadcasts against it, x expanded where the constant is larger."""
    c = constant(value, x)
    try:
        shape = tuple(torch.broadcast_shapes(c.shape, x.unbatched))
    except RuntimeError:
        raise ValueError(f"a constant of shape {tuple(c.shape)} does not fit {x.unbatched}") from None
    return expanded(x, shape), c


# Casts


def cast(x: Operand, *args: Any, **kwargs: Any) -> Operand:
    """to and type_as: another device, or a dtype that holds every value of the network; a constant as a layer is."""
    wanted = [*args, *kwargs.values()]
    if not is_traced(x):
        like = next(value for value in wanted if is_traced(value))
        return x.to(like.device, like.dtype)
    if any((isinstance(value, str) and value.startswith("torch.")) or isinstance(value, type) for value in wanted):
        wanted = [torch.empty(0).type(wanted[0]).dtype]
    for value in wanted:
        dtype = value if isinstance(value, torch.dtype) else getattr(value, "dtype", None)
        if dtype is not None and torch.promote_types(x.dtype, dtype) is not dtype:
            raise UnsupportedLayerError(changes_values(x, dtype))
    return x


def changes_values(x: Traced, dtype: torch.dtype) -> str:
    short, own = str(dtype).removeprefix("torch."), str(x.dtype).removeprefix("torch.")
    return (
        f"a cast of {own} values to {short} rounds them: the network becomes a staircase, whose quotient "
        f"‖f(x) − f(x0)‖/‖x − x0‖ has no bound near a step; leave the cast out"
        + (f", or convert the network to {short}" if dtype.is_floating_point else "")
    )


def cast_to(dtype: torch.dtype):
    """float(), half(), int() …"""
    return lambda x, memory_format=None: cast(x, dtype)


def type_of(x: Traced, dtype: Any = None, non_blocking: bool = False) -> Traced | str:
    """x.type() is a name, x.type(dtype) a cast."""
    return torch.empty(0, dtype=x.dtype, device=x.device).type() if dtype is None else cast(x, dtype)
