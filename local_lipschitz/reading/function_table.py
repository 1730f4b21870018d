"""What each torch function is, as operations of the graph: affine maps, poolings and activations.

A layer of torch.nn is known by the functions that its forward() calls, so this one table serves modules, functional
calls, methods and operators alike. Handlers take the arguments of the torch function, with the layer that it reads as a
`Traced` in place of the tensor; `x.unbatched` is its shape without the batch, `x.then(op, bias)` the layer after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..layers.activations import RELU, PiecewiseLinear
from . import affine_functions as affine
from . import nonlinear_functions as nonlinear
from . import tensor_functions as t


def same(x, *args: object, **kwargs: object):
    """Conversions: the same values in the same memory."""
    return x


FUNCTIONS: dict[str, Callable] = {
    # affine, with weights
    "linear": affine.linear,
    "conv1d": affine.conv,
    "conv2d": affine.conv,
    "conv_transpose1d": affine.conv_transpose,
    "conv_transpose2d": affine.conv_transpose,
    "batch_norm": affine.batch_norm,
    # averages, padding
    "avg_pool1d": affine.avg_pool1d,
    "avg_pool2d": affine.avg_pool2d,
    "adaptive_avg_pool1d": partial(affine.adaptive_avg_pool, spatial=1),
    "adaptive_avg_pool2d": partial(affine.adaptive_avg_pool, spatial=2),
    "mean": affine.mean,
    "sum": partial(affine.mean, sum_up=True),
    "pad": affine.pad,
    # max pooling
    "max_pool1d": nonlinear.max_pool1d,
    "max_pool2d": nonlinear.max_pool2d,
    "adaptive_max_pool1d": partial(nonlinear.adaptive_max_pool, spatial=1),
    "adaptive_max_pool2d": partial(nonlinear.adaptive_max_pool, spatial=2),
    **dict.fromkeys(
        ["max_pool1d_with_indices", "max_pool2d_with_indices", "adaptive_max_pool1d_with_indices",
         "adaptive_max_pool2d_with_indices"], nonlinear.with_indices,
    ),
    # activations
    "relu": lambda x: x.then(RELU),
    "leaky_relu": nonlinear.leaky_relu,
    "prelu": nonlinear.prelu,
    "relu6": partial(nonlinear.clamp, min=0.0, max=6.0),
    "hardtanh": nonlinear.hardtanh,
    **dict.fromkeys(["clamp", "clip"], nonlinear.clamp),
    "clamp_min": lambda x, min: nonlinear.clamp(x, min),
    "clamp_max": lambda x, max: nonlinear.clamp(x, None, max),
    **dict.fromkeys(["abs", "absolute"], lambda x: x.then(PiecewiseLinear((0.0,), (-1.0, 1.0)))),
    # nothing in eval mode
    **dict.fromkeys(
        ["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"],
        nonlinear.dropout,
    ),
    **dict.fromkeys(
        ["contiguous", "detach", "to", "type", "float", "double", "cpu", "cuda", "type_as", "requires_grad", "positive",
         "pos"], same,
    ),
    "clone": lambda x, memory_format=None: x.copied(),
    # arithmetic
    **dict.fromkeys(["add", "iadd", "radd"], t.add),
    **dict.fromkeys(["sub", "isub", "subtract"], t.sub),
    "rsub": lambda x, y: t.sub(y, x),
    **dict.fromkeys(["mul", "imul", "rmul", "multiply"], t.mul),
    **dict.fromkeys(["div", "truediv", "itruediv", "divide", "true_divide"], t.div),
    **dict.fromkeys(["neg", "negative"], t.neg),
    **dict.fromkeys(["matmul", "mm"], t.matmul),
    # rearranging, cutting, joining
    "reshape": t.reshaping(torch.Tensor.reshape),
    "view": t.reshaping(torch.Tensor.reshape),
    "flatten": t.reshaping(torch.flatten),
    "unflatten": t.reshaping(torch.unflatten),
    "unsqueeze": t.reshaping(torch.unsqueeze),
    "squeeze": t.squeeze,
    "permute": t.permute,
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], t.transpose),
    **dict.fromkeys(["mT", "mH", "adjoint"], lambda x: t.transpose(x, -2, -1)),
    "getitem": t.getitem,
    "split": t.split,
    "chunk": t.chunk,
    "narrow": t.narrow,
    **dict.fromkeys(["cat", "concat", "concatenate"], t.cat),
    "stack": t.stack,
    "expand": t.expand,
    "repeat": t.repeat,
}  # fmt: skip

NOT_SUPPORTED = "not supported; the README has a table of the layers that are"
_ACTIVATION = "not supported; activations that are: ReLU, LeakyReLU, PReLU, Hardtanh, ReLU6, abs and clamp"
_LAST = "where it is the last layer, leave it out: the bound is for the logits"
_COMPARED = "not supported, the network would decide by the values of its input"
_STATISTICS = "not supported, it divides by statistics of its input; BatchNorm in eval mode is supported"

# Why a function is refused, and what to do.
REFUSED: dict[str, str] = {
    **dict.fromkeys(["softmax", "log_softmax", "softmin", "sigmoid", "logsigmoid", "tanh"], f"{_ACTIVATION}; {_LAST}"),
    **dict.fromkeys(
        ["gelu", "silu", "elu", "selu", "celu", "softplus", "mish", "hardswish", "hardsigmoid", "softsign", "glu",
         "hardshrink", "softshrink", "tanhshrink", "threshold", "rrelu"],
        _ACTIVATION,
    ),
    **dict.fromkeys(
        ["exp", "log", "sqrt", "pow", "square", "sin", "cos", "var", "std"], "not supported, it is not piecewise linear"
    ),
    **dict.fromkeys(["max", "amax", "maximum", "min", "amin", "minimum"], "not supported; max pooling and clamp are"),
    **dict.fromkeys(
        ["layer_norm", "group_norm", "instance_norm", "local_response_norm", "normalize", "norm"], _STATISTICS
    ),
    **dict.fromkeys(
        ["gt", "lt", "ge", "le", "eq", "ne", "where", "sign", "argmax", "item", "tolist", "numpy"], _COMPARED
    ),
}  # fmt: skip
