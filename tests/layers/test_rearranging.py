"""What moves, leaves out or repeats elements, against the explicit matrix of torch's own result."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from affine import Applied, check
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError, global_bound, joint_bound
from local_lipschitz.layers.rearranging import Take
from local_lipschitz.reading.read import read

INDICES = [
    [-1, 2], [0, -3, 1], (0, 0, 2), (2, 0), range(3), range(2, 0, -1), np.array([2, 0]), np.array([1, -2, 1]),
    torch.tensor([0, -6, 1]), torch.tensor([[0, 1], [1, 5]]), [True, False, True, True, False, True],
    torch.tensor([False, True, False, False, True, True]), np.int64(3), slice(-1, None), -2, [4],
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices_of_every_kind(index):
    check(Applied(lambda x: x[:, index]), (6, 2))
    check(Applied(lambda x: x[..., index]), (2, 6))


MOVES = {
    "two lists": lambda x: x[:, [0, 2, 2], [1, 1, -2]],
    "a list and a number": lambda x: x[:, 1, [0, 0, 3]],
    "a list, a new dimension and a slice": lambda x: x[:, [1, -1], None, ::2],
    "a mask of two dimensions": lambda x: x[:, torch.eye(4, dtype=torch.bool)],
    "index_select": lambda x: x.index_select(2, torch.tensor([3, 0, 3])),
    "index_select by keywords": lambda x: torch.index_select(input=x, dim=2, index=torch.tensor([3, 0, 3])),
    "one number": lambda x: x.flatten(1)[:, np.int64(-1)].unsqueeze(1),
    "the first of those unbound": lambda x: x.flatten(1).unbind(1)[0].unsqueeze(1),
    "beside each other": lambda x: torch.hstack([x, x[:, [0]]]),
    "masked": lambda x: x.masked_fill(torch.arange(4) > 2, 0.0),
    "gather": lambda x: torch.gather(x, 1, torch.tensor([[[0, 1, 1, 3]]]).expand(len(x), -1, -1)),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([[[2], [2], [0], [1]]]), 2),
    "expand": lambda x: x.unsqueeze(2).expand(-1, 4, 3, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :, :1], x.shape),
    "repeat": lambda x: x.repeat(1, 2, 3),
    "tile": lambda x: x.tile(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "repeat_interleave by counts": lambda x: torch.repeat_interleave(x, torch.tensor([1, 0, 3, 2]), dim=2),
    "unfold": lambda x: x.unfold(1, 3, 1),
    "patches": lambda x: F.unfold(x.unsqueeze(1), (2, 3), stride=(2, 1)),
    "roll": lambda x: x.roll((1, -2), (1, 2)),
    "flip": lambda x: torch.flip(x, (1, 2)),
    "fliplr": torch.fliplr,
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "movedim": lambda x: x.unsqueeze(1).movedim(1, -1),
    "diagonal": lambda x: x.diagonal(1, 1, 2),
    "unbind": lambda x: x.unbind(2)[1],
    "tensor_split": lambda x: torch.tensor_split(x, 3, 1)[0],
    "select": lambda x: x.select(1, 2),
    "circular padding by an index": lambda x: x[:, [-1, *range(4), 0]],
    "circular padding": lambda x: F.pad(x, (2, 3), mode="circular"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.unsqueeze(-1), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x.unsqueeze(1), 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x.unsqueeze(-1), 2),
    "view_as": lambda x: x.view_as(x.permute(0, 2, 1)),
    "squeeze of two": lambda x: x[:, None, :, None].squeeze((1, 3)),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    check(Applied(MOVES[name]), (4, 4))


MODULES = [
    (nn.PixelShuffle(2), (8, 2, 3)),
    (nn.PixelUnshuffle(2), (2, 4, 6)),
    (nn.ChannelShuffle(3), (6, 2, 2)),
    (nn.Unfold(2, dilation=2), (2, 4, 5)),
]


@pytest.mark.parametrize("layer, shape", MODULES, ids=lambda value: str(value))
def test_modules(layer, shape):
    check(layer, shape)


@pytest.mark.parametrize("copies", [[-1, 5], (0, 0, 0, 2), [5, -1, 5, -1]])
def test_what_is_named_twice_counts_twice(copies):
    net, x0 = Applied(lambda x: x[:, copies]).double().eval(), torch.rand(1, 6, dtype=torch.float64)
    most = max(np.bincount(np.array(copies) % 6))
    for bound in (global_bound(net, x0), joint_bound(net, x0, 1e-6)):
        assert float(bound) == pytest.approx(most**0.5)
    (layer,) = read(net, x0).layers
    assert layer.op.terms == most and not layer.op.one_per_column


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: x[torch.tensor([0, 0])], "picks inputs out of the batch"),
        (lambda x: x.index_select(0, torch.tensor([1, 0])), "to (2, 4, 4) mixes the inputs of a batch"),
        (lambda x: x.index_select(0, torch.tensor([1, 0, 2, 3, 4])), "dimension 0 must stay whole"),
        (lambda x: x.roll(1), "dimension 0 must stay whole"),
        (lambda x: x.flip(0), "dimension 0 must stay whole"),
        (lambda x: x.take(torch.tensor([0, 1])), "mixes the inputs of a batch"),
        (lambda x: x.tile(2, 1, 1), "mixes the inputs of a batch"),
        (lambda x: x.repeat_interleave(2), "mixes the inputs of a batch"),
        (lambda x: F.unfold(x.unsqueeze(1), 2, padding=1), "pad first"),
        (lambda x: x[:, [9]], "out of bounds"),
    ],
)
def test_what_leaves_the_batch_is_refused(function, words):
    with pytest.raises((UnsupportedLayerError, ValueError)) as caught:
        read(Applied(function).eval(), torch.rand(1, 4, 4))
    assert words in str(caught.value) and str(caught.value).startswith("layer '")


def test_float32_follows_its_input():
    A = Take((3,), (4,), torch.tensor([2, 2, 0, 2]))
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert A.apply(x).tolist() == [[3, 3, 1, 3]] and A.apply(x).dtype == torch.float32
    assert A.adjoint(torch.ones(1, 4)).tolist() == [[1, 0, 3]]
    assert torch.equal(A.adjoint(Tensor([[1, 2, 4, 8]])), torch.tensor([[4.0, 0, 11]]))
