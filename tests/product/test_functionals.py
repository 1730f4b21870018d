"""Falls of single outputs: against sampled points, closed forms, and the two-sided bound they never exceed."""

import math

import pytest
import torch
from random_networks import random_network
from torch import nn

from local_lipschitz import certified_radius, global_bound, joint_bound, local_bound
from local_lipschitz.lower_bounds import ball_samples, gradient_lower_bound
from local_lipschitz.product.falls import largest_sum
from local_lipschitz.reading.read import read
from networks import mnist


def chain(*layers):
    return nn.Sequential(*layers).double().eval()


@torch.no_grad()
def rows_and_falls(net, x0, radii, count, seed):
    """C (K, m), and for `count` points of each ball (C·f(x0) − C·f(x)) / ‖x − x0‖, (count, K)."""
    graph = read(net, x0)
    C = torch.randn(4, *graph.out_shape, generator=torch.Generator().manual_seed(seed)).double()
    falls = []
    for eps in radii:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(C.shape, generator=generator)  # what C was drawn from
        delta = ball_samples(x0, eps, count, generator)
        length = delta.flatten(1).norm(dim=1, keepdim=True)
        falls.append(-graph.difference(x0, delta) @ C.T / length)  # without cancellation
    return C, falls


@pytest.mark.parametrize("part", range(2))
def test_no_sample_falls_further(part):
    """120 random networks, 500 points each, three radii; value covers rises too."""
    for seed in range(60 * part, 60 * part + 60):
        net, x0 = random_network(seed)
        radii = torch.tensor([1e-3, 0.3, 10.0]).double()
        C, falls = rows_and_falls(net, x0, radii, 500, seed)
        bound, everywhere = local_bound(net, x0, radii, outputs=C), global_bound(net, x0, outputs=C)
        for fallen, fall, value in zip(falls, bound.fall, bound.value, strict=True):
            assert (fallen <= fall + 1e-9).all()
            assert (fallen.abs() <= value + 1e-9).all()
            assert (fallen <= everywhere.fall[0] + 1e-9).all()


@pytest.mark.parametrize("layer", [nn.LeakyReLU(-0.5), nn.Hardtanh(-0.3, 0.4), nn.PReLU(init=1.7), nn.ReLU6()])
def test_other_activations_fall_no_further(layer):
    """Slopes below zero and above one, and functions that are neither convex nor concave."""
    for seed in range(30):
        torch.manual_seed(seed)
        net = chain(nn.Linear(3, 7), layer, nn.Linear(7, 5), layer, nn.Linear(5, 2))
        x0 = torch.randn(1, 3).double()
        radii = torch.tensor([0.01, 1.0]).double()
        C, falls = rows_and_falls(net, x0, radii, 2000, seed)
        for fallen, fall in zip(falls, local_bound(net, x0, radii, outputs=C).fall, strict=True):
            assert (fallen <= fall + 1e-9).all()


