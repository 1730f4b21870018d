"""Small networks with each kind of operation between their layers: the graph is the module, the bounds hold."""

import math

import pytest
import torch
from affine import Applied
from explicit import jacobian, randomise, sampled_quotient
from torch import Tensor, nn

from local_lipschitz import certified_radius, global_bound, joint_bound, local_bound
from local_lipschitz.reading.read import read


class GroupSort2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return torch.stack([torch.max(a, b), torch.min(a, b)], 2).flatten(1)


class MaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(b, a)], 1)


class SortedPairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, 2).sort(dim=-1, descending=True).values.flatten(1)


class Dueling(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.advantage = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.advantage(x)
        return self.value(x) + a - a.mean(1, keepdim=True)


def dense(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3))


def image(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


def volume(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 2, 2), *layers, nn.Flatten(), nn.LazyLinear(3))


low, high = torch.linspace(-1.0, 0.2, 8).double(), torch.linspace(-0.5, 1.5, 8).double()
adjacency = torch.ones(5, 5).tril()
ramp, mask = torch.linspace(-1.0, 0.5, 8), torch.tensor([True, False, True, True, False, True, True, False])
high[3], low[5], low[6] = math.inf, -math.inf, 1.3  # the last crosses the upper limit
NETS = {
    "GroupSort2": ((4,), dense(GroupSort2())),
    "MaxMin": ((4,), dense(MaxMin(), nn.Linear(8, 8), MaxMin())),
    "sorted pairs": ((4,), dense(SortedPairs())),
    "maximum that broadcasts": ((4,), dense(Applied(lambda x: torch.maximum(x[:, :1], x)))),
    "maximum of a constant": ((4,), dense(Applied(lambda x: torch.max(x, torch.tensor(0.1)).fmin(high.to(x))))),
    "clamp to layers": ((4,), dense(Applied(lambda x: x.clamp(x[:, :1] - 0.2, x[:, :1].abs())))),
    "max over a dimension": ((4,), dense(Applied(lambda x: x.view(-1, 2, 4).max(1)[0].repeat(1, 2)))),
    "min over a dimension": ((2, 4), nn.Sequential(Applied(lambda x: torch.min(x, 2, True).values + x), nn.Flatten())),
    "amax of two dimensions": ((1, 4, 4), image(Applied(lambda x: x.amax((2, 3)) - x.amin((2, 3))))),
    "clamp to tensors": ((4,), dense(Applied(lambda x: x.clamp(low.to(x), high.type_as(x))))),
    "clamp from below": ((4,), dense(Applied(lambda x: torch.clamp(x, min=low.to(x))))),
    "clamp channels, pool": (
        (1, 4, 4), image(Applied(lambda x: x.clamp(max=high[:4].view(4, 1, 1).to(x))), nn.MaxPool2d(2)),
    ),
    "clamp columns, pool": (
        (1, 4, 4), image(Applied(lambda x: x.clamp(high[:4].to(x) - 1, high[4:].to(x))), nn.MaxPool2d(2)),
    ),
    "hardsigmoid": ((4,), dense(nn.Hardsigmoid())),
    "hardsigmoid, pool": ((1, 4, 4), image(nn.Hardsigmoid(), nn.MaxPool2d(2))),
    "softshrink": ((4,), dense(nn.Softshrink(0.3))),
    "softshrink of nothing": ((4,), dense(nn.Softshrink(0.0), nn.Hardshrink(0.0))),
    "rrelu": ((4,), dense(nn.RReLU())),
    "threshold": ((4,), dense(nn.Threshold(0.25, 0.25))),
    "dueling": ((4,), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Dueling())),
    "centred": ((4,), dense(Applied(lambda x: x - x.mean(1, keepdim=True)), nn.ReLU())),
    "repeated channels": (
        (1, 4, 4), image(nn.ReLU(), Applied(lambda x: x[:, [-1, 3, 0]]), nn.Conv2d(3, 2, 2), nn.ReLU()),
    ),
    "upsampling": ((1, 3, 3), image(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3), nn.ReLU())),
    "bilinear": ((1, 3, 3), image(nn.ReLU(), nn.Upsample((5, 4), mode="bilinear"), nn.Conv2d(4, 2, 3), nn.ReLU())),
    "pixel shuffle": ((1, 3, 3), image(nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(1, 2, 3), nn.ReLU())),
    "channel shuffle": ((1, 3, 3), image(nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(4, 2, 3, groups=2), nn.ReLU())),
    "graph convolution": (
        (5, 4), nn.Sequential(nn.Linear(4, 6), Applied(lambda x: (adjacency.to(x) @ x).relu()), nn.Linear(6, 2)),
    ),
    "volumes": ((1, 3, 4, 3), volume(nn.BatchNorm3d(2), nn.ReLU(), nn.Conv3d(2, 2, 2), nn.ReLU())),
    "max pooling of volumes": ((1, 4, 4, 3), volume(nn.ReLU(), nn.MaxPool3d(2, stride=1), nn.AvgPool3d((2, 1, 1)))),
    "max pooling first": ((1, 4, 4, 4), nn.Sequential(nn.MaxPool3d(2, return_indices=True), Applied(lambda x: x[0]),
                                                      nn.Conv3d(1, 2, 2), nn.AdaptiveMaxPool3d(1), nn.Flatten())),
    "unread positions": ((1, 6, 6), image(nn.ReLU(), nn.MaxPool2d(2, return_indices=True), Applied(lambda x: x[0]))),
    "where": (
        (4,), dense(Applied(lambda x: torch.where(mask, x, 2.0 * x.flip(1)).where(~mask[::2].repeat(2), ramp.to(x)))),
    ),
    "where of columns": ((1, 4, 4), image(Applied(lambda x: torch.where(mask[:4], x.relu(), -1.0)))),
    "triangles": ((4,), dense(Applied(lambda x: (x.view(-1, 2, 4).triu(1) + x.view(-1, 2, 4).tril()).flatten(1)))),
    "cumsum": ((1, 4, 4), image(Applied(lambda x: x.cumsum(1).relu() + torch.cumsum(x, dim=-1)))),
    "diff": ((4,), dense(Applied(lambda x: torch.cat([x.diff(), x[:, :1]], 1).relu()), nn.Linear(8, 10),
                         Applied(lambda x: torch.diff(x, 2, dim=1)))),
    "lerp": ((4,), dense(Applied(lambda x: x.lerp(x.relu(), 0.3).lerp(ramp.to(x), ramp.to(x).abs())))),
    "addcmul": (
        (4,), dense(Applied(lambda x: torch.addcmul(x, x.relu(), ramp.to(x), value=2.0).addcdiv(x, ramp[:1].to(x)))),
    ),
    "joined with constants": (
        (4,), dense(Applied(lambda x: torch.cat([x.new_ones(len(x), 2), x[:, :6].relu(), x.new_zeros((len(x), 1))], 1)),
                    nn.Linear(9, 4), nn.ReLU(), Applied(lambda x: torch.stack([torch.ones_like(x), x], 1).flatten(1))),
    ),
    "a factor for each channel": (
        (1, 4, 4), image(nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.ReLU()),
    ),
    "in-place reshaping": ((4,), dense(Applied(lambda x: x.unsqueeze_(1).transpose_(1, 2).squeeze_(-1).relu()))),
}  # fmt: skip


