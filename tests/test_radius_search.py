"""How a radius is searched: which ways bounds take on it, and that inputs do not see their neighbours."""

import pytest
import torch
from torch import nn

from local_lipschitz import certified_radius, joint_bound, margin_bound
from local_lipschitz.bracket import Found, Load, Manner, search
from local_lipschitz.joint import dense, passes
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
    """(way, ε) of each joint bound: "dense", "passes" or "product"; dense algebra takes LIMIT groups at most."""
    seen, work = [], Job.work

    def recorded(self, x0, eps, *arguments):
        eps = float(f"{eps:.12g}")  # bounds at different ε draw different vectors, and rounding is not to decide those
        result = yield from work(self, x0, eps, *arguments)
        seen.append((result.status.split()[0], eps))
        return result

    monkeypatch.setattr(dense, "largest_cube", lambda device: float(LIMIT**3))
    monkeypatch.setattr(dense, "step_work", lambda inputs, first, groups: float(groups**3))
    monkeypatch.setattr(Job, "work", recorded)
    return seen


@pytest.fixture
def dear(monkeypatch):
    """Passes are too dear for gains of single elements."""
    monkeypatch.setattr(passes, "WORK", {"cpu": 0.0})


def test_too_many_kinks_for_rows_give_the_product_bound_where_dear_passes_are_not_wanted(ways, dear):
    net, x0 = wide_network()
    product = joint_bound(net, x0, 4.0, by_passes=False, effort=5)
    assert all("more uncertain groups" in status for status in product.status)
    assert "more uncertain groups" in margin_bound(net, x0[:1], 4.0, by_passes=False).status[0]
    wanted = joint_bound(net, x0, 4.0, effort=5)
    assert wanted.status == ["passes"] * 3 and (wanted.value <= product.value).all()


def test_dear_passes_are_not_taken_beyond_an_eps_held_by_dense_algebra(ways, dear):
    net, x0 = wide_network()
    radius = float(certified_radius(net, x0[:1], joint_bound, rtol=0.05, effort=5).radius)
    assert {way for way, _ in ways} == {"dense", "product"} and any(eps > radius for _, eps in ways)
    at, beyond = (joint_bound(net, x0[:1], eps, by_passes=False, effort=5).status[0] for eps in (radius, 1.06 * radius))
    assert at == "dense" and "more uncertain groups" in beyond  # the search ended there


def test_cheap_passes_go_on_where_dense_algebra_ends(ways, monkeypatch):
    net, x0 = wide_network()
    x0 = x0[:1]
    farther = float(certified_radius(net, x0, joint_bound, rtol=0.05, effort=20).radius)
    assert {way for way, _ in ways} == {"dense", "passes"}
    assert joint_bound(net, x0, farther, by_passes=False, effort=20).status == ["passes"]
    monkeypatch.setattr(passes, "WORK", {"cpu": 0.0})
    assert farther > 1.05 * float(certified_radius(net, x0, joint_bound, rtol=0.05, effort=20).radius)


def test_a_batch_is_its_inputs_whichever_way_each_takes(ways):
    net, x0 = wide_network()
    together = certified_radius(net, x0[:2], joint_bound, rtol=0.05, effort=5)
    seen = []
    for i in range(2):
        ways.clear()
        alone = certified_radius(net, x0[i : i + 1], joint_bound, rtol=0.05, effort=5)
        assert float(alone.radius) == pytest.approx(float(together.radius[i]), rel=1e-9)
        assert alone.evaluations == together.evaluations[i]
        seen.append({way for way, _ in ways})
    assert seen[0] != seen[1]


@pytest.mark.parametrize("slope", [1.0, 1.3, 2.5, 6.0])
@pytest.mark.parametrize("start", [0.05, 0.5, 0.9, 0.999])
def test_few_evaluations_where_the_work_ends_at_the_target(slope, start):
    """h is (ε/r)^slope once all work has been done, and 4 % above it before; work ends just below `enough`."""
    r, rtol = torch.tensor([0.3, 7.0], dtype=torch.float64), 1e-4

    def loads(which, eps, evaluation, enough, by_passes):
        best = (eps / r[which]) ** slope
        h = torch.where(1.04 * best <= enough, 1.04 * best, torch.where(best <= enough, 0.9997 * enough, best))
        return Load(h, which, 1e-9, torch.ones_like(which, dtype=torch.bool))

    once = torch.ones(2, dtype=torch.int64)
    begin = Found(start * r, once, once, 0.0 * r, once.bool())
    found = search(loads, begin, once.bool(), Manner(careful=True), rtol, False)
    assert (found.radius <= r).all() and (found.radius >= r * (1.0 - 2.0 * rtol)).all()
    assert int(found.evaluations.max()) <= 20
