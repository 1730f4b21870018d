"""What must hold of a module and of the graph that was read from it, before any bound is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.graph import Graph
from ..layers.layer import INPUT, Layer
from ..layers.linear_maps import CHUNK
from ..layers.rounding import affine_rounding
from .tracer import module_names

# How far the graph's output may be from the module's, relative to its largest element: rounding, no more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
REPEATS, SAFETY = 3, 4.0  # of the passes that measure rounding
SMALLEST, LARGEST = 1e-150, 1e150  # entries whose squares float64 holds


def module_dtype(net: nn.Module, x0: Tensor) -> torch.dtype:
    parameters = (p for m in module_names(net) for p in m.parameters(recurse=False) if p.is_floating_point())
    return next((p.dtype for p in parameters), x0.dtype)


def _is_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; in one pass that allocates nothing."""
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value))


def check_module(net: nn.Module, x0: Tensor) -> None:
    for name, module in ((name, module) for module, name in module_names(net).items()):
        if module.training:
            raise ValueError(f"net is in training mode (at {name or type(net).__name__!r}); call net.eval() first")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, value in ((f"{name}.{key}".lstrip("."), value) for key, value in tensors):
            if value.device != x0.device:
                raise ValueError(f"parameter {key!r} is on {value.device}, x0 on {x0.device}; the same is wanted")
            if value.is_floating_point() and value.numel() and not _is_finite(value):
                raise ValueError(f"parameter {key!r} contains NaN or infinite values")


def check_output(net: nn.Module, written: Graph, graph: Graph, x0: Tensor) -> None:
    """ValueError unless the graph computes what the module computes, at x0 (1, *input shape) and two random inputs.

    written: the graph layer by layer as the module has it, before folding, and so with its rounding.
    """
    noise = torch.randn(2, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
    scale = x0.abs().amax().clamp(min=1.0)
    x = torch.cat([x0, x0 + 0.1 * scale * noise[:1].to(x0), scale * noise[1:].to(x0)]).to(module_dtype(net, x0))
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
        if bool((apart <= tolerance * size + _usual_rounding(written, x)).all()):
            return
        difference = f"a relative difference of {(apart / size).max().item():.1g}"
    raise ValueError(
        f"{type(net).__name__} does not compute what its layers say ({difference} in the output): a hook that changes "
        "values, randomness, a result that depends on the batch size, or a tensor changed in place through a view?"
    )


def _usual_rounding(graph: Graph, x: Tensor) -> Tensor:
    """How far rounding in the dtype of x may well move any output, (B,): to compare with, no bound rests on it.

    The pass is repeated in float64 with every sum moved by as much as rounding may have moved it, up or down at random.
    """
    generator = torch.Generator().manual_seed(0)
    coarser = torch.finfo(x.dtype).eps / torch.finfo(torch.float64).eps
    values = {INPUT: x.double().repeat(1 + REPEATS, *(1,) * (x.dim() - 1))}
    for stage in graph.stages:
        read_by = {name: values[name] for name in stage.sources}
        y = stage.affine(read_by)
        signs = 2.0 * torch.randint(2, y.shape, generator=generator).to(y) - 1.0
        signs[: len(x)] = 0.0
        y = y + signs * coarser * affine_rounding(stage, read_by)
        if stage.reader is not None:
            name, op = stage.nonlinear
            values[name] = op.apply(y)
    passes = y.reshape(1 + REPEATS, len(x), -1)
    return SAFETY * (passes - passes[0]).abs().amax((0, 2))


def check_sizes(graph: Graph) -> None:
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
