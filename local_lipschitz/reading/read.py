"""An nn.Module as a graph of named layers; what the bounds cannot treat is refused by name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..layers.graph import Graph
from ..layers.layer import Layer
from ..layers.rearranging import Reshape
from .checks import check_adjoints, check_module, check_sizes
from .comparison import check_numbers, check_output, points
from .folding import fold, prune
from .hooks import run
from .modules import eager, in_float64, is_plain, module_dtype, module_names, runnable, setting_weights, unchanged
from .smooth_functions import check_end
from .symbol import BATCHES
from .tracer import Reader

FULL = (torch.float32, torch.float64)


@torch.no_grad()
def read(net: nn.Module | Graph, x0: Tensor) -> Graph:
    """The layers of `net` for inputs like x0 (B, *input shape).

    net: an nn.Sequential, a module with a list `layers` and no forward(), or any module whose forward() computes one
    tensor from one by supported layers, torch functions, methods and operators (docs/layers.md); or the graph that was
    read from one for such inputs, which is returned as it is: a search, which asks for many bounds, reads once.

    What torch.compile, nn.DataParallel or nn.parallel.DistributedDataParallel wraps is read in place of the wrapper.

    Guaranteed: the graph computes what the module computes, checked on x0's first input and on random ones, to the
    rounding of the module's dtype, and each linear map has its own adjoint. The module is run before it is read, so
    that weights which forward pre-hooks set (weight_norm, spectral_norm, pruning) are those of its next call; they must
    be the same after another call, and no hook may change what passes through its module. An output of shape (B,) is
    one output, (B, 1). Batch norm is folded into the affine layer before it. Parameters are referred to, not copied.
    The module is left as it was: mode, parameters, buffers, attributes and hooks.
    Raises UnsupportedLayerError (name, position, type, what to do) for a layer that is not supported; ValueError for a
    module in training mode, NaN or infinite parameters or constants (a division by zero), ones below 1e-150 or above
    1e150 (in float32 as products of layers between which nothing is nonlinear), parameters on another device than x0,
    an input of the wrong shape, an exported program, or a module that computes something else than its layers say
    (hooks, by name, changed inputs, randomness).
    """
    if isinstance(net, Graph):
        return net
    net = runnable(net)
    check_module(net, x0)
    dtype = module_dtype(net, x0)
    x = points(x0, dtype)
    with unchanged(net), eager():
        try:
            first = run(net, x[:1])  # sets the weights that hooks compute, too
        except Exception as error:
            _trace(net, x0, dtype, BATCHES[0])  # names the layer at fault, where it is one
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{type(net).__name__} cannot be run at x0: {str(error).splitlines()[0]}") from error
        written = _trace(net, x0, dtype, BATCHES[0])
        check_end(written)
        rest = run(net, x[1:])
        if not is_plain(net):
            check_numbers(net, written, _trace(net, x0, dtype, BATCHES[1]))
        graph = fold(written)
        check_output(net, written, graph, x, [first, rest])
    check_adjoints(graph, x0.device)
    check_sizes(graph)
    return graph


def _trace(net: nn.Module, x0: Tensor, dtype: torch.dtype, batch: int) -> Graph:
    """The layers that the output needs, each as its user wrote it."""
    with in_float64(setting_weights(net) if dtype is torch.float32 else ()):
        _set_weights(net, x0)
        return _one_output(prune(Reader(tuple(x0.shape[1:]), dtype, x0.device, batch).read(net)))


def _set_weights(net: nn.Module, x0: Tensor) -> None:
    """Lets hooks set weights from their modules' float64 parameters, for float32 has rounded what they compute.

    A module that cannot be run in float64 keeps the weights of its last call.
    """
    if any(module._forward_pre_hooks for module in module_names(net)) and module_dtype(net, x0) in FULL:
        with in_float64(module_names(net)), suppress(Exception):
            run(net, x0[:1].double())


def _one_output(graph: Graph) -> Graph:
    """A (B,) output is one output, (B, 1)."""
    if 0 in graph.out_shape:
        raise ValueError(f"the output has shape (B, {', '.join(map(str, graph.out_shape))}): there is nothing to bound")
    if graph.out_shape:
        return graph
    before = graph.layers[-1].name
    return replace(graph, layers=(*graph.layers, Layer(f"{before} as (B, 1)", (before,), Reshape((), (1,)), (1,))))
