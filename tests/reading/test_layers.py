"""Layers as people combine them: each bound against samples and the Jacobian; what is refused, and in which words."""

import copy

import pytest
import torch
from explicit import jacobian, randomise, sampled_quotient
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError, global_bound, local_bound
from local_lipschitz.reading.read import read


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


# What is refused, and in which words


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


REFUSED = [
    (nn.Softmax(1), (4,), ["layer '2' (position 3, Softmax)", "leave it out: the bound is for the logits"]),
    (nn.LogSoftmax(1), (4,), ["'2' (position 3, LogSoftmax)", "the bound is for the logits"]),
    (nn.Sigmoid(), (4,), ["'2' (position 3, Sigmoid)", "the bound is for the logits", "ReLU, LeakyReLU"]),
    (nn.Tanh(), (4,), ["'2' (position 3, Tanh)", "activations that are: ReLU"]),
    (nn.GELU(), (4,), ["'2' (position 3, GELU)", "activations that are: ReLU, LeakyReLU, PReLU"]),
    (nn.SiLU(), (4,), ["'2' (position 3, SiLU)"]),
    (nn.ELU(), (4,), ["'2' (position 3, ELU)"]),
    (nn.Softplus(), (4,), ["'2' (position 3, Softplus)"]),
    (nn.LayerNorm(4), (4,), ["'2' (position 3, LayerNorm)", "BatchNorm in eval mode is supported"]),
    (nn.GroupNorm(1, 4), (4, 2), ["'2' (position 3, GroupNorm)", "divides by statistics of its input"]),
    (nn.InstanceNorm1d(4), (4, 2), ["'2' (position 3, InstanceNorm1d)"]),
    (nn.BatchNorm1d(4, track_running_stats=False), (4,), ["BatchNorm1d", "statistics of the batch", "eval mode"]),
    (nn.MaxPool1d(2, return_indices=True), (4, 6), ["'2' (position 3, MaxPool1d)", "return_indices"]),
    (nn.MaxPool3d(2), (4, 6, 6, 6), ["'2' (position 3, MaxPool3d)", "README"]),
    (nn.AdaptiveMaxPool1d(4), (4, 6), ["AdaptiveMaxPool1d", "unequal size"]),
    (nn.Upsample(scale_factor=2), (4, 6), ["'2' (position 3, Upsample)", "README"]),
    (nn.LSTM(4, 3), (5, 4), ["'2' (position 3, LSTM)"]),
    (nn.MultiheadAttention(4, 1), (5, 4), ["'2' (position 3, MultiheadAttention)"]),
    (nn.Bilinear(4, 4, 2), (4,), ["'2' (position 3, Bilinear)"]),
    (nn.Flatten(0), (4,), ["'2' (position 3, Flatten)", "(batch·4) mixes the inputs of a batch", "x.flatten(1)"]),
    (Applied(lambda x: x * x), (4,), ["'2.mul' (position 3, mul)", "product of two layers", "constant factors"]),
    (Applied(lambda x: x / (1 + x)), (4,), ["'2.truediv' (position 4, truediv)", "division by a layer"]),
    (Applied(lambda x: x / x.norm()), (4,), ["'2.norm' (position 3, norm)", "divides by statistics"]),
    (Applied(torch.exp), (4,), ["'2.exp' (position 3, exp)", "not piecewise linear"]),
    (Applied(lambda x: torch.where(x > 0, x, 0)), (4,), ["'2.gt' (position 3, gt)", "decide by the values"]),
]


@pytest.mark.parametrize("layer, shape, words", REFUSED, ids=[type(layer).__name__ for layer, _, _ in REFUSED])
def test_refused_layers_are_named_with_their_place_and_what_to_do(layer, shape, words):
    net = nn.Sequential(nn.Identity(), nn.ReLU(), layer).eval()
    with pytest.raises(UnsupportedLayerError) as caught:
        local_bound(net, torch.ones(1, *shape), 0.1)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_SHAPES = [
    (nn.Linear(5, 2), (4,), ["'1' (position 2, Linear)", "reads 5 features", "shape (4,)"]),
    (nn.Conv2d(3, 2, 3), (1, 5, 5), ["'1' (position 2, Conv2d)", "reads (3, H, W)", "shape (1, 5, 5)"]),
    (nn.Conv2d(1, 2, 3), (5, 5), ["reads (1, H, W)", "shape (5, 5)"]),
    (nn.Conv2d(1, 2, 6), (1, 5, 5), ["a kernel of (6, 6) finds no place in an input of shape (1, 5, 5)"]),
    (nn.MaxPool2d(6), (1, 5, 5), ["'1' (position 2, MaxPool2d)", "does not fit an input of shape (1, 5, 5)"]),
    (nn.MaxPool2d(2), (4,), ["'1' (position 2, MaxPool2d)", "reads (C, H, W)", "shape (4,)"]),
    (nn.AvgPool1d(2), (4,), ["reads (C, L)", "shape (4,)"]),
    (nn.BatchNorm2d(3), (4,), ["'1' (position 2, BatchNorm2d)", "4D input"]),
    (nn.BatchNorm2d(3), (4, 2, 2), ["'1' (position 2, BatchNorm2d)", "3 channels", "(4, 2, 2)"]),
    (nn.PReLU(3), (4,), ["3 slopes", "shape (4,)"]),
    (nn.ReflectionPad1d(5), (2, 4), ["'1' (position 2, ReflectionPad1d)"]),
]


