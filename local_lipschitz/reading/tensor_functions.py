"""Tensor operations that networks use between their layers: arithmetic, rearranging, joining and cutting.

Handlers as in function_table.py. Every one keeps the batch dimension a batch: what would mix inputs is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.layer import Concat, Sum
from ..layers.linear_maps import Dense, Diagonal, Reshape, Shape
from .symbol import BATCH, Traced, is_traced

Constant = int | float | Tensor
Operand = Any  # a Traced or a Constant


# Arithmetic


def add(x: Operand, y: Operand, alpha: float = 1.0) -> Traced:
    """x + alpha·y."""
    x, y = _scaled(x, 1.0), _scaled(y, alpha)
    if is_traced(x) and is_traced(y):
        if x.unbatched != y.unbatched:
            raise UnsupportedLayerError(f"a sum of different shapes, {x.unbatched} and {y.unbatched}")
        return x.tracer.join(Sum(), [x, y], x.unbatched)
    x, constant = (x, y) if is_traced(x) else (y, x)
    if not isinstance(constant, Tensor) and constant == 0:
        return x.copied()  # python's sum() starts from 0
    return x.then(Reshape(x.unbatched, x.unbatched), constant_like(constant, x))


def sub(x: Operand, y: Operand, alpha: float = 1.0) -> Traced:
    return add(x, y, -alpha)


def mul(x: Operand, y: Operand) -> Traced:
    if is_traced(x) and is_traced(y):
        raise UnsupportedLayerError("a product of two layers is not piecewise linear; constant factors are supported")
    x, constant = (x, y) if is_traced(x) else (y, x)
    return x.then(Diagonal(x.unbatched, x.unbatched, constant_like(constant, x)))


def div(x: Operand, y: Operand, rounding_mode: str | None = None) -> Traced:
    if is_traced(y) or rounding_mode is not None:
        raise UnsupportedLayerError("a division by a layer, or a rounded one, is not piecewise linear")
    return mul(x, 1.0 / constant_like(y, x).double())


def neg(x: Traced) -> Traced:
    return mul(x, -1.0)


def matmul(x: Operand, y: Operand) -> Traced:
    """x W for a constant matrix W (in, out)."""
    if not is_traced(x) or is_traced(y) or y.dim() != 2 or x.unbatched[-1:] != y.shape[:1]:
        raise UnsupportedLayerError("a matrix product other than x @ W with a constant (in, out) matrix W")
    return x.then(Dense(x.unbatched, (*x.unbatched[:-1], y.shape[1]), y.detach().mT))


def _scaled(x: Operand, factor: float) -> Operand:
    if factor == 1.0:
        return x
    return mul(x, factor) if is_traced(x) else factor * x


def constant_like(value: Constant, x: Traced) -> Tensor:
    """A number or tensor that broadcasts against x, without its batch dimension."""
    c = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if c.dim() == x.dim():
        if c.shape[0] != 1 and not bool((c == c[:1]).all()):
            raise UnsupportedLayerError("it combines each input of the batch with another constant")
        c = c[0]
    if c.dim() > len(x.unbatched) or torch.broadcast_shapes(c.shape, x.unbatched) != x.unbatched:
        raise UnsupportedLayerError(f"a constant of shape {tuple(c.shape)} would expand the shape {x.unbatched}")
    return c


# Rearranging


def reshaping(torch_function: Callable[..., Tensor]) -> Callable[..., Traced]:
    """A handler for a function that keeps the order of the elements; torch itself says what shape it gives."""

    def handler(x: Traced, *args: object, **kwargs: object) -> Traced:
        out = torch_function(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
        if len(out) == 0 or out[0] != BATCH:
            holds = next((i for i, n in enumerate(out) if n % BATCH == 0), -1)
            made = [f"batch·{n // BATCH}" if i == holds else n for i, n in enumerate(out)]
            raise UnsupportedLayerError(
                f"from (batch, {_commas(x.unbatched)}) to ({_commas(made)}) mixes the inputs of a batch; "
                "wanted is x.flatten(1), or x.view(x.shape[0], ...)"
            )
        return x.reshaped(tuple(out[1:]))

    return handler


def _commas(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def squeeze(x: Traced, dim: int | None = None) -> Traced:
    if dim is None:
        raise UnsupportedLayerError("squeeze() drops the batch dimension of a single input; give the dimension")
    return reshaping(torch.squeeze)(x, inner_dim(x, dim) + 1)


def permute(x: Traced, *dims: int | Sequence[int]) -> Traced:
    dims = numbers(dims)
    if len(dims) != x.dim() or dims[0] % x.dim() != 0:
        raise UnsupportedLayerError(f"permute{dims} of {x.dim()} dimensions does not leave the batch in place")
    return x.permuted([inner_dim(x, d) for d in dims[1:]])


def transpose(x: Traced, dim0: int, dim1: int) -> Traced:
    dims = list(range(len(x.unbatched)))
    i, j = inner_dim(x, dim0), inner_dim(x, dim1)
    dims[i], dims[j] = dims[j], dims[i]
    return x.permuted(dims)


def numbers(args: Sequence) -> Shape:
    """permute(0, 2, 1) and permute((0, 2, 1)) alike."""
    return tuple(args[0]) if len(args) == 1 and not isinstance(args[0], int) else tuple(args)


def inner_dim(x: Traced, dim: int) -> int:
    """A dimension counted with the batch, as one counted without; UnsupportedLayerError for the batch itself."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dimension {dim} of an input of shape (batch, {_commas(x.unbatched)})")
    if dim % x.dim() == 0:
        raise UnsupportedLayerError("it works across dimension 0, the batch, whose inputs must not be mixed")
    return dim % x.dim() - 1


