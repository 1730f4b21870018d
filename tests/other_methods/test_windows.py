"""Parts of networks: against the sparsity of dense matrices, and against passes that touch everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explicit import randomise
from torch import nn

from other_methods.chain import Ball
from other_methods.common import windows
from other_methods.common.jacobian_bounds import forward_bounds, jacobian_bounds
from other_methods.common.network import Network, network_of
from other_methods.common.preactivation_passes import ranges
from other_methods.common.windows import before, behind, cut, place, tiles, whole

CONVOLUTIONS = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 2},
    {"stride": (3, 1), "padding": (0, 2)},
    {"dilation": 2, "padding": 1},
    {"stride": 4},  # skips elements
    {"groups": 2, "padding": (2, 0)},
]
POOLS = [
    nn.MaxPool2d(2),  # of an odd length: a remainder
    nn.MaxPool2d(3, 1),
    nn.MaxPool2d(2, 3),  # skips elements
    nn.MaxPool2d(2, 1, dilation=2),
    nn.MaxPool2d(3, 2, 1),  # overhangs: not cut
    nn.MaxPool2d(2, ceil_mode=True),
]


def one_pooling(pool: nn.Module) -> tuple[Network, np.ndarray]:
    """Convolutions before and behind a max pooling, 2×9×11, and an input."""
    body = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(3, 4, 2, padding=1, stride=2), nn.ReLU()]
    count = nn.Sequential(*body)(torch.zeros(1, 2, 9, 11)).numel()
    net = randomise(nn.Sequential(*body, nn.Flatten(), nn.Linear(count, 5), nn.ReLU(), nn.Linear(5, 2)))
    x0 = torch.randn(1, 2, 9, 11, generator=torch.Generator().manual_seed(1)).double()
    return network_of(net, x0), x0.flatten().numpy()


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_part_of_two_convolutions_is_a_block_of_their_matrix(options):
    """Within the boxes the entries of the matrix, outside nothing."""
    net = randomise(nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.ReLU(), nn.Conv2d(4, 2, 2, padding=1)))
    links = network_of(net, torch.zeros(1, 2, 9, 11).double()).links
    first, last = links[0], links[-1]
    M = torch.from_numpy(links[1].matrix() @ links[0].matrix())
    for tile in tiles(last, last.out_shape, 2):
        part, y = before(links, tile), torch.randn(1, *last.out_shape).double()
        x = part.net.links[0].adjoint(part.net.links[1].adjoint(cut(y, tile)))
        exact = (place(cut(y, tile), tile, last.out_shape).flatten() @ M).reshape(1, *first.in_shape)
        torch.testing.assert_close(place(x, part.reads[0], first.in_shape), exact)
    for tile in tiles(first, first.in_shape, 2):
        part, x = behind(links, tile), torch.randn(1, *first.in_shape).double()
        x = place(cut(x, tile), tile, first.in_shape)
        y = part.net.links[1].apply(part.net.links[0].apply(cut(x, part.reads[0])))
        exact = (M @ x.flatten()).reshape(1, *last.out_shape)
        torch.testing.assert_close(place(y, part.gives[-1], last.out_shape), exact)


def test_parts_are_small():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3)
    )
    links = network_of(net.eval(), torch.zeros(1, 1, 22, 22)).links
    part = before(links, ((2, 3), (2, 3)))
    assert part.reads == (((4, 16),) * 2, ((4, 14),) * 2, ((2, 7),) * 2, ((2, 5),) * 2)
    part = behind(links, ((10, 11), (0, 1)))
    assert part.gives[1] == ((8, 12), (0, 2)) and part.reads[2] == ((4, 6), (0, 1))
    assert part.reads[3] == ((2, 6), (0, 1)) and part.gives[-1] == whole(links[-1].out_shape)


@pytest.mark.parametrize("pool", POOLS)
def test_ranges_and_jacobians_by_parts_as_by_whole_passes(monkeypatch, pool):
    network, x0 = one_pooling(pool)
    by_parts, by_whole = [], []
    for values in (by_parts, by_whole):
        for p in (1, 2, np.inf):
            known = ranges(network, Ball(x0, 0.2, p))
            values += [end for box in known for end in box] + [*forward_bounds(network, known)]
            values += [end for ends in jacobian_bounds(network, known) for end in ends]
        monkeypatch.setattr(windows, "_may_be_cut", lambda link: False)
    assert any((low < 0).any() and (high > 0).any() for low, high in ranges(network, Ball(x0, 0.2)))
    for part, passes in zip(by_parts, by_whole, strict=True):
        torch.testing.assert_close(part, passes, rtol=1e-10, atol=1e-10)
