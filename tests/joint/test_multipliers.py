"""The multipliers of the joint bound: the best ones, and a certificate that repairs bad ones."""

import itertools
import random

import pytest
import torch
from linearised import layers, linearised, matrices
from random_networks import random_convolutional, random_network
from torch import Tensor

import local_lipschitz.joint.dense as joint_dense
from local_lipschitz import joint_bound
from local_lipschitz.joint.certificate import Random, certify
from local_lipschitz.joint.dense import rows
from local_lipschitz.joint.together import alone


def oracle(K: Tensor, m: int, n: int, mu: Tensor) -> float:
    """The best γ, by the definition ‖H(λ, γ)‖ ≤ 1 in the input space: minimised over log λ by L-BFGS and autograd.

    γ(λ) = λ_max(NᵀN + QᵀΛQ + YᵀY), Y = L⁻¹(PᵀN + TᵀΛQ), LLᵀ = Λ − TᵀΛT − PᵀP: nothing of the package but K. p-norms of
    growing p smooth the largest eigenvalue, a barrier keeps the iterates where the Cholesky factor exists.
    """
    N, P, Q, T = K[:m, :n], K[:m, n:], K[m:, :n], K[m:, n:]

    def spectrum(log_lam: Tensor) -> tuple[Tensor, Tensor] | None:
        lam = log_lam.exp()
        L, info = torch.linalg.cholesky_ex(torch.diag(lam) - T.T @ (lam[:, None] * T) - P.T @ P)
        if int(info) or not bool(torch.isfinite(L).all()):
            return None
        Y = torch.linalg.solve_triangular(L, P.T @ N + T.T @ (lam[:, None] * Q), upper=False)
        gamma = torch.linalg.eigvalsh(N.T @ N + Q.T @ (lam[:, None] * Q) + Y.T @ Y)
        return gamma, 2 * L.diagonal().log().sum() - log_lam.sum()

    # any feasible (μ, γ₀) of the package gives λ = γ₀/μ; a little more for the output keeps strictly inside
    best, log_lam, kept = float("inf"), None, None
    for factor in (1.01, 1.1, 2.0, 10.0):
        W = torch.diag(mu) - Q @ Q.T - (T * mu) @ T.T
        C = Q @ N.T + (T * mu) @ P.T
        S = N @ N.T + (P * mu) @ P.T + C.T @ torch.linalg.solve(W, C)
        candidate = (factor * torch.linalg.eigvalsh(S)[-1] / mu).log()
        if spectrum(candidate) is not None:
            log_lam = candidate
            break
    assert log_lam is not None
    for p, tau in ((4, 1e-1), (8, 1e-2), (16, 1e-3), (32, 1e-4), (64, 1e-5)):
        log_lam = log_lam.detach().requires_grad_()
        steps = torch.optim.Adam([log_lam], lr=0.03)
        for _ in range(80):
            found = spectrum(log_lam)
            if found is None:
                with torch.no_grad():
                    log_lam.copy_(kept)
                steps.param_groups[0]["lr"] *= 0.5
                continue
            gamma, inside = found
            kept = log_lam.detach().clone()
            best = min(best, float(gamma[-1].detach()))
            steps.zero_grad()
            (torch.log(gamma[-1]) + torch.log((gamma.clamp(min=1e-300) / gamma[-1]).pow(p).sum()) / p
             - tau / len(mu) * inside).backward()  # fmt: skip
            if not bool(torch.isfinite(log_lam.grad).all()):
                break
            steps.step()
        log_lam = kept
    return best**0.5


ORACLE_CASES = list(itertools.islice(((seed, eps) for seed in range(100) for eps in (0.2, 0.8)), 50))


@pytest.mark.parametrize(("seed", "eps"), ORACLE_CASES)
def test_optimum(seed, eps):
    """The package's multipliers against the oracle's: neither may be better by more than what both still lack."""
    rng = random.Random(seed)
    net, x0 = random_convolutional(rng) if seed % 2 else random_network(seed)
    operator, groups = linearised(net, x0, eps)
    if not 0 < operator.groups <= 60:
        pytest.skip("nothing uncertain, or too much for the oracle")
    K, m, n = matrices(operator), operator.out_size, x0.numel()
    mu = groups.mu.clone()
    value = float(alone(groups.outputs(operator, None, 200))[0])
    if not bool(K[:m].any()):
        assert value < 1e-9  # a constant output: what rounding may add
        return
    best = oracle(K, m, n, mu)
    assert value <= 1.01 * best and best <= 1.05 * value
    # and the value by the theorem itself: ‖H‖ ≤ 1 at the multipliers that prove it
    function = joint_dense.Functions(groups, *rows(operator, torch.eye(m, dtype=torch.float64)))
    better = alone(function.improve(mu, 200, False))
    gamma = float(function.bounds(better, False)) ** 2
    D, R = torch.cat([K.new_ones(n), better]).sqrt(), torch.cat([K.new_full((m,), gamma), better]).rsqrt()
    assert float(torch.linalg.matrix_norm(R[:, None] * K * D, 2)) <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_certificate_repairs_what_exceeds_one(seed):
    """certify() with multipliers and γ that are too small still returns a valid γ', by the powers of s."""
    net, x0 = random_convolutional(random.Random(seed))
    operator, groups = linearised(net, x0, 0.3)
    gamma = float(alone(groups.outputs(operator, None, 30))[0]) ** 2
    if not operator.groups or gamma == 0.0:
        pytest.skip("nothing uncertain, or a constant output")
    K, m, n = matrices(operator), operator.out_size, x0.numel()
    true = gamma
    for factor in (1.0, 0.7):
        found = float(certify(operator, groups.mu, torch.tensor([factor * gamma]), None, Random(1e-12, 1e-6, 0), 1e-6))
        R = torch.cat([K.new_full((m,), factor * gamma), groups.mu]).rsqrt()
        D = torch.cat([K.new_ones(n), groups.mu]).sqrt()
        s = float(torch.linalg.matrix_norm(R[:, None] * K * D, 2)) ** 2
        assert found >= 0.999 * true or s <= 1.0
        order = torch.cat([torch.full((len(k.index),), float(i)) for i, k in enumerate(layers(operator), start=1)])
        mu = groups.mu * max(1.0, s) ** order
        depth = len(layers(operator))
        R = torch.cat([K.new_full((m,), factor * gamma * max(1.0, s) ** (depth + 1)), mu]).rsqrt()
        assert float(torch.linalg.matrix_norm(R[:, None] * K * torch.cat([K.new_ones(n), mu]).sqrt(), 2)) <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_a_gamma_estimated_too_low_costs_little(seed):
    """γ is raised until ‖H‖ ≤ 1 is certified, instead of paying s to the power of the depth."""
    net, x0 = random_network(seed)
    operator, groups = linearised(net, x0, 0.3)
    mu = 1.5 * groups.mu  # feasible with room, as the start of every layer is
    best = float(joint_dense.Functions(groups, *rows(operator)).bounds(mu, False)) ** 2
    chance = Random(1e-9, 2e-2, 0)
    found = float(certify(operator, mu, torch.tensor([0.4 * best]).double(), None, chance, 2e-2))
    assert best * (1 - 1e-9) <= found <= 1.5 * best
    assert chance.spent == chance.share  # however often it was raised


def test_before_refinement_is_no_better():
    net, x0 = random_convolutional(random.Random(5))
    bound = joint_bound(net, x0, 0.5)
    assert float(bound.before_refinement) >= float(bound)
