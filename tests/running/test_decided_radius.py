"""The search for the largest ε that a decision holds at, with decisions whose answer is known."""

import pytest
import torch
from torch import nn

from local_lipschitz import certified_radius
from script_tools.decided_radius import LARGEST, Decision, decided_radius, smallest

LINEAR = nn.Linear(2, 3).double().eval()
X0 = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).double()


@pytest.mark.parametrize("rtol", [0.1, 1e-4])
def test_the_largest_eps_that_is_decided(rtol):
    asked = []

    def decide(net, x0, eps, label):
        asked.append(eps)
        return Decision(eps < 7.0 * float(x0.norm()), 2)

    radius, limiting = decided_radius(LINEAR, X0, decide, rtol)
    true = 7.0 * X0.norm(dim=1)
    assert (radius < true).all() and (radius >= true / (1 + rtol)).all()
    assert limiting.tolist() == [2, 2] and all(eps > 0 for eps in asked)


def test_what_is_never_decided_is_the_first_radius_and_what_always_is_ends():
    first = certified_radius(LINEAR, X0)
    radius, limiting = decided_radius(LINEAR, X0, lambda *args: Decision(False, 1), 0.5)
    assert torch.equal(radius, first.radius) and limiting.tolist() == [1, 1]
    radius, _ = decided_radius(LINEAR, X0, lambda *args: Decision(True, 0), 0.5)
    assert (radius >= LARGEST).all()


def test_the_class_of_the_smallest_margin():
    lower = torch.tensor([[0.3, -0.2, 0.1]])
    assert [smallest(lower, torch.tensor([label]), 4) for label in range(4)] == [2, 2, 1, 1]