# Cutting and joining


def getitem(x: Traced, index: object) -> Traced:
    """Slices, numbers, None and at most one list of different numbers; the batch whole."""
    index = index if isinstance(index, tuple) else (index,)
    if any(is_traced(i) or (isinstance(i, Tensor) and i.dtype == torch.bool) for i in index):
        raise UnsupportedLayerError("indexing by a mask or by another layer; its result depends on the values")
    if Ellipsis in [i for i in index if not isinstance(i, Tensor | list)]:
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        named = sum(i is not None and i is not Ellipsis for i in index)
        index = (*index[:at], *[slice(None)] * (x.dim() - named), *index[at + 1 :])
    whole = isinstance(index[0], slice) and index[0] in (slice(None), slice(0, None), slice(None, None, 1))
    if not whole:
        raise UnsupportedLayerError("it picks inputs out of the batch; index dimension 0 with ':'")
    return x.selected(tuple(_positions(i) for i in index[1:]))


def _positions(index: object) -> object:
    if not isinstance(index, Tensor | list):
        return index
    positions = torch.as_tensor(index)
    if positions.dim() != 1 or len(positions.unique()) != len(positions):
        raise UnsupportedLayerError("indexing by a list that repeats a position, or by more than one dimension")
    return positions.tolist()


def split(x: Traced, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Traced, ...]:
    at = inner_dim(x, dim)
    sizes = split_size_or_sections
    if isinstance(sizes, int):
        sizes = [min(sizes, x.unbatched[at] - start) for start in range(0, x.unbatched[at], sizes)]
    if sum(sizes) != x.unbatched[at]:
        raise ValueError(f"it splits {x.unbatched[at]} elements into {_commas(sizes)}")
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return tuple(narrow(x, dim, end - size, size) for end, size in zip(ends, sizes, strict=True))


def chunk(x: Traced, chunks: int, dim: int = 0) -> tuple[Traced, ...]:
    return split(x, -(-x.unbatched[inner_dim(x, dim)] // chunks), dim)


def narrow(x: Traced, dim: int, start: int, length: int) -> Traced:
    return x.selected((*[slice(None)] * inner_dim(x, dim), slice(start, start + length)))


def cat(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    tensors = list(tensors)
    if not all(is_traced(x) for x in tensors):
        raise UnsupportedLayerError("a concatenation with a constant; torch.nn.functional.pad adds zeros (or a value)")
    if len(tensors) == 1:
        return tensors[0].copied()
    first, at = tensors[0], inner_dim(tensors[0], dim)
    sizes = tuple(x.unbatched[at] for x in tensors)
    out_shape = (*first.unbatched[:at], sum(sizes), *first.unbatched[at + 1 :])
    if any((*x.unbatched[:at], sum(sizes), *x.unbatched[at + 1 :]) != out_shape for x in tensors):
        raise ValueError(f"it joins shapes {_commas([x.unbatched for x in tensors])} along dimension {dim}")
    return first.tracer.join(Concat(at + 1, sizes), tensors, out_shape)


def stack(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    rank = tensors[0].dim() + 1
    return cat([reshaping(torch.unsqueeze)(x, dim % rank) for x in tensors], dim % rank)


def expand(x: Traced, *sizes: Any) -> Traced:
    """Dimensions of size 1 repeated (a grey image as three channels)."""
    out = torch.empty(x.shape, device="meta").expand(*sizes).shape
    if len(out) != x.dim() or out[0] != BATCH:
        raise UnsupportedLayerError(f"from (batch, {_commas(x.unbatched)}) to {tuple(out)} changes the batch")
    return repeat(x, *[n if old == 1 else 1 for n, old in zip(out, x.shape, strict=True)])


def repeat(x: Traced, *times: int | Sequence[int]) -> Traced:
    times = numbers(times)
    if len(times) != x.dim() or times[0] != 1:
        raise UnsupportedLayerError(f"repeat{times} of (batch, {_commas(x.unbatched)}) changes the batch")
    for dim, n in enumerate(times):
        x = cat([x] * n, dim) if n != 1 else x
    return x
