"""Constructions on which rounding, underflow or cancellation could make a bound too small; judged in exact arithmetic.

Each is a network that nobody trains. A bound that is never below the truth has to hold for it all the same, or to be
refused with a ValueError.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import exact
import pytest
import torch
from torch import Tensor, nn

from local_lipschitz import Bound, global_bound, joint_bound, local_bound

BOUNDS = [local_bound, joint_bound]
ZERO = torch.zeros(1, 1, dtype=torch.float64)


def affine(W: list[list[float]], b: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(W[0]), len(W), bias=b is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W, dtype=torch.float64))
        if b is not None:
            layer.bias.copy_(torch.tensor(b, dtype=torch.float64))
    return layer


def chain(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).eval()


def check(bound: Callable[..., Bound], net: nn.Sequential, x0: Tensor, eps: float, steps: list[float] | None = None):
    """The bound against the exact quotient at ±ε and at the given steps along the first input."""
    value = float(bound(net, x0, eps)) if bound is not global_bound else float(bound(net, x0))
    for step in (eps, -eps, *(steps or [])):
        delta = torch.zeros_like(x0[0], dtype=torch.float64)
        delta[0] = step
        assert exact.within(delta, eps) and not exact.exceeds(net, x0[0].double(), delta, value), (value, step)


def cancelling() -> tuple[float, float, float, float]:
    """a, b, c, d with a·c − b·d ≠ 0 that float64 takes for 0."""
    rng = random.Random(0)
    while True:
        a, b, c = (rng.uniform(1, 2) for _ in range(3))
        d = a * c / b
        if a * c == b * d and Fraction(a) * Fraction(c) != Fraction(b) * Fraction(d):
            return a, b, c, d


@pytest.mark.parametrize("bound", [*BOUNDS, global_bound])
def test_affine_layers_that_cancel_each_other(bound):
    a, b, c, d = cancelling()
    check(bound, chain(affine([[a], [b]]), affine([[c, -d]])), ZERO, 1.0)


def test_active_units_that_cancel_each_other():
    """The joint bound sees the network as a whole, where all that its layers do may cancel."""
    a, b, c, d = cancelling()
    check(joint_bound, chain(affine([[a], [b]], [10.0, 10.0]), nn.ReLU(), affine([[c, -d]])), ZERO, 1.0)


def test_sums_that_cancel_in_float32():
    """Forty active units whose contributions of about 1 leave 1e-5: digits that float32 does not have."""
    for seed in (5, 118, 200, 250):
        generator = torch.Generator().manual_seed(seed)
        W1, W2 = torch.randn(40, 1, generator=generator), torch.randn(1, 40, generator=generator)
        W2[0, 0] -= float(W2.double() @ W1.double() - 1e-5) / float(W1[0, 0])
        net = chain(affine(W1.tolist(), [50.0] * 40), nn.ReLU(), affine(W2.tolist()))
        single = nn.Sequential(*[layer.float() for layer in chain(*net)]).eval()
        value = float(joint_bound(single, ZERO.float(), 1.0, effort=2))
        assert not exact.exceeds(net.double(), ZERO[0], torch.ones(1, dtype=torch.float64), value)


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_large_bias_between_two_affine_layers(bound):
    """It cancels in the second layer; what its rounding leaves decides on which side of the kink x0 lies."""
    for k in range(1000):
        b1 = 1e8 / 3 + k
        b2 = -(0.1 * b1 + 2.0**-31)
        computed, truth = 0.1 * b1 + b2, Fraction(0.1) * Fraction(b1) + Fraction(b2)
        if computed < 0 and truth - Fraction(computed) > Fraction(2) ** -33:
            break
    net = chain(affine([[1.0]], [b1]), affine([[0.1]], [b2]), nn.ReLU(), affine([[1.0]]))
    check(bound, net, ZERO, 20.0 * abs(computed))


@pytest.mark.parametrize("bound", BOUNDS)
def test_rounding_in_units_that_do_not_move(bound):
    """A constant unit is the small difference of two large ones; its rounding shifts the kink of a unit behind it."""
    for k in range(10_000):
        rng = random.Random(k)
        u, v, w = rng.uniform(1e8, 2e8), rng.uniform(1e8, 2e8), rng.uniform(1, 2)
        z = -(w * u - 1.0) / v
        computed = float(affine([[w, z]])(torch.tensor([[u, v]], dtype=torch.float64)).detach())
        truth = Fraction(w) * Fraction(u) + Fraction(z) * Fraction(v)
        if computed > 0.1 and truth - Fraction(computed) > Fraction(1e-8):
            break
    eps = 1e-9
    net = chain(
        affine([[0.0], [0.0], [1.0]], [u, v, 1.0]), nn.ReLU(), affine([[w, z, 0.0], [0.0, 0.0, 1.0]]), nn.ReLU(),
        affine([[1.0, 1.0]], [-1.0 - computed - 0.5 * eps]), nn.ReLU(), affine([[1.0]]),
    )  # fmt: skip
    check(bound, net, ZERO, eps)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("eps", [1e-14, 1e-13, 1e-12])
def test_a_clamp_that_is_narrower_than_rounding(bound, eps):
    """y0 is known to some tens, and φ has its slope on an interval of one: neither convex nor concave."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        a, x0 = torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
        a, b = 1e17 * a, -float(x0 @ (1e17 * a).T)
        truth = sum((Fraction(p) * Fraction(q) for p, q in zip(*a.tolist(), *x0.tolist(), strict=True)), Fraction(b))
        if abs(truth) > 30:
            break
    low = float(truth)
    # the last bias, so that the change is small in the output, as in a network of many outputs
    net = chain(affine(a.tolist(), [b]), nn.Hardtanh(low, low + 1.0), affine([[1.0]], [1e12]))
    delta = (a / a.norm() * min(eps, 0.5 / float(a.norm())))[0]
    assert not exact.exceeds(net, x0[0], delta, float(bound(net, x0, eps)))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("size", [1e-170, 1e-300])
def test_weights_whose_squares_vanish(bound, size):
    net = chain(affine([[size]]), nn.ReLU(), affine([[1.0 / size]]))
    try:
        check(bound, net, ZERO + 1.0, 1.0)
    except ValueError as error:
        assert "parameter" in str(error)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("eps", [5e-324, 1e-310, 1e-300, 1e300, 1.7e308])
def test_radii_at_the_ends_of_float64(bound, eps):
    net = chain(affine([[0.3, 0.2], [1.0, -1.0]], [0.1, 0.0]), nn.ReLU(), affine([[1.0, 1.0]]))
    J = torch.tensor([1.3, -0.8], dtype=torch.float64)  # both units are active on one side of x0
    value = float(bound(net, torch.ones(1, 2, dtype=torch.float64), eps))
    assert float(J.norm()) * (1 - 1e-5) <= value <= 2.1
    if eps < 1.0:
        assert value >= float(J.norm()) * (1 - 1e-15)


@pytest.mark.parametrize("size", [1e-50, 1e-38, 1e20, 1e50])
def test_weights_that_float32_cannot_hold(size):
    """A float64 network at a float32 input: its norms are computed in float32."""
    W = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 17
    x0 = torch.ones(1, 300, dtype=torch.float64)
    net = chain(affine((size * W).tolist()), nn.ReLU(), affine((W / size).tolist()))
    J = torch.autograd.functional.jacobian(net, x0).reshape(300, 300)
    assert float(local_bound(net, x0.float(), 1e-9)) >= float(torch.linalg.matrix_norm(J, 2))
