"""An nn.Module as a graph of named layers; what the bounds cannot treat is refused by name."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from ..layers.graph import Graph, Layer
from ..layers.linear_maps import CHUNK, Convolution, Dense, Diagonal, LinearMap, size
from ..layers.rounding import output
from .tracer import Reader, module_names

__all__ = ["UnsupportedLayerError", "read"]

# How far the graph's output may be from the module's, relative to its largest element: rounding, no more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
SMALLEST, LARGEST = 1e-150, 1e150  # entries whose squares float64 holds


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
    _check_module(net, x0)
    with _unchanged(net):
        reader = Reader(tuple(x0.shape[1:]), _dtype(net, x0), x0.device)
        written = prune(reader.read(net))
        graph = fold(written)
        _check_output(net, written, graph, x0[:1])
    if _dtype(net, x0) is torch.float64:  # all that float32 holds is far from these ends
        _check_sizes(graph)
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


def _dtype(net: nn.Module, x0: Tensor) -> torch.dtype:
    parameters = (p for m in module_names(net) for p in m.parameters(recurse=False) if p.is_floating_point())
    return next((p.dtype for p in parameters), x0.dtype)


def _is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; in one pass that allocates nothing."""
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value))


def _check_module(net: nn.Module, x0: Tensor) -> None:
    for name, module in ((name, module) for module, name in module_names(net).items()):
        if module.training:
            raise ValueError(f"net is in training mode (at {name or type(net).__name__!r}); call net.eval() first")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, value in ((f"{name}.{key}".lstrip("."), value) for key, value in tensors):
            if value.device != x0.device:
                raise ValueError(f"parameter {key!r} is on {value.device}, x0 on {x0.device}; the same is wanted")
            if value.is_floating_point() and value.numel() and not _is_finite(value):
                raise ValueError(f"parameter {key!r} contains NaN or infinite values")


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


