"""The paper's bounds: published values, the exact product, limits, batches, samples, messages."""

import math

import pytest
import torch
from paper_product import paper_product
from random_networks import random_network
from torch import nn

import local_lipschitz.norms.spectral_norm as spectral
import local_lipschitz.product.bound as bounds
import local_lipschitz.product.stage_norms as stage_norms
from local_lipschitz import UnsupportedLayerError, global_bound, local_bound
from local_lipschitz.lower_bounds import ball_samples
from local_lipschitz.norms.lanczos import Operator
from networks import compnet, mnist, tiny


def test_published_values_of_tiny():
    net, x0 = tiny.net(), tiny.x0
    assert float(global_bound(net, x0)) == pytest.approx(9.101114, abs=1e-5)
    local = local_bound(net, x0, torch.tensor([0.1, 10.0])).value
    assert local.tolist() == pytest.approx([7.538264, 8.561141], abs=1e-5)


def test_published_values_of_compnet():
    net, x0 = compnet.net(), compnet.x0
    assert float(global_bound(net, x0)) == pytest.approx(1.286913, abs=1e-5)
    local = local_bound(net, x0, torch.tensor([0.0005, 0.1])).value
    # the published 0.425661 comes from 100 power steps, from below; the formula gives 0.425694
    assert local.tolist() == pytest.approx([0.389662, 0.425661], rel=1e-4)
    assert float(local[1]) == pytest.approx(paper_product(net.double(), x0, 0.1), rel=1e-6)


def test_mnist_is_within_half_a_percent_above_the_exact_product():
    net, x0 = mnist.net(), mnist.x0
    for eps in (1e-3, 0.1, 1.0):
        bound = local_bound(net, x0, eps)
        exact = paper_product(mnist.net().double(), x0, eps)
        assert exact <= float(bound) <= 1.005 * exact
        assert 0 < bound.failure_probability <= 1e-9


