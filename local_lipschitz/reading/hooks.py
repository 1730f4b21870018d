"""Running a module for real with its hooks, which may set weights but not change what passes through their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .modules import global_hooks, module_names


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
    first_of_all, after_all = global_hooks()
    kinds: list[tuple[str, Any, bool]] = [("every module", first_of_all, True), ("every module", after_all, False)]
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
        kept = result is None or equal(_tensors(result), _tensors(passing if first else passing[-1]))
        if not kept or not equal(before, _tensors(passing)):
            changing.append((where, getattr(hook, "__qualname__", type(hook).__name__)))
        return result

    return run_hook


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in inside for tensor in _tensors(part)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all numbers are the same, NaN among them."""
    if [(x.shape, x.dtype) for x in a] != [(y.shape, y.dtype) for y in b]:
        return False
    return all(_same_memory(x, y) or bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(a, b, strict=True))


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.stride() == y.stride()
