"""Convolutions as matrix products, against the sums that define them."""

import pytest
import torch

from local_lipschitz.layers.linear_maps import convolution
from local_lipschitz.layers.shifted_products import convolve, pays, taps_first

CASES = [  # channels in and out, height, width, kernel, padding, dilation
    (16, 16, 24, 22, (3, 3), (1, 1), (1, 1)),
    (17, 20, 23, 30, (5, 3), (2, 1), (1, 1)),
    (16, 18, 40, 70, (2, 3), (0, 2), (2, 3)),
    (16, 16, 30, 30, (1, 1), (0, 0), (1, 1)),
    (16, 16, 26, 26, (2, 2), (4, 3), (1, 1)),  # more padding than the kernel's width
]


@pytest.mark.parametrize("case", CASES)
def test_forwards_and_backwards(case):
    m, n, height, width, kernel, padding, dilation = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, m, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(n, m, *kernel, generator=generator, dtype=torch.float64)
    A = convolution(weight, tuple(x.shape[1:]), (1, 1), padding, dilation, 1)
    y = torch.randn(2, *A.out_shape, generator=generator, dtype=torch.float64)
    assert pays(x, weight, (1, 1), 1) and not pays(x.float(), weight, (1, 1), 1)
    known = torch.nn.functional.conv2d(x, weight, None, 1, padding, dilation)
    back = torch.nn.functional.conv_transpose2d(y, weight, None, 1, padding, 0, 1, dilation)
    for stored in (weight, taps_first(weight)):
        assert torch.allclose(convolve(x, stored, padding, dilation, False), known, rtol=0, atol=1e-11)
        assert torch.allclose(convolve(y, stored, padding, dilation, True), back, rtol=0, atol=1e-11)
    assert torch.allclose(A.apply(x), known, rtol=0, atol=1e-11)
    assert torch.allclose(A.adjoint(y), back, rtol=0, atol=1e-11)


def test_one_tap_is_one_shift():
    """The entries of a kernel act one by one: each moves the input, exactly, and nothing wraps round at the edges."""
    x = torch.arange(1.0, 1 + 16 * 24 * 23, dtype=torch.float64).reshape(1, 16, 24, 23)
    for i in range(3):
        for j in range(3):
            weight = torch.zeros(16, 16, 3, 3, dtype=torch.float64)
            weight[:, :, i, j] = torch.eye(16, dtype=torch.float64)
            moved = torch.zeros(1, 16, 26, 25, dtype=torch.float64)
            moved[:, :, 1:-1, 1:-1] = x
            assert torch.equal(convolve(x, weight, (1, 1), (1, 1), False), moved[:, :, i : i + 24, j : j + 23])


def test_gradients_go_through():
    A = convolution(torch.randn(16, 16, 3, 3).double(), (16, 24, 23), (1, 1), (1, 1), (1, 1), 1)
    x, y = torch.randn(1, 16, 24, 23).double().requires_grad_(), torch.randn(1, 16, 24, 23).double()
    (gradient,) = torch.autograd.grad((A.apply(x) * y).sum(), x)
    torch.testing.assert_close(gradient, A.adjoint(y))
