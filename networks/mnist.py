"""LeNet on MNIST digits; trained by mnist_train.py, nominal input drawn by mnist_draw.py."""

import os
from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset

from networks import ROOT
from networks._checkpoint import load_weights, read, seeded
from networks._images import find_data, per_channel, read_image, to_tensor

name = "mnist"
data_dir = ROOT / "data" / name
classes = [str(digit) for digit in range(10)]
eps_min, eps_max = 0.001, 7.0

mean, std = per_channel((0.1307,)), per_channel((0.3081,))
box = (0 - mean) / std, (1 - mean) / std  # black, white
pixel_scale = std


def architecture() -> nn.Sequential:
    """(B, 1, 28, 28) -> (B, 10)."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5),  # 24×24
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),  # 12×12
            conv2=nn.Conv2d(6, 16, 5),  # 8×8
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),  # 4×4
            flatten=nn.Flatten(),
            fc1=nn.Linear(256, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
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
    """Pixels in [0, 1], (B, 1, 28, 28), to network inputs."""
    return (pixels - mean.to(pixels.device)) / std.to(pixels.device)


def load_image(path: str | os.PathLike) -> Tensor:
    """A 28×28 image file, white on black, grey or in colour (which is turned to grey), as (1, 1, 28, 28)."""
    return normalise(to_tensor(read_image(path, mode="L", size=(28, 28))))


def test_set(data_dir: str | os.PathLike) -> Dataset:
    """The 10,000 test digits from torchvision's MNIST under `data_dir`: pairs of (1, 28, 28) and label."""
    from torchvision.datasets import MNIST  # importing torchvision takes seconds

    root = Path(data_dir)
    images = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    find_data(images, "MNIST", f"`python networks/mnist_train.py --data {root}` downloads it")
    try:
        return MNIST(root, train=False, download=False, transform=lambda image: normalise(to_tensor(image))[0])
    except (RuntimeError, AssertionError) as error:  # labels missing; not an IDX file
        raise ValueError(f"{images.parent}: cannot read MNIST: {error}") from error


x0 = load_image(data_dir / "8.png")
