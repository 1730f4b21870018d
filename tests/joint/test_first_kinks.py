"""The objective of the multipliers with the first kinks eliminated: that of the whole W, and its gradient."""

import pytest
import torch
from linearised import linearised
from random_networks import random_network
from torch import nn

import local_lipschitz.joint.groups as groups_module
from local_lipschitz.joint.dense import Functions, rows
from local_lipschitz.joint.interior import Interior
from local_lipschitz.joint.problems import Problem, Wanted

P_NORM, TAU = 8.0, 0.01


def objective(groups, f, log_mu, each, target=None, tau=TAU):
    """log of S's p-norm, or the mean of log S_ii, and the barrier, by dense algebra alone."""
    mu, Q, T = log_mu.exp(), groups.Q, groups.T
    W = torch.diag((1.0 - groups.slack(len(f.P))) * mu - groups.least) - Q @ Q.T - (T * mu) @ T.T
    C = Q @ f.delta.T + (T * mu) @ f.P.T
    S = f.delta @ f.delta.T + (f.P * mu) @ f.P.T + C.T @ torch.linalg.solve(W, C)
    sizes = torch.linalg.eigvalsh(S) if target is None else S.diagonal() / target.square()
    value = S.diagonal().log().mean() if each and target is None else (sizes**P_NORM).sum().log() / P_NORM
    return value - tau * (torch.logdet(W) - log_mu.sum())


