"""The random cases of the soundness campaign: networks, inputs and radii of every scale, with kinks where they hurt."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from exact import Beside, Residual
from exact_operations import Fixed, dense_operations, image_operations, single
from explicit import matrix_of
from random_networks import random_convolutional, random_dense
from torch import Tensor, nn

LARGEST = 16.0  # decades that a product of weights may reach, so that a float32 network gives finite numbers


@dataclass(frozen=True)
class Case:
    """A network in `dtype`, inputs x0 (B, *shape) and radii eps (B,); `net64` is the same network in float64."""

    seed: int
    net: nn.Module
    net64: nn.Module
    x0: Tensor
    eps: Tensor
    what: str


def draw(seed: int) -> Case:
    """The case of this seed."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice([torch.float32, torch.float64])
    net, x0 = _architecture(rng)
    batch = rng.choice([1, 1, 2, 3])
    x0 = _inputs(rng, generator, (batch, *x0.shape[1:])) * _scale(rng, 3)
    size = 10.0 ** (rng.uniform(-12, 6) if rng.random() < 0.5 else rng.uniform(-3, 1))
    eps = size * 10.0 ** torch.tensor([0.0] + [rng.uniform(-1, 1) for _ in range(batch - 1)], dtype=torch.float64)
    eps = eps.clamp(1e-12, 1e6)
    spread = 12 if rng.random() < 0.5 else 0
    biases = rng.choice(["none", "plain", "plain", "kinks", "kinks", "active", "dead"])
    x0 = x0.to(dtype).double()
    with torch.no_grad():
        Parameters(rng, generator, spread, biases).fill(net, x0[:1], size)
    net = net.to(dtype).eval()
    net64 = copy.deepcopy(net).double()
    kinds = "-".join(module.name if isinstance(module, Fixed) else type(module).__name__ for module in net)
    what = f"{kinds} {str(dtype)[6:]} B={batch} ε={size:.2g} weights 1e±{spread} biases {biases}"
    return Case(seed, net, net64, x0.to(dtype), eps, what)


def _architecture(rng: random.Random) -> tuple[nn.Sequential, Tensor]:
    if rng.random() < 0.25:
        return rng.choice([dense_operations, dense_operations, image_operations])(rng)
    kind = rng.random()
    if kind < 0.3:
        return random_dense(rng)
    if kind < 0.6:
        return random_convolutional(rng)
    if kind < 0.7:
        return _pooled(rng)
    width, n = rng.randint(1, 40), rng.randint(1, 30)
    layers: list[nn.Module] = [nn.Linear(n, width)]
    for _ in range(rng.randint(1, 5)):
        if kind < 0.8:
            layers += [nn.ReLU(), Residual(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))]
        elif kind < 0.87:
            layers += [nn.Linear(width, width), Beside(nn.Sequential(nn.Linear(width, 2), nn.ReLU()))]
            width += 2
        else:
            layers += [_activation(rng, width), nn.Linear(width, width)]
    layers += [nn.ReLU(), nn.Linear(width, rng.randint(1, 5))]
    return nn.Sequential(*layers).double(), torch.zeros(1, n, dtype=torch.float64)


def _activation(rng: random.Random, width: int) -> nn.Module:
    """Slopes below 0 and above 1, one for each unit or for all, and functions that are neither convex nor concave."""
    prelu = nn.PReLU(width)
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([rng.uniform(-2, 2) for _ in range(width)]))
    leaky = nn.LeakyReLU(rng.choice([0.25, single(0.01), 1.5, -0.5]))
    return rng.choice([nn.ReLU(), leaky, prelu, nn.Hardtanh(single(-rng.random()), single(rng.random())), nn.ReLU6()])


def _pooled(rng: random.Random) -> tuple[nn.Sequential, Tensor]:
    """A convolution and max pooling with all its options, windows that reach over the edge among them."""
    side, kernel, dilation = rng.randint(6, 9), rng.choice([2, 3]), rng.choice([1, 2])
    pool = nn.MaxPool2d(kernel, rng.choice([1, 2, 3]), rng.choice([0, 1]), dilation, ceil_mode=rng.random() < 0.7)
    block = [nn.Conv2d(1, 2, 2), rng.choice([nn.ReLU(), nn.LeakyReLU(-0.5)]), pool, nn.Flatten()]
    x = torch.zeros(1, 1, side, side)
    features = nn.Sequential(*block)(x).shape[1]
    net = nn.Sequential(*block, nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, rng.randint(1, 4)))
    return net.double(), x.double()


