"""The module run for real beside the graph that was read from it: hooks, numbers and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks

from ..layers.graph import Graph
from ..layers.layer import INPUT, Layer
from ..layers.linear_maps import LinearMap
from ..layers.rounding import sizes
from ..layers.stage import Stage
from .modules import module_names
from .symbol import numbers

REPEATS, SAFETY = 3, 2.0  # of the passes that measure what rounding may change
NEAR = 32.0  # roundings of the largest output: no finer comparison can tell more
ACCUMULATOR = 2.0**-24  # half precision is summed in float32


def points(x0: Tensor, dtype: torch.dtype) -> Tensor:
    """Where module and graph are compared: x0's first input, one near it and a random one, (3, *input shape)."""
    noise = torch.randn(2, *x0.shape[1:], dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(0))
    scale = x0[:1].abs().amax().clamp(min=1.0)
    return torch.cat([x0[:1], x0[:1] + 0.1 * scale * noise[:1].to(x0), scale * noise[1:].to(x0)]).to(dtype)


def run(net: nn.Module, x: Tensor) -> Any:
    """The output of the module with its hooks, which may set weights; ValueError, naming the hook, for other changes.

    x is not changed, even by a module that works in place.
    """
    with _watched_hooks(net) as changing:
        y = net(x.clone())
    if changing:
        where, hook = changing[0]
        raise ValueError(
            f"{type(net).__name__} does not compute what its layers say (at {where}): a hook that changes values, "
            f"{hook}; remove it, or write what it does into forward()"
        )
    return y


