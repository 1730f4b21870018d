"""Bounds of a module whose forward() calls functions:  python examples/functional.py"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # not needed after `pip install .`

from local_lipschitz import UnsupportedLayerError, local_bound


class Net(nn.Module):
    """Pixels in [0, 255], (B, 1, 12, 12), to class scores; `softmax=True` would turn them into probabilities."""

    def __init__(self, softmax: bool = False):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(100, 10)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        x = (x / 255 - 0.13) / 0.31
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = self.fc(x.view(x.size(0), -1))
        return F.softmax(x, dim=1) if self.softmax else x


torch.manual_seed(0)
x0 = 255 * torch.rand(1, 1, 12, 12)
print(f"one grey level moves the scores by at most {float(local_bound(Net().eval(), x0, 1.0)):.4f}")
try:
    local_bound(Net(softmax=True).eval(), x0, 1.0)
except UnsupportedLayerError as error:
    print(f"refused: {error}")
