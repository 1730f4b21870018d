"""Activations against torch's own, their secant slopes and max pooling against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from traced import Applied

from local_lipschitz.layers.activations import RELU, PiecewiseLinear
from local_lipschitz.layers.max_pooling import MaxPool, pool_anything
from local_lipschitz.reading.read import read

ACTIVATIONS = [
    (nn.ReLU(), F.relu),
    (nn.LeakyReLU(0.2), lambda y: F.leaky_relu(y, 0.2)),
    (nn.LeakyReLU(5.0), lambda y: F.leaky_relu(y, 5.0)),
    (nn.LeakyReLU(-0.5), lambda y: F.leaky_relu(y, -0.5)),
    (nn.PReLU(init=0.25), lambda y: torch.where(y > 0, y, 0.25 * y)),
    (nn.Hardtanh(), lambda y: y.clamp(-1, 1)),
    (nn.Hardtanh(0.5, 2.0), lambda y: y.clamp(0.5, 2.0)),
    (nn.Hardtanh(-2.0, -0.5), lambda y: y.clamp(-2.0, -0.5)),
    (nn.ReLU6(), lambda y: y.clamp(0, 6)),
]


def only_op(net: nn.Module, in_shape: tuple[int, ...] = (5,)):
    (layer,) = read(net.double().eval(), torch.zeros(1, *in_shape, dtype=torch.float64)).layers
    return layer.op


@pytest.mark.parametrize("module, function", ACTIVATIONS, ids=[str(module) for module, _ in ACTIVATIONS])
def test_values(module, function):
    phi = only_op(module)
    y = torch.linspace(-9, 9, 721, dtype=torch.float64)
    torch.testing.assert_close(phi.apply(y), function(y), rtol=1e-13, atol=1e-13)


def test_values_beyond_a_clamp_are_exact():
    """Where φ is flat, the rounding of a huge y must not reach φ(y): nothing would cover it there."""
    y = torch.tensor([-1e15, -1e3, 1e3, 1e15]).double() / 3.0
    for clamp in (nn.Hardtanh(-0.7, 0.3), nn.ReLU6(), nn.Hardtanh(0.1, 0.3)):
        assert torch.equal(only_op(clamp).apply(y), clamp(y))


@pytest.mark.parametrize("clamp", [nn.Hardtanh(-0.7, 0.3), nn.ReLU6()])
@pytest.mark.parametrize("far", [1e3, 1e12, 1e17, 1e60])
def test_a_clamp_that_is_crossed_from_far_away_has_a_slope(clamp, far):
    """From beyond one end to beyond the other: (hi − lo)/way, though neither knot can be told from y0."""
    y0, h = torch.tensor([-far, far], dtype=torch.float64), torch.tensor([3.0 * far] * 2, dtype=torch.float64)
    low, high = only_op(clamp).secant_slopes(y0, h)
    lo, hi = clamp(torch.tensor([-10.0, 10.0], dtype=torch.float64)).tolist()
    steepest = (hi - lo) / torch.tensor([far + hi, far - lo], dtype=torch.float64)
    torch.testing.assert_close(high, steepest, rtol=1e-9, atol=0.0)
    assert (low == 0).all()
    change = only_op(clamp).difference(y0, -2.0 * y0)
    torch.testing.assert_close(change, clamp(-y0) - clamp(y0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    "function",
    [
        F.relu, F.relu_, torch.relu, lambda x: x.relu(), lambda x: x.relu_(), lambda x: x.clamp(min=0),
        lambda x: x.clamp(0), lambda x: torch.clamp(x, max=1.5), lambda x: x.clamp(-0.5, 0.5),
        lambda x: x.clip(min=0.5), lambda x: x.clamp_min(0.0), lambda x: x.clamp_max_(-1.0), lambda x: x.clamp_(-1, 2),
        torch.abs, abs, lambda x: x.abs_(), F.relu6, F.hardtanh,
        lambda x: F.leaky_relu(x, 0.3), lambda x: F.leaky_relu_(x, 0.3),
        lambda x: F.hardtanh(x, -2.0, 0.25), lambda x: F.prelu(x, torch.tensor([0.1, 0.2, -3.0, 1.0, 0.0]).double()),
    ],
)  # fmt: skip
def test_functions(function):
    x = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(only_op(Applied(function)).apply(x), function(x.clone()))


def test_one_relu_for_all_its_names():
    for function in (F.relu, torch.relu_, lambda x: x.clamp(min=0), lambda x: x.clamp_min(0)):
        assert only_op(Applied(function)) is RELU
    assert only_op(nn.ReLU(inplace=True)) is RELU


def test_prelu_has_a_slope_a_channel():
    prelu = nn.PReLU(3)
    prelu.weight.data.copy_(torch.tensor([0.1, -2.0, 3.0]))
    phi = only_op(prelu, (3, 2, 2))
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(phi.apply(x), prelu(x))
    low, high = phi.secant_slopes(-torch.ones_like(x), 0.5 * torch.ones_like(x))
    torch.testing.assert_close(low[0, :, 0, 0], prelu.weight.data)
    torch.testing.assert_close(high, low)


@st.composite
def piecewise_linear(draw) -> PiecewiseLinear:
    count = draw(st.integers(0, 3))
    knots = sorted(draw(st.lists(st.integers(-6, 6), min_size=count, max_size=count, unique=True)))
    slopes = [draw(st.integers(-4, 4)) / 2 for _ in range(count + 1)]
    return PiecewiseLinear(tuple(float(k) for k in knots), tuple(slopes), draw(st.integers(-2, 2)) / 2)


@given(piecewise_linear(), st.integers(-16, 16), st.sampled_from([0.25, 1.0, 2.5, 40.0]))
@settings(max_examples=300)
def test_secant_slopes_are_the_range_of_all_quotients(phi, y0, h):
    """Quotients at the ends, at every knot on the way, just beside the start, and between."""
    y0, h = torch.tensor([y0 / 2], dtype=torch.float64), torch.tensor([h], dtype=torch.float64)
    steps = torch.linspace(-1, 1, 82, dtype=torch.float64) * h
    steps = torch.cat([steps, torch.tensor([2**-20, -(2**-20)], dtype=torch.float64)])
    knots = torch.tensor([k for k in phi.knots if 0 < abs(k - y0) <= h], dtype=torch.float64) - y0
    steps = torch.cat([steps, knots])
    quotients = (phi.apply(y0 + steps) - phi.apply(y0)) / steps
    s_lo, s_hi = phi.secant_slopes(y0, h)
    assert float(quotients.max()) == pytest.approx(float(s_hi), abs=1e-8)
    assert float(quotients.min()) == pytest.approx(float(s_lo), abs=1e-8)


@given(piecewise_linear(), st.floats(-8, 8), st.floats(-8, 8))
@settings(max_examples=300)
def test_differences(phi, y0, dy):
    assume(abs(dy) > 1e-3)
    y0, dy = torch.tensor([y0], dtype=torch.float64), torch.tensor([dy], dtype=torch.float64)
    wanted = phi.apply(y0 + dy) - phi.apply(y0)
    torch.testing.assert_close(phi.difference(y0, dy), wanted, rtol=1e-9, atol=1e-10)


def test_relu_has_the_slopes_of_the_paper():
    """r = 1 where y0 ≥ 0, 0 where ȳ ≤ 0, else ȳ/(ȳ − y0); and downwards y0/(y0 − l)."""
    y0 = torch.tensor([2.0, 2.0, 0.0, -1.0, -1.0, -3.0], dtype=torch.float64)
    h = torch.tensor([1.0, 8.0, 1.0, 4.0, 1.0, 2.0], dtype=torch.float64)
    s_lo, s_hi = RELU.secant_slopes(y0, h)
    assert s_hi.tolist() == [1, 1, 1, 0.75, 0, 0]
    assert s_lo.tolist() == [1, 0.25, 0, 0, 0, 0]


def test_tiny_radii_lose_no_digits():
    y0 = torch.tensor([1.0, -1.0, 0.0, 1e-40], dtype=torch.float64)
    for h in (1e-30, 1e-300):
        s_lo, s_hi = RELU.secant_slopes(y0, torch.full_like(y0, h))
        assert s_hi.tolist() == [1, 0, 1, 1]
        assert s_lo.tolist()[:3] == [1, 0, 0]
        assert RELU.difference(y0[:2], torch.full_like(y0[:2], h)).tolist() == [h, 0]


def test_a_constant_element_has_slope_zero():
    for phi in (RELU, PiecewiseLinear((0.0,), (-1.0, 1.0))):
        s_lo, s_hi = phi.secant_slopes(torch.tensor([1.0, -1.0]), torch.zeros(2))
        assert s_lo.tolist() == s_hi.tolist() == [0, 0]


@st.composite
def pools(draw) -> MaxPool:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride, dilation = ((draw(st.integers(1, 4)), draw(st.integers(1, 3))) for _ in range(2))
    shape = (draw(st.integers(1, 2)), draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    pool = MaxPool(shape, kernel, stride, padding, dilation, draw(st.booleans()))
    try:
        assume(min(pool.out_shape) > 0)
    except RuntimeError:
        assume(False)
    return pool


@given(pools(), st.integers(0, 99))
@settings(max_examples=150)
def test_pooling_windows_and_overlap(pool, seed):
    """Windows give torch's own result; the overlap is what torch shows when one element stands out."""
    C, H, W = pool.in_shape
    x = torch.randn(1, C, H, W, generator=torch.Generator().manual_seed(seed))
    elements = torch.cat([x.flatten(2), torch.full((1, C, 1), -math.inf)], 2)  # index −1 is the padding
    assert torch.equal(elements[..., pool.windows].amax(-1), pool.apply(x).flatten(2))

    peaks = torch.eye(H * W).reshape(H * W, 1, H, W).expand(-1, C, -1, -1)
    seen = (pool.apply(peaks)[:, 0] == 1).flatten(1).sum(1)
    assert pool.overlap == int(seen.max())
    assert torch.equal(pool_anything(pool, peaks == 1)[:, 0].flatten(1).sum(1), seen)


