"""What each operator of an ONNX graph is in torch functions that the tracer follows.

Arguments of an operator: its inputs, tensors or None, then its attributes by name; one that it does not take is refused
(TypeError), and NotImplementedError says what is not supported. `x` is what depends on the network's input; its first
dimension is the batch, also where the file says 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .onnx_windows import WINDOWS, integers

# Attributes that change nothing in inference, and inputs that have to be known without the network's input.
WITHOUT_EFFECT = {
    "BatchNormalization": ("momentum",), "Dropout": ("seed", "ratio"), "Cast": ("saturate",),
    "MaxPool": ("storage_order",),
}  # fmt: skip
CONSTANT_INPUTS = {
    "BatchNormalization": (1, 2, 3, 4), "Clip": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Dropout": (1, 2),
    "Expand": (1,), "Gather": (1,), "Pad": (1, 2, 3), "PRelu": (1,), "ReduceMax": (1,), "ReduceMean": (1,),
    "ReduceSum": (1,), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
}  # fmt: skip
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}  # of a TensorProto


def gemm(x, w, b=None, alpha=1.0, beta=1.0, transA=0, transB=0):
    y = F.linear(x.mT if transA else x, alpha * (w if transB else w.mT))
    return y if b is None else y + beta * b


def batch_normalization(x, scale, b, mean, var, epsilon=1e-5, training_mode=0):
    if training_mode:
        raise NotImplementedError("BatchNormalization in training mode")
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)


def dropout(x, ratio=None, training_mode=None):
    if training_mode is not None and bool(training_mode):
        raise NotImplementedError("Dropout in training mode")
    return x


def cast(x, to):
    if to not in DTYPES:
        raise NotImplementedError(f"Cast to the data type {to} of ONNX")
    return x.to(DTYPES[to])


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
    """Axis 0 is left where the batch may be larger than 1: onnx_file.py turns the other into 1."""
    end = axis + len(x.shape) if axis < 0 else axis
    if end == 0 or math.prod(x.shape[1:end]) != 1:
        raise NotImplementedError(f"Flatten with axis {axis}, which does not keep the batch by itself")
    return x.flatten(1)


def squeeze(x, axes=None):
    axes = integers(axes) or [i for i, n in enumerate(x.shape) if i and n == 1]
    for axis in sorted((a % len(x.shape) for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(x, axes=None):
    axes = integers(axes)
    for axis in sorted(a % (len(x.shape) + len(axes)) for a in axes):
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
    axes = integers(axes)
    if not axes and noop_with_empty_axes:
        return x
    axes = axes or list(range(len(x.shape)))
    return function(x, axes, keepdim=bool(keepdims))


def prelu(x, slope):
    """The slope broadcasts as ONNX has it, from the last axis on."""
    of_channels = slope.numel() == 1 or (slope.dim() == len(x.shape) - 1 and slope.numel() == slope.shape[0])
    return F.prelu(x, slope.flatten()) if of_channels else F.relu(x) - slope * F.relu(-x)


def expand(x, shape):
    """Where the file has 1, also for the batch, the size of x stays."""
    wanted = integers(shape)
    sizes = [1] * (len(wanted) - len(x.shape)) + list(x.shape)
    first = len(sizes) - len(wanted)
    return x.expand(sizes[:first] + [n if m == 1 else m for n, m in zip(sizes[first:], wanted, strict=True)])


def selu(x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return gamma * F.elu(x, alpha)


def chained(function: Callable, first, *others):
    for other in others:
        first = function(first, other)
    return first


OPERATORS: dict[str, Callable] = {
    **WINDOWS,
    "Gemm": gemm,
    "MatMul": torch.matmul,
    "BatchNormalization": batch_normalization,
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
    "Silu": F.silu,  # no operator of ONNX: put together by onnx_forms.py
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Selu": selu,
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
    "Expand": expand,
    "Identity": lambda x: x,
    "Dropout": dropout,
    "Cast": cast,
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape)[start:end]),
}
