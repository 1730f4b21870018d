"""Random small networks for the tests: widths, depths, convolutions, pooling, dead layers."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


def random_dense(rng: random.Random, scale: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    """A network of 1 to 4 Linear layers of width 1 to 12 with ReLUs between, and an input (1, n), both float64."""
    widths = [rng.randint(1, 12) for _ in range(rng.randint(2, 5))]
    layers: list[nn.Module] = []
    for n, m in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n, m, bias=rng.random() < 0.8), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    return _drawn(net, rng, scale), _input(rng, (widths[0],))


def random_convolutional(rng: random.Random, scale: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    """Convolution, ReLU and pooling in some order, then Linear layers; an input (1, C, H, W), both float64."""
    shape = (rng.randint(1, 2), rng.randint(6, 9), rng.randint(6, 9))
    layers: list[nn.Module] = []
    x = torch.zeros(1, *shape)
    for _ in range(rng.randint(1, 2)):
        channels, groups = x.shape[1], 1
        out = rng.randint(1, 3)
        if channels == 2 and rng.random() < 0.3:
            groups, out = 2, 2
        conv = nn.Conv2d(
            channels, out, rng.choice([1, 2, 3, (2, 3)]), stride=rng.choice([1, 1, 2]), groups=groups,
            padding=rng.choice([0, 1]), dilation=rng.choice([1, 1, 2]), bias=rng.random() < 0.8,
        )  # fmt: skip
        pool = nn.MaxPool2d(rng.choice([2, 3]), stride=rng.choice([1, 2]), padding=rng.choice([0, 1]))
        block: list[nn.Module] = rng.choice([[conv, nn.ReLU()], [conv, nn.ReLU(), pool], [conv, pool, nn.ReLU()]])
        try:
            x = nn.Sequential(*block)(x)
        except RuntimeError:  # it no longer fits
            break
        layers += block
    layers.append(nn.Flatten())
    hidden = rng.randint(1, 8)
    layers += [nn.Linear(x[0].numel(), hidden), nn.ReLU(), nn.Linear(hidden, rng.randint(1, 4))]
    return _drawn(nn.Sequential(*layers), rng, scale), _input(rng, shape)


def random_network(seed: int, scale: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    """One or the other, float64, in eval mode."""
    rng = random.Random(seed)
    return rng.choice([random_dense, random_convolutional])(rng, scale)


def wide_network(seed: int) -> tuple[nn.Sequential, Tensor]:
    """Three layers of 100 to 60 neurons, some 200 of which bend at ε = 1, and ten outputs; an input (1, 30)."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(30, 100), nn.ReLU(), nn.Linear(100, 80), nn.ReLU(), nn.Linear(80, 60), nn.ReLU(),
                        nn.Linear(60, 10)).eval()  # fmt: skip
    return net, torch.randn(1, 30)


def _drawn(net: nn.Sequential, rng: random.Random, scale: float) -> nn.Sequential:
    """Gaussian weights of varied size; now and then a row is zero or a layer is dead."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    net = net.double().eval()
    with torch.no_grad():
        for module in net:
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator, dtype=torch.float64))
            module.weight.mul_(scale * 2 ** rng.uniform(-1, 1) / fan_in**0.5)
            if module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator, dtype=torch.float64))
                if rng.random() < 0.05:
                    module.bias.fill_(-100.0 * scale)  # dead unless ε is large
            if rng.random() < 0.15:
                module.weight[0] = 0.0
    return net


def _input(rng: random.Random, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(1, *shape, generator=generator, dtype=torch.float64)
