"""Running a module once on a symbol in place of its input, to see which functions it calls on what.

torch.fx provides the interception: its proxies catch torch functions, methods and operators, its tracer module calls.
Its own graph is not used. Each call is turned into operations of our graph at once (function_table.py), so that the
shapes are known while the module's code runs: `x.view(x.size(0), -1)`, `B, C, H, W = x.shape` and `if x.dim() > 2` all
work. Parameters, buffers and constants are ordinary tensors there, and what is computed from them alone is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..errors import UnsupportedLayerError, one_line
from ..layers.graph import Call, Graph
from ..layers.layer import INPUT, Layer
from ..layers.linear_maps import Shape
from .function_table import FUNCTIONS, NOT_SUPPORTED, REFUSED
from .modules import is_layer, is_plain, module_names, wrapped
from .symbol import BATCHES, Recording, Traced


class Reader(Recording):
    """Collects the operations of a module, call by call."""

    def __init__(self, in_shape: Shape, dtype: torch.dtype, device: torch.device, batch: int = BATCHES[0]) -> None:
        super().__init__(dtype, device, batch)
        self.in_shape = in_shape
        self.calls: list[tuple[Call, range]] = []
        self.names: dict[nn.Module, str] = {}
        self.taken = {INPUT}
        self.path: list[str] = []
        self.inside_layer = False

    def read(self, net: nn.Module) -> Graph:
        """The layers of `net`, those that its output does not need among them."""
        self.names = module_names(net)
        try:
            if is_plain(net):
                self.result = self.call_module(net, None, (Traced(self, -1, self.in_shape),), {})
            else:
                self.trace(net)
        except (UnsupportedLayerError, ValueError) as error:
            if str(error).startswith("layer "):
                raise
            raise type(error)(f"{self._where(net)}: {one_line(error)}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
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
            Layer(names[i], tuple(names[j] for j in o.inputs), o.op, o.shape, o.bias, o.bias_sum)
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
        """Only forward() itself: hooks are run on tensors (comparison.py)."""
        inner = wrapped(m)
        if inner is not None:
            return inner(*args, **kwargs)
        name, kind = self.names.get(m, type(m).__name__.lower()), type(m).__name__
        if is_layer(m):
            return self._call(name or kind, kind, lambda: m.forward(*args, **kwargs))
        self.path.append(name)
        result = self._in_turn(m, *args, **kwargs) if type(m) is nn.Sequential else m.forward(*args, **kwargs)
        self.path.pop()
        return result

    def _in_turn(self, chain: nn.Sequential, input: Any) -> Any:
        """nn.Sequential.forward() without torch.fx, whose interception takes as long to set up as all the rest."""
        for module in chain:
            input = self.call_module(module, None, (input,), {})
        return input

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
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        underscored = name.endswith("_") and not name.endswith("__")
        in_place = kwargs.pop("inplace", False) or underscored or plain in IN_PLACE
        result = FUNCTIONS[plain](*args, **kwargs)
        if not in_place or not isinstance(args[0], Traced):
            return result
        x = args[0]
        if result.unbatched != x.unbatched and plain not in RESHAPING:
            raise ValueError(f"{name}: a result of shape {result.unbatched} in the place of {x.unbatched}")
        x.at, x.unbatched = result.at, result.unbatched  # every variable that holds this tensor sees the change
        return x

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise UnsupportedLayerError(REFUSED["gt"])

    # bookkeeping

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
RESHAPING = ("unsqueeze", "squeeze", "transpose", "swapaxes", "swapdims", "t")  # in place, too
