"""ONNX operators that slide a window over the input: convolutions, pooling, padding.

Arguments as in onnx_operators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS: dict[int, Callable] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAXIMA: dict[int, Callable] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGES: dict[int, Callable] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def integers(values: Tensor | Sequence[int] | None) -> list[int]:
    """Shapes, axes and the like, which newer opsets give as tensors and older ones as attributes."""
    return [] if values is None else values.tolist() if isinstance(values, Tensor) else list(values)


@dataclass
class Window:
    """The attributes that windows have in common, one number an axis; pads: all begins, then all ends."""

    kernel_shape: Sequence[int]
    strides: Sequence[int] = ()
    pads: Sequence[int] = ()
    dilations: Sequence[int] = ()
    auto_pad: str = "NOTSET"

    def __post_init__(self) -> None:
        n = len(self.kernel_shape)
        self.strides, self.dilations = self.strides or [1] * n, self.dilations or [1] * n
        self.pads = list(self.pads) or [0] * (2 * n)
        if self.auto_pad not in ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise NotImplementedError(f"auto_pad {self.auto_pad!r}")
        if self.auto_pad == "VALID":
            self.pads = [0] * (2 * n)

    @property
    def axes(self) -> int:
        return len(self.kernel_shape)

    @property
    def same(self) -> bool:
        """Whether the pads depend on the size of the input."""
        return self.auto_pad.startswith("SAME")

    def sides(self, x) -> list[int]:
        """The pads at x."""
        if not self.same:
            return list(self.pads)
        begin, end = [], []
        for size, k, s, d in zip(x.shape[2:], self.kernel_shape, self.strides, self.dilations, strict=True):
            whole = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = whole // 2, whole - whole // 2
            begin.append(small if self.auto_pad == "SAME_UPPER" else large)
            end.append(large if self.auto_pad == "SAME_UPPER" else small)
        return begin + end


def _of_weights(w: Tensor, kernel_shape: Sequence[int] | None, **window) -> Window:
    if kernel_shape is not None and list(kernel_shape) != list(w.shape[2:]):
        raise ValueError(f"kernel_shape {list(kernel_shape)}, but weights of shape {tuple(w.shape)}")
    return Window(list(w.shape[2:]), **window)


def conv(x, w, b=None, group=1, kernel_shape=None, **window):
    at = _of_weights(w, kernel_shape, **window)
    return CONVOLUTIONS[at.axes](padded(x, at.sides(x)), w, b, at.strides, 0, at.dilations, group)


def conv_transpose(x, w, b=None, group=1, kernel_shape=None, output_padding=None, **window):
    at = _of_weights(w, kernel_shape, **window)
    n = at.axes
    if at.same or at.pads[:n] != at.pads[n:]:
        raise NotImplementedError("ConvTranspose with unequal pads")
    return TRANSPOSED[n](x, w, b, at.strides, at.pads[:n], output_padding or 0, group, at.dilations)


def max_pool(x, ceil_mode=0, **window):
    """Where begin and end differ, the edge is repeated: a window over it has the edge itself in it."""
    at = Window(**window)
    n, pads = at.axes, at.sides(x)
    if pads[:n] != pads[n:]:
        if any(d != 1 for d in at.dilations):
            raise NotImplementedError("MaxPool with unequal pads and dilations")
        x, pads = padded(x, pads, "replicate"), [0] * (2 * n)
    return MAXIMA[n](x, at.kernel_shape, at.strides, pads[:n], at.dilations, bool(ceil_mode))


def average_pool(x, ceil_mode=0, count_include_pad=0, **window):
    at = Window(**window)
    n, pads = at.axes, at.sides(x)
    if any(d != 1 for d in at.dilations):
        raise NotImplementedError("AveragePool with dilations")
    if pads[:n] != pads[n:]:
        if not count_include_pad:
            raise NotImplementedError("AveragePool with unequal pads that do not count")
        x, pads = padded(x, pads), [0] * (2 * n)
    return AVERAGES[n](x, at.kernel_shape, at.strides, pads[:n], bool(ceil_mode), bool(count_include_pad))


def padded(x, pads: Sequence[int], mode: str = "constant", value: float = 0.0):
    """ONNX counts all begins, then all ends; torch goes by axes, the last one first. Axes before are not padded."""
    n = len(pads) // 2
    sides = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
    if mode == "constant":
        while sides[-2:] == [0, 0]:
            sides = sides[:-2]
        return F.pad(x, sides, mode, value) if sides else x
    inner = 2 * (len(x.shape) - 2)  # torch's other modes leave batch and channels
    if any(sides[inner:]):
        raise NotImplementedError(f"padding of batch or channels, mode {mode}")
    return F.pad(x, sides[:inner], mode)


def pad(x, pads=None, constant=None, axes=None, mode="constant", value=0.0):
    counts, n = integers(pads), len(x.shape)
    full = [0] * (2 * n)
    for k, axis in enumerate(integers(axes) or range(n)):
        full[axis % n], full[n + axis % n] = counts[k], counts[len(counts) // 2 + k]
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    if mode not in modes:
        raise NotImplementedError(f"Pad with mode {mode!r}")
    filling = value if constant is None else float(constant)
    return padded(x, full, modes[mode], filling) if any(full) else x


def over_space(x, function: Callable):
    """Over all but batch and channels, which stay as ones."""
    return function(x, list(range(2, len(x.shape))), keepdim=True)


WINDOWS: dict[str, Callable] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: over_space(x, torch.mean),
    "GlobalMaxPool": lambda x: over_space(x, torch.amax),
    "Pad": pad,
}
