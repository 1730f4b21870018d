"""What records print of themselves, and progress bars."""

import pytest
import torch
from torch import nn

from local_lipschitz import (
    certified_radius,
    describe,
    joint_bound,
    local_bound,
    margin_bound,
    verify,
)


@pytest.fixture
def net() -> nn.Module:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4, 3))
        first.bias.fill_(1.0)
        last.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        last.bias.copy_(torch.tensor([5.0, 0.0]))
    return nn.Sequential(first, nn.ReLU(), last).eval()


def test_records_in_three_lines(net):
    x0 = torch.zeros(6, 3)
    first, second, third = repr(local_bound(net, x0, 0.1)).splitlines()
    assert first.startswith("Bound 1, 1, 1, 1, … (6 in all)") and "‖x − x0‖" in second and third.startswith("certain;")
    for record, name in (
        (joint_bound(net, x0[:1], 0.1), "JointBound 1"),
        (certified_radius(net, x0[:1]), "Radius "),
        (margin_bound(net, x0[:1], 0.1), "MarginBound "),
        (verify(net, x0[:1], 0.1), "Verdict verified"),
    ):
        lines = repr(record).splitlines()
        assert len(lines) == 3 and lines[0].startswith(name), lines
        assert "certain" in lines[2]
    assert repr(describe(net, x0)) == str(describe(net, x0)) and "\n" in repr(describe(net, x0))


def test_progress_is_silent_unless_asked_for(net, capsys):
    x0 = torch.zeros(3, 3)
    calls = [
        lambda **more: joint_bound(net, x0, 0.1, **more).value,
        lambda **more: certified_radius(net, x0, **more).radius,
        lambda **more: verify(net, x0, 0.1, **more).lower,
    ]
    for call in calls:
        silent = call()
        assert capsys.readouterr() == ("", "")
        assert torch.equal(call(progress=True), silent)
        assert "3/3" in capsys.readouterr().err
