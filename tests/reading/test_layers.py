"""Layers as people combine them: each bound against samples and the Jacobian; what is refused, and in which words."""

import copy

import pytest
import torch
from explicit import jacobian, randomise, sampled_quotient
from inputs import image
from torch import Tensor, nn

from local_lipschitz import global_bound, local_bound
from local_lipschitz.reading.read import read


def head(features: int, *modules: nn.Module) -> list[nn.Module]:
    return [*modules, nn.Flatten(), nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, 3)]


CHAINS = {
    "max pooling first": ((1, 6, 6), nn.Sequential(nn.MaxPool2d(2), *head(9))),
    "flatten first": ((2, 3), nn.Sequential(*head(6))),
    "conv, pool, relu": ((1, 6, 6), nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), *head(8))),
    "two relus": ((5,), nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.ReLU(), nn.Linear(4, 3))),
    "relu first": ((5,), nn.Sequential(nn.ReLU(), nn.Linear(5, 3))),
    "relu last": ((5,), nn.Sequential(nn.Linear(5, 3), nn.ReLU())),
    "pooling last": ((1, 6, 6), nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 1))),
    "two poolings": ((1, 8, 8), nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(3, 1), nn.MaxPool2d(2), *head(9))),
    "affine after affine": ((5,), nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3))),
    "one affine layer": ((5,), nn.Sequential(nn.Linear(5, 3))),
    "nested": ((4,), nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 2)))),
    "dropout": ((4,), nn.Sequential(nn.Dropout(), nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.1), nn.Linear(3, 2))),
    "batch norm after conv": (
        (2, 5, 5), nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), *head(27)),
    ),
    "batch norm before conv": (
        (2, 5, 5), nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), *head(75)),
    ),
    "batch norm between": (
        (4,), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3), nn.BatchNorm1d(3)),
    ),
    "average pooling": (
        (1, 8, 8),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU(), *head(8)),
    ),
    "overlapping average pooling": (
        (1, 7, 7), nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 2, 2), nn.ReLU(), *head(18)),
    ),
    "average pooling before relu": (
        (1, 7, 7), nn.Sequential(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2, ceil_mode=True), nn.ReLU(), *head(18)),
    ),
    "adaptive pooling": (
        (2, 5, 5), nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 3)), *head(9)),
    ),
    "adaptive pooling larger": ((1, 2, 2), nn.Sequential(nn.AdaptiveAvgPool2d(3), *head(9))),
    "one dimension": (
        (2, 12), nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 2), nn.ReLU(), *head(8)),
    ),
    "average pooling of one dimension": (
        (2, 9), nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.AvgPool1d(2), *head(12)),
    ),
    "transposed convolution": (
        (2, 3, 3),
        nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3)),
    ),
    "zero padding": ((1, 4, 4), nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(1, 2, 3), nn.ReLU(), *head(30))),
    "constant padding": ((1, 3, 3), nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(1, 2, 3), nn.ReLU(), *head(18))),
    "circular padding": (
        (1, 4, 4), nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), *head(32)),
    ),
    "reflection padding": ((1, 4, 4), nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), *head(32))),
    "replication padding": (
        (1, 4, 4), nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate"), nn.ReLU(), *head(32)),
    ),
    "leaky relu": ((4,), nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3))),
    "steep leaky relu": ((4,), nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(5.0), nn.Linear(6, 3))),
    "prelu": ((2, 4, 4), nn.Sequential(nn.Conv2d(2, 3, 2), nn.PReLU(3), *head(27))),
    "hardtanh": ((4,), nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(), nn.Linear(6, 3))),
    "relu6": ((4,), nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 3))),
    "trailing dimension": (
        (3, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten(), nn.Linear(6, 2)),
    ),
    "shared weights": ((4,), nn.Sequential(*[nn.Linear(4, 4), nn.ReLU()] * 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_bounds_are_never_below_samples_or_the_jacobian(name):
    shape, net = CHAINS[name]
    net, x0 = randomise(net), image(*shape)
    above_all = float(global_bound(net, x0))
    steepest = float(torch.linalg.matrix_norm(jacobian(net, x0), 2))
    for eps in (1e-9, 0.05, 1.0, 30.0):
        bound = local_bound(net, x0, eps)
        assert bound.failure_probability == 0.0
        assert sampled_quotient(net, x0, eps, seed=1) <= float(bound) * (1 + 1e-6)
        assert steepest <= float(bound) * (1 + 1e-9)
        assert float(bound) <= above_all * (1 + 1e-9)
    if name == "one affine layer":
        assert float(bound) == pytest.approx(steepest)


@pytest.mark.parametrize("name", CHAINS)
def test_float32_agrees(name):
    shape, net = CHAINS[name]
    net, x0 = randomise(copy.deepcopy(net)), image(*shape)
    wanted = float(local_bound(net, x0, 0.1))
    assert float(local_bound(net.float(), x0.float(), 0.1)) == pytest.approx(wanted, rel=2e-5)


# Cases that the published code gets wrong: there a layer that it does not know changes nothing.


def test_batch_norm_of_gain_100_after_a_relu():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with torch.no_grad():
        randomise(net)[2].weight.fill_(100.0)
    x0 = image(4)
    steepest = float(torch.linalg.matrix_norm(jacobian(net, x0), 2))
    without = float(global_bound(nn.Sequential(net[0], net[1], net[3]).eval(), x0))
    assert without < 0.5 * steepest  # so that leaving it out would show
    assert steepest <= float(local_bound(net, x0, 1e-6))
    assert sampled_quotient(net, x0, 0.1) <= float(local_bound(net, x0, 0.1))


@pytest.mark.parametrize("mode, worst", [("circular", 9.0), ("replicate", 9.0), ("reflect", 9.0)])
def test_padding_modes_reach_what_zeros_do_not(mode, worst):
    """A 3×3 kernel of ones maps a constant image to nine times it, unless there are zeros at the border."""
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode, bias=False).double().eval()
    zeros = nn.Conv2d(1, 1, 3, padding=1, bias=False).double().eval()
    with torch.no_grad():
        conv.weight.fill_(1.0)
        zeros.weight.fill_(1.0)
    x0 = image(1, 4, 4)
    exact = float(torch.linalg.matrix_norm(jacobian(conv, x0), 2))
    assert exact >= worst * (1 - 1e-12)
    assert float(global_bound(zeros, x0)) < worst * 0.8
    assert float(global_bound(conv, x0)) == pytest.approx(exact)


def test_leaky_relu_of_slope_five():
    net = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(5.0), nn.Linear(4, 2))
    randomise(net)
    with torch.no_grad():
        net[0].bias.fill_(-3.0)
    x0 = torch.zeros(1, 3, dtype=torch.float64)
    steepest = float(torch.linalg.matrix_norm(jacobian(net, x0), 2))
    as_relu = float(global_bound(nn.Sequential(net[0], nn.ReLU(), net[2]).eval(), x0))
    assert as_relu < steepest
    for eps in (1e-6, 1.0, 10.0):
        assert max(steepest, sampled_quotient(net, x0, eps)) <= float(local_bound(net, x0, eps)) * (1 + 1e-9)


