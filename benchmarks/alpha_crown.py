"""The ℓ2 radius that α-CROWN certifies beside ours: a 784-50-50-10 MLP trained on MNIST, the drawn 8.

    python benchmarks/alpha_crown.py train --data DIR mlp.npz      DIR/MNIST/raw holds MNIST; half a minute
    python benchmarks/alpha_crown.py ours mlp.npz
    LIRPA/bin/python benchmarks/alpha_crown.py theirs mlp.npz      where auto_LiRPA is installed, and nothing of ours

mlp.npz holds the weights and the input. docs/peers.md says how LIRPA is made, and what came out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTHS = (784, 50, 50, 10)
RTOL = 1e-3  # of their radius


def mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for m, n in zip(WIDTHS[:-1], WIDTHS[1:]):  # noqa: B905, an older Python may run this
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(file: Path, data: Path) -> None:
    """Train for five epochs of Adam and save weights and input."""
    from networks import mnist
    from networks.mnist_train import load_digits, prepare
    from script_tools.results import replacing

    torch.manual_seed(0)
    net, (images, labels) = mlp(), load_digits(data, train=True)
    x, epochs, batch = prepare(images).flatten(1), 5, 100
    optimiser = torch.optim.Adam(net.parameters())
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[at]), labels[at]).backward()
            optimiser.step()
    images, labels = load_digits(data, train=False)
    accuracy = float((net(prepare(images).flatten(1)).argmax(1) == labels).double().mean())
    print(f"{accuracy:.2%} of the test digits")
    x0 = mnist.load_image(mnist.data_dir / "8.png").flatten(1)
    arrays = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    with replacing(file) as beside, beside.open("wb") as opened:
        np.savez(opened, x0=x0.numpy(), **arrays)


def load(file: Path) -> tuple[nn.Sequential, Tensor]:
    """The network, and its input (1, 784)."""
    net, arrays = mlp(), np.load(file, allow_pickle=False)
    net.load_state_dict({name: torch.from_numpy(arrays[name]) for name in net.state_dict()})
    return net.eval(), torch.from_numpy(arrays["x0"])


def ours(file: Path) -> None:
    from local_lipschitz import certified_radius, joint_bound, local_bound, margin_bound
    from local_lipschitz.attacks import gradient_ascent

    net, x0 = load(file)
    for bound in (local_bound, joint_bound, margin_bound):
        start = time.process_time()
        radius = float(certified_radius(net, x0, bound).radius)
        show(bound.__name__, radius, start)
    start = time.process_time()
    show("found", float(gradient_ascent(net, x0).distance), start)


def theirs(file: Path) -> None:
    """Of CROWN and α-CROWN the largest ε, by bisection, at which all margins are proved positive."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    net, x0 = load(file)
    label = int(net(x0).argmax())
    others = [c for c in range(WIDTHS[-1]) if c != label]
    C = torch.eye(WIDTHS[-1])[label] - torch.eye(WIDTHS[-1])[others]
    bounded = BoundedModule(net, x0, bound_opts={"optimize_bound_args": {"iteration": 100, "lr_alpha": 0.1}})

    def holds(eps: float, method: str) -> bool:
        x = BoundedTensor(x0, PerturbationLpNorm(norm=2, eps=eps))
        lower, _ = bounded.compute_bounds(x=(x,), C=C[None], method=method, bound_upper=False)
        return bool((lower > 0).all())

    for name, method in (("CROWN", "CROWN"), ("α-CROWN", "CROWN-Optimized")):
        start, low, high = time.process_time(), 1e-3, 10.0
        while high > low * (1 + RTOL):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(middle, method) else (low, middle)
        show(name, low, start)


def show(name: str, radius: float, start: float) -> None:
    print(f"{name:<14} {radius:.4f}   {time.process_time() - start:.1f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "ours", "theirs"))
    parser.add_argument("file", type=Path, help="weights and input, .npz")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="folder of MNIST (default: datasets)")
    args = parser.parse_args()
    if args.what == "train":
        train(args.file, args.data)
    else:
        {"ours": ours, "theirs": theirs}[args.what](args.file)


if __name__ == "__main__":
    main()
