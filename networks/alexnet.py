"""AlexNet as torchvision has it, trained on ImageNet; max pooling with overlapping windows."""

import torchvision
from torch import nn
from torchvision.models import AlexNet_Weights

from networks import ROOT, _imagenet

name = "alexnet"
data_dir = ROOT / "data" / name
weights = AlexNet_Weights.IMAGENET1K_V1
classes = weights.meta["categories"]
eps_min, eps_max = 0.001, 3.0

box, pixel_scale = _imagenet.box, _imagenet.std
load_image = _imagenet.load_image
test_set = None  # ImageNet cannot be had without an account
x0 = load_image(_imagenet.nominal)


def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
    """(B, 3, 224, 224) -> (B, 1000), with torchvision's weights, or with random ones drawn from `seed`."""
    return _imagenet.pretrained(torchvision.models.alexnet, weights, random_weights, seed)
