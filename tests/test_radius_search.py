"""How a radius is searched: what bounds by passes are asked for, and that inputs do not see their neighbours."""

import pytest
import torch
from torch import nn

from local_lipschitz import certified_radius, joint_bound, margin_bound
from local_lipschitz.joint import dense
from local_lipschitz.joint.bound import Job

LIMIT = 54


def wide_network() -> tuple[nn.Module, torch.Tensor]:
    """More and more of its 60 neurons bend as ε grows; inputs (3, 4)."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)).double().eval()
    with torch.no_grad():
        net[4].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    return net, torch.randn(3, 4).double()


@pytest.fixture
def ways(monkeypatch):
    """(dense or not, ε) of each attempt at a joint bound; dense algebra takes LIMIT groups at most."""
    seen, run = [], Job._run

    def recorded(self, x0, eps, outputs, target, product, by_rows):
        seen.append((by_rows, eps))
        return run(self, x0, eps, outputs, target, product, by_rows)

    monkeypatch.setattr(dense, "largest_cube", lambda device: float(LIMIT**3))
    monkeypatch.setattr(dense, "step_work", lambda inputs, first, groups: float(groups**3))
    monkeypatch.setattr(Job, "_run", recorded)
    return seen


def test_too_many_kinks_for_rows_give_the_product_bound_where_passes_are_not_wanted(ways):
    net, x0 = wide_network()
    product = joint_bound(net, x0, 4.0, by_passes=False, effort=5)
    assert all("more uncertain groups" in status for status in product.status) and all(way for way, _ in ways)
    assert "more uncertain groups" in margin_bound(net, x0[:1], 4.0, by_passes=False).status[0]
    assert (joint_bound(net, x0, 4.0, effort=5).value <= product.value).all() and not all(way for way, _ in ways)


def test_passes_are_not_tried_beyond_an_eps_held_by_dense_algebra(ways):
    net, x0 = wide_network()
    radius = float(certified_radius(net, x0[:1], joint_bound, rtol=0.05, effort=5).radius)
    assert all(way for way, _ in ways) and any(eps > radius for _, eps in ways)
    at, beyond = (joint_bound(net, x0[:1], eps, by_passes=False, effort=5).status[0] for eps in (radius, 1.06 * radius))
    assert at == "dense" and "more uncertain groups" in beyond  # the search ended there


def test_a_batch_is_its_inputs_whichever_way_each_takes(ways):
    net, x0 = wide_network()
    together = certified_radius(net, x0[:2], joint_bound, rtol=0.05, effort=5)
    ways.clear()
    for i in range(2):
        alone = certified_radius(net, x0[i : i + 1], joint_bound, rtol=0.05, effort=5)
        assert float(alone.radius) == pytest.approx(float(together.radius[i]), rel=1e-9)
        assert alone.evaluations == together.evaluations[i]
        assert all(way for way, _ in ways) == (i == 0)
