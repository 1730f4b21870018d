"""The operator inside the joint bound: adjoints, the truth of its kinks on samples, and the best multipliers."""

import random
from dataclasses import replace

import pytest
import torch
from linearised import layers, linearised, matrices
from random_networks import random_convolutional, random_network
from torch import Tensor, nn

import local_lipschitz.product.stage_norms as stage_norms
from local_lipschitz.joint.dense import rows
from local_lipschitz.joint_operator import Elements, JointOperator
from local_lipschitz.joint_operator.pooling import tournament
from local_lipschitz.layers.activations import RELU
from local_lipschitz.layers.max_pooling import MaxPool
from local_lipschitz.lower_bounds import ball_samples

CASES = [(seed, eps) for seed in range(12) for eps in (0.1, 1.0)]


@pytest.mark.parametrize(("seed", "eps"), CASES)
def test_adjoint(seed, eps):
    net, x0 = random_network(seed)
    operator, _ = linearised(net, x0, eps)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, G, m = x0.numel(), operator.groups, operator.out_size
    delta, w, f, v = draw(3, n), draw(3, G), draw(3, m), draw(3, G)
    (f1, v1), (delta1, w1) = operator.forward(delta, w), operator.adjoint(f, v)
    left, right = (f1 * f).sum(1) + (v1 * v).sum(1), (delta1 * delta).sum(1) + (w1 * w).sum(1)
    scale = float((f1 * f).abs().sum() + (v1 * v).abs().sum())
    assert torch.allclose(left, right, atol=1e-12 * scale, rtol=0.0)


@pytest.mark.parametrize(("seed", "eps"), CASES)
def test_triangular_and_rows(seed, eps):
    net, x0 = random_network(seed)
    operator, groups = linearised(net, x0, eps)
    K, n, m = matrices(operator), x0.numel(), operator.out_size
    assert bool((K[m:, n:].triu() == 0).all())
    T = groups.T / groups.stretch
    assert torch.allclose(K[m:, :n], groups.Q, atol=1e-12) and torch.allclose(K[m:, n:], T, atol=1e-12)
    N, P, _ = rows(operator, torch.eye(m, dtype=torch.float64))
    assert torch.allclose(K[:m, :n], N, atol=1e-12) and torch.allclose(K[:m, n:], P, atol=1e-12)


