"""An ONNX file with the fields of a network module (see networks/__init__.py)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from local_lipschitz import read_onnx
from networks import ROOT
from networks._images import per_channel, read_image, to_tensor

EPS_MIN, EPS_MAX = 0.001, 10.0
MODES = {1: "L", 3: "RGB"}  # of images of so many channels


def network_of(path: str | os.PathLike, mean: Sequence[float] | None, std: Sequence[float] | None) -> ModuleType:
    """The network in the file; `x0` is zero, since a file has no nominal input.

    mean, std: the file's input is (pixels − mean)/std, pixels in [0, 1], one number or one a channel; None: pixels.
    Inputs of other shapes than (1 or 3, H, W) are no images. ValueError, OSError or UnsupportedLayerError.
    """
    try:
        model = read_onnx(path)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    network = ModuleType(f"{Path(path).stem}_onnx")
    shape, dtype = model.input_shape, next((b.dtype for b in model.buffers() if b.is_floating_point()), torch.float32)
    x0 = torch.zeros(1, *shape, dtype=dtype)
    outputs = model(x0).flatten(1).shape[1]

    def net(random_weights: bool = False, seed: int = 0) -> nn.Module:
        if random_weights:
            raise ValueError(f"--random-weights: {path} holds its weights")
        return model

    fields = {"name": network.__name__, "data_dir": ROOT / "data" / network.__name__, "net": net, "x0": x0,
              "classes": [str(i) for i in range(outputs)], "eps_min": EPS_MIN, "eps_max": EPS_MAX, "test_set": None,
              "box": None, "pixel_scale": None, "load_image": None}  # fmt: skip
    image = len(shape) == 3 and shape[0] in MODES
    if image:
        fields |= _of_images(shape, _numbers("mean", mean, 0.0, shape[0]), _numbers("std", std, 1.0, shape[0]), dtype)
    elif mean is not None or std is not None:
        raise ValueError(f"--mean, --std: the input of {path} is of shape {shape}, no image")
    for field, value in fields.items():
        setattr(network, field, value)
    return network


def _of_images(shape: tuple[int, ...], mean: Tensor, std: Tensor, dtype: torch.dtype) -> dict:
    if not bool((std > 0).all()):
        raise ValueError("--std: positive numbers are wanted")

    def load_image(path: str | os.PathLike) -> Tensor:
        pixels = to_tensor(read_image(path, mode=MODES[shape[0]], size=(shape[2], shape[1])))
        return ((pixels - mean) / std).to(dtype)

    return {"box": ((0 - mean) / std, (1 - mean) / std), "pixel_scale": std, "load_image": load_image}


def _numbers(option: str, values: Sequence[float] | None, default: float, channels: int) -> Tensor:
    values = [default] if values is None else list(values)
    if len(values) not in (1, channels) or not bool(torch.tensor(values).isfinite().all()):
        raise ValueError(f"--{option}: one finite number or {channels} are wanted")
    return per_channel(tuple(values * (channels // len(values))))
