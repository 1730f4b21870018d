"""Layers and modules that are refused, and in which words."""

import pytest
import torch
from torch import nn
from traced import Applied

from local_lipschitz import UnsupportedLayerError, local_bound
from local_lipschitz.reading.read import read

REFUSED = [
    (nn.Softmax(1), (4,), ["layer '2' (position 3, Softmax)", "leave it out: the bound is for the logits"]),
    (nn.LogSoftmax(1), (4,), ["'2' (position 3, LogSoftmax)", "the bound is for the logits"]),
    (nn.Sigmoid(), (4,), ["'2' (position 3, Sigmoid)", "the bound is for the logits"]),
    (nn.GLU(), (4,), ["'2' (position 3, GLU)", "multiplies two things that both depend on the input"]),
    (nn.LayerNorm(4), (4,), ["'2' (position 3, LayerNorm)", "BatchNorm in eval mode is supported"]),
    (nn.GroupNorm(1, 4), (4, 2), ["'2' (position 3, GroupNorm)", "divides by statistics of its input"]),
    (nn.InstanceNorm1d(4), (4, 2), ["'2' (position 3, InstanceNorm1d)", "track_running_stats=True"]),
    (nn.BatchNorm1d(4, track_running_stats=False), (4,), ["BatchNorm1d", "statistics of the batch", "eval mode"]),
    (nn.FractionalMaxPool2d(2, 2), (4, 6, 6), ["'2' (position 3, FractionalMaxPool2d)", "docs/layers.md"]),
    (nn.AdaptiveMaxPool1d(4), (4, 6), ["AdaptiveMaxPool1d", "unequal size"]),
    (nn.Hardshrink(), (4,), ["'2' (position 3, Hardshrink)", "not continuous", "Softshrink is supported"]),
    (nn.Threshold(0.1, 20), (4,), ["'2' (position 3, Threshold)", "jumps from 20 to 0.1 at 0.1"]),
    (nn.LSTM(4, 3), (5, 4), ["'2' (position 3, LSTM)"]),
    (nn.MultiheadAttention(4, 1), (5, 4), ["'2' (position 3, MultiheadAttention)"]),
    (nn.Bilinear(4, 4, 2), (4,), ["'2' (position 3, Bilinear)"]),
    (nn.Flatten(0), (4,), ["'2' (position 3, Flatten)", "(batch·4) mixes the inputs of a batch", "x.flatten(1)"]),
    (Applied(lambda x: x * x), (4,), ["'2.mul' (position 3, mul)", "product of two layers", "constant factors"]),
    (Applied(lambda x: x / (1 + x)), (4,), ["'2.truediv' (position 4, truediv)", "division by a layer"]),
    (Applied(lambda x: x / x.norm()), (4,), ["'2.norm' (position 3, norm)", "divides by statistics"]),
    (Applied(torch.exp), (4,), ["'2.exp' (position 3, exp)", "neither piecewise linear nor"]),
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
