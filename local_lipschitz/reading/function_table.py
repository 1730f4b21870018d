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
from . import activation_functions as activation
from . import affine_functions as affine
from . import arithmetic_functions as arithmetic
from . import constant_functions as constants
from . import maximum_functions as maximum
from . import product_functions as product
from . import rearranging_functions as r
from . import separable_functions as separable
from .rearranging_functions import moving, reshaping
from .smooth_functions import SMOOTH


def same(x, *args: object, **kwargs: object):
    """The same values in the same memory."""
    return x


FUNCTIONS: dict[str, Callable] = {
    # affine, with weights
    "linear": affine.linear,
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], affine.conv),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], affine.conv_transpose),
    "batch_norm": affine.batch_norm,
    "instance_norm": affine.instance_norm,
    # averages, interpolation, padding
    **{f"avg_pool{n}d": partial(separable.avg_pool, spatial=n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": partial(separable.adaptive_avg_pool, spatial=n) for n in (1, 2, 3)},
    "mean": separable.mean,
    "sum": partial(separable.mean, sum_up=True),
    **dict.fromkeys(["interpolate", "upsample"], separable.interpolate),
    "upsample_nearest": separable.interpolate,
    "upsample_bilinear": partial(separable.interpolate, mode="bilinear", align_corners=True),
    "pad": separable.pad,
    # sums and differences along a dimension
    "cumsum": separable.cumsum,
    "diff": separable.diff,
    # maxima and minima
    **{f"max_pool{n}d": partial(maximum.max_pool, spatial=n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": partial(maximum.adaptive_max_pool, spatial=n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": partial(maximum.max_pool, spatial=n, return_indices=True) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d_with_indices": partial(maximum.adaptive_max_pool, spatial=n, return_indices=True)
       for n in (1, 2, 3)},
    "max": maximum.maximum_of,
    "min": maximum.minimum_of,
    **dict.fromkeys(["maximum", "fmax"], maximum.maximum),
    **dict.fromkeys(["minimum", "fmin"], maximum.minimum),
    "amax": maximum.amax,
    "amin": maximum.amin,
    "sort": maximum.sort,
    # activations
    "relu": lambda x: x.then(RELU),
    "leaky_relu": activation.leaky_relu,
    "prelu": activation.prelu,
    "rrelu": activation.rrelu,
    "relu6": partial(activation.clamp, min=0.0, max=6.0),
    "hardtanh": activation.hardtanh,
    "hardsigmoid": activation.hardsigmoid,
    "softshrink": activation.softshrink,
    "hardshrink": activation.hardshrink,
    "threshold": activation.threshold,
    **dict.fromkeys(["clamp", "clip"], maximum.clamp_to),
    "clamp_min": lambda x, min: maximum.clamp_to(x, min),
    "clamp_max": lambda x, max: maximum.clamp_to(x, None, max),
    **dict.fromkeys(["abs", "absolute"], lambda x: x.then(PiecewiseLinear((0.0,), (-1.0, 1.0)))),
    **SMOOTH,
    # nothing in eval mode
    **dict.fromkeys(
        ["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"],
        activation.dropout,
    ),
    **dict.fromkeys(["contiguous", "detach", "cpu", "cuda", "requires_grad", "positive", "pos"], same),
    **dict.fromkeys(["to", "type_as"], arithmetic.cast),
    "type": arithmetic.type_of,
    **{name: arithmetic.cast_to(dtype) for name, dtype in [
        ("float", torch.float32), ("double", torch.float64), ("half", torch.float16), ("bfloat16", torch.bfloat16),
        ("int", torch.int32), ("long", torch.int64), ("short", torch.int16), ("char", torch.int8),
        ("byte", torch.uint8), ("bool", torch.bool)]},
    "clone": lambda x, memory_format=None: x.copied(),
    # arithmetic
    **dict.fromkeys(["add", "iadd", "radd"], arithmetic.add),
    **dict.fromkeys(["sub", "isub", "subtract"], arithmetic.sub),
    "rsub": lambda x, y: arithmetic.sub(y, x),
    **dict.fromkeys(["mul", "imul", "rmul", "multiply"], arithmetic.mul),
    **dict.fromkeys(["div", "truediv", "itruediv", "divide", "true_divide"], arithmetic.div),
    **dict.fromkeys(["neg", "negative"], arithmetic.neg),
    "addcmul": constants.addcmul,
    "addcdiv": constants.addcdiv,
    "lerp": constants.lerp,
    # constant masks, constants beside layers
    "masked_fill": constants.masked_fill,
    "where": constants.where,
    "triu": constants.triangle(torch.triu),
    "tril": constants.triangle(torch.tril),
    **{f"{name}_like": constants.filled(value) for name, value in (("zeros", 0.0), ("ones", 1.0))},
    **{f"new_{name}": constants.new_filled(value) for name, value in (("zeros", 0.0), ("ones", 1.0))},
    # products with constants
    **dict.fromkeys(["matmul", "mm", "bmm"], product.matmul),
    "mv": product.mv,
    **dict.fromkeys(["addmm", "baddbmm"], product.addmm),
    "einsum": product.einsum,
    "tensordot": product.tensordot,
    "bilinear": product.bilinear,
    # rearranging
    **dict.fromkeys(["reshape", "view"], reshaping(torch.Tensor.reshape)),
    **dict.fromkeys(["reshape_as", "view_as"], lambda x, other: reshaping(torch.Tensor.reshape)(x, other.shape)),
    "flatten": reshaping(torch.flatten),
    "unflatten": reshaping(torch.unflatten),
    "unsqueeze": reshaping(torch.unsqueeze),
    "squeeze": r.squeeze,
    "permute": r.permute,
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], r.transpose),
    **dict.fromkeys(["mT", "mH", "adjoint"], lambda x: r.transpose(x, -1, -2)),
    "t": moving(torch.t),
    **dict.fromkeys(["movedim", "moveaxis"], moving(torch.movedim)),
    "roll": moving(torch.roll),
    "flip": moving(torch.Tensor.flip),
    "fliplr": moving(torch.fliplr),
    "flipud": moving(torch.flipud),
    "rot90": moving(torch.rot90),
    "pixel_shuffle": moving(torch.pixel_shuffle),
    "pixel_unshuffle": moving(torch.pixel_unshuffle),
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], moving(torch.channel_shuffle)),
    # cutting
    "getitem": r.getitem,
    "split": r.split,
    "chunk": r.chunk,
    "narrow": r.narrow,
    **dict.fromkeys(["unbind"], moving(torch.unbind)),
    "tensor_split": moving(torch.tensor_split),
    "select": moving(torch.select),
    "index_select": moving(torch.index_select),
    "gather": moving(torch.gather),
    "take_along_dim": moving(torch.take_along_dim),
    "take": moving(torch.take),
    "diagonal": moving(torch.diagonal),
    "unfold": r.unfold,
    # joining, repeating
    **dict.fromkeys(["cat", "concat", "concatenate"], constants.cat),
    **dict.fromkeys(["hstack", "column_stack"], constants.hstack),
    "stack": constants.stack,
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], r.expand),
    "repeat": r.repeat,
    "tile": moving(torch.Tensor.tile),
    "repeat_interleave": moving(torch.repeat_interleave),
}  # fmt: skip

