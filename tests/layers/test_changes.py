"""How far the outputs move, against exact rational arithmetic: within the error that is stated."""

from fractions import Fraction

import exact
import pytest
import torch
from campaign_cases import draw
from torch import nn

from local_lipschitz.layers.changes import change
from local_lipschitz.lower_bounds import ball_samples, quotients
from local_lipschitz.reading.read import read


def check(net: nn.Module, x0: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The error relative to the change, once every element was seen to be within its own."""
    dy, error = change(read(net, x0), x0, delta)
    for i, one in enumerate(delta):
        true = exact.change(net, x0[0], one)
        for computed, most, wanted in zip(dy[i].flatten().tolist(), error[i].flatten().tolist(), true, strict=True):
            assert abs(Fraction(computed) - wanted) <= Fraction(most)
    return error.flatten(1).norm(dim=1) / dy.flatten(1).norm(dim=1)


@pytest.mark.parametrize("seed", range(16))
def test_changes_of_random_networks(seed):
    case = draw(seed)
    x0 = case.x0[:1].double()
    for eps in case.eps.tolist():
        check(case.net64, x0, ball_samples(x0, eps, 2, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("phi", [nn.ReLU(), nn.LeakyReLU(0.25), nn.Hardtanh(), nn.MaxPool2d(2), nn.MaxPool2d(2, 1)])
@pytest.mark.parametrize("eps", [1e-12, 1e-9, 1e-3, 10.0])
def test_changes_at_kinks_and_ties(phi, eps):
    """Nominal values that are 0, or equal, but for rounding: their exact ones may lie on either side."""
    torch.manual_seed(0)
    image = isinstance(phi, nn.MaxPool2d)
    first = nn.Conv2d(1, 2, 1) if image else nn.Linear(9, 6)
    net = nn.Sequential(first, phi, nn.Flatten(), nn.Linear(2 if not image else 8 if phi.stride == 1 else 2, 2))
    if not image:
        net[3] = nn.Linear(6, 2)
    net = net.double().eval()
    x0 = torch.full((1, 1, 3, 3) if image else (1, 9), 0.1, dtype=torch.float64)
    with torch.no_grad():
        first.bias.copy_(-first(x0).reshape(1, len(first.bias), -1)[0, :, 0] + first.bias)
    relative = check(net, x0, ball_samples(x0, eps, 4, torch.Generator().manual_seed(0)))
    assert image or bool((relative < 1e-13 / eps + 1e-12).all())


def test_a_quotient_that_is_mostly_rounding_is_not_claimed():
    """f(x) = (x + 2⁵³) − 2⁵³ moves by x, but its two layers add numbers that do not hold it."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    big = 2.0**60
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[big], [big + 256.0]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[big, -big]]))
    x0, delta = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64)
    (true,) = exact.change(net, x0[0], delta[0])
    found = quotients(read(net, x0), x0, delta)
    assert 0.0 <= Fraction(float(found)) <= abs(true) / Fraction(0.3)
