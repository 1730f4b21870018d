"""The table of layers: one row a call, its position that of error messages, its factors those of the global bound."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError, describe, global_bound


def rows(text: str) -> list[list[str]]:
    """The cells of each row; the columns start where the header's words do."""
    lines = text.splitlines()
    starts = [0, *(lines[0].index(word) for word in ("layer", "type", "output", "bounded by", "factor")), None]
    return [[line[a:b].strip() for a, b in pairwise(starts)] for line in lines[2:-1]]


def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Dropout(),
        nn.Linear(100, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def test_a_chain():
    net, x0 = lenet(), torch.rand(1, 1, 13, 13)
    text = describe(net, x0)
    found = rows(text)
    assert [row[:5] for row in found] == [
        ["1", "0", "Conv2d", "4×11×11", "spectral norm"],
        ["2", "1", "BatchNorm2d", "4×11×11", "folded into 0"],
        ["3", "2", "ReLU", "4×11×11", "secant slopes, up to 1"],
        ["4", "3", "MaxPool2d", "4×5×5", "√4, windows that overlap"],
        ["5", "4", "Flatten", "100", "moves values"],
        ["6", "5", "Dropout", "100", "changes nothing"],
        ["7", "6", "Linear", "8", "spectral norm"],
        ["8", "7", "LeakyReLU", "8", "secant slopes, up to 1"],
        ["9", "8", "Linear", "3", "spectral norm"],
    ]
    bound = global_bound(net, x0)
    factors = [float(row[5]) for row in found if row[5]]
    assert len(factors) == len(bound.per_layer)
    assert math.prod(factors) == pytest.approx(float(bound), rel=2e-3)
    assert text.splitlines()[-1] == f"global bound {float(bound):.4g}; 7 layers in 4 stages"
    exact = [torch.linalg.matrix_norm(net[i].weight, 2).item() for i in (6, 8)]
    assert factors[2:] == pytest.approx(exact, rel=1e-3)


def test_positions_are_those_of_error_messages():
    net = lenet()
    x0 = torch.rand(1, 1, 13, 13)
    found = rows(describe(net, x0))
    for row in found:
        broken = nn.Sequential(*net)
        broken[int(row[1])] = nn.Hardshrink()
        with pytest.raises(UnsupportedLayerError) as caught:
            describe(broken.eval(), x0)
        assert f"layer {row[1]!r} (position {row[0]}, Hardshrink)" in str(caught.value)


class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(10, 2)
        self.slope = nn.PReLU(5, init=-3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.first(x - 0.5))
        y = (x + self.second(x)).relu()
        self.second(y).abs()
        return self.third(torch.cat([x, y], 1))


def test_branches():
    text = describe(Branched().eval(), torch.rand(1, 4))
    assert [row[1:5] for row in rows(text)] == [
        ["sub", "sub", "4", "adds a constant"],
        ["first", "Linear", "5", "spectral norm"],
        ["slope", "PReLU", "5", "secant slopes, up to 3"],
        ["second", "Linear", "5", "spectral norm"],
        ["add", "add", "5", "triangle inequality"],
        ["relu", "relu", "5", "secant slopes, up to 1"],
        ["second#2", "Linear", "5", "not used by the output"],
        ["abs", "abs", "5", "not used by the output"],
        ["cat", "cat", "10", "joins"],
        ["third", "Linear", "2", "spectral norm"],
    ]
    assert [bool(row[5]) for row in rows(text)] == [i in (1, 4, 9) for i in range(10)]


def test_nothing_is_printed(capsys):
    describe(lenet(), torch.rand(2, 1, 13, 13))
    assert capsys.readouterr().out == ""
