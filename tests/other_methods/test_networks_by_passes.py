"""Convolutions and max pooling: the methods by passes against the same network as matrices, and against the truth.

Max pooling of pairs is a network of relus as well, max(a, b) = a + relu(b − a), so that dense methods and exact
Jacobians judge it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explicit import jacobian, matrix_of, randomise
from torch import nn

from local_lipschitz import UnsupportedLayerError
from other_methods.aol import aol, before_pooling, input_weights
from other_methods.chain import Ball, random_chain
from other_methods.common.leading import leading
from other_methods.common.network import as_network, chain_of, network_of, norm_of
from other_methods.common.preactivation import preactivation_bounds
from other_methods.common.preactivation_passes import ranges, ranges_of_bounds
from other_methods.common.sampled import lower_bounds_by_passes
from other_methods.eclipse import eclipse
from other_methods.eclipse_passes import eclipse_fast
from other_methods.liplt import liplt
from other_methods.lipsdp import lipsdp
from other_methods.recurjac import recurjac
from other_methods.seqlip import autolip, factors, largest_relaxed, seqlip


def convolutions(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """Without pooling: one chain of matrices."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 2, bias=True), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    return randomise(net, seed), torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()


def pooled(seed: int = 0, kernel: int = 2, stride: int = 2, padding: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """With max pooling, its windows apart or overlapping."""
    pool = nn.MaxPool2d(kernel, stride, padding)
    size = pool(torch.zeros(1, 3, 6, 6)).numel()
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    return randomise(net, seed), torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).double()


