"""Gains of single elements by passes against dense linear algebra, and what they are worth."""

import random
from dataclasses import replace

import pytest
import torch
from linearised import linearised, matrices
from random_networks import random_convolutional, random_network, wide_network
from torch import Tensor, nn

import local_lipschitz.joint.bound as joint_bound_module
import local_lipschitz.joint.passes as joint_passes
from local_lipschitz import joint_bound
from local_lipschitz.joint.certificate import Random
from local_lipschitz.joint.descent import TooManyGroups
from local_lipschitz.joint.row_gains import Feasible, _gains, random_sums, row_gains
from local_lipschitz.joint.tuning import Barrier, improve, of_all
from local_lipschitz.joint_operator import Elements

CHANCE = 1e-10


def of_last_block(net: nn.Module, x0: Tensor, eps: float) -> tuple[Elements, Tensor, Tensor, float]:
    """What the last block puts out, as elements; μ; the true √S_ii; and ‖K̂‖²."""
    operator, groups = linearised(net, x0, eps)
    operator = replace(operator, last=None)
    mu, m = groups.mu.double(), operator.out_size
    S, s = truth(matrices(operator.to(torch.float64)), m, mu)
    at = torch.arange(m)
    return Elements(operator, at, operator.like.new_ones(m)), groups.mu, S.diagonal().clamp(min=0.0).sqrt(), s


def truth(K: Tensor, m: int, mu: Tensor) -> tuple[Tensor, float]:
    """S(μ) and ‖K̂‖², by dense linear algebra."""
    n = K.shape[1] - len(mu)
    N, P, Q, T = K[:m, :n], K[:m, n:], K[m:, :n], K[m:, n:]
    gram, C = Q @ Q.T + (T * mu) @ T.T, Q @ N.T + (T * mu) @ P.T
    S = N @ N.T + (P * mu) @ P.T + C.T @ torch.linalg.solve(torch.diag(mu) - gram, C)
    scaled = mu.rsqrt()[:, None] * gram * mu.rsqrt()
    return S, float(torch.linalg.eigvalsh(scaled)[-1]) if len(mu) else 0.0


def some_net(seed: int) -> tuple[nn.Module, Tensor]:
    return random_convolutional(random.Random(seed)) if seed % 2 else random_network(seed)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("seed", [0, 1, *range(3, 13)])
@torch.no_grad()
def test_a_gain_is_that_of_the_multipliers(seed, single):
    """√S_ii of the dense matrix, from above and within 2 %; W⁻¹ in either precision."""
    net, x0 = some_net(seed)
    if single:
        net, x0 = net.float(), x0.float()
    elements, mu, true, s = of_last_block(net, x0, 0.5)
    gains = row_gains(elements, mu, Random(CHANCE, 1e-3, 0), CHANCE)
    assert gains is not None and gains.dtype is torch.float64 and s < 1.0
    assert bool((gains >= true * (1 - 1e-12)).all())
    assert bool((gains <= 1.02 * true + 1e-6 * float(true.max()) + 1e-12).all())


@pytest.mark.parametrize("seed", [0, 1, 3, 4, 5])
@torch.no_grad()
def test_no_y_gives_less_than_the_truth(seed):
    """Whatever conjugate gradients return: also 0, noise, and far more than W⁻¹c."""
    elements, mu, true, s = of_last_block(*some_net(seed), 0.5)
    known, f = Feasible(mu, s + 1e-9, 0.0), torch.eye(elements.out_size).double()
    generator = torch.Generator().manual_seed(seed)
    for size in (0.0, 1e-3, 1.0, 1e3):
        y = size * torch.randn(len(f), len(mu), generator=generator, dtype=torch.float64) / mu.sqrt()
        assert bool((_gains(elements, known, f, y) >= true * (1 - 1e-9)).all())


