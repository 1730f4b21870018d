"""The ball cut by a box: bounds of that part only, exact by branching, and attacks that keep to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from local_lipschitz import margin_bound, verify


def network(seed: int) -> tuple[nn.Sequential, Tensor]:
    """Kinks near the input, which lies in the unit cube."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    net.requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_((0.3 if parameter.dim() == 1 else 1.0) * torch.randn_like(parameter))
    return net, torch.rand(1, 2, dtype=torch.float64)


def part(x0: Tensor, eps: float) -> Tensor:
    """Points of the ball inside of the unit cube, a fine grid with its border."""
    side = torch.linspace(0.0, 1.0, 601, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    return x[(x - x0).norm(dim=1) <= eps]


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_on_the_part_and_are_no_looser_than_on_the_ball(seed):
    net, x0 = network(seed)
    for eps in (0.3, 0.8):
        cut = margin_bound(net, x0, eps, box=(0.0, 1.0))
        whole = margin_bound(net, x0, eps)
        assert cut.box and not whole.box
        least = net(part(x0, eps)).amin(0)
        assert bool((cut.lower[0] <= least + 1e-12).all())
        assert bool((cut.lower >= whole.lower).all()), (cut.lower - whole.lower)
    assert float((cut.lower - whole.lower).max()) > 1e-2  # 0.8 reaches beyond the cube


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_are_those_of_the_part(seed):
    net, x0 = network(seed)
    for eps in (0.2, 0.5, 1.5):
        result = verify(net, x0, eps, box=(torch.zeros(1, 2), torch.ones(2)))
        same = bool((net(part(x0, eps)).argmax(1) == result.label).all())
        assert result.box and result.verdict == ["verified" if same else "falsified"]
        x = result.counterexample
        assert bool(((x >= 0.0) & (x <= 1.0)).all()) and float((x - x0).norm()) <= eps


def test_a_counterexample_outside_of_the_box_does_not_count():
    """f = (x, ¼) at x0 = ½: another class below ¼, which the box forbids."""
    net = nn.Sequential(nn.Linear(1, 2)).double().eval().requires_grad_(False)
    net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
    net[0].bias.copy_(torch.tensor([0.0, 0.25]))
    x0 = torch.full((1, 1), 0.5, dtype=torch.float64)
    assert verify(net, x0, 0.4).verdict == ["falsified"]
    assert verify(net, x0, 0.4, box=(0.3, 1.0)).verdict == ["verified"]
    assert verify(net, x0, 0.4, box=(0.2, 1.0)).verdict == ["falsified"]


def test_bad_boxes_are_refused():
    net, x0 = network(0)
    for f in (verify, margin_bound):
        with pytest.raises(ValueError, match="x0 lies outside of the box"):
            f(net, x0, 0.1, box=(2.0, 3.0))
        with pytest.raises(ValueError, match="x0 lies outside of the box"):
            f(net, x0, 0.1, box=(float("nan"), 3.0))
        with pytest.raises(ValueError, match="box has shapes"):
            f(net, x0, 0.1, box=(torch.zeros(3), 1.0))
