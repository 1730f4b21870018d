"""The network on which the methods are compared: fully connected, 7-20-30-10, random weights.

python networks/compnet.py        prints our bounds on it
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, too

from networks import ROOT
from networks._checkpoint import seeded

name = "compnet"
data_dir = ROOT / "data" / name
classes = [str(output) for output in range(10)]
eps_min, eps_max = 0.0005, 0.1
box = pixel_scale = load_image = test_set = None  # not a network on images


def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
    """(B, 7) -> (B, 10). The published weights are those of seed 0; `random_weights` draws from `seed`."""
    with seeded(seed if random_weights else 0):
        return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).eval()


x0 = torch.zeros(1, 7)


def main() -> None:
    from local_lipschitz import global_bound, joint_bound, local_bound  # a network does not need the mathematics

    model = net()
    print("anchored Lipschitz constant of compnet at x0 = 0, ℓ2 → ℓ2, certified upper bounds")
    for kind, bound in (("joint", joint_bound), ("local", local_bound)):
        for eps in (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1):
            print(f"{kind}, ε = {eps:<6}  {float(bound(model, x0, eps)):.6f}")
    print(f"global            {float(global_bound(model, x0)):.6f}")


if __name__ == "__main__":
    main()
