"""Secant slopes of smooth activations against extended precision, from tiny to huge, and what is made of them."""

import math

import pytest
import torch
from explicit import jacobian, randomise, sampled_quotient
from extended import function
from mpmath import mp, mpf
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError, certified_radius, joint_bound, local_bound
from local_lipschitz.layers.smooth_activations import Smooth
from local_lipschitz.lower_bounds import gradient_lower_bound
from local_lipschitz.reading.read import read

MODULES = [
    nn.Tanh(), nn.Sigmoid(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softplus(), nn.Softplus(3.0, 60.0),
    nn.ELU(), nn.ELU(2.0), nn.ELU(0.25), nn.ELU(-0.5), nn.SELU(), nn.CELU(2.0), nn.CELU(0.5),
    nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"),
]  # fmt: skip
ANCHORS = [0.0, 1e-20, -1e-10, 1e-3, -0.75, 1.41421, -1.4142135623730951, -2.4, 3.0, -3.0000001, -7.5, 12.0, -38.0,
           100.0, 1e4, -1e4]  # fmt: skip
RADII = [1e-12, 0.1, 1.5, 9.0, 1e4, 1e6]
DIGITS = 120  # what is left of tanh(100 + 1e-12) − tanh(100)
UNSEEN = mpf(10) ** -90


def phi_of(module: nn.Module) -> Smooth:
    """As read from a network; something linear after it, since a Sigmoid at the end is refused."""
    net = nn.Sequential(module, nn.Linear(2, 1)).double().eval()
    phi = read(net, torch.zeros(1, 2, dtype=torch.float64)).layers[0].op
    assert isinstance(phi, Smooth)
    return phi


def quotients(phi, breaks: tuple[float, ...], y0: float, h: float, side: int) -> list[mpf]:
    """(φ(y0 + side·t) − φ(y0)) / (side·t) for t in (0, h], dense at the start, behind every break, and at the end."""
    ways = [mpf(h) * k / 12 for k in range(1, 13)] + [mpf(h) * mpf(10) ** -k for k in range(1, 9)]
    for at in breaks:
        to_it = side * (mpf(at) - mpf(y0))
        ways += [to_it + mpf(x) for x in (0, 0.02, 0.3, 1, 2, 3, 5)] + [to_it * mpf(x) for x in (1.2, 1.5, 2)]
    start = phi(mpf(y0))
    return [(phi(mpf(y0) + side * t) - start) / (side * t) for t in ways if 0 < t <= h]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_secant_slopes_hold_all_quotients_and_are_attained(module):
    phi, exact = phi_of(module), function(module)
    y0, h = torch.meshgrid(torch.tensor(ANCHORS).double(), torch.tensor(RADII).double(), indexing="ij")
    y0 = torch.tensor(ANCHORS, dtype=torch.float64)[:, None].expand_as(h)
    sides = dict(zip((-1, 1), phi.sided_slopes(y0, h), strict=True))
    with mp.workdps(DIGITS):
        for i, anchor in enumerate(ANCHORS):
            for j, radius in enumerate(h[0].tolist()):
                for side, (low, high) in sides.items():
                    found = quotients(exact, phi.breaks, anchor, radius, side)
                    assert float(low[i, j]) <= min(found) + UNSEEN
                    assert float(high[i, j]) >= max(found) - UNSEEN
                    assert min(found) - float(low[i, j]) < 0.03 and float(high[i, j]) - max(found) < 0.03
                    if radius < 1e-6 and not any(abs(anchor - at) < 1e-5 for at in phi.breaks):
                        assert float(high[i, j] - low[i, j]) < 1e-11


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("off", [1e-9, 0.2])
def test_anchors_that_are_known_to_rounding_only(module, off):
    phi, exact = phi_of(module), function(module)
    points = [-3.0 + 0.5 * off, -1.3, -0.1, 0.5 * off, 0.9, 3.0 + 2.0 * off]
    for h in (0.5 * off, 1.0, 9.0):
        y0 = torch.tensor(points, dtype=torch.float64)
        low, high = phi.secant_slopes(y0, torch.full_like(y0, h), torch.full_like(y0, off))
        with mp.workdps(40):
            for i, anchor in enumerate(y0.tolist()):
                for moved in (-1, -0.4, 0, 0.6, 1):
                    for side in (-1, 1):
                        found = quotients(exact, phi.breaks, mpf(anchor) + moved * mpf(off), h, side)
                        assert float(low[i]) <= min(found) and max(found) <= float(high[i])


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_differences_and_values(module):
    phi, exact = phi_of(module), function(module)
    y0 = torch.tensor(ANCHORS, dtype=torch.float64)
    for step in (1e-300, -1e-12, 1e-3, -0.4, 2.0, -9.0, 1e3):
        changes = phi.difference(y0, torch.full_like(y0, step))
        with mp.workdps(900 if abs(step) < 1e-100 else DIGITS):
            for anchor, change in zip(ANCHORS, changes.tolist(), strict=True):
                true = exact(mpf(anchor) + mpf(step)) - exact(mpf(anchor))
                assert abs(true - change) <= 1e-12 * max(abs(true), 0.1 * abs(step))
    assert phi.difference(y0, torch.zeros_like(y0)).tolist() == [0.0] * len(y0)
    y = torch.linspace(-9, 9, 61, dtype=torch.float64)
    torch.testing.assert_close(phi.apply(y), module(y), rtol=1e-13, atol=1e-13)
    with mp.workdps(40):
        for at, value in zip(y.tolist(), phi.apply(y).tolist(), strict=True):
            assert abs(exact(mpf(at)) - value) <= 8 * 2**-53 * (abs(value) + abs(at))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_pieces_are_convex_or_concave_as_declared(module):
    """φ'' by differences in extended precision: its sign on every piece, its size, and the steepest slopes."""
    phi, exact = phi_of(module), function(module)
    low, high = (float(x) for x in phi.slope_range(torch.zeros((), dtype=torch.float64)))
    edges = [-60.0, *phi.breaks, 60.0]
    with mp.workdps(DIGITS):
        width = mpf(10) ** -20
        for left, right, bend in zip(edges, edges[1:], phi.bends, strict=False):
            for k in range(1, 60):
                y = mpf(left) + (mpf(right) - mpf(left)) * k / 60
                before, here, after = exact(y - width), exact(y), exact(y + width)
                curvature = (after - 2 * here + before) / width**2
                assert abs(curvature) <= phi.curvature
                assert abs(curvature) < mpf(10) ** -50 or mp.sign(curvature) == bend
                assert low <= (after - here) / width <= high
        for at, jump in zip(phi.breaks, phi.jumps, strict=False):
            around = [exact(mpf(at) + k * width) for k in (-1, 0, 1)]
            assert abs(around[2] - 2 * around[1] + around[0]) / width <= jump + 1e-15
            assert jump or abs(around[2] - 2 * around[1] + around[0]) / width**2 < 1e-12 or len(phi.bends) == 2
    assert phi.non_decreasing == (low >= 0)


def network(activation: nn.Module, seed: int = 0, widths: tuple[int, ...] = (5, 9, 9, 3)) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n, m), activation]
    return randomise(nn.Sequential(*layers[:-1]), seed)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_bounds_of_networks(module):
    net = network(module)
    x0 = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for eps in (1e-3, 0.5, 20.0):
        lower = max(sampled_quotient(net, x0, eps), float(gradient_lower_bound(net, x0, eps, starts=4, steps=10)))
        joint, local = float(joint_bound(net, x0, eps, effort=20)), float(local_bound(net, x0, eps))
        assert lower <= joint <= local


