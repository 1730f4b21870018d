"""The gain of a layer against dense algebra, and bounds that end where enough is known."""

import math
import random

import pytest
import torch
from linearised import linearised, matrices
from random_networks import random_convolutional, random_network

from local_lipschitz import certified_radius, joint_bound
from local_lipschitz.joint import dense


@pytest.mark.parametrize(("by_rows", "excess"), [(True, 1e-6), (False, 2.1e-2)])
@pytest.mark.parametrize("seed", range(8))
def test_the_gain_of_the_output_is_that_of_the_multipliers(seed, by_rows, excess, monkeypatch):
    """√λ_max(S(μ)) of the dense matrix, from above: all but exact by rows, else within the tolerance on the way."""
    monkeypatch.setattr(dense, "DENSE_SIDE", dense.DENSE_SIDE if by_rows else 0)
    net, x0 = random_network(seed) if seed % 2 else random_convolutional(random.Random(seed))
    operator, groups = linearised(net, x0, 0.3)
    K, m, n, mu = matrices(operator), operator.out_size, operator.like.new_zeros(operator.in_shape).numel(), groups.mu
    N, P, Q, T = K[:m, :n], K[:m, n:], K[m:, :n], K[m:, n:]
    W, C = torch.diag(mu) - Q @ Q.T - (T * mu) @ T.T, Q @ N.T + (T * mu) @ P.T
    S = N @ N.T + (P * mu) @ P.T + C.T @ torch.linalg.solve(W, C)
    true = float(torch.linalg.eigvalsh(S)[-1].sqrt())
    assert true * (1 - 1e-9) <= groups.layer_gain(operator, math.inf) <= (1.0 + excess) * true + 1e-290
    assert (groups.random.spent == 0.0) == by_rows


@pytest.mark.parametrize("outputs", [True, False])
def test_a_target_ends_the_work(outputs):
    net, x0 = random_network(4)
    C = torch.eye(net(x0).shape[1], dtype=torch.float64) if outputs else None
    best = joint_bound(net, x0, 1.0, outputs=C, effort=150)
    tight, start = best.value.reshape(1, -1), best.before_refinement.reshape(1, -1)
    assert bool((tight < 0.98 * start).any())

    def value(target):
        return joint_bound(net, x0, 1.0, outputs=C, effort=150, target=target).value.reshape(1, -1)

    assert bool((value(1e9 * start) <= start * (1 + 1e-6)).all())
    assert bool((value(1e9 * start) > tight).any())  # no step was taken
    between = 0.5 * (tight + start)
    reached = value(between)
    assert bool((reached <= between).all())
    hopeless = value(0.3 * tight)
    assert float((hopeless / tight).log().mean()) > 1e-3


@pytest.mark.parametrize(
    ("target", "message"),
    [(torch.ones(3), "shape"), (-torch.ones(1, 1), "negative"), (torch.full((1, 1), torch.nan), "NaN")],
)
def test_refused_targets(target, message):
    net, x0 = random_network(4)
    with pytest.raises(ValueError, match=message):
        joint_bound(net, x0, 1.0, target=target)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_radius_does_not_suffer_from_targets(seed):
    """The same search with a bound that is always as small as it gets."""
    net, x0 = random_network(seed)

    def thorough(*arguments, **options):
        return joint_bound(*arguments, **(options | {"target": None}))

    short = certified_radius(net, x0, joint_bound, rtol=0.02)
    long = certified_radius(net, x0, thorough, rtol=0.02)
    assert bool((short.radius > 0).all())
    assert bool((short.radius >= 0.95 * long.radius).all())