@pytest.mark.parametrize("layer, shape, words", WRONG_SHAPES, ids=[str(layer) for layer, _, _ in WRONG_SHAPES])
def test_shapes_that_do_not_fit(layer, shape, words):
    with pytest.raises(ValueError) as caught:
        read(nn.Sequential(nn.ReLU(), layer).eval(), torch.ones(1, *shape))
    for word in words:
        assert word in str(caught.value)


def test_modules_that_are_refused_as_a_whole():
    x0 = torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"net is a function; a torch\.nn\.Module is wanted"):
        read(lambda x: x, x0)
    with pytest.raises(ValueError, match=r"training mode \(at '1'\); call net\.eval\(\) first"):
        net = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).eval()
        net[1].train()
        read(net, x0)
    with pytest.raises(ValueError, match=r"training mode \(at 'Linear'\)"):
        read(nn.Linear(3, 2), x0)
    net = nn.Linear(3, 2).eval()
    with torch.no_grad():
        net.bias[1] = float("inf")
    with pytest.raises(ValueError, match="'bias' contains NaN or infinite"):
        read(net, x0)
    with pytest.raises(ValueError, match="'weight' is on meta, x0 on cpu"):
        read(nn.Linear(3, 2, device="meta").eval(), x0)
    with pytest.warns(Warning), pytest.raises(UnsupportedLayerError, match="TorchScript"):
        read(torch.jit.script(nn.Linear(3, 2).eval()), x0)


# The caller's module


def test_the_module_is_left_as_it_was():
    class Busy(nn.Module):
        """Stores in its forward() what it likes."""

        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))
            self.seen, self.last, self.calls = [], None, 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.calls += 1
            y = self.norm(self.linear(x))
            self.last = y
            self.seen.append(y)
            self.extra = y
            return y.relu()

    net = Busy().eval()
    net.linear.bias.requires_grad_(False)
    fired = []
    handle = net.linear.register_forward_hook(lambda module, args, output: fired.append(type(output)))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    seen = net.seen
    local_bound(net, torch.ones(1, 3), 0.1)
    with pytest.raises(UnsupportedLayerError):
        read(nn.Sequential(net, nn.GELU()).eval(), torch.ones(1, 3))

    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.seen is seen and seen == [] and net.last is None and net.calls == 0 and not hasattr(net, "extra")
    assert not net.training and not net.linear.training
    assert net.linear.weight.requires_grad and not net.linear.bias.requires_grad and net.linear.weight.grad is None
    assert set(fired) <= {Tensor}  # a hook sees tensors only, never what traces the module
    fired.clear()
    net(torch.ones(1, 3))
    assert len(fired) == 1
    handle.remove()
    net(torch.ones(1, 3))
    assert len(fired) == 1


def test_the_random_state_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    local_bound(nn.Linear(3, 2).eval(), torch.ones(1, 3), 0.1)
    torch.manual_seed(3)
    assert torch.equal(before, torch.get_rng_state())


def test_outputs_that_are_mostly_rounding_are_not_taken_for_another_network():
    """A batch norm takes away what the layer before it added: folded, the two lose less to rounding than one by one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].bias += 1e6
        net[1].running_mean += 1e6
    x0 = torch.randn(1, 5)
    graph = read(net, x0)
    assert (graph.forward(x0) - net(x0)).abs().max() > 2e-3 * net(x0).abs().max()
    net[3].register_forward_hook(lambda module, args, output: 1e3 * output)
    with pytest.raises(ValueError, match="does not compute what its layers say"):
        read(net, x0)


@pytest.mark.parametrize("hook", ["forward", "pre"])
def test_hooks_that_change_values_are_found(hook):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    if hook == "forward":
        net[0].register_forward_hook(lambda module, args, output: 2 * output)
    else:
        net[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with pytest.raises(ValueError, match=r"does not compute what its layers say .* a hook that changes values"):
        local_bound(net, torch.ones(1, 3), 0.1)


def test_an_output_that_depends_on_the_batch_is_found():
    net = Applied(lambda x: x / len(x)).eval()
    with pytest.raises(ValueError, match="does not compute what its layers say"):
        read(net, torch.ones(1, 3))


def test_randomness_is_found():
    net = Applied(lambda x: x * torch.rand(3)).eval()
    with pytest.raises(ValueError, match="randomness"):
        read(net, torch.ones(1, 3))
