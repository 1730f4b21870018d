"""The objective of the multipliers with the first kinks eliminated: that of the whole W, and its gradient."""

import pytest
import torch
from linearised import linearised
from random_networks import random_network

import local_lipschitz.joint.interior as interior
from local_lipschitz.joint.dense import Functions, rows
from local_lipschitz.joint.interior import Interior, Wanted

P_NORM, TAU = 8.0, 0.01


def objective(groups, f, log_mu, each):
    """log of S's p-norm, or the mean of log S_ii, and the barrier, by dense algebra alone."""
    mu, Q, T = log_mu.exp(), groups.Q, groups.T
    W = torch.diag((1.0 - groups.slack(len(f.P))) * mu - groups.least) - Q @ Q.T - (T * mu) @ T.T
    C = Q @ f.delta.T + (T * mu) @ f.P.T
    S = f.delta @ f.delta.T + (f.P * mu) @ f.P.T + C.T @ torch.linalg.solve(W, C)
    value = S.diagonal().log().mean() if each else (torch.linalg.eigvalsh(S) ** P_NORM).sum().log() / P_NORM
    return value - TAU * (torch.logdet(W) - log_mu.sum())


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("eliminated", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_value_and_gradient(seed, eliminated, each, monkeypatch):
    """Also where the first layer has more kinks than inputs, or all of them."""
    monkeypatch.setattr(interior, "pays", lambda inputs, first, groups: eliminated and first < groups)
    operator, groups = linearised(*random_network(seed), 0.5)
    if not operator.groups:
        pytest.skip("nothing uncertain")
    f = Functions(groups, *rows(operator))
    if not bool((f.delta != 0).any(1).all()):
        pytest.skip("an output that is constant")
    wanted = Wanted(f.delta, f.P, f.NQ, f.NN_diagonal if each else f.NN, None)
    start = groups.mu
    mu = start * torch.linspace(1.0, 1.2, len(start), dtype=torch.float64)
    point = Interior(groups, wanted, start, torch.float64, whole=False).point(mu, P_NORM, TAU)
    log_mu = mu.log().requires_grad_()
    value = objective(groups, f, log_mu, each)
    (gradient,) = torch.autograd.grad(value, log_mu)
    assert point.value == pytest.approx(value.item(), rel=1e-8, abs=1e-8)
    torch.testing.assert_close(point.gradient, gradient, rtol=1e-6, atol=1e-9)
    whole = Interior(groups, wanted, start, torch.float64).point(mu, P_NORM, TAU)
    torch.testing.assert_close(point.up, whole.up, rtol=1e-7, atol=1e-12)
