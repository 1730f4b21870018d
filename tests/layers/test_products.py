"""Products with constant matrices, averages, interpolation and three dimensions, against explicit matrices."""

import pytest
import torch
import torch.nn.functional as F
from affine import Applied, check
from torch import Tensor, nn

from local_lipschitz import UnsupportedLayerError
from local_lipschitz.layers.linear_maps import Dense
from local_lipschitz.reading.read import read


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


PRODUCTS = {
    "x @ W": ((3, 4), lambda x: x @ weight(4, 2)),
    "x @ W of a row": ((4,), lambda x: x @ weight(4, 2)),
    "x @ W, leading ones": ((3, 4), lambda x: x @ weight(1, 4, 2)),
    "x @ W, four dimensions": ((2, 3, 4), lambda x: torch.matmul(x, weight(1, 1, 4, 2))),
    "x @ W, one for each channel": ((2, 3, 4), lambda x: x @ weight(2, 4, 5)),
    "x @ W, more channels": ((1, 3, 4), lambda x: x @ weight(2, 4, 5)),
    "x @ w": ((3, 4), lambda x: x @ weight(4)),
    "x @ w of a row": ((4,), lambda x: (x @ weight(4)).unsqueeze(1)),
    "A @ x": ((3, 4), lambda x: weight(5, 3) @ x),
    "A @ x, leading one": ((3, 4), lambda x: weight(1, 5, 3) @ x),
    "A @ x, one for each channel": ((2, 3, 4), lambda x: weight(2, 5, 3).matmul(x)),
    "a @ x": ((3, 4), lambda x: weight(3) @ x),
    "a column": ((3,), lambda x: (weight(5, 3) @ x.unsqueeze(-1)).squeeze(-1)),
    "bmm": ((3, 4), lambda x: torch.bmm(weight(5, 3).expand(len(x), 5, 3), x)),
    "bmm on the right": ((3, 4), lambda x: torch.bmm(x, weight(4, 5).repeat(len(x), 1, 1))),
    "mm": ((4,), lambda x: torch.mm(x, weight(4, 5))),
    "mv": ((4,), lambda x: torch.mv(x, weight(4)).unsqueeze(1)),
    "addmm": ((4,), lambda x: torch.addmm(weight(5), x, weight(4, 5), beta=-0.5, alpha=2.0)),
    "addmm of a layer": ((4,), lambda x: torch.addmm(x, x, weight(4, 4))),
    "baddbmm": ((3, 4), lambda x: torch.baddbmm(weight(1, 5, 4), weight(5, 3).expand(len(x), 5, 3), x, alpha=3)),
    "einsum": ((3, 4), lambda x: torch.einsum("ij,bjk->bik", weight(5, 3), x)),
    "einsum, implicit": ((3, 4), lambda x: torch.einsum("bij, jk", x, weight(4, 5))),
    "einsum, a transpose": ((3, 4), lambda x: torch.einsum("bij->bji", x)),
    "einsum, a sum": ((3, 4), lambda x: torch.einsum("bij->bj", x)),
    "einsum, one factor an element": ((3, 4), lambda x: torch.einsum("bij,ij->bij", x, weight(3, 4))),
    "einsum, an outer product": ((3, 4), lambda x: torch.einsum("bij,k->bikj", x, weight(2))),
    "einsum, three operands": ((3, 4), lambda x: torch.einsum("bij,jk,kl->bil", x, weight(4, 2), weight(2, 5))),
    "einsum, constants that are summed": ((3,), lambda x: torch.einsum("bi,jj,ki->bk", x, weight(4, 4), weight(5, 3))),
    "einsum, an ellipsis": ((2, 3, 4), lambda x: torch.einsum("...i,ij->...j", x, weight(4, 2))),
    "einsum, a batch of constants": (
        (3, 4), lambda x: torch.einsum("bij,bjk->bik", x, weight(1, 4, 2).expand(len(x), 4, 2))
    ),
    "tensordot": ((3, 4), lambda x: torch.tensordot(x, weight(3, 4, 2))),
    "tensordot of named dimensions": ((3, 4), lambda x: torch.tensordot(x, weight(2, 3), ([1], [1]))),
    "bilinear with a constant": (
        (3,), lambda x: F.bilinear(x, weight(1, 4).expand(len(x), 4), weight(2, 3, 4), weight(2))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_constants(name):
    shape, function = PRODUCTS[name]
    check(Applied(function), shape, slack=None if name in ("addmm of a layer", "x @ W, more channels") else 1.0)


def test_a_plain_product_is_a_linear_layer():
    for function in (lambda x: x @ weight(4, 2), lambda x: torch.einsum("bi,ji->bj", x, weight(2, 4))):
        (layer,) = read(Applied(function).eval(), torch.zeros(1, 4, dtype=torch.float64)).layers
        assert isinstance(layer.op, Dense)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: weight(5, 4) @ x[:, 0], "across dimension 0, the batch"),
        (lambda x: x @ weight(2, 1, 4, 3), "changes the batch"),
        (lambda x: torch.einsum("bij,bkj->bik", x, x), "a product of two layers"),
        (lambda x: torch.einsum("bij->ij", x), "across dimension 0, the batch"),
        (lambda x: torch.einsum("bii->bi", x[:, :, :3]), "a diagonal of a layer"),
        (lambda x: torch.bmm(x, torch.arange(4.0 * len(x)).view(len(x), 4, 1)), "each input of the batch with another"),
        (lambda x: x @ weight(3, 2), "a constant of shape (3, 2) does not fit (3, 4)"),
        (lambda x: x / torch.tensor([1.0, 0.0, 2.0, 0.0]), "a division by zero (2 of its 4 divisors)"),
    ],
)
def test_products_that_are_refused(function, words):
    with pytest.raises((UnsupportedLayerError, ValueError)) as caught:
        read(Applied(function).eval(), torch.rand(1, 3, 4).double())
    assert words in str(caught.value) and str(caught.value).startswith("layer '")


