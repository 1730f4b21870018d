"""An nn.Module as a graph of named layers; what the bounds cannot treat is refused by name.

`read` takes an nn.Sequential (nested too) or a module with a `layers` list apart as a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .activations import RELU, MaxPool
from .graph import INPUT, Graph, Layer, Op
from .linear import Dense, LinearMap, Reshape, Separable, Shape, convolution


class UnsupportedLayerError(TypeError):
    """A layer that no bound here covers; the message names it, its position and its type."""


# What one module becomes: its operations in order, each with its bias or None.
Parts = list[tuple[Op, Tensor | None]]


@torch.no_grad()
def read(net: nn.Module, x0: Tensor) -> Graph:
    """The layers of `net` for inputs like x0 (B, *input shape).

    Guaranteed: the graph computes what the module computes, checked on x0's first input. Parameters are referred to,
    not copied; the module is not changed.
    Raises UnsupportedLayerError (name, position, type) for a layer that is not supported, ValueError for a module in
    training mode, parameters on another device, NaN or infinite parameters, or an input of the wrong shape.
    """
    _check_module(net, x0)
    layers: list[Layer] = []
    name, shape = INPUT, tuple(x0.shape[1:])
    for position, (module_name, module) in enumerate(_chain(net), start=1):
        try:
            parts = convert(module, shape)
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"layer {module_name!r} (position {position}): {error}") from None
        except ValueError as error:
            raise ValueError(f"layer {module_name!r} (position {position}): {error}") from None
        for i, (op, bias) in enumerate(parts):
            inputs, name = (name,), module_name if i == len(parts) - 1 else f"{module_name}.{i}"
            shape = op_shape(op, shape)
            layers.append(Layer(name, inputs, op, shape, bias))
    graph = Graph(tuple(x0.shape[1:]), tuple(layers))
    _check_output(net, graph, x0[:1])
    return graph


def _chain(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a chain with their names, nested ones taken apart."""
    if isinstance(net, nn.Sequential | nn.ModuleList):
        parts = list(net.named_children())
    elif isinstance(getattr(net, "layers", None), nn.Sequential | nn.ModuleList | list | tuple):
        parts = [(f"layers.{i}", module) for i, module in enumerate(net.layers)]
    else:
        yield prefix.rstrip(".") or type(net).__name__, net
        return
    for name, module in parts:
        yield from _chain(module, f"{prefix}{name}.")


def op_shape(op: Op, in_shape: Shape) -> Shape:
    """The shape, without batch, of what an operation makes of one input of shape `in_shape`."""
    if isinstance(op, LinearMap | MaxPool):
        return op.out_shape
    return in_shape


def convert(module: nn.Module, in_shape: Shape) -> Parts:
    """The operations that one module is made of, for inputs of shape `in_shape` (without batch)."""
    for kind, converter in CONVERTERS.items():
        if type(module) is kind:
            return converter(module, in_shape)
    known = ", ".join(kind.__name__ for kind in CONVERTERS)
    raise UnsupportedLayerError(f"{type(module).__name__} is not supported; supported are {known}")


def _linear(module: nn.Linear, in_shape: Shape) -> Parts:
    if in_shape[-1] != module.in_features:
        raise ValueError(f"Linear reads {module.in_features} features, its input has shape {in_shape}")
    return [(Dense(in_shape, (*in_shape[:-1], module.out_features), module.weight.detach()), _bias(module.bias, 0))]


