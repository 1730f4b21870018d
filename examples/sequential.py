"""Bounds of an nn.Sequential with batch norm and average pooling:  python examples/sequential.py"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # not needed after `pip install .`

from local_lipschitz import describe, global_bound, local_bound

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),  # (B, 4, 7, 7)
    nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), nn.LeakyReLU(0.1),  # (B, 8, 7, 7)
    nn.MaxPool2d(3, stride=2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 10),
).eval()  # fmt: skip
x0 = torch.rand(1, 1, 14, 14)

print(describe(net, x0))  # what becomes of each layer
eps = torch.tensor([0.01, 0.1, 1.0, 10.0])
for radius, value in zip(eps.tolist(), local_bound(net, x0, eps).value.tolist(), strict=True):
    print(f"‖x − x0‖ ≤ {radius:<5.2g}  ‖f(x) − f(x0)‖ ≤ {value:.4f} ‖x − x0‖")
print(f"any x             ‖f(x) − f(x0)‖ ≤ {float(global_bound(net, x0)):.4f} ‖x − x0‖")
