"""Each result of the analysis by brute force in float64: it holds in thousands of random cases, and it is attained."""

import math
import random

import pytest
import torch
from explicit import jacobians, matrix_of, operator_of, randomise
from random_networks import random_dense, random_network
from torch import nn

from local_lipschitz import local_bound
from local_lipschitz.layers.activations import RELU
from local_lipschitz.layers.layer import INPUT
from local_lipschitz.layers.max_pooling import MaxPool
from local_lipschitz.lower_bounds import ball_samples
from local_lipschitz.norms.spectral_norm import dense_norms, lanczos_norms
from local_lipschitz.reading.read import read

CASES, M, N = 4000, 5, 4  # affine-ReLU layers relu(Ax + b), drawn all at once
ROUND = 1e-12


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(seed: int = 0):
    """A (CASES, M, N), ε over six decades, D (0/1), y0 = A x0 + b; and h = ε‖a_iᵀD‖."""
    A, b, x0 = normal(CASES, M, N, seed=seed), normal(CASES, M, seed=seed + 1), normal(CASES, N, seed=seed + 2)
    eps = 10.0 ** (6.0 * uniform(CASES, seed=seed + 3) - 4.0)
    D = (normal(CASES, N, seed=seed + 4) > -0.7).double()
    y0 = (A @ x0[:, :, None])[:, :, 0] + b
    return A, eps, D, y0, eps[:, None] * (A * D[:, None]).norm(dim=2)


def paper_norm(A, D, y0, h):
    """‖R A D‖ with r = 0 for constant elements, else 1, 0 or ȳ/(ȳ − y0); and r."""
    ybar = y0 + h
    r = torch.where(y0 >= 0, 1.0, torch.where(ybar <= 0, 0.0, ybar / (ybar - y0)))
    r = torch.where(h == 0, 0.0, r)
    return torch.linalg.matrix_norm(r[:, :, None] * A * D[:, None], 2), r


def test_relu_is_1_lipschitz_and_no_less():
    a, b = 3.0 * normal(CASES, 7), 3.0 * normal(CASES, 7, seed=1)
    ratio = (a.relu() - b.relu()).norm(dim=1) / (a - b).norm(dim=1)
    assert ratio.max() <= 1.0 + ROUND
    assert torch.equal((a.abs().relu() - b.abs().relu()).norm(dim=1), (a.abs() - b.abs()).norm(dim=1))  # attained


def test_secant_slopes_of_relu():
    """(relu(y) − relu(y0))/(y − y0) ≤ r for |y − y0| ≤ h, with equality at ȳ = y0 + h."""
    y0, h = normal(CASES), normal(CASES, seed=1).abs() + 1e-3
    _, s_hi = RELU.secant_slopes(y0, h)
    for part in torch.linspace(-1, 1, 41, dtype=torch.float64):
        dy = part * h
        assert ((y0 + dy).relu() - y0.relu() <= s_hi * dy.clamp(min=0) + 1e-14).all()
    attained = ((y0 + h).relu() - y0.relu()) / h
    below = y0 < 0
    assert torch.allclose(attained[below], s_hi[below], rtol=1e-9, atol=1e-12)
    assert (s_hi[~below] == 1.0).all()


def test_slopes_of_an_anchor_that_rounding_leaves_open():
    """secant_slopes(y0, h, off) holds the quotients at every anchor within y0 ± off, also where off is not small."""
    y0, h = normal(CASES), 0.5 * normal(CASES, seed=1).abs() + 1e-3
    off = h * 10.0 ** (4.0 * uniform(CASES, seed=2) - 3.5)
    s_lo, s_hi = RELU.secant_slopes(y0, h, off)
    for shift in torch.linspace(-1, 1, 9, dtype=torch.float64):
        low, high = RELU.secant_slopes(y0 + shift * off, h)
        assert (s_lo <= low + 1e-12).all() and (high <= s_hi + 1e-12).all()


