"""No module is refused for the rounding of its own dtype, and any is for weights that are others by more than that."""

import pytest
import torch
from torch import Tensor, nn

from local_lipschitz.reading.read import read

ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.RReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardsigmoid(), nn.Softshrink(),
    nn.Threshold(0.3, 0.3), nn.Tanh(), nn.Tanhshrink(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softsign(), nn.Softplus(),
    nn.Softplus(0.2), nn.Softplus(3.0, 40.0), nn.ELU(1.7), nn.SELU(), nn.CELU(0.3), nn.SiLU(), nn.Mish(), nn.GELU(),
    nn.GELU("tanh"), nn.Hardswish(),
]  # fmt: skip


class OthersForTensors(nn.Linear):
    """Its weights, where it reads a tensor, are others by a part of themselves."""

    part = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * (1.0 + self.part * (type(x) is Tensor)), self.bias)


def network(phi: nn.Module, bias: bool, dtype: torch.dtype, part: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    sizes = (6, 40), (40, 40), (40, 40), (40, 3)
    layers = [OthersForTensors(n, m, bias=bias) for n, m in sizes]
    for layer in layers:
        layer.part = part
    return nn.Sequential(layers[0], phi, layers[1], phi, layers[2], phi, layers[3]).to(dtype).eval()


def inputs(scale: float, dtype: torch.dtype) -> Tensor:
    return scale * torch.randn(2, 6, dtype=torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize("phi", ACTIVATIONS, ids=repr)
def test_no_activation_is_refused_for_its_rounding(phi):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for scale in (1e-8, 1.0, 1e6):
            if scale < torch.finfo(dtype).max / 100:
                read(network(phi, scale > 1e-3, dtype), inputs(scale, dtype))


@pytest.mark.parametrize("phi", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("dtype, part", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_weights_that_are_others_are_refused(phi, dtype, part):
    with pytest.raises(ValueError, match="a relative difference of"):
        read(network(phi, True, dtype, part), inputs(10.0, dtype))


def test_a_deep_network_shows_its_difference_in_float64():
    """The rounding of 40 layers of float32 sums may be as large as a part of 1e-4 of one, and in float64 it is not."""
    torch.manual_seed(0)
    layers = [OthersForTensors(60, 60, bias=False) for _ in range(40)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    net = nn.Sequential(*[m for layer in layers for m in (layer, nn.LeakyReLU(0.9))]).eval()
    x0 = torch.randn(1, 60)
    read(net, x0)
    layers[0].part = 1e-4
    with pytest.raises(ValueError, match="a relative difference of"):
        read(net, x0)
