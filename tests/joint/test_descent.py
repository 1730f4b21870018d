"""The two descents against a minimum that is known, several problems at once, each at its own pace."""

import math
from dataclasses import replace

import pytest
import torch

from local_lipschitz.joint.descent import Point, descend, newton

G = 5
C = torch.logspace(-3, 3, 4, dtype=torch.float64)[:, None] * torch.linspace(1.0, 7.0, G, dtype=torch.float64)
D = torch.linspace(20.0, 2.0, G, dtype=torch.float64).expand(4, G)
BEST = (D / C).sqrt(), 2.0 * (C * D).sqrt().sum(1)  # of Σ c μ + d/μ, and its value


def objective(which, limit=math.inf):
    """Σ c_g μ_g + d_g/μ_g for some of the problems; no μ above `limit` is feasible."""
    c, d = C[which], D[which]

    def evaluate(mu):
        up, down = c * mu, d / mu
        value = torch.where((mu <= limit).all(1), (up + down).sum(1), math.inf)
        nothing = torch.zeros_like(value)
        hessian = torch.diag_embed(2.0 * down)
        return Point(value, up, down, nothing + G, nothing, nothing > 0.0, lambda: hessian.clone())

    return evaluate


def both(evaluate, mu, steps):
    steps = torch.tensor(steps)
    return [descend(evaluate, mu, steps, 1e-14)[:3], newton(evaluate, mu, steps, 1e-14)]


def test_each_finds_its_minimum():
    """From a start that is as wrong for one problem as it is right for another."""
    for mu, used, point in both(objective(slice(4)), torch.ones(4, G, dtype=torch.float64), [200] * 4):
        assert bool((used < 200).all()) and len(set(used.tolist())) > 1
        torch.testing.assert_close(point.value, BEST[1], rtol=1e-9, atol=0.0)
        torch.testing.assert_close(mu, BEST[0], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("limit", [math.inf, 30.0])
def test_together_as_alone(limit):
    """The same steps, though others end earlier, have fewer steps left, or start where nothing is feasible."""
    mu = torch.ones(4, G, dtype=torch.float64)
    mu[1] = 100.0
    steps = [200, 200, 3, 1]
    evaluate = objective(slice(4), limit)
    for at_once, method in zip(both(evaluate, mu, steps), (0, 1), strict=True):
        for b in range(4):
            own = both(objective(slice(b, b + 1), limit), mu[b : b + 1], steps[b : b + 1])[method]
            assert int(at_once[1][b]) == int(own[1]) <= steps[b]
            torch.testing.assert_close(at_once[0][b], own[0][0], rtol=1e-9, atol=0.0)
            torch.testing.assert_close(at_once[2].value[b], own[2].value[0], rtol=1e-9, atol=0.0)
        found, _, point = at_once
        assert bool((found[[0, 2, 3]] <= limit).all())
        assert torch.equal(found[3], mu[3])  # one evaluation, no step
        if limit < 100.0:
            assert math.isinf(point.value[1]) and torch.equal(found[1], mu[1])


def test_enough_is_enough():
    """A problem whose value is small enough takes no more steps; the others do."""
    evaluate, wanted = objective(slice(4)), torch.tensor([math.inf, 0.0, 1.5, 0.0]).double() * BEST[1]

    def told(mu):
        point = evaluate(mu)
        return replace(point, enough=point.value <= wanted)

    for mu, used, point in both(told, torch.ones(4, G, dtype=torch.float64), [200] * 4):
        assert int(used[0]) == 1 and torch.equal(mu[0], torch.ones(G, dtype=torch.float64))
        assert bool(point.enough[2]) and float(point.value[2]) > 1.001 * float(BEST[1][2])
        torch.testing.assert_close(point.value[[1, 3]], BEST[1][[1, 3]], rtol=1e-9, atol=0.0)


def test_minima_near_the_boundary():
    """log cᵀμ − τ log(1 − Σ b²/μ): the room of diag(μ) ≻ bbᵀ. With s = Σ b√c it is least at μ = (1 + τ) s b/√c.

    Where steps may double too many end outside: after 15 evaluations most of five minima are missed, by up to a tenth.
    """
    rows = [torch.rand(2, G, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(5)]
    b, c = 0.05 + torch.stack(rows, 1) * torch.tensor([3.0, 1.0], dtype=torch.float64)[:, None, None]
    tau, s = 0.05, (b * c.sqrt()).sum(1)
    least = math.log(1.0 + tau) + 2.0 * s.log() - tau * math.log(tau / (1.0 + tau))

    def evaluate(mu):
        total, room = (c * mu).sum(1), 1.0 - (b.square() / mu).sum(1)
        value = torch.where(room > 0.0, total.log() - tau * room.log(), math.inf)
        up, down = c * mu / total[:, None], tau * b.square() / mu / room[:, None]
        return Point(value, up, down, 0.0 * total + G, 0.0 * total, total < 0.0)

    mu, used, point, _ = descend(evaluate, 20.0 * b.square(), torch.full((5,), 15))
    assert bool((used <= 15).all())
    torch.testing.assert_close(point.value, least, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(evaluate(mu).value, point.value)
