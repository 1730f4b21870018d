"""A graph without what its output does not need, and with diagonal maps folded into the affine layers before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import Tensor

from ..layers.graph import Graph
from ..layers.layer import Layer
from ..layers.linear_maps import Convolution, Dense, Diagonal, LinearMap, size


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
        bias_sum = scale.double().abs() * before.bias_size.to(scale).double() + layer.bias_size.to(scale).double()
        done[before.name] = replace(before, op=weighted, bias=bias, bias_sum=bias_sum)
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
