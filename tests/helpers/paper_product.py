"""The paper's bound of a chain, by explicit matrices: an independent judge of the product bound."""

import math

import torch
from explicit import jacobians
from torch import nn


def largest_singular_value(M):
    return float(torch.linalg.matrix_norm(M, 2))


@torch.no_grad()
def paper_product(net, x0, eps, norm=largest_singular_value):
    """The paper's formula for a LeNet-like chain with explicit matrices in float64 and dense SVDs.

    A convolution's matrix is the Jacobian of the layer, so nothing here shares code with the package.
    """
    x, D, radius, product = x0.double(), torch.ones(x0.numel(), dtype=torch.float64), eps, 1.0
    modules = [module for module in net if not isinstance(module, nn.Flatten)]
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Linear):
                x = x.flatten(1)
            A = jacobians(module, x)[0]
            y0 = module(x)
            A = A * D
            R = torch.ones(len(A), dtype=torch.float64)
            if isinstance(following, nn.ReLU):
                ybar = y0.flatten() + radius * A.norm(dim=1)
                R = torch.where(y0.flatten() >= 0, 1.0, (ybar / (ybar - y0.flatten())).clamp(min=0.0).nan_to_num(0.0))
                D = (ybar > 0).double() * (A.norm(dim=1) > 0)
            L = norm(R[:, None] * A)
            x, radius, product = y0, radius * L, product * L
        elif isinstance(module, nn.MaxPool2d):
            D = module(D.reshape(x.shape)).flatten()
            x = module(x)
            overlap = math.ceil(module.kernel_size / module.stride) ** 2
            radius, product = radius * math.sqrt(overlap), product * math.sqrt(overlap)
        else:
            x = module(x)
    return float(product)
