"""What must hold of the numbers of a module and of the graph that was read from it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..layers.graph import Graph
from ..layers.layer import Layer
from ..layers.linear_maps import CHUNK, Convolution, Dense, LinearMap, keep
from ..layers.stage import Stage
from ..numerics import of_computed
from .modules import module_names
from .symbol import is_finite

CHANNELS = 8  # of a convolution, whose adjoint is checked
ADJOINT = 16  # roundings beside those of the sums
THREE = 3  # factors of 1e-45 or 1e38
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
SMALLEST, LARGEST = 1e-150, 1e150  # entries whose squares float64 holds


def check_module(net: nn.Module, x0: Tensor) -> None:
    """ValueError unless `net` is in eval mode, with finite parameters and buffers on x0's device."""
    for name, module in ((name, module) for module, name in module_names(net).items()):
        if module.training:
            raise ValueError(f"net is in training mode (at {name or type(net).__name__!r}); call net.eval() first")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, value in ((f"{name}.{key}".lstrip("."), value) for key, value in tensors):
            if isinstance(value, UninitializedParameter | UninitializedBuffer):
                raise ValueError(f"parameter {key!r} is not initialised yet; run net once before")
            if value.device != x0.device:
                raise ValueError(f"parameter {key!r} is on {value.device}, x0 on {x0.device}; the same is wanted")
            if value.layout != torch.strided or value.dtype not in DTYPES:
                raise ValueError(
                    f"parameter {key!r} is a {value.layout} tensor of {value.dtype}; a dense one of real numbers is "
                    "wanted, as of to_dense() or float()"
                )
            if not is_finite(value):
                raise ValueError(f"parameter {key!r} contains NaN or infinite values")


def check_adjoints(graph: Graph, device: torch.device) -> None:
    """ValueError unless ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ to rounding, in float64, for each linear map but plain matrix products.

    For random x and y, so that no entry that one of the two lacks, or has twice, goes unseen.
    """
    generator = torch.Generator().manual_seed(0)
    for layer in graph.layers:
        op = _some_channels(layer.op) if isinstance(layer.op, Convolution) else layer.op
        if not isinstance(op, LinearMap) or isinstance(op, Dense):
            continue
        x, y = (
            torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(device)
            for shape in (op.in_shape, op.out_shape)
        )
        products = op.apply_changed(x, keep) * y
        forwards, backwards = products.sum(), (op.to(torch.float64).adjoint(y) * x).sum()
        off, unit = float((forwards - backwards).abs()), of_computed(2 * op.terms + x.numel() + y.numel() + ADJOINT)
        if off <= unit * float(products.abs().sum()):  # at most what is allowed
            continue
        if not off <= unit * float((op.apply_changed(x.abs(), Tensor.abs_) * y.abs()).sum()):
            raise ValueError(
                f"layer {layer.name!r}: its map and the adjoint of it differ, {float(forwards):.17g} and "
                f"{float(backwards):.17g} for the same x and y; please report this network"
            )


def _some_channels(op: Convolution) -> Convolution:
    """A part of a large convolution: what may be wrong of it, the elements that a kernel meets, its channels share."""
    if op.groups > 1:
        return op
    weight = op.weight[:CHANNELS, :CHANNELS]
    read, given = weight.shape[:2] if op.transposed else (weight.shape[1], weight.shape[0])
    shapes = (read, *op.in_shape[1:]), (given, *op.out_shape[1:])
    return replace(op, weight=weight, in_shape=shapes[0], out_shape=shapes[1])


def check_sizes(graph: Graph) -> None:
    """ValueError where squares of a stage's entries or biases vanish or overflow: norms would be 0 or inf."""
    for stage in graph.stages:
        if _far_from_the_ends(stage):
            continue
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


def _far_from_the_ends(stage: Stage) -> bool:
    """Whether products of entries cannot vanish or overflow in float64: those of THREE layers of float32 numbers."""
    dtypes: list[torch.dtype] = []

    def note(a: Tensor) -> Tensor:
        dtypes.append(a.dtype)
        return a

    stage.entries(note)
    return len(dtypes) <= THREE and torch.float64 not in dtypes


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
