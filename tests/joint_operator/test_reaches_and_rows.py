"""What the operator is made from: one-sided reaches, and the errors of its rows, against samples of the network."""

import pytest
import torch
from random_networks import random_network
from test_joint_operator import linearised, true_w
from torch import nn

from local_lipschitz import joint_bound
from local_lipschitz.joint.dense import rows
from local_lipschitz.lower_bounds import ball_samples


def reads_of(operator):
    return [(block, i, kinks.reads) for block in operator.blocks for i, kinks in enumerate(block.kinks)]


@pytest.mark.parametrize(("seed", "eps"), [(seed, eps) for seed in range(12) for eps in (0.1, 1.0)])
@torch.no_grad()
def test_reaches_hold_on_samples(seed, eps):
    net, x0 = random_network(seed)
    operator, _ = linearised(net, x0, eps)
    delta = ball_samples(x0, eps, 300, torch.Generator().manual_seed(seed))
    length = delta.flatten(1).norm(dim=1)
    values0, values = {"input": x0}, {"input": x0 + delta}
    for block in operator.blocks:
        sources = block.plan.stage.sources
        y0, y = (block.plan.stage.affine({name: v[name] for name in sources}) for v in (values0, values))
        for i, kinks in enumerate(block.kinks):
            reads = kinks.reads
            if i < len(block.levels):
                (a0, d0), (a, d) = (block.levels[i].difference(v.flatten(2)) for v in (y0, y))
            else:
                a0 = a = torch.zeros(())
                d0, d = y0, y
            change = (d - d0) / length.reshape(-1, *(1,) * (d.dim() - 1))
            within = (change <= reads.up + 1e-9) & (change >= -reads.down - 1e-9)
            assert bool((within | ~reads.needed).all())
            y0, y = a0 + reads.op.apply(d0), a + reads.op.apply(d)
            if i == len(block.levels) - 1:
                y0, y = (v.reshape(len(v), *block.plan.pool.out_shape) for v in (y0, y))
        values0[block.plan.name], values[block.plan.name] = y0, y


@pytest.mark.parametrize("eps", [0.05, 0.2, 1.0])
def test_what_can_only_fall_does_not_switch_on(eps):
    """Units that are off near their threshold, over others that can only pull them down: the output is constant."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[0].bias.fill_(-0.05)
        net[2].weight.copy_(-5 * net[2].weight.abs())
        net[2].bias.fill_(-0.05)
    assert float(joint_bound(net, torch.zeros(1, 5).double(), eps)) < 1e-12
    with torch.no_grad():  # and upside down: what is on and can only rise stays linear
        net[2].weight.neg_()
        net[2].bias.neg_()
    bound = joint_bound(net, torch.zeros(1, 5).double(), eps)
    assert bound.uncertain[0]["2"] == (0, 0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_errors_of_rows_cover_single_precision(seed, ties):
    """Rows in float32 with their errors, on true differences of the network: off by no more, and not by far less."""
    net, x0 = random_network(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((4 * parameter).round() / 4 if ties else parameter.float().double())
    x0 = x0.float().double()
    operator, _ = linearised(net, x0, 0.5)
    if not operator.blocks:
        pytest.skip("an affine network")
    delta = ball_samples(x0, 0.5, 100, torch.Generator().manual_seed(seed))
    w, _, _ = true_w(operator, x0, delta)
    for block in operator.blocks:  # the same operator in either precision
        for i, kinks in enumerate(block.kinks):
            block.kinks[i] = kinks.to(torch.float32).to(torch.float64)
    N, P, _ = rows(operator)
    single = operator.to(torch.float32)
    N32, P32, error = rows(single)
    off = delta.flatten(1) @ (N - N32).T.double() + torch.nan_to_num(w) @ (P - P32).T.double()
    length = delta.flatten(1).norm(dim=1, keepdim=True)
    assert bool((off.abs() <= error * length).all())
    size = operator.last_reach + N.norm(dim=1)
    assert bool((error <= 1e-3 * size + 1e-290).all())
