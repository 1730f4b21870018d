"""An nn.Module as a graph of named layers; what the bounds cannot treat is refused by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from ..layers.graph import Graph
from .checks import check_module, check_output, check_sizes, module_dtype
from .folding import fold, prune
from .tracer import Reader, module_names


@torch.no_grad()
def read(net: nn.Module, x0: Tensor) -> Graph:
    """The layers of `net` for inputs like x0 (B, *input shape).

    net: an nn.Sequential, a module with a list `layers` and no forward(), or any module whose forward() computes one
    tensor from one by supported layers, torch functions, methods and operators (README: the table of layers).

    Guaranteed: the graph computes what the module computes, checked on x0's first input and on random ones, to
    rounding. Batch norm is folded into the affine layer before it. Parameters are referred to, not copied. The module
    is left as it was: mode, parameters, buffers, attributes and hooks.
    Raises UnsupportedLayerError (name, position, type, what to do) for a layer that is not supported; ValueError for a
    module in training mode, NaN or infinite parameters, float64 ones below 1e-150 or above 1e150 (also as products of
    layers between which nothing is nonlinear), parameters on another device than x0, an input of the wrong shape, or a
    module that computes something else than its layers say (hooks, changed inputs, randomness).
    """
    net = _runnable(net)
    check_module(net, x0)
    with _unchanged(net):
        reader = Reader(tuple(x0.shape[1:]), module_dtype(net, x0), x0.device)
        written = prune(reader.read(net))
        graph = fold(written)
        check_output(net, written, graph, x0[:1])
    if module_dtype(net, x0) is torch.float64:  # all that float32 holds is far from these ends
        check_sizes(graph)
    return graph


def _runnable(net: nn.Module) -> nn.Module:
    """The module itself; a chain of its `layers` if that is all it has; what torch.compile wraps."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net is a {type(net).__name__}; a torch.nn.Module is wanted")
    if isinstance(net, torch.jit.ScriptModule):
        raise UnsupportedLayerError("net is a TorchScript module and hides its layers; give the one it was made from")
    net = getattr(net, "_orig_mod", net)
    layers = getattr(net, "layers", None)
    if type(net).forward is nn.Module.forward and isinstance(layers, nn.Sequential | nn.ModuleList | list | tuple):
        # a new container starts in training mode; only the layers have one to check
        inner = nn.Sequential(*layers)
        inner.training = False
        chain = nn.Sequential(OrderedDict(layers=inner))
        chain.training = False
        return chain
    return net


@contextmanager
def _unchanged(net: nn.Module) -> Iterator[None]:
    """Puts back what a forward() may store in its module: attributes, what its containers hold, values of buffers."""
    kept = []
    for attributes in (vars(module) for module in module_names(net)):
        inner = [(value, value.copy()) for value in attributes.values() if isinstance(value, dict | list | set)]
        kept.append((attributes, attributes.copy(), inner))
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for attributes, before, inner in kept:
            for container, content in [(attributes, before), *inner]:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for buffer, value in buffers:
            buffer.copy_(value)
