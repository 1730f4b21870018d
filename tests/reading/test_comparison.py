"""The module run for real beside its graph: weights that hooks set, numbers that change by themselves, outputs."""

import copy
from itertools import pairwise

import pytest
import torch
from explicit import jacobian
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from local_lipschitz import global_bound, joint_bound, local_bound
from local_lipschitz.reading.read import read

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight_norm


def spectral_weight(layer: nn.Linear) -> Tensor:
    W, u, v = layer.weight_orig.double(), layer.weight_u.double(), layer.weight_v.double()
    return W / (u @ W @ v)


def pruned(layer: nn.Linear) -> nn.Linear:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


def twice_pruned(layer: nn.Linear) -> nn.Linear:
    return prune.random_unstructured(pruned(layer), "weight", amount=0.3)


def scaled_by_hook(layer: nn.Linear) -> nn.Linear:
    """A hook as a user writes it: the weight is a function of another parameter."""
    raw = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.raw, layer.weight = raw, raw.detach()
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2.0 * torch.tanh(module.raw)))
    return layer


def weight_in_float64(layer: nn.Linear) -> Tensor:
    return copy.deepcopy(layer).double().weight


# what wraps a layer, and its weight in float64 as its parameters have it
WRAPPERS = {
    "weight norm": (weight_norm, lambda m: torch._weight_norm(m.weight_v.double(), m.weight_g.double(), 0)),
    "spectral norm": (spectral_norm, spectral_weight),
    "pruned": (pruned, lambda m: m.weight_orig.double() * m.weight_mask.double()),
    "pruned twice": (twice_pruned, lambda m: m.weight_orig.double() * m.weight_mask.double()),
    "own hook": (scaled_by_hook, lambda m: 2.0 * torch.tanh(m.raw.double())),
    "parametrized weight norm": (parametrizations.weight_norm, weight_in_float64),
    "parametrized spectral norm": (parametrizations.spectral_norm, weight_in_float64),
    "parametrized orthogonal": (parametrizations.orthogonal, weight_in_float64),
}


