"""The other methods: the figures known for compnet, their parts against dense linear algebra, and every scale."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from test_other_methods_exact import exact, small
from torch import nn

import networks.compnet
from other_methods import lipsdp as lipsdp_module
from other_methods.aol import aol
from other_methods.chain import Ball, Chain, as_module, random_chain
from other_methods.common import certify
from other_methods.common.network import as_network, chain_of
from other_methods.common.preactivation import preactivation_bounds
from other_methods.common.reduced import reduce
from other_methods.compare_methods import lipmip_l2, lipopt_l2
from other_methods.eclipse import eclipse
from other_methods.liplt import liplt
from other_methods.lipmip import lipmip
from other_methods.lipopt import lipopt
from other_methods.lipsdp import lipsdp
from other_methods.recurjac import recurjac
from other_methods.seqlip import autolip, factors, largest_exact, largest_greedy, largest_relaxed, seqlip


@pytest.fixture(scope="module")
def compnet():
    return chain_of(networks.compnet.net(), networks.compnet.x0)


@pytest.mark.parametrize(
    ("method", "value", "digits"),
    [
        (lambda chain: autolip(as_network(chain)), 1.28691, 5),
        (lambda chain: seqlip(as_network(chain), "greedy"), 0.7012, 4),
        (lambda chain: lipsdp(chain, "neuron"), 0.54037, 5),
        (lambda chain: lipsdp(chain, "layer"), 0.59127, 5),
        (lambda chain: recurjac(chain, Ball(np.zeros(7), 0.0005), 2), 0.212, 3),
        (lambda chain: recurjac(chain, Ball(np.zeros(7), 0.1), 2), 0.306, 3),
    ],
)
def test_values_on_compnet(compnet, method, value, digits):
    assert round(float(method(compnet[0])), digits) == value


@pytest.mark.parametrize(("eps", "published"), [(0.0005, 0.29282), (0.1, 0.35280)])
def test_lipmip_on_compnet_is_exact(compnet, eps, published):
    chain, x0 = compnet
    result = lipmip(chain, Ball(x0, eps, np.inf), "inf", time_limit=60)
    truth = exact(chain, x0, eps, np.inf, np.inf)
    assert truth <= result.value <= truth + 1e-6
    assert result.gap < 1e-6 and result.lower <= truth * (1 + 1e-12)
    assert result.value == pytest.approx(published, abs=2e-5)  # published with the gap of a solver's defaults


def test_the_network_form_of_lipsdp_is_no_bound(compnet):
    """Two points of compnet whose quotient exceeds it; the neuron form holds for them."""
    chain, _ = compnet
    net = networks.compnet.net().double()
    best = np.zeros((1, 7))
    for rng in map(np.random.default_rng, range(4)):
        x = np.concatenate([best, 10.0 * rng.normal(size=(2000, 7))])
        for _ in range(15):  # climb: the points with the largest Jacobians, and random steps from them
            best = x[np.argsort(-np.linalg.norm(chain.jacobian(x), 2, axis=(1, 2)))[:100]]
            steps = 10.0 ** rng.uniform(-3, 1, size=(2000, 1)) * rng.normal(size=(2000, 7))
            x = np.concatenate([best, best[rng.integers(100, size=2000)] + steps])
    direction = np.linalg.svd(chain.jacobian(best[0]))[2][0]
    pair = torch.tensor(np.stack([best[0], best[0] + 1e-4 * direction]))
    with torch.no_grad():
        quotient = float((net(pair[1:]) - net(pair[:1])).norm() / (pair[1] - pair[0]).norm())
    unsound = lipsdp(chain, "network")
    assert unsound == pytest.approx(0.3270, abs=5e-5)
    assert quotient > 0.3787 > unsound
    assert quotient < 0.54037


def test_a_solver_that_errs_is_repaired(monkeypatch):
    """Multipliers a little or far off, or none: what comes out is a bound or an error, never less than the truth."""
    chain, x0 = small(0, (3, 5, 4, 2))
    ball, truth, everywhere = Ball(x0, 0.5), exact(chain, x0, 0.5), exact(chain, x0, np.inf)
    honest, rng = lipsdp_module._solve, np.random.default_rng(0)
    best = lipsdp(chain)
    for error in (4e-4, 0.1, 0.5):

        def false(*args, error=error):
            Lam, status = honest(*args)
            return np.maximum(Lam * (1.0 + error * rng.normal(size=Lam.shape)), 0.0), status

        monkeypatch.setattr(lipsdp_module, "_solve", false)
        assert everywhere <= lipsdp(chain) < np.inf
        assert truth <= lipsdp(chain, "neuron", ball) < np.inf
        if error == 4e-4:
            assert lipsdp(chain) == pytest.approx(best, rel=1e-2)
    monkeypatch.setattr(lipsdp_module, "_solve", lambda net, *args: (np.zeros(len(net.layer)), "optimal"))
    with pytest.raises(RuntimeError, match="'optimal' without usable multipliers"):
        lipsdp(chain)


def test_positive_semidefinite_is_never_said_of_what_is_not():
    ones = np.ones((2, 2))
    assert not certify.is_positive_semidefinite(ones - np.diag([0.0, 2.0**-50]))
    assert not certify.is_positive_semidefinite(ones + np.diag([0.0, 1e-6]), error=np.full((2, 2), 1e-6))
    assert certify.is_positive_semidefinite(ones + np.diag([0.0, 1e-6]))
    assert certify.is_positive_semidefinite(1e-200 * (ones + np.diag([0.0, 1e-6])))
    assert not certify.is_positive_semidefinite(np.array([[1.0, np.nan], [np.nan, 1.0]]))
    rng = np.random.default_rng(0)
    for n in (3, 20):
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        for smallest in (-1e-8, -1e-12, 1e-8):
            M = (Q * np.append(smallest, rng.uniform(1, 2, n - 1))) @ Q.T
            assert certify.is_positive_semidefinite(M) == (smallest > 0)


@pytest.mark.parametrize("seed", range(3))
def test_seqlip_against_all_corners(seed):
    net = as_network(random_chain((4, 6, 5, 4, 3), seed))
    product = 1.0
    for pair in factors(net.links):
        A, B = pair.A, pair.B
        corners = itertools.product((0.0, 1.0), repeat=A.shape[1])
        truth = max(float(torch.linalg.matrix_norm(A * torch.tensor(c) @ B, 2)) for c in corners)
        greedy = largest_greedy(A, B)
        assert greedy <= truth * (1 + 1e-9)
        assert truth <= largest_exact(A, B, 0.0) <= truth * (1 + 1e-8)  # whatever is known at the start
        assert truth <= largest_relaxed(A, B) <= 1.1 * truth
        product *= truth
    assert product <= seqlip(net) <= product * (1 + 1e-7)
    assert seqlip(net, "greedy") <= seqlip(net) <= seqlip(net, "relaxed") <= autolip(net)


def test_eclipse_fast_against_its_recursion():
    """Λ_k = 2/‖S_k‖, M_k = Λ_k − ¼Λ_k S_k Λ_k, S_{k+1} = W_{k+1} M_k⁻¹ W_{k+1}ᵀ, written down densely."""
    chain = random_chain((6, 9, 12, 8, 4), 1)
    S = chain.weights[0] @ chain.weights[0].T
    for W in chain.weights[1:]:
        lam = 2.0 / np.linalg.norm(S, 2)
        S = W @ np.linalg.inv(lam * np.eye(len(S)) - 0.25 * lam**2 * S) @ W.T
    assert eclipse(chain, "fast") == pytest.approx(np.sqrt(np.linalg.norm(S, 2)), rel=1e-5)
    assert lipsdp(chain) <= lipsdp(chain, "layer") * (1 + 1e-6) <= eclipse(chain, "fast") * (1 + 1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
def test_preactivation_bounds_hold_and_the_first_is_attained(p):
    chain, x0 = small(3, (4, 8, 8, 6, 3))
    ball, dual = Ball(x0, 0.4, p), {1.0: np.inf, 2.0: 2, np.inf: 1}[p]
    x = np.random.default_rng(0).normal(size=(20_000, 4))
    x = x0 + 0.4 * x / np.linalg.norm(x, ord=p, axis=1, keepdims=True)
    crown, interval = (preactivation_bounds(chain, ball, relaxation) for relaxation in ("crown", "interval"))
    for y, (low, high), (lowest, highest) in zip(chain.preactivations(x), crown, interval, strict=False):
        assert (low <= y.min(0)).all() and (y.max(0) <= high).all()
        assert (lowest <= low).all() and (high <= highest).all()
    W, b = chain.weights[0], chain.biases[0]
    np.testing.assert_allclose(crown[0].upper, W @ x0 + b + 0.4 * np.linalg.norm(W, ord=dual, axis=1))
    assert (crown[-1].upper - crown[-1].lower).sum() < 0.9 * (interval[-1].upper - interval[-1].lower).sum()


@pytest.mark.parametrize("seed", range(3))
def test_values_converted_to_l2_hold(seed):
    for widths in ((2, 4, 3, 2), (2, 4, 3, 1)):
        chain, x0 = small(seed, widths)
        truth = exact(chain, x0, 0.3)
        assert float(lipmip_l2(chain, x0, 0.3, 60)) >= truth
        assert float(lipopt_l2(chain, Ball(x0, 0.3), 60)) >= truth
        assert float(lipopt_l2(chain, None, 60)) >= exact(chain, x0, np.inf)


BOUNDS = {
    "AutoLip": lambda chain, x0: autolip(as_network(chain)),
    "SeqLip": lambda chain, x0: seqlip(as_network(chain)),
    "SeqLip, relaxed": lambda chain, x0: seqlip(as_network(chain), "relaxed"),
    "LipLT": lambda chain, x0: liplt(as_network(chain)),
    "AOL": lambda chain, x0: aol(as_network(chain)),
    "LipSDP-Neuron": lambda chain, x0: lipsdp(chain),
    "LipSDP-Layer, local": lambda chain, x0: lipsdp(chain, "layer", Ball(x0, 0.5)),
    "ECLipsE": lambda chain, x0: eclipse(chain),
    "ECLipsE-Fast": lambda chain, x0: eclipse(chain, "fast"),
    "RecurJac": lambda chain, x0: recurjac(chain, Ball(x0, 0.5), 2),
    "FastLip": lambda chain, x0: recurjac(chain, Ball(x0, 0.5), 2, "fastlip"),
    "LipMIP, inf": lambda chain, x0: lipmip(chain, Ball(x0, 0.5, np.inf)).value,
    "LipMIP, 1": lambda chain, x0: lipmip(chain, Ball(x0, 0.5, np.inf), "1").value,
    "LiPopt": lambda chain, x0: lipopt(chain, Ball(x0, 0.5, np.inf)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_network_in_other_units_has_the_value_in_other_units(name):
    """Tiny and huge weights in the middle and at the end: solvers have absolute tolerances, bounds must not."""
    chain, x0 = small(0, (3, 5, 4, 4, 1))
    value = BOUNDS[name](chain, x0)
    for middle, end in ((1e-10, 1.0), (1e10, 1.0), (1.0, 1e-8), (1.0, 1e8)):
        W, b = chain.weights, chain.biases
        scaled = Chain(
            (W[0], middle * W[1], middle * W[2], end * W[3]), (b[0], middle * b[1], middle**2 * b[2], b[3])
        )
        assert BOUNDS[name](scaled, x0) / (middle**2 * end) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", BOUNDS)
def test_degenerate_networks(name):
    """No hidden layer, constant networks, dead neurons: a bound, and no failure."""
    W = np.array([[3.0, -4.0]])
    norm = {"LipMIP, inf": 7.0, "LipMIP, 1": 4.0, "LiPopt": 7.0, "AOL": 28.0**0.5}.get(name, 5.0)
    x0 = np.array([0.3, -0.2])
    assert norm <= BOUNDS[name](Chain((W,), (np.zeros(1),)), x0) <= norm * (1 + 1e-9)
    two = (np.eye(2), np.zeros((1, 2))), (np.ones(2), np.ones(1))
    assert 0 <= BOUNDS[name](Chain(*two), x0) < 1e-12
    dead = Chain((np.array([[3.0, -4.0], [0.0, 0.0]]), np.array([[1.0, 5.0]])), (np.array([9.0, -1.0]), np.zeros(1)))
    assert norm <= BOUNDS[name](dead, x0)


def test_convolutions_and_batch_norm_as_matrices():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 4),
    ).eval()  # fmt: skip
    net[1].running_mean += 0.3
    x0 = torch.randn(1, 2, 6, 6)
    chain, flat = chain_of(net, x0)
    assert chain.widths == (72, 27, 8, 4)
    np.testing.assert_allclose(chain(flat), net.double()(x0.double())[0].detach(), atol=1e-6)
    J = torch.autograd.functional.jacobian(lambda x: net(x)[0], x0.double()).reshape(4, 72)
    np.testing.assert_allclose(chain.jacobian(flat), J, atol=1e-6)
    x = torch.randn(1, 72, dtype=torch.float64)
    assert torch.equal(as_module(chain)(x), as_module(chain_of(as_module(chain), x)[0])(x))


def test_the_reduced_form_is_the_network():
    chain, x0 = small(1, (4, 8, 7, 3))
    bounds = preactivation_bounds(chain, Ball(x0, 0.2))
    net = reduce(chain, bounds)
    assert 0 < len(net.layer) < sum(chain.hidden) and (np.triu(net.T) == 0).all()
    x = x0 + 0.1 * np.random.default_rng(0).uniform(-1, 1, size=4)
    z = np.zeros(len(net.layer))
    for i in range(len(z)):
        z[i] = max(0.0, net.q[i] + net.Q[i] @ x + net.T[i] @ z)
    np.testing.assert_allclose(net.r + net.N @ x + net.P @ z, chain(x), rtol=1e-12)


@pytest.mark.parametrize("name", ["seqlip", "lipsdp", "lipmip", "recurjac", "lipopt", "eclipse", "liplt", "aol"])
def test_docstrings_say_what_a_number_is(name):
    text = importlib.import_module(f"other_methods.{name}").__doc__
    for part in ("arXiv", "Quantity:", "Norm:", "igorous", "Cost:", f"python other_methods/{name}.py"):
        assert part in text, part
