"""Large outputs: the Krylov space of S, and a few vectors at a time."""

import random

import pytest
import torch
from linearised import linearised, matrices
from random_networks import random_convolutional
from torch import nn

import local_lipschitz.joint.dense as joint_dense
import local_lipschitz.joint.krylov as krylov
from local_lipschitz.joint.dense import rows
from local_lipschitz.joint.krylov import BASIS
from local_lipschitz.joint.passes import LAST


@pytest.mark.parametrize("seed", range(4))
def test_the_krylov_space_finds_the_largest_eigenvalue(seed):
    """Of S(μ) for 60 outputs, to a tenth; its directions are orthonormal, and ‖F N‖² is below it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 80), nn.ReLU(), nn.Linear(80, 60)).double().eval()
    operator, groups = linearised(net, torch.randn(1, 20).double(), 0.5)
    assert operator.groups > 10
    best = float(joint_dense.Functions(groups, *rows(operator, torch.eye(60).double())).bounds(groups.mu, False)) ** 2
    found = krylov.top(operator, groups.mu, torch.randn(1, 60).double(), LAST, BASIS)
    assert 0.9 * best <= float(found.gamma) <= best * (1 + 1e-9)
    assert torch.allclose(found.F @ found.F.T, torch.eye(BASIS).double(), atol=1e-8)
    assert 0.0 < krylov.least(operator, found.F) <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_krylov_space_of_everything_has_it_exactly(seed):
    """γ with which G ⪯ diag(γ, μ); and its first direction and δ are where that is attained."""
    operator, groups = linearised(*random_convolutional(random.Random(seed)), 0.5)
    m, mu = operator.out_size, groups.mu
    K = matrices(operator)
    A = K @ torch.diag(torch.cat([mu.new_ones(K.shape[1] - len(mu)), mu])) @ K.T
    S = A[:m, :m] + A[:m, m:] @ torch.linalg.solve(torch.diag(mu) - A[m:, m:], A[m:, :m])
    best = float(torch.linalg.eigvalsh(S)[-1])
    found = krylov.top(operator, mu, torch.randn(1, m).double(), 60)
    assert float(found.gamma) == pytest.approx(best, rel=1e-3, abs=1e-12)
    assert float(found.F[0] @ S @ found.F[0]) == pytest.approx(best, rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_few_vectors_at_a_time_as_all_at_once(seed, monkeypatch):
    operator, groups = linearised(*random_convolutional(random.Random(seed)), 0.5)
    f, v = torch.randn(5, operator.out_size).double(), torch.randn(5, operator.groups).double()
    at_once = krylov.gram(operator, groups.mu, f, v)
    monkeypatch.setattr("local_lipschitz.joint_operator.operator.WIDE", 2 * operator.widest)
    for some, all_of_them in zip(krylov.gram(operator, groups.mu, f, v), at_once, strict=True):
        torch.testing.assert_close(some, all_of_them)