@pytest.mark.parametrize(("each", "targets"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("eliminated", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_value_and_derivatives(seed, eliminated, each, targets, monkeypatch):
    """Also where the first kinks are more than inputs, all of them, or coupled with each other in pooling windows."""
    monkeypatch.setattr(groups_module, "pays", lambda inputs, first, groups: eliminated)
    operator, groups = linearised(*random_network(seed), 0.5)
    if not operator.groups:
        pytest.skip("nothing uncertain")
    f = Functions(groups, *rows(operator))
    if not bool((f.delta != 0).any(1).all()):
        pytest.skip("an output that is constant")
    target = torch.linspace(1.0, 1.5, len(f.P), dtype=torch.float64) * f.bounds(groups.mu, True) if targets else None
    wanted = Wanted(f.delta, f.P, f.NN_diagonal if each else f.NN, target).relative
    start = groups.mu
    mu = start * torch.linspace(1.0, 1.2, len(start), dtype=torch.float64)
    problem, tau = Problem(groups, wanted, start, 1), torch.tensor([TAU], dtype=torch.float64)
    point = Interior([problem], torch.float64, whole=False).point(mu[None], P_NORM, tau)
    log_mu = mu.log().requires_grad_()
    value = objective(groups, f, log_mu, each, target)
    (gradient,) = torch.autograd.grad(value, log_mu)
    assert point.value == pytest.approx(value.item(), rel=1e-8, abs=1e-8)
    torch.testing.assert_close(point.gradient[0], gradient, rtol=1e-6, atol=1e-9)
    whole = Interior([problem], torch.float64).point(mu[None], P_NORM, tau, second=True)
    torch.testing.assert_close(point.up, whole.up, rtol=1e-7, atol=1e-12)
    if each and not targets:
        return

    def along(t, tau=TAU):
        return objective(groups, f, (mu * (1.0 + t)).log(), each, target, tau)

    still = torch.zeros_like(mu, requires_grad=True)
    (slope,) = torch.autograd.grad(along(still, 0.0), still)
    concave = torch.outer(slope, slope) + TAU * torch.eye(len(mu))  # of the logarithms: left out
    true = torch.autograd.functional.hessian(along, still) + concave
    torch.testing.assert_close(whole.hessian()[0], true, rtol=1e-2, atol=1e-2 * float(true.diagonal().amax()))


def test_windows_are_sets():
    """Pairs of a pooling window and the activation after it are coupled; those of other windows are not."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2, stride=3)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    _, groups = linearised(net.double().eval(), torch.rand(1, 1, 7, 7, dtype=torch.float64), 5.0)
    sets = groups.first_sets()
    assert sets.table.shape == (8, 4) and len(groups.spans) == 4
    k = len(sets.place)
    T = torch.zeros(k, k, dtype=torch.float64)
    for members, block in zip(sets.table, sets.T, strict=True):
        there = members < k
        T[members[there][:, None], members[there]] = block[there][:, there]
    assert torch.equal(T, groups.T[:k, :k]) and bool((T != 0).any())
    x = torch.rand(k, 3, dtype=torch.float64)
    assert torch.equal(sets.join(sets.split(x)), x)
    torch.testing.assert_close(sets.times(sets.T, x), T @ x)


@pytest.mark.parametrize("eliminated", [False, True])
@pytest.mark.parametrize("seed", [0, 4, 6, 11, 12, 17, 27])
def test_rows_of_the_factor(seed, eliminated, monkeypatch):
    """Their sums of squares are S by dense algebra, also of a factor that has grown; `back` is their adjoint."""
    monkeypatch.setattr(groups_module, "pays", lambda inputs, first, groups: eliminated)
    operator, groups = linearised(*random_network(seed), 0.5)
    f = Functions(groups, *rows(operator))
    for mu in (groups.mu, 1.1 * groups.mu):
        factor = groups.factor(mu, len(f.P))
        W = torch.diag(mu) - groups.Q @ groups.Q.T - (groups.T * mu) @ groups.T.T
        C = groups.Q @ f.delta.T + (groups.T * mu) @ f.P.T
        S = f.delta @ f.delta.T + (f.P * mu) @ f.P.T + C.T @ torch.linalg.solve(W, C)
        torch.testing.assert_close(f.matrix(mu), S, rtol=1e-6, atol=1e-12)
        x, delta, w = (torch.randn(2, k, dtype=torch.float64) for k in (factor.terms, groups.Q.shape[1], len(mu)))
        there, back = factor.rows(delta, w), factor.back(x)
        torch.testing.assert_close((there * x).sum(1), (delta * back[0]).sum(1) + (w * back[1]).sum(1))


def test_factor_of_no_positive_definite_matrix():
    """Multipliers that are too small are refused by the sets, by Σ and by what is left of W."""
    _, groups = linearised(*random_network(12), 0.5)
    for kinks in (slice(0, 8), slice(8, 20), slice(30, None)):
        mu = groups.mu.clone()
        mu[kinks] *= 1e-6
        assert groups.factor(mu, 1) is None


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("seed", [0, 4, 6, 12])
def test_the_factor_proves_what_the_whole_matrix_proves(seed, each, monkeypatch):
    """γ just above λ_max(S), or S_ii, is proven and not below; rows that are zero have gain 0, tiny ones have not."""
    monkeypatch.setattr(groups_module, "pays", lambda inputs, first, groups: True)
    operator, groups = linearised(*random_network(seed), 0.5)
    found = rows(operator)
    f, mu = Functions(groups, *found), groups.mu
    W = torch.diag(mu) - groups.Q @ groups.Q.T - (groups.T * mu) @ groups.T.T
    C = groups.Q @ f.delta.T + (groups.T * mu) @ f.P.T
    S = f.delta @ f.delta.T + (f.P * mu) @ f.P.T + C.T @ torch.linalg.solve(W, C)
    exact = S.diagonal() if each else torch.linalg.eigvalsh(S)[-1:]
    live = exact > 1e-20
    assert bool((f.proven(mu, each)[live] >= exact[live].sqrt()).all())
    torch.testing.assert_close(f.proven(mu, each)[live], exact[live].sqrt(), rtol=1e-6, atol=0.0)
    assert bool(f._last_rows(mu, each, exact * (1.0 + 1e-6))[live].all())
    assert not bool(f._last_rows(mu, each, exact * (1.0 - 1e-9))[live].any())
    whole = f._whole_matrix(mu, each)
    assert bool(whole(exact * (1.0 + 1e-6))[live].all()) and not bool(whole(exact * (1.0 - 1e-9))[live].any())
    for scale, proven in ((0.0, True), (1e-170, False)):
        kept = f.part(live) if each else f
        tiny = Functions(groups, scale * kept.delta, scale * kept.P, kept.error)
        assert bool(tiny._last_rows(mu, each, 0.0 * exact[live]).all()) is proven
