"""Explicit matrices of small maps, computed by torch's own modules and autograd: what the package is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from local_lipschitz.norms.lanczos import Operator
from local_lipschitz.numerics import gamma_n


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x at x (1, *shape), as a matrix (outputs, inputs)."""
    J = torch.autograd.functional.jacobian(f, x.detach())
    return J.reshape(-1, x.numel())


def jacobians(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x at each x (N, *shape), (N, m, n), for an f that treats inputs by themselves: from m copies of each."""
    with torch.no_grad():
        m = f(x[:1]).numel()
    copies = x.detach().repeat_interleave(m, 0).requires_grad_()
    with torch.enable_grad():
        y = f(copies).reshape(len(x), m, m)
        (rows,) = torch.autograd.grad(y.diagonal(dim1=1, dim2=2).sum(), copies)
    return rows.reshape(len(x), m, -1)


def matrix_of(A: Callable[[Tensor], Tensor], in_shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map that takes batches (B, *in_shape)."""
    n = torch.Size(in_shape).numel()
    return A(torch.eye(n, dtype=torch.float64).reshape(n, *in_shape)).reshape(n, -1).mT


def sampled_quotient(f: Callable[[Tensor], Tensor], x0: Tensor, eps: float, count: int = 200, seed: int = 0) -> float:
    """The largest ‖f(x) − f(x0)‖/‖x − x0‖ of random x, on the sphere of radius eps and inside."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, *x0.shape[1:], generator=generator, dtype=x0.dtype)
    norms = directions.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x0.dim() - 1))
    lengths = torch.rand(count, generator=generator, dtype=x0.dtype).reshape(norms.shape)
    lengths[: count // 2] = 1.0
    steps = eps * lengths * directions / norms
    same = x0.expand_as(steps).contiguous()  # a product with one row may round otherwise than one with many
    with torch.no_grad():
        change = (f(x0 + steps) - f(same)).flatten(1).norm(dim=1)
    return float((change / steps.flatten(1).norm(dim=1)).max())


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and running statistics drawn from `seed`, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            if name.endswith("running_var"):
                buffer.copy_(0.1 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return net


def operator_of(M, **masks):
    """The operator of a batch of explicit matrices (B, m, n)."""
    batch, m, n = M.shape
    return Operator(
        batch, m, n, lambda v: (M @ v[:, :, None])[:, :, 0], lambda u: (M.mT @ u[:, :, None])[:, :, 0],
        M.dtype, M.device, gamma_n(max(m, n), M.dtype) * M.double().abs().norm(dim=(1, 2)), **masks,
    )  # fmt: skip
