"""Three inputs, three ReLUs, three outputs: the paper's toy, small enough to check by hand."""

import torch
from torch import nn

from networks import ROOT
from networks._checkpoint import seeded

name = "tiny"
data_dir = ROOT / "data" / name
classes = ["0", "1", "2"]
eps_min, eps_max = 1e-5, 1e-3
box = pixel_scale = load_image = test_set = None  # not a network on images


def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
    """(B, 3) -> (B, 3), with the published weights, or with random ones drawn from `seed`."""
    with seeded(seed):
        first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    if not random_weights:
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[3.0, -1, 2], [-2, 7, 1], [5, -3, -1]]))
            first.bias.copy_(torch.tensor([3.0, 4, 2]))
            second.weight.copy_(torch.eye(3))
    return nn.Sequential(first, nn.ReLU(), second).eval()


with seeded(0):
    x0 = torch.rand(1, 3) + torch.tensor([-1.0, 2, 2])