POOLS = [(2, 2, 0), (3, 2, 1), (3, 1, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_by_passes_as_by_matrices(seed):
    net, x0 = convolutions(seed)
    network, (chain, flat) = network_of(net, x0), chain_of(net, x0)
    dense = as_network(chain)
    for method in (autolip, liplt, aol, lambda n: aol(n, "product"), lambda n: seqlip(n, "relaxed")):
        assert method(network) == pytest.approx(method(dense), rel=5e-3)
    assert seqlip(network, "greedy") == pytest.approx(seqlip(dense, "greedy"), rel=1e-6)
    for eps in (0.01, 0.3):
        for p in (1.0, 2.0, np.inf):
            ball = Ball(flat, eps, p)
            for relaxation in ("interval", "crown"):
                for form in ("fastlip", "recurjac"):
                    by_matrices = recurjac(chain, ball, p, form, relaxation)
                    room = 1e-9 if relaxation == "interval" else 0.02  # by passes CROWN looks at what is unsure only
                    value = recurjac(network, ball, p, form, relaxation)
                    assert by_matrices * (1 - 1e-9) <= value <= by_matrices * (1 + room)
                bounds = ranges_of_bounds(network, preactivation_bounds(chain, ball, relaxation))
                for (low, high), (lower, upper) in zip(ranges(network, ball, relaxation), bounds, strict=True):
                    unsure = (low < 0) & (high > 0)
                    assert (unsure == (lower < 0) & (upper > 0)).all()
                    torch.testing.assert_close(low[unsure], lower[unsure], rtol=room, atol=room)
                    torch.testing.assert_close(high[unsure], upper[unsure], rtol=room, atol=room)


@pytest.mark.parametrize("shape", POOLS)
@pytest.mark.parametrize("seed", range(2))
def test_pooling_against_jacobians_and_values_in_the_ball(shape, seed):
    net, x0 = pooled(seed, *shape)
    network, flat = network_of(net, x0), x0.flatten().numpy()
    generator = torch.Generator().manual_seed(seed)
    for eps in (0.05, 0.5):
        ball = Ball(flat, eps)
        steps = torch.randn(60, 36, generator=generator, dtype=torch.float64)
        x = x0 + (eps * steps / steps.norm(dim=1, keepdim=True)).reshape(-1, 1, 6, 6)
        J = torch.stack([jacobian(net, point[None]) for point in x])
        pairs = lower_bounds_by_passes(net, x0, eps, points=3)["local"]
        found = max(float(torch.linalg.matrix_norm(J, 2).max()), pairs)
        for relaxation in ("interval", "crown"):
            known = ranges(network, ball, relaxation)
            y, values = x, []
            for module in net:
                if isinstance(module, nn.ReLU | nn.MaxPool2d):
                    values.append(y)
                y = module(y)
            for value, (low, high) in zip(values, known, strict=True):
                assert (low <= value).all() and (value <= high).all()
            fast, recursive = (recurjac(network, ball, 2, form, relaxation) for form in ("fastlip", "recurjac"))
            assert recursive >= found and fast >= found


@pytest.mark.parametrize("shape", POOLS)
def test_recurjac_becomes_the_jacobian_as_the_radius_goes_to_zero(shape):
    net, x0 = pooled(1, *shape)
    network, ball = network_of(net, x0), Ball(x0.flatten().numpy(), 1e-9)
    J = jacobian(net, x0)
    for form in ("fastlip", "recurjac"):
        assert recurjac(network, ball, 2, form) == pytest.approx(float(torch.linalg.matrix_norm(J.abs(), 2)), rel=1e-6)


def test_recurjac_without_recursion_is_a_bound_too(monkeypatch):
    net, x0 = pooled(0)
    network, ball = network_of(net, x0), Ball(x0.flatten().numpy(), 0.3)
    whole = recurjac(network, ball)
    monkeypatch.setattr("other_methods.common.jacobian_bounds.jacobian_bounds.__defaults__", (0.0,))
    assert recurjac(network, ball) >= whole


@pytest.mark.parametrize("shape", POOLS)
@pytest.mark.parametrize("seed", range(2))
def test_global_methods_hold_with_pooling(shape, seed):
    net, x0 = pooled(seed, *shape)
    network = network_of(net, x0)
    found = lower_bounds_by_passes(net, x0, 1.0, seed, points=6)
    assert found["anchored"] <= found["local"] <= found["global"]
    for method in (autolip, liplt, aol, lambda n: seqlip(n, "relaxed"), lambda n: seqlip(n, "exact")):
        assert method(network) >= found["global"]
    windows = {(2, 2, 0): 1, (3, 2, 1): 4, (3, 1, 0): 9}[shape]
    assert network.pooling == pytest.approx(windows**0.5)
    norms = [link.norm for run in network.segments for link in run]
    assert autolip(network) == pytest.approx(network.pooling * np.prod(norms))


@pytest.mark.parametrize("rank", [2, 5])
def test_leading_pairs_and_their_rest(monkeypatch, rank):
    """Truncated: the pairs and the rest add up to the map; the relaxed form stays above the greedy one of all pairs."""
    net, x0 = convolutions()
    network = network_of(net, x0)
    whole, full = seqlip(network, "exact"), factors(network.links)
    monkeypatch.setattr("other_methods.common.leading.FULL_SIDE", 0)
    for left in (False, True):
        for link in network.links[:2]:
            pairs, M = leading(link, left, rank), torch.from_numpy(link.matrix())
            rest = float(torch.linalg.matrix_norm(M - (pairs.U * pairs.S) @ pairs.V, 2))
            assert rest <= pairs.rest <= 1.05 * rest + 1e-9
            singular = torch.linalg.svdvals(M)
            assert rest >= float(singular[len(pairs.S)]) * (1 - 1e-9)
            assert rest <= float(singular[len(pairs.S)]) * 1.3  # the leading ones, or nearly
    assert whole <= seqlip(network, "relaxed", rank=rank) <= autolip(network)
    for part, pair in zip(factors(network.links, rank), full, strict=True):
        assert part.with_rest(largest_relaxed(part.A, part.B)) >= float(torch.linalg.matrix_norm(pair.A @ pair.B, 2))
    with pytest.raises(RuntimeError, match="too large to decompose"):
        seqlip(network, "exact")


def test_the_weights_of_aol():
    """Column sums of |Wᵀ diag(d) W| for a convolution whose columns are taken many at a time."""
    torch.manual_seed(0)
    for options in ({"stride": 2, "padding": 1}, {"dilation": 2}, {"padding": 2, "groups": 2}):
        net, x0 = randomise(nn.Sequential(nn.Conv2d(2, 4, 3, **options))), torch.zeros(1, 2, 13, 11).double()
        link = network_of(net, x0).links[0]
        d = torch.rand(1, *link.out_shape).double()
        W = matrix_of(link.apply, link.in_shape)
        exact = (W.mT @ (d.flatten()[:, None] * W)).abs().sum(0)
        torch.testing.assert_close(input_weights(link, d).flatten(), exact, rtol=1e-10, atol=0.0)
    pool = network_of(*pooled(0, 3, 2, 1)).links[1].unit
    d = torch.rand(1, *pool.out_shape).double()
    counts = nn.functional.conv_transpose2d(d, torch.ones(3, 1, 3, 3).double(), None, 2, 1, 1, 3)
    torch.testing.assert_close(before_pooling(pool, d), counts[..., :6, :6])


@pytest.mark.parametrize("seed", range(2))
def test_norms_of_compositions(seed):
    network = network_of(*convolutions(seed))
    dense = np.linalg.multi_dot([link.matrix() for link in reversed(network.links)])
    assert np.linalg.norm(dense, 2) <= norm_of(network.links) <= np.linalg.norm(dense, 2) * 1.01


@pytest.mark.parametrize("widths", [(6, 9, 4), (5, 12, 9, 4)])
def test_eclipse_fast_by_passes(widths):
    """Of the same multipliers up to the sum that is cut off; never below LipSDP."""
    chain = random_chain(widths, 1)
    by_passes = eclipse_fast(as_network(chain).links)
    assert eclipse(chain, "fast") * (1 - 1e-5) <= by_passes <= eclipse(chain, "fast") * 1.01
    assert lipsdp(chain) <= by_passes <= autolip(as_network(chain))


@pytest.mark.parametrize("widths", [(4, 6, 3), (3, 5, 4, 6, 2)])
def test_the_chordal_form_is_the_neuron_form(widths):
    chain = random_chain(widths, 2)
    assert lipsdp(chain, "chordal") == pytest.approx(lipsdp(chain, "neuron"), rel=1e-5)


def test_what_is_not_such_a_network():
    for net, message in (
        (nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2)), "'1'.*affine layers, ReLU and max pooling"),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "Tanh"),
    ):
        with pytest.raises(UnsupportedLayerError, match=message):
            network_of(net.eval(), torch.zeros(1, 4))
