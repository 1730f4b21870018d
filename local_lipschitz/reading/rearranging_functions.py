"""Rearranging, cutting, repeating and joining layers, as operations of the graph. Handlers as in function_table.py.

Every one keeps the batch dimension a batch: what would mix inputs is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayerError
from ..layers.linear_maps import Shape, size
from ..layers.rearranging import Take
from .arguments import commas, inner_dim, numbers
from .symbol import Traced, is_traced


def reshaping(torch_function: Callable[..., Tensor]) -> Callable[..., Traced]:
    """A handler for a function that keeps the order of the elements; torch itself says what shape it gives."""

    def handler(x: Traced, *args: object, **kwargs: object) -> Traced:
        out = torch_function(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
        if len(out) == 0 or out[0] != len(x):
            raise _mixes(x, out)
        return x.reshaped(tuple(out[1:]))

    return handler


def _mixes(x: Traced, out: Sequence[int]) -> UnsupportedLayerError:
    holds = next((i for i, n in enumerate(out) if n % len(x) == 0), -1)
    made = [f"batch·{n // len(x)}" if i == holds else n for i, n in enumerate(out)]
    return UnsupportedLayerError(
        f"from (batch, {commas(x.unbatched)}) to ({commas(made)}) mixes the inputs of a batch; "
        "wanted is x.flatten(1), or x.view(x.shape[0], ...)"
    )


def moving(torch_function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler for a function that moves elements, leaves some out or repeats some; torch itself says which.

    It is given the numbers of the elements in their place. A function of several results has several.
    """

    def handler(x: Traced, *args: Any, **kwargs: Any) -> Any:
        if any(is_traced(a) for a in (*args, *kwargs.values())):
            raise UnsupportedLayerError("its positions depend on the values of the network's input")
        places = torch.arange(len(x) * size(x.unbatched), dtype=torch.float64, device=x.device).reshape(x.shape)
        result = torch_function(places, *args, **kwargs)
        if isinstance(result, Tensor):
            return _placed(x, result)
        return tuple(_placed(x, part) for part in result)

    return handler


def _placed(x: Traced, places: Tensor) -> Traced:
    """x[places], for the places (B, …) of the elements in a batch of inputs."""
    n, out = size(x.unbatched), tuple(places.shape)
    if len(out) == 0 or out[0] != len(x):
        raise _mixes(x, out)
    at = places.reshape(len(x), -1).long()
    if not torch.equal(at - at[:1], torch.arange(len(x), device=x.device)[:, None].expand_as(at) * n):
        raise UnsupportedLayerError("it mixes the inputs of a batch, or leaves some out; dimension 0 must stay whole")
    index = at[0]
    if torch.equal(index, torch.arange(n, device=x.device)):
        return x.copied() if out[1:] == x.unbatched else x.reshaped(out[1:])
    return x.then(Take(x.unbatched, out[1:], index))


def squeeze(x: Traced, dim: int | Sequence[int] | None = None) -> Traced:
    if dim is None:
        raise UnsupportedLayerError("squeeze() drops the batch dimension of a single input; give the dimension")
    dims = [inner_dim(x, d) + 1 for d in ((dim,) if isinstance(dim, int) else dim)]
    return reshaping(torch.squeeze)(x, dims)


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


# Cutting


def getitem(x: Traced, index: Any) -> Traced:
    """Slices, numbers and None, or anything else that torch takes for positions; the batch whole."""
    index = index if isinstance(index, tuple) else (index,)
    if any(is_traced(i) for i in index):
        raise UnsupportedLayerError("indexing by a mask or by another layer; its result depends on the values")
    if any(i is Ellipsis for i in index):
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        named = sum(_dimensions(i) for i in index)
        index = (*index[:at], *[slice(None)] * (x.dim() - named), *index[at + 1 :])
    whole = isinstance(index[0], slice) and index[0] in (slice(None), slice(0, None), slice(None, None, 1))
    if not whole:
        raise UnsupportedLayerError("it picks inputs out of the batch; index dimension 0 with ':'")
    if all(i is None or isinstance(i, slice) or type(i) is int for i in index):
        return x.selected(index[1:])
    return moving(torch.Tensor.__getitem__)(x, index)


def _dimensions(index: Any) -> int:
    """How many dimensions one part of an index stands for."""
    if index is None or index is Ellipsis:
        return 0
    mask = torch.as_tensor(index) if isinstance(index, Tensor | list | tuple) or hasattr(index, "dtype") else None
    return mask.dim() if mask is not None and mask.dtype is torch.bool else 1


def split(x: Traced, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Traced, ...]:
    at = inner_dim(x, dim)
    sizes = split_size_or_sections
    if isinstance(sizes, int):
        sizes = [min(sizes, x.unbatched[at] - start) for start in range(0, x.unbatched[at], sizes)]
    if sum(sizes) != x.unbatched[at]:
        raise ValueError(f"it splits {x.unbatched[at]} elements into {commas(sizes)}")
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return tuple(narrow(x, dim, end - size, size) for end, size in zip(ends, sizes, strict=True))


def chunk(x: Traced, chunks: int, dim: int = 0) -> tuple[Traced, ...]:
    return split(x, -(-x.unbatched[inner_dim(x, dim)] // chunks), dim)


def narrow(x: Traced, dim: int, start: int, length: int) -> Traced:
    return x.selected((*[slice(None)] * inner_dim(x, dim), slice(start, start + length)))


def unfold(x: Traced, *args: Any, **kwargs: Any) -> Traced:
    """x.unfold(dimension, size, step); torch.nn.functional.unfold without padding."""
    if len(args) + len(kwargs) == 3 and not kwargs.keys() & {"kernel_size", "dilation", "padding", "stride"}:
        return moving(torch.Tensor.unfold)(x, *args, **kwargs)
    return patches(x, *args, **kwargs)


def patches(x: Traced, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Traced:
    if padding not in (0, (0, 0), [0, 0]):
        raise UnsupportedLayerError("unfold with padding; pad first, torch.nn.functional.pad is supported")
    return moving(torch.nn.functional.unfold)(x, kernel_size, dilation, 0, stride)


# Repeating


def expanded(x: Traced, shape: Shape) -> Traced:
    """Dimensions of size 1 repeated, to this shape without the batch."""
    return x if shape == x.unbatched else moving(torch.Tensor.expand)(x, len(x), *shape)


def expand(x: Any, *sizes: Any) -> Any:
    """expand and expand_as (a grey image as three channels), of a layer or of a constant to the shape of one."""
    sizes = tuple(sizes[0].shape) if len(sizes) == 1 and hasattr(sizes[0], "shape") else numbers(sizes)
    if not is_traced(x):
        return x.expand(sizes)
    out = tuple(torch.empty(x.shape, device="meta").expand(*sizes).shape)
    if len(out) != x.dim() or out[0] != len(x):
        raise UnsupportedLayerError(f"from (batch, {commas(x.unbatched)}) to {out} changes the batch")
    return expanded(x, out[1:])


def repeat(x: Traced, *times: int | Sequence[int]) -> Traced:
    times = numbers(times)
    if len(times) != x.dim() or times[0] != 1:
        raise UnsupportedLayerError(f"repeat{times} of (batch, {commas(x.unbatched)}) changes the batch")
    return moving(torch.Tensor.repeat)(x, *times)
