"""The margin bound: never above the truth, never below the joint bound, the same alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from random_networks import random_network
from torch import Tensor, nn

from local_lipschitz import certified_radius, joint_bound, local_bound, margin_bound, verify
from local_lipschitz.attacks.gradient import gradient_ascent


def least_found(net: nn.Module, x0: Tensor, eps: float, C: Tensor, seed: int = 0) -> Tensor:
    """The smallest values (K,) of C·f at points of the ball: random ones and gradient descent on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(64, *x0.shape[1:], generator=generator, dtype=torch.float64)
    length = delta.flatten(1).norm(dim=1)
    best = C.new_full((len(C),), torch.inf)
    for k in range(len(C)):
        d = delta / length.reshape(-1, *(1,) * (x0.dim() - 1))
        for step in range(30):
            d = d.detach().requires_grad_()
            value = net(x0 + eps * d).flatten(1) @ C[k]
            best[k] = torch.minimum(best[k], value.detach().min())
            (gradient,) = torch.autograd.grad(value.sum(), d)
            slope = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
            d = d.detach() - (0.9**step / slope).reshape(-1, *(1,) * (x0.dim() - 1)) * gradient
            d = d / d.flatten(1).norm(dim=1).clamp(min=1.0).reshape(-1, *(1,) * (x0.dim() - 1))
    return best


def functions(m: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.eye(m, dtype=torch.float64), torch.randn(2, m, generator=generator, dtype=torch.float64)])


def bending() -> tuple[nn.Sequential, Tensor]:
    """A network with kinks near its input."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval().requires_grad_(False)
    return net, torch.randn(1, 3).double()


def three_layers(seed: int) -> tuple[nn.Sequential, Tensor]:
    """Large weights: the product, the joint and the margin bound are well apart."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    for parameter in net.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net, torch.randn(1, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_no_point_of_the_ball_is_below(seed):
    net, x0 = random_network(seed)
    C = functions(net(x0).shape[1], seed)
    C = C[:2]
    for eps in (0.05, 0.5):
        bound = margin_bound(net, x0, eps, outputs=C, effort=10)
        assert bound.status == ["margin"]
        found = least_found(net, x0, eps, C)
        assert bool((bound.lower[0] <= found).all()), (bound.lower[0] - found).max()
        assert bool((bound.before_refinement <= bound.lower).all())
        product = local_bound(net, x0, eps, outputs=C)
        assert bool((bound.fall <= product.fall * (1 + 1e-9) + 1e-9).all())


@pytest.mark.parametrize("seed", [0, 3, 4, 7])
def test_never_looser_than_the_joint_bound(seed):
    net, x0 = random_network(seed)
    C = functions(net(x0).shape[1], seed)[:2]
    for eps in (0.1, 1.0):
        ours = margin_bound(net, x0, eps, outputs=C)
        joint = joint_bound(net, x0, eps, outputs=C)
        assert bool((ours.fall <= joint.fall * (1.0 + 2e-3) + 1e-9).all()), (ours.fall / joint.fall).max()


