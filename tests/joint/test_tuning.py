"""What multipliers are tuned for by passes: derivatives, and functions in units of their targets."""

from functools import partial

import pytest
import torch
from random_networks import wide_network

from local_lipschitz import joint_bound
from local_lipschitz.joint.tuning import of_all, of_the_whole, of_the_worst


@pytest.mark.parametrize("objective", [of_all, partial(of_the_worst, p=8.0), partial(of_the_whole, p=8.0)])
def test_derivatives_of_objectives(objective):
    """Σ weight_i v_iᵀ dS v_i against a central difference, in a random direction."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    S, change = A @ A.T, B @ B.T
    _, weight, basis = objective(S)
    along = change.diagonal() if basis is None else (basis.T @ change @ basis).diagonal()
    h = 1e-5
    difference = (objective(S + h * change)[0] - objective(S - h * change)[0]) / (2.0 * h)
    assert float(weight @ along) == pytest.approx(difference, rel=1e-7)


@pytest.mark.parametrize("seed", range(2))
def test_by_passes_the_hard_target_decides(seed, passes_only):
    """Out of reach for one of ten outputs: that one is bounded lower than where each counts, the others not."""
    net, x0 = wide_network(seed)
    without = joint_bound(net, x0, 1.0, outputs=torch.eye(10))
    target = without.value.clone()
    target[0, seed] *= 0.3
    found = joint_bound(net, x0, 1.0, outputs=torch.eye(10), target=target)
    assert found.status == ["passes"]
    ratio, plain = found.value / target, without.value / target
    assert int(ratio.argmax()) == seed
    assert float(ratio.max()) < 0.97 * float(plain.max())
    everything = [value.log().mean() for value in (found.value, without.value)]
    assert float(everything[0]) > float(everything[1])


def test_by_passes_units_do_not_matter(passes_only):
    """Outputs in other units with their targets, and a target of 0 or ∞ for one without any gain."""
    net, x0 = wide_network(0)
    C = torch.eye(10)
    plain = joint_bound(net, x0, 1.0, outputs=C)
    assert plain.status == ["passes"] and plain.groups[0] > 100
    target = 0.5 * plain.value
    unit = torch.logspace(-6, 6, len(C))
    value = joint_bound(net, x0, 1.0, outputs=C, target=target).value
    scaled = joint_bound(net, x0, 1.0, outputs=C * unit[:, None], target=target * unit).value / unit
    torch.testing.assert_close(scaled, value, rtol=2e-2, atol=0.0)
    for last in (0.0, torch.inf):
        nothing = torch.cat([target, target.new_full((1, 1), last)], 1)
        found = joint_bound(net, x0, 1.0, outputs=torch.cat([C, 0.0 * C[:1]]), target=nothing).value
        torch.testing.assert_close(found[:, :-1], value, rtol=2e-2, atol=0.0)
        assert float(found[0, -1]) < 1e-90