SUMS = {
    "two layers": lambda x: x + x[:, :1] * 2,
    "both expand": lambda x: x[:, :1] - x[:, :, :1],
    "centred": lambda x: x - x.mean((1, 2), keepdim=True),
    "torch.sub": lambda x: torch.sub(x[:, :1], x, alpha=3),
    "a larger constant": lambda x: x[:, :1] + weight(3, 4),
    "a larger constant with a batch": lambda x: x[:, :1] - weight(1, 3, 1),
    "a larger factor": lambda x: x[:, :, :1] * weight(4),
    "a larger divisor": lambda x: x[:, :1] / weight(3, 1),
    "subtracted from a constant": lambda x: weight(3, 4) - x[:, :1],
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_broadcast(name):
    check(Applied(SUMS[name]), (3, 4), slack=None)


INTERPOLATIONS = [
    {"size": 7, "mode": "nearest"},
    {"scale_factor": 2, "mode": "nearest"},
    {"scale_factor": 1.7, "mode": "nearest"},
    {"scale_factor": 0.6, "mode": "nearest-exact"},
    {"scale_factor": 2, "mode": "linear"},
    {"size": 9, "mode": "linear", "align_corners": True},
    {"scale_factor": 1.6, "mode": "linear", "recompute_scale_factor": True},
    {"size": 3, "mode": "linear"},
    {"size": 3, "mode": "area"},
]


@pytest.mark.parametrize("options", INTERPOLATIONS, ids=str)
def test_interpolation(options):
    """In one dimension, and the same in two and three."""
    in_two = {"linear": "bilinear"}.get(options["mode"], options["mode"])
    in_three = {"linear": "trilinear"}.get(options["mode"], options["mode"])
    check(Applied(lambda x: F.interpolate(x, **options)), (2, 5))
    check(Applied(lambda x: F.interpolate(x, **options | {"mode": in_two})), (2, 5, 4))
    check(Applied(lambda x: F.interpolate(x, **options | {"mode": in_three})), (1, 2, 3, 4))


def test_interpolation_of_images():
    check(nn.Upsample((5, 9), mode="bicubic"), (2, 4, 3))
    check(nn.Upsample(scale_factor=(1.5, 2.0), mode="bilinear", align_corners=True), (2, 4, 3))
    check(nn.UpsamplingNearest2d(scale_factor=2), (2, 3, 3))
    check(nn.UpsamplingBilinear2d(size=(4, 5)), (2, 3, 3))
    check(Applied(lambda x: F.interpolate(x, (3, 2), mode="bilinear", antialias=True)), (1, 7, 6))
    check(Applied(lambda x: F.interpolate(x, (3, 2), mode="bicubic", antialias=True)), (1, 7, 6))


THREE = [
    (nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(2, 1, 1)), (2, 4, 5, 2)),
    (nn.Conv3d(2, 4, 2, groups=2, padding="same"), (2, 3, 2, 3)),
    (nn.ConvTranspose3d(2, 3, 2, stride=2, output_padding=1), (2, 2, 2, 1)),
    (nn.BatchNorm3d(3), (3, 2, 2, 2)),
    (nn.InstanceNorm3d(3, affine=True, track_running_stats=True), (3, 2, 2, 2)),
    (nn.InstanceNorm2d(3, track_running_stats=True), (3, 2, 4)),
    (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4)),
    (nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), (1, 3, 3, 2)),
    (nn.AvgPool3d(2, stride=(1, 2, 2), padding=1, ceil_mode=True), (2, 3, 4, 5)),
    (nn.AvgPool3d(2, count_include_pad=False, divisor_override=3), (1, 4, 2, 5)),
    (nn.AdaptiveAvgPool3d((2, 1, None)), (2, 3, 4, 2)),
    (nn.ZeroPad3d(1), (2, 2, 2, 2)),
    (nn.ConstantPad3d((1, 0, 2, -1, 0, 1), 0.5), (1, 2, 3, 2)),
    (nn.ReplicationPad3d(1), (1, 2, 2, 3)),
    (nn.ReflectionPad3d((1, 0, 1, 1, 0, 1)), (1, 2, 3, 3)),
    (nn.CircularPad3d(1), (1, 2, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("layer, shape", THREE, ids=lambda value: type(value).__name__)
def test_three_dimensions(layer, shape):
    check(layer, shape)