NOT_SUPPORTED = "not supported; docs/layers.md has a table of the layers that are"
_STAIRS = "not supported, it rounds: the network becomes a staircase, which has no bound near a step; leave it out"
_LAST = "where it is the last layer, leave it out: the bound is for the logits"
_COMPARED = "not supported, the network would decide by the values of its input"
_STATISTICS = "not supported, it divides by statistics of its input; BatchNorm in eval mode is supported"
_PRODUCT = "not supported, it multiplies two things that both depend on the input, so that no slope is largest"

# Why a function is refused, and what to do.
REFUSED: dict[str, str] = {
    **dict.fromkeys(["softmax", "log_softmax", "softmin"], f"{NOT_SUPPORTED}; {_LAST}"),
    **dict.fromkeys(
        ["glu", "lstm", "gru", "lstm_cell", "gru_cell", "scaled_dot_product_attention",
         "multi_head_attention_forward"],
        _PRODUCT,
    ),
    **dict.fromkeys(
        ["exp", "log", "sqrt", "pow", "square", "sin", "cos", "var", "std"],
        "not supported, it is neither piecewise linear nor one of the smooth activations",
    ),
    **dict.fromkeys(
        ["round", "floor", "ceil", "trunc", "fix", "frac", "floor_divide", "floordiv", "mod", "remainder", "fmod",
         "quantize_per_tensor", "quantize_per_channel", "fake_quantize_per_tensor_affine",
         "fake_quantize_per_channel_affine"],
        _STAIRS,
    ),
    **dict.fromkeys(
        ["topk", "kthvalue", "median", "msort", "argsort", "mode"], "not supported; sorting of pairs and maxima are"
    ),
    **dict.fromkeys(
        ["layer_norm", "group_norm", "rms_norm", "local_response_norm", "normalize", "norm"], _STATISTICS
    ),
    **dict.fromkeys(
        ["gt", "lt", "ge", "le", "eq", "ne", "sign", "argmax", "item", "tolist", "numpy"], _COMPARED
    ),
}  # fmt: skip
