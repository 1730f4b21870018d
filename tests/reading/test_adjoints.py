"""Every linear map that is read is checked against its adjoint: ⟨Ax, y⟩ = ⟨x, Aᵀy⟩."""

import pytest
import torch
from torch import nn

from local_lipschitz import local_bound
from local_lipschitz.layers.linear_maps import Convolution
from local_lipschitz.layers.products import Separable
from local_lipschitz.layers.rearranging import Take
from local_lipschitz.reading.read import read


class Repeats(nn.Module):
    def forward(self, x):
        return x[:, [0, 0, 2]]


NETS = {
    Convolution: (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), (1, 1, 6, 6)),
    Separable: (nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9, 2)), (1, 1, 6, 6)),
    Take: (Repeats(), (1, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", NETS)
def test_a_wrong_adjoint_is_seen(kind, dtype, monkeypatch):
    net, shape = NETS[kind]
    net, x0 = net.to(dtype).eval(), torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert any(isinstance(layer.op, kind) for layer in read(net, x0).layers)
    right = kind.adjoint

    def one_entry_twice(self, y):
        x = right(self, y)
        x.reshape(-1)[0] += 1e-6 * y.reshape(-1)[0]
        return x

    monkeypatch.setattr(kind, "adjoint", one_entry_twice)
    with pytest.raises(ValueError, match="its map and the adjoint of it differ"):
        local_bound(net, x0, 0.1)
