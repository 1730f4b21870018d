"""Averages, interpolation and padding: one matrix an axis, taken from torch's own one-dimensional result.

Handlers as in function_table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.products import Separable
from ..layers.rearranging import Select
from .arguments import check_spatial, inner_dim, number, per_axis
from .symbol import Traced


def avg_pool(
    x: Traced, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
    *, spatial: int,
) -> Traced:  # fmt: skip
    check_spatial(x, spatial)
    kernel, padding = per_axis(kernel_size, spatial), per_axis(padding, spatial)
    stride = per_axis(stride, spatial) if stride else kernel
    divisor = 1 if divisor_override else None
    factors = [
        F.avg_pool2d(units(n), (k, 1), (s, 1), (p, 0), ceil_mode, count_include_pad, divisor).reshape(n, -1).mT
        for n, k, s, p in zip(x.unbatched[1:], kernel, stride, padding, strict=True)
    ]
    factors[-1] = factors[-1] / (divisor_override or 1)
    return separable(x, factors)


def adaptive_avg_pool(x: Traced, output_size, *, spatial: int) -> Traced:
    check_spatial(x, spatial)
    wanted = per_axis(output_size, spatial)
    sizes = [n if size is None else size for n, size in zip(x.unbatched[1:], wanted, strict=True)]
    if sizes == list(x.unbatched[1:]):
        return x
    factors = [
        F.adaptive_avg_pool2d(units(n), (size, 1)).reshape(n, -1).mT
        for n, size in zip(x.unbatched[1:], sizes, strict=True)
    ]
    return separable(x, factors)


def interpolate(
    x: Traced, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
) -> Traced:  # fmt: skip
    """Up- or downsampling of all dimensions but the channels."""
    spatial = len(x.unbatched) - 1
    if mode == "area":
        return adaptive_avg_pool(x, _sizes(x, size, scale_factor), spatial=spatial)
    one_axis = {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)
    meta = torch.empty(1, *x.unbatched, device="meta")  # torch's own check of the arguments
    F.interpolate(meta, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    factors = []
    for axis, n in enumerate(x.unbatched[1:]):
        target: dict[str, Any] = {}
        if size is not None:
            target["size"] = (per_axis(size, spatial)[axis], 2)
        else:
            scale = scale_factor[axis] if isinstance(scale_factor, Sequence) else scale_factor
            target.update(scale_factor=(float(scale), 1.0), recompute_scale_factor=recompute_scale_factor)
        columns = units(n).repeat(1, 1, 1, 2)  # two, since torch's antialiasing takes one for channels
        y = F.interpolate(columns, mode=one_axis, align_corners=align_corners, antialias=antialias, **target)
        factors.append(y[:, 0, :, 0].mT)
    return separable(x, factors)


def _sizes(x: Traced, size: Any, scale_factor: Any) -> tuple[int, ...]:
    y = torch.empty(1, *x.unbatched, device="meta")
    return tuple(F.interpolate(y, size, scale_factor).shape[2:])


def mean(x: Traced, dim=None, keepdim: bool = False, *, dtype=None, sum_up: bool = False) -> Traced:
    """The mean or sum over some dimensions, none of them the batch."""
    if dim is None:
        raise UnsupportedLayerError("it takes the mean or sum over the batch, too; give the dimensions, from 1")
    x, n, out_shape = gathered(x, dim, keepdim)
    weights = torch.full((1, n), 1.0 if sum_up else 1.0 / n, dtype=torch.float64)
    return separable(x, [weights]).reshaped(out_shape)


def gathered(x: Traced, dim: int | Sequence[int], keepdim: bool) -> tuple[Traced, int, tuple[int, ...]]:
    """x with these dimensions flattened to its last one, (others, n); n; the shape when they have been reduced."""
    dims = sorted({inner_dim(x, d) for d in per_axis(dim, 1)})
    kept = [d for d in range(len(x.unbatched)) if d not in dims]
    n = torch.Size(x.unbatched[d] for d in dims).numel()
    out_shape = tuple(1 if d in dims else x.unbatched[d] for d in range(len(x.unbatched)) if keepdim or d not in dims)
    x = x.permuted([*kept, *dims])
    return x.reshaped((torch.Size(x.unbatched).numel() // n, n)), n, out_shape


def cumsum(x: Traced, dim: int, *, dtype: torch.dtype | None = None) -> Traced:
    return _along(x, dim, lambda eye: eye.cumsum(0))


def diff(x: Traced, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Traced:
    if prepend is not None or append is not None:
        raise UnsupportedLayerError("prepend or append; torch.cat joins them before")
    return _along(x, dim, lambda eye: eye.diff(n, 0))


def _along(x: Traced, dim: int, function: Callable[[Tensor], Tensor]) -> Traced:
    """A linear function of one dimension, known by what it makes of unit vectors, the columns of an identity matrix."""
    at, rank = inner_dim(x, dim), len(x.unbatched)
    order = [*(d for d in range(rank) if d != at), at]
    matrix = function(torch.eye(x.unbatched[at], dtype=torch.float64))
    return separable(x.permuted(order), [matrix]).permuted([order.index(d) for d in range(rank)])


def pad(x: Traced, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Traced:
    """torch's order: (left, right) of the last dimension first. A negative number crops."""
    if len(pad) > 2 * len(x.unbatched):
        raise UnsupportedLayerError(f"it pads {len(pad) // 2} dimensions, the batch among them")
    sides = [(0, 0)] * (len(x.unbatched) - len(pad) // 2)
    sides += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    if mode != "constant":
        return _pad_by_values(x, sides[len(sides) - len(pad) // 2 :], mode)
    if any(min(side) < 0 for side in sides):
        x = x.selected(tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.unbatched, sides, strict=True)))
    place = tuple(slice(max(0, a), max(0, a) + n) for n, (a, _) in zip(x.unbatched, sides, strict=True))
    out = tuple(max(0, a) + n + max(0, b) for n, (a, b) in zip(x.unbatched, sides, strict=True))
    if out == x.unbatched:
        return x
    bias = None
    if value:
        bias = torch.full(out, number(value, x), dtype=torch.float64, device=x.device)
        bias[place] = 0.0
    return x.then(Select(x.unbatched, out, place, transposed=True), bias)


def _pad_by_values(x: Traced, sides: list[tuple[int, int]], mode: str) -> Traced:
    """Circular, reflected or replicated values around the last dimensions."""
    factors = [
        F.pad(torch.eye(n, dtype=torch.float64)[None], side, mode=mode)[0].mT
        for n, side in zip(x.unbatched[-len(sides) :], sides, strict=True)
    ]
    return separable(x, factors)


def units(n: int) -> Tensor:
    """The unit vectors of one axis as images of one column, (n, 1, n, 1)."""
    return torch.eye(n, dtype=torch.float64).reshape(n, 1, n, 1)


def separable(x: Traced, factors: Sequence[Tensor]) -> Traced:
    """One factor (out, in) for each of the last dimensions."""
    out_shape = (*x.unbatched[: -len(factors)], *(len(factor) for factor in factors))
    return x.then(Separable(x.unbatched, out_shape, tuple(factor.to(x.device) for factor in factors)))
