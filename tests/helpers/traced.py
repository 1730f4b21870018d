"""A module whose forward() a test writes."""

import torch
from explicit import randomise
from torch import Tensor, nn


class Net(nn.Module):
    """Layers to write a forward() with; the function gets the module and its input, (B, 2, 6, 6)."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.same = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(3), nn.ReLU()
        self.fc, self.last = nn.Linear(48, 5), nn.Linear(5, 3)
        self.mid = nn.Linear(5, 5)
        self.register_buffer("mean", torch.tensor([0.4, -0.3]).view(1, 2, 1, 1))
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5, -2.0]))
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def net_and_input(forward) -> tuple[nn.Module, Tensor]:
    net = randomise(Net(forward))
    return net, torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