@torch.no_grad()
def test_infeasible_multipliers_give_none():
    elements, mu, _, s = of_last_block(*some_net(3), 0.5)
    assert len(mu) > 3 and s > 0.05
    chance = Random(CHANCE, 1e-3, 0)
    assert row_gains(elements, 0.5 * s * mu, chance, CHANCE) is None
    assert chance.spent == CHANCE


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@torch.no_grad()
def test_ties_dead_rows_and_scales(scale):
    """Equal elements have equal gains, opposite ones too, and a row of zeros has none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    net[0].weight[20:] = net[0].weight[:20]  # every kink twice
    net[0].bias[20:] = net[0].bias[:20]
    row = net[2].weight[0].clone()
    net[2].weight[1], net[2].weight[2], net[2].weight[3] = row, -row, 0.0
    net[2].weight[4, 20:] = -net[2].weight[4, :20]
    net[2].weight.mul_(scale)
    net[2].bias.mul_(scale)
    operator, groups = linearised(net, torch.zeros(1, 6).double(), 1.0)
    block = replace(operator.blocks[1], kinks=[])
    operator = replace(operator, blocks=[operator.blocks[0], block], last=None)
    mu = groups.mu[: operator.groups]
    elements = Elements(operator, torch.arange(8), operator.like.new_ones(8))
    gains = row_gains(elements, mu, Random(CHANCE, 1e-3, 0), CHANCE)
    assert gains is not None and operator.groups > 20
    S, _ = truth(matrices(operator), 8, mu)
    true = S.diagonal().clamp(min=0.0).sqrt()
    torch.testing.assert_close(gains[1:3], gains[:1].expand(2), rtol=1e-9, atol=0.0)
    assert 0.0 <= float(gains[3]) < 1e-100
    # the kinks of the two halves are free of each other: only the linear part cancels
    assert bool((gains >= true * (1 - 1e-12)).all()) and bool((gains[4:] <= 1.02 * true[4:]).all())


@torch.no_grad()
def test_without_kinks_it_is_the_row_norm():
    net, x0 = random_network(4)
    elements, mu, true, _ = of_last_block(net, x0, 1e-9)
    assert len(mu) == 0 and bool((true > 0).any())
    chance = Random(CHANCE, 1e-3, 0)
    gains = row_gains(elements, mu, chance, CHANCE)
    torch.testing.assert_close(gains, true, rtol=1e-9, atol=1e-12)
    assert chance.spent == 0.0


@torch.no_grad()
def test_random_sums_hold_every_element_once():
    elements, _, _, _ = of_last_block(*some_net(1), 0.5)
    F = random_sums(elements, 3, Random(CHANCE, 1e-3, 0))
    assert F.shape == (min(3, elements.out_size), elements.out_size)
    assert bool((F.abs().sum(0) == 1.0).all())


@pytest.mark.parametrize("tau", [0.3, 3.0])
@torch.no_grad()
def test_the_barrier_keeps_its_distance(tau):
    """More steps bring multipliers nearer to the boundary of W ≻ 0 without the barrier than with it; both improve."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 5)).double().eval()
    operator, groups = linearised(net, torch.randn(1, 20).double(), 0.6)
    K, F, chance = matrices(operator), torch.eye(5).double(), Random(CHANCE, 1e-3, 0)
    assert operator.groups > 30
    before = truth(K, 5, groups.mu)[0].diagonal().log().mean()
    reached = []
    for barrier in (Barrier.around(groups.mu, 0, 0.0, chance), Barrier.around(groups.mu, 16, tau, chance)):
        mu = improve(operator, groups.mu, F, 30, of_all, 1e-6, barrier)
        S, s = truth(K, 5, mu)
        assert s < 1.0 and bool(S.diagonal().log().mean() < before)
        reached.append(s)
    assert reached[1] < reached[0]


@pytest.mark.parametrize("seed", range(3))
def test_by_passes_as_tight_as_dense(seed, monkeypatch):
    """Within 15 %, from one side of the limit of dense algebra to the other; without gains of elements it is not."""
    net, x0 = wide_network(seed)
    dense = float(joint_bound(net, x0, 1.0))

    def too_many(*arguments):
        raise TooManyGroups(1)

    monkeypatch.setattr(joint_bound_module.DenseGroups, "find", too_many)
    found = joint_bound(net, x0, 1.0)
    assert found.status == ["passes"] and found.groups[0] > 100
    assert float(found) <= 1.15 * dense
    monkeypatch.setattr(joint_passes, "WORK", {"cpu": 0.0})
    assert float(joint_bound(net, x0, 1.0)) > 1.15 * dense