@pytest.mark.parametrize("seed", [0, 10])
def test_affine_relu_layer(seed):
    """‖relu(A(x0 + Dδ) + b) − relu(Ax0 + b)‖ ≤ ‖R A D‖ ‖δ‖ for ‖δ‖ ≤ ε: spectral norms, not Frobenius."""
    A, eps, D, y0, h = layers(seed)
    L, _ = paper_norm(A, D, y0, h)
    assert (torch.linalg.matrix_norm(A, "fro") > 1.02 * L).float().mean() > 0.9
    top = torch.linalg.svd(A * D[:, None])[2][:, 0]
    for trial in range(60):
        direction = normal(CASES, N, seed=100 * seed + trial + 5)
        direction = [direction, top, -top, A.mT @ direction.new_ones(M)][trial % 4] + 0.3 * (trial // 4 % 3) * direction
        direction = direction / direction.norm(dim=1, keepdim=True)
        delta = D * direction * (eps * 10.0 ** (-(trial % 5)))[:, None]
        dy = (A @ delta[:, :, None])[:, :, 0]
        change = (y0 + dy).relu() - y0.relu()
        assert (change.norm(dim=1) <= L * delta.norm(dim=1) * (1 + 1e-9) + 1e-14).all()


def test_affine_relu_bound_is_attained_where_all_units_are_active():
    A, eps, D, y0, h = layers(20)
    y0 = h + y0.abs()  # no unit changes sign
    L, r = paper_norm(A, D, y0, h)
    assert ((r == 1.0) | (h == 0)).all()
    delta = D * torch.linalg.svd(A * D[:, None])[2][:, 0] * eps[:, None]
    dy = (A @ delta[:, :, None])[:, :, 0]
    change = RELU.difference(y0, dy)
    assert torch.allclose(change.norm(dim=1), L * delta.norm(dim=1), rtol=1e-9)


def test_largest_pre_activation_is_attained():
    """ȳ_i = y0_i + ε‖a_iᵀD‖ at δ = ε·D a_i/‖D a_i‖, to rounding; nowhere in the ball is it larger."""
    A, eps, D, _, h = layers(30)
    rows = A * D[:, None]
    delta = eps[:, None, None] * rows / rows.norm(dim=2, keepdim=True).clamp(min=1e-300)  # (CASES, M, N): one a unit
    attained = (A * delta).sum(2)
    assert torch.allclose(attained, h, rtol=1e-12, atol=0.0)
    for seed in range(20):
        direction = normal(CASES, N, seed=seed)
        delta = D * eps[:, None] * direction / direction.norm(dim=1, keepdim=True)
        assert ((A @ delta[:, :, None])[:, :, 0] <= h * (1 + ROUND)).all()


def test_largest_pre_activation_of_the_package_is_attained_by_the_network():
    """The same for first layers as they are, convolutions among them: row_norms against the module's own change."""
    units = 0
    for seed in range(300):
        net, x0 = random_network(40_000 + seed)
        first, eps = net[:2] if isinstance(net[0], nn.Flatten) else net[0], 10.0 ** (seed % 7 - 4)
        rows = read(net, x0).stages[0].row_norms(INPUT, torch.ones_like(x0)).flatten()
        A = matrix_of(lambda x, layer=first: layer(x) - layer(torch.zeros_like(x)), tuple(x0.shape[1:])).detach()
        delta = (eps * A / A.norm(dim=1, keepdim=True).clamp(min=1e-300)).reshape(-1, *x0.shape[1:])
        with torch.no_grad():
            attained = (first(delta) - first(torch.zeros_like(delta))).flatten(1).diagonal()
        assert torch.allclose(attained, eps * rows, rtol=1e-10, atol=1e-13 * eps)
        units += len(rows)
    assert units > 5000


def test_local_bound_is_attained():
    """A single unit at δ = ε a/‖a‖, where the ball reaches across its kink and where not; 900 balls."""
    count = 300
    a, eps = normal(count, N), 10.0 ** (4.0 * uniform(count, seed=1) - 2.0)
    share = 2.0 * uniform(count, seed=2) - 1.3  # y0 as a part of the reach: below 0 the unit is off at x0
    b = share * eps * a.norm(dim=1)
    for i in range(count):
        net = nn.Sequential(nn.Linear(N, 1), nn.ReLU(), nn.Linear(1, 1, bias=False)).double().eval()
        radii = eps[i] * torch.tensor([1.0, 0.7, 1.5], dtype=torch.float64)
        with torch.no_grad():
            net[0].weight.copy_(a[i : i + 1])
            net[0].bias.fill_(float(b[i]))
            net[2].weight.fill_(-2.0)
            delta = radii[:, None] * a[i] / a[i].norm()
            attained = (net(delta) - net(torch.zeros_like(delta))).norm(dim=1) / radii
        bound = local_bound(net, torch.zeros(1, N, dtype=torch.float64), radii).value
        assert torch.allclose(attained, bound, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_package_computes_the_product_of_these_layers(seed):
    """local_bound of 80 random chains against ȳ, r, D and the norms written out, with explicit matrices."""
    for case in range(80):
        rng = random.Random(1000 * seed + case)
        net, x0 = random_dense(rng)
        eps = 10.0 ** rng.uniform(-4, 2)
        x, D, radius, product = x0, torch.ones(1, x0.numel(), dtype=torch.float64), eps, 1.0
        linear = [module for module in net if isinstance(module, nn.Linear)]
        for module in linear[:-1]:
            A, y0 = module.weight.detach()[None], module(x).detach()
            h = radius * (A * D[:, None]).norm(dim=2)
            L, r = paper_norm(A, D, y0, h)
            x, D, radius, product = y0.relu(), (r > 0).double(), radius * float(L), product * float(L)
        product *= float(torch.linalg.matrix_norm(linear[-1].weight * D, 2).detach())
        assert float(local_bound(net, x0, eps)) == pytest.approx(product, rel=1e-8, abs=1e-300)


POOLS = [(k, s, p, d) for k in (1, 2, 3, 4) for s in (1, 2, 3) for p in (0, 1) for d in (1, 2) if 2 * p <= k]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), POOLS)
def test_max_pooling_constant(kernel, stride, padding, dilation):
    """√overlap bounds ‖Δ pooled‖/‖Δ‖, and raising one element that most windows read attains it."""
    size = 14
    pool = nn.MaxPool2d(kernel, stride, padding, dilation)
    a, b = normal(100, 1, size, size), normal(100, 1, size, size, seed=1)
    op = MaxPool((1, size, size), (kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, False)
    constant = math.sqrt(op.overlap)
    if dilation == 1:
        assert op.overlap == math.ceil(kernel / stride) ** 2
    for step in (1.0, 1e-3):
        change = (pool(a + step * b) - pool(a)).flatten(1).norm(dim=1)
        assert (change <= constant * step * b.flatten(1).norm(dim=1) * (1 + ROUND)).all()
    unit = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    attained = (pool(unit) - pool(torch.zeros_like(unit))).flatten(1).norm(dim=1).max()
    assert float(attained) == pytest.approx(constant, rel=ROUND)


def test_output_difference_rule():
    """No ‖Δy‖ < δ/√2 changes the largest of the outputs; ‖Δy‖ = δ/√2 along e_2 − e_1 ties them."""
    y = normal(CASES, 6)
    top = y.topk(2, dim=1)
    first, second = top.indices.T
    limit = (top.values[:, 0] - top.values[:, 1]) / math.sqrt(2)
    e = torch.eye(6, dtype=torch.float64)
    towards = (e[second] - e[first]) / math.sqrt(2)
    for seed in range(30):
        direction = normal(CASES, 6, seed=seed + 1) + (seed % 3) * 3.0 * towards
        direction = direction / direction.norm(dim=1, keepdim=True)
        assert torch.equal((y + 0.999999 * limit[:, None] * direction).argmax(1), first)
    at_limit = y + limit[:, None] * towards
    rows = torch.arange(CASES)
    assert torch.allclose(at_limit[rows, first], at_limit[rows, second], rtol=0, atol=1e-14)
    assert torch.equal((y + 1.000001 * limit[:, None] * towards).argmax(1), second)


def test_affine_layers_as_matrices():
    """Linear is its weight, a convolution the sum of shifted products, batch norm in eval mode an affine map."""
    linear = randomise(nn.Linear(6, 4, bias=False))
    assert torch.equal(matrix_of(linear, (6,)), linear.weight)
    norm = randomise(nn.BatchNorm1d(5))
    x = normal(50, 5)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(norm(x), scale * x + (norm.bias - scale * norm.running_mean), rtol=1e-12, atol=1e-12)
    conv = randomise(nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False))
    x = normal(1, 2, 5, 7)[0]
    expected = torch.zeros(conv(x[None]).shape[1:], dtype=torch.float64)
    for o, i, j, c, p, q in torch.cartesian_prod(*[torch.arange(n) for n in (*expected.shape, 2, 2, 3)]).tolist():
        row, column = 2 * i - 1 + p, j + 2 * q
        if 0 <= row < 5:
            expected[o, i, j] += conv.weight[o, c, p, q].item() * x[c, row, column]
    A = matrix_of(conv, (2, 5, 7))
    assert torch.allclose((A @ x.flatten()).reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)