def with_a_cancelling_unit(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network whose first unit of the second layer reads sums that cancel, but for rounding, whatever x is."""
    generator = torch.Generator().manual_seed(seed)
    first, second, last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)
    for layer in (first, second):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        layer.bias.data = torch.randn(layer.bias.shape, generator=generator)
    first.weight.data[1:4], first.bias.data[1:4] = first.weight.data[:1], first.bias.data[0]
    w = torch.rand(3, generator=generator)
    second.weight.data[0], second.bias.data[0] = 0.0, 0.0
    second.weight.data[0, 0], second.weight.data[0, 1:3] = w.double().sum(), -w[:2]
    second.weight.data[0, 3] = w[:2].double().sum() - second.weight.data[0, 0].double()
    last.weight.data = torch.randn(2, 6, generator=generator)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval(), torch.randn(1, 5, generator=generator)


@pytest.mark.parametrize("seed", range(12))
def test_a_unit_that_is_all_rounding_takes_little(seed):
    """What its kink may take are the few per cent by which the joint bound chooses other ends."""
    net, x0 = with_a_cancelling_unit(seed)
    fall = margin_bound(net, x0, 0.7).fall
    net[2].weight.data[0], net[2].bias.data[0] = 0.0, -1.0
    without = margin_bound(net, x0, 0.7).fall
    assert (fall <= without * 1.15).all(), (fall / without).max()


UNITS = {
    "leaky": nn.LeakyReLU(0.3), "steep": nn.LeakyReLU(1.7), "hardtanh": nn.Hardtanh(-0.5, 0.8), "relu6": nn.ReLU6(),
    "prelu": nn.PReLU(6, init=-0.4),
}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_other_units(unit):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), UNITS[unit], nn.Linear(6, 6), UNITS[unit], nn.Linear(6, 3)).double().eval()
    net.requires_grad_(False)
    x0, C = torch.randn(1, 4).double(), functions(3, 0)[2:]
    for eps in (0.3, 1.5):
        bound = margin_bound(net, x0, eps, outputs=C, effort=12)
        found = least_found(net, x0, eps, C)
        assert bool((bound.lower[0] <= found).all())
        assert bool((bound.nominal[0] - bound.lower[0] <= 3.0 * (bound.nominal[0] - found)).all())


def test_one_layer_of_absolute_values_is_exact():
    """|x1| + … + |xn| ≤ √n ε on the ball around 0, attained; and ≥ 0."""

    class Sum(nn.Module):
        def forward(self, x):
            return torch.abs(x).sum(1, keepdim=True)

    x0 = torch.zeros(1, 5, dtype=torch.float64)
    C = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    bound = margin_bound(Sum().eval(), x0, 0.7, outputs=C, tolerance=1e-6)
    assert torch.allclose(bound.lower[0], torch.tensor([0.0, -0.7 * 5**0.5], dtype=torch.float64), atol=1e-5)
    assert float(bound.lower[0, 0]) <= 0.0 and float(bound.lower[0, 1]) <= -0.7 * 5**0.5


def test_a_batch_is_its_inputs_one_by_one():
    net, x0 = bending()
    generator = torch.Generator().manual_seed(1)
    x0 = torch.cat([x0, x0 + 0.1 * torch.randn(x0.shape, generator=generator, dtype=torch.float64)])
    eps = torch.tensor([0.1, 0.4])
    together = margin_bound(net, x0, eps)
    for b in range(2):
        alone = margin_bound(net, x0[b : b + 1], float(eps[b]))
        assert torch.allclose(together.lower[b], alone.lower[0], rtol=1e-6, atol=1e-9)


def test_a_target_ends_the_work_early():
    net, x0 = bending()
    full = margin_bound(net, x0, 0.5)
    target = float(full.lower.min()) - 0.1
    early = margin_bound(net, x0, 0.5, target=target)
    assert bool((early.lower > target).all()) and early.steps[0] <= full.steps[0]


def test_what_a_cheaper_bound_decides_is_left_to_it():
    """Between what product, joint and margin bound give, a target is reached by the cheapest of them that can."""
    net, x0 = three_layers(4)
    C, eps = torch.tensor([[1.0, -1.0, 0.0]]).double(), 0.5
    full, joint = margin_bound(net, x0, eps, outputs=C), joint_bound(net, x0, eps, outputs=C)
    product = local_bound(net, x0, eps, outputs=C)
    falls = [float(bound.fall) for bound in (product, joint, full)]
    assert falls[0] > falls[1] * 1.01 > falls[2] * 1.02
    nominal, least = float(full.nominal), float(full.lower)
    for fall, status in zip(falls, ("product bound: it", "joint bound: it", "margin"), strict=True):
        target = nominal - 1.003 * eps * fall
        bound = margin_bound(net, x0, eps, outputs=C, target=target)
        assert bound.status[0].startswith(status) and target < float(bound.lower) <= least + 1e-3 * abs(least)


def test_bad_input_is_refused():
    net, x0 = random_network(2)
    for eps in (0.0, float("nan"), -1.0):
        with pytest.raises(ValueError, match="positive, finite radii are wanted"):
            margin_bound(net, x0, eps)
    with pytest.raises(ValueError, match="effort is 0"):
        margin_bound(net, x0, 0.1, effort=0)
    with pytest.raises(ValueError, match="outputs has shape"):
        margin_bound(net, x0, 0.1, outputs=torch.ones(2, 77))


def test_a_certified_radius_by_the_margin_bound():
    """Never beyond where an attack gets, never below the product bound's, and refused where a norm is wanted."""
    net, x0 = bending()
    ours = certified_radius(net, x0, margin_bound, rtol=1e-2)
    assert float(ours.radius) >= float(certified_radius(net, x0, rtol=1e-2).radius)
    assert float(ours.radius) <= float(gradient_ascent(net, x0).distance) * (1 + 1e-9)
    assert verify(net, x0, ours.radius).verdict == ["verified"]
    with pytest.raises(ValueError, match="margins='pairwise' is wanted"):
        certified_radius(net, x0, margin_bound, margins="paper")


@pytest.mark.parametrize("seed", [0, 4])
def test_the_radius_is_where_the_bound_without_a_target_ends(seed):
    net, x0 = three_layers(seed)
    radius = certified_radius(net, x0, margin_bound, rtol=0.02)
    label = int(radius.label)
    C = torch.eye(3).double()[label] - torch.eye(3).double()[[c for c in range(3) if c != label]]
    lower = [margin_bound(net, x0, factor * float(radius.radius), outputs=C).lower.min() for factor in (1.0, 1.03)]
    assert lower[0] > 0 > lower[1]


def test_more_kinks_than_dense_algebra_takes(monkeypatch):
    """The better of the lines and the joint bound, and where there are no rows, the joint bound; and it says so."""
    net, x0 = bending()
    C = functions(3, 2)[2:4]
    found = least_found(net, x0, 0.5, C)
    assert margin_bound(net, x0, 0.5, outputs=C).kinks[0] > 0
    for name in ("LARGE", "ROWS"):
        monkeypatch.setattr(f"local_lipschitz.margin.bound.{name}", 0)
        bound = margin_bound(net, x0, 0.5, outputs=C)
        assert bound.status[0].startswith("joint bound") and bound.steps == [0]
        assert bool((bound.lower[0] <= found).all())
        joint = joint_bound(net, x0, 0.5, outputs=C, effort=20)
        assert bool((bound.fall <= joint.fall * (1 + 1e-6) + 1e-9).all())
