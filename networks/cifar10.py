"""A small convolutional network on CIFAR-10; trained by cifar10_train.py."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.data import Dataset

from networks import ROOT
from networks._checkpoint import load_weights, read, seeded
from networks._images import find_data, per_channel, read_image, to_tensor

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, ImageFolder

name = "cifar10"
data_dir = ROOT / "data" / name
classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
eps_min, eps_max = 0.001, 2.0

mean, std = per_channel((0.4914, 0.4822, 0.4465)), per_channel((0.2470, 0.2435, 0.2616))
box = (0 - mean) / std, (1 - mean) / std  # black, white
pixel_scale = std


def architecture() -> nn.Sequential:
    """(B, 3, 32, 32) -> (B, 10)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3),  # 30×30
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 3),  # 28×28
            relu2=nn.ReLU(),
            pool1=nn.MaxPool2d(2),  # 14×14
            dropout1=nn.Dropout(0.25),
            conv3=nn.Conv2d(32, 64, 3),  # 12×12
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 3),  # 10×10
            relu4=nn.ReLU(),
            pool2=nn.MaxPool2d(2),  # 5×5
            dropout2=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            fc1=nn.Linear(1600, 512),
            relu5=nn.ReLU(),
            dropout3=nn.Dropout(0.5),
            fc2=nn.Linear(512, 10),
        )
    )


def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
    """The trained network, or one with random weights drawn from `seed`."""
    with seeded(seed):
        model = architecture()
    if random_weights:
        return model.eval()
    path = data_dir / "weights.pt"
    return load_weights(model, read(path), path)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], (B, 3, 32, 32), to network inputs."""
    return (pixels - mean.to(pixels.device)) / std.to(pixels.device)


def load_image(path: str | os.PathLike) -> Tensor:
    """A 32×32 image file, in colour or grey, as (1, 3, 32, 32)."""
    return normalise(to_tensor(read_image(path, mode="RGB", size=(32, 32))))


def test_set(data_dir: str | os.PathLike) -> Dataset:
    """The 10,000 test images under `data_dir`: pairs of (3, 32, 32) and label.

    torchvision's CIFAR10 if it is there, else a folder of images, test/<class>/*.
    """
    root = Path(data_dir)
    return dataset(root, train=False, transform=lambda image: normalise(to_tensor(image))[0])


def dataset(root: Path, train: bool, transform: Callable | None = None) -> CIFAR10 | ImageFolder:
    """CIFAR-10 as found under `root`. FileNotFoundError if it is not there, ValueError for other classes."""
    from torchvision.datasets import CIFAR10, ImageFolder  # importing torchvision takes seconds

    if (root / "cifar-10-batches-py").exists():
        try:
            return CIFAR10(root, train=train, download=False, transform=transform)
        except RuntimeError as error:
            raise ValueError(f"{root / 'cifar-10-batches-py'}: {error}") from error
    folder = root / ("train" if train else "test")
    find_data(folder, "CIFAR-10", f"`python networks/cifar10_train.py --data {root}` downloads it")
    images = ImageFolder(folder, transform=transform)
    if images.classes != classes:
        raise ValueError(f"{folder} has the classes {', '.join(images.classes)}; wanted are {', '.join(classes)}")
    return images


x0 = load_image(data_dir / "nominal.png")