def test_the_gradient_as_eps_tends_to_zero():
    """No neuron switches: the fall is ‖∇(c·f)‖ exactly, through any number of layers."""
    for seed in range(10):
        torch.manual_seed(seed)
        net = chain(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
        x0, C = torch.randn(1, 6).double(), torch.randn(2, 3).double()
        J = torch.autograd.functional.jacobian(net, x0)[0, :, 0]
        bound = local_bound(net, x0, 1e-9, outputs=C)
        assert bound.fall[0].tolist() == pytest.approx((C @ J).norm(dim=1).tolist(), rel=1e-9)


def test_only_what_can_harm_counts():
    """x ↦ relu(x): from x0 < 0 it cannot fall, and rises by (x0 + ε)/ε of the way."""
    net = chain(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    x0 = torch.tensor([[-1.0]]).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.fill_(1.0)
    bound = local_bound(net, x0, 4.0, outputs=torch.tensor([[1.0], [-1.0]]))
    assert bound.fall[0].tolist() == pytest.approx([0.0, 0.75], abs=1e-9)
    assert bound.value[0].tolist() == pytest.approx([0.75, 0.75], rel=1e-9)


def test_two_neurons_that_cancel():
    """relu(x) − relu(−x) = x: rows add up with their signs where the product of norms gives √2·√2."""
    net = chain(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    x0, C = torch.tensor([[1.0]]).double(), torch.ones(1, 1)
    assert float(local_bound(net, x0, 0.5, outputs=C).value) == pytest.approx(1.0, rel=1e-9)
    for eps in (2.0, 10.0):  # the second one wakes up, with slopes up to s: (1 + s/2) + s/2 is the bound
        s = 1.0 - 1.0 / eps
        assert float(local_bound(net, x0, eps, outputs=C).fall) == pytest.approx(1.0 + s, rel=1e-9)


def test_branches():
    """A residual block: rows of both branches meet again."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = torch.relu(self.a(x))
            return self.c(torch.relu(y + self.b(y)))

    for seed in range(20):
        torch.manual_seed(seed)
        net, x0 = Block().double().eval(), torch.randn(1, 4).double()
        radii = torch.tensor([1e-9, 0.2, 2.0]).double()
        C, falls = rows_and_falls(net, x0, radii, 1000, seed)
        bound = local_bound(net, x0, radii, outputs=C)
        for fallen, fall in zip(falls, bound.fall, strict=True):
            assert (fallen <= fall * (1 + 1e-6) + 1e-9).all()
        J = torch.autograd.functional.jacobian(net, x0)[0, :, 0]
        assert bound.fall[0].tolist() == pytest.approx((C @ J).norm(dim=1).tolist(), rel=1e-6)


def test_one_output_is_within_its_own_network_and_attained_values():
    """Not above the same function as a network of one output, not below what gradient ascent finds."""
    for seed in range(10):
        torch.manual_seed(seed)
        net = chain(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        x0 = torch.randn(1, 5).double()
        C = torch.eye(3).double()[:1] - torch.eye(3).double()[1:2]
        margin = nn.Linear(6, 1).double()
        with torch.no_grad():
            margin.weight.copy_(C @ net[4].weight)
            margin.bias.zero_()
        alone = chain(*net[:4], margin)
        for eps in (0.01, 0.5):
            value = float(local_bound(net, x0, eps, outputs=C).value)
            assert float(gradient_lower_bound(alone, x0, eps, starts=8)) <= value
            assert value <= float(local_bound(alone, x0, eps)) * (1 + 1e-9)


def test_largest_sum_against_random_points_and_its_optimum():
    """Never below a feasible sum; equal to the sum at d = min(cap, a·t) with ‖d‖ = radius."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        n = int(torch.randint(1, 12, (), generator=generator))
        a, cap = torch.rand(2, 1, 1, n, generator=generator, dtype=torch.float64) ** 3
        radius = 2.0 * torch.rand(1, generator=generator, dtype=torch.float64)
        value = float(largest_sum(a, cap, radius))
        low, high = 0.0, 1e9
        for _ in range(200):
            t = 0.5 * (low + high)
            low, high = (t, high) if float(torch.minimum(cap, a * t).norm()) <= float(radius) else (low, t)
        assert value == pytest.approx(float((a * torch.minimum(cap, a * low)).sum()), rel=1e-9)
    zero = torch.zeros(1, 1, 3).double()
    assert float(largest_sum(zero, zero + 1, torch.ones(1).double())) == 0.0
    assert float(largest_sum(zero + 1, zero, torch.ones(1).double())) == 0.0
    assert float(largest_sum(zero + 1, zero + 1, torch.zeros(1).double())) == 0.0
    assert float(largest_sum(zero + 1, zero + 9, torch.ones(1).double())) == pytest.approx(math.sqrt(3))


def test_joint_falls_no_further_than_local():
    net, x0 = random_network(3)
    C = torch.randn(3, net(x0).shape[1]).double()
    local, joint = (bound(net, x0, 0.3, outputs=C, failure_probability=1e-9) for bound in (local_bound, joint_bound))
    assert (joint.fall <= local.fall * (1 + 1e-9)).all() and (joint.fall <= joint.value).all()


def test_mnist_pairwise_is_half_as_far_again():
    """The figure that the project promises, on the nominal digit."""
    net = mnist.net()
    pairwise, paper = (certified_radius(net, mnist.x0, margins=margins) for margins in ("pairwise", "paper"))
    assert float(pairwise.radius) >= 1.5 * float(paper.radius) > 0.0
