"""Smooth activations, and networks of them, in extended precision (mpmath): what float64 is compared with.

No code of the package.
"""

from __future__ import annotations

from collections.abc import Callable

from exact import Residual
from mpmath import mp, mpf
from torch import Tensor, nn

Function = Callable[[mpf], mpf]


def numbers(x: Tensor) -> list[mpf]:
    return [mpf(value) for value in x.flatten().tolist()]


def length(x: list[mpf]) -> mpf:
    return mp.sqrt(mp.fsum(value * value for value in x))


def evaluate(net: nn.Module, x: list[mpf]) -> list[mpf]:
    """f(x) of Linear layers, residual branches and activations; net in float64 (converting from float32 is exact)."""
    if isinstance(net, nn.Sequential):
        for module in net:
            x = evaluate(module, x)
        return x
    if isinstance(net, Residual):
        return [a + b for a, b in zip(x, evaluate(net.inside, x), strict=True)]
    if isinstance(net, nn.Linear):
        rows = zip(net.weight, net.bias.tolist(), strict=True)
        return [mp.fdot(numbers(row), x) + mpf(b) for row, b in rows]
    phi = function(net)
    return [phi(y) for y in x]


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
    if kind == "Hardtanh":
        return lambda y: min(max(y, mpf(module.min_val)), mpf(module.max_val))
    return PLAIN[kind]


PLAIN: dict[str, Function] = {
    "ReLU": lambda y: max(y, mpf(0)),
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