@pytest.mark.parametrize("activation", [nn.ELU(), nn.Tanh()], ids=str)
def test_a_policy_network_at_a_small_radius_has_the_norm_of_its_jacobian(activation):
    net = network(activation, widths=(17, 64, 64, 6))
    x0 = torch.randn(1, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norm = float(torch.linalg.matrix_norm(jacobian(net, x0), 2))
    assert norm <= float(joint_bound(net, x0, 1e-4)) <= 1.01 * norm


def test_a_radius_through_smooth_activations():
    net = network(nn.Tanh())
    x0 = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = certified_radius(net, x0)
    assert (result.radius > 0).all()
    for x, radius, label in zip(x0.split(1), result.radius, result.label, strict=True):
        steps = torch.randn(500, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        steps = radius * steps / steps.norm(dim=1, keepdim=True)
        assert (net(x + steps).argmax(1) == label).all()


def test_where_smooth_activations_may_stand():
    x0 = torch.ones(1, 3)
    assert float(local_bound(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).eval(), x0, 0.1)) > 0
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(position 2, Sigmoid\).*bound is for the logits"):
        local_bound(nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Flatten()).eval(), x0, 0.1)
    with pytest.raises(UnsupportedLayerError, match="threshold=5 makes a step"):
        local_bound(nn.Sequential(nn.Linear(3, 2), nn.Softplus(1, 5)).eval(), x0, 0.1)


class Squashed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + torch.sigmoid(x) - nn.functional.gelu(x, approximate="tanh") * 0.5


def test_functions_and_methods():
    x0 = torch.ones(1, 3, dtype=torch.float64)
    assert float(joint_bound(Squashed().eval(), x0, 1e-9)) == pytest.approx(
        abs(float(jacobian(Squashed(), x0)[0, 0])), rel=1e-3
    )
    assert math.isfinite(float(local_bound(Squashed().eval(), x0, 1e9)))
