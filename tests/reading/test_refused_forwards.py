"""What a forward() may not do, and what is then said."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from traced import Net, net_and_input

from local_lipschitz import UnsupportedLayerError, local_bound
from local_lipschitz.reading.read import read

REFUSED = {
    "control flow on data": (
        lambda net, x: net.conv(x) if x.mean((1, 2, 3)) > 0 else x,
        "layer 'gt' (position 2, gt): gt: not supported, the network would decide by the values of its input",
    ),
    "truth of a tensor": (
        lambda net, x: net.conv(x) if x.mean((1, 2, 3)) else x,
        "after layer 'mean' (position 1, mean) in Net.forward(): not supported, the network would decide by",
    ),
    "mean over the batch": (
        lambda net, x: x - x.mean(0), "layer 'mean' (position 1, mean): it works across dimension 0, the batch"
    ),
    "mean of everything": (
        lambda net, x: x - x.mean(), "takes the mean or sum over the batch, too; give the dimensions, from 1"
    ),
    "view into the batch": (
        lambda net, x: net.conv(x).view(-1, 16),
        "layer 'view' (position 2, view): from (batch, 3, 4, 4) to (batch·3, 16) mixes the inputs of a batch",
    ),
    "view of one input": (
        lambda net, x: net.conv(x).view(1, -1), "to (1, batch·48) mixes the inputs of a batch; wanted is x.flatten(1)"
    ),
    "flatten everything": (lambda net, x: x.flatten(), "to (batch·72) mixes the inputs of a batch; wanted is"),
    "squeeze": (lambda net, x: net.conv(x).squeeze(), "drops the batch dimension of a single input; give the dim"),
    "new batch dimension": (lambda net, x: x.unsqueeze(0), "mixes the inputs of a batch"),
    "transpose of the batch": (lambda net, x: x.transpose(0, 1), "it works across dimension 0, the batch"),
    "permute of the batch": (lambda net, x: x.permute(1, 0, 2, 3), "does not leave the batch in place"),
    "first input of the batch": (lambda net, x: x[0], "picks inputs out of the batch; index dimension 0 with ':'"),
    "loop over the batch": (lambda net, x: torch.stack([net.conv(y) for y in x]), "inputs of the batch one by one"),
    "cat along the batch": (lambda net, x: torch.cat([x, x]), "it works across dimension 0, the batch"),
    "padding of the batch": (lambda net, x: F.pad(x, (0,) * 7 + (1,)), "pads 4 dimensions, the batch among them"),
    "another constant an input": (
        lambda net, x: x + torch.arange(float(len(x))).view(-1, 1, 1, 1), "each input of the batch with another const"
    ),
    "constant with more dimensions": (
        lambda net, x: x + net.mean[None], "a constant of shape (1, 1, 2, 1, 1) gives (batch, 2, 6, 6) more dimensions"
    ),
    "constant that does not fit": (lambda net, x: x + net.scale, "a constant of shape (3,) does not fit (2, 6, 6)"),
    "sum that does not fit": (lambda net, x: x + net.conv(x), "shapes (2, 6, 6) and (3, 4, 4) do not fit together"),
    "sum across the batch": (
        lambda net, x: x + x.mean((2, 3)), "(batch, 2, 6, 6) and (batch, 2) have different numbers of dimensions"
    ),
    "sum in place that expands": (
        lambda net, x: x[:, :1].mul_(2.0).add_(x), "a result of shape (2, 6, 6) in the place of (1, 6, 6)"
    ),
    "attention": (lambda net, x: x @ x.transpose(2, 3), "a product of two layers is not piecewise linear"),
    "transposed matrix": (lambda net, x: net.conv(x).flatten(1).T, "the attribute 'T' of a layer's output is not"),
    "a number": (lambda net, x: x * float(x[:, 0, 0, 0]), "float()"),
    "item": (lambda net, x: x * x[:, 0, 0, 0].item(), "layer 'item' (position 2, item): item: not supported"),
    "numpy": (lambda net, x: torch.tensor(x.numpy()), "layer 'numpy' (position 1, numpy)"),
    "mask": (lambda net, x: x[:, x > 0], "layer 'gt' (position 1, gt): gt: not supported, the network would decide"),
    "assignment": (lambda net, x: x.__setitem__((slice(None), 0), 0), "layer 'setitem' (position 1, __setitem__)"),
    "maximum of everything": (lambda net, x: x - x.max(), "compares the inputs of the batch, too; give the dim"),
    "positions of maxima": (
        lambda net, x: x.gather(1, x.max(1, keepdim=True)[1]), "its positions depend on the values of the network's"
    ),
    "sum with positions": (
        lambda net, x: x.max(1).values + x.max(1).indices, "uses the positions (indices) of largest elements"
    ),
    "noise": (lambda net, x: x + torch.randn_like(x), "layer 'randn_like' (position 1, randn_like)"),
    "dropout in training": (lambda net, x: F.dropout(x), "layer 'dropout' (position 1, dropout): it is random in"),
    "two outputs": (lambda net, x: (net.conv(x), x), "Net.forward() returns a tuple, not one tensor computed from"),
    "a dictionary": (lambda net, x: {"out": net.conv(x)}, "Net.forward() returns a dict"),
    "a constant": (lambda net, x: net.mean, "Net.forward() returns a Tensor, not one tensor computed from its input"),
    "a mistake": (
        lambda net, x: net.nowhere(x), "at the start of Net.forward(): it cannot be followed, AttributeError: 'Net'"
    ),
    "own error": (
        lambda net, x: (net.conv(x), 1 / 0),
        "after layer 'conv' (position 1, Conv2d) in Net.forward(): it cannot be followed, ZeroDivisionError",
    ),
    "softmax": (lambda net, x: net.conv(x).softmax(1), "layer 'softmax' (position 2, softmax)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_forward_may_not_do(name):
    forward, words = REFUSED[name]
    net, x0 = net_and_input(forward)
    with pytest.raises((UnsupportedLayerError, ValueError)) as caught:
        local_bound(net, x0, 0.1)
    assert words in str(caught.value)


def test_changes_through_a_view_are_found():
    """The copy that a view shares memory with is not followed; the result would be wrong, and is refused."""

    def through_a_view(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        y.view(y.size(0), -1).relu_()
        return y

    net, x0 = net_and_input(through_a_view)
    with pytest.raises(ValueError, match="changed in place through a view"):
        read(net, x0)


def test_own_value_errors_pass():
    def checking(net: Net, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels are wanted")
        return x

    net, x0 = net_and_input(checking)
    with pytest.raises(ValueError, match=r"at the start of Net\.forward\(\): three channels are wanted"):
        read(net, x0)
