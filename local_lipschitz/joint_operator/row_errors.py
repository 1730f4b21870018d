"""What rounding may have changed in a computed row of the operator, by inequalities (docs/joint_bound.md, section 6).

A row is a functional, pulled back through the layers. The sums of a stage change it by at most γ_n|A|ᵀ|r|, r being the
functional at the stage's output; and this error acts on the true differences of what the stage reads, whose reach is
known. So it counts γ_n⟨|r|, |A| reach⟩ once and for all: nothing of it grows on its way through the other layers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..numerics import UNDERFLOW, of_computed

BRANCHES = 32  # roundings where functionals from several readers of one layer are added up
SAFE = 2.0  # for the rounding of the reaches, of these sums themselves, and for sums over branches


class Errors(Protocol):
    """Is told of every place that functionals pass on their way back."""

    def add(self, r: Tensor, reach: Tensor, n: int) -> None:
        """r (p, *shape) goes back through sums of n roundings; reach (*shape): of the sizes that are summed there."""


class RowErrors:
    """For some functionals, pulled back together, how far each may be off: total (p,), times ‖x − x0‖."""

    def __init__(self, functionals: Tensor) -> None:
        self.total = functionals.new_zeros(len(functionals), dtype=torch.float64)

    def add(self, r: Tensor, reach: Tensor, n: int) -> None:
        """As in `Errors`."""
        sizes = r.abs().flatten(1).double() @ reach.flatten()
        self.total += SAFE * of_computed(n, r.dtype) * (sizes + UNDERFLOW * float(reach.sum().clamp(min=1.0)))
