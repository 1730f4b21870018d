"""Train the CIFAR-10 network and write its checkpoint; about 78 % of the test images, 25 minutes on two cores.

    python networks/cifar10_train.py                       downloads CIFAR-10 into datasets/ the first time
    python networks/cifar10_train.py --data DIR            where DIR/cifar-10-batches-py holds it already
    python networks/cifar10_train.py --image-folder DIR    image files DIR/{train,test}/<class>/*

A second run continues where a killed one stopped.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, too

from networks import ROOT, cifar10
from networks._train import Schedule, accuracy, finish, fit
from script_tools.command_line import run


def load_pictures(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """All images (N, 3, 32, 32) uint8, decoded once, and labels (N,)."""
    data = cifar10.dataset(root, train=train)
    images = torch.empty(len(data), 3, 32, 32, dtype=torch.uint8)
    labels = torch.tensor(data.targets)
    for i, (picture, _) in enumerate(tqdm(data, desc="reading images")):
        if picture.size != (32, 32):
            raise ValueError(f"{root}: an image of {picture.width}×{picture.height} pixels; all must be 32×32")
        images[i] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return images, labels


def download(root: Path) -> None:
    try:
        torchvision.datasets.CIFAR10(root, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"CIFAR-10 is not in {root / 'cifar-10-batches-py'} and could not be downloaded: {error}; "
            "give the folder of a local copy with --data or --image-folder"
        ) from error


def prepare(pixels: Tensor) -> Tensor:
    return cifar10.normalise(pixels.float() / 255)


def augment(pixels: Tensor, shift: int = 4) -> Tensor:
    """Each image normalised, mirrored with probability 1/2, shifted by up to `shift` pixels each way."""
    count, _, height, width = pixels.shape
    padded = pad(prepare(pixels), [shift] * 4)  # with 0, the mean colour
    rows = torch.randint(2 * shift + 1, (count, 1)) + torch.arange(height)  # (B, H)
    columns = torch.randint(2 * shift + 1, (count, 1)) + torch.arange(width)  # (B, W)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)  # (B, C, H, W)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, default=ROOT / "datasets", help="for torchvision (default: %(default)s)")
    source.add_argument("--image-folder", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, default=cifar10.data_dir / "weights.pt", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    root = args.image_folder or args.data
    if args.image_folder is None:
        download(root)
    train, test = load_pictures(root, train=True), load_pictures(root, train=False)
    model = cifar10.net(random_weights=True, seed=args.seed)
    state_file = args.out.with_suffix(".unfinished")
    fit(model, *train, augment, state_file, Schedule(epochs=args.epochs, batch_size=128, peak=1.5e-3, seed=args.seed))
    print(f"test accuracy {accuracy(model, *test, prepare):.2%}")
    finish(model, args.out, state_file)


if __name__ == "__main__":
    run(main)
