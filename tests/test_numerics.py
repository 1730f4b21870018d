"""Numerical honesty: float32 against float64, rounding near a kink, and how often a randomised bound fails."""

import math

import exact
import pytest
import torch
from campaign_cases import draw
from random_networks import random_network
from test_theorems import normal
from torch import nn

from local_lipschitz import global_bound, joint_bound, local_bound
from local_lipschitz.layers.activations import RELU
from local_lipschitz.lower_bounds import ball_samples
from local_lipschitz.reading.read import read


def test_float32_is_never_below_the_exact_value_in_float64():
    """1,000 cases: the bound in float32, by Lanczos, against the same bound in float64 by dense solves."""
    closest = math.inf
    eps = torch.logspace(-4, 2, 16)
    for seed in range(63):
        net, x0 = random_network(20_000 + seed)
        net, x0 = net.float(), x0.float()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("local_lipschitz.product.stage_norms.DENSE_SIDE", 0)
            single = local_bound(net, x0, eps).value
        exactly = local_bound(net.double(), x0.double(), eps, certified=False).value
        assert (single >= exactly).all()
        closest = min(closest, float((single / exactly.clamp(min=1e-300)).min()))
    assert closest < 1.0 + 1e-3  # and not by a wide margin


def test_failures_of_a_bound_are_rarer_than_its_failure_probability(monkeypatch):
    """With η = 0.3 in all; a network whose norms hide their top, so that failures do happen."""
    monkeypatch.setattr("local_lipschitz.product.stage_norms.DENSE_SIDE", 0)
    net = nn.Sequential(nn.Linear(120, 110, bias=False), nn.ReLU(), nn.Linear(110, 105, bias=False)).double().eval()
    with torch.no_grad():
        for linear in (net[0], net[2]):
            U, V = (torch.linalg.qr(normal(n, 105))[0] for n in (linear.out_features, linear.in_features))
            s = torch.cat([torch.ones(1), 0.98 * torch.ones(40), torch.linspace(0.9, 0, 64)]).double()
            linear.weight.copy_((U * s) @ V.T)
    x0 = torch.zeros(1, 120, dtype=torch.float64)
    results = [global_bound(net, x0, tolerance=0.02, failure_probability=0.3, seed=seed) for seed in range(100)]
    failures = sum(float(result) < 1.0 for result in results)
    assert all(result.failure_probability == pytest.approx(0.3) for result in results)
    assert 0 < failures <= 0.3 * 100  # they do happen, and the rate is below η


def test_differences_through_the_layers_are_the_exact_ones():
    """Graph.difference against rational arithmetic, down to ε = 1e-12."""
    for seed in range(25):
        case = draw(31_000_000 + seed)
        x0 = case.x0[:1].double()
        delta = ball_samples(x0, float(case.eps[0]), 1, torch.Generator().manual_seed(seed))
        ours = read(case.net64, x0).difference(x0, delta).flatten()
        truth = torch.tensor([float(value) for value in exact.change(case.net64, x0[0], delta[0])], dtype=torch.float64)
        scale = float(global_bound(case.net64, x0)) * float(delta.norm())
        # a unit whose kink lies within rounding of y0 may be seen on the wrong side of it
        rounding = 1e-13 * float(global_bound(case.net64, x0)) * (float(x0.norm()) + 1e-3)
        if "kinks" in case.what or "none" in case.what:
            scale += rounding / 1e-10
        assert float((ours - truth).norm()) <= 1e-10 * scale + 1e-300


@pytest.mark.parametrize("bound", [local_bound, joint_bound])
def test_rounding_near_a_kink_is_in_the_bound(bound):
    """f(x) = relu(a·x + b), a·x0 + b just below 0: at tiny ε the slope hangs on digits that float64 does not have."""
    exceeded = 0
    for seed in range(40):
        net = nn.Sequential(nn.Linear(7, 1), nn.ReLU(), nn.Linear(1, 1, bias=False)).double().eval()
        x0, eps = normal(1, 7, seed=seed), 10.0 ** (-7.0 - seed % 5)
        with torch.no_grad():
            net[0].weight.copy_(normal(1, 7, seed=seed + 100))
            net[2].weight.fill_(1.0)
            net[0].bias.zero_()
            net[0].bias.copy_(-net[0](x0)[0] - 0.5 * eps * net[0].weight.norm())
        a = net[0].weight.detach()
        delta = eps * (1 - 1e-15) * a / a.norm()
        value = float(bound(net, x0, eps))
        assert not exact.exceeds(net, x0[0], delta[0], value)
        assert value <= float(a.norm())
        naive = float(a.norm()) * float(RELU.secant_slopes(net[0](x0).detach(), eps * a.norm())[1]) * (1 + 1e-12)
        exceeded += exact.exceeds(net, x0[0], delta[0], naive)
    assert exceeded > 0  # what this test is about: without the rounding the bound is too small
