"""The operator inside the joint bound: adjoints, the truth of its kinks on samples, and the best multipliers."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from random_networks import random_convolutional, random_network
from torch import Tensor, nn

import local_lipschitz.joint.dense as joint_dense
import local_lipschitz.joint.krylov as krylov
import local_lipschitz.product.stage_norms as stage_norms
from local_lipschitz import joint_bound
from local_lipschitz.joint.certificate import Random, certify
from local_lipschitz.joint.dense import DenseGroups, rows
from local_lipschitz.joint.krylov import BASIS, BLOCK, directions
from local_lipschitz.joint_operator import Elements, JointOperator
from local_lipschitz.joint_operator.build import build
from local_lipschitz.joint_operator.pooling import tournament
from local_lipschitz.layers.activations import RELU
from local_lipschitz.layers.max_pooling import MaxPool
from local_lipschitz.lower_bounds import ball_samples
from local_lipschitz.product.propagation import propagate
from local_lipschitz.product.stage_norms import StageNorms
from local_lipschitz.reading.read import read


@torch.no_grad()
def linearised(net: nn.Module, x0: Tensor, eps: float) -> tuple[JointOperator, DenseGroups]:
    """The operator around x0 with all kinks, as joint_bound builds it."""
    graph = read(net, x0)
    operator = JointOperator(graph.in_shape, [], None, x0.new_zeros(()))
    groups = DenseGroups(operator.like, graph, 3, Random(1e-10, 1e-3, 0))
    product = propagate(graph, x0, torch.tensor([eps]), StageNorms(x0.dtype, 9, 1e-3, 1e-9, True, 0)).sources
    build(graph, x0, eps, product, operator, groups)
    return operator, groups


def matrices(operator: JointOperator) -> Tensor:
    """K = [[N, P], [Q, T]], a column for each unit vector."""
    n, G = int(torch.tensor(operator.in_shape).prod()), operator.groups
    unit = torch.eye(n + G, dtype=torch.float64)
    f, v = operator.forward(unit[:, :n], unit[:, n:])
    return torch.cat([f, v], 1).T


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
    assert torch.allclose(K[m:, :n], groups.Q, atol=1e-12) and torch.allclose(K[m:, n:], groups.T, atol=1e-12)
    N, P = rows(operator, torch.eye(m, dtype=torch.float64))
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
    value = float(groups.outputs(operator, None, 200)[0])
    if value == 0.0:
        pytest.skip("a constant output")
    best = oracle(K, m, n, mu)
    assert value <= 1.01 * best and best <= 1.05 * value
    # and the value by the theorem itself: ‖H‖ ≤ 1 at the multipliers that prove it
    function = joint_dense.Rows(groups, *rows(operator, torch.eye(m, dtype=torch.float64)))
    better = function.improve(mu, 200, False)
    gamma = float(function.bounds(better, False)) ** 2
    D, R = torch.cat([K.new_ones(n), better]).sqrt(), torch.cat([K.new_full((m,), gamma), better]).rsqrt()
    assert float(torch.linalg.matrix_norm(R[:, None] * K * D, 2)) <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_certificate_repairs_what_exceeds_one(seed):
    """certify() with multipliers and γ that are too small still returns a valid γ', by the powers of s."""
    net, x0 = random_convolutional(random.Random(seed))
    operator, groups = linearised(net, x0, 0.3)
    gamma = float(groups.outputs(operator, None, 30)[0]) ** 2
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
    best = float(joint_dense.Rows(groups, *rows(operator)).bounds(mu, False)) ** 2
    found = float(certify(operator, mu, torch.tensor([0.4 * best]).double(), None, Random(1e-9, 2e-2, 0), 2e-2))
    assert best * (1 - 1e-9) <= found <= 1.5 * best


def layers(operator: JointOperator) -> list:
    return [kinks for block in operator.blocks for kinks in block.kinks if len(kinks.index)]


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
            assert torch.allclose(2 * w, groups.T[first : first + k, :first])
            f, _ = elements.forward(delta, w)
            assert torch.allclose(f, delta @ delta.T + w @ w.T)
            first, checked = first + k, checked + 1
    assert checked >= 2


@pytest.mark.parametrize("seed", range(4))
def test_the_krylov_space_finds_the_largest_eigenvalue(seed):
    """Of S(μ) for 60 outputs, to a tenth; its directions are orthonormal, and ‖F N‖² is below it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 80), nn.ReLU(), nn.Linear(80, 60)).double().eval()
    operator, groups = linearised(net, torch.randn(1, 20).double(), 0.5)
    assert operator.groups > 10
    best = float(joint_dense.Rows(groups, *rows(operator, torch.eye(60).double())).bounds(groups.mu, False)) ** 2
    found = krylov.top(operator, groups.mu, directions(BLOCK, operator, Random(1e-9, 1e-3, seed)))
    assert 0.9 * best <= float(found.gamma) <= 1.02 * best
    assert torch.allclose(found.F @ found.F.T, torch.eye(BASIS).double(), atol=1e-8)
    assert 0.0 < krylov.least(operator, found.F) <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_few_vectors_at_a_time_as_all_at_once(seed, monkeypatch):
    operator, groups = linearised(*random_convolutional(random.Random(seed)), 0.5)
    f, v = torch.randn(5, operator.out_size).double(), torch.randn(5, operator.groups).double()
    at_once = krylov.gram(operator, groups.mu, f, v)
    monkeypatch.setattr(krylov, "WIDE", 2 * operator.widest)
    for some, all_of_them in zip(krylov.gram(operator, groups.mu, f, v), at_once, strict=True):
        torch.testing.assert_close(some, all_of_them)


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


def test_before_refinement_is_no_better():
    net, x0 = random_convolutional(random.Random(5))
    bound = joint_bound(net, x0, 0.5)
    assert float(bound.before_refinement) >= float(bound)
