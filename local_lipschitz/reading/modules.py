"""The tree of modules that is read: what its parts are called, what only wraps another, what must be put back."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_hooks
from torch.nn.utils import parametrize

from ..errors import UnsupportedLayerError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def runnable(net: nn.Module) -> nn.Module:
    """The module itself; a chain of its `layers` if that is all it has; what a wrapper without hooks wraps."""
    if type(net).__module__.startswith("torch.export"):
        raise ValueError(f"net is an exported program: {_EXPORTED}")
    if not isinstance(net, nn.Module):
        raise ValueError(f"net is a {type(net).__name__}; a torch.nn.Module is wanted")
    _check_open(net, "net")
    inner = wrapped(net)
    while inner is not None and not net._forward_hooks and not net._forward_pre_hooks:
        net, inner = inner, wrapped(inner)
    layers = getattr(net, "layers", None)
    if type(net).forward is nn.Module.forward and isinstance(layers, nn.Sequential | nn.ModuleList | list | tuple):
        # a new container starts in training mode; only the layers have one to check
        chain = nn.Sequential(*layers)
        chain.training = False
        net = nn.Sequential(OrderedDict(layers=chain))
        net.training = False
    for module, name in module_names(net).items():
        _check_open(module, f"layer {name!r}" if name else "net")
    return net


_EXPORTED = "its functions, mode and batch size are fixed; give the module that torch.export was given"


def _check_open(module: nn.Module, where: str) -> None:
    """UnsupportedLayerError or ValueError for a module that hides what it was made from."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"{where} is a TorchScript module and hides its layers; give the one it was made from"
        )
    kind = type(module)
    if kind.__module__.startswith("torch.ao") and ("quantized" in kind.__module__ or "fake_quant" in kind.__module__):
        raise UnsupportedLayerError(
            f"{where} is a {kind.__name__}, which rounds: the network becomes a staircase without bound near a step; "
            "give the network from before its quantisation"
        )
    targets = [node.target for node in module.graph.nodes] if isinstance(module, fx.GraphModule) else []
    if any(isinstance(target, torch._ops.OpOverload) for target in targets):
        raise ValueError(f"{where} is an exported program: {_EXPORTED}")


def wrapped(module: nn.Module) -> nn.Module | None:
    """What torch.compile, nn.DataParallel or nn.parallel.DistributedDataParallel wraps; None for any other module."""
    if type(module).__module__.startswith("torch._dynamo"):
        return module._modules.get("_orig_mod")
    return module.module if isinstance(module, PARALLEL) else None


@contextmanager
def eager() -> Iterator[None]:
    """Inside, what torch.compile made runs as it was written, also on the symbol."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes a second
            dynamo = sys.modules["torch._dynamo"]
            stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
            if hasattr(torch.compiler, "set_stance"):  # torch 2.6
                stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def is_layer(module: nn.Module) -> bool:
    """A layer of torch.nn, as opposed to a container or to a module that its user wrote."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, CONTAINERS + PARALLEL)


def is_plain(net: nn.Module) -> bool:
    """Whether only torch's own layers and containers run, without hooks: then no number changes from call to call."""
    return not any(global_hooks()) and all(
        (is_layer(module) or type(module) is nn.Sequential)
        and not (module._forward_pre_hooks or module._forward_hooks or parametrize.is_parametrized(module))
        for module in module_names(net)
    )


def global_hooks() -> tuple[dict[int, Callable], dict[int, Callable]]:
    """torch's hooks of every module: those before forward() and those after it."""
    return torch_hooks._global_forward_pre_hooks, torch_hooks._global_forward_hooks


def module_names(net: nn.Module) -> dict[nn.Module, str]:
    """The path of every module, those in a plain list `layers` among them."""
    names = {module: name.replace("_orig_mod.", "") for name, module in net.named_modules()}
    layers = getattr(net, "layers", None)
    if isinstance(layers, list | tuple):
        for i, module in enumerate(layers):
            for name, inner in module.named_modules() if isinstance(module, nn.Module) else ():
                names.setdefault(inner, f"layers.{i}.{name}".rstrip("."))
    return names


def module_dtype(net: nn.Module, x0: Tensor) -> torch.dtype:
    """The dtype of the first floating-point parameter, or of x0."""
    parameters = (p for m in module_names(net) for p in m.parameters(recurse=False) if p.is_floating_point())
    return next((p.dtype for p in parameters), x0.dtype)


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Puts back what a forward() may store in its module: attributes, what its containers hold, buffers.

    Inside, buffers are copies, so that a graph that refers to them keeps the values with which it was read.
    """
    kept: list[tuple] = []
    copies: dict[int, Tensor] = {}
    for attributes in (vars(module) for module in module_names(net)):
        inner = [(value, value.copy()) for value in attributes.values() if isinstance(value, dict | list | set)]
        kept.append((attributes, attributes.copy(), inner))
        buffers = attributes["_buffers"]
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for attributes, before, inner in kept:
            for container, content in [(attributes, before), *inner]:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)


def setting_weights(net: nn.Module) -> list[nn.Module]:
    """Modules whose weights are computed before they are used, by forward pre-hooks or parametrizations, and these."""
    found = []
    for module in module_names(net):
        if module._forward_pre_hooks:
            found.append(module)
        if parametrize.is_parametrized(module):
            found += [module, *module.get_submodule("parametrizations").modules()]
    return found


@contextmanager
def in_float64(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the float32 parameters and buffers of these modules themselves are float64 copies."""
    kept: list[tuple[dict, str, Tensor]] = []
    for module in modules:
        owners: list[dict] = [module._parameters, module._buffers]
        for own in owners:
            for name, value in own.items():
                if value is not None and value.dtype is torch.float32:
                    kept.append((own, name, value))
                    own[name] = value.detach().double()
    try:
        yield
    finally:
        for own, name, value in kept:
            own[name] = value
