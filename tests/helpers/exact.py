"""Small networks in exact rational arithmetic: the judge where floating point cannot tell a violation from rounding.

Walks over the torch modules themselves and shares no code with the package. A float is a rational number, so nothing
here is rounded, whatever the scale of weights and ε.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import torch
from explicit import matrix_of
from torch import Tensor, nn

Vector = list[Fraction]
Affine = nn.Linear | nn.Conv2d | nn.Conv3d


class Residual(nn.Module):
    """x + inside(x)."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


class Beside(Residual):
    """x and inside(x), side by side along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inside(x)], 1)


def vector(x: Tensor) -> Vector:
    return [Fraction(value) for value in x.flatten().tolist()]


def evaluate(net: nn.Module, x: Vector, shape: tuple[int, ...]) -> tuple[Vector, tuple[int, ...]]:
    """f(x) and its shape, for one input x of `shape`; net in float64 (converting from float32 is exact)."""
    if isinstance(net, nn.Sequential):
        for module in net:
            x, shape = evaluate(module, x, shape)
        return x, shape
    if isinstance(net, Beside):
        inside, inside_shape = evaluate(net.inside, x, shape)
        return x + inside, (shape[0] + inside_shape[0], *shape[1:])
    if isinstance(net, Residual):
        inside, _ = evaluate(net.inside, x, shape)
        return [a + b for a, b in zip(x, inside, strict=True)], shape
    if hasattr(net, "exact"):  # exact_operations.py
        return net.exact(x, shape)
    if isinstance(net, nn.Flatten):
        return x, (len(x),)
    if isinstance(net, nn.ReLU):
        return [max(value, Fraction(0)) for value in x], shape
    if isinstance(net, nn.LeakyReLU):
        slope = Fraction(net.negative_slope)
        return [value if value > 0 else slope * value for value in x], shape
    if isinstance(net, nn.PReLU):
        slopes, each = vector(net.weight), len(x) // net.num_parameters
        return [value if value > 0 else slopes[i // each] * value for i, value in enumerate(x)], shape
    if isinstance(net, nn.Hardtanh):
        low, high = Fraction(net.min_val), Fraction(net.max_val)
        return [min(max(value, low), high) for value in x], shape
    if isinstance(net, nn.MaxPool2d):
        return _pool(net, x, shape)
    if isinstance(net, Affine):
        return _affine(net, x, shape)
    raise TypeError(f"{type(net).__name__} has no exact evaluation")


def _affine(layer: Affine, x: Vector, shape: tuple[int, ...]) -> tuple[Vector, tuple[int, ...]]:
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        b = torch.zeros_like(zero)
        if layer.bias is not None:
            b = b + layer.bias.reshape(-1, *(1,) * (zero.dim() - 2))
        # entries are single weights, without rounding: zeros are added, and the bias is left out
        A = matrix_of(lambda v: _without_bias(layer, v), shape)
    y = vector(b)
    for i, row in enumerate(A):
        at = row.nonzero()[:, 0].tolist()
        y[i] += sum((Fraction(a) * x[j] for j, a in zip(at, row[at].tolist(), strict=True)), Fraction(0))
    return y, tuple(zero.shape[1:])


def _without_bias(layer: Affine, v: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(v, layer.weight)
    convolve = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.conv3d
    return convolve(
        v, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups  # type: ignore[arg-type]
    )


def _pool(pool: nn.MaxPool2d, x: Vector, shape: tuple[int, ...]) -> tuple[Vector, tuple[int, ...]]:
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    k, s, p, d = (option if isinstance(option, tuple) else (option, option) for option in options)
    C, H, W = shape
    spare = [s[i] - 1 if pool.ceil_mode else 0 for i in (0, 1)]
    rows, columns = ((n + 2 * p[i] - d[i] * (k[i] - 1) - 1 + spare[i]) // s[i] + 1 for i, n in enumerate((H, W)))
    if pool.ceil_mode:  # no window starts in the padding beyond the end
        rows, columns = (
            m - 1 if (m - 1) * s[i] >= n + p[i] else m for i, (m, n) in enumerate(((rows, H), (columns, W)))
        )
    y = []
    for c, i, j in product(range(C), range(rows), range(columns)):
        ats = [(i * s[0] - p[0] + a * d[0], j * s[1] - p[1] + b * d[1]) for a in range(k[0]) for b in range(k[1])]
        y.append(max(x[(c * H + h) * W + w] for h, w in ats if 0 <= h < H and 0 <= w < W))
    return y, (C, rows, columns)


def squared_norm(x: Vector) -> Fraction:
    return sum((value * value for value in x), Fraction(0))


def change(net: nn.Module, x0: Tensor, delta: Tensor) -> Vector:
    """f(x0 + δ) − f(x0), for one input x0 (*shape) and δ (*shape), exactly."""
    start, step = vector(x0), vector(delta)
    before, _ = evaluate(net, start, tuple(x0.shape))
    after, _ = evaluate(net, [a + b for a, b in zip(start, step, strict=True)], tuple(x0.shape))
    return [b - a for a, b in zip(before, after, strict=True)]


def exceeds(net: nn.Module, x0: Tensor, delta: Tensor, bound: float) -> bool:
    """Whether ‖f(x0 + δ) − f(x0)‖ > bound·‖δ‖: no rounding, no tolerance."""
    return squared_norm(change(net, x0, delta)) > Fraction(bound) ** 2 * squared_norm(vector(delta))


def within(delta: Tensor, eps: float) -> bool:
    """Whether ‖δ‖ ≤ ε."""
    return squared_norm(vector(delta)) <= Fraction(eps) ** 2
