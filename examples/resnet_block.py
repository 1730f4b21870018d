"""Bounds of a ResNet-18 block, with its projection and batch norm:  python examples/resnet_block.py"""

import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # not needed after `pip install .`

from local_lipschitz import global_bound, joint_bound, local_bound

torch.manual_seed(0)
projection = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
net = nn.Sequential(
    BasicBlock(4, 8, stride=2, downsample=projection),  # relu(g(x) + projection(x)): (B, 4, 8, 8) -> (B, 8, 4, 4)
    BasicBlock(8, 8),  # relu(g(x) + x)
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
).eval()  # fmt: skip
x0 = torch.randn(1, 4, 8, 8)

# Where the branches meet, local_bound adds their norms; to joint_bound their sum is one more linear map.
jacobian = torch.autograd.functional.jacobian(net, x0).reshape(10, -1)
print(f"slope at x0   {float(torch.linalg.matrix_norm(jacobian, 2)):.4f}")
for eps in (0.001, 0.1):
    local, joint = float(local_bound(net, x0, eps)), float(joint_bound(net, x0, eps))
    print(f"ε = {eps:<7} local {local:.4f}   joint {joint:.4f}")
print(f"any ε         global {float(global_bound(net, x0)):.4f}")