def _check_output(net: nn.Module, written: Graph, graph: Graph, x0: Tensor) -> None:
    """ValueError unless the graph computes what the module computes, at x0 (1, *input shape) and two random inputs.

    written: the graph layer by layer as the module has it, before folding, and so with its rounding.
    """
    noise = torch.randn(2, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
    scale = x0.abs().amax().clamp(min=1.0)
    x = torch.cat([x0, x0 + 0.1 * scale * noise[:1].to(x0), scale * noise[1:].to(x0)]).to(_dtype(net, x0))
    ours = graph.forward(x.clone())  # a clone, since a network may work in place
    theirs = net(x.clone())
    difference = "another shape"
    if theirs.shape == ours.shape:
        tolerance = TOLERANCE.get(x.dtype, 1e-3)
        apart = (theirs - ours).abs().flatten(1).amax(1).double()
        size = theirs.abs().flatten(1).amax(1).double().clamp(min=1e-6)
        if bool((apart <= tolerance * size).all()):
            return
        # where large numbers cancel, outputs may be mostly rounding
        if bool((apart <= tolerance * size + output(written, x, x.dtype)[1]).all()):
            return
        difference = f"a relative difference of {(apart / size).max().item():.1g}"
    raise ValueError(
        f"{type(net).__name__} does not compute what its layers say ({difference} in the output): a hook that changes "
        "values, randomness, a result that depends on the batch size, or a tensor changed in place through a view?"
    )


def _check_sizes(graph: Graph) -> None:
    """ValueError where squares of a stage's entries or biases vanish or overflow: norms would be 0 or inf."""
    for stage in graph.stages:
        ends = dict.fromkeys(stage.sources, (1.0, 1.0, 0.0))  # of products of entries, and of biases, up to a layer
        for layer in stage.layers:
            before = [ends[name] for name in layer.inputs]
            smallest, largest = _ends(layer)
            offset = max(e[2] for e in before) * largest
            if layer.bias is not None:
                offset = max(offset, float(layer.bias.abs().amax()))
            smallest, largest = smallest * min(e[0] for e in before), largest * max(e[1] for e in before)
            top = max(largest, offset)
            if smallest < SMALLEST or top > LARGEST:
                raise ValueError(
                    f"the parameters of layer {layer.name!r} hold or lead to numbers of size {smallest:.0e} to "
                    f"{top:.0e}; {SMALLEST:.0e} to {LARGEST:.0e} is wanted: scale them by powers of two"
                )
            ends[layer.name] = smallest, largest, offset


def _ends(layer: Layer) -> tuple[float, float]:
    """The smallest and the largest size of the non-zero entries of a layer's linear map, and of 1."""
    smallest, largest = [1.0], [1.0]

    def note(a: Tensor) -> Tensor:
        for part in a.flatten().split(CHUNK) if a.numel() else ():
            size = part.abs()
            smallest.append(float(torch.where(size > 0, size, 1.0).amin()))
            largest.append(float(size.amax()))
        return a

    layer.entries(note)
    return min(smallest), max(largest)


def prune(graph: Graph) -> Graph:
    """Without the layers that the output does not need."""
    needed = {graph.layers[-1].name} if graph.layers else set()
    for layer in reversed(graph.layers):
        if layer.name in needed:
            needed.update(layer.inputs)
    calls = [
        replace(call, layers=kept, note="" if kept else "not used by the output" if call.layers else "changes nothing")
        for call, kept in ((call, tuple(name for name in call.layers if name in needed)) for call in graph.calls)
    ]
    layers = tuple(layer for layer in graph.layers if layer.name in needed)
    return Graph(graph.in_shape, layers, tuple(calls))


def fold(graph: Graph) -> Graph:
    """With every diagonal map that alone reads a matrix or convolution folded into it, in float64: batch norm."""
    readers = Counter(name for layer in graph.layers for name in layer.inputs)
    done: dict[str, Layer] = {}
    into: dict[str, str] = {}  # folded layer -> what stands for it
    for layer in graph.layers:
        layer = replace(layer, inputs=tuple(into.get(name, name) for name in layer.inputs))
        before = done.get(layer.inputs[0])
        scale = layer.op.scale if isinstance(layer.op, Diagonal) else None
        weighted = None if scale is None or before is None else scaled_rows(before.op, scale)
        if before is None or scale is None or weighted is None or readers[before.name] > 1:
            done[layer.name] = layer
            continue
        bias = None if before.bias is None else scale.double() * before.bias.double()
        bias = layer.bias if bias is None else bias if layer.bias is None else bias + layer.bias.double()
        done[before.name] = replace(before, op=weighted, bias=bias)
        readers[before.name] = readers[layer.name]
        into[layer.name] = before.name
    calls = []
    for call in graph.calls:
        kept = tuple(name for name in call.layers if name not in into)
        note = f"folded into {into[call.layers[-1]]}" if call.layers and not kept else call.note
        calls.append(replace(call, layers=kept, note=note))
    return Graph(graph.in_shape, tuple(done.values()), tuple(calls))


def scaled_rows(op: object, scale: Tensor) -> LinearMap | None:
    """diag(scale)·A as a map of A's own kind, in float64; None where that is not possible."""
    if isinstance(op, Dense) and len(op.in_shape) == 1:
        return replace(op, weight=op.weight.double() * scale.double().expand(op.out_shape)[:, None])
    if not isinstance(op, Convolution) or scale.numel() not in (1, op.out_shape[0]) or size(scale.shape[1:]) != 1:
        return None
    scale = scale.double().reshape(-1).expand(op.out_shape[0])
    spatial = (1,) * (op.weight.dim() - 2)
    if not op.transposed:
        return replace(op, weight=op.weight.double() * scale.reshape(-1, 1, *spatial))
    grouped = op.weight.double().unflatten(0, (op.groups, -1))  # (groups, in / groups, out / groups, *kernel)
    return replace(op, weight=(grouped * scale.reshape(op.groups, 1, -1, *spatial)).flatten(0, 1))