@given(pools(), st.integers(0, 99))
@settings(max_examples=100)
def test_pooling_is_lipschitz_with_the_root_of_the_overlap(pool, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 20, *pool.in_shape, generator=generator, dtype=torch.float64)
    change = (pool.apply(a) - pool.apply(b)).flatten(1).norm(dim=1)
    assert bool((change <= math.sqrt(pool.overlap) * (a - b).flatten(1).norm(dim=1) * (1 + 1e-12)).all())


def test_dilation_counts():
    """Kernel 3, stride 2, dilation 2: three windows an axis, where ⌈3/2⌉ would say two."""
    pool = MaxPool((1, 20, 20), (3, 3), (2, 2), (0, 0), (2, 2), False)
    assert pool.overlap == 9


@pytest.mark.parametrize(
    "pool, shape",
    [
        (nn.MaxPool1d(2), (3, 7)),
        (nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 8)),
        (nn.MaxPool1d(3, stride=1, dilation=2), (2, 9)),
        (nn.MaxPool2d((2, 3), stride=(1, 2), padding=(1, 0)), (2, 6, 7)),
        (nn.MaxPool2d(3, stride=2, ceil_mode=True), (2, 6, 6)),
        (nn.AdaptiveMaxPool2d(1), (2, 4, 5)),
        (nn.AdaptiveMaxPool2d((2, None)), (2, 4, 5)),
        (nn.AdaptiveMaxPool1d(3), (2, 6)),
    ],
    ids=str,
)
def test_pooling_modules(pool, shape):
    x = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(read(pool.eval(), x).forward(x), pool(x), rtol=0, atol=0)
