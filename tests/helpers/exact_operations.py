"""Operations between layers for the campaign: each a module, and the same in exact rational arithmetic."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from explicit import matrix_of
from torch import Tensor, nn

Vector = list[Fraction]
Shape = tuple[int, ...]


def single(value: float) -> float:
    """As a float32 number, so that a network and its copy in float64 are the same."""
    return float(torch.tensor(value, dtype=torch.float32))


class MaxMin(nn.Module):
    """The larger and the smaller of each pair, the activation of 1-Lipschitz networks."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)

    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        pairs = list(zip(x[: len(x) // 2], x[len(x) // 2 :], strict=True))
        return [max(pair) for pair in pairs] + [min(pair) for pair in pairs], shape


class Largest(nn.Module):
    """The maximum beside the negative minimum of groups of channels."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (-1, self.group))
        return torch.cat([groups.amax(2), -groups.min(2)[0]], 1)

    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        groups = [x[i : i + self.group] for i in range(0, len(x), self.group)]
        y = [max(group) for group in groups] + [-min(group) for group in groups]
        return y, (len(y),)


class ClampEach(nn.Module):
    """Limits of its own for each unit."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)

    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        limits = zip(x, map(Fraction, self.low.tolist()), map(Fraction, self.high.tolist()), strict=True)
        return [min(max(value, low), high) for value, low, high in limits], shape


class Hardsigmoid(nn.Module):
    """Written out: torch differentiates its own with a sixth in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6

    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        return [min(max(value + 3, Fraction(0)), Fraction(6)) / 6 for value in x], shape


class Softshrink(nn.Softshrink):
    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        knot, zero = Fraction(self.lambd), Fraction(0)
        return [max(value - knot, zero) + min(value + knot, zero) for value in x], shape


class Fixed(nn.Module):
    """A linear function without weights whose matrix holds small multiples of powers of two, known exactly."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def exact(self, x: Vector, shape: Shape) -> tuple[Vector, Shape]:
        rows = matrix_of(self, shape).tolist()
        y = [sum((Fraction(a) * value for a, value in zip(row, x, strict=True) if a), Fraction(0)) for row in rows]
        return y, tuple(self(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])


def repeated(x: Tensor) -> Tensor:
    return x[:, [-1, *range(x.shape[1]), 0, -1]]


def stretched(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1).roll(1, 1)


def beside_the_first(x: Tensor) -> Tensor:
    return x - x[:, :1] + 2 * x[:, -1:]


def centred(x: Tensor) -> Tensor:
    """Groups of four, so that the mean is exact."""
    groups = x.unflatten(1, (-1, 4))
    return (groups - groups.mean(2, keepdim=True)).flatten(1)


def mixed(x: Tensor) -> Tensor:
    """A @ x with a constant matrix of halves and ones."""
    n = x.shape[1]
    A = torch.eye(n, dtype=x.dtype, device=x.device) + 0.5 * torch.ones(n, n, dtype=x.dtype, device=x.device).tril()
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)


def bilinear(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def shuffled(x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2)


def patches(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 1).flatten(1)


DENSE = [repeated, stretched, beside_the_first, centred, mixed]
IMAGES = [upsampled, bilinear, shuffled, patches]


def dense_operations(rng: random.Random) -> tuple[nn.Sequential, Tensor]:
    """Linear layers of even width with two or three of the operations between, an input (1, n); both float64."""
    width, n = 4 * rng.randint(1, 4), rng.randint(1, 12)
    layers: list[nn.Module] = [nn.Linear(n, width)]
    for _ in range(rng.randint(1, 3)):
        low = torch.tensor([rng.uniform(-2, 0.5) for _ in range(width)])
        function = rng.choice(DENSE)
        between = rng.choice(
            [MaxMin(), MaxMin(), Largest(rng.choice([2, 4])), ClampEach(low, low + rng.random()), Hardsigmoid(),
             Softshrink(single(rng.random())), Fixed(function.__name__, function), Fixed(function.__name__, function)]
        )  # fmt: skip
        layers += [between, *([nn.ReLU()] if rng.random() < 0.4 else [])]
        features = nn.Sequential(*layers)(torch.zeros(1, n)).shape[1]
        layers.append(nn.Linear(features, width))
    layers += [nn.ReLU(), nn.Linear(width, rng.randint(1, 4))]
    return nn.Sequential(*layers).double(), torch.zeros(1, n, dtype=torch.float64)


def image_operations(rng: random.Random) -> tuple[nn.Sequential, Tensor]:
    """A convolution in two or three dimensions, an operation on its result, and Linear layers; an input; float64."""
    if rng.random() < 0.3:
        x = torch.zeros(1, 1, 3, 3, 4)
        layers: list[nn.Module] = [nn.Conv3d(1, 2, 2, padding=rng.choice([0, 1]), bias=rng.random() < 0.8), nn.ReLU()]
    else:
        function = rng.choice(IMAGES)
        x = torch.zeros(1, rng.randint(1, 2), 3, 4)
        layers = [nn.Conv2d(x.shape[1], 4, 2), rng.choice([nn.ReLU(), Hardsigmoid()])]
        layers += [Fixed(function.__name__, function)]
    layers.append(nn.Flatten())
    hidden = rng.randint(1, 6)
    layers += [nn.Linear(nn.Sequential(*layers)(x).shape[1], hidden), nn.ReLU(), nn.Linear(hidden, rng.randint(1, 4))]
    return nn.Sequential(*layers).double(), x.double()
