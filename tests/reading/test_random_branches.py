"""Bounds of random networks whose forward() branches."""

import torch
import torch.nn.functional as F
from explicit import jacobian, randomise, sampled_quotient
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from local_lipschitz import global_bound, local_bound
from local_lipschitz.reading.read import read

# Random networks with branches


class Random(nn.Module):
    """Steps on a list of values, each (B, n) of its own n: what `steps` says, the last value being the output."""

    def __init__(self, n: int, steps: list[tuple]):
        super().__init__()
        self.steps, self.linears, sizes = steps, nn.ModuleList(), [n]
        for kind, i, j, width in steps:
            if kind == "linear":
                self.linears.append(nn.Linear(sizes[i], width))
            sizes.append(width if kind == "linear" else sizes[i] + (sizes[j] if kind == "cat" else 0))

    def forward(self, x: Tensor) -> Tensor:
        values, linears = [x], iter(self.linears)
        for kind, i, j, _ in self.steps:
            a, b = values[i], values[j]
            if kind == "linear":
                values.append(next(linears)(a))
            elif kind == "cat":
                values.append(torch.cat([a, b], 1))
            elif kind == "add":
                values.append(a + b if a.shape == b.shape else a * 0.5)
            elif kind == "pool":
                values.append(F.max_pool1d(a.unsqueeze(1), 3, 1, 1).squeeze(1))
            else:
                values.append({"relu": F.relu, "leaky": lambda x: F.leaky_relu(x, -0.3), "abs": torch.abs}[kind](a))
        return values[-1]


@st.composite
def random_networks(draw) -> tuple[nn.Module, Tensor]:
    n = draw(st.integers(1, 4))
    steps, count = [], draw(st.integers(3, 12))
    for k in range(count):
        kind = draw(st.sampled_from(["linear", "relu", "relu", "add", "cat", "leaky", "abs", "pool"]))
        recent = st.integers(max(0, k - 3), k)
        steps.append((kind, draw(recent), draw(recent), draw(st.integers(1, 5))))
    steps.append(("linear", count, count, 3))
    net = randomise(Random(n, steps), draw(st.integers(0, 10**6)))
    x0 = torch.randn(1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6))))
    return net, x0


@given(random_networks(), st.sampled_from([1e-6, 0.05, 0.5, 5.0]))
@settings(max_examples=100)
def test_random_branched_networks(case, eps):
    net, x0 = case
    x = torch.randn(3, *x0.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(read(net, x0).forward(x), net(x))
    bound, above_all = float(local_bound(net, x0, eps)), float(global_bound(net, x0))
    assert sampled_quotient(net, x0, eps, seed=2) <= bound * (1 + 1e-6) + 1e-12
    assert float(torch.linalg.matrix_norm(jacobian(net, x0), 2)) <= bound * (1 + 1e-9) + 1e-12
    assert bound <= above_all * (1 + 1e-9)