def _conv2d(module: nn.Conv2d, in_shape: Shape) -> Parts:
    if len(in_shape) != 3 or in_shape[0] != module.in_channels:
        raise ValueError(f"Conv2d reads ({module.in_channels}, H, W), its input has shape {in_shape}")
    if module.padding_mode != "zeros":
        raise UnsupportedLayerError(f"Conv2d with padding_mode={module.padding_mode!r}; only 'zeros' is supported")
    parts: Parts = []
    padding = module.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = tuple(total // 2 for total in totals)
        if any(total % 2 for total in totals):  # the odd one of an even kernel goes to the right
            before = [total // 2 for total in totals]
            pad = zero_padding(in_shape, before, [t - b for t, b in zip(totals, before, strict=True)], module.weight)
            parts, in_shape, padding = [(pad, None)], pad.out_shape, (0, 0)
    A = convolution(module.weight.detach(), in_shape, module.stride, padding, module.dilation, module.groups)
    if min(A.out_shape) < 1:
        raise ValueError(f"Conv2d with kernel {module.kernel_size} finds no place in an input of shape {in_shape}")
    return [*parts, (A, _bias(module.bias, 2))]


def zero_padding(in_shape: Shape, before: list[int], after: list[int], like: Tensor) -> Separable:
    """Zeros around the last two dimensions."""
    factors = []
    for length, left, right in zip(in_shape[-2:], before, after, strict=True):
        eye = torch.eye(length, dtype=like.dtype, device=like.device)
        factors.append(nn.functional.pad(eye, (0, 0, left, right)))
    out_shape = (*in_shape[:-2], factors[0].shape[0], factors[1].shape[0])
    return Separable(in_shape, out_shape, *factors)


def _max_pool2d(module: nn.MaxPool2d, in_shape: Shape) -> Parts:
    if module.return_indices:
        raise UnsupportedLayerError("MaxPool2d with return_indices=True; its indices are not a function to bound")
    if len(in_shape) != 3:
        raise ValueError(f"MaxPool2d reads (C, H, W), its input has shape {in_shape}")
    kernel = pair(module.kernel_size)
    stride = kernel if module.stride is None else pair(module.stride)
    pool = MaxPool(in_shape, kernel, stride, pair(module.padding), pair(module.dilation), module.ceil_mode)
    try:
        pool.out_shape  # noqa: B018 - torch's own check of kernel, padding and size
    except RuntimeError as error:
        raise ValueError(f"MaxPool2d does not fit an input of shape {in_shape}: {str(error).splitlines()[0]}") from None
    return [(pool, None)]


def _flatten(module: nn.Flatten, in_shape: Shape) -> Parts:
    if module.start_dim == 0:
        raise UnsupportedLayerError("Flatten from dimension 0 mixes the inputs of a batch; start_dim=1 is wanted")
    flat = torch.empty(1, *in_shape, device="meta").flatten(module.start_dim, module.end_dim)
    return [(Reshape(in_shape, tuple(flat.shape[1:])), None)]


def _adaptive_avg_pool2d(module: nn.AdaptiveAvgPool2d, in_shape: Shape) -> Parts:
    out = tuple(in_shape[-2:][i] if size is None else size for i, size in enumerate(pair(module.output_size)))
    if len(in_shape) != 3 or out != in_shape[1:]:
        raise UnsupportedLayerError(
            f"AdaptiveAvgPool2d to {out} of an input of shape {in_shape}; supported is the identity, to {in_shape[1:]}"
        )
    return []


def _nothing(module: nn.Module, in_shape: Shape) -> Parts:
    return []


def _bias(bias: Tensor | None, spatial: int) -> Tensor | None:
    """A bias a channel, shaped to broadcast over the spatial dimensions."""
    return None if bias is None else bias.detach().reshape(-1, *(1,) * spatial)


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """torch's habit: one number for both axes."""
    return (value, value) if isinstance(value, int) or value is None else tuple(value)


CONVERTERS: dict[type[nn.Module], Callable[..., Parts]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ReLU: lambda module, in_shape: [(RELU, None)],
    nn.MaxPool2d: _max_pool2d,
    nn.Flatten: _flatten,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool2d,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}


def _check_module(net: nn.Module, x0: Tensor) -> None:
    if not isinstance(net, nn.Module):
        raise ValueError(f"net is a {type(net).__name__}; a torch.nn.Module is wanted")
    training = [name or type(net).__name__ for name, module in net.named_modules() if module.training]
    if training:
        raise ValueError(f"net is in training mode (at {training[0]!r}); call net.eval() first")
    for name, parameter in [*net.named_parameters(), *net.named_buffers()]:
        if parameter.device != x0.device:
            raise ValueError(f"parameter {name!r} is on {parameter.device}, x0 on {x0.device}; the same is wanted")
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"parameter {name!r} contains NaN or infinite values")


def _check_output(net: nn.Module, graph: Graph, x: Tensor) -> None:
    """ValueError unless the graph computes what the module computes at x (1, *input shape)."""
    dtype = next((p.dtype for p in net.parameters()), x.dtype)
    wanted, ours = net(x.to(dtype)), graph.forward(x.to(dtype))
    scale = wanted.abs().max().item()
    close = wanted.shape == ours.shape and bool(((wanted - ours).abs() <= 1e-3 * scale + 1e-6).all())
    if not close:
        raise ValueError("the layers found do not compute what the module computes; is there code in its forward()?")
