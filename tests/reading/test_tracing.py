"""Modules with their own forward(): what tracing follows, what it refuses, and bounds of random branched networks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explicit import jacobian, sampled_quotient
from torch import Tensor, nn
from traced import Net, net_and_input

from local_lipschitz import UnsupportedLayerError, global_bound, local_bound
from local_lipschitz.reading.read import read


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
    "constant that expands": lambda net, x: features(net, net.conv(x[:, :1] + net.mean)),
    "sum that expands": lambda net, x: features(net, net.conv(x - x[:, :1] + x.mean(1, keepdim=True))),
    "repeated index": lambda net, x: features(net, net.conv(x[:, [0, -2]])),
    "mask of channels": lambda net, x: features(net, net.conv(x[:, torch.tensor([False, True])].repeat(1, 2, 1, 1))),
    "maxima of channels": lambda net, x: net.conv(x).max(1)[0].flatten(1) - net.conv(x).min(1).values.flatten(1),
    "max and min of two": lambda net, x: features(net, torch.max(net.conv(x), net.same(net.conv(x)))),
    "in-place reshaping": lambda net, x: net.conv(x).unsqueeze_(1).transpose_(1, 2).squeeze_(2).mean((2, 3)),
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
