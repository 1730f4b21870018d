"""The network near x0 as one linear operator with bounded uncertainties (docs/joint_bound.md, sections 1–3).

With the vector w of all uncertain kinks and v of what they read, the network's differences are

    Δf = N δ + P w,   v = Q δ + T w,   |w_g| ≤ |v_g|,   T strictly lower triangular in the order of the layers.

None of these matrices is formed here: one forward pass applies them, one backward pass their adjoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..layers.layer import INPUT
from ..layers.linear_maps import size
from ..layers.rounding import roundings
from ..layers.shifted_products import taps_first
from ..layers.stage import Stage
from .blocks import Block
from .kinks import positions
from .row_errors import BRANCHES, Errors

WIDE = 2**22  # elements of a layer, of all vectors: larger ones are new memory in every operation, which is slow


class Passes(Protocol):
    """N, P, Q, T by passes; p vectors at a time. like: a tensor of its dtype and device; widest: its largest layer."""

    @property
    def in_shape(self) -> tuple[int, ...]: ...

    @property
    def like(self) -> Tensor: ...

    @property
    def out_size(self) -> int: ...

    @property
    def groups(self) -> int: ...

    @property
    def widest(self) -> int: ...

    def forward(self, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(Nδ + Pw, Qδ + Tw), (p, m) and (p, G), for delta (p, n), w (p, G)."""

    def adjoint(self, f: Tensor, v: Tensor, errors: Errors | None = None) -> tuple[Tensor, Tensor]:
        """(Nᵀf + Qᵀv, Pᵀf + Tᵀv), (p, n) and (p, G), for f (p, m), v (p, G). errors: of these rows are added there."""


def at_once(widest: int) -> int:
    """How many vectors go through together, where the largest layer has so many elements."""
    return max(1, WIDE // widest)


def unit_rows(operator: Passes) -> Iterator[Tensor]:
    """A row (1, m) for each output, in their order, as many together as go through `at_once`."""
    m, part = operator.out_size, at_once(operator.widest)
    for first in range(0, m, part):
        f = operator.like.new_zeros(min(part, m - first), m)
        f[:, first:].fill_diagonal_(1.0)
        yield f


@dataclass
class JointOperator:
    """The operator of a network or of its first blocks.

    `last` is the last stage, or None where the output is that of the last block.
    """

    in_shape: tuple[int, ...]
    blocks: list[Block]
    last: Stage | None
    like: Tensor  # of the working dtype and device
    last_reach: Tensor | None = None  # of its output, as for a block
    work: float = 0.0  # multiplications spent

    @property
    def groups(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def cost(self) -> int:
        return max(1, sum(stage.cost for stage in self._stages))

    @property
    def depth(self) -> int:
        """The number of kink layers with uncertain groups."""
        return sum(len(kinks.index) > 0 for block in self.blocks for kinks in block.kinks)

    @property
    def terms(self) -> int:
        """For the rounding of a pass: the products summed in one element, over all stages."""
        return sum(stage.terms for stage in self._stages) + self.groups

    @property
    def widest(self) -> int:
        """Elements of the largest layer."""
        return max([size(self.in_shape)] + [size(stage.out_shape) for stage in self._stages])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.last.out_shape if self.last is not None else self.blocks[-1].out_shape

    @property
    def out_size(self) -> int:
        return size(self.out_shape)

    @property
    def _stages(self) -> list[Stage]:
        return [block.stage for block in self.blocks] + ([self.last] if self.last else [])

    def to(self, dtype: torch.dtype) -> JointOperator:
        """The same operator in a dtype of at least its own precision."""
        if self.like.dtype is dtype:
            return self
        blocks = []
        for block in self.blocks:
            stage = block.plan.stage.to(dtype).entries(taps_first)
            blocks.append(replace(block, stage=stage, kinks=[kinks.to(dtype) for kinks in block.kinks]))
        last = None if self.last is None else self.last.to(dtype)
        return replace(self, blocks=blocks, last=last, like=self.like.to(dtype), work=0.0)

    def forward(self, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Passes`."""
        p, used = delta.shape[0], 0
        values: dict[str, Tensor] = {INPUT: delta.reshape(p, *self.in_shape)}
        vs: list[Tensor] = []
        y = values[INPUT]
        for block in self.blocks:
            y = block.stage.apply(self._read(block.stage, values))
            y, v = block.forward(y, w[:, used : used + block.count])
            values[block.plan.name] = y
            vs += v
            used += block.count
        if self.last is not None:
            y = self.last.apply(self._read(self.last, values))
        self.work += 0.5 * p * self.cost
        return y.reshape(p, -1), torch.cat(vs, 1) if vs else w

    def adjoint(self, f: Tensor, v: Tensor, errors: Errors | None = None) -> tuple[Tensor, Tensor]:
        """As in `Passes`."""
        p, used = f.shape[0], v.shape[1]
        bars: dict[str, Tensor] = {}
        ws: list[Tensor] = []
        f = f.reshape(p, *self.out_shape)
        if self.last is not None:
            if errors is not None and self.last_reach is not None:
                errors.add(f, self.last_reach, roundings(self.last) + BRANCHES)
            self._add(bars, self.last.adjoint(f))
        elif self.blocks:
            bars[self.blocks[-1].plan.name] = f
        for block in reversed(self.blocks):
            z = bars.pop(block.plan.name, None)
            if z is None:  # nothing later in this prefix reads it
                z = f.new_zeros(p, *block.out_shape)
            y, w = block.adjoint(z, v[:, used - block.count : used], errors)
            self._add(bars, block.stage.adjoint(y))
            ws = w + ws
            used -= block.count
        self.work += 0.5 * p * self.cost
        delta = bars.get(INPUT, f.new_zeros(p, *self.in_shape))
        return delta.reshape(p, -1), torch.cat(ws, 1) if ws else v

    @staticmethod
    def _read(stage: Stage, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name] for name in stage.sources}

    @staticmethod
    def _add(bars: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
        for name, x in more.items():
            bars[name] = bars[name] + x if name in bars else x


@dataclass(frozen=True)
class Elements:
    """The operator up to what its next layer of kinks reads: elements `at` (k,) of that, divided by `scale` (k,)."""

    operator: JointOperator
    at: Tensor
    scale: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.operator.in_shape

    @property
    def like(self) -> Tensor:
        return self.operator.like

    @property
    def out_size(self) -> int:
        return len(self.at)

    @property
    def groups(self) -> int:
        return self.operator.groups

    @property
    def widest(self) -> int:
        return self.operator.widest

    def forward(self, delta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        z, v = self.operator.forward(delta, w)
        y = self._block.ahead(z.reshape(z.shape[0], *self._block.out_shape))
        return y[self._positions] / self.scale, v

    def adjoint(self, f: Tensor, v: Tensor, errors: Errors | None = None) -> tuple[Tensor, Tensor]:
        y = self._block.ahead(f.new_zeros(f.shape[0], *self._block.out_shape))
        y[self._positions] = f / self.scale
        return self.operator.adjoint(self._block.adjoint_ahead(y), v, errors)

    @cached_property
    def _positions(self) -> tuple:
        return positions(self.at, self._block.ahead(self.like.new_zeros(1, *self._block.out_shape)).shape[1:])

    @property
    def _block(self) -> Block:
        return self.operator.blocks[-1]