def network(wrap, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = wrap(nn.Linear(6, 16)), nn.ReLU(), wrap(nn.Linear(16, 8)), nn.LeakyReLU(), wrap(nn.Linear(8, 3))
    return nn.Sequential(*layers)


def trained(wrap, steps: int = 30) -> nn.Module:
    """A small network after steps of Adam: what its hooks computed last is one step old."""
    net = network(wrap)
    X = torch.randn(64, 6)
    Y = torch.stack([X[:, 0].abs(), 2 * X[:, 1], X.sum(1).relu()], 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        ((net(X) - Y) ** 2).mean().backward()
        optimiser.step()
    return net.eval()


def plain(net: nn.Module, weight=lambda m: m.weight.double()) -> nn.Module:
    """The same network in float64, its weights plain parameters that `weight` takes from its layers."""
    layers = []
    for m in net:
        if isinstance(m, nn.Linear):
            layer = nn.Linear(m.in_features, m.out_features, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(weight(m))
                layer.bias.copy_(m.bias)
            layers.append(layer)
        else:
            layers.append(m)
    return nn.Sequential(*layers).eval()


def check_against(net: nn.Module, reference: nn.Module, rtol: float, x0: Tensor | None = None) -> None:
    """The bound of `net` at a tiny eps is the norm of the float64 network's Jacobian, and not below it."""
    x0 = torch.linspace(-1.0, 1.2, 6)[None] if x0 is None else x0
    exact = float(torch.linalg.matrix_norm(jacobian(reference, x0.double()), 2))
    joint = float(joint_bound(net, x0, 1e-7))
    assert exact * (1 - 1e-13) <= joint == pytest.approx(exact, rel=rtol)
    product = global_bound(reference, x0.double())
    assert float(global_bound(net, x0)) == pytest.approx(float(product), rel=rtol)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_weights_are_those_that_the_parameters_give(kind):
    wrap, weight = WRAPPERS[kind]
    net = trained(wrap)
    check_against(net, plain(net, weight), 1e-5)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_weights_after_a_state_dict_was_loaded(kind):
    wrap, weight = WRAPPERS[kind]
    source, net = trained(wrap), network(wrap, seed=1)
    net.load_state_dict(source.state_dict())
    check_against(net.eval(), plain(net, weight), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["weight norm", "parametrized weight norm", "none"])
def test_weights_in_half_precision(kind, dtype):
    wrap, _ = WRAPPERS.get(kind, (lambda m: m, None))
    net = trained(wrap).to(dtype)
    for layer in net if kind == "weight norm" else ():
        if hasattr(layer, "weight_g"):
            layer.weight_g.data *= 1.25  # and .weight is stale by as much
    net(torch.zeros(1, 6, dtype=dtype))
    used = plain(net)  # the numbers of the half-precision network, after a call
    for layer in net if kind == "weight norm" else ():
        if hasattr(layer, "weight_g"):
            layer.weight = layer.weight.detach() / 1.25
    check_against(net, used, 1e-5)


def test_what_hooks_set_is_put_back():
    net = trained(weight_norm)
    stale = net[0].weight
    local_bound(net, torch.ones(1, 6), 0.1)
    assert net[0].weight is stale


def test_a_buffer_that_a_hook_sets_in_place():
    """The graph keeps the values with which it was read; the buffer is put back."""
    net = nn.Sequential(nn.Linear(3, 2, bias=False)).eval()
    net[0].register_buffer("scale", torch.ones(()))
    raw = nn.Parameter(net[0].weight.detach().clone())
    del net[0].weight
    net[0].raw = raw

    def hook(module, args):
        module.scale.copy_(3.0)
        module.weight = module.raw * module.scale

    net[0].register_forward_pre_hook(hook)
    bound = float(global_bound(net, torch.ones(1, 3)))
    assert bound == pytest.approx(3.0 * float(torch.linalg.matrix_norm(raw.detach(), 2)))
    assert float(net[0].scale) == 1.0


# Numbers that change by themselves


class Changing(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.fc, self.scale, self.calls = nn.Linear(3, 2), scale, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        return self.fc(x) * self.scale(self, x)


@pytest.mark.parametrize(
    "scale",
    [
        lambda net, x: 1.0 + 1e-6 * torch.rand(()),
        lambda net, x: 1.0 + 1e-6 * torch.tensor(float(net.calls)),
        lambda net, x: 1.0 + 1e-6 * net.count,
        lambda net, x: 1.0 + 1e-6 * len(x),
    ],
    ids=["random", "counter", "buffer", "batch"],
)
def test_numbers_that_change_from_call_to_call(scale):
    with pytest.raises(ValueError, match=r"does not compute what its layers say.*others after another call"):
        read(Changing(scale).eval(), torch.ones(1, 3))


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_that_a_hook_sets_by_the_input(in_place):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    raw = net[0].weight.detach().clone()

    def hook(module, args):
        weight = raw * args[0].abs().amax()
        if in_place:
            module.weight.data.copy_(weight)
        else:
            module._parameters["weight"] = weight

    net[0].register_forward_pre_hook(hook)
    with pytest.raises(ValueError, match="does not compute what its layers say"):
        read(net, torch.ones(1, 3))


# The comparison of outputs


class Slightly(nn.Module):
    """Adds what cannot be followed: a part where it reads a tensor."""

    def __init__(self, net: nn.Module, part: float):
        super().__init__()
        self.net, self.part = net, part

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1.0 + self.part * (type(x) is Tensor))


@pytest.mark.parametrize("dtype, part", [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.float16, 0.03),
                                         (torch.bfloat16, 0.2)])  # fmt: skip
def test_outputs_are_compared_to_rounding(dtype, part):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x0 = torch.rand(1, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    read(net.to(dtype).eval(), x0)
    with pytest.raises(ValueError, match="a relative difference of"):
        read(Slightly(net, part).to(dtype).eval(), x0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_networks_of_many_kinds_are_not_refused_for_their_rounding(dtype):
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
                      nn.PReLU(8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 20), nn.ReLU6(), nn.Linear(20, 5)),
        nn.Sequential(nn.Flatten(), *(12 * [nn.Linear(192, 192), nn.ReLU()]), nn.Linear(192, 9)),
        nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 4000), nn.ReLU(), nn.Linear(4000, 2)),
    ]  # fmt: skip
    for net in nets:
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean += 5.0 * torch.randn(8)
        side = 14 if isinstance(net[0], nn.Conv2d) else 8
        for scale in (1e-3, 1.0, 30.0):
            x0 = scale * torch.randn(1, 3, side, side, dtype=dtype if dtype == torch.float64 else torch.float32)
            read(net.eval().to(dtype), x0)


def on_knots(seed, widths=(9, 3, 3, 3, 3, 2)):
    """A network with every y within a rounding of its knot at x0: whether a unit is open is decided by rounding."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(1, widths[0], generator=generator)
    z, layers = x0.double(), []
    for before, width in pairwise(widths):
        layer = nn.Linear(before, width)
        layer.weight.data = torch.randn(width, before, generator=generator)
        y = z @ layer.weight.data.double().T
        layer.bias.data = -y[0].float()
        z = (y + layer.bias.data.double()).relu()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval(), x0


def test_sums_that_cancel_at_a_knot_are_not_refused():
    for seed in range(60):
        read(*on_knots(seed))


def test_outputs_that_overflow():
    net = nn.Sequential(nn.Linear(3, 2)).half().eval()
    with torch.no_grad():
        net[0].weight.fill_(6e4)
    with pytest.raises(ValueError, match=r"NaN or infinite outputs.*too large for torch\.float16"):
        read(net, torch.ones(1, 3))
