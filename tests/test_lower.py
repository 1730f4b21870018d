"""Lower bounds are attained: below every upper bound, close to the truth where it is known."""

import math

import pytest
import torch
from random_networks import random_network
from torch import nn

from local_lipschitz import local_bound
from local_lipschitz.lower_bounds import ball_samples, gradient_lower_bound, random_lower_bound
from networks import tiny


def test_gradient_finds_the_norm_of_a_linear_map():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 15)).double().eval()
    truth = float(torch.linalg.matrix_norm(net[0].weight, 2))
    found = gradient_lower_bound(net, torch.zeros(1, 20, dtype=torch.float64), torch.tensor([1e-3, 1.0]))
    assert found.tolist() == pytest.approx([truth, truth], rel=1e-3)
    assert (found <= truth).all()


def test_gradient_reaches_the_far_side_of_a_kink():
    """f(x) = relu(x − 1): nothing moves within ε = 1; at radius ε the quotient is (ε − 1)/ε."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for linear, bias in ((net[0], -1.0), (net[2], 0.0)):
            linear.weight.fill_(1.0)
            linear.bias.fill_(bias)
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    assert random_lower_bound(net, x0, 4.0, samples=4000).item() == pytest.approx(0.75, rel=1e-2)
    assert random_lower_bound(net, x0, 0.5, samples=500).item() == 0.0


def test_neither_exceeds_the_bound():
    for seed in range(40):
        net, x0 = random_network(5000 + seed)
        eps = torch.tensor([1e-6, 0.1, 3.0])
        upper = local_bound(net, x0, eps).value
        assert (random_lower_bound(net, x0, eps, samples=300) <= upper).all()
        assert (gradient_lower_bound(net, x0, eps, starts=8, steps=10) <= upper).all()


def test_seeded():
    net, x0 = tiny.net(), tiny.x0
    first, again = (random_lower_bound(net, x0, 0.1, samples=2000, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_lower_bound(net, x0, 0.1, samples=2000, seed=4))


def test_samples_are_uniform_in_the_ball():
    """(‖δ‖/ε)^n is uniform on [0, 1]; the direction has mean 0 and covariance I/n."""
    n, count, eps = 5, 40_000, 2.0
    delta = ball_samples(torch.zeros(1, n, dtype=torch.float64), eps, count, torch.Generator().manual_seed(0))
    radius = delta.norm(dim=1)
    assert radius.max() <= eps * (1 + 1e-12)
    u = ((radius / eps) ** n).sort().values
    deviation = (u - torch.linspace(0, 1, count, dtype=torch.float64)).abs().max()
    assert float(deviation) < 1.95 / math.sqrt(count)  # Kolmogorov–Smirnov at 0.1 %
    direction = delta / radius[:, None]
    assert direction.mean(0).abs().max() < 4 / math.sqrt(n * count)
    covariance = direction.T @ direction / count
    assert (covariance - torch.eye(n) / n).abs().max() < 5 / math.sqrt(count) / n


def test_gradients_pass_what_was_made_in_inference_mode():
    with torch.inference_mode():
        net, x0 = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(1, 6)
        inside = gradient_lower_bound(net, x0, 0.1, starts=2, steps=3)
    assert torch.equal(gradient_lower_bound(net, x0, 0.1, starts=2, steps=3), inside)
    assert 0 < float(inside) <= float(local_bound(net, x0, 0.1))
