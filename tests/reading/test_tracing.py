"""Modules with their own forward(): what tracing follows, what it refuses, and bounds of random branched networks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as models
from explicit import jacobian, randomise, sampled_quotient
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.ops import FrozenBatchNorm2d

from local_lipschitz import UnsupportedLayerError, global_bound, local_bound
from local_lipschitz.reading.read import read


class Net(nn.Module):
    """Layers to write a forward() with; the function gets the module and its input, (B, 2, 6, 6)."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.same = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(3), nn.ReLU()
        self.fc, self.last = nn.Linear(48, 5), nn.Linear(5, 3)
        self.mid = nn.Linear(5, 5)
        self.register_buffer("mean", torch.tensor([0.4, -0.3]).view(1, 2, 1, 1))
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5, -2.0]))
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def net_and_input(forward) -> tuple[nn.Module, Tensor]:
    net = randomise(Net(forward))
    return net, torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def features(net: Net, x: Tensor) -> Tensor:
    return net.last(F.relu(net.fc(torch.flatten(x, 1))))


def after_shape_checks(net: Net, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    assert (C, H, W) == (2, 6, 6) and x.dim() == 4 and x.ndim == 4 and x.numel() == B * math.prod((2, 6, 6))
    if x.dtype == torch.float64 and x.size(-1) % 2 == 0 and len(x) == B and not x.is_cuda:
        x = F.avg_pool2d(net.conv(x), x.shape[2] // 6).to(x.device, x.dtype)
    for _ in range(x.size(2) // 4):
        x = net.same(x).contiguous()
    return net.last(net.fc(x.reshape(B, -1)).relu())


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = y
    z += 0.3  # changes y, too
    y *= 0.5
    z.sub_(net.same(z.clone()))
    F.relu(y, inplace=True)
    return features(net, z)


def in_two_halves(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x).relu()
    a, b, c = y.split(1, dim=1)
    d, e = torch.chunk(net.same(y), 2, 1)
    return features(net, torch.cat([b, d[:, :1] - a, e + c], dim=1))


def channel_shuffle(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    B, C, H, W = y.size()
    y = y.view(B, C, 1, H, W).transpose(1, 2).contiguous().view(B, -1, H, W)
    return features(net, y.relu())


def shortcut_with_padded_channels(net: Net, x: Tensor) -> Tensor:
    """The parameter-free shortcut of the CIFAR-10 ResNets: every second pixel, new channels zero."""
    y = net.conv(x).relu()
    z = F.pad(y[:, :2, ::2, ::2], (0, 0, 0, 0, 1, 0), "constant", 0.0)
    return z.mean((2, 3)) + F.adaptive_avg_pool2d(y, 1).flatten(1)


FORWARDS = {
    "functional calls": lambda net, x: features(net, F.max_pool2d(F.relu(net.conv(x)), 3, 1, 1)),
    "view": lambda net, x: net.fc(net.conv(x).relu().view(x.size(0), -1)),
    "view of shape[0]": lambda net, x: net.fc(net.conv(x).relu().view(x.shape[0], 48)),
    "constants": lambda net, x: features(net, net.conv((x - net.mean) / 0.25 * torch.tensor(2.0) - 1)),
    "pixels": lambda net, x: features(net, net.conv(x / 255)),
    "constants on the left": lambda net, x: features(net, net.scale.view(-1, 1, 1) * net.conv(1 - x) + net.scale[0]),
    "numpy constants": lambda net, x: features(net, np.float64(0.5) * net.conv(x) + np.float32(1.0)),
    "weights in forward": lambda net, x: features(net, F.conv2d(x, net.conv.weight / 2, net.scale, padding=0)),
    "residual": lambda net, x: features(net, net.conv(x) + net.same(net.conv(x).relu())),
    "torch.add": lambda net, x: features(net, torch.add(net.conv(x), net.same(net.conv(x)), alpha=-0.5)),
    "sum of a list": lambda net, x: features(net, sum([net.conv(x), net.same(net.conv(x)).relu(), net.conv(-x)])),
    "twice the same": lambda net, x: features(net, net.conv(x) + net.conv(x)),
    "module used twice": lambda net, x: net.mid(net.relu(net.mid(net.relu(net.fc(net.conv(x).flatten(1)))))),
    "norm as a module": lambda net, x: features(net, net.norm(net.conv(x)).relu()),
    "functional norm": lambda net, x: features(net, F.batch_norm(net.conv(x), net.scale.data, net.scale.data ** 2)),
    "dropout": lambda net, x: features(net, F.dropout(net.conv(x), 0.5, training=net.training)),
    "matmul": lambda net, x: net.conv(x).relu() @ net.conv.weight[0, 0].repeat(2, 1)[:4],
    "abs and clamp": lambda net, x: features(net, net.conv(x).abs().clamp(0.1, 0.5)),
    "grey to colour": lambda net, x: features(net, net.conv(x[:, :1].expand(-1, 2, -1, -1))),
    "repeated channels": lambda net, x: features(net, net.conv(x.mean(1, keepdim=True).repeat(1, 2, 1, 1)).relu()),
    "stack": lambda net, x: features(net, torch.stack([net.conv(x), net.same(net.conv(x)).relu()], 1).mean(1).relu()),
    "shape checks": after_shape_checks,
    "in place": in_place,
    "in two halves": in_two_halves,
    "channel shuffle": channel_shuffle,
    "attribute mT": lambda net, x: net.same(net.conv(x.mT.contiguous()).mH.relu()).mT.adjoint().mean((2, 3)),
    "padded shortcut": shortcut_with_padded_channels,
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_what_forward_may_do(name):
    """The graph is the module, and its bounds are never below samples or the Jacobian."""
    net, x0 = net_and_input(FORWARDS[name])
    graph = read(net, x0)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(graph.forward(x.clone()), net(x.clone()))
    assert len({layer.name for layer in graph.layers}) == len(graph.layers)
    steepest = float(torch.linalg.matrix_norm(jacobian(lambda x: net(x.clone()), x0), 2))
    above_all = float(global_bound(net, x0))
    for eps in (1e-9, 0.3, 5.0):
        bound = float(local_bound(net, x0, eps))
        assert steepest <= bound * (1 + 1e-9)
        assert sampled_quotient(lambda x: net(x.clone()), x0, eps) <= bound * (1 + 1e-6)
        assert bound <= above_all * (1 + 1e-9)


def test_names_say_where_a_layer_stands():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(x)) + x)

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.input = nn.Conv2d(1, 1, 1)  # the name of the network's input is taken
            self.block = Block()
            self.more = nn.Sequential(Block(), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.more(self.block(self.block(F.relu(self.input(x))))))

    graph = read(Blocks().eval(), torch.ones(1, 1, 3, 3))
    assert [call.name for call in graph.calls] == [
        "input#2", "relu", "block.relu", "block.conv", "block.add", "block.relu#2", "block.relu#3", "block.conv#2",
        "block.add#2", "block.relu#4", "more.0.relu", "more.0.conv", "more.0.add", "more.0.relu#2", "more.1", "relu#2",
    ]  # fmt: skip
    assert [call.kind for call in graph.calls[:5]] == ["Conv2d", "relu", "ReLU", "Conv2d", "add"]


def test_tensors_hidden_from_the_module_are_constants():
    offset = torch.tensor([1.0, 2.0])
    net, x0 = net_and_input(lambda net, x: net.fc(net.conv(x - offset.view(2, 1, 1)).flatten(1)))
    torch.testing.assert_close(read(net, x0).forward(x0), net(x0))


def test_further_arguments_take_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, double: bool = False, mask: Tensor | None = None) -> Tensor:
            if mask is not None or double:
                raise NotImplementedError
            return self.fc(x)

    assert len(read(Optional().eval(), torch.ones(1, 3)).layers) == 1


def test_autograd_functions_count_by_what_they_compute():
    class Straight(torch.autograd.Function):
        """A clamp whose gradient is a lie."""

        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return 100 * gradient

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return torch.from_numpy(np.maximum(x.detach().numpy(), 0))

    net, x0 = net_and_input(lambda net, x: net.fc(Straight.apply(net.conv(x)).flatten(1)))
    same, _ = net_and_input(lambda net, x: net.fc(net.conv(x).relu().flatten(1)))
    assert float(local_bound(net, x0, 0.1)) == float(local_bound(same, x0, 0.1))
    net, x0 = net_and_input(lambda net, x: net.fc(Through.apply(net.conv(x)).flatten(1)))
    with pytest.raises(UnsupportedLayerError, match="numpy"):
        read(net, x0)


REFUSED = {
    "control flow on data": (
        lambda net, x: net.conv(x) if x.mean((1, 2, 3)) > 0 else x,
        "layer 'gt' (position 2, gt): gt: not supported, the network would decide by the values of its input",
    ),
    "truth of a tensor": (
        lambda net, x: net.conv(x) if x.mean((1, 2, 3)) else x,
        "after layer 'mean' (position 1, mean) in Net.forward(): not supported, the network would decide by",
    ),
    "mean over the batch": (
        lambda net, x: x - x.mean(0), "layer 'mean' (position 1, mean): it works across dimension 0, the batch"
    ),
    "mean of everything": (
        lambda net, x: x - x.mean(), "takes the mean or sum over the batch, too; give the dimensions, from 1"
    ),
    "view into the batch": (
        lambda net, x: net.conv(x).view(-1, 16),
        "layer 'view' (position 2, view): from (batch, 3, 4, 4) to (batch·3, 16) mixes the inputs of a batch",
    ),
    "view of one input": (
        lambda net, x: net.conv(x).view(1, -1), "to (1, batch·48) mixes the inputs of a batch; wanted is x.flatten(1)"
    ),
    "flatten everything": (lambda net, x: x.flatten(), "to (batch·72) mixes the inputs of a batch; wanted is"),
    "squeeze": (lambda net, x: net.conv(x).squeeze(), "drops the batch dimension of a single input; give the dim"),
    "new batch dimension": (lambda net, x: x.unsqueeze(0), "mixes the inputs of a batch"),
    "transpose of the batch": (lambda net, x: x.transpose(0, 1), "it works across dimension 0, the batch"),
    "permute of the batch": (lambda net, x: x.permute(1, 0, 2, 3), "does not leave the batch in place"),
    "first input of the batch": (lambda net, x: x[0], "picks inputs out of the batch; index dimension 0 with ':'"),
    "loop over the batch": (lambda net, x: torch.stack([net.conv(y) for y in x]), "inputs of the batch one by one"),
    "cat along the batch": (lambda net, x: torch.cat([x, x]), "it works across dimension 0, the batch"),
    "padding of the batch": (lambda net, x: F.pad(x, (0,) * 7 + (1,)), "pads 4 dimensions, the batch among them"),
    "another constant an input": (
        lambda net, x: x + torch.arange(float(len(x))).view(-1, 1, 1, 1), "each input of the batch with another const"
    ),
    "constant that expands": (
        lambda net, x: x[:, :1] + net.mean, "a constant of shape (2, 1, 1) would expand the shape (1, 6, 6)"
    ),
    "sum that expands": (lambda net, x: x + x[:, :1], "a sum of different shapes, (2, 6, 6) and (1, 6, 6)"),
    "attention": (lambda net, x: x @ x.transpose(2, 3), "a matrix product other than x @ W with a constant"),
    "transposed matrix": (lambda net, x: net.conv(x).flatten(1).T, "the attribute 'T' of a layer's output is not"),
    "a number": (lambda net, x: x * float(x[:, 0, 0, 0]), "float()"),
    "item": (lambda net, x: x * x[:, 0, 0, 0].item(), "layer 'item' (position 2, item): item: not supported"),
    "numpy": (lambda net, x: torch.tensor(x.numpy()), "layer 'numpy' (position 1, numpy)"),
    "mask": (lambda net, x: x[:, torch.tensor([True, False])], "indexing by a mask"),
    "repeated index": (lambda net, x: x[:, [0, 0]], "a list that repeats a position"),
    "assignment": (lambda net, x: x.__setitem__((slice(None), 0), 0), "layer 'setitem' (position 1, __setitem__)"),
    "maximum": (
        lambda net, x: x.max(1)[0], "layer 'max' (position 1, max): max: not supported; max pooling and clamp are"
    ),
    "max of two": (lambda net, x: torch.maximum(x, -x), "maximum: not supported; max pooling and clamp are"),
    "noise": (lambda net, x: x + torch.randn_like(x), "layer 'randn_like' (position 1, randn_like)"),
    "dropout in training": (lambda net, x: F.dropout(x), "layer 'dropout' (position 1, dropout): it is random in"),
    "two outputs": (lambda net, x: (net.conv(x), x), "Net.forward() returns a tuple, not one tensor computed from"),
    "a dictionary": (lambda net, x: {"out": net.conv(x)}, "Net.forward() returns a dict"),
    "a constant": (lambda net, x: net.mean, "Net.forward() returns a Tensor, not one tensor computed from its input"),
    "a mistake": (
        lambda net, x: net.nowhere(x), "at the start of Net.forward(): it cannot be followed, AttributeError: 'Net'"
    ),
    "own error": (
        lambda net, x: (net.conv(x), 1 / 0),
        "after layer 'conv' (position 1, Conv2d) in Net.forward(): it cannot be followed, ZeroDivisionError",
    ),
    "softmax": (lambda net, x: net.conv(x).softmax(1), "layer 'softmax' (position 2, softmax)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_forward_may_not_do(name):
    forward, words = REFUSED[name]
    net, x0 = net_and_input(forward)
    with pytest.raises(UnsupportedLayerError) as caught:
        local_bound(net, x0, 0.1)
    assert words in str(caught.value)


def test_changes_through_a_view_are_found():
    """The copy that a view shares memory with is not followed; the result would be wrong, and is refused."""

    def through_a_view(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        y.view(y.size(0), -1).relu_()
        return y

    net, x0 = net_and_input(through_a_view)
    with pytest.raises(ValueError, match="changed in place through a view"):
        read(net, x0)


def test_own_value_errors_pass():
    def checking(net: Net, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels are wanted")
        return x

    net, x0 = net_and_input(checking)
    with pytest.raises(ValueError, match=r"at the start of Net\.forward\(\): three channels are wanted"):
        read(net, x0)


# Random networks with branches


class Random(nn.Module):
    """Steps on a list of values, each (B, n) of its own n: what `steps` says, the last value being the output."""

    def __init__(self, n: int, steps: list[tuple]):
        super().__init__()
        self.steps, self.linears, sizes = steps, nn.ModuleList(), [n]
        for kind, i, j, width in steps:
            if kind == "linear":
                self.linears.append(nn.Linear(sizes[i], width))
            sizes.append(width if kind == "linear" else sizes[i] + (sizes[j] if kind == "cat" else 0))

    def forward(self, x: Tensor) -> Tensor:
        values, linears = [x], iter(self.linears)
        for kind, i, j, _ in self.steps:
            a, b = values[i], values[j]
            if kind == "linear":
                values.append(next(linears)(a))
            elif kind == "cat":
                values.append(torch.cat([a, b], 1))
            elif kind == "add":
                values.append(a + b if a.shape == b.shape else a * 0.5)
            elif kind == "pool":
                values.append(F.max_pool1d(a.unsqueeze(1), 3, 1, 1).squeeze(1))
            else:
                values.append({"relu": F.relu, "leaky": lambda x: F.leaky_relu(x, -0.3), "abs": torch.abs}[kind](a))
        return values[-1]


@st.composite
def random_networks(draw) -> tuple[nn.Module, Tensor]:
    n = draw(st.integers(1, 4))
    steps, count = [], draw(st.integers(3, 12))
    for k in range(count):
        kind = draw(st.sampled_from(["linear", "relu", "relu", "add", "cat", "leaky", "abs", "pool"]))
        recent = st.integers(max(0, k - 3), k)
        steps.append((kind, draw(recent), draw(recent), draw(st.integers(1, 5))))
    steps.append(("linear", count, count, 3))
    net = randomise(Random(n, steps), draw(st.integers(0, 10**6)))
    x0 = torch.randn(1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6))))
    return net, x0


@given(random_networks(), st.sampled_from([1e-6, 0.05, 0.5, 5.0]))
@settings(max_examples=100)
def test_random_branched_networks(case, eps):
    net, x0 = case
    x = torch.randn(3, *x0.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(read(net, x0).forward(x), net(x))
    bound, above_all = float(local_bound(net, x0, eps)), float(global_bound(net, x0))
    assert sampled_quotient(net, x0, eps, seed=2) <= bound * (1 + 1e-6) + 1e-12
    assert float(torch.linalg.matrix_norm(jacobian(net, x0), 2)) <= bound * (1 + 1e-9) + 1e-12
    assert bound <= above_all * (1 + 1e-9)


# Networks of torchvision, with their structure and few channels


def narrow_densenet() -> nn.Module:
    return models.DenseNet(growth_rate=2, block_config=(6, 12, 24, 16), num_init_features=4, bn_size=2, num_classes=4)


def narrow_googlenet() -> nn.Module:
    return nn.Sequential(
        BasicConv2d(3, 6, kernel_size=3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(6, 3, 2, 4, 2, 3, 2), Inception(12, 2, 2, 3, 1, 2, 2),
        nn.MaxPool2d(2), Inception(9, 2, 2, 3, 1, 2, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(9, 4),
    )  # fmt: skip


TORCHVISION = {
    "resnet18": (lambda: models.resnet18(weights=None, num_classes=4), 32),
    "densenet121": (narrow_densenet, 32),
    "squeezenet1_1": (lambda: models.squeezenet1_1(weights=None, num_classes=4), 32),
    "googlenet": (narrow_googlenet, 16),
}


def spread(net: nn.Module) -> nn.Module:
    """Running statistics other than the ones that a new network has."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks(name):
    build, side = TORCHVISION[name]
    torch.manual_seed(0)
    net = spread(build())
    x0 = torch.randn(1, 3, side, side)
    bound = local_bound(net, x0, 1e-3, tolerance=0.02)
    assert math.isfinite(float(bound)) and bound.failure_probability <= 1e-9
    net, x0 = net.double(), x0.double()
    assert float(torch.linalg.matrix_norm(jacobian(net, x0), 2)) <= float(bound)
    assert sampled_quotient(net, x0, 1e-3, count=20) <= float(bound)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.mobilenet_v2(weights=None, width_mult=0.1),
        lambda: models.shufflenet_v2_x0_5(weights=None),
        lambda: models.mnasnet0_5(weights=None),
        lambda: models.resnext50_32x4d(weights=None, replace_stride_with_dilation=[False, True, True]),
        lambda: models.regnet_x_400mf(weights=None),
        lambda: models.googlenet(weights=None, init_weights=False, transform_input=True),
        lambda: models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d),
    ],
)
def test_more_networks_of_torchvision_are_read(build):
    """`read` itself compares the graph's output with the module's."""
    read(spread(build()), torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize(
    "build, layer",
    [
        (lambda: models.efficientnet_b0(weights=None), "'features.0.2' (position 3, SiLU)"),
        (lambda: models.mobilenet_v3_small(weights=None), "'features.0.2' (position 3, Hardswish)"),
    ],
)
def test_torchvision_networks_with_other_activations_are_refused(build, layer):
    with pytest.raises(UnsupportedLayerError) as caught:
        read(build().eval(), torch.randn(1, 3, 32, 32))
    assert layer in str(caught.value)
