"""Running a module once on a symbol in place of its input, to see which functions it calls on what.

torch.fx provides the interception: its proxies catch torch functions, methods and operators, its tracer module calls.
Its own graph is not used. Each call is turned into operations of our graph at once (function_table.py), so that the
shapes are known while the module's code runs: `x.view(x.size(0), -1)`, `B, C, H, W = x.shape` and `if x.dim() > 2` all
work. Parameters, buffers and constants are ordinary tensors there, and what is computed from them alone is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import UnsupportedLayerError
from ..layers.activations import MaxPool
from ..layers.graph import INPUT, Call, Graph, Layer, Op
from ..layers.linear_maps import LinearMap, Permute, Reshape, Select, Shape
from .function_table import FUNCTIONS, NOT_SUPPORTED, REFUSED
from .tensor_functions import BATCH

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Traced(fx.Proxy):
    """What the traced code sees as a tensor: a place in the graph and a shape.

    `at` counts the operations so far, −1 for the network's input; `unbatched` is the shape without the batch.
    """

    __array_ufunc__ = None  # numpy numbers leave arithmetic to us
    tracer: Reader

    def __init__(self, tracer: Reader, at: int, unbatched: Shape) -> None:
        super().__init__(None, tracer)  # type: ignore[arg-type]  # a node of fx's own graph, which is not used
        self.at, self.unbatched = at, unbatched

    def then(self, op: Op, bias: Tensor | None = None) -> Traced:
        """What `op` makes of this, plus a bias that broadcasts."""
        out_shape = op.out_shape if isinstance(op, LinearMap | MaxPool) else self.unbatched
        return self.tracer.join(op, [self], out_shape, bias)

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

    # what code asks of a tensor without looking at its values

    @property
    def shape(self) -> torch.Size:
        return torch.Size((BATCH, *self.unbatched))

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

    @property
    def data(self) -> Traced:
        return self.copied()

    @property
    def mT(self) -> Traced:
        return FUNCTIONS["transpose"](self, -1, -2)

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
        return BATCH

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


@dataclass(frozen=True)
class Operation:
    """An operation on earlier ones, known by their places."""

    inputs: tuple[int, ...]
    op: Op
    shape: Shape
    bias: Tensor | None


class Reader(fx.Tracer):
    """Collects the operations of a module, call by call."""

    def __init__(self, in_shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        none: Any = ()  # some versions of torch declare a tuple of exactly one
        super().__init__(autowrap_modules=none)  # no need to catch math.sqrt and the like
        self.in_shape, self.dtype, self.device = in_shape, dtype, device
        self.operations: list[Operation] = []
        self.calls: list[tuple[Call, range]] = []
        self.names: dict[nn.Module, str] = {}
        self.taken = {INPUT}
        self.path: list[str] = []
        self.inside_layer = False

    def read(self, net: nn.Module) -> Graph:
        """The layers of `net`, those that its output does not need among them."""
        self.names = module_names(net)
        try:
            self.trace(net)
        except (UnsupportedLayerError, ValueError) as error:
            if str(error).startswith("layer "):
                raise
            raise type(error)(f"{self._where(net)}: {error}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UnsupportedLayerError(f"{self._where(net)}: it cannot be followed, {reason}") from error
        if not isinstance(self.result, Traced):
            raise UnsupportedLayerError(
                f"{type(net).__name__}.forward() returns a {type(self.result).__name__}, not one tensor computed "
                "from its input; wrap it in a module that returns only the tensor to bound"
            )
        return self._graph(self.result.at)

    def _where(self, net: nn.Module) -> str:
        if not self.calls:
            return f"at the start of {type(net).__name__}.forward()"
        call = self.calls[-1][0]
        return f"after layer {call.name!r} (position {len(self.calls)}, {call.kind}) in {type(net).__name__}.forward()"

    def _graph(self, output: int) -> Graph:
        names, calls = {-1: INPUT}, []
        for call, places in self.calls:
            own = [call.name if i == places[-1] else f"{call.name}.{i - places[0]}" for i in places]
            names.update(zip(places, own, strict=True))
            calls.append(Call(call.name, call.kind, call.shape, tuple(own)))
        layers = [
            Layer(names[i], tuple(names[j] for j in o.inputs), o.op, o.shape, o.bias)
            for i, o in enumerate(self.operations[: output + 1])
        ]
        return Graph(self.in_shape, tuple(layers), tuple(calls))

    # interception by torch.fx

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        """fx would make a proxy for every argument of forward(); here the first is the input, the others default."""

        def run() -> None:
            self.result = self.call_module(self.root, None, (Traced(self, -1, self.in_shape),), {})

        return run, []

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val  # parameters stay tensors

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        """Only forward() itself: what hooks change is found when the results are compared."""
        name, kind = self.names.get(m, type(m).__name__.lower()), type(m).__name__
        if is_layer(m):
            return self._call(name or kind, kind, lambda: m.forward(*args, **kwargs))
        self.path.append(name)
        result = m.forward(*args, **kwargs)
        self.path.pop()
        return result

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **options: Any) -> Any:
        """A torch function, method or operator on a Traced."""
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        plain = name.strip("_")
        place = f"{self.path[-1]}.{plain}" if self.path and self.path[-1] else plain
        return self._call(place, name, lambda: self._function(target, name, plain, args, kwargs))

    def _function(self, target: Any, name: str, plain: str, args: tuple, kwargs: dict) -> Any:
        torchs = isinstance(target, str) or (target.__module__ or "torch").partition(".")[0] in ("torch", "_operator")
        if not torchs or plain not in FUNCTIONS:
            raise UnsupportedLayerError(f"{name}: {REFUSED.get(plain, NOT_SUPPORTED)}")
        underscored = name.endswith("_") and not name.endswith("__")
        in_place = kwargs.pop("inplace", False) or underscored or plain in IN_PLACE
        result = FUNCTIONS[plain](*args, **kwargs)
        if not in_place or not isinstance(args[0], Traced):
            return result
        args[0].at = result.at  # every variable that holds this tensor sees the change
        return args[0]

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise UnsupportedLayerError(REFUSED["gt"])

    # bookkeeping

    def join(self, op: Op, xs: Sequence[Traced], shape: Shape, bias: Tensor | None = None) -> Traced:
        """A new operation on the given ones."""
        bias = None if bias is None else bias.detach()
        self.operations.append(Operation(tuple(x.at for x in xs), op, shape, bias))
        return Traced(self, len(self.operations) - 1, shape)

    def _call(self, name: str, kind: str, function: Callable[[], Any]) -> Any:
        """One call of a layer or function; those that a torch.nn layer makes inside belong to it."""
        if self.inside_layer:
            return function()
        name, start = self._unique(name), len(self.operations)
        where = f"layer {name!r} (position {len(self.calls) + 1}, {kind})"
        self.inside_layer = True
        try:
            result = function()
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"{where}: {error}") from None
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None
        except Exception as error:
            raise UnsupportedLayerError(f"{where}: it is not supported ({type(error).__name__}: {error})") from error
        finally:
            self.inside_layer = False
        first = result[0] if isinstance(result, tuple) else result
        shape = first.unbatched if isinstance(first, Traced) else tuple(getattr(first, "shape", ()))
        self.calls.append((Call(name, kind, shape, ()), range(start, len(self.operations))))
        return result

    def _unique(self, name: str) -> str:
        """The name, with #2, #3 … where it is taken: a module used twice is two layers."""
        count, unique = 1, name
        while unique in self.taken:
            count += 1
            unique = f"{name}#{count}"
        self.taken.add(unique)
        return unique


IN_PLACE = ("iadd", "isub", "imul", "itruediv")


def is_layer(module: nn.Module) -> bool:
    """A layer of torch.nn, as opposed to a container or to a module that its user wrote."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, CONTAINERS)


def module_names(net: nn.Module) -> dict[nn.Module, str]:
    """The path of every module, those in a plain list `layers` among them."""
    names = {module: name for name, module in net.named_modules()}
    layers = getattr(net, "layers", None)
    if isinstance(layers, list | tuple):
        for i, module in enumerate(layers):
            for name, inner in module.named_modules() if isinstance(module, nn.Module) else ():
                names.setdefault(inner, f"layers.{i}.{name}".rstrip("."))
    return names
