"""The valid inputs: the ball cut by lowest ≤ x ≤ highest, elementwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import UNDERFLOW

Box = tuple[Tensor, Tensor]

SIDES = 4000  # elements that may reach a side of the box, beyond which only the intervals keep to it
THIN = 1e-3  # of eps: the least distance to a side that is written down
UP = 1e-15  # outward, for a difference


def check_box(box: tuple[Tensor | float, Tensor | float] | None, x0: Tensor) -> Box | None:
    """(lowest, highest), each (1, *shape) in the precision of x0 (B, *shape), which must lie between them."""
    if box is None:
        return None
    low, high = (torch.as_tensor(side, dtype=x0.dtype, device=x0.device) for side in box)
    shape = x0[:1].shape
    try:
        low, high = low.expand(shape), high.expand(shape)
    except RuntimeError:
        message = f"box has shapes {tuple(low.shape)} and {tuple(high.shape)}; those that expand to {tuple(shape)}"
        raise ValueError(f"{message} are wanted") from None
    if not bool(((low <= x0) & (x0 <= high)).all()):
        raise ValueError("x0 lies outside of the box; lowest ≤ x0 ≤ highest is wanted")
    return low, high


@dataclass(frozen=True)
class Region:
    """The ball of radius eps around x0, cut by a box where there is one."""

    eps: float
    box: Box | None = None


@dataclass(frozen=True)
class Sides:
    """δ_i in [low_i, high_i] for the elements `index` (k,) of the input that may get beyond a side of the box."""

    index: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, box: Box | None, x0: Tensor, eps: float) -> Sides:
        """For x0 (1, *shape) float64."""
        if box is None:
            empty = x0.new_zeros(0)
            return cls(empty.long(), empty, empty)
        low, high = ((side.double() - x0).flatten() for side in box)
        off = UP * x0.abs().flatten() + UNDERFLOW
        low, high = low - UP * low.abs() - off, high + UP * high.abs() + off
        low, high = low.clamp(max=-THIN * eps), high.clamp(min=THIN * eps)
        index = ((low > -eps) | (high < eps)).nonzero()[:, 0]
        index = index[:0] if len(index) > SIDES else index
        return cls(index, low.clamp(min=-2.0 * eps)[index], high.clamp(max=2.0 * eps)[index])

    def none(self) -> Sides:
        """Of no element: the whole ball."""
        return Sides(self.index[:0], self.low[:0], self.high[:0])
