"""Smooth activations as operations of the graph. Handlers as in function_table.py."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import UnsupportedLayerError
from ..layers.gated_functions import GELU, Hardswish, Mish, SiLU, TanhGELU
from ..layers.graph import Graph
from ..layers.rearranging import Permute, Reshape
from ..layers.smooth_activations import Smooth
from ..layers.smooth_functions import ELU, LogSigmoid, Sigmoid, Softplus, Softsign, Tanh, Tanhshrink
from .symbol import Traced

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
STEP = 1e-8  # the largest e^(−threshold) that is taken for a Softplus without a step


def _plain(phi: Smooth) -> Callable[[Traced], Traced]:
    """A function without parameters."""
    return lambda x: x.then(phi)


def elu(x: Traced, alpha: float = 1.0) -> Traced:
    return x.then(ELU(float(alpha)))


def selu(x: Traced) -> Traced:
    return x.then(ELU(SELU_ALPHA, SELU_SCALE))


def celu(x: Traced, alpha: float = 1.0) -> Traced:
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; a positive number is wanted")
    return x.then(ELU(float(alpha), 1.0, 1.0 / alpha))


def gelu(x: Traced, approximate: str = "none") -> Traced:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}; 'none' or 'tanh' is wanted")
    return x.then(GELU() if approximate == "none" else TanhGELU())


def softplus(x: Traced, beta: float = 1.0, threshold: float = 20.0) -> Traced:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; a positive number is wanted")
    if math.exp(-threshold) > STEP:
        raise UnsupportedLayerError(f"threshold={threshold} makes a step where βx reaches it; 19 or more is wanted")
    return x.then(Softplus(float(beta), math.exp(-threshold) / beta))


SMOOTH: dict[str, Callable] = {
    "sigmoid": _plain(Sigmoid()),
    "special_expit": _plain(Sigmoid()),
    "tanh": _plain(Tanh()),
    "silu": _plain(SiLU()),
    "mish": _plain(Mish()),
    "hardswish": _plain(Hardswish()),
    "logsigmoid": _plain(LogSigmoid()),
    "log_sigmoid": _plain(LogSigmoid()),
    "softsign": _plain(Softsign()),
    "tanhshrink": _plain(Tanhshrink()),
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "gelu": gelu,
    "softplus": softplus,
}


def check_end(graph: Graph) -> None:
    """UnsupportedLayerError where the network ends in a Sigmoid: its bound is for the logits."""
    moving = [layer for layer in graph.layers if not isinstance(layer.op, Reshape | Permute)]
    if not moving or not isinstance(moving[-1].op, Sigmoid):
        return
    for position, call in enumerate(graph.calls, start=1):
        if moving[-1].name in call.layers:
            raise UnsupportedLayerError(
                f"layer {call.name!r} (position {position}, {call.kind}): not supported where it is the last layer, "
                "leave it out: the bound is for the logits"
            )
