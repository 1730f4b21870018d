"""Inputs for the tests of layers."""

import torch
from torch import Tensor


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
