"""What AlexNet and VGG-16 share: torchvision's weights, the preparation of an image, the photograph."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.transforms.functional import center_crop, resize

from networks import ROOT
from networks._checkpoint import load_weights, seeded
from networks._images import per_channel, read_image, to_tensor

mean, std = per_channel((0.485, 0.456, 0.406)), per_channel((0.229, 0.224, 0.225))
box = (0 - mean) / std, (1 - mean) / std  # black, white
nominal = ROOT / "data" / "imagenet" / "nominal.png"
LONGEST = 20  # sides; a longer strip would become a huge image when its short side is resized to 256


class WeightsError(RuntimeError, OSError):
    """torchvision's weights can be neither read nor downloaded."""


def normalise(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], (B, 3, 224, 224), to network inputs."""
    return (pixels - mean.to(pixels.device)) / std.to(pixels.device)


def load_image(path: str | os.PathLike) -> Tensor:
    """An image file of any size: shorter side resized to 256, middle 224×224 cut out: (1, 3, 224, 224)."""
    image = read_image(path, mode="RGB")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(
            f"cannot use image {path}: {image.width}×{image.height} pixels; "
            f"the longer side may be at most {LONGEST} times the shorter"
        )
    return normalise(to_tensor(center_crop(resize(image, [256]), [224])))


def pretrained(build: Callable[[], nn.Module], weights: WeightsEnum, random_weights: bool, seed: int) -> nn.Module:
    """torchvision's network with `weights`, downloaded if they are not there, or with random ones.

    WeightsError if they can be neither read nor downloaded: it says where the file belongs.
    """
    if random_weights:
        with seeded(seed):
            return build().eval()
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # URLError, HTTPError, OSError, a wrong hash, a damaged file, …
        reason = str(error).strip().split("\n")[0]
        if os.path.exists(file):
            raise WeightsError(
                f"cannot read the weights {weights}: {file}: {reason}; delete it, and it is downloaded again"
            ) from error
        raise WeightsError(
            f"cannot download the weights {weights} from {weights.url}: {reason}; torchvision looks for "
            f"them in {file}: download that address on another machine and put the file there, "
            "or use --random-weights for a network with random weights"
        ) from error
    with torch.device("meta"):  # no time or memory for weights that are replaced
        model = build()
    return load_weights(model, state, file)
