"""The smooth activations in extended precision (mpmath), which float64 is compared with; no code of the package."""

from __future__ import annotations

from collections.abc import Callable

from mpmath import mp, mpf
from torch import nn

Function = Callable[[mpf], mpf]


def logistic(y: mpf) -> mpf:
    return 1 / (1 + mp.exp(-y)) if y > 0 else mp.exp(y) / (1 + mp.exp(y))


def log_one_plus_exp(y: mpf) -> mpf:
    return max(y, mpf(0)) + mp.log1p(mp.exp(-abs(y)))


def function(module: nn.Module) -> Function:
    """φ of a torch.nn activation, for mpf numbers."""
    kind = type(module).__name__
    if kind in ("ELU", "SELU", "CELU"):
        return _exponential(module)
    if kind == "GELU":
        return _gelu if module.approximate == "none" else _tanh_gelu
    if kind == "Softplus":
        beta = mpf(module.beta)
        return lambda y: log_one_plus_exp(beta * y) / beta
    return PLAIN[kind]


PLAIN: dict[str, Function] = {
    "Tanh": mp.tanh,
    "Sigmoid": logistic,
    "Softsign": lambda y: y / (1 + abs(y)),
    "LogSigmoid": lambda y: -log_one_plus_exp(-y),
    "Tanhshrink": lambda y: y - mp.tanh(y),
    "SiLU": lambda y: y * logistic(y),
    "Mish": lambda y: y * mp.tanh(log_one_plus_exp(y)),
    "Hardswish": lambda y: y * min(max(y / 6 + mpf(1) / 2, mpf(0)), mpf(1)),
}


def _exponential(module: nn.Module) -> Function:
    alpha, scale, rate = mpf(1), mpf(1), mpf(1)
    if isinstance(module, nn.SELU):
        alpha, scale = mpf(1.6732632423543772848170429916717), mpf(1.0507009873554804934193349852946)
    else:
        alpha = mpf(module.alpha)
        rate = 1 / alpha if isinstance(module, nn.CELU) else rate
    return lambda y: scale * (y if y >= 0 else alpha * mp.expm1(rate * y))


def _gelu(y: mpf) -> mpf:
    return y * mp.erfc(-y / mp.sqrt(2)) / 2


def _tanh_gelu(y: mpf) -> mpf:
    return y * logistic(2 * mp.sqrt(2 / mp.pi) * (y + mpf(0.044715) * y**3))