SIXTH = 3e-8  # torch differentiates a hardsigmoid with a sixth in float32, which is larger by as much


@pytest.mark.parametrize("name", NETS)
def test_bounds_hold(name):
    shape, net = NETS[name]
    x0 = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = net.double().eval()
    net(x0.clone())  # so that lazy layers know their shapes
    net = randomise(net)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(read(net, x0).forward(x.clone()), net(x.clone()))
    f = Applied(lambda x: net(x.clone()))
    steepest = float(torch.linalg.matrix_norm(jacobian(f, x0), 2))
    least = steepest * (1 - SIXTH if name.startswith("hardsigmoid") else 1 - 1e-13)
    eps = torch.tensor([1e-7, 0.2, 3.0])
    above_all, local, joint = global_bound(net, x0), local_bound(net, x0, eps), joint_bound(net, x0, eps, effort=2)
    assert float(joint.value[0]) == pytest.approx(steepest, rel=1e-5)
    for radius, upper in zip(eps.tolist(), joint.value.tolist(), strict=True):
        found = max(sampled_quotient(f, x0, radius, seed=seed) for seed in (0, 1))
        assert max(found * (1 - 1e-6), least) <= upper
    assert bool((joint.value <= local.value * (1 + 1e-9)).all())
    assert bool((local.value <= float(above_all) * (1 + 1e-8)).all())
    single = joint_bound(net.float(), x0.float(), 0.2, effort=2)
    assert float(single) == pytest.approx(float(joint.value[1]), rel=1e-2)


