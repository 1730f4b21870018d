"""The module run for real beside the graph that was read from it: numbers and outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.activations import RELU, Activation, PiecewiseLinear
from ..layers.graph import Graph
from ..layers.layer import INPUT, Layer
from ..layers.linear_maps import LinearMap, size
from ..layers.max_pooling import MaxPool
from ..layers.rounding import sizes
from ..layers.smooth_functions import Softplus
from ..layers.stage import Stage
from .hooks import equal, run
from .modules import in_float64, module_names
from .symbol import numbers

REPEATS, TRIES, SAFETY = 3, 64, 2.0  # of the passes that measure what rounding may change
NEAR = 32.0  # roundings of the largest output: no finer comparison can tell more
ACCUMULATOR = 2.0**-24  # half precision is summed in float32
PHI, CANCELS = 16.0, 8.0  # roundings in one value of an activation (torch's are within 5), of y's up to this size
CONSTANT = 2.0  # roundings of a stage's largest value where only constants such as a slope of 0.1 are rounded

Rounding = Callable[[Stage, dict[str, Tensor], Tensor], Tensor]  # of (stage, its values, its y)


def points(x0: Tensor, dtype: torch.dtype) -> Tensor:
    """Where module and graph are compared: x0's first input, one near it and a random one, (3, *input shape)."""
    noise = torch.randn(2, *x0.shape[1:], dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0))
    scale = x0[:1].abs().amax().clamp(min=1.0)
    return torch.cat([x0[:1], x0[:1] + 0.1 * scale * noise[:1].to(x0), scale * noise[1:].to(x0)]).to(dtype)


def check_numbers(net: nn.Module, first: Graph, second: Graph) -> None:
    """ValueError unless two readings of `net`, before and after it was run again, hold the same numbers."""

    def kept(a: Layer, b: Layer) -> bool:
        return a.name == b.name and equal(numbers(a.op, a.bias), numbers(b.op, b.bias))

    changed = [a.name for a, b in zip(first.layers, second.layers, strict=False) if not kept(a, b)]
    if changed or len(first.layers) != len(second.layers):
        at = f"layer {changed[0]!r}" if changed else "the output"
        raise ValueError(
            f"{type(net).__name__} does not compute what its layers say: the numbers of {at} are others after another "
            "call (randomness, or a hook or forward() that sets them by its input, the batch size or the calls so far)"
        )


def check_output(net: nn.Module, written: Graph, graph: Graph, x: Tensor, outputs: list[Any]) -> None:
    """ValueError unless `outputs`, the module's at parts of x in its dtype, are those of the graph but for rounding.

    written: the graph layer by layer as the module has it, before folding, and so with its rounding. Where that of
    float32 may hide a difference, the module is run in float64, too, if it can be.
    """
    difference = "another shape"
    numbers = [y.numel() if isinstance(y, Tensor) else 0 for y in outputs]
    if sum(numbers) == len(x) * size(graph.out_shape) and all(n % size(graph.out_shape) == 0 for n in numbers):
        theirs = torch.cat([y.reshape(-1, *graph.out_shape) for y in outputs])
        if not bool(theirs.isfinite().all()):
            raise ValueError(
                f"{type(net).__name__} gives NaN or infinite outputs, at x0 or at random inputs of its size: "
                f"a division by zero, or numbers too large for {x.dtype}?"
            )
        apart = _size(theirs.double() - graph.forward(x.clone()).double())
        large = _size(theirs.double())
        near = (NEAR if torch.finfo(x.dtype).eps < 1e-6 else 1.0) * torch.finfo(x.dtype).eps
        far = [i for i in range(len(x)) if not apart[i] <= near * large[i]]
        if all(_alike(net, written, graph, x[i : i + 1], theirs[i : i + 1]) for i in far):
            return
        difference = f"a relative difference of {(apart / large).max().item():.1g}"
    raise ValueError(
        f"{type(net).__name__} does not compute what its layers say ({difference} in the output): a hook that changes "
        "values, randomness, a result that depends on the batch size, a lower precision inside forward(), or a tensor "
        "changed in place through a view?"
    )


def _size(values: Tensor) -> Tensor:
    return values.abs().flatten(1).amax(1)


