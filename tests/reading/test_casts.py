"""Casts: those that keep every value of the network pass, those that round are refused by name."""

import pytest
import torch
from affine import Applied
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError, local_bound
from local_lipschitz.reading.read import read

KEEP = {
    torch.float64: [
        lambda x: x.to(torch.float64), lambda x: x.double(), lambda x: x.type(torch.double), lambda x: x.to("cpu"),
        lambda x: x.type(x.type()), lambda x: x.to(x.device, x.dtype), lambda x: x.type("torch.DoubleTensor"),
        lambda x: x.to(torch.zeros(1).double()), lambda x: x.type_as(x.relu()), lambda x: x.to(dtype=torch.float64),
    ],
    torch.float32: [
        lambda x: x.float(), lambda x: x.double().float(), lambda x: x.to(torch.float32, copy=True),
        lambda x: x.type(torch.FloatTensor), lambda x: x.to(device="cpu", dtype=torch.float64).to(torch.float),
        lambda x: x.type_as(torch.zeros(1)), lambda x: x.cpu(),
    ],
    torch.bfloat16: [lambda x: x.float().bfloat16(), lambda x: x.bfloat16()],
    torch.float16: [lambda x: x.float(), lambda x: x.half()],
}  # fmt: skip
ROUND = {
    torch.float64: [
        (lambda x: x.float(), "float32"), (lambda x: x.to(torch.float32).double(), "float32"),
        (lambda x: x.type_as(torch.zeros(1)), "float32"), (lambda x: x.long(), "int64"),
        (lambda x: x.type("torch.FloatTensor"), "float32"), (lambda x: x.half(), "float16"),
    ],
    torch.float32: [
        (lambda x: x.to(torch.uint8), "uint8"), (lambda x: x.int(), "int32"), (lambda x: x.byte(), "uint8"),
        (lambda x: x.type(torch.int16), "int16"), (lambda x: x.type_as(torch.zeros(1).long()), "int64"),
        (lambda x: x.half(), "float16"), (lambda x: x.bfloat16(), "bfloat16"), (lambda x: x.bool(), "bool"),
        (lambda x: x.to("cpu", torch.float16), "float16"), (lambda x: x.to(torch.zeros(1).int()), "int32"),
        (lambda x: x.short(), "int16"), (lambda x: x.char(), "int8"), (lambda x: x.to(dtype=torch.int8), "int8"),
        (lambda x: x.type(torch.IntTensor), "int32"),
    ],
    torch.bfloat16: [(lambda x: x.half(), "float16")],
    torch.float16: [(lambda x: x.bfloat16(), "bfloat16")],
}  # fmt: skip


def network(function, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), Applied(lambda x: function(x).to(dtype)), nn.ReLU(), nn.Linear(4, 2))
    return net.to(dtype).eval(), torch.rand(1, 3)


@pytest.mark.parametrize("dtype, i", [(dtype, i) for dtype, functions in KEEP.items() for i in range(len(functions))])
def test_casts_that_keep_every_value(dtype, i):
    net, x0 = network(KEEP[dtype][i], dtype)
    plain, _ = network(lambda x: x, dtype)
    assert float(local_bound(net, x0.double(), 0.1)) == float(local_bound(plain, x0.double(), 0.1))


@pytest.mark.parametrize("dtype, i", [(dtype, i) for dtype, functions in ROUND.items() for i in range(len(functions))])
def test_casts_that_round(dtype, i):
    function, name = ROUND[dtype][i]
    net, x0 = network(function, dtype)
    own = str(dtype).removeprefix("torch.")
    with pytest.raises(UnsupportedLayerError, match=f"layer '1.*a cast of {own} values to {name} rounds them"):
        read(net, x0.to(dtype))


@pytest.mark.parametrize(
    "function",
    [
        torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix, torch.frac, lambda x: x // 1, lambda x: x % 1,
        lambda x: torch.div(x, 2, rounding_mode="floor"),
    ],
)  # fmt: skip
def test_rounding_is_refused(function):
    with pytest.raises(UnsupportedLayerError, match=r"layer '.*(staircase|rounded)"):
        read(Applied(function).eval(), torch.rand(1, 3))


def test_numbers_are_those_that_float32_networks_use():
    """LeakyReLU(0.1) of a float32 network has the slope of the float32 number next to 0.1."""
    nearest = float(torch.tensor(0.1, dtype=torch.float32))
    layers = [nn.LeakyReLU(0.1), Applied(lambda x: x * 0.1), Applied(lambda x: x.clamp(-0.1, 0.1))]
    for dtype, number in ((torch.float32, nearest), (torch.float64, 0.1)):
        slopes, scale, limits = (read(layer.eval(), torch.zeros(1, 1, dtype=dtype)).layers[0].op for layer in layers)
        assert slopes.slopes[0] == number
        assert float(scale.scale) == number
        assert limits.knots == (-number, number)