def true_w(operator: JointOperator, x0: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(w, v, Δf) of the real operator for each δ: the w that the model needs to reproduce Δz = φ(y0 + Δy) − φ(y0)."""
    values0, values = {"input": x0.expand(len(delta), *x0.shape[1:])}, {"input": x0 + delta}
    ws, vs = [], []
    for block in operator.blocks:
        y0, y = ({name: v[name] for name in block.plan.stage.sources} for v in (values0, values))
        y0, y = block.plan.stage.affine(y0), block.plan.stage.affine(y)
        for i, kinks in enumerate(block.kinks):
            if i < len(block.levels):
                if i == 0:
                    y0, y = y0.flatten(2), y.flatten(2)
                (a0, d0), (a, d) = block.levels[i].difference(y0), block.levels[i].difference(y)
                op = RELU
            else:
                a0 = a = 0.0
                d0, d, op = y0, y, block.plan.activation
            change = op.apply(d) - op.apply(d0)
            v = (d - d0).flatten(1)[:, kinks.index]
            ws.append((change.flatten(1)[:, kinks.index] - kinks.c.flatten()[kinks.index] * v) / kinks.rho)
            vs.append(v)
            y0, y = a0 + op.apply(d0), a + op.apply(d)
            if i == len(block.levels) - 1:
                y0, y = (u.reshape(len(delta), *block.plan.pool.out_shape) for u in (y0, y))
        values0[block.plan.name], values[block.plan.name] = y0, y
    f0, f = (operator.last.affine({name: v[name] for name in operator.last.sources}) for v in (values0, values))
    return torch.cat(ws, 1), torch.cat(vs, 1), (f - f0).flatten(1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("seed", "eps"), [(seed, eps) for seed in range(20) for eps in (0.1, 1.0)])
def test_real_networks_obey_the_model(seed, eps, ties):
    """|w| ≤ |v| for every group on sampled x, and with these w the operator gives exactly what the network gives."""
    net, x0 = random_network(seed)
    if ties:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_((2 * parameter).round() / 2)
        x0 = (2 * x0).round() / 2
    operator, _ = linearised(net, x0, eps)
    if not operator.blocks:
        pytest.skip("an affine network")
    delta = ball_samples(x0, eps, 400, torch.Generator().manual_seed(seed))
    delta[:200] *= eps / delta[:200].flatten(1).norm(dim=1).reshape(-1, *(1,) * (x0.dim() - 1))
    with torch.no_grad():
        w, v, change = true_w(operator, x0, delta)
        assert torch.allclose(change, (net(x0 + delta) - net(x0)).flatten(1), atol=1e-10)
        # ρ is 1e-10 where only rounding is in doubt
        rho = torch.cat([kinks.rho for kinks in layers(operator)] or [w.new_zeros(0)])
        assert bool((rho * w.abs() <= rho * v.abs() * (1 + 1e-9) + 1e-13).all())
        f, _ = operator.forward(delta.flatten(1), w)
    assert torch.allclose(f, change, atol=1e-9 * max(1.0, float(change.abs().max())))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil"),
    [
        ((2, 2), (2, 2), (0, 0), (1, 1), False), ((3, 3), (2, 2), (0, 0), (1, 1), False),
        ((3, 2), (1, 2), (1, 1), (1, 1), True), ((2, 3), (2, 1), (0, 1), (2, 1), False),
        ((1, 1), (2, 2), (0, 0), (1, 1), False), ((4, 5), (3, 3), (2, 2), (1, 1), True),
    ],
)  # fmt: skip
def test_tournament_is_max_pooling(kernel, stride, padding, dilation, ceil):
    pool = MaxPool((2, 7, 9), kernel, stride, padding, dilation, ceil)
    x = torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    y = x.flatten(2)
    for level in tournament(pool, x.device):
        first, difference = level.difference(y)
        y = first + difference.relu()
    assert torch.allclose(y.reshape(3, *pool.out_shape), pool.apply(x), atol=1e-6)


def test_elements_are_rows():
    """What the next layer of kinks reads, in every block and level of a network: the rows of [Q T] it will have."""
    operator, groups = linearised(*random_convolutional(random.Random(3)), 0.5)
    first, checked = 0, 0
    for i, block in enumerate(operator.blocks):
        for j, kinks in enumerate(block.kinks):
            part = replace(operator, blocks=[*operator.blocks[:i], replace(block, kinks=block.kinks[:j])], last=None)
            k = len(kinks.index)
            if k == 0:
                continue
            elements = Elements(part, kinks.index, torch.full((k,), 2.0, dtype=torch.float64))
            delta, w = elements.adjoint(torch.eye(k, dtype=torch.float64), torch.zeros(k, first, dtype=torch.float64))
            assert torch.allclose(2 * delta, groups.Q[first : first + k])
            assert torch.allclose(2 * w, (groups.T / groups.stretch)[first : first + k, :first])
            f, _ = elements.forward(delta, w)
            assert torch.allclose(f, delta @ delta.T + w @ w.T)
            first, checked = first + k, checked + 1
    assert checked >= 2


def test_channels_last_is_only_another_order(monkeypatch):
    """Convolutions large enough for channels last on a CPU: the same operator, to rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 60, 3), nn.ReLU(), nn.Conv2d(60, 20, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 9, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(900, 3),
    ).eval()  # fmt: skip
    x0, results = torch.randn(1, 3, 28, 28), []
    for pays in (stage_norms.pays_channels_last, lambda *_: False):
        monkeypatch.setattr("local_lipschitz.joint_operator.build.pays_channels_last", pays)
        operator, _ = linearised(net, x0, 0.01)
        generator = torch.Generator().manual_seed(1)
        delta = torch.randn(2, 3 * 28 * 28, generator=generator)
        w = torch.randn(2, operator.groups, generator=generator)
        f, v = operator.forward(delta, w)
        results.append((operator, f, v, *operator.adjoint(f, v)))
    (beside, *ours), (apart, *theirs) = results
    assert beside.blocks[1].stage.layers[0].op.weight.is_contiguous(memory_format=torch.channels_last)
    assert beside.blocks[0].kinks[0].c[None].is_contiguous(memory_format=torch.channels_last)
    assert not apart.blocks[0].kinks[0].c[None].is_contiguous(memory_format=torch.channels_last)
    assert beside.groups == apart.groups > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