def _alike(net: nn.Module, written: Graph, graph: Graph, x: Tensor, theirs: Tensor) -> bool:
    """Whether the module's output at x (1, ...) is that of the graph, but for the rounding of x's dtype.

    That of a deep network in float32 hides differences which the module shows when it is run in float64.
    """
    if not _only_rounding(written, x, [theirs, graph.forward(x.double())], x.dtype, _of_sums(x.dtype)):
        return False
    if x.dtype is not torch.float32:
        return True
    sharper = None
    with in_float64(module_names(net)), suppress(Exception):  # code that casts to a dtype by name cannot be run
        sharper = run(net, x.double())
    if not isinstance(sharper, Tensor) or sharper.dtype is not torch.float64:
        return True
    return _only_rounding(written, x, [sharper.reshape(theirs.shape)], torch.float64, _of_constants)


def _only_rounding(written: Graph, x: Tensor, outputs: list[Tensor], dtype: torch.dtype, rounding: Rounding) -> bool:
    """Whether these outputs at x (1, ...) are those of the graph, but for `rounding` and that of activations in dtype.

    The graph is computed in float64, and again with every sum and every activation moved by as much as rounding may
    have moved it: all upwards, and up or down at random. Where sums cancel at a knot few of these passes move the
    output at all, so more of them are tried before the answer is no.
    """
    generator = torch.Generator().manual_seed(0)
    tolerance = 0.0
    for _ in range(TRIES):
        y = _moved(written, x, dtype, rounding, generator)
        tolerance = max(tolerance, SAFETY * float((y - y[:1]).abs().amax()))
        if all(bool(((other.double() - y[:1]).abs() <= tolerance).all()) for other in outputs):
            return True
    return False


def _moved(written: Graph, x: Tensor, dtype: torch.dtype, rounding: Rounding, generator: torch.Generator) -> Tensor:
    """The graph's output at x (1, ...), and REPEATS that rounding may make of it."""

    def moved(y: Tensor, by: Tensor) -> Tensor:
        signs = 2.0 * torch.randint(2, y.shape, generator=generator, device="cpu").to(y) - 1.0
        signs[0], signs[1] = 0.0, 1.0
        return y + signs * by

    values = {INPUT: x.double().repeat(1 + REPEATS, *(1,) * (x.dim() - 1))}
    for stage in written.stages:
        read_by = {name: values[name] for name in stage.sources}
        y = stage.affine(read_by)
        y = moved(y, rounding(stage, read_by, y))
        if stage.reader is not None:
            name, op = stage.nonlinear
            z = op.apply(y)
            values[name] = z if isinstance(op, MaxPool) or op is RELU else moved(z, _of_activation(op, y, z, dtype))
    return y


def _of_sums(dtype: torch.dtype) -> Rounding:
    """What rounding may change in y = stage.affine(values): (u + Σ_k 2(n_k u' + u))(|A||x| + |b|).

    n_k the terms summed in layer k, u the unit roundoff and u' that of the numbers in which sums are held; a layer
    rounds its sum and what it adds to it.
    """
    info = torch.finfo(dtype)
    u = info.eps / 2.0

    def rounding(stage: Stage, values: dict[str, Tensor], y: Tensor) -> Tensor:
        terms = [layer.op.terms if isinstance(layer.op, LinearMap) else len(layer.inputs) for layer in stage.layers]
        gamma = u + sum(2.0 * (n * min(u, ACCUMULATOR) + u) for n in terms)
        summed = sizes(stage, {name: value.abs() for name, value in values.items()})
        return gamma * torch.maximum(summed, y.abs()) + info.tiny

    return rounding


def _of_constants(stage: Stage, values: dict[str, Tensor], y: Tensor) -> Tensor:
    """What a few constants rounded to float32 may change in y, where the sums are those of float64."""
    return _of_sums(torch.float64)(stage, values, y) + CONSTANT * ACCUMULATOR * y.abs().amax()


def _of_activation(op: Activation, y: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding may change in z = φ(y), by whatever formula: y − tanh(y) has no digit of a small y's z left.

    Far away from 0 and from all knots no formula loses more than digits of z.
    """
    info, cancels = torch.finfo(dtype), y.abs().clamp(max=CANCELS)
    if isinstance(op, PiecewiseLinear):
        knots = [op.cast(knot, y).abs() for knot in op.knots]
        cancels = torch.minimum(y.abs(), reduce(torch.maximum, knots))
    off = PHI * info.eps / 2.0 * torch.maximum(cancels, z.abs()) + info.tiny
    return torch.where(z - y <= 1.01 * op.beyond, off + op.beyond, off) if isinstance(op, Softplus) else off
