"""How torch's functions take their arguments: dimensions, numbers for all axes, constants that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.linear_maps import Shape
from .symbol import Traced

Constant = Any  # a number, a tensor or an array


def per_channel(values: Tensor, spatial: int) -> Tensor:
    """One number a channel, shaped to broadcast over the spatial dimensions."""
    return values.detach().reshape(-1, *(1,) * spatial)


def per_axis(value: int | Sequence[int], axes: int) -> Shape:
    """torch's habit: one number for all axes."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * axes if len(value) == 1 else value


def check_spatial(x: Traced, spatial: int) -> None:
    if len(x.unbatched) != spatial + 1:
        axes = {1: "(C, L)", 2: "(C, H, W)", 3: "(C, D, H, W)"}[spatial]
        raise ValueError(f"it reads {axes}, its input has shape {x.unbatched}")


def numbers(args: Sequence) -> Shape:
    """permute(0, 2, 1) and permute((0, 2, 1)) alike."""
    return tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else tuple(args)


def inner_dim(x: Traced, dim: int) -> int:
    """A dimension counted with the batch, as one counted without; UnsupportedLayerError for the batch itself."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dimension {dim} of an input of shape (batch, {commas(x.unbatched)})")
    if dim % x.dim() == 0:
        raise UnsupportedLayerError("it works across dimension 0, the batch, whose inputs must not be mixed")
    return dim % x.dim() - 1


def commas(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def number(value: float, x: Traced) -> float:
    """A number as torch uses it in a network of float32 numbers: rounded to one of them."""
    return float(value) if x.dtype is torch.float64 else float(torch.tensor(float(value), dtype=torch.float32))


def constant(value: Constant, x: Traced) -> Tensor:
    """A number or tensor that meets x, without its batch dimension."""
    c = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64, device=x.device)
    c = c if c.is_floating_point() else c.double()
    if c.dim() == 0:
        return torch.tensor(number(float(c), x), dtype=torch.float64, device=x.device)
    if c.dim() > x.dim():
        raise UnsupportedLayerError(f"a constant of shape {tuple(c.shape)} gives (batch, {commas(x.unbatched)}) "
                                    "more dimensions, the first of which would not be the batch")  # fmt: skip
    return same_for_all(c) if c.dim() == x.dim() else c


def same_for_all(c: Tensor) -> Tensor:
    """A constant (1 or B, …) without its batch dimension."""
    if not bool((c == c[:1]).all()):
        raise UnsupportedLayerError("it combines each input of the batch with another constant")
    return c[0]