@pytest.mark.parametrize("sort", [GroupSort2, MaxMin, SortedPairs])
def test_sorting_networks_of_orthogonal_layers_have_constant_one(sort):
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(n, m).double()) for n, m in ((4, 8), (8, 8), (8, 3))]
    net = nn.Sequential(layers[0], sort(), layers[1], sort(), layers[2]).eval()
    x0 = torch.rand(1, 4).double()
    for bound in (global_bound(net, x0), local_bound(net, x0, 0.5)):
        assert 0.9 < float(bound) <= 1.0 + 1e-9
    assert float(joint_bound(net, x0, 0.5)) <= 1.0 + 1e-9


def test_a_pair_is_compared_once():
    graph = read(MaxMin().eval(), torch.rand(1, 4))
    assert sum(not layer.is_linear for layer in graph.layers) == 1


def test_the_radius_of_a_repeated_element():
    """Class 0 scores x_1 + x_1, class 1 a constant: the class changes where x_1 has fallen by a half."""
    net = nn.Sequential(Applied(lambda x: x[:, [-1, 1]]), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        net[1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert float(certified_radius(net, torch.tensor([[0.0, 1.0]]).double()).radius) == pytest.approx(0.5, rel=1e-4)


def test_instance_norm_with_running_statistics_is_batch_norm():
    conv = nn.Conv2d(1, 4, 3)
    nets = [nn.Sequential(conv, kind(4, affine=True, track_running_stats=True), nn.ReLU())
            for kind in (nn.BatchNorm2d, nn.InstanceNorm2d)]  # fmt: skip
    for net in nets:
        randomise(net, seed=3)
    x0 = torch.rand(1, 1, 5, 5).double()
    bounds = [float(local_bound(net, x0, 0.1)) for net in nets]
    assert bounds[0] == bounds[1]


def test_max_pooling_in_any_number_of_dimensions():
    x0 = torch.rand(1, 2, 4, 3, 5).double()
    options = (2, 2, 3), (1, 2, 2), (1, 0, 1), (2, 1, 1)
    pool = nn.MaxPool3d(*options, ceil_mode=True)
    (layer,) = read(pool.eval(), x0).layers
    elements = torch.cat([x0.flatten(2), torch.full((1, 2, 1), -math.inf).double()], 2)
    assert torch.equal(elements[..., layer.op.windows].amax(-1), pool(x0).flatten(2))
    delta = torch.randn(4, *x0.shape[1:]).double()
    torch.testing.assert_close(layer.op.difference(x0, delta), pool(x0 + delta) - pool(x0))


def test_a_quotient_is_not_a_product_with_a_rounded_reciprocal():
    """x/6 in float32 is the number next to the quotient: with a sixth in float32 kinks after it would lie elsewhere."""

    class Sixth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x / 6)

    graph = read(Sixth().eval(), torch.ones(1, 2))
    (scale,) = [float(layer.op.scale) for layer in graph.layers if hasattr(layer.op, "scale")]
    assert scale == 1.0 / 6.0
