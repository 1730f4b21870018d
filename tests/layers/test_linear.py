"""Every affine layer against its explicit Jacobian: map, adjoint, changed entries, row norms, bias."""

import pytest
import torch
from affine import Applied, check
from explicit import jacobian, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from local_lipschitz.layers.layer import INPUT
from local_lipschitz.layers.linear_maps import size
from local_lipschitz.layers.rearranging import Permute, Select
from local_lipschitz.reading.read import read


@st.composite
def convolutions(draw, transposed: bool = False):
    """A random Conv1d, Conv2d or one of their transposes, and an input that fits it."""
    axes = draw(st.sampled_from([1, 2]))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    spatial = tuple(draw(st.integers(1 if transposed else r, r + 4)) for r in reach)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    options = {"dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    if transposed:
        # so that no output is empty
        most = [(s * (n - 1) + r - 1) // 2 for s, n, r in zip(stride, spatial, reach, strict=True)]
        padding = tuple(draw(st.integers(0, p)) for p in most)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        kind = [nn.ConvTranspose1d, nn.ConvTranspose2d][axes - 1]
        conv = kind(channels, out, kernel, stride, padding, extra, **options)
    else:
        padding = draw(st.sampled_from(["valid", "same", "int", "tuple"]))
        if padding == "same":
            stride = (1,) * axes
        elif padding != "valid":
            sizes = tuple(draw(st.integers(0, 3)) for _ in range(axes))
            padding = sizes[0] if padding == "int" else sizes
        conv = [nn.Conv1d, nn.Conv2d][axes - 1](channels, out, kernel, stride, padding, **options)
    return conv, (channels, *spatial)


@given(convolutions(), st.integers(0, 99))
@settings(max_examples=60)
def test_convolutions(case, seed):
    check(*case, seed=seed)


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2), (3, 2), (6, 4)])
@pytest.mark.parametrize("channels", [(1, 3), (3, 1)])
def test_the_longest_sum_of_a_convolution(channels, stride, dilation):
    """Neither fewer products than meet in an element away from the borders, nor more."""
    x = torch.ones(1, channels[0], 60, dtype=torch.float64)
    (layer,) = read(nn.Conv1d(*channels, 5, stride, dilation=dilation).double().eval(), x).layers
    entries = jacobian(layer.op.apply, x) != 0
    assert layer.op.terms == int(max(entries.sum(0).max(), entries.sum(1).max()))


@given(convolutions(transposed=True), st.integers(0, 99))
@settings(max_examples=40)
def test_transposed_convolutions(case, seed):
    check(*case, seed=seed)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes_of_convolutions(mode, padding):
    conv = nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode)
    slack = 2.0 if mode == "circular" else None  # the others may read an input twice in a window: it may cancel
    check(conv, (2, 4, 5), slack=slack)
    check(nn.Conv1d(2, 3, 3, padding=2, padding_mode=mode), (2, 5), slack=slack)


PADDINGS = [
    (nn.ZeroPad1d((1, 2)), (2, 4)),
    (nn.ZeroPad2d((1, 2, 0, 3)), (2, 3, 4)),
    (nn.ZeroPad2d((-1, 2, 1, -2)), (2, 4, 4)),
    (nn.ConstantPad1d(2, -1.5), (2, 4)),
    (nn.ConstantPad2d((1, 0, 2, 1), 3.0), (1, 3, 3)),
    (nn.CircularPad1d((2, 1)), (2, 4)),
    (nn.CircularPad2d((1, 2, 3, 0)), (2, 3, 4)),
    (nn.ReflectionPad1d((2, 1)), (2, 4)),
    (nn.ReflectionPad2d((1, 2, 0, 2)), (2, 3, 4)),
    (nn.ReplicationPad1d((3, 1)), (2, 2)),
    (nn.ReplicationPad2d((1, 2, 3, 0)), (2, 3, 4)),
]


@pytest.mark.parametrize("layer, shape", PADDINGS, ids=lambda value: str(value))
def test_padding_layers(layer, shape):
    check(layer, shape)


def test_padding_before_a_convolution_counts_it_all():
    """Zero padding leaves columns apart, so row norms stay exact; padding by values repeats them."""
    check(nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(2, 2, 3)), (2, 4, 4))
    check(nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(2, 2, 3)), (2, 4, 4), slack=None)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    padded=st.tuples(st.booleans(), st.booleans()),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
    divisor=st.one_of(st.none(), st.integers(1, 7)),
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
)
@settings(max_examples=80)
def test_average_pooling(kernel, stride, padded, ceil_mode, count_include_pad, divisor, size):
    padding = tuple(k // 2 if p else 0 for k, p in zip(kernel, padded, strict=True))
    check(nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor), (2, *size))
    check(nn.AvgPool1d(kernel[0], stride and stride[0], padding[0], ceil_mode, count_include_pad), (2, size[0]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, (1, 7), (4, None), (None, 2)])
def test_adaptive_average_pooling(size):
    check(nn.AdaptiveAvgPool2d(size), (2, 5, 7))
    if isinstance(size, int):
        check(nn.AdaptiveAvgPool1d(size), (2, 6))


