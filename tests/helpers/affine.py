"""Every affine layer against its explicit Jacobian: map, adjoint, changed entries, row norms, bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from explicit import jacobian, matrix_of, randomise
from torch import Tensor, nn

from local_lipschitz.layers.layer import INPUT
from local_lipschitz.layers.linear_maps import LinearMap
from local_lipschitz.layers.products import Separable
from local_lipschitz.reading.read import read


class Applied(nn.Module):
    """A function as a module, with the modules that it may use."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module):
        super().__init__()
        self.function, self.used = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def check(net: nn.Module, in_shape: tuple[int, ...], slack: float | None = 1.0, seed: int = 0) -> None:
    """One affine module: its graph against autograd's Jacobian of the module; row norms up to a factor `slack`."""
    net = randomise(net, seed)
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(1, *in_shape, generator=generator, dtype=torch.float64)
    J = jacobian(net, x0)
    graph = read(net, x0)
    (stage,) = graph.stages
    to = stage.to(torch.float64)
    m, n = J.shape

    torch.testing.assert_close(graph.forward(x0), net(x0))
    torch.testing.assert_close(matrix_of(lambda x: to.apply({INPUT: x}), in_shape), J)
    adjoint = to.adjoint(torch.eye(m, dtype=torch.float64).reshape(m, *graph.out_shape))[INPUT]
    torch.testing.assert_close(adjoint.reshape(m, n), J)
    torch.testing.assert_close(stage.matrix(INPUT, x0), J)
    y = net(torch.randn(2, *in_shape, generator=generator, dtype=torch.float64))
    assert y.shape[1:] == graph.out_shape

    # d is a mask for each of three inputs
    d = (torch.rand(3, *in_shape, generator=generator) < 0.6).double()
    wanted = (J[None] * d.reshape(3, 1, n)).norm(dim=2)
    rows = stage.row_norms(INPUT, d).reshape(3, m)
    if slack == 1.0:
        torch.testing.assert_close(rows, wanted)
    else:
        assert bool((rows >= wanted * (1 - 1e-12)).all())
        assert slack is None or bool((rows <= slack * wanted + 1e-12).all())
    if stage.is_selection(INPUT):
        assert int((J != 0).sum(0).max()) <= 1
        assert int((J != 0).sum(1).max()) <= 1

    for layer in graph.layers:
        A = layer.op
        if not isinstance(A, LinearMap):
            continue
        matrix = matrix_of(A.to(torch.float64).apply, A.in_shape)
        for change, in_place in ((torch.square, Tensor.square_), (torch.abs, Tensor.abs_)):
            changed = A.to(torch.float64).entries(change)
            torch.testing.assert_close(matrix_of(changed.apply, A.in_shape), change(matrix))
            x = torch.randn(2, *A.in_shape, generator=generator, dtype=torch.float64)
            torch.testing.assert_close(A.apply_changed(x, in_place), changed.apply(x))
            v = torch.randn(1, *A.out_shape, generator=generator, dtype=torch.float64)
            torch.testing.assert_close(changed.adjoint(v).flatten(), change(matrix).mT @ v.flatten())
        if not isinstance(A, Separable):  # which sums along one axis after the other
            assert A.terms >= int(max((matrix != 0).sum(1).max(), (matrix != 0).sum(0).max()))
        assert not A.one_per_row or int((matrix != 0).sum(1).max()) <= 1
        assert not A.one_per_column or int((matrix != 0).sum(0).max()) <= 1
        assert A.cost >= 0