# What becomes of a module


def test_batch_norm_is_folded_into_the_layer_before_it():
    net = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten()))
    graph = read(net, image(2, 5, 5))
    assert [layer.name for layer in graph.layers] == ["0", "2", "3", "4"]
    assert [call.note for call in graph.calls] == ["", "folded into 0", "", "", ""]


def test_padding_is_one_layer():
    def names(*modules: nn.Module) -> list[str]:
        return [layer.name for layer in read(nn.Sequential(*modules).eval(), image(1, 4, 4)).layers]

    assert names(nn.ZeroPad2d(1), nn.ReLU()) == ["0", "1"]
    assert names(nn.ZeroPad2d((1, -1, 0, 0)), nn.ReLU()) == ["0.0", "0", "1"]
    assert names(nn.ZeroPad2d(0), nn.AdaptiveAvgPool2d(4), nn.ReLU()) == ["2"]


def test_a_layer_that_is_read_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(self.norm(y)) + y

    net, x0 = randomise(Twice()), image(1, 4, 4)
    graph = read(net, x0)
    assert "norm" in [layer.name for layer in graph.layers]
    torch.testing.assert_close(graph.forward(x0), net(x0))


def test_layers_that_the_output_does_not_need_are_left_out():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.b(x).relu()
            return self.a(x)

    graph = read(Unused().eval(), torch.ones(1, 3))
    assert [layer.name for layer in graph.layers] == ["a"]
    assert [(call.name, call.note) for call in graph.calls] == [
        ("b", "not used by the output"), ("relu", "not used by the output"), ("a", ""),
    ]  # fmt: skip


class Listed(nn.Module):
    """A module that only lists its layers."""

    def __init__(self, kind: type):
        super().__init__()
        modules = [nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2))]
        self.layers = kind(*modules) if kind is nn.Sequential else kind(modules)


class Looping(Listed):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList, nn.Sequential])
@pytest.mark.parametrize("module", [Listed, Looping])
def test_a_module_with_layers(module, kind):
    net = module(kind).eval()
    for layer in net.layers:
        layer.eval()
    graph = read(net, torch.ones(1, 4))
    assert [layer.name for layer in graph.layers] == ["layers.0", "layers.1", "layers.2.0"]
    torch.testing.assert_close(graph.forward(torch.ones(1, 4)), nn.Sequential(*net.layers)(torch.ones(1, 4)))
    if kind in (list, tuple):
        net.layers[2].train()
        with pytest.raises(ValueError, match=r"training mode \(at 'layers.2'\)"):
            read(net, torch.ones(1, 4))


def test_subclasses_and_parametrised_layers():
    """A layer is known by what its forward() calls, not by its type."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)

    class Mine(nn.Linear):
        pass

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    net = nn.Sequential(Standardised(1, 2, 3), nn.ReLU(), nn.Flatten(), Mine(8, 8), normed, nn.ReLU(), spectral)
    net, x0 = net.double().eval(), image(1, 4, 4)
    torch.testing.assert_close(read(net, x0).forward(x0), net(x0))
    assert sampled_quotient(net, x0, 0.1) <= float(local_bound(net, x0, 0.1))


def test_compiled_modules_are_read_as_what_they_wrap():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    assert float(global_bound(torch.compile(net), torch.ones(1, 3))) == float(global_bound(net, torch.ones(1, 3)))