@contextmanager
def _watched_hooks(net: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Inside, (place, name) of every hook that changes what passes through its module is noted in the list."""
    changing: list[tuple[str, str]] = []
    kinds: list[tuple[str, Any, bool]] = [
        ("every module", torch_hooks._global_forward_pre_hooks, True),
        ("every module", torch_hooks._global_forward_hooks, False),
    ]
    for module, name in module_names(net).items():
        where = f"layer {name!r}, {type(module).__name__}" if name else type(module).__name__
        kinds += [(where, module._forward_pre_hooks, True), (where, module._forward_hooks, False)]
    before = [(hooks, dict(hooks)) for _, hooks, _ in kinds]
    for where, hooks, first in kinds:
        for key, hook in hooks.items():
            hooks[key] = _watched(hook, first, where, changing)
    try:
        yield changing
    finally:
        for hooks, content in before:
            hooks.clear()
            hooks.update(content)


def _watched(hook: Callable, first: bool, where: str, changing: list[tuple[str, str]]) -> Callable:
    """The hook, with a note where it changes its module's arguments (a `first` one, before forward()) or output."""

    def run_hook(module: nn.Module, *passing: Any) -> Any:
        before = [value.clone() for value in _tensors(passing)]
        result = hook(module, *passing)
        kept = result is None or _equal(_tensors(result), _tensors(passing if first else passing[-1]))
        if not kept or not _equal(before, _tensors(passing)):
            changing.append((where, getattr(hook, "__qualname__", type(hook).__name__)))
        return result

    return run_hook


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in inside for tensor in _tensors(part)]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all numbers are the same, NaN among them."""
    if [(x.shape, x.dtype) for x in a] != [(y.shape, y.dtype) for y in b]:
        return False
    return all(_same_memory(x, y) or bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(a, b, strict=True))


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.stride() == y.stride()


def check_numbers(net: nn.Module, first: Graph, second: Graph) -> None:
    """ValueError unless two readings of `net`, before and after it was run again, hold the same numbers."""

    def kept(a: Layer, b: Layer) -> bool:
        return a.name == b.name and _equal(numbers(a.op, a.bias), numbers(b.op, b.bias))

    changed = [a.name for a, b in zip(first.layers, second.layers, strict=False) if not kept(a, b)]
    if changed or len(first.layers) != len(second.layers):
        at = f"layer {changed[0]!r}" if changed else "the output"
        raise ValueError(
            f"{type(net).__name__} does not compute what its layers say: the numbers of {at} are others after another "
            "call (randomness, or a hook or forward() that sets them by its input or by the calls so far)"
        )


def check_output(net: nn.Module, written: Graph, graph: Graph, x: Tensor, theirs: Any) -> None:
    """ValueError unless `theirs`, the module's output at x in its own dtype, is that of the graph but for rounding.

    written: the graph layer by layer as the module has it, before folding, and so with its rounding.
    """
    difference = "another shape"
    if isinstance(theirs, Tensor) and theirs.reshape(len(x), -1).shape == (len(x), torch.Size(graph.out_shape).numel()):
        theirs = theirs.reshape(len(x), *graph.out_shape)
        if not bool(theirs.isfinite().all()):
            raise ValueError(
                f"{type(net).__name__} gives NaN or infinite outputs, at x0 or at random inputs of its size: "
                f"a division by zero, or numbers too large for {x.dtype}?"
            )
        apart = _size(theirs.double() - graph.forward(x.clone()).double())
        size = _size(theirs.double())
        near = (NEAR if torch.finfo(x.dtype).eps < 1e-6 else 1.0) * torch.finfo(x.dtype).eps
        far = [i for i in range(len(x)) if not apart[i] <= near * size[i]]
        if all(_only_rounding(written, graph, x[i : i + 1], theirs[i : i + 1]) for i in far):
            return
        difference = f"a relative difference of {(apart / size).max().item():.1g}"
    raise ValueError(
        f"{type(net).__name__} does not compute what its layers say ({difference} in the output): a hook that changes "
        "values, randomness, a result that depends on the batch size, a lower precision inside forward(), or a tensor "
        "changed in place through a view?"
    )


def _size(values: Tensor) -> Tensor:
    return values.abs().flatten(1).amax(1)


def _only_rounding(written: Graph, graph: Graph, x: Tensor, theirs: Tensor) -> bool:
    """Whether the module's output and the folded graph's are those of the unfolded one, x (1, ...), but for rounding.

    The unfolded graph is computed in float64, and again with every sum moved by as much as rounding in the module's
    dtype may have moved it: all upwards, and up or down at random.
    """
    generator = torch.Generator().manual_seed(0)
    values = {INPUT: x.double().repeat(1 + REPEATS, *(1,) * (x.dim() - 1))}
    for stage in written.stages:
        read_by = {name: values[name] for name in stage.sources}
        y = stage.affine(read_by)
        signs = 2.0 * torch.randint(2, y.shape, generator=generator, device="cpu").to(y) - 1.0
        signs[0], signs[1] = 0.0, 1.0
        y = y + signs * _rounding(stage, read_by, y, x.dtype)
        if stage.reader is not None:
            name, op = stage.nonlinear
            values[name] = op.apply(y)
    nominal, tolerance = y[:1], SAFETY * float((y - y[:1]).abs().amax())
    folded = graph.forward(x.double())
    return all(bool(((other - nominal).abs() <= tolerance).all()) for other in (theirs.double(), folded))


def _rounding(stage: Stage, values: dict[str, Tensor], y: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding in `dtype` may change in y = stage.affine(values) and φ(y): (u + Σ_k 2(n_k u' + u))(|A||x| + |b|).

    n_k the terms summed in layer k, u the unit roundoff and u' that of the numbers in which sums are held; a layer
    rounds its sum and what it adds to it.
    """
    info = torch.finfo(dtype)
    u = info.eps / 2.0
    terms = [layer.op.terms if isinstance(layer.op, LinearMap) else len(layer.inputs) for layer in stage.layers]
    gamma = u + sum(2.0 * (n * min(u, ACCUMULATOR) + u) for n in terms)
    summed = sizes(stage, {name: value.abs() for name, value in values.items()})
    return gamma * torch.maximum(summed, y.abs()) + info.tiny