def test_lanczos_against_dense_in_small_networks(monkeypatch):
    """Every norm by Lanczos, then every norm dense: the first is never below, and close."""
    for seed in range(40):
        net, x0 = random_network(seed)
        dense = local_bound(net, x0, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(stage_norms, "DENSE_SIDE", 0)
            lanczos = local_bound(net, x0, 0.3)
        assert dense.failure_probability == 0.0
        assert float(dense) * (1 - 1e-9) <= float(lanczos) <= float(dense) * 1.0201 + 1e-12


def test_a_radius_counts_the_same_in_a_sweep():
    """A batch has other kernels, with another order of the elements in memory; the random start is the same."""
    net, eps = mnist.net(), torch.logspace(-3, 0, 30)
    sweep = local_bound(net, mnist.x0, eps, tolerance=2e-2).value
    for i in (0, 12, 20, 29):  # steps may be checked otherwise by a rounding; another start is 5e-3 apart
        assert float(local_bound(net, mnist.x0, float(eps[i]), tolerance=2e-2)) == pytest.approx(
            float(sweep[i]), rel=1e-3
        )


def test_batch_equals_one_by_one():
    net, _ = mnist.net(), None
    generator = torch.Generator().manual_seed(0)
    x0 = mnist.x0 + 0.3 * torch.randn(4, *mnist.x0.shape[1:], generator=generator)
    eps = torch.tensor([1e-3, 0.05, 0.3, 2.0])
    together = local_bound(net, x0, eps)
    alone = [local_bound(net, x0[i : i + 1], float(eps[i])) for i in range(4)]
    assert together.value.tolist() == pytest.approx([float(bound) for bound in alone], rel=1e-5)
    assert len(together.per_layer) == len(alone[0].per_layer)
    one_input = local_bound(net, x0[:1], eps).value
    repeated = local_bound(net, x0[:1].expand(4, -1, -1, -1), eps).value
    assert one_input.tolist() == pytest.approx(repeated.tolist(), rel=1e-5)


def test_limits_of_eps():
    """ε → 0: the product at the nominal activation pattern; ε → ∞: the global bound."""
    for seed in range(30):
        net, x0 = random_network(seed)
        local = local_bound(net, x0, torch.tensor([1e-30, 1e-25, 1e6, 1e12])).value
        assert torch.isfinite(local).all()
        assert float(local[0]) == pytest.approx(float(local[1]), rel=1e-9)
        assert float(local[3]) <= float(global_bound(net, x0)) * (1 + 1e-9)
    net, x0 = compnet.net().double(), compnet.x0.double()
    pattern, expected = x0, 1.0
    for layer, relu in ((net[0], True), (net[2], True), (net[4], False)):
        y = layer(pattern)
        D = 1.0 if layer is net[0] else (pattern > 0).double().flatten()
        R = (y >= 0).double().flatten()[:, None] if relu else 1.0
        expected *= float(torch.linalg.matrix_norm(R * layer.weight * D, 2))
        pattern = torch.relu(y)
    assert float(local_bound(net, x0, 1e-30)) == pytest.approx(expected, rel=1e-9)
    assert float(local_bound(net, x0, 1e6)) == pytest.approx(float(global_bound(net, x0)), rel=1e-3)


def test_per_layer_factors_multiply_to_the_value():
    bound = local_bound(mnist.net(), mnist.x0, 0.1)
    product = torch.stack([factor for _, factor in bound.per_layer]).prod(0)
    assert float(product) == pytest.approx(float(bound), rel=1e-9)
    assert [name for name, _ in bound.per_layer] == ["conv1", "pool1", "conv2", "pool2", "fc1", "fc2", "fc3"]


@pytest.mark.parametrize("part", range(4))
def test_samples_never_exceed_the_bound(part):
    """Quotients at 2,000 points of the ball, on 240 random networks."""
    for seed in range(60 * part, 60 * part + 60):
        net, x0 = random_network(1000 + seed)
        radii = (1e-3, 0.3, 10.0)
        bounds, everywhere = local_bound(net, x0, torch.tensor(radii, dtype=torch.float64)), global_bound(net, x0)
        for eps, bound in zip(radii, bounds.value.tolist(), strict=True):
            delta = ball_samples(x0, eps, 700, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                change = (net(x0 + delta) - net(x0)).flatten(1).norm(dim=1)
            assert (change <= bound * delta.flatten(1).norm(dim=1) + 1e-12).all()
            assert bound <= float(everywhere) * (1 + 1e-9)


def test_outputs_are_bounded_one_by_one():
    net, x0 = compnet.net().double(), compnet.x0.double()
    C = torch.eye(10)[0] - torch.eye(10)[1:]
    eps = torch.tensor([0.01, 0.1])
    rows = local_bound(net, x0, eps, outputs=C).value
    assert rows.shape == (2, 9)
    for k in range(9):
        margin = nn.Linear(30, 1).double()
        with torch.no_grad():
            margin.weight.copy_(net[4].weight[0] - net[4].weight[k + 1])
        alone = local_bound(nn.Sequential(*net[:4], margin).eval(), x0, eps).value
        assert (rows[:, k] <= alone * (1 + 1e-9)).all()  # rows may cancel, see tests/product/test_functionals.py
    assert (rows <= math.sqrt(2) * local_bound(net, x0, eps).value[:, None]).all()


def test_uncertified_is_the_estimate():
    net, x0 = mnist.net(), mnist.x0
    estimate, bound = local_bound(net, x0, 0.1, certified=False), local_bound(net, x0, 0.1)
    assert estimate.failure_probability == 1.0
    assert 0.99 * float(bound) <= float(estimate) <= float(bound)


def test_the_seed_changes_the_start_only():
    values = {float(local_bound(mnist.net(), mnist.x0, 0.1, seed=seed)) for seed in (0, 0, 1)}
    assert len(values) == 2
    assert max(values) <= 1.005 * min(values)


NET = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
X0 = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("x0", "eps", "message"),
    [
        (torch.zeros(1, 4), 0.1, "reads 3 features"),
        (torch.full((1, 3), math.nan), 0.1, "NaN"),
        (torch.full((1, 3), math.inf), 0.1, "infinite"),
        (torch.zeros(3), 0.1, "batch"),
        (torch.zeros(0, 3), 0.1, "non-empty"),
        (torch.zeros(1, 3, dtype=torch.int64), 0.1, "float32 or float64"),
        ([0.0, 0.0, 0.0], 0.1, "torch.Tensor"),
        (X0, 0.0, "positive"),
        (X0, -1.0, "positive"),
        (X0, math.nan, "positive"),
        (X0, math.inf, "finite"),
        (X0.expand(3, 3), torch.ones(2), "2 values for a batch of 3"),
        (X0, torch.ones(1, 2), "shape"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(x0, eps, message):
    with pytest.raises(ValueError, match=message):
        local_bound(NET, x0, eps)


def test_bad_networks_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="training mode"):
        local_bound(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), X0, 0.1)
    broken = nn.Sequential(nn.Linear(3, 2)).eval()
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"'0\.weight' contains NaN"):
        local_bound(broken, X0, 0.1)
    with pytest.raises(UnsupportedLayerError, match=r"LayerNorm"):
        local_bound(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).eval(), X0, 0.1)
    with pytest.raises(ValueError, match=r"outputs has shape \(2, 5\)"):
        local_bound(NET, X0, 0.1, outputs=torch.ones(2, 5))
    with pytest.raises(ValueError, match="batch of one"):
        float(local_bound(NET, X0.expand(2, 3), 0.1))


def test_steps_run_out_gracefully():
    """A cap on the steps leaves a valid, looser bound."""
    M = torch.randn(1, 300, 280, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    op = Operator(1, 300, 280, lambda v: v @ M[0].T, lambda u: u @ M[0], M.dtype, M.device, torch.zeros(1))
    norms = spectral.lanczos_norms(op, max_steps=12)
    assert norms.passes == 12
    assert float(norms.upper) >= float(torch.linalg.matrix_norm(M[0], 2))


def test_no_tf32_inside_and_as_it_was_afterwards(monkeypatch):
    """Convolutions on CUDA would keep ten bits of each factor; the slack is that of float32."""
    seen = []
    inner = bounds.propagate

    def looking(*args):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return inner(*args)

    monkeypatch.setattr(bounds, "propagate", looking)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    local_bound(NET, X0, 0.1)
    global_bound(NET, X0)
    assert seen == [(False, False)] * 2 and torch.backends.cudnn.allow_tf32
