"""Networks of torchvision: bounds of narrow ones, reading of large ones, refusals."""

import math

import pytest
import torch
import torchvision.models as models
from explicit import jacobian, sampled_quotient
from torch import nn
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.ops import FrozenBatchNorm2d

from local_lipschitz import UnsupportedLayerError, local_bound
from local_lipschitz.reading.read import read

# Networks of torchvision, with their structure and few channels


def narrow_densenet() -> nn.Module:
    return models.DenseNet(growth_rate=2, block_config=(6, 12, 24, 16), num_init_features=4, bn_size=2, num_classes=4)


def narrow_googlenet() -> nn.Module:
    return nn.Sequential(
        BasicConv2d(3, 6, kernel_size=3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(6, 3, 2, 4, 2, 3, 2), Inception(12, 2, 2, 3, 1, 2, 2),
        nn.MaxPool2d(2), Inception(9, 2, 2, 3, 1, 2, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(9, 4),
    )  # fmt: skip


TORCHVISION = {
    "resnet18": (lambda: models.resnet18(weights=None, num_classes=4), 32),
    "densenet121": (narrow_densenet, 32),
    "squeezenet1_1": (lambda: models.squeezenet1_1(weights=None, num_classes=4), 32),
    "googlenet": (narrow_googlenet, 16),
}


def spread(net: nn.Module) -> nn.Module:
    """Running statistics other than the ones that a new network has."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks(name):
    build, side = TORCHVISION[name]
    torch.manual_seed(0)
    net = spread(build())
    x0 = torch.randn(1, 3, side, side)
    bound = local_bound(net, x0, 1e-3, tolerance=0.02)
    assert math.isfinite(float(bound)) and bound.failure_probability <= 1e-9
    net, x0 = net.double(), x0.double()
    assert float(torch.linalg.matrix_norm(jacobian(net, x0), 2)) <= float(bound)
    assert sampled_quotient(net, x0, 1e-3, count=20) <= float(bound)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.mobilenet_v2(weights=None, width_mult=0.1),
        lambda: models.shufflenet_v2_x0_5(weights=None),
        lambda: models.mnasnet0_5(weights=None),
        lambda: models.resnext50_32x4d(weights=None, replace_stride_with_dilation=[False, True, True]),
        lambda: models.regnet_x_400mf(weights=None),
        lambda: models.googlenet(weights=None, init_weights=False, transform_input=True),
        lambda: models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d),
    ],
)
def test_more_networks_of_torchvision_are_read(build):
    """`read` itself compares the graph's output with the module's."""
    read(spread(build()), torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize(
    "build, layer",
    [
        (lambda: models.efficientnet_b0(weights=None), "'features.1.0.block.1.mul' (position 12, mul)"),
        (lambda: models.mobilenet_v3_small(weights=None), "layer 'features.1.block.1."),
    ],
)
def test_torchvision_networks_whose_channels_weigh_each_other_are_refused(build, layer):
    with pytest.raises(UnsupportedLayerError) as caught:
        read(build().eval(), torch.randn(1, 3, 32, 32))
    assert layer in str(caught.value)
