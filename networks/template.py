"""The smallest network module; copy it to networks/mine.py and make it yours (docs/your_network.md).

python calculate_bounds.py --network template
python calculate_bounds.py --network mine --weights FILE        a checkpoint, in any of the usual wrappers
python calculate_bounds.py --network mine.onnx --input FILE     a network in a file needs no module
"""

import os

import torch
from torch import Tensor, nn

from networks import ROOT
from networks._checkpoint import load_weights, read, seeded  # noqa: F401
from networks._images import per_channel, read_image, to_tensor

data_dir = ROOT / "data" / "template"  # results go here
classes = ["cat", "dog", "horse"]  # a name for each output
eps_min, eps_max = 0.01, 10.0  # the figure's range, in the network's own (normalised) units
mean, std = per_channel((0.5, 0.5, 0.5)), per_channel((0.25, 0.25, 0.25))
pixel_scale = std  # optional: distances in pixel units as well


def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
    """(B, 3, 32, 32) -> (B, 3): your architecture, the logits last."""
    with seeded(seed):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
    # if not random_weights:  # your checkpoint: torch.save(model.state_dict(), "data/mine/weights.pt")
    #     return load_weights(model, read(data_dir / "weights.pt"), data_dir / "weights.pt")
    return model.eval()


def load_image(path: str | os.PathLike) -> Tensor:
    """An image file as an input, (1, 3, 32, 32)."""
    return (to_tensor(read_image(path, mode="RGB", size=(32, 32))) - mean) / std


# x0 = load_image(data_dir / "nominal.png")  # your image
x0 = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - mean) / std