def test_jacobians_by_autograd_against_finite_differences():
    for seed in range(100):
        net, x0 = random_network(9000 + seed)
        J, step = jacobians(net, x0)[0], 1e-6
        unit = step * torch.eye(x0.numel(), dtype=torch.float64).reshape(-1, *x0.shape[1:])
        with torch.no_grad():
            difference = ((net(x0 + unit) - net(x0 - unit)).flatten(1) / (2 * step)).T
        assert torch.allclose(J, difference, rtol=1e-6, atol=1e-7 * (1 + float(J.abs().max())))


def test_power_iteration_below_svd_below_lanczos():
    """100 power steps approach the norm from below, often by per cents; the certified norm is never below it."""
    A = normal(300, 40, 30)
    A[100:200] += 2.0 * normal(100, 40, 1, seed=1) @ normal(100, 1, 30, seed=2)  # a gap
    A[200:] = torch.linalg.qr(A[200:])[0] * (1.0 - 1e-3 * uniform(100, 1, 30, seed=4))
    truth = torch.linalg.matrix_norm(A, 2)
    v = normal(300, 30, seed=3)
    for _ in range(100):
        v = (A.mT @ (A @ v[:, :, None]))[:, :, 0]
        v = v / v.norm(dim=1, keepdim=True)
    power = (A @ v[:, :, None])[:, :, 0].norm(dim=1)
    lanczos = lanczos_norms(operator_of(A), generator=torch.Generator().manual_seed(0))
    assert (power <= truth * (1 + ROUND)).all() and (power[200:] < truth[200:] * (1 - 1e-6)).any()
    assert (truth <= lanczos.upper).all() and (lanczos.upper <= truth * 1.0021).all()
    assert torch.allclose(dense_norms(A).upper, truth, rtol=1e-11, atol=0)


def test_samples_stay_in_the_ball_in_every_dimension():
    for n in (1, 2, 50, 1000):
        delta = ball_samples(torch.zeros(1, n, dtype=torch.float64), 3.0, 2000, torch.Generator().manual_seed(n))
        r = delta.norm(dim=1) / 3.0
        assert r.max() <= 1.0 + ROUND
        assert float((r**n).mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 2000))
