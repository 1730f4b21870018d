"""What each operator of an ONNX graph is in torch functions that the tracer follows.

Arguments of an operator: its inputs, tensors or None, then its attributes by name. `x` is what depends on the network's
input; its first dimension is the batch, also where the file says 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def integers(values: Tensor | Sequence[int] | None) -> list[int]:
    """Shapes, axes and the like, which newer opsets give as tensors and older ones as attributes."""
    return [] if values is None else values.tolist() if isinstance(values, Tensor) else list(values)


def gemm(x, w, b=None, alpha=1.0, beta=1.0, transA=0, transB=0):
    y = F.linear(x.mT if transA else x, alpha * (w if transB else w.mT))
    return y if b is None else y + beta * b


def conv(x, w, b=None, strides=None, pads=None, dilations=None, group=1, **more):
    n, auto_pad = w.dim() - 2, more.get("auto_pad", "NOTSET")
    strides, dilations = strides or [1] * n, dilations or [1] * n
    x = padded(x, _pads(x, w.shape[2:], strides, dilations, pads, auto_pad))
    return CONVOLUTIONS[n](x, w, b, strides, 0, dilations, group)


def conv_transpose(x, w, b=None, strides=None, pads=None, dilations=None, **more):
    n, auto_pad = w.dim() - 2, more.get("auto_pad", "NOTSET")
    output_padding, group = more.get("output_padding"), more.get("group", 1)
    pads = pads or [0] * (2 * n)
    if auto_pad not in ("NOTSET", "VALID") or pads[:n] != pads[n:]:
        raise NotImplementedError("ConvTranspose with unequal pads")
    convolution = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    return convolution(x, w, b, strides or 1, pads[:n], output_padding or 0, group, dilations or 1)


def _pads(x, kernel, strides, dilations, pads, auto_pad) -> list[int]:
    """(begin of each axis, end of each axis)."""
    n = len(kernel)
    if auto_pad in ("NOTSET", ""):
        return list(pads or [0] * (2 * n))
    if auto_pad == "VALID":
        return [0] * (2 * n)
    begin, end = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        whole = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small, large = whole // 2, whole - whole // 2
        begin.append(small if auto_pad == "SAME_UPPER" else large)
        end.append(large if auto_pad == "SAME_UPPER" else small)
    return begin + end


def padded(x, pads: list[int], mode: str = "constant", value: float = 0.0):
    """ONNX counts all begins, then all ends; torch goes by axes, the last one first. Axes before are not padded."""
    n = len(pads) // 2
    torchs = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    while torchs[-2:] == [0, 0]:
        torchs = torchs[:-2]
    return F.pad(x, torchs, mode, value) if mode == "constant" else F.pad(x, torchs, mode) if torchs else x


def pad(x, pads=None, constant=None, axes=None, mode="constant", value=0.0):
    counts, n = integers(pads), len(x.shape)
    full = [0] * (2 * n)
    for k, axis in enumerate(integers(axes) or range(n)):
        full[axis % n], full[n + axis % n] = counts[k], counts[len(counts) // 2 + k]
    mode = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}.get(mode, mode)
    return padded(x, full, mode, float(constant) if constant is not None else value) if any(full) else x


def pool(x, kernel_shape, strides=None, pads=None, dilations=None, average=False, **more):
    auto_pad, ceil_mode = more.get("auto_pad", "NOTSET"), more.get("ceil_mode", 0)
    count_include_pad = more.get("count_include_pad", 0)
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = _pads(x, kernel_shape, strides, dilations, pads, auto_pad)
    if pads[:n] != pads[n:]:
        if average and not count_include_pad:
            raise NotImplementedError("AveragePool with unequal pads that do not count")
        x, pads = padded(x, pads, value=0.0 if average else -torch.inf), [0] * (2 * n)
    if not average:
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
        return function(x, kernel_shape, strides, pads[:n], dilations, bool(ceil_mode))
    averaging: Callable = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    return averaging(x, kernel_shape, strides, pads[:n], bool(ceil_mode), bool(count_include_pad))


def batch_normalization(x, scale, b, mean, var, epsilon=1e-5, **unused):
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)


def clip(x, low=None, high=None, min=None, max=None):
    low, high = (min if low is None else float(low)), (max if high is None else float(high))
    return x if low is None and high is None else torch.clamp(x, low, high)


def reshape(x, shape, allowzero=0):
    """The first entry is the batch: where the file has 1 there, or −1 and all else is known, it is that of x."""
    wanted = [x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(integers(shape))]
    if wanted[0] == 1 or (wanted[0] == -1 and -1 not in wanted[1:]):
        wanted[0] = x.shape[0]
    return x.reshape(wanted)


def flatten(x, axis=1):
    if axis % (len(x.shape) + 1) not in (0, 1):
        raise NotImplementedError(f"Flatten with axis {axis}, which makes one dimension of the batch and others")
    return x.flatten(1)


def squeeze(x, axes=None):
    axes = integers(axes) or [i for i, n in enumerate(x.shape) if i and n == 1]
    for axis in sorted((a % len(x.shape) for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(x, axes=None):
    for axis in sorted(integers(axes)):
        x = x.unsqueeze(axis)
    return x


def slice_(x, starts=None, ends=None, axes=None, steps=None):
    starts, ends = integers(starts), integers(ends)
    index: list[Any] = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(
        starts, ends, integers(axes) or range(len(starts)), integers(steps) or [1] * len(starts), strict=True
    ):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def gather(x, indices, axis=0):
    axis = axis % len(x.shape)
    at = int(indices) if indices.dim() == 0 else indices
    index: list[Any] = [slice(None)] * axis + [at]
    return x[tuple(index)]


def split(x, sizes=None, axis=0, split=None, num_outputs=None):
    sizes = integers(sizes) or integers(split)
    return x.split(sizes, axis) if sizes else x.chunk(num_outputs, axis)


def reduce(x, axes=None, keepdims=1, noop_with_empty_axes=0, function: Callable = torch.mean):
    axes = integers(axes) or list(range(len(x.shape)))
    return function(x, axes, keepdim=bool(keepdims))


def over_space(x, function: Callable):
    """Over all but batch and channels, which stay as ones."""
    return function(x, list(range(2, len(x.shape))), keepdim=True)


def prelu(x, slope):
    channels = slope.numel() in (1, x.shape[1])
    return F.prelu(x, slope.flatten()) if channels else F.relu(x) - slope * F.relu(-x)


def chained(function: Callable, first, *others):
    for other in others:
        first = function(first, other)
    return first


CONVOLUTIONS: dict[int, Callable] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
OPERATORS: dict[str, Callable] = {
    "Gemm": gemm,
    "MatMul": torch.matmul,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": batch_normalization,
    "MaxPool": pool,
    "AveragePool": partial(pool, average=True),
    "GlobalAveragePool": partial(over_space, function=torch.mean),
    "GlobalMaxPool": partial(over_space, function=torch.amax),
    "ReduceMean": reduce,
    "ReduceSum": partial(reduce, function=torch.sum),
    "ReduceMax": partial(reduce, function=torch.amax),
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Neg": lambda x: -x,
    "Sum": partial(chained, lambda a, b: a + b),
    "Max": partial(chained, torch.maximum),
    "Min": partial(chained, torch.minimum),
    "Relu": F.relu,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": prelu,
    "Abs": torch.abs,
    "Clip": clip,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0.0, 1.0),
    "HardSwish": F.hardswish,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Selu": lambda x, alpha=0.0, gamma=0.0: F.selu(x),
    "Celu": lambda x, alpha=1.0: F.celu(x, alpha),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "Reshape": reshape,
    "ConstantReshape": lambda x, shape, allowzero=0: x.reshape(integers(shape)),
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": lambda x, perm=None: x.permute(perm or list(range(len(x.shape)))[::-1]),
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Expand": lambda x, shape: x.expand(integers(shape)),
    "Identity": lambda x: x,
    "Dropout": lambda x, *rest, **options: x,
    "Cast": lambda x, to=1, saturate=1: x.long() if to in (6, 7) and isinstance(x, Tensor) else x,
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape)[start:end]),
}