def _scale(rng: random.Random, decades: float) -> float:
    return 10.0 ** rng.uniform(-decades, decades) if rng.random() < 0.4 else 1.0


def _inputs(rng: random.Random, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    if rng.random() < 0.1:
        return torch.zeros(shape, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass
class Parameters:
    """Draws weights and biases of the affine layers in order, following a nominal input through the network.

    spread: layers are scaled by 10^±spread; low, high: exponents of the products of these scales so far, over all paths
    through residual and parallel branches, kept within a float32.
    """

    rng: random.Random
    generator: torch.Generator
    spread: float
    biases: str
    low: float = 0.0
    high: float = 0.0

    def fill(self, module: nn.Module, x: Tensor, reach: float) -> tuple[Tensor, float]:
        """Draw for `module`, read at x (1, *shape) with a ball of about radius `reach`; the same behind it."""
        if isinstance(module, nn.Sequential):
            for inner in module:
                x, reach = self.fill(inner, x, reach)
            return x, reach
        if isinstance(module, Beside | Residual):
            low, high = self.low, self.high
            y, inner_reach = self.fill(module.inside, x, reach)
            self.low, self.high = min(low, self.low), max(high, self.high)
            return torch.cat([x, y], 1) if isinstance(module, Beside) else x + y, reach + inner_reach
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            return module(x), reach
        s = self.rng.uniform(-self.spread, self.spread)
        s = max(-LARGEST - self.low, min(LARGEST - self.high, s))
        self.low, self.high = self.low + s, self.high + s
        module.weight.copy_(_weights(module.weight.shape, self.rng, self.generator) * 10.0**s)
        if self.rng.random() < 0.1:
            module.weight[self.rng.randrange(len(module.weight))] = 0.0
        if module.bias is not None:
            module.bias.zero_()
        A, y = matrix_of(module, tuple(x.shape[1:])), module(x)
        if module.bias is not None:
            module.bias.copy_(_bias(self.biases, y, A.norm(dim=1).reshape(y.shape), reach, self.rng, self.generator))
        return module(x), reach * float(torch.linalg.matrix_norm(A, 2))


def _weights(shape: torch.Size, rng: random.Random, generator: torch.Generator) -> Tensor:
    """Gaussian, or of the kinds for which bounds are tight: non-negative, of rank one, orthogonal."""
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = rng.choice(["gaussian", "gaussian", "non-negative", "rank one", "orthogonal"])
    fan_in = W[0].numel()
    if kind == "non-negative":
        W = W.abs()
    elif kind == "rank one":
        W = torch.outer(W.flatten(1)[:, 0], W[0].flatten()).reshape(shape)
    elif kind == "orthogonal":
        torch.nn.init.orthogonal_(W, generator=generator)
        return W
    return W * 2.0 ** rng.uniform(-1, 1) / fan_in**0.5


def _bias(kind: str, y: Tensor, rows: Tensor, reach: float, rng: random.Random, generator: torch.Generator) -> Tensor:
    """One bias a unit or channel; y (1, C, ...) the pre-activations without it, rows their row norms.

    "kinks": a unit of each channel lies so close to its kink that the ball of radius `reach` reaches across.
    """
    t = torch.randn(y.shape[1], generator=generator, dtype=torch.float64)
    y, rows = y[0].reshape(y.shape[1], -1), rows[0].reshape(y.shape[1], -1)
    if kind == "none":
        return torch.zeros_like(t)
    if kind == "plain":
        return t * y.abs().amax().clamp(min=1e-12)
    if kind == "kinks":
        at = rng.randrange(y.shape[1])
        return -y[:, at] + 0.7 * t * rows[:, at] * reach
    largest = (y.abs() + 2.0 * rows * reach).amax(1)
    return largest if kind == "active" else torch.where(t > 0, -largest, t * largest)
