"""The margin bound against the full relaxation of its kinks, solved by an independent solver."""

from __future__ import annotations

import itertools

import pytest
import torch
from shares import shares
from torch import Tensor, nn

from local_lipschitz import local_bound, margin_bound
from local_lipschitz.joint.bound import Job, Result
from local_lipschitz.margin.ball import scaled
from local_lipschitz.margin.bends import Limit
from local_lipschitz.margin.bound import ROWS
from local_lipschitz.margin.box import Region
from local_lipschitz.margin.ends import by_certificate
from local_lipschitz.margin.intervals import Given, Local, local_network
from local_lipschitz.margin.start import from_joint
from local_lipschitz.product.propagation import propagate
from local_lipschitz.product.stage_norms import StageNorms
from local_lipschitz.reading.read import read

cp = pytest.importorskip("cvxpy")
EFFORT = 80


def bending(seed: int, widths: tuple[int, ...]) -> tuple[nn.Sequential, Tensor]:
    """A network whose kinks are all near its input."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)
    for parameter in net.parameters():
        scale = 0.2 if parameter.dim() == 1 else 1.0
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net, 0.2 * torch.randn(1, widths[0], generator=generator, dtype=torch.float64)


def local(net: nn.Module, x0: Tensor, eps: float, C: Tensor) -> tuple[Local, Result]:
    """The kinks and functions from which the margin bound is computed, with its ends; and the joint bound."""
    graph = read(net, x0)
    norms = StageNorms(x0.dtype, graph, 2e-3, 1e-9, True, 0)
    with torch.no_grad():
        product = propagate(graph, x0, torch.tensor([eps], dtype=torch.float64), norms).only(0)
        joint = Job(graph, EFFORT // 2, 2e-3, 1e-9, 0, layers=True)(x0, eps, C, None, product)
        given = Given(product, joint.layers)
        return local_network(graph, x0, Region(eps), C, given, by_certificate, Limit(ROWS)), joint


def relaxed(local: Local, k: int) -> float:
    """min g over X ⪰ 0 in the place of ξξᵀ, ξ = (1, δ, p), with all that is linear in a kink's p and n and all
    products of two of these: p, n, u − p, ℓ − n ≥ 0, p n = 0, and the chord."""
    kinks, eps = local.kinks, local.kinks.eps
    G, n = kinks.Q.shape
    constant = (kinks.y0 - kinks.T @ kinks.p0)[:, None]
    y = torch.cat([constant, kinks.Q, kinks.T], 1).numpy()
    f = local.functions
    g = torch.cat([(f.y0 - f.T @ kinks.p0)[:, None], f.Q, f.T], 1)[k].numpy()
    unit = torch.eye(1 + n + G, dtype=torch.float64).numpy()
    X = cp.Variable((1 + n + G, 1 + n + G), PSD=True)
    holds = [X[0, 0] == 1, cp.trace(X[1 : 1 + n, 1 : 1 + n]) <= eps**2]
    for i in range(G):
        ell, u = -float(kinks.lower[i]), float(kinks.upper[i])
        p, one = unit[1 + n + i], unit[0]
        m = p - y[i]
        signs = [p, m, u * one - p, ell * one - m]
        holds += [p @ X @ m == 0, X[0] @ (u * ell * one - ell * p - u * m) >= 0]
        holds += [X[0] @ a >= 0 for a in signs]
        holds += [a @ X @ b >= 0 for a, b in itertools.combinations(signs, 2)]
    problem = cp.Problem(cp.Minimize(X[0] @ g), holds)
    for fraction in (0.99, 0.95, 0.9, 0.8):  # of the way to the boundary; rounding decides which arrives
        problem.solve(solver=cp.CLARABEL, max_step_fraction=fraction)
        if problem.status == "optimal":
            break
    assert problem.status == "optimal"
    return float(problem.value)


def written_out(local: Local, delta: Tensor) -> Tensor:
    """The functions (K,) at x0 + δ, by the rows."""
    kinks, f = local.kinks, local.functions
    p = torch.zeros(len(kinks), dtype=torch.float64)
    for i in range(len(kinks)):
        p[i] = (kinks.y0[i] + kinks.Q[i] @ delta + kinks.T[i] @ (p - kinks.p0)).clamp(min=0.0)
    return f.y0 + f.Q @ delta + f.T @ (p - kinks.p0)


@pytest.mark.parametrize(
    ("seed", "widths"), [(0, (2, 3, 3, 2)), (1, (3, 3, 2, 2)), (2, (2, 5, 2)), (3, (3, 2, 2, 2, 2))]
)
def test_the_margin_bound_is_the_full_relaxation(seed, widths):
    net, x0 = bending(seed, widths)
    C, eps = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64), 0.5
    here, _ = local(net, x0, eps, C)
    assert len(here.kinks) >= 3
    delta = torch.randn(widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta = 0.9 * eps * delta / delta.norm()
    assert torch.allclose(written_out(here, delta), C @ net(x0 + delta)[0], rtol=1e-9, atol=1e-9)
    bound = margin_bound(net, x0, eps, outputs=C, effort=EFFORT, tolerance=1e-6)
    for k in range(len(C)):
        ours, fallen = float(bound.nominal[0, k] - bound.lower[0, k]), float(bound.nominal[0, k]) - relaxed(here, k)
        assert fallen > 0.03
        assert fallen * (1 - 1e-5) <= ours <= fallen * (1 + 1e-4), (ours, fallen)


@pytest.mark.parametrize("widths", [(6, 8, 3), (10, 12, 10, 4)])
def test_multipliers_of_the_joint_bound_prove_what_it_proves(widths):
    """nominal − ε·(joint bound), by the margin certificate with its multipliers, up to the little that is added."""
    eps = 0.5
    for seed in range(4):
        net, x0 = bending(seed, widths)
        C = torch.eye(widths[-1], dtype=torch.float64)
        here, joint = local(net, x0, eps, C)
        assert bool((here.kinks.joint > 0).all()) and len(here.kinks) >= 3
        assert bool((joint.value < 0.97 * local_bound(net, x0, eps, outputs=C).value).any())
        with torch.no_grad():
            ball = scaled(here.kinks, here.functions)
            t = shares(ball.relaxation, from_joint(here.kinks), ball.functions)[1]
            assert bool((net(x0)[0] - t <= eps * joint.value * 1.01).all())
