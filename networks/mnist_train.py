"""Train the MNIST network and write its checkpoint; about 99 % of the test digits, two minutes on one core.

    python networks/mnist_train.py                 downloads MNIST into datasets/ the first time
    python networks/mnist_train.py --data DIR      where DIR/MNIST/raw holds it already

A second run continues where a killed one stopped.
"""

import argparse
import sys
from pathlib import Path

import torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, too

from networks import ROOT, mnist
from networks._train import Schedule, accuracy, finish, fit
from script_tools.command_line import run


def load_digits(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """All images (N, 1, 28, 28) uint8 and labels (N,), downloaded if they are not there."""
    try:
        digits = torchvision.datasets.MNIST(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"MNIST is not in {root / 'MNIST' / 'raw'} and could not be downloaded: {error}; "
            "give the folder of a local copy with --data"
        ) from error
    return digits.data[:, None], digits.targets


def prepare(pixels: Tensor) -> Tensor:
    return mnist.normalise(pixels.float() / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "datasets", help="folder of MNIST (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=mnist.data_dir / "weights.pt", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, test = load_digits(args.data, train=True), load_digits(args.data, train=False)
    model = mnist.net(random_weights=True, seed=args.seed)
    state_file = args.out.with_suffix(".unfinished")
    fit(model, *train, prepare, state_file, Schedule(epochs=args.epochs, batch_size=100, peak=2e-3, seed=args.seed))
    print(f"test accuracy {accuracy(model, *test, prepare):.2%}")
    finish(model, args.out, state_file)


if __name__ == "__main__":
    run(main)