LINEAR = [
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(5, 3, bias=False), (2, 5)),
    (nn.Linear(4, 2), (3, 2, 4)),
    (nn.Flatten(), (2, 3, 2)),
    (nn.Flatten(2, 3), (2, 3, 2)),
    (nn.Unflatten(1, (2, 3)), (6, 2)),
    (nn.BatchNorm1d(4), (4,)),
    (nn.BatchNorm1d(4), (4, 3)),
    (nn.BatchNorm2d(3), (3, 2, 2)),
    (nn.BatchNorm2d(3, affine=False), (3, 2, 2)),
    (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 4, 4)),
    (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)), (4, 2, 3)),
    (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (4,)),
    (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)),
    (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.Flatten()), (2, 6, 6)),
]


@pytest.mark.parametrize("layer, shape", LINEAR, ids=lambda value: type(value).__name__)
def test_linear_and_batch_norm(layer, shape):
    check(layer, shape)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_row_norms_are_exact_away_from_the_padding(mode):
    conv = randomise(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode))
    x0 = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    (stage,) = read(conv, x0).stages
    rows = stage.row_norms(INPUT, torch.ones_like(x0))[0]
    wanted = jacobian(conv, x0).norm(dim=1).reshape(rows.shape)
    inside = (slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(rows[inside], wanted[inside])
    assert bool((rows >= wanted - 1e-12).all())


def test_row_norms_of_affine_after_affine_are_upper_bounds():
    check(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), (5,), slack=None)
    check(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 1, 2)), (1, 8, 8), slack=None)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 1:, ::2],
        lambda x: x[:, 0],
        lambda x: x[..., -1:],
        lambda x: x[:, [2, 0]],
        lambda x: x[:, torch.tensor([1, 2, 0])],
        lambda x: x[:, :, None, 1:3],
        lambda x: x.permute(0, 3, 1, 2),
        lambda x: x.transpose(1, -1),
        lambda x: x.narrow(2, 1, 2),
        lambda x: x.chunk(2, 1)[1],
        lambda x: torch.split(x, [1, 2], 1)[1],
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.sum(-1),
        lambda x: x.sum((1, 3), keepdim=True),
        lambda x: -x * 3 + 1,
        lambda x: 2 - x / torch.tensor([1.0, 2, 4]).view(3, 1, 1),
        lambda x: x @ torch.arange(8.0, dtype=torch.float64).view(4, 2),
        lambda x: x.unsqueeze(2).squeeze(2).view(x.size(0), -1),
    ],
)
def test_operators(function):
    check(Applied(function), (3, 3, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat(1, 3, 1, 1),
        lambda x: x.expand(-1, 2, -1, -1),
        lambda x: torch.stack([x, x], 2),
    ],
)
def test_repeating_operators(function):
    """A column then holds several entries, in rows of their own."""
    net = randomise(Applied(function))
    x0 = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    J = jacobian(net, x0)
    (stage,) = read(net, x0).stages
    torch.testing.assert_close(stage.matrix(INPUT, x0), J)
    torch.testing.assert_close(stage.row_norms(INPUT, torch.ones_like(x0)).flatten(), J.norm(dim=1))


def test_permute_and_select_know_their_shapes():
    P = Permute((2, 3, 4), (4, 2, 3), (2, 0, 1))
    x = torch.randn(2, 2, 3, 4)
    assert P.apply(x).shape == (2, 4, 2, 3)
    assert torch.equal(P.adjoint(P.apply(x)), x)
    S = Select((3,), (5,), (slice(1, 4),), transposed=True)
    assert S.apply(torch.ones(1, 3)).tolist() == [[0, 1, 1, 1, 0]]
    assert S.adjoint(torch.arange(5.0)[None]).tolist() == [[1, 2, 3]]
    assert size(()) == 1


def test_float32_maps_follow_their_input():
    conv = nn.Conv2d(2, 3, 3).eval()
    (stage,) = read(conv, torch.randn(1, 2, 5, 5)).stages
    x = torch.randn(4, 2, 5, 5)
    y = stage.to(torch.float32).apply({INPUT: x})
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, nn.functional.conv2d(x, conv.weight))


@pytest.mark.parametrize("shape", [(13,), (2, 5, 13)])
def test_large_weights_are_changed_some_rows_at_a_time(shape, monkeypatch):
    """The same as all at once, in the dtype of the input, and the weight itself stays as it is."""
    monkeypatch.setattr("local_lipschitz.layers.linear_maps.CHUNK", 40)  # three of seven rows
    net = randomise(nn.Linear(13, 7), 0).float()
    A = read(net, torch.randn(1, *shape)).stages[0].layers[0].op
    before, x = A.weight.clone(), torch.randn(2, *shape, dtype=torch.float64)
    for change, in_place in ((torch.square, Tensor.square_), (torch.abs, Tensor.abs_), (torch.clone, torch.clone)):
        torch.testing.assert_close(A.apply_changed(x, in_place), nn.functional.linear(x, change(before.double())))
    assert torch.equal(A.weight, before)
