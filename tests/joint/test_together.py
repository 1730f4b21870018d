"""Several inputs at once: the multipliers of problems side by side are those of each by itself."""

import math
import random

import pytest
import torch
from linearised import linearised
from random_networks import random_dense
from torch import nn

import local_lipschitz.joint.together as together_module
from local_lipschitz import certified_radius, joint_bound
from local_lipschitz.joint.dense import Functions, rows
from local_lipschitz.joint.device import AT_ONCE, inputs_at_once, memory, problems_at_once
from local_lipschitz.joint.interior import Interior
from local_lipschitz.joint.problems import Problem, Wanted
from local_lipschitz.joint.together import alone, together

EPS = (1e-6, 1.0, 3.0, 5.0, 8.0)  # from no kink to all


def deep_network(seed: int = 0) -> tuple[nn.Sequential, torch.Tensor]:
    """Three layers of kinks, but none in the first one where ε is small: its biases keep them away."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4)]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net[0].bias += 3.0
    return net.double().eval(), torch.randn(1, 6, dtype=torch.float64)


def problems(each: bool, targets: bool) -> list[Problem]:
    net, x0 = deep_network()
    found = []
    for i, eps in enumerate(EPS[1:]):
        operator, groups = linearised(net, x0 + 0.3 * i, eps)
        f = Functions(groups, *rows(operator)).part(slice(1 + i % 3, None))  # the numbers of functions differ, too
        target = f.bounds(groups.mu, True) * torch.linspace(0.9, 1.1, len(f.P)).double() if targets else None
        found.append(Problem(groups, Wanted(f.delta, f.P, f.NN_diagonal if each else f.NN, target), groups.mu, 10))
    return found


@pytest.mark.parametrize(("each", "targets"), [(False, False), (True, False), (True, True)])
def test_side_by_side_is_one_by_one(each, targets):
    """Values, gradients and second derivatives, though layers of kinks have other lengths, or are missing."""
    several = problems(each, targets)
    assert len({p.groups.layers[0] for p in several}) > 1 and len({len(p.mu) for p in several}) == len(several)
    interior = Interior(several, torch.float64)
    tau = torch.linspace(0.01, 0.1, len(several), dtype=torch.float64)
    mu = 1.05 * interior.start
    point = interior.point(mu, 8.0, tau, second=True)
    hessian = point.hessian() if not each or targets else None
    for b, (p, at) in enumerate(zip(several, interior.places, strict=True)):
        own = Interior([p], torch.float64).point(1.05 * p.mu[None], 8.0, tau[b : b + 1], second=True)
        torch.testing.assert_close(point.value[b], own.value[0])
        torch.testing.assert_close(point.gradient[b, at], own.gradient[0], atol=1e-12, rtol=1e-7)
        if hessian is not None:
            torch.testing.assert_close(hessian[b][at[:, None], at], own.hessian()[0], atol=1e-12, rtol=1e-7)


def test_one_that_is_not_feasible_leaves_the_others_alone():
    several = problems(True, False)
    interior, tau = Interior(several, torch.float64), torch.full((len(several),), 0.01, dtype=torch.float64)
    mu = interior.start.clone()
    fine = interior.point(mu, 8.0, tau)
    mu[1] *= 1e-3
    point = interior.point(mu, 8.0, tau)
    others = torch.tensor([0, 2, 3])
    assert math.isinf(point.value[1]) and not bool(point.goes_on[1])
    torch.testing.assert_close(point.value[others], fine.value[others])
    torch.testing.assert_close(point.gradient[others], fine.gradient[others])


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_of_a_batch(seed, outputs):
    """Those of the inputs one by one, to the last digits; at ε from where nothing bends to where everything does."""
    net, x0 = deep_network(seed)
    x, eps = torch.cat([x0, 2.0 * x0, -x0, x0, 0.0 * x0]), torch.tensor(EPS).double()
    C = torch.eye(4, dtype=torch.float64)[1:].expand(5, 3, 4) if outputs else None
    batch = joint_bound(net, x, eps, outputs=C)
    assert len(set(batch.groups)) > 2
    for i in range(5):
        own = joint_bound(net, x[i : i + 1], eps[i : i + 1], outputs=None if C is None else C[:1])
        assert batch.groups[i] == own.groups[0] and batch.uncertain[i] == own.uncertain[0]
        torch.testing.assert_close(batch.value[i], own.value[0], rtol=1e-12, atol=0.0)


def test_radii_of_a_batch():
    net, x0 = deep_network()
    x = torch.cat([x0, 2.0 * x0, -x0])
    own = [float(certified_radius(net, row[None], joint_bound, rtol=0.05).radius) for row in x]
    assert certified_radius(net, x, joint_bound, rtol=0.05).radius.tolist() == pytest.approx(own, rel=1e-9)


def test_of_a_batch_only_the_one_that_fails_is_told(monkeypatch):
    """An error of the algebra for one problem goes to the work that asked, and it alone."""
    worst = max(len(p.mu) for p in problems(True, False))

    def improve(several):
        if any(len(p.mu) == worst for p in several):
            raise torch.linalg.LinAlgError("no convergence")
        return [2.0 * p.mu for p in several]

    monkeypatch.setattr(together_module, "improve", improve)
    counts = []

    def work(problem):
        try:
            return (yield problem)
        except torch.linalg.LinAlgError as error:
            return str(error)

    several = problems(True, False)
    found = together([work(p) for p in several], counts.append)
    for p, answer in zip(several, found, strict=True):
        assert answer == "no convergence" if len(p.mu) == worst else torch.equal(answer, 2.0 * p.mu)
    assert counts == list(range(1, 5))


def test_work_that_asks_for_nothing():
    def work(number):
        return number
        yield

    assert together([work(i) for i in range(3)]) == [0, 1, 2] and alone(work(7)) == 7 and together([]) == []


def test_so_many_at_once(monkeypatch):
    """What is held at once fits into the memory that is shared out; where one by one is as fast, it is one by one."""
    cpu = torch.device("cpu")
    assert problems_at_once(10**6, cpu) == 1 == inputs_at_once(10**6, 10, cpu)
    assert problems_at_once(0, cpu) == AT_ONCE == inputs_at_once(20, 10, cpu)
    monkeypatch.setattr("local_lipschitz.joint.device.free_memory", lambda device: 10 * memory(100, 784))
    assert inputs_at_once(100, 784, cpu) == 5
    monkeypatch.setattr("local_lipschitz.joint.device.free_memory", lambda device: 0.0)
    assert problems_at_once(50, cpu) == 1 == inputs_at_once(50, 10, cpu)


def test_a_batch_larger_than_goes_at_once(monkeypatch):
    monkeypatch.setattr("local_lipschitz.joint.device.AT_ONCE", 2)
    net, x0 = random_dense(random.Random(3))
    x = x0 * torch.linspace(0.5, 1.5, 5, dtype=torch.float64)[:, None]
    whole = joint_bound(net, x, 0.3, effort=5)
    assert whole.value.tolist() == pytest.approx([float(joint_bound(net, row[None], 0.3, effort=5)) for row in x])
