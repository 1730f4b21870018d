"""Norms by passes where a stage's map moves elements, adds or repeats them: no vector of the process is overwritten."""

import pytest
import torch
from torch import nn

from local_lipschitz import global_bound, local_bound
from local_lipschitz.norms.spectral_norm import DENSE_SIDE

N = 2 * (DENSE_SIDE + 20)


class Map(nn.Module):
    def __init__(self, function):
        super().__init__()
        scale = 0.5 + torch.rand(N, generator=torch.Generator().manual_seed(1))
        self.function, self.scale = function, nn.Parameter(scale)

    def forward(self, x):
        return self.function(x, self.scale)


MAPS = {
    "halves added": lambda x, s: x[:, : N // 2] + x[:, N // 2 :],
    "halves added, scaled": lambda x, s: s[: N // 2] * x[:, : N // 2] + x[:, N // 2 :],
    "added to its reverse": lambda x, s: x + s * x.flip(1),
    "added to itself": lambda x, s: x + x.reshape(len(x), 2, N // 2).flatten(1) + x.flip(1),
    "repeated": lambda x, s: torch.cat([x, s * x, x], 1),
    "less its mean": lambda x, s: x - x.mean(1, keepdim=True),
    "pairs and their sums": lambda x, s: torch.cat([x[:, ::2], x[:, ::2] + s[1::2] * x[:, 1::2]], 1),
    "differences": lambda x, s: x[:, 1:] - x[:, :-1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAPS)
def test_the_norm_of_a_map_that_copies_nothing(name, dtype):
    net, x0 = Map(MAPS[name]).to(dtype).eval(), torch.rand(1, N, generator=torch.Generator().manual_seed(2)).to(dtype)
    J = torch.autograd.functional.jacobian(net.double(), x0.double())[0, :, 0]
    truth = float(torch.linalg.matrix_norm(J, 2))
    net.to(dtype)
    for bound in (global_bound(net, x0), local_bound(net, x0, 0.1), local_bound(net, x0, torch.tensor([0.1, 2.0]))):
        assert bound.value.amin() >= truth and bound.value.amax() <= truth * (1.0 + 3e-3)
