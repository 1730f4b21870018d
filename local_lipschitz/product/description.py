"""What the package makes of a network, as a table to read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.activations import Activation
from ..layers.graph import Call
from ..layers.layer import Concat, Layer, Sum
from ..layers.linear_maps import Diagonal, LinearMap
from ..layers.max_pooling import MaxPool
from ..precision import no_tf32
from ..printing import Text
from ..reading.read import read
from .bound import global_bound

HEADER = ("#", "layer", "type", "output", "bounded by", "factor")


@no_tf32()
def describe(net: nn.Module, x0: Tensor) -> Text:
    """A table of the layers of `net` for inputs like x0 (B, *input shape): one row for every layer that is called.

    Columns: position (the one that error messages name), layer, type, output shape without batch, how it is bounded,
    and the factor by which it enters `global_bound`: the spectral norm of the affine layers up to the next nonlinear
    one, in the row of the last of them; √windows for max pooling. Where branches meet, the factor bounds all of them
    together. The last line is their product, or the global bound itself where there are branches.
    Raises as `global_bound` does: UnsupportedLayerError for the first layer that is not supported.
    """
    graph = read(net, x0)
    bound = global_bound(net, x0)
    factors: dict[str, list[str]] = {}
    for name, values in bound.per_layer:
        factors.setdefault(name, []).append(f"{values[0].item():.4g}")
    rows = [HEADER]
    for position, call in enumerate(graph.calls, start=1):
        parts = [layer for layer in graph.layers if layer.name in call.layers]
        factor = ", ".join(text for part in parts for text in factors.get(part.name, []))
        output = "×".join(str(n) for n in call.shape) or "one number"
        rows.append((str(position), call.name, call.kind, output, _how(call, parts), factor))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "─" * max(len(line) for line in lines))
    kinds = f"{len(graph.layers)} layers in {len(graph.stages)} stages"
    return Text("\n".join([*lines, f"global bound {bound.value[0].item():.4g}; {kinds}"]))


def _how(call: Call, layers: list[Layer]) -> str:
    """The words for what became of one call; the layers are its own."""
    words = [word for word in (_word(layer) for layer in layers) if word]
    if not layers:
        return call.note
    return ", ".join(dict.fromkeys(words)) or "moves values"


def _word(layer: Layer) -> str:
    op = layer.op
    moves = isinstance(op, LinearMap) and op.one_per_row and op.one_per_column
    if isinstance(op, Diagonal) or (isinstance(op, LinearMap) and not moves):
        return "spectral norm"
    if isinstance(op, Sum):
        return "triangle inequality"
    if isinstance(op, Concat):
        return "joins"
    if isinstance(op, MaxPool):
        return f"√{op.overlap}, windows that overlap" if op.overlap > 1 else "windows do not overlap"
    if isinstance(op, Activation):
        return f"secant slopes, up to {op.steepest_slope(torch.zeros(1, *layer.shape)).max().item():.4g}"
    return "adds a constant" if layer.bias is not None else ""
