"""The symbol that stands for a tensor while a module is read, and the recording of what is done to it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import UnsupportedLayerError
from ..layers.layer import Op
from ..layers.linear_maps import LinearMap, Shape
from ..layers.max_pooling import MaxPool
from ..layers.rearranging import Permute, Reshape, Select

# The batch sizes that traced code sees, one a reading. Primes that no network writes down: a result whose first
# dimension is still this number has kept its batch.
BATCHES = (5, 7)


@dataclass(frozen=True)
class Operation:
    """An operation on earlier ones, known by their places."""

    inputs: tuple[int, ...]
    op: Op
    shape: Shape
    bias: Tensor | None
    bias_sum: Tensor | None


class Recording(fx.Tracer):
    """The operations so far, in order. What proxies are asked to do beyond is the tracer's (tracer.py)."""

    def __init__(self, dtype: torch.dtype, device: torch.device, batch: int) -> None:
        none: Any = ()  # some versions of torch declare a tuple of exactly one
        super().__init__(autowrap_modules=none)  # no need to catch math.sqrt and the like
        self.dtype, self.device, self.batch = dtype, device, batch
        self.operations: list[Operation] = []
        self.pairs: dict[tuple[int, int], Traced] = {}  # that were compared (maximum_functions.py)

    def join(
        self, op: Op, xs: Sequence[Traced], shape: Shape, bias: Tensor | None = None, bias_sum: Tensor | None = None
    ) -> Traced:
        """A new operation on the given ones."""
        bias = None if bias is None else bias.detach()
        knots = getattr(op, "knots", ())  # these may be infinite
        if not all(is_finite(value) for value in numbers(op, bias) if not any(value is knot for knot in knots)):
            raise ValueError("its numbers are NaN or infinite, as after a division by zero (a constant feature's std)")
        self.operations.append(Operation(tuple(x.at for x in xs), op, shape, bias, bias_sum))
        return Traced(self, len(self.operations) - 1, shape)


class Traced(fx.Proxy):
    """What the traced code sees as a tensor: a place in the graph and a shape.

    `at` counts the operations so far, −1 for the network's input; `unbatched` is the shape without the batch.
    """

    __array_ufunc__ = None  # numpy numbers leave arithmetic to us
    tracer: Recording

    def __init__(self, tracer: Recording, at: int, unbatched: Shape) -> None:
        super().__init__(None, tracer)  # type: ignore[arg-type]  # a node of fx's own graph, which is not used
        self.at, self.unbatched = at, unbatched

    def then(self, op: Op, bias: Tensor | None = None, bias_sum: Tensor | None = None) -> Traced:
        """What `op` makes of this, plus a bias that broadcasts; bias_sum as in `Layer`."""
        if not self.unbatched and not isinstance(op, LinearMap):  # nonlinear layers read vectors, at least
            return self.reshaped((1,)).then(op).reshaped(())
        out_shape = op.out_shape if isinstance(op, LinearMap | MaxPool) else self.unbatched
        return self.tracer.join(op, [self], out_shape, bias, bias_sum)

    def reshaped(self, out_shape: Shape) -> Traced:
        return self.then(Reshape(self.unbatched, out_shape))

    def permuted(self, dims: Sequence[int]) -> Traced:
        """Dimensions without the batch, as torch.permute counts them."""
        if list(dims) == sorted(dims):
            return self.copied()
        return self.then(Permute(self.unbatched, tuple(self.unbatched[d] for d in dims), tuple(dims)))

    def selected(self, index: tuple) -> Traced:
        """self[:, *index]."""
        at = (slice(None), *index)
        out_shape = torch.empty(self.shape, device="meta")[at].shape[1:]
        return self.then(Select(self.unbatched, tuple(out_shape), index))

    def copied(self) -> Traced:
        return Traced(self.tracer, self.at, self.unbatched)

    def __repr__(self) -> str:
        return f"a tensor of shape (batch, {', '.join(str(n) for n in self.unbatched)})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """A torch function or a method of a tensor; fx's own goes through all arguments twice."""
        args, kwargs = args or (), kwargs or {}
        first = first_traced((*args, *kwargs.values()))
        assert first is not None
        method = torch.overrides.is_tensor_method_or_property(function)
        kind, target = ("call_method", function.__name__) if method else ("call_function", function)
        return first.tracer.create_proxy(kind, target, args, kwargs)

    # what code asks of a tensor without looking at its values

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.tracer.batch, *self.unbatched))

    @property
    def ndim(self) -> int:
        return len(self.unbatched) + 1

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.dtype

    @property
    def device(self) -> torch.device:
        return self.tracer.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def requires_grad(self) -> bool:
        return False

    is_nested = is_sparse = is_quantized = is_leaf = False

    @property
    def data(self) -> Traced:
        return self.copied()

    @property
    def mT(self) -> Any:
        return self.tracer.create_proxy("call_method", "mT", (self,), {})

    @property
    def mH(self) -> Any:
        return self.tracer.create_proxy("call_method", "mH", (self,), {})

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return True

    def is_contiguous(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.tracer.batch

    def __iter__(self) -> Iterator:
        raise UnsupportedLayerError("forward() goes through the inputs of the batch one by one")

    # x += y changes the tensor itself; fx would read it as x = x + y

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __getattr__(self, name: str) -> Any:
        if not hasattr(torch.Tensor, name):
            raise AttributeError(f"a tensor has no attribute {name!r}")
        if not callable(getattr(torch.Tensor, name)):
            raise UnsupportedLayerError(f"the attribute {name!r} of a layer's output is not supported")
        return super().__getattr__(name)  # a method, to be called


def numbers(op: Op, bias: Tensor | None) -> list[Tensor]:
    """The tensors of an operation: weights, slopes, bias."""
    values = [bias]
    for field in vars(op).values():
        values += field if isinstance(field, tuple) else [field]
    return [value for value in values if isinstance(value, Tensor)]


def is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; in one pass that allocates nothing."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    return all(math.isfinite(extreme) for extreme in torch.aminmax(value))


def first_traced(values: Iterable[Any]) -> Traced | None:
    """The first symbol among values, or in lists, tuples and dicts of them."""
    for value in values:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        found = value if isinstance(value, Traced) else first_traced(inside)
        if found is not None:
            return found
    return None


def is_traced(x: object) -> bool:
    return isinstance(x, Traced)
